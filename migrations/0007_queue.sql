-- The queue: one lean table, and every statement that moves a job, in one place.
--
-- A job is claimed under a lease with an epoch. Every claim and every rescue moves the epoch
-- on, so whoever held the job before can be told apart from whoever holds it now: the fence
-- (gristmill.enter) and every acknowledgement compare it. Times are the database's.

CREATE TYPE gristmill.job_state AS ENUM ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED', 'DONE', 'DEAD', 'CANCELLED');

CREATE TABLE gristmill.jobs (
    id               uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id     uuid NOT NULL,
    kind             text NOT NULL CHECK (kind ~ '^[a-z][a-z_]*$'),
    -- 0: a person waits for it; 1: bulk work.
    lane             smallint NOT NULL DEFAULT 1 CHECK (lane IN (0, 1)),
    priority         smallint NOT NULL DEFAULT 0,
    state            gristmill.job_state NOT NULL DEFAULT 'WAITING',
    attempts         smallint NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    max_attempts     smallint NOT NULL DEFAULT 10 CHECK (max_attempts > 0),
    epoch            int NOT NULL DEFAULT 0,
    payload          jsonb NOT NULL,
    unique_key       text,
    run_at           timestamptz NOT NULL DEFAULT now(),
    lease_until      timestamptz,
    worker           text,
    cancel_requested boolean NOT NULL DEFAULT false,
    -- Why it waits, was parked, or died.
    reason           text,
    parent_id        uuid,
    root_id          uuid,
    created_at       timestamptz NOT NULL DEFAULT now(),
    started_at       timestamptz,
    finished_at      timestamptz,
    CONSTRAINT running_is_leased CHECK ((state = 'RUNNING') = (lease_until IS NOT NULL)),
    CONSTRAINT finished_has_its_time CHECK ((state IN ('DONE', 'DEAD', 'CANCELLED')) = (finished_at IS NOT NULL)),
    CONSTRAINT dead_says_why CHECK (state NOT IN ('DEAD', 'PARKED') OR reason IS NOT NULL)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX jobs_waiting ON gristmill.jobs (lane, workspace_id, priority DESC, run_at) WHERE state = 'WAITING';
CREATE INDEX jobs_scheduled ON gristmill.jobs (run_at) WHERE state = 'SCHEDULED';
CREATE INDEX jobs_running ON gristmill.jobs (lease_until) WHERE state = 'RUNNING';
CREATE INDEX jobs_in_flight ON gristmill.jobs (workspace_id) WHERE state = 'RUNNING';
CREATE INDEX jobs_finished ON gristmill.jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_of_a_tree ON gristmill.jobs (root_id) WHERE root_id IS NOT NULL;
-- A key is taken until its job is over.
CREATE UNIQUE INDEX jobs_unique ON gristmill.jobs (workspace_id, kind, unique_key)
    WHERE unique_key IS NOT NULL AND state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED');

-- The wait before attempt n + 1: doubled each time, capped, and spread over its upper half.
CREATE FUNCTION gristmill.backoff(attempts int, base interval, ceiling interval) RETURNS interval
LANGUAGE sql VOLATILE AS $$
    SELECT least(base * power(2, least(greatest(attempts, 1) - 1, 20)), ceiling) * (0.5 + random() / 2)
$$;

-- Queues a job in the caller's transaction. A key that is taken answers with its job
-- (is_new = false) and leaves the transaction usable.
CREATE FUNCTION gristmill.enqueue(
    kind text,
    payload jsonb,
    key text DEFAULT NULL,
    workspace uuid DEFAULT gristmill.current_workspace(),
    priority int DEFAULT 0,
    run_at timestamptz DEFAULT now(),
    -- Ten tries with the default back-off outlast an outage of about a quarter of an hour.
    max_attempts int DEFAULT 10,
    parent uuid DEFAULT NULL,
    OUT job_id uuid,
    OUT is_new boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
#variable_conflict use_column
DECLARE
    lane smallint := CASE WHEN enqueue.kind IN ('tool_call', 'summarise', 'title') THEN 0 ELSE 1 END;
BEGIN
    IF workspace IS NULL THEN
        RAISE EXCEPTION 'a job needs a workspace' USING ERRCODE = 'not_null_violation',
            HINT = 'pass workspace => ..., or set gristmill.workspace for the transaction';
    END IF;
    -- The job that holds the key may end between the two statements: then the key is free again.
    FOR try IN 1..5 LOOP
        INSERT INTO gristmill.jobs AS j
            (workspace_id, kind, lane, priority, state, max_attempts, payload, unique_key, run_at, parent_id, root_id)
        VALUES (
            workspace, enqueue.kind, lane, enqueue.priority,
            CASE WHEN enqueue.run_at <= now() THEN 'WAITING' ELSE 'SCHEDULED' END::gristmill.job_state,
            enqueue.max_attempts, enqueue.payload, enqueue.key, enqueue.run_at, enqueue.parent,
            CASE WHEN enqueue.parent IS NOT NULL
                 THEN (SELECT coalesce(p.root_id, p.id) FROM gristmill.jobs p WHERE p.id = enqueue.parent) END)
        ON CONFLICT (workspace_id, kind, unique_key)
            WHERE unique_key IS NOT NULL AND state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')
            DO NOTHING
        RETURNING j.id INTO job_id;
        IF job_id IS NOT NULL THEN
            is_new := true;
            -- Bulk work is found by polling; a notification costs every commit (queue-wide lock).
            IF lane = 0 AND enqueue.run_at <= now() THEN
                PERFORM pg_notify('gristmill_jobs', enqueue.kind);
            END IF;
            RETURN;
        END IF;
        SELECT j.id INTO job_id FROM gristmill.jobs j
        WHERE j.workspace_id = workspace AND j.kind = enqueue.kind AND j.unique_key = enqueue.key
          AND j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED');
        IF job_id IS NOT NULL THEN
            is_new := false;
            RETURN;
        END IF;
    END LOOP;
    RAISE EXCEPTION 'the key % of % changes hands too fast', enqueue.key, enqueue.kind
        USING ERRCODE = 'serialization_failure', HINT = 'try again';
END
$$;

-- Takes up to `want` due jobs, going round the workspaces from the one after `after`, so a
-- tenant with many jobs takes its turn like one with a few, and the cost does not grow with
-- the backlog. The first round takes a share from each workspace, the second what is left.
CREATE FUNCTION gristmill.claim(
    by_worker text, of_lane int, of_kinds text[], want int, after uuid, lease interval, workspace_cap int
) RETURNS SETOF gristmill.jobs
LANGUAGE plpgsql VOLATILE
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    first_uuid constant uuid := '00000000-0000-0000-0000-000000000000';
    place uuid;
    share int := greatest(1, want / 4);
    taken uuid[] := '{}';
    room int;
BEGIN
    -- What has become due joins those who wait.
    UPDATE gristmill.jobs SET state = 'WAITING'
    WHERE id = ANY (ARRAY(
        SELECT id FROM gristmill.jobs WHERE state = 'SCHEDULED' AND run_at <= now()
        ORDER BY run_at LIMIT 500 FOR UPDATE SKIP LOCKED));

    FOR round IN 1..2 LOOP
        place := after;
        FOR wrapped IN 0..1 LOOP
            LOOP
                EXIT WHEN cardinality(taken) >= want;
                place := (
                    SELECT workspace_id FROM gristmill.jobs
                    WHERE state = 'WAITING' AND lane = of_lane AND workspace_id > place
                    ORDER BY workspace_id LIMIT 1);
                EXIT WHEN place IS NULL OR (wrapped = 1 AND place > after);
                SELECT workspace_cap - count(*) INTO room FROM gristmill.jobs
                WHERE workspace_id = place AND (state = 'RUNNING' OR id = ANY (taken));
                taken := taken || ARRAY(
                    SELECT id FROM gristmill.jobs
                    WHERE state = 'WAITING' AND lane = of_lane AND workspace_id = place
                      AND kind = ANY (of_kinds) AND NOT id = ANY (taken)
                    ORDER BY priority DESC, run_at
                    LIMIT greatest(0, least(share, want - cardinality(taken), room))
                    FOR UPDATE SKIP LOCKED);
            END LOOP;
            place := first_uuid;
        END LOOP;
        EXIT WHEN cardinality(taken) >= want OR cardinality(taken) = 0;
        share := want;
    END LOOP;

    RETURN QUERY
    UPDATE gristmill.jobs SET
        state = 'RUNNING', worker = by_worker, epoch = epoch + 1, attempts = attempts + 1,
        lease_until = clock_timestamp() + lease, started_at = clock_timestamp()
    WHERE id = ANY (taken)
    RETURNING *;
END
$$;

-- The fence, first statement of every effect transaction: takes the job's row for the rest of
-- it and sets the tenant, or fails when the lease epoch has moved on. A worker that freezes
-- inside the transaction would hold the row, and so the job, for ever: when its lease would
-- have lapsed, the database ends its session.
CREATE FUNCTION gristmill.enter(job uuid, at_epoch int, workspace uuid) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    lapses timestamptz;
BEGIN
    SELECT lease_until INTO lapses FROM gristmill.jobs
    WHERE id = job AND epoch = at_epoch AND state = 'RUNNING' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of job % has moved on from epoch %', job, at_epoch
            USING ERRCODE = 'GM001';
    END IF;
    PERFORM set_config('gristmill.workspace', workspace::text, true),
            set_config('idle_in_transaction_session_timeout',
                       greatest(1000, extract(epoch FROM lapses - clock_timestamp()) * 1000)::int::text, true);
END
$$;

-- Ends a job inside its own effect transaction.
CREATE FUNCTION gristmill.complete(job uuid, at_epoch int) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE gristmill.jobs SET state = 'DONE', lease_until = NULL, reason = NULL, finished_at = clock_timestamp()
    WHERE id = job AND epoch = at_epoch AND state = 'RUNNING';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of job % has moved on from epoch %', job, at_epoch
            USING ERRCODE = 'GM001';
    END IF;
END
$$;

-- Acknowledges a batch. `delays` in milliseconds: NULL means the stored back-off. `refunds`
-- give the attempt back (waits, parks and hand-backs cost none). Answers how many were still ours.
CREATE FUNCTION gristmill.acknowledge(
    ids uuid[], epochs int[], states text[], delays bigint[], refunds boolean[], reasons text[],
    base interval, ceiling interval
) RETURNS bigint LANGUAGE sql VOLATILE
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
    WITH held AS (
        UPDATE gristmill.jobs j SET
            state = a.state::gristmill.job_state,
            lease_until = NULL,
            attempts = j.attempts - a.refund::int,
            run_at = CASE WHEN a.state <> 'SCHEDULED' THEN j.run_at
                          ELSE now() + coalesce(a.delay * interval '1 ms', gristmill.backoff(j.attempts, base, ceiling)) END,
            reason = a.reason,
            finished_at = CASE WHEN a.state IN ('DONE', 'DEAD', 'CANCELLED') THEN clock_timestamp() END
        FROM unnest(ids, epochs, states, delays, refunds, reasons) AS a (id, epoch, state, delay, refund, reason)
        WHERE j.id = a.id AND j.epoch = a.epoch AND (j.state = 'RUNNING') IS TRUE
        RETURNING 1)
    SELECT count(*) FROM held
$$;

-- Lengthens the leases that are still ours and names them. A row that its own effect
-- transaction holds right now is skipped: nobody else can take it meanwhile.
CREATE FUNCTION gristmill.renew(ids uuid[], epochs int[], lease interval)
RETURNS TABLE (job_id uuid, cancel boolean) LANGUAGE sql VOLATILE
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
    WITH ours AS (
        SELECT j.id, j.cancel_requested FROM unnest(ids, epochs) AS a (id, epoch)
        JOIN gristmill.jobs j ON j.id = a.id AND j.epoch = a.epoch AND j.state = 'RUNNING'),
    longer AS (
        UPDATE gristmill.jobs SET lease_until = clock_timestamp() + lease
        WHERE id = ANY (ARRAY(SELECT j.id FROM gristmill.jobs j JOIN ours USING (id) WHERE j.state = 'RUNNING'
                              FOR NO KEY UPDATE OF j SKIP LOCKED)))
    SELECT id, cancel_requested FROM ours
$$;

-- Takes back jobs whose lease ran out. One that has used its attempts waits for a worker too,
-- which buries it: writes the reason on its subject and lays it among the dead.
CREATE FUNCTION gristmill.rescue(base interval, ceiling interval) RETURNS bigint
LANGUAGE sql VOLATILE SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
    WITH lapsed AS (
        UPDATE gristmill.jobs SET
            state = 'SCHEDULED', epoch = epoch + 1, lease_until = NULL,
            run_at = now() + CASE WHEN attempts <= 1 OR attempts >= max_attempts THEN interval '0'
                                  ELSE gristmill.backoff(attempts, base, ceiling) END,
            reason = format('worker_crash: the lease of %s lapsed at attempt %s', worker, attempts)
        WHERE id = ANY (ARRAY(
            SELECT id FROM gristmill.jobs WHERE state = 'RUNNING' AND lease_until < clock_timestamp()
            ORDER BY lease_until LIMIT 500 FOR UPDATE SKIP LOCKED))
        RETURNING 1)
    SELECT count(*) FROM lapsed
$$;

-- Lays a job among the dead inside the transaction that tells its subject why.
CREATE FUNCTION gristmill.bury(job uuid, at_epoch int, why text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE gristmill.jobs SET state = 'DEAD', lease_until = NULL, reason = why,
        attempts = least(attempts, max_attempts), finished_at = clock_timestamp()
    WHERE id = job AND epoch = at_epoch AND state = 'RUNNING';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of job % has moved on from epoch %', job, at_epoch
            USING ERRCODE = 'GM001';
    END IF;
END
$$;

GRANT SELECT, INSERT, UPDATE, DELETE ON gristmill.jobs TO gristmill_worker;
REVOKE EXECUTE ON FUNCTION gristmill.enqueue, gristmill.claim, gristmill.enter, gristmill.complete,
    gristmill.acknowledge, gristmill.renew, gristmill.rescue, gristmill.bury FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.enqueue, gristmill.claim, gristmill.enter, gristmill.complete,
    gristmill.acknowledge, gristmill.renew, gristmill.rescue, gristmill.bury TO gristmill_worker;
