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
COMMENT ON COLUMN iov.mutex.holder IS 'Worker that holds it, by its application_name';
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

-- What an operator imports outranks what a vehicle says, whatever its clock. A worker's function
-- says nothing in return: from a number of changes it could be guessed what is there.
ALTER TABLE iov.device
    ADD COLUMN kind_rank smallint NOT NULL DEFAULT 0, ADD COLUMN vin_rank smallint NOT NULL DEFAULT 0,
    ADD COLUMN region_rank smallint NOT NULL DEFAULT 0, ADD COLUMN fleet_rank smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN iov.device.kind_rank IS 'Who said kind: 0 the device, 1 an operator';
COMMENT ON COLUMN iov.device.vin_rank IS 'Who said vin: 0 the device, 1 an operator';
COMMENT ON COLUMN iov.device.region_rank IS 'Who said region: 0 the device, 1 an operator';
COMMENT ON COLUMN iov.device.fleet_rank IS 'Who said fleet: 0 the device, 1 an operator';

CREATE FUNCTION iov.is_news(
    said text, at timestamptz, rank smallint, known text, known_at timestamptz, known_rank smallint
) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN said IS NOT NULL AND rank >= known_rank AND (
    known_at IS NULL
    OR rank > known_rank
    OR (at >= known_at AND said IS DISTINCT FROM known)
    OR at >= known_at + interval '1 hour'
);
COMMENT ON FUNCTION iov.is_news(text, timestamptz, smallint, text, timestamptz, smallint)
    IS 'Whether a word about a device is to be written';

CREATE FUNCTION iov.describe_devices_as(
    rank smallint, device_ids integer[], at timestamptz[], kinds text[], vins text[],
    regions text[], fleets text[]
) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    said record;
    written integer;
    total integer := 0;
BEGIN
    -- In the order of the devices, so that two workers do not wait for each other in a circle.
    FOR said IN
        -- A clock that is ahead must not win by it, now or later.
        SELECT s.device_id, least(s.at, clock_timestamp()) AS at, s.kind, s.vin, s.region, s.fleet
        FROM unnest(device_ids, at, kinds, vins, regions, fleets) WITH ORDINALITY
            AS s (device_id, at, kind, vin, region, fleet, position)
        ORDER BY s.device_id, s.position
    LOOP
        UPDATE iov.device d SET
            kind = CASE WHEN new.kind THEN said.kind ELSE d.kind END,
            kind_at = CASE WHEN new.kind THEN said.at ELSE d.kind_at END,
            kind_rank = CASE WHEN new.kind THEN rank ELSE d.kind_rank END,
            vin = CASE WHEN new.vin THEN said.vin ELSE d.vin END,
            vin_at = CASE WHEN new.vin THEN said.at ELSE d.vin_at END,
            vin_rank = CASE WHEN new.vin THEN rank ELSE d.vin_rank END,
            region = CASE WHEN new.region THEN said.region ELSE d.region END,
            region_at = CASE WHEN new.region THEN said.at ELSE d.region_at END,
            region_rank = CASE WHEN new.region THEN rank ELSE d.region_rank END,
            fleet = CASE WHEN new.fleet THEN said.fleet ELSE d.fleet END,
            fleet_at = CASE WHEN new.fleet THEN said.at ELSE d.fleet_at END,
            fleet_rank = CASE WHEN new.fleet THEN rank ELSE d.fleet_rank END
        FROM (
            SELECT o.device_id,
                iov.is_news(said.kind, said.at, rank, o.kind, o.kind_at, o.kind_rank) AS kind,
                iov.is_news(said.vin, said.at, rank, o.vin, o.vin_at, o.vin_rank) AS vin,
                iov.is_news(said.region, said.at, rank, o.region, o.region_at, o.region_rank)
                    AS region,
                iov.is_news(said.fleet, said.at, rank, o.fleet, o.fleet_at, o.fleet_rank) AS fleet
            FROM iov.device o WHERE o.device_id = said.device_id
        ) new
        WHERE d.device_id = new.device_id AND (new.kind OR new.vin OR new.region OR new.fleet);
        GET DIAGNOSTICS written = ROW_COUNT;
        total := total + written;
    END LOOP;
    RETURN total;
END
$$;
COMMENT ON FUNCTION iov.describe_devices_as(smallint, integer[], timestamptz[], text[], text[], text[], text[])
    IS 'Keeps what is said about devices by somebody of a rank; how many of them it was news for';
REVOKE ALL ON FUNCTION iov.describe_devices_as(smallint, integer[], timestamptz[], text[], text[], text[], text[])
    FROM PUBLIC;
REVOKE ALL ON FUNCTION iov.is_news(text, timestamptz, smallint, text, timestamptz, smallint) FROM PUBLIC;

DROP FUNCTION iov.describe_devices(integer[], timestamptz[], text[], text[], text[], text[]);
DROP FUNCTION iov.is_news(text, timestamptz, text, timestamptz);
CREATE FUNCTION iov.describe_devices(
    device_ids integer[], at timestamptz[], kinds text[], vins text[], regions text[], fleets text[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM iov.describe_devices_as(0::smallint, device_ids, at, kinds, vins, regions, fleets);
END
$$;
COMMENT ON FUNCTION iov.describe_devices(integer[], timestamptz[], text[], text[], text[], text[])
    IS 'Keeps what devices say about themselves';
REVOKE ALL ON FUNCTION iov.describe_devices(integer[], timestamptz[], text[], text[], text[], text[])
    FROM PUBLIC;

-- A worker changes its own row of the register and no other's; what it may ask of others goes
-- through two functions. (Workers with one login are one to the database.)
ALTER TABLE iov.worker ADD COLUMN login name;
ALTER TABLE iov.worker ALTER COLUMN login SET DEFAULT session_user;
COMMENT ON COLUMN iov.worker.login IS 'Database user whose row it is; NULL from before that was noted';
ALTER TABLE iov.worker ENABLE ROW LEVEL SECURITY;
CREATE POLICY seen ON iov.worker FOR SELECT USING (true);
CREATE POLICY own_insert ON iov.worker FOR INSERT WITH CHECK (login = session_user);
CREATE POLICY own_update ON iov.worker FOR UPDATE
    USING (login IS NULL OR login = session_user) WITH CHECK (login IS NULL OR login = session_user);
CREATE POLICY own_delete ON iov.worker FOR DELETE USING (login IS NULL OR login = session_user);

CREATE FUNCTION iov.ask_to_leave(of_broker text, of_client_id text) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE iov.worker SET leave_requested = true
    WHERE broker = of_broker AND client_id = of_client_id
$$;
COMMENT ON FUNCTION iov.ask_to_leave(text, text) IS 'Asks a worker to leave for good; it hears with its next heartbeat';

CREATE FUNCTION iov.strike_off(of_broker text, of_client_id text, silent_s double precision)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    struck integer;
BEGIN
    DELETE FROM iov.worker w
    WHERE w.broker = of_broker AND w.client_id = of_client_id
      AND clock_timestamp() - w.heartbeat_at >= make_interval(secs => CASE
          WHEN w.login IS NULL OR w.login = session_user THEN silent_s
          ELSE greatest(silent_s, 30) END);
    GET DIAGNOSTICS struck = ROW_COUNT;
    IF struck > 0 THEN
        DELETE FROM iov.guard g WHERE g.broker = of_broker AND g.client_id = of_client_id;
    END IF;
    RETURN struck > 0;
END
$$;
COMMENT ON FUNCTION iov.strike_off(text, text, double precision)
    IS 'Strikes off a worker that was not heard of for so long; a stranger for at least 30 s';
REVOKE ALL ON FUNCTION iov.ask_to_leave(text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION iov.strike_off(text, text, double precision) FROM PUBLIC;
