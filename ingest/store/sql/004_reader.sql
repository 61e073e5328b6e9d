-- Who reads: dashboards and consumers. Not who a device is (its VIN), nor the payload of what was
-- rejected, which may hold anything. Streams that are made later are granted when they are made.

DO $$
DECLARE
    stream_table regclass;
BEGIN
    IF to_regrole('iov_reader') IS NULL THEN
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA iov TO iov_reader;
    GRANT SELECT (device_id, device, kind, region, fleet, first_seen_at) ON iov.device TO iov_reader;
    GRANT SELECT (id, received_at, topic, device, stream, reason, detail)
        ON iov.dead_letter TO iov_reader;
    GRANT SELECT ON iov.worker TO iov_reader;
    -- A stream's table is one whose key is a sample's.
    FOR stream_table IN
        SELECT i.indrelid FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
        WHERE i.indisprimary AND c.relnamespace = 'iov'::regnamespace AND NOT c.relispartition
          AND ARRAY['device_id', 'ts', 'seq']::name[] = ARRAY(
              SELECT a.attname FROM unnest(i.indkey::int[]) WITH ORDINALITY k (attnum, place)
              JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum ORDER BY k.place)
    LOOP
        EXECUTE format('GRANT SELECT ON %s TO iov_reader', stream_table);
    END LOOP;
END
$$;
