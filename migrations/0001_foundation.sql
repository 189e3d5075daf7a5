-- The ground: schema, roles, ids, tenants and the row-level-security helper.
-- Migrations run as the owner of the database; the worker takes the role gristmill_worker,
-- which owns nothing. Every table lies in schema gristmill.

CREATE SCHEMA IF NOT EXISTS gristmill;
CREATE EXTENSION IF NOT EXISTS vector;

-- Roles belong to the cluster, not the database: another database's migration may run now.
DO $$
BEGIN
    CREATE ROLE gristmill_worker NOLOGIN NOSUPERUSER NOBYPASSRLS;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

GRANT USAGE ON SCHEMA gristmill TO gristmill_worker;

-- Time-ordered ids (RFC 9562, version 7), for servers before PostgreSQL 18 too.
CREATE FUNCTION gristmill.uuid7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT encode(
        set_bit(
            set_bit(
                overlay(uuid_send(gen_random_uuid())
                        PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                        FROM 1 FOR 6),
                52, 1),
            53, 1),
        'hex')::uuid
$$;

-- The tenant of this transaction; NULL (no rows) when none was set.
CREATE FUNCTION gristmill.current_workspace() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('gristmill.workspace', true), '')::uuid
$$;

CREATE FUNCTION gristmill.touch_updated_at() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

CREATE TABLE gristmill.workspaces (
    id          uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    external_id text UNIQUE,
    name        text NOT NULL CHECK (name <> ''),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER workspaces_touch BEFORE UPDATE ON gristmill.workspaces
    FOR EACH ROW EXECUTE FUNCTION gristmill.touch_updated_at();
