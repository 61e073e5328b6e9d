-- What is kept how long, and what workers, who own nothing, may do about it: no more than that says.

CREATE TABLE iov.retention (
    table_name text PRIMARY KEY,
    keep_days integer CHECK (keep_days BETWEEN 1 AND 36500),
    compress_after_days integer CHECK (compress_after_days BETWEEN 1 AND 36500)
);
COMMENT ON TABLE iov.retention IS 'How long rows are kept; of a table that is not here all are. From IOV_RETENTION_FILE, by migrate and maintain';
COMMENT ON COLUMN iov.retention.table_name IS 'Table of a stream, or dead_letter';
COMMENT ON COLUMN iov.retention.keep_days IS 'A UTC day is dropped so many days after its end; NULL: never';
COMMENT ON COLUMN iov.retention.compress_after_days IS 'On TimescaleDB a chunk is compressed so many days after its end; NULL: never';

INSERT INTO iov.mutex (name) VALUES ('maintain');

-- For whoever may not detach concurrently, which needs an owner and a transaction of its own. Waits
-- for the table's readers and writers a fifth of a second, no longer: all others wait behind it.
CREATE FUNCTION iov.drop_day(stream_table text, part text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '200ms'
-- A caller's time zone would make a day of another length, and dates of another order.
SET timezone = 'UTC'
SET datestyle = 'ISO'
AS $$
DECLARE
    day record;
BEGIN
    SELECT i.inhdetachpending AS pending,
            (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz
                + make_interval(days => r.keep_days) <= clock_timestamp() AS is_old
        INTO day
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
        JOIN iov.retention r ON r.table_name = p.relname
        WHERE p.relnamespace = 'iov'::regnamespace AND c.relnamespace = p.relnamespace
          AND p.relname = stream_table AND c.relname = part;
    IF day.is_old IS NOT TRUE THEN
        RAISE EXCEPTION 'iov.% is no day of iov.% past its keeping', part, stream_table
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    EXECUTE format('ALTER TABLE iov.%I DETACH PARTITION iov.%I', stream_table, part)
        || CASE WHEN day.pending THEN ' FINALIZE' ELSE '' END;
    EXECUTE format('DROP TABLE iov.%I', part);
END
$$;
COMMENT ON FUNCTION iov.drop_day(text, text) IS 'Drops a partition that iov.retention no longer keeps';
REVOKE ALL ON FUNCTION iov.drop_day(text, text) FROM PUBLIC;

CREATE FUNCTION iov.drop_dead_letters(most integer) RETURNS integer
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
AS $$
    WITH gone AS (
        DELETE FROM iov.dead_letter WHERE id IN (
            SELECT d.id FROM iov.dead_letter d, iov.retention r
            WHERE r.table_name = 'dead_letter'
              AND d.received_at < clock_timestamp() - make_interval(days => r.keep_days)
            ORDER BY d.received_at LIMIT most
        ) RETURNING 1
    ) SELECT count(*)::integer FROM gone
$$;
COMMENT ON FUNCTION iov.drop_dead_letters(integer) IS 'Deletes dead letters that iov.retention no longer keeps, the oldest first; how many';
REVOKE ALL ON FUNCTION iov.drop_dead_letters(integer) FROM PUBLIC;

-- Autovacuum analyses partitions, never their parent, whose statistics a query over days needs.
-- While it is analysed no day can be made, so it is done fast: 9,000 rows and not 30,000, and the
-- parent alone, which PostgreSQL can from 18 on.
CREATE FUNCTION iov.analyse(stream_table text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '200ms'
SET default_statistics_target = 30
AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_class c
        WHERE c.relnamespace = 'iov'::regnamespace AND c.relname = stream_table AND c.relkind = 'p'
    ) THEN
        RAISE EXCEPTION 'iov.% is no partitioned table', stream_table
            USING ERRCODE = 'undefined_table';
    END IF;
    EXECUTE format('ANALYZE ONLY iov.%I', stream_table);
END
$$;
COMMENT ON FUNCTION iov.analyse(text) IS 'Renews the statistics of a partitioned table as a whole';
REVOKE ALL ON FUNCTION iov.analyse(text) FROM PUBLIC;

-- As before, and each day with a BRIN index on ts.
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
    EXECUTE format('CREATE INDEX ON iov.%I USING brin (ts) WITH (autosummarize = on)', part);
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
