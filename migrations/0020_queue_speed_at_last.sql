-- What a job costs that only comes and goes: found by profiling the server while a backlog drains.

-- Whose turn it is stands in the index alone. As a generated column it was an eighth of the
-- server's work: Postgres reads the column's expression anew for every row of an update that
-- does not need it.
ALTER TABLE gristmill.jobs DROP COLUMN turn;
CREATE INDEX jobs_waiting ON gristmill.jobs (lane, workspace_id, kind, gristmill.turn(run_at, priority)) WHERE state = 'WAITING';

-- The form of a kind's name is held by the table of kinds, without which nothing is queued.
ALTER TABLE gristmill.jobs DROP CONSTRAINT jobs_kind_check;

-- Acknowledges jobs that are done and left nothing to write: one probe a job, and no lock before
-- the update's own. A row that somebody's open transaction holds fails the whole batch with
-- `lock_not_available`, soon: gristmill.acknowledge then writes what it can. Answers how many
-- were still ours.
CREATE FUNCTION gristmill.finish(ids uuid[], epochs int[]) RETURNS bigint
LANGUAGE sql VOLATILE
SET lock_timeout = '50ms' SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
SET enable_bitmapscan = off SET jit = off AS $$
    WITH done AS (
        UPDATE gristmill.jobs j SET state = 'DONE', lease_until = NULL, reason = NULL, finished_at = clock_timestamp()
        FROM unnest(ids, epochs) AS a (id, epoch)
        WHERE j.id = a.id AND j.epoch = a.epoch AND (j.state = 'RUNNING') IS TRUE
        RETURNING 1)
    SELECT count(*) FROM done
$$;
REVOKE EXECUTE ON FUNCTION gristmill.finish FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.finish TO gristmill_worker;

-- The claim, and who is before a waiting job, by the index's words.
DO $$
DECLARE
    claim text := pg_get_functiondef('gristmill.claim'::regproc);
    explained text := pg_get_functiondef('gristmill.explain_waiting'::regproc);
BEGIN
    ASSERT claim LIKE '%j.kind, j.turn FROM%' AND claim LIKE '%ORDER BY j.turn%' AND explained LIKE '%x.turn < j.turn%';
    claim := replace(claim, 'j.kind, j.turn FROM', 'j.kind, gristmill.turn(j.run_at, j.priority) AS turn FROM');
    EXECUTE replace(claim, 'ORDER BY j.turn', 'ORDER BY gristmill.turn(j.run_at, j.priority)');
    EXECUTE replace(explained, 'x.turn < j.turn',
                    'gristmill.turn(x.run_at, x.priority) < gristmill.turn(j.run_at, j.priority)');
END
$$;

-- What a claim brings over is bounded: a payload carries ids.
CREATE OR REPLACE FUNCTION gristmill.lane_of(kind text, payload jsonb) RETURNS smallint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, gristmill AS $$
DECLARE
    known gristmill.kinds;
    fault text;
BEGIN
    SELECT * INTO known FROM gristmill.kinds k WHERE k.kind = lane_of.kind;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no worker knows the kind "%"', kind USING ERRCODE = 'invalid_parameter_value',
            HINT = format('known: %s. A worker publishes its kinds when it starts, and so does `gristmill migrate`',
                          coalesce((SELECT string_agg(k.kind, ', ' ORDER BY k.kind) FROM gristmill.kinds k), 'none yet'));
    END IF;
    -- A claim brings the payloads of its jobs: what is large lies in a row or an object of its own.
    IF pg_column_size(payload) > 65536 THEN
        RAISE EXCEPTION 'the payload of "%" has % bytes, 65536 fit', kind, pg_column_size(payload)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'a payload carries ids, not data';
    END IF;
    fault := gristmill.misfit(known.schema, payload);
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'the payload does not fit the kind "%": %', kind, fault
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = format('its JSON Schema: select schema from gristmill.kinds where kind = %L', kind);
    END IF;
    RETURN known.lane;
END
$$;
