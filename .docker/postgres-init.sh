#!/bin/sh
# Run once, when the database is made: the login of the worker. It owns nothing, and what it may
# do it gets from the role gristmill_worker, which the migrations fill with rights.
set -eu
psql --set ON_ERROR_STOP=1 --set password="$WORKER_PASSWORD" \
    --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE gristmill_worker NOLOGIN NOSUPERUSER NOBYPASSRLS;
CREATE ROLE gristmill_login LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS PASSWORD :'password';
GRANT gristmill_worker TO gristmill_login;
SQL
