#!/bin/sh
# Who may do what in the database: one user owns the tables and migrates, one works, one reads. Run
# once by the image, as the superuser, when the volume is new.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set database="$POSTGRES_DB" --set owner="$OWNER_PASSWORD" \
    --set worker="$WORKER_PASSWORD" --set reader="$READER_PASSWORD" <<'SQL'
CREATE ROLE iov_worker NOLOGIN;
CREATE ROLE iov_reader NOLOGIN;
CREATE ROLE iov_dead_letters NOLOGIN IN ROLE iov_worker;
CREATE ROLE owner LOGIN PASSWORD :'owner';
CREATE ROLE worker LOGIN PASSWORD :'worker' IN ROLE iov_worker;
CREATE ROLE dashboards LOGIN PASSWORD :'reader' IN ROLE iov_reader;
GRANT CREATE, TEMPORARY ON DATABASE :"database" TO owner WITH GRANT OPTION;
-- A dashboard that asks too much shall not keep the workers waiting for long.
ALTER ROLE dashboards SET statement_timeout = '30s';
ALTER ROLE dashboards SET default_transaction_read_only = on;
SQL
