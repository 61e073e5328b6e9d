-- What devices say about themselves, or an operator imports: kept with the device, not the sample.

ALTER TABLE iov.device ADD COLUMN described_at timestamptz;
COMMENT ON COLUMN iov.device.described_at IS 'When what is said in kind, vin, region and fleet was last true';

-- Workers may not read these columns, so they cannot update them either; this function does it.
-- A later word takes the place of an earlier one; an earlier one that comes late fills gaps only.
CREATE FUNCTION iov.describe_devices(
    device_ids integer[], at timestamptz[], kinds text[], vins text[], regions text[], fleets text[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    said record;
BEGIN
    -- In the order of the devices, so that two workers do not wait for each other in a circle.
    FOR said IN
        SELECT * FROM unnest(device_ids, at, kinds, vins, regions, fleets)
            AS s (device_id, at, kind, vin, region, fleet)
        ORDER BY s.device_id
    LOOP
        UPDATE iov.device d SET
            kind = coalesce(said.kind, d.kind), vin = coalesce(said.vin, d.vin),
            region = coalesce(said.region, d.region), fleet = coalesce(said.fleet, d.fleet),
            described_at = said.at
        WHERE d.device_id = said.device_id AND coalesce(d.described_at <= said.at, true)
          AND (d.kind, d.vin, d.region, d.fleet) IS DISTINCT FROM
              (coalesce(said.kind, d.kind), coalesce(said.vin, d.vin),
               coalesce(said.region, d.region), coalesce(said.fleet, d.fleet));
        UPDATE iov.device d SET
            kind = coalesce(d.kind, said.kind), vin = coalesce(d.vin, said.vin),
            region = coalesce(d.region, said.region), fleet = coalesce(d.fleet, said.fleet)
        WHERE d.device_id = said.device_id AND d.described_at > said.at
          AND ((d.kind IS NULL AND said.kind IS NOT NULL) OR (d.vin IS NULL AND said.vin IS NOT NULL)
            OR (d.region IS NULL AND said.region IS NOT NULL)
            OR (d.fleet IS NULL AND said.fleet IS NOT NULL));
    END LOOP;
END
$$;
COMMENT ON FUNCTION iov.describe_devices(integer[], timestamptz[], text[], text[], text[], text[])
    IS 'Keeps what is said about devices; nothing changes where nothing is new';
REVOKE ALL ON FUNCTION iov.describe_devices(integer[], timestamptz[], text[], text[], text[], text[])
    FROM PUBLIC;
