-- Shared limits: requests and tokens a minute of one provider key and model, kept for all
-- workers in the database; and jobs that are parked until somebody wakes them.
--
-- A call costs time: the longer of what its request and its tokens take at the limit's rate.
-- Jobs that must wait get a place in a line, which is a moment; the row is SCHEDULED for it, so
-- a waiting job holds no worker and is claimed once more. There is a line for interactive work
-- and one for bulk, and each has a clock of its own:
--   * every interactive start stops the bulk clock for what it cost, so people never wait
--     behind bulk work, and bulk has whatever people leave; while bulk waits, interactive work is
--     spaced at four fifths of the rate, so bulk has a fifth at least;
--   * a pause (Retry-After) stops both clocks, so the lines move on as they stand: in order,
--     spaced, and without a row being touched.
-- A line reaches five seconds ahead, or one job. Who comes later waits in a room before it and is
-- let in by those who go, tenant by tenant: ten thousand jobs of one do not stand before one of
-- another.
--
-- What was started is counted apart (`used_until`), at the moment it started: jobs that come late,
-- all at once, after an outage, are spaced anew. Over every 60 s no more is started than
-- the limit, a sixth of it, and one call.

CREATE TABLE gristmill.limits (
    -- Whose key, never the key: `platform:openai`, `user_key:<id>`.
    key_ref             text NOT NULL,
    model               text NOT NULL,
    -- NULL: no limit is known.
    requests_per_minute int CHECK (requests_per_minute > 0),
    tokens_per_minute   bigint CHECK (tokens_per_minute > 0),
    paused_until        timestamptz,
    paused_why          text,
    -- Seconds since 1970. By lane: [1] interactive, [2] bulk. Until when each line is taken, by
    -- its own clock; how long that clock has stood still; whom the room let in last.
    ends                float8[] NOT NULL DEFAULT '{-Infinity,-Infinity}',
    last_places         float8[] NOT NULL DEFAULT '{-Infinity,-Infinity}',
    stopped             float8[] NOT NULL DEFAULT '{0,0}',
    let_in              uuid[] NOT NULL
        DEFAULT '{00000000-0000-0000-0000-000000000000,00000000-0000-0000-0000-000000000000}',
    -- Until when what was started has used the rate.
    used_until          float8 NOT NULL DEFAULT '-Infinity',
    PRIMARY KEY (key_ref, model)
) WITH (fillfactor = 20, autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_threshold = 1000);

-- A job's turn at a limit: in the room (at IS NULL), in the line, or taken.
CREATE TABLE gristmill.limit_turns (
    job_id        uuid NOT NULL,
    key_ref       text NOT NULL,
    model         text NOT NULL,
    lane          smallint NOT NULL CHECK (lane IN (0, 1)),
    -- The job's workspace; like the queue's own table, this one is no tenant's data.
    tenant        uuid NOT NULL,
    -- Of the rate: what it was charged.
    seconds       float8 NOT NULL CHECK (seconds >= 0),
    waiting_since timestamptz NOT NULL,
    -- By the clock of its line.
    at            float8,
    taken_at      timestamptz,
    PRIMARY KEY (job_id, key_ref, model),
    FOREIGN KEY (key_ref, model) REFERENCES gristmill.limits ON DELETE CASCADE,
    CONSTRAINT only_a_place_is_taken CHECK (taken_at IS NULL OR at IS NOT NULL)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX limit_turns_in_the_room ON gristmill.limit_turns (key_ref, model, lane, tenant, waiting_since)
    WHERE at IS NULL;
CREATE INDEX limit_turns_by_limit ON gristmill.limit_turns (key_ref, model);

-- Seconds of the rate that a call takes. Where only a pause is known, those who waited for its
-- end go ten a second, not all at once.
CREATE FUNCTION gristmill.turn_cost(l gristmill.limits, tokens bigint, moment float8) RETURNS float8
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(greatest(60.0::float8 / l.requests_per_minute, 60.0::float8 * tokens / l.tokens_per_minute),
                    CASE WHEN moment < extract(epoch FROM l.paused_until) + 60 THEN 0.1 ELSE 0 END)
$$;

-- The next place of a line. `gap`: how long what was started already forbids another start.
CREATE FUNCTION gristmill.next_place(
    l gristmill.limits, lane int, cost float8, moment float8,
    OUT clock float8, OUT open boolean, OUT gap float8, OUT at float8, OUT line_end float8
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    -- Seconds of the rate that may start at once: in all, and of one line's new arrivals.
    burst constant float8 := 10;
    line_burst constant float8 := 5;
    -- Of the burst, what bulk work leaves to people.
    spare constant float8 := CASE lane WHEN 0 THEN 0 ELSE 2.5 END;
    reach constant float8 := 5;
    opens constant float8 := greatest(moment, extract(epoch FROM l.paused_until));
    -- While bulk work waits, people leave it a fifth.
    spaced constant float8 :=
        CASE WHEN lane = 0 AND l.last_places[2] > opens - l.stopped[2] THEN cost / 0.8 ELSE cost END;
BEGIN
    clock := opens - l.stopped[lane + 1];
    open := l.last_places[lane + 1] <= clock + reach;
    gap := greatest(0, greatest(l.used_until, opens - burst) + least(cost + spare, burst) - opens);
    -- A call larger than the burst starts when nothing is owed, and leaves a debt.
    at := greatest(l.ends[lane + 1], clock - line_burst) + least(spaced, line_burst);
    IF gap > 0 THEN
        at := greatest(at, clock + gap);
    END IF;
    line_end := at + spaced - least(spaced, line_burst);
END
$$;

-- Is this turn a dead reservation? A caller that is no job has ten minutes.
CREATE FUNCTION gristmill.nobody_waits(t gristmill.limit_turns, moment float8) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT j.state NOT IN ('SCHEDULED', 'WAITING', 'RUNNING')
                     FROM gristmill.jobs j WHERE j.id = t.job_id),
                    extract(epoch FROM t.waiting_since) < moment - 600)
$$;

-- Lets those who wait longest into the line, a tenant after the other, a few at a time: every
-- call lets in more than it takes, so the cost of each stays the same.
CREATE FUNCTION gristmill.let_in(l gristmill.limits, of_lane int, moment float8) RETURNS gristmill.limits
LANGUAGE plpgsql AS $$
DECLARE
    first_uuid constant uuid := '00000000-0000-0000-0000-000000000000';
    next_tenant uuid;
    w gristmill.limit_turns;
    p record;
BEGIN
    FOR n IN 1..4 LOOP
        SELECT * INTO p FROM gristmill.next_place(l, of_lane, 0, moment);
        EXIT WHEN NOT p.open;
        next_tenant := NULL;
        FOR wrapped IN 0..1 LOOP
            SELECT t.tenant INTO next_tenant FROM gristmill.limit_turns t
            WHERE t.key_ref = l.key_ref AND t.model = l.model AND t.lane = of_lane AND t.at IS NULL
              AND t.tenant > CASE wrapped WHEN 0 THEN l.let_in[of_lane + 1] ELSE first_uuid END
            ORDER BY t.tenant LIMIT 1;
            EXIT WHEN FOUND;
        END LOOP;
        EXIT WHEN next_tenant IS NULL;
        l.let_in[of_lane + 1] := next_tenant;
        SELECT t.* INTO w FROM gristmill.limit_turns t
        WHERE t.key_ref = l.key_ref AND t.model = l.model AND t.lane = of_lane AND t.at IS NULL
          AND t.tenant = next_tenant
        ORDER BY t.waiting_since LIMIT 1;
        -- Its worker may not have written yet that it waits.
        CONTINUE WHEN extract(epoch FROM w.waiting_since) > moment - 1;
        IF gristmill.nobody_waits(w, moment) THEN
            DELETE FROM gristmill.limit_turns t
            WHERE t.job_id = w.job_id AND t.key_ref = w.key_ref AND t.model = w.model;
            CONTINUE;
        END IF;
        SELECT * INTO p FROM gristmill.next_place(l, of_lane, w.seconds, moment);
        l.ends[of_lane + 1] := p.line_end;
        l.last_places[of_lane + 1] := p.at;
        UPDATE gristmill.limit_turns t SET at = p.at, waiting_since = to_timestamp(moment)
        WHERE t.job_id = w.job_id AND t.key_ref = w.key_ref AND t.model = w.model;
        -- A row that somebody holds is not waited for: it looks again by itself.
        UPDATE gristmill.jobs SET run_at = to_timestamp(p.at + l.stopped[of_lane + 1])
        WHERE id = ANY (ARRAY(SELECT j.id FROM gristmill.jobs j WHERE j.id = w.job_id AND j.state = 'SCHEDULED'
                              FOR UPDATE SKIP LOCKED));
    END LOOP;
    RETURN l;
END
$$;

-- Asks for a turn: `wait` is 0 when the call may start now, else how long to stay away; then
-- `reason` says why. A job keeps its place between two calls; each turn is for one call to the
-- provider. To be called outside any other transaction: the limit's row is locked until commit.
-- Of `tokens` the caller gives its best estimate; settle_turn corrects it. `job` may be any id of
-- a caller that is no job. `as_of` is for tests.
CREATE FUNCTION gristmill.take_turn(
    job uuid, key_ref text, model text, tokens bigint DEFAULT 0, lane int DEFAULT NULL,
    as_of timestamptz DEFAULT NULL, OUT wait interval, OUT reason text
) LANGUAGE plpgsql AS $$
DECLARE
    slack constant float8 := 0.0005;
    l gristmill.limits;
    t gristmill.limit_turns;
    p record;
    moment float8;
    cost float8;
    seconds float8;
    fresh boolean;
    goes boolean;
BEGIN
    wait := interval '0';
    SELECT x.* INTO l FROM gristmill.limits x
    WHERE x.key_ref = take_turn.key_ref AND x.model = take_turn.model FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    as_of := coalesce(as_of, clock_timestamp());
    moment := extract(epoch FROM as_of);
    cost := gristmill.turn_cost(l, tokens, moment);
    SELECT x.* INTO t FROM gristmill.limit_turns x
    WHERE x.job_id = job AND x.key_ref = l.key_ref AND x.model = l.model;
    fresh := t.job_id IS NULL OR t.taken_at IS NOT NULL;
    IF fresh THEN
        SELECT job, l.key_ref, l.model, coalesce(take_turn.lane, j.lane, 1), coalesce(j.workspace_id, job),
               cost, as_of, NULL, NULL INTO t
        FROM (SELECT) nothing LEFT JOIN gristmill.jobs j ON j.id = job;
    END IF;
    lane := t.lane;
    t.seconds := cost;
    l := gristmill.let_in(l, lane, moment);
    SELECT * INTO p FROM gristmill.next_place(l, lane, cost, moment);
    IF NOT fresh AND t.at IS NULL THEN
        SELECT x.at, x.waiting_since INTO t.at, t.waiting_since FROM gristmill.limit_turns x
        WHERE x.job_id = job AND x.key_ref = l.key_ref AND x.model = l.model;
    ELSIF (fresh AND p.open AND NOT EXISTS (
                SELECT FROM gristmill.limit_turns x
                WHERE x.key_ref = l.key_ref AND x.model = l.model AND x.lane = t.lane AND x.at IS NULL))
          -- It comes late, and so do others.
          OR (NOT fresh AND t.at <= p.clock + slack AND p.gap > slack) THEN
        t.at := p.at;
        l.ends[lane + 1] := p.line_end;
        l.last_places[lane + 1] := p.at;
    END IF;

    goes := coalesce(t.at <= p.clock + slack AND p.gap <= slack AND (l.paused_until > as_of) IS NOT TRUE, false);
    IF goes THEN
        l.used_until := greatest(l.used_until, moment - 10) + cost;
        IF lane = 0 THEN
            l.ends[2] := greatest(l.ends[2], moment - l.stopped[2] - 5);
            l.stopped[2] := l.stopped[2] + cost;
        END IF;
        t.taken_at := as_of;
    ELSIF t.at IS NULL THEN
        -- Those who go let it in; should none come, it looks again by itself.
        seconds := greatest(60, moment - extract(epoch FROM t.waiting_since));
        reason := format('rate limit of %s %s: waits for a place in the line', l.key_ref, l.model);
    ELSE
        seconds := greatest(t.at + l.stopped[lane + 1], extract(epoch FROM l.paused_until)) - moment;
        IF lane = 1 AND NOT fresh AND seconds > 0.2 AND (l.paused_until > as_of) IS NOT TRUE THEN
            -- People keep pushing it back: it looks less and less often.
            seconds := greatest(seconds, (moment - extract(epoch FROM t.waiting_since)) / 4);
        END IF;
        reason := format('rate limit of %s %s: turn in %s s%s', l.key_ref, l.model, round(seconds::numeric, 1),
                         CASE WHEN l.paused_until > as_of THEN ' (' || l.paused_why || ')' END);
    END IF;
    wait := coalesce(seconds, 0) * interval '1 s';
    UPDATE gristmill.limits x SET
        ends = l.ends, last_places = l.last_places, stopped = l.stopped, let_in = l.let_in, used_until = l.used_until
    WHERE x.key_ref = l.key_ref AND x.model = l.model;
    INSERT INTO gristmill.limit_turns AS x VALUES (t.*)
    ON CONFLICT ON CONSTRAINT limit_turns_pkey DO UPDATE SET
        lane = t.lane, seconds = t.seconds, waiting_since = t.waiting_since, at = t.at, taken_at = t.taken_at;
END
$$;

-- Corrects the estimate of a turn that was taken: what was too much is given back, what was too
-- little is charged to those who come after. Answers whether there was such a turn.
CREATE FUNCTION gristmill.settle_turn(
    job uuid, key_ref text, model text, tokens bigint, as_of timestamptz DEFAULT NULL
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    l gristmill.limits;
    moment float8;
    of_lane int;
    difference float8;
BEGIN
    SELECT x.* INTO l FROM gristmill.limits x
    WHERE x.key_ref = settle_turn.key_ref AND x.model = settle_turn.model FOR NO KEY UPDATE;
    moment := extract(epoch FROM coalesce(as_of, clock_timestamp()));
    DELETE FROM gristmill.limit_turns x
    WHERE x.job_id = job AND x.key_ref = l.key_ref AND x.model = l.model AND x.taken_at IS NOT NULL
    RETURNING x.lane, gristmill.turn_cost(l, tokens, moment) - x.seconds INTO of_lane, difference;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF difference <> 0 THEN
        l.used_until := greatest(l.used_until, moment - 10) + difference;
        l.stopped[2] := l.stopped[2] + difference;
        IF of_lane = 0 THEN
            l.ends[1] := l.ends[1] + difference;
        END IF;
        UPDATE gristmill.limits x SET ends = l.ends, stopped = l.stopped, used_until = l.used_until
        WHERE x.key_ref = l.key_ref AND x.model = l.model;
    END IF;
    RETURN true;
END
$$;

-- Nobody starts at this limit before `wait` is over (at least a second, at most an hour). The
-- longest of several wins. Both lines keep their order and begin anew without a burst.
CREATE FUNCTION gristmill.pause_limit(
    key_ref text, model text, wait interval, why text, as_of timestamptz DEFAULT NULL
) RETURNS timestamptz LANGUAGE plpgsql AS $$
DECLARE
    l gristmill.limits;
    opens float8;
    until float8;
BEGIN
    INSERT INTO gristmill.limits AS x (key_ref, model) VALUES (pause_limit.key_ref, pause_limit.model)
    ON CONFLICT ON CONSTRAINT limits_pkey DO NOTHING;
    SELECT x.* INTO l FROM gristmill.limits x
    WHERE x.key_ref = pause_limit.key_ref AND x.model = pause_limit.model FOR NO KEY UPDATE;
    as_of := coalesce(as_of, clock_timestamp());
    until := extract(epoch FROM as_of) + least(greatest(extract(epoch FROM wait), 1), 3600);
    opens := greatest(extract(epoch FROM as_of), extract(epoch FROM l.paused_until));
    IF until <= opens THEN
        RETURN l.paused_until;
    END IF;
    UPDATE gristmill.limits x SET
        ends = ARRAY[greatest(l.ends[1], opens - l.stopped[1]), greatest(l.ends[2], opens - l.stopped[2])],
        stopped = ARRAY[l.stopped[1] + until - opens, l.stopped[2] + until - opens],
        paused_until = to_timestamp(until),
        paused_why = left(why, 500)
    WHERE x.key_ref = l.key_ref AND x.model = l.model;
    RETURN to_timestamp(until);
END
$$;

-- Makes or changes a limit; NULL lifts that side of it. A pause goes on.
CREATE FUNCTION gristmill.set_limit(key_ref text, model text, requests_per_minute int, tokens_per_minute bigint)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO gristmill.limits (key_ref, model, requests_per_minute, tokens_per_minute)
    VALUES (key_ref, model, requests_per_minute, tokens_per_minute)
    ON CONFLICT ON CONSTRAINT limits_pkey DO UPDATE SET
        requests_per_minute = excluded.requests_per_minute, tokens_per_minute = excluded.tokens_per_minute
$$;

-- Forgets a limit and its pause; who waits for it comes at once. Answers whether there was one.
CREATE FUNCTION gristmill.clear_limit(key_ref text, model text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM gristmill.limits x
    WHERE x.key_ref = clear_limit.key_ref AND x.model = clear_limit.model FOR UPDATE;
    UPDATE gristmill.jobs SET run_at = clock_timestamp()
    WHERE id = ANY (ARRAY(
        SELECT j.id FROM gristmill.limit_turns t JOIN gristmill.jobs j ON j.id = t.job_id
        WHERE t.key_ref = clear_limit.key_ref AND t.model = clear_limit.model AND t.taken_at IS NULL
          AND j.state = 'SCHEDULED' FOR UPDATE OF j SKIP LOCKED));
    DELETE FROM gristmill.limits x WHERE x.key_ref = clear_limit.key_ref AND x.model = clear_limit.model;
    RETURN FOUND;
END
$$;

-- Removes reservations of jobs that are over, and limits that were only pauses and are over;
-- lets waiting jobs in where nobody came to do it. Answers how many reservations went.
CREATE FUNCTION gristmill.sweep_turns() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    l gristmill.limits;
    of_lane int;
    swept bigint;
    moment constant float8 := extract(epoch FROM clock_timestamp());
BEGIN
    DELETE FROM gristmill.limit_turns d WHERE d.ctid = ANY (ARRAY(
        SELECT t.ctid FROM gristmill.limit_turns t WHERE gristmill.nobody_waits(t, moment)
        LIMIT 10000 FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS swept = ROW_COUNT;
    DELETE FROM gristmill.limits x
    WHERE x.requests_per_minute IS NULL AND x.tokens_per_minute IS NULL
      AND x.paused_until < clock_timestamp() - interval '1 h'
      AND NOT EXISTS (SELECT FROM gristmill.limit_turns t WHERE t.key_ref = x.key_ref AND t.model = x.model);
    FOR l IN SELECT x.* FROM gristmill.limits x
             WHERE EXISTS (SELECT FROM gristmill.limit_turns t
                           WHERE t.key_ref = x.key_ref AND t.model = x.model AND t.at IS NULL)
             FOR NO KEY UPDATE SKIP LOCKED
    LOOP
        FOREACH of_lane IN ARRAY ARRAY[0, 1] LOOP
            l := gristmill.let_in(l, of_lane, moment);
        END LOOP;
        UPDATE gristmill.limits x SET ends = l.ends, last_places = l.last_places, let_in = l.let_in
        WHERE x.key_ref = l.key_ref AND x.model = l.model;
    END LOOP;
    RETURN swept;
END
$$;

-- Set by unpark on a job at work, which may be about to be parked: then it is not.
ALTER TABLE gristmill.jobs ADD COLUMN woken_epoch int;

-- Parks a job in the transaction that tells its subject what it waits for: an approval, a
-- credential, a budget. Costs no attempt; the job keeps its unique key. Who gives the approval
-- calls unpark in the transaction that stores it, and neither can miss the other. Answers the
-- state the job has now: WAITING, if it was woken or cancelled since it was claimed.
CREATE FUNCTION gristmill.park(job uuid, at_epoch int, why text) RETURNS gristmill.job_state
LANGUAGE plpgsql AS $$
DECLARE
    now_is gristmill.job_state;
BEGIN
    UPDATE gristmill.jobs SET
        state = CASE WHEN woken_epoch = epoch OR cancel_requested THEN 'WAITING' ELSE 'PARKED' END::gristmill.job_state,
        lease_until = NULL, attempts = greatest(attempts - 1, 0), run_at = clock_timestamp(),
        reason = CASE WHEN woken_epoch IS DISTINCT FROM epoch THEN why END
    WHERE id = job AND epoch = at_epoch AND state = 'RUNNING'
    RETURNING state INTO now_is;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of job % has moved on from epoch %', job, at_epoch
            USING ERRCODE = 'GM001';
    END IF;
    RETURN now_is;
END
$$;

-- Wakes a parked job, at once. Answers whether it was parked, or is at work and will not be parked
-- by this attempt.
CREATE FUNCTION gristmill.unpark(job uuid) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    woken record;
BEGIN
    UPDATE gristmill.jobs j SET
        state = CASE j.state WHEN 'PARKED' THEN 'WAITING' ELSE j.state END,
        run_at = CASE j.state WHEN 'PARKED' THEN clock_timestamp() ELSE j.run_at END,
        reason = CASE j.state WHEN 'PARKED' THEN NULL ELSE j.reason END,
        woken_epoch = j.epoch
    WHERE j.id = job AND j.state IN ('PARKED', 'RUNNING')
      AND j.workspace_id = coalesce(gristmill.current_workspace(), j.workspace_id)
    RETURNING j.lane, j.kind, j.state INTO woken;
    IF woken.lane = 0 AND woken.state = 'WAITING' THEN
        PERFORM pg_notify('gristmill_jobs', woken.kind);
    END IF;
    RETURN woken.state IS NOT NULL;
END
$$;

GRANT SELECT, INSERT, UPDATE, DELETE ON gristmill.limits, gristmill.limit_turns TO gristmill_worker;
REVOKE EXECUTE ON FUNCTION gristmill.turn_cost, gristmill.next_place, gristmill.nobody_waits, gristmill.let_in,
    gristmill.take_turn, gristmill.settle_turn, gristmill.pause_limit, gristmill.set_limit, gristmill.clear_limit,
    gristmill.sweep_turns, gristmill.park, gristmill.unpark FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.turn_cost, gristmill.next_place, gristmill.nobody_waits, gristmill.let_in,
    gristmill.take_turn, gristmill.settle_turn, gristmill.pause_limit, gristmill.set_limit, gristmill.clear_limit,
    gristmill.sweep_turns, gristmill.park, gristmill.unpark TO gristmill_worker;
