-- For whoever reads: every device with what everybody may know of it, and comments on partitions too.

CREATE VIEW iov.vehicle AS
    SELECT device_id, device, kind, region, fleet, first_seen_at FROM iov.device;
COMMENT ON VIEW iov.vehicle IS
    'Every device, a vehicle or not, without its VIN: SELECT * for whoever may read iov.device in part.';
COMMENT ON COLUMN iov.vehicle.device_id IS 'Key of the device in the tables of the streams.';
COMMENT ON COLUMN iov.vehicle.device IS 'Name of the device, from the topic.';
COMMENT ON COLUMN iov.vehicle.kind IS 'What it is: car, truck, bus, roadside unit and so on.';
COMMENT ON COLUMN iov.vehicle.region IS 'Where it belongs, as the operator says.';
COMMENT ON COLUMN iov.vehicle.fleet IS 'Whose it is, as the operator says.';
COMMENT ON COLUMN iov.vehicle.first_seen_at IS 'When its first sample came.';

CREATE OR REPLACE FUNCTION iov.make_partition(stream_table text, day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '2s'
AS $$
DECLARE
    part text := stream_table || '_' || to_char(day, 'YYYYMMDD');
    pending boolean;
    parent oid := (
        SELECT c.oid FROM pg_class c
        WHERE c.relnamespace = 'iov'::regnamespace AND c.relname = stream_table
          AND c.relkind = 'p'
    );
BEGIN
    IF parent IS NULL THEN
        RAISE EXCEPTION 'iov.% is no partitioned table', stream_table
            USING ERRCODE = 'undefined_table';
    END IF;
    PERFORM FROM iov.mutex WHERE name = 'partition' FOR UPDATE;
    -- A partition of that name that was detached, to be archived say, is left alone.
    WHILE to_regclass(format('iov.%I', part)) IS NOT NULL LOOP
        SELECT i.inhdetachpending INTO pending
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = parent AND c.relname = part;
        IF pending THEN
            RAISE EXCEPTION 'the detach of iov.% is pending: ALTER TABLE iov.% DETACH PARTITION iov.% FINALIZE',
                part, stream_table, part USING ERRCODE = 'object_in_use';
        ELSIF NOT pending THEN
            RETURN false;
        END IF;
        part := part || '_again';
    END LOOP;
    EXECUTE format(
        'CREATE TABLE iov.%I (LIKE iov.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE '
        'INCLUDING COMMENTS)',
        part, stream_table);
    EXECUTE format(
        'ALTER TABLE iov.%I ATTACH PARTITION iov.%I FOR VALUES FROM (%L) TO (%L)',
        stream_table, part,
        to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00',
        to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
    EXECUTE format('COMMENT ON TABLE iov.%I IS %L', part,
        format('iov.%s, samples of %s (UTC).', stream_table, to_char(day, 'YYYY-MM-DD')));
    RETURN true;
END
$$;
