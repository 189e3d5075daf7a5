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
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp
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
                    SELECT j.ctid AS at, j.kind, gristmill.turn(j.run_at, j.priority) AS turn FROM gristmill.jobs j
                    WHERE j.state = 'WAITING' AND j.lane = of_lane AND j.workspace_id = place AND j.kind = open.kind
                      AND NOT j.ctid = ANY (taken)
                    ORDER BY gristmill.turn(j.run_at, j.priority)
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

-- Who is before a waiting job, by the same words as the claim.
DO $$
DECLARE
    body text := pg_get_functiondef('gristmill.explain_waiting'::regproc);
BEGIN
    ASSERT body LIKE '%x.turn < j.turn%';
    EXECUTE replace(body, 'x.turn < j.turn', 'gristmill.turn(x.run_at, x.priority) < gristmill.turn(j.run_at, j.priority)');
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
