-- Where each worker's page is, so that the page of one can show them all.

ALTER TABLE iov.worker ADD COLUMN page_address text;
COMMENT ON COLUMN iov.worker.page_address IS 'host:port of its page; the name of its machine if it listens on every address';
