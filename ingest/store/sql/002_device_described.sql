-- What devices say about themselves, or an operator imports: kept with the device, not the sample.

ALTER TABLE iov.device
    ADD COLUMN kind_at timestamptz, ADD COLUMN vin_at timestamptz,
    ADD COLUMN region_at timestamptz, ADD COLUMN fleet_at timestamptz;
COMMENT ON COLUMN iov.device.kind_at IS 'When kind was said, to the hour where it was said again';
COMMENT ON COLUMN iov.device.vin_at IS 'When vin was said, to the hour where it was said again';
COMMENT ON COLUMN iov.device.region_at IS 'When region was said, to the hour where it was said again';
COMMENT ON COLUMN iov.device.fleet_at IS 'When fleet was said, to the hour where it was said again';

-- Workers may not read these columns, so they cannot update them either; this function does it.
-- Of each field the later word counts, whatever the order they come in. The same word again moves
-- its time on only after an hour, or every heartbeat would write.
CREATE FUNCTION iov.describe_devices(
    device_ids integer[], at timestamptz[], kinds text[], vins text[], regions text[], fleets text[]
) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    said record;
    written integer;
    total integer := 0;
BEGIN
    -- In the order of the devices, so that two workers do not wait for each other in a circle.
    FOR said IN
        SELECT * FROM unnest(device_ids, at, kinds, vins, regions, fleets) WITH ORDINALITY
            AS s (device_id, at, kind, vin, region, fleet, position)
        ORDER BY s.device_id, s.position
    LOOP
        UPDATE iov.device d SET
            kind = CASE WHEN new.kind THEN said.kind ELSE d.kind END,
            kind_at = CASE WHEN new.kind THEN said.at ELSE d.kind_at END,
            vin = CASE WHEN new.vin THEN said.vin ELSE d.vin END,
            vin_at = CASE WHEN new.vin THEN said.at ELSE d.vin_at END,
            region = CASE WHEN new.region THEN said.region ELSE d.region END,
            region_at = CASE WHEN new.region THEN said.at ELSE d.region_at END,
            fleet = CASE WHEN new.fleet THEN said.fleet ELSE d.fleet END,
            fleet_at = CASE WHEN new.fleet THEN said.at ELSE d.fleet_at END
        FROM (
            SELECT o.device_id,
                iov.is_news(said.kind, said.at, o.kind, o.kind_at) AS kind,
                iov.is_news(said.vin, said.at, o.vin, o.vin_at) AS vin,
                iov.is_news(said.region, said.at, o.region, o.region_at) AS region,
                iov.is_news(said.fleet, said.at, o.fleet, o.fleet_at) AS fleet
            FROM iov.device o WHERE o.device_id = said.device_id
        ) new
        WHERE d.device_id = new.device_id AND (new.kind OR new.vin OR new.region OR new.fleet);
        GET DIAGNOSTICS written = ROW_COUNT;
        total := total + written;
    END LOOP;
    RETURN total;
END
$$;

CREATE FUNCTION iov.is_news(said text, at timestamptz, known text, known_at timestamptz)
RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN said IS NOT NULL AND (
    known_at IS NULL
    OR (at >= known_at AND said IS DISTINCT FROM known)
    OR at >= known_at + interval '1 hour'
);

COMMENT ON FUNCTION iov.describe_devices(integer[], timestamptz[], text[], text[], text[], text[])
    IS 'Keeps what is said about devices; how many of them it was news for';
COMMENT ON FUNCTION iov.is_news(text, timestamptz, text, timestamptz)
    IS 'Whether a word about a device is to be written';
REVOKE ALL ON FUNCTION iov.describe_devices(integer[], timestamptz[], text[], text[], text[], text[])
    FROM PUBLIC;
REVOKE ALL ON FUNCTION iov.is_news(text, timestamptz, text, timestamptz) FROM PUBLIC;
