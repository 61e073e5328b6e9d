-- What every stream needs: the schema, the devices, the dead letters, the maker of partitions.

CREATE SCHEMA IF NOT EXISTS iov;
COMMENT ON SCHEMA iov IS 'Vehicle telemetry, written by iov-ingest';

CREATE TABLE iov.migration (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE iov.migration IS 'Base migrations that were applied';

CREATE TABLE iov.device (
    device_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device text NOT NULL UNIQUE,
    kind text,
    vin text,
    region text,
    fleet text,
    first_seen_at timestamptz NOT NULL
);
COMMENT ON TABLE iov.device IS 'Every device that ever had a sample accepted';
COMMENT ON COLUMN iov.device.device IS 'Name in the topic: a VIN, or better a pseudonym of it';
COMMENT ON COLUMN iov.device.kind IS 'What sort of device it is';
COMMENT ON COLUMN iov.device.vin IS 'Vehicle identification number (ISO 3779); personal data';
COMMENT ON COLUMN iov.device.region IS 'Where its data belongs';
COMMENT ON COLUMN iov.device.fleet IS 'Whose it is';
COMMENT ON COLUMN iov.device.first_seen_at IS 'When its first sample was stored';

CREATE TABLE iov.dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at timestamptz NOT NULL,
    topic text NOT NULL,
    device text,
    stream text,
    reason text NOT NULL,
    detail text NOT NULL,
    payload bytea NOT NULL
);
CREATE INDEX dead_letter_received_at ON iov.dead_letter (received_at);
COMMENT ON TABLE iov.dead_letter IS 'What was received and could not be stored, and why';
COMMENT ON COLUMN iov.dead_letter.received_at IS 'When the message arrived';
COMMENT ON COLUMN iov.dead_letter.topic IS 'MQTT topic of the message';
COMMENT ON COLUMN iov.dead_letter.device IS 'Device by the topic; NULL where that cannot be read';
COMMENT ON COLUMN iov.dead_letter.stream IS 'Stream by the topic, known or not';
COMMENT ON COLUMN iov.dead_letter.reason IS 'Closed list: too_large bad_topic unknown_stream bad_encoding bad_json bad_envelope bad_timestamp too_old clock_ahead schema refused_by_store internal_error';
COMMENT ON COLUMN iov.dead_letter.detail IS 'What is wrong and where, without the value; of schema it begins with the JSON pointer';
COMMENT ON COLUMN iov.dead_letter.payload IS 'The sample''s own JSON, or the raw message where it cannot be split';

-- Workers own nothing and so cannot make partitions; this function does it for them and for
-- nothing but the streams' own tables. The partition is made apart and then attached, which locks
-- out neither readers nor writers (ALTER TABLE … ATTACH PARTITION takes SHARE UPDATE EXCLUSIVE).
CREATE FUNCTION iov.make_partition(stream_table text, day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $$
DECLARE
    part text := stream_table || '_' || to_char(day, 'YYYYMMDD');
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
    PERFORM pg_advisory_xact_lock(hashtextextended('iov.' || part, 0));
    -- A partition of that name that was detached, to be archived say, is left alone.
    WHILE to_regclass(format('iov.%I', part)) IS NOT NULL LOOP
        IF EXISTS (
            SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = parent AND c.relname = part
        ) THEN
            RETURN false;
        END IF;
        part := part || '_again';
    END LOOP;
    EXECUTE format(
        'CREATE TABLE iov.%I (LIKE iov.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)',
        part, stream_table);
    EXECUTE format(
        'ALTER TABLE iov.%I ATTACH PARTITION iov.%I FOR VALUES FROM (%L) TO (%L)',
        stream_table, part,
        to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00',
        to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
    RETURN true;
END
$$;
COMMENT ON FUNCTION iov.make_partition(text, date) IS 'Makes the partition of one UTC day; false if it was there';
REVOKE ALL ON FUNCTION iov.make_partition(text, date) FROM PUBLIC;
