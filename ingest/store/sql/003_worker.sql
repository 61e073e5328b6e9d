-- Who works here: so that a session at the broker that nobody reads any more can be told from one
-- whose worker is only slow, and be drained.

CREATE TABLE iov.worker (
    client_id text NOT NULL,
    broker text NOT NULL,
    subscription text NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    leave_requested boolean NOT NULL DEFAULT false,
    PRIMARY KEY (broker, client_id)
);
COMMENT ON TABLE iov.worker IS 'Workers and when each was last heard of; one that has left for good has no row';
COMMENT ON COLUMN iov.worker.client_id IS 'MQTT client identifier: the name of its session at the broker';
COMMENT ON COLUMN iov.worker.broker IS 'Host of the broker that keeps the session';
COMMENT ON COLUMN iov.worker.subscription IS 'Topic filter of the session, with $share/{group} where it is shared';
COMMENT ON COLUMN iov.worker.heartbeat_at IS 'When it last reached the database, by the database''s clock';
COMMENT ON COLUMN iov.worker.leave_requested IS 'It is asked to leave for good: iov-ingest drain';
