-- The queue's speed again: a claim goes over the index once, not once for every question, and finds
-- the rows it has locked where they stand.

-- Takes up to `want` due jobs of one lane. It goes round the workspaces from where the caller
-- left off (`after`, with `credit` turns left there); each gets weight x quantum turns a round,
-- more from round to round, so that places left over go to whoever has work. The cost does not grow with
-- the backlog: each step is a probe into an index, and at most 200 workspaces are visited. A
-- workspace that is alone with work has all the places at once.
-- Claims of one lane go one after the other, which is what makes the caps exact; the lock is
-- held for this statement, never for a worker's pleasure. Every row carries where the round
-- stopped; the one without an id says that nothing was taken.
CREATE OR REPLACE FUNCTION gristmill.claim(
    by_worker text, of_lane int, of_kinds text[], want int, lease interval, workspace_cap int, after uuid, credit int
) RETURNS TABLE (
    id uuid, workspace_id uuid, kind text, payload jsonb, attempts int, max_attempts int, epoch int,
    reason text, cancel boolean, place uuid, turns_left int
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, gristmill
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off SET enable_seqscan = off SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    quantum int := greatest(1, want / 8);
    -- For each kind asked for: how many more may be at work.
    rooms bigint[];
    room bigint;
    weight int;
    picked record;
    -- Where the rows stand that this claim has locked: until it ends, nobody moves them.
    taken tid[] := '{}';
    taken_kinds text[] := '{}';
    taken_places uuid[] := '{}';
    -- Where this claim began its first round.
    first uuid;
    -- Where a round without any yield began: back there, everybody was asked.
    barren uuid;
    visits int := 0;
    last_place uuid;
    alone boolean;
BEGIN
    -- Whoever claims by hand and leaves the transaction open does not hold the others up for long.
    PERFORM set_config('idle_in_transaction_session_timeout', '2000', true);
    PERFORM pg_advisory_xact_lock(hashtextextended('gristmill.claim', of_lane));
    -- What has become due joins those who wait.
    UPDATE gristmill.jobs j SET state = 'WAITING'
    WHERE j.id = ANY (ARRAY(
        SELECT s.id FROM gristmill.jobs s WHERE s.state = 'SCHEDULED' AND s.run_at <= now()
        ORDER BY s.run_at LIMIT 500 FOR UPDATE SKIP LOCKED));
    -- Looked for from its end: at its beginning the index is full of entries of jobs that were
    -- claimed before and not yet cleaned away, and each look would go over them.
    last_place := (SELECT j.workspace_id FROM gristmill.jobs j
                   WHERE j.state = 'WAITING' AND j.lane = of_lane ORDER BY j.workspace_id DESC LIMIT 1);
    IF last_place IS NULL THEN
        place := after;
        turns_left := credit;
        RETURN NEXT;
        RETURN;
    END IF;
    alone := NOT EXISTS (SELECT FROM gristmill.jobs j
                         WHERE j.state = 'WAITING' AND j.lane = of_lane AND j.workspace_id < last_place);
    -- What was called off passes every cap: it is only to be told so.
    SELECT coalesce(array_agg(c.at), '{}') INTO taken FROM (
        SELECT j.ctid AS at FROM gristmill.jobs j
        WHERE j.state = 'WAITING' AND j.cancel_requested AND j.lane = of_lane AND j.kind = ANY (of_kinds)
        LIMIT want FOR UPDATE SKIP LOCKED) c;
    rooms := ARRAY(
        SELECT CASE WHEN k.in_flight_cap IS NULL THEN want ELSE k.in_flight_cap - (
                   SELECT count(*) FROM gristmill.jobs r WHERE r.state = 'RUNNING' AND r.kind = k.kind) END
        FROM unnest(of_kinds) WITH ORDINALITY AS asked (kind, n)
        LEFT JOIN gristmill.kinds k ON k.kind = asked.kind ORDER BY asked.n);

    place := CASE WHEN alone THEN last_place ELSE after END;
    turns_left := CASE WHEN alone THEN want ELSE credit END;
    WHILE cardinality(taken) < want AND visits < 200 LOOP
        visits := visits + 1;
        EXIT WHEN alone AND visits > 1;
        IF turns_left <= 0 THEN
            place := coalesce(
                (SELECT j.workspace_id FROM gristmill.jobs j
                 WHERE j.state = 'WAITING' AND j.lane = of_lane AND j.workspace_id > place
                 ORDER BY j.workspace_id LIMIT 1),
                (SELECT j.workspace_id FROM gristmill.jobs j
                 WHERE j.state = 'WAITING' AND j.lane = of_lane ORDER BY j.workspace_id LIMIT 1));
            IF place IS NULL OR place = barren THEN
                -- Who was asked in vain has not had a turn: the next claim begins behind the last that had.
                place := coalesce(taken_places[cardinality(taken_places)], after);
                EXIT;
            END IF;
            IF place = first THEN
                quantum := least(2 * quantum, want);
            END IF;
            first := coalesce(first, place);
        END IF;
        SELECT coalesce(s.weight, 1),
               coalesce(s.in_flight_cap, workspace_cap) - cardinality(array_positions(taken_places, place)) - (
                   SELECT count(*) FROM gristmill.jobs r
                   WHERE r.state = 'RUNNING' AND r.lane = of_lane AND r.workspace_id = place)
        INTO weight, room
        FROM (SELECT) AS one LEFT JOIN gristmill.shares s ON s.workspace_id = place;
        IF turns_left <= 0 THEN
            turns_left := weight * quantum;
        END IF;
        room := greatest(0, least(room, turns_left, want - cardinality(taken)));
        SELECT coalesce(array_agg(t.at), '{}') AS rows, coalesce(array_agg(t.kind), '{}') AS kinds INTO picked
        FROM (
            SELECT next.at, next.kind
            FROM unnest(of_kinds, rooms) AS open (kind, kind_room),
                 LATERAL (
                    SELECT j.ctid AS at, j.kind, j.turn FROM gristmill.jobs j
                    WHERE j.state = 'WAITING' AND j.lane = of_lane AND j.workspace_id = place AND j.kind = open.kind
                      AND NOT j.ctid = ANY (taken)
                    ORDER BY j.turn
                    LIMIT greatest(0, least(room, open.kind_room - cardinality(array_positions(taken_kinds, open.kind))))
                    FOR UPDATE SKIP LOCKED) AS next
            ORDER BY next.turn LIMIT room) AS t;
        IF cardinality(picked.rows) = 0 THEN
            turns_left := 0;
            -- Only a place that the round found: the one it began at may have nobody waiting.
            barren := coalesce(barren, CASE WHEN first IS NOT NULL THEN place END);
            CONTINUE;
        END IF;
        taken := taken || picked.rows;
        taken_kinds := taken_kinds || picked.kinds;
        taken_places := taken_places || array_fill(place, ARRAY[cardinality(picked.rows)]);
        -- One that had fewer than its turns has nothing left for now.
        turns_left := CASE WHEN cardinality(picked.rows) < room THEN 0 ELSE turns_left - cardinality(picked.rows) END;
        barren := NULL;
    END LOOP;

    place := coalesce(place, after);
    -- What is carried over is what is left of a common round.
    turns_left := greatest(0, least(turns_left, coalesce(weight, 1) * greatest(1, want / 8)));
    IF cardinality(taken) = 0 THEN
        RETURN NEXT;
        RETURN;
    END IF;
    RETURN QUERY
    UPDATE gristmill.jobs j SET
        state = 'RUNNING', worker = by_worker, epoch = j.epoch + 1, attempts = least(j.attempts + 1, 32767),
        lease_until = clock_timestamp() + lease, started_at = clock_timestamp()
    WHERE j.ctid = ANY (taken) AND j.state = 'WAITING'
    RETURNING j.id, j.workspace_id, j.kind, j.payload, j.attempts::int, j.max_attempts::int, j.epoch, j.reason,
              j.cancel_requested, claim.place, claim.turns_left;
END
$$;

-- What is at work is so little that looking through all of it costs a rescue less than this index
-- cost every claim and every renewal.
DROP INDEX gristmill.jobs_running;
-- Takes back jobs whose lease ran out. One that has used its attempts waits for a worker too,
-- which buries it: writes the reason on its subject and lays it among the dead. One that was
-- called off does not wait.
CREATE OR REPLACE FUNCTION gristmill.rescue(base interval, ceiling interval) RETURNS bigint
LANGUAGE sql VOLATILE
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET jit = off AS $$
    WITH lapsed AS (
        UPDATE gristmill.jobs SET
            state = 'SCHEDULED', epoch = epoch + 1, lease_until = NULL,
            run_at = now() + CASE WHEN cancel_requested OR attempts <= 1 OR attempts >= max_attempts THEN interval '0'
                                  ELSE gristmill.backoff(attempts, base, ceiling) END,
            reason = format('worker_crash: the lease of %s lapsed at attempt %s', worker, attempts)
        WHERE id = ANY (ARRAY(
            SELECT id FROM gristmill.jobs WHERE state = 'RUNNING' AND lease_until < clock_timestamp()
            ORDER BY lease_until LIMIT 500 FOR UPDATE SKIP LOCKED))
        RETURNING 1)
    SELECT count(*) FROM lapsed
$$;

-- What was called off and waits to be told, or to be claimed for it.
CREATE INDEX jobs_called_off ON gristmill.jobs (lane) WHERE state = 'WAITING' AND cancel_requested;

-- Temporary tables are looked through last: else whoever may make one could put it before a
-- table of ours, under a function that runs with its owner's rights.
DO $$
DECLARE
    definer record;
BEGIN
    FOR definer IN
        SELECT p.oid::regprocedure AS name, substr(c.setting, length('search_path=') + 1) AS path
        FROM pg_proc p, unnest(p.proconfig) AS c (setting)
        WHERE p.pronamespace = 'gristmill'::regnamespace AND p.prosecdef
          AND c.setting LIKE 'search_path=%' AND c.setting NOT LIKE '%pg_temp'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %s, pg_temp', definer.name, definer.path);
    END LOOP;
END
$$;
