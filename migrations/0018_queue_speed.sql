-- The queue's speed: what a batch costs grows with the batch, not with its square and not with
-- the table; and a job alone is not planned anew each time.

-- The same moment as before, in words that really do not depend on the time zone: so the
-- planner may write the body in place of the call, once for every row that is queued.
CREATE OR REPLACE FUNCTION gristmill.turn(run_at timestamptz, priority smallint) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ((run_at AT TIME ZONE 'UTC') - priority * interval '1 minute') AT TIME ZONE 'UTC'
$$;

DROP FUNCTION gristmill.acknowledge;

-- Acknowledges a batch. `delays` in milliseconds: NULL means the stored back-off. `refunds`
-- give the attempt back (waits, parks and hand-backs cost none). Answers how many were still ours,
-- and which of ours somebody's open transaction holds right now: those are to be asked again, and
-- keep nobody else's end from being written.
--
-- The rows are found by their ids and only then held against their epochs, by a hash. Left to
-- itself the planner believes statistics from when nothing was at work, reads the whole table
-- and goes through the whole batch for each of its rows. `run_at` is touched only where it
-- changes: `turn` hangs on it. A job that somebody called off does not wait for its delay.
CREATE FUNCTION gristmill.acknowledge(
    ids uuid[], epochs int[], states text[], delays bigint[], refunds boolean[], reasons text[],
    base interval, ceiling interval, OUT held bigint, OUT busy uuid[]
) LANGUAGE sql VOLATILE
SET enable_nestloop = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
    WITH free AS MATERIALIZED (
        SELECT j.id FROM gristmill.jobs j WHERE j.id = ANY (ids) FOR NO KEY UPDATE SKIP LOCKED),
    done AS (
        UPDATE gristmill.jobs j SET
            state = 'DONE', lease_until = NULL, attempts = j.attempts - a.refund::int, reason = a.reason,
            finished_at = clock_timestamp()
        FROM unnest(ids, epochs, states, refunds, reasons) AS a (id, epoch, state, refund, reason) JOIN free USING (id)
        WHERE a.state = 'DONE' AND j.id = ANY (ids) AND j.id = a.id AND j.epoch = a.epoch AND (j.state = 'RUNNING') IS TRUE
        RETURNING 1),
    other AS (
        UPDATE gristmill.jobs j SET
            state = a.state::gristmill.job_state,
            lease_until = NULL,
            attempts = j.attempts - a.refund::int,
            run_at = CASE WHEN a.state <> 'SCHEDULED' THEN j.run_at
                          WHEN j.cancel_requested THEN now()
                          ELSE now() + coalesce(a.delay * interval '1 ms', gristmill.backoff(j.attempts, base, ceiling)) END,
            reason = a.reason,
            finished_at = CASE WHEN a.state IN ('DEAD', 'CANCELLED') THEN clock_timestamp() END
        FROM unnest(ids, epochs, states, delays, refunds, reasons) AS a (id, epoch, state, delay, refund, reason) JOIN free USING (id)
        WHERE a.state <> 'DONE' AND j.id = ANY (ids) AND j.id = a.id AND j.epoch = a.epoch AND (j.state = 'RUNNING') IS TRUE
        RETURNING 1)
    SELECT (SELECT count(*) FROM done) + (SELECT count(*) FROM other),
           CASE WHEN (SELECT count(*) FROM free) < cardinality(ids) THEN ARRAY(
               SELECT a.id FROM unnest(ids, epochs) AS a (id, epoch) JOIN gristmill.jobs j ON j.id = a.id AND j.id = ANY (ids)
               WHERE j.epoch = a.epoch AND (j.state = 'RUNNING') IS TRUE AND NOT EXISTS (SELECT FROM free WHERE free.id = a.id))
           ELSE '{}' END
$$;
REVOKE EXECUTE ON FUNCTION gristmill.acknowledge FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.acknowledge TO gristmill_worker;

-- Renewal likewise: what is at work, held against the batch by a hash.
ALTER FUNCTION gristmill.renew
    SET enable_hashjoin = on SET enable_nestloop = off SET enable_seqscan = off SET enable_bitmapscan = off;

-- Their statements are probes into indexes whatever the values: planning each anew, as plpgsql
-- does while it believes a plan for these very values cheaper, took longer than running them.
ALTER FUNCTION gristmill.claim SET plan_cache_mode = force_generic_plan;
ALTER FUNCTION gristmill.enqueue SET plan_cache_mode = force_generic_plan;

-- The fence finds its row by the id. Asked plainly for `state = 'RUNNING'` the planner may take an
-- index of all that is at work, and go through it for every job.
CREATE OR REPLACE FUNCTION gristmill.enter(job uuid, at_epoch int, workspace uuid) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    lapses timestamptz;
BEGIN
    SELECT lease_until INTO lapses FROM gristmill.jobs
    WHERE id = job AND epoch = at_epoch AND (state = 'RUNNING') IS TRUE FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of job % has moved on from epoch %', job, at_epoch
            USING ERRCODE = 'GM001';
    END IF;
    PERFORM set_config('gristmill.workspace', workspace::text, true),
            set_config('idle_in_transaction_session_timeout',
                       greatest(1000, extract(epoch FROM lapses - clock_timestamp()) * 1000)::int::text, true);
END
$$;

CREATE OR REPLACE FUNCTION gristmill.complete(job uuid, at_epoch int) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE gristmill.jobs SET state = 'DONE', lease_until = NULL, reason = NULL, finished_at = clock_timestamp()
    WHERE id = job AND epoch = at_epoch AND (state = 'RUNNING') IS TRUE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of job % has moved on from epoch %', job, at_epoch
            USING ERRCODE = 'GM001';
    END IF;
END
$$;
