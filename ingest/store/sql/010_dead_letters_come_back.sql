-- Dead letters come back: how often each was tried, and a role that may read, replay and delete them.

ALTER TABLE iov.dead_letter
    ADD COLUMN kept text,
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN replayed_at timestamptz;
COMMENT ON COLUMN iov.dead_letter.kept IS 'What payload is: clean (without what must never be stored), raw (unchanged, because it could not be read), digest (size and digest only); NULL if written before this was noted';
COMMENT ON COLUMN iov.dead_letter.attempts IS 'Number of times that it was replayed and rejected again';
COMMENT ON COLUMN iov.dead_letter.replayed_at IS 'When it was last replayed; reason and detail are those of that time';
