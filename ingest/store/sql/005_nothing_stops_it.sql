-- One lock, one device, one reader must not stop the others.

-- Locks that no other role can take: rows of a table that only its owner and workers may touch.
-- (An advisory lock is anybody's who can compute its key.)
CREATE TABLE iov.mutex (
    name text PRIMARY KEY,
    holder text,
    held_until timestamptz
);
INSERT INTO iov.mutex (name) VALUES ('partition'), ('leave'), ('adopt');
COMMENT ON TABLE iov.mutex IS 'Locks of the service: a row is locked, or held by somebody until a time';
COMMENT ON COLUMN iov.mutex.holder IS 'Connection that holds it, by its application_name and process';
COMMENT ON COLUMN iov.mutex.held_until IS 'When it is free again if its holder does not renew it';

-- As before, but without an advisory lock, with a shorter wait, and it says so if the day cannot be
-- had: a detach that is pending keeps rows out and no new partition can take its place.
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

-- What was in work when a worker ended without a word: a message that ends one after the other is
-- found by what was noted before it was read again.
CREATE TABLE iov.guard (
    broker text NOT NULL,
    client_id text NOT NULL,
    running boolean NOT NULL,
    suspects jsonb,
    PRIMARY KEY (broker, client_id)
);
COMMENT ON TABLE iov.guard IS 'Of each session at a broker: whether whoever reads it has ended in order, and what it was about to read';
COMMENT ON COLUMN iov.guard.running IS 'True while it is read, and after an end that was not in order';
COMMENT ON COLUMN iov.guard.suspects IS 'Digests of messages that are being read, and at how many ends each was noted';

-- When a device was last deleted: workers remember ids, and must write no row for one that is gone.
-- A batch reads this first and so holds a lock that whoever deletes waits for at its commit.
CREATE TABLE iov.device_epoch (epoch bigint NOT NULL);
INSERT INTO iov.device_epoch VALUES (0);
COMMENT ON TABLE iov.device_epoch IS 'One row, which changes when a device is deleted or renamed';
COMMENT ON COLUMN iov.device_epoch.epoch IS 'Number of the transaction that did so last';

CREATE FUNCTION iov.device_gone() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    this bigint := pg_current_xact_id()::text::bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM iov.device_epoch WHERE epoch = this) THEN
        LOCK TABLE iov.device_epoch IN ACCESS EXCLUSIVE MODE;
        UPDATE iov.device_epoch SET epoch = this;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION iov.device_gone() IS 'Has every worker look its devices up again';
-- At the commit, so that a long transaction holds up nobody before its end.
CREATE CONSTRAINT TRIGGER device_gone AFTER DELETE OR UPDATE OF device ON iov.device
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION iov.device_gone();
CREATE TRIGGER devices_gone AFTER TRUNCATE ON iov.device
    FOR EACH STATEMENT EXECUTE FUNCTION iov.device_gone();
REVOKE ALL ON FUNCTION iov.device_gone() FROM PUBLIC;
