-- Work by the clock, and what keeps the house clean: schedules, the sweeps that the job `tidy`
-- makes, and the pruning of finished jobs.
--
-- The functions below look across tenants, which the worker's role cannot: they run with the
-- owner's rights, answer with ids or counts, and take at most as many rows as they are told, so
-- that each call is a short transaction of its own. All of them may run twice, or side by side.

-- What is enqueued when. Rows belong to the operator: a worker adds its own at start, and brings
-- those that nobody changed up to date (`origin`). Jobs run in the house's own workspace.
CREATE TABLE gristmill.schedules (
    name      text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_-]*$'),
    kind      text NOT NULL CHECK (kind ~ '^[a-z][a-z_]*$'),
    payload   jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(payload) = 'object'),
    -- Five fields, or six with seconds first.
    cron      text NOT NULL CHECK (cron <> ''),
    -- An IANA name. An unknown one is refused by the conversion itself.
    time_zone text NOT NULL DEFAULT 'UTC' CHECK (timestamptz 'epoch' AT TIME ZONE time_zone IS NOT NULL),
    enabled   boolean NOT NULL DEFAULT true,
    -- After an outage the latest missed tick is made up for, never the ones before it. false: not
    -- even that, when it is more than a minute old.
    catch_up  boolean NOT NULL DEFAULT true,
    origin    text NOT NULL DEFAULT 'operator' CHECK (origin IN ('worker', 'operator')),
    -- For people: why it is off, what it is for.
    note      text,
    -- Ticks up to here are dealt with.
    last_tick timestamptz NOT NULL DEFAULT now(),
    -- What the leader could not do with it; NULL when all is well.
    problem   text
);

-- Whoever changes a schedule owns it from then on; a time when it was off is not made up for.
CREATE FUNCTION gristmill.guard_schedule() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.kind, NEW.payload, NEW.cron, NEW.time_zone, NEW.enabled, NEW.catch_up)
       IS DISTINCT FROM (OLD.kind, OLD.payload, OLD.cron, OLD.time_zone, OLD.enabled, OLD.catch_up) THEN
        IF current_setting('gristmill.publishing', true) IS DISTINCT FROM 'on' THEN
            NEW.origin := 'operator';
        END IF;
        IF NEW.last_tick = OLD.last_tick THEN
            NEW.last_tick := greatest(OLD.last_tick, now());
        END IF;
        NEW.problem := NULL;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER schedules_guard BEFORE UPDATE ON gristmill.schedules
    FOR EACH ROW EXECUTE FUNCTION gristmill.guard_schedule();

-- A worker's default: added when it is new, renewed while nobody has changed it.
CREATE FUNCTION gristmill.publish_schedule(
    name text, kind text, payload jsonb, cron text, enabled boolean, note text
) RETURNS void LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, gristmill SET gristmill.publishing = 'on' AS $$
    INSERT INTO schedules AS s (name, kind, payload, cron, enabled, note, origin)
    VALUES (publish_schedule.name, publish_schedule.kind, publish_schedule.payload, publish_schedule.cron,
            publish_schedule.enabled, publish_schedule.note, 'worker')
    ON CONFLICT ON CONSTRAINT schedules_pkey DO UPDATE
    SET kind = excluded.kind, payload = excluded.payload, cron = excluded.cron, enabled = excluded.enabled,
        note = excluded.note
    WHERE s.origin = 'worker'
      AND (s.kind, s.payload, s.cron, s.enabled, s.note)
          IS DISTINCT FROM (excluded.kind, excluded.payload, excluded.cron, excluded.enabled, excluded.note)
$$;

-- Enqueues one tick of a schedule, and says which job it is; nothing when the tick is dealt with.
--
-- Two leaders that both believe to be the one are harmless twice over: the row moves on only once
-- for a tick, and the job's key names schedule and tick. A tick whose predecessor is not over is
-- passed by, so an outage of the workers does not pile up a day of the same job.
CREATE FUNCTION gristmill.tick(schedule text, at timestamptz, OUT job_id uuid, OUT is_new boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
#variable_conflict use_column
DECLARE
    house constant uuid := '00000000-0000-0000-0000-000000000001';
    due record;
BEGIN
    UPDATE schedules SET last_tick = tick.at, problem = NULL
    WHERE name = schedule AND enabled AND last_tick < tick.at AND tick.at <= clock_timestamp()
    RETURNING kind, payload INTO due;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT j.id, false INTO job_id, is_new FROM jobs j
    WHERE j.workspace_id = house AND j.kind = due.kind AND starts_with(j.unique_key, format('cron:%s:', schedule))
      AND j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED') LIMIT 1;
    IF NOT FOUND THEN
        SELECT e.job_id, e.is_new INTO job_id, is_new FROM enqueue(
            due.kind, due.payload, workspace => house, max_attempts => 5, unique_for => interval '7 days',
            key => format('cron:%s:%s', schedule, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))) e;
    END IF;
END
$$;

-- Enqueues a schedule's job now, whatever the clock says and whether it is enabled or not.
CREATE FUNCTION gristmill.run_schedule(schedule text, OUT job_id uuid, OUT is_new boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
#variable_conflict use_column
DECLARE
    wanted record;
BEGIN
    SELECT kind, payload INTO wanted FROM schedules WHERE name = schedule;
    IF FOUND THEN
        SELECT e.job_id, e.is_new INTO job_id, is_new FROM enqueue(
            wanted.kind, wanted.payload, workspace => '00000000-0000-0000-0000-000000000001', max_attempts => 5,
            key => format('manual:%s', schedule)) e;
    END IF;
END
$$;

-- How far a walk over a table came: the next one goes on from there.
CREATE TABLE gristmill.bookmarks (
    name text PRIMARY KEY,
    at   timestamptz NOT NULL DEFAULT '-infinity',
    id   uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);

-- Pruning walks each of these from the oldest end; they stand in for the one index over both.
CREATE INDEX jobs_done ON gristmill.jobs (finished_at, id) WHERE state = 'DONE';
CREATE INDEX jobs_failed ON gristmill.jobs (finished_at, id) WHERE state IN ('DEAD', 'CANCELLED');
DROP INDEX gristmill.jobs_finished;

-- Whether a finished job is old enough to go.
CREATE FUNCTION gristmill.is_past(
    state gristmill.job_state, finished_at timestamptz, older_than interval, dead_older_than interval
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT coalesce(finished_at < now() - CASE WHEN state = 'DONE' THEN older_than ELSE dead_older_than END, false)
$$;

-- Removes finished jobs, oldest first: DONE ones past `older_than`, dead and cancelled ones past
-- `dead_older_than`. A tree goes as a whole, when its last job is past its time. Answers how many
-- rows went; fewer than `at_most` means that there are no more for now.
--
-- Each row is looked at once: the walk goes on from its bookmark, over rows whose tree is not
-- past its time. They go with the one of their tree whose time comes last, because the walk
-- reaches that one later. So the cost follows what is removed, neither the size of the table nor
-- the dead entries that vacuum has not yet taken from the front of the index. What the walk may
-- miss (a row that somebody held, a transaction that committed late) is found when
-- gristmill.prune_anew() sends it back to the beginning, which `tidy` does once a day.
CREATE FUNCTION gristmill.prune(
    older_than interval DEFAULT '1 day', dead_older_than interval DEFAULT '30 days', at_most int DEFAULT 1000
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, gristmill SET enable_seqscan = off SET jit = off AS $$
DECLARE
    walks constant text[][] := ARRAY[['prune.done', 'state = ''DONE'''],
                                     ['prune.failed', 'state IN (''DEAD'', ''CANCELLED'')']];
    removed bigint := 0;
    looked bigint := 0;
    seen bigint;
    gone bigint;
    place bookmarks;
    roots uuid[];
    held uuid[];
    kept uuid[];
BEGIN
    FOR walk IN 1..2 LOOP
        INSERT INTO bookmarks (name) VALUES (walks[walk][1]) ON CONFLICT DO NOTHING;
        -- One walker at a time; a second one has nothing to do.
        SELECT * INTO place FROM bookmarks WHERE name = walks[walk][1] FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        -- A batch whose trees must stay removes nothing: go on a little, not for ever.
        WHILE removed < at_most AND looked < 20 * at_most::bigint LOOP
            EXECUTE format(
                'SELECT count(*), coalesce(array_agg(DISTINCT coalesce(f.root_id, f.id)), ''{}''),
                        max(f.finished_at), (array_agg(f.id ORDER BY f.finished_at DESC, f.id DESC))[1]
                 FROM (SELECT id, root_id, finished_at FROM gristmill.jobs
                       WHERE %s AND finished_at < now() - $1 AND (finished_at, id) > ($2, $3)
                       ORDER BY finished_at, id LIMIT $4) f', walks[walk][2])
            INTO seen, roots, place.at, place.id
            USING CASE walk WHEN 1 THEN older_than ELSE dead_older_than END, place.at, place.id,
                  least(at_most - removed, 1000);
            EXIT WHEN seen = 0;
            looked := looked + seen;
            -- Trees that must stay are not even locked: their jobs at work go on undisturbed.
            roots := ARRAY(
                SELECT r FROM unnest(roots) AS r
                WHERE NOT EXISTS (
                    SELECT FROM jobs j WHERE (j.id = r OR j.root_id = r)
                      AND NOT is_past(j.state, j.finished_at, older_than, dead_older_than)));
            held := ARRAY(SELECT j.id FROM jobs j WHERE j.id = ANY (roots) OR j.root_id = ANY (roots)
                          FOR UPDATE SKIP LOCKED);
            kept := ARRAY(
                SELECT DISTINCT coalesce(j.root_id, j.id) FROM jobs j LEFT JOIN unnest(held) AS h (id) ON h.id = j.id
                WHERE (j.id = ANY (roots) OR j.root_id = ANY (roots))
                  AND (h.id IS NULL OR NOT is_past(j.state, j.finished_at, older_than, dead_older_than)));
            DELETE FROM jobs j WHERE j.id = ANY (held) AND NOT coalesce(j.root_id, j.id) = ANY (kept);
            GET DIAGNOSTICS gone = ROW_COUNT;
            removed := removed + gone;
            UPDATE bookmarks SET at = place.at, id = place.id WHERE name = walks[walk][1];
        END LOOP;
    END LOOP;
    RETURN removed;
END
$$;

-- Sends the walk of gristmill.prune back to the oldest rows.
CREATE FUNCTION gristmill.prune_anew() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    DELETE FROM bookmarks WHERE name IN ('prune.done', 'prune.failed')
$$;

-- Removes logins and sign-in links that are over.
CREATE FUNCTION gristmill.sweep_logins(at_most int) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    WITH old_sessions AS (
        DELETE FROM sessions WHERE id = ANY (ARRAY(
            SELECT s.id FROM workspaces w CROSS JOIN LATERAL (
                SELECT id FROM sessions WHERE workspace_id = w.id AND expires < now()
                ORDER BY expires LIMIT at_most FOR UPDATE SKIP LOCKED) s LIMIT at_most))
        RETURNING 1),
    old_tokens AS (
        DELETE FROM verification_tokens WHERE id = ANY (ARRAY(
            SELECT t.id FROM workspaces w CROSS JOIN LATERAL (
                SELECT id FROM verification_tokens WHERE workspace_id = w.id AND expires < now()
                ORDER BY expires LIMIT at_most FOR UPDATE SKIP LOCKED) t LIMIT at_most))
        RETURNING 1)
    SELECT (SELECT count(*) FROM old_sessions) + (SELECT count(*) FROM old_tokens)
$$;

-- Removes keys whose time is over.
CREATE FUNCTION gristmill.sweep_keys(at_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM job_keys WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM job_keys WHERE until < now() ORDER BY until LIMIT at_most FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END
$$;

-- Removes workers that nobody has seen for so long; one that comes back adds its row anew.
CREATE FUNCTION gristmill.sweep_workers(unseen_for interval) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM workers WHERE last_seen < now() - unseen_for;
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END
$$;

-- Takes dead places out of the queues of shared limits, where there are such.
CREATE FUNCTION gristmill.sweep_limits() RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
    IF to_regprocedure('gristmill.sweep_turns()') IS NULL THEN
        RETURN 0;
    END IF;
    RETURN gristmill.sweep_turns();
END
$$;

-- Gives back what calls that never settled hold of a budget. What such a call cost is not known:
-- with its last reservation the usage row is RELEASED and says so.
CREATE FUNCTION gristmill.sweep_reservations(at_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    dead uuid[];
    calls uuid[];
BEGIN
    dead := ARRAY(
        SELECT r.id FROM workspaces w CROSS JOIN LATERAL (
            SELECT id FROM reservations WHERE workspace_id = w.id AND expires_at < now()
            ORDER BY expires_at LIMIT at_most FOR UPDATE SKIP LOCKED) r LIMIT at_most);
    calls := ARRAY(SELECT DISTINCT usage_id FROM reservations WHERE id = ANY (dead));
    WITH gone AS (
        DELETE FROM reservations WHERE id = ANY (dead) RETURNING budget_id, amount),
    sums AS (
        SELECT budget_id, sum(amount) AS amount FROM gone GROUP BY budget_id)
    UPDATE budgets b SET reserved = greatest(0, b.reserved - s.amount) FROM sums s WHERE b.id = s.budget_id;
    UPDATE usages u SET state = 'RELEASED', settled_at = now(),
        failure = 'abandoned: no result came before its reservation ran out; what it cost is not known'
    WHERE u.id = ANY (calls) AND u.state = 'OPEN' AND NOT EXISTS (SELECT FROM reservations r WHERE r.usage_id = u.id);
    RETURN cardinality(dead);
END
$$;

-- Removes events older than so long, from the oldest on: ids are in the order of time.
CREATE FUNCTION gristmill.sweep_events(older_than interval, at_most int) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    WITH gone AS (
        DELETE FROM events WHERE created_at < now() - older_than
          AND id = ANY (ARRAY(SELECT id FROM events ORDER BY id LIMIT at_most FOR UPDATE SKIP LOCKED))
        RETURNING 1)
    SELECT count(*) FROM gone
$$;

-- Removes what was learned of bytes that no attachment has any more: the chat layer removed the
-- row itself, where `forget` would have asked. The text's object is then named by no row.
CREATE FUNCTION gristmill.sweep_leavings(older_than interval, at_most int) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    WITH texts AS (
        DELETE FROM extractions WHERE id = ANY (ARRAY(
            SELECT e.id FROM extractions e
            WHERE e.created_at < now() - older_than
              AND NOT EXISTS (SELECT FROM attachments a WHERE a.workspace_id = e.workspace_id AND a.checksum_sha256 = e.sha256)
              AND NOT EXISTS (SELECT FROM generations g WHERE g.workspace_id = e.workspace_id AND g.extraction_id = e.id)
            LIMIT at_most FOR UPDATE SKIP LOCKED))
        RETURNING 1),
    said AS (
        DELETE FROM verdicts WHERE id = ANY (ARRAY(
            SELECT v.id FROM verdicts v
            WHERE v.created_at < now() - older_than
              AND NOT EXISTS (SELECT FROM attachments a WHERE a.workspace_id = v.workspace_id AND a.checksum_sha256 = v.sha256)
            LIMIT at_most FOR UPDATE SKIP LOCKED))
        RETURNING 1)
    SELECT (SELECT count(*) FROM texts) + (SELECT count(*) FROM said)
$$;

-- How often `tidy` queued the next step of one that nobody worked on; a second time it fails.
ALTER TABLE gristmill.attachments ADD COLUMN revived smallint NOT NULL DEFAULT 0 CHECK (revived >= 0);
ALTER TABLE gristmill.generations ADD COLUMN revived smallint NOT NULL DEFAULT 0 CHECK (revived >= 0);

-- A retry by hand begins anew.
CREATE FUNCTION gristmill.forget_revivals() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.revived := 0;
    RETURN NEW;
END
$$;
CREATE TRIGGER attachments_begin_anew BEFORE UPDATE OF status ON gristmill.attachments
    FOR EACH ROW WHEN (OLD.status = 'FAILED' AND NEW.status <> 'FAILED') EXECUTE FUNCTION gristmill.forget_revivals();

-- Whether a job that is not over works on this subject: found by the keys that the house gives
-- its own jobs, which is a probe into an index each.
CREATE FUNCTION gristmill.has_job(workspace uuid, kinds text[], subject uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    SELECT EXISTS (
        SELECT FROM unnest(kinds) AS k (kind) JOIN jobs j ON j.kind = k.kind
        WHERE j.workspace_id = workspace AND j.unique_key = subject::text
          AND j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED'))
$$;

-- Attachments in a state that is not final, unchanged for too long, that no job works on: up to
-- UPLOADING after `uploads`, from STORED on after `others`. SCANNING ones with an unfinished
-- index are left to gristmill.stuck_generations. The oldest 2000 of each state are looked at;
-- those that do have a job move on, so the others come to the front.
CREATE FUNCTION gristmill.stuck_attachments(uploads interval, others interval, at_most int)
RETURNS TABLE (workspace_id uuid, id uuid, status text, revived smallint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
#variable_conflict use_column
DECLARE
    idle uuid[];
BEGIN
    idle := ARRAY(
        SELECT a.id
        FROM (VALUES ('REQUESTED'::asset_status, uploads), ('PLANNED', uploads), ('UPLOADING', uploads),
                     ('STORED', others), ('SCANNING', others)) AS s (status, deadline)
        CROSS JOIN LATERAL (
            SELECT * FROM attachments o WHERE o.status = s.status AND o.created_at < now() - s.deadline
            ORDER BY o.created_at LIMIT 2000) a
        WHERE a.updated_at < now() - s.deadline
          AND NOT has_job(a.workspace_id, ARRAY['fetch', 'scan', 'extract', 'forget'], a.id)
          AND NOT EXISTS (SELECT FROM resources r JOIN generations g ON g.resource_id = r.id
                          WHERE r.attachment_id = a.id AND g.finished_at IS NULL)
        LIMIT at_most);
    IF cardinality(idle) > 0 THEN
        -- Jobs that somebody queued under a key of their own, or none: one look at all live jobs.
        RETURN QUERY
        SELECT a.workspace_id, a.id, a.status::text, a.revived FROM attachments a
        WHERE a.id = ANY (idle) AND NOT EXISTS (
            SELECT FROM jobs j WHERE j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')
              AND j.workspace_id = a.workspace_id AND j.payload ->> 'attachment' = a.id::text)
        ORDER BY a.created_at;
    END IF;
END
$$;

-- Index generations that are not finished, unchanged for too long, that no job works on.
CREATE FUNCTION gristmill.stuck_generations(deadline interval, at_most int)
RETURNS TABLE (workspace_id uuid, id uuid, attachment_id uuid, has_text boolean, revived smallint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
#variable_conflict use_column
DECLARE
    idle uuid[];
BEGIN
    idle := ARRAY(
        SELECT g.id
        FROM (SELECT * FROM generations WHERE finished_at IS NULL AND updated_at < now() - deadline
              ORDER BY updated_at LIMIT 2000) g
        JOIN resources r ON r.id = g.resource_id
        WHERE NOT has_job(g.workspace_id, ARRAY['embed', 'forget'], g.id)
          AND (r.attachment_id IS NULL
               OR NOT has_job(g.workspace_id, ARRAY['fetch', 'scan', 'extract', 'forget'], r.attachment_id))
        LIMIT at_most);
    IF cardinality(idle) > 0 THEN
        RETURN QUERY
        SELECT g.workspace_id, g.id, r.attachment_id, g.extraction_id IS NOT NULL, g.revived
        FROM generations g JOIN resources r ON r.id = g.resource_id
        WHERE g.id = ANY (idle) AND NOT EXISTS (
            SELECT FROM jobs j WHERE j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')
              AND j.workspace_id = g.workspace_id
              AND (j.payload ->> 'generation' = g.id::text OR j.payload ->> 'attachment' = r.attachment_id::text))
        ORDER BY g.updated_at;
    END IF;
END
$$;

-- Generations that a newer one replaced in retrieval a while ago and nobody forgot.
CREATE FUNCTION gristmill.superseded_generations(older_than interval, at_most int)
RETURNS TABLE (workspace_id uuid, id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    SELECT g.workspace_id, g.id
    FROM resources r
    JOIN generations live ON live.id = r.live_generation
    JOIN generations g ON g.resource_id = r.id AND g.id <> live.id
    WHERE g.finished_at < now() - older_than AND live.finished_at < now() - older_than
      -- A later attempt that failed tells of itself until the next one.
      AND g.created_at < live.created_at
      AND NOT has_job(g.workspace_id, ARRAY['forget'], g.id)
    LIMIT at_most
$$;

-- Readable attachments whose bytes were judged by another engine than `engine`, or by other
-- signatures more than `older_than` ago; one of each content and tenant. The same signatures say
-- the same again, however long ago it was. Looks at `at_most` x 50 attachments from its bookmark
-- on, and begins anew behind the last.
CREATE FUNCTION gristmill.to_rescan(engine text, signatures text, older_than interval, at_most int)
RETURNS TABLE (workspace_id uuid, id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
#variable_conflict use_column
DECLARE
    place uuid;
BEGIN
    INSERT INTO bookmarks (name) VALUES ('rescan') ON CONFLICT DO NOTHING;
    SELECT b.id INTO place FROM bookmarks b WHERE b.name = 'rescan' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH page AS MATERIALIZED (
        SELECT a.workspace_id, a.id, a.status, a.checksum_sha256 AS sha256 FROM attachments a
        WHERE a.id > place ORDER BY a.id LIMIT at_most * 50
    ), old AS (
        SELECT DISTINCT ON (p.workspace_id, p.sha256) p.workspace_id, p.id
        FROM page p CROSS JOIN LATERAL (
            SELECT v.engine, v.signature_version, v.created_at FROM verdicts v
            WHERE v.workspace_id = p.workspace_id AND v.sha256 = p.sha256
            ORDER BY v.created_at DESC LIMIT 1) v
        WHERE p.status IN ('READY', 'ATTACHED')
          AND (v.engine <> to_rescan.engine
               OR v.signature_version <> signatures AND v.created_at < now() - older_than)
          AND NOT has_job(p.workspace_id, ARRAY['rescan'], p.id)
        ORDER BY p.workspace_id, p.sha256, p.id
    ), given AS MATERIALIZED (
        SELECT o.workspace_id, o.id FROM old o ORDER BY o.id LIMIT at_most
    ), moved AS (
        UPDATE bookmarks b SET id = CASE
            WHEN (SELECT count(*) FROM given) = at_most THEN (SELECT g.id FROM given g ORDER BY g.id DESC LIMIT 1)
            WHEN (SELECT count(*) FROM page) = at_most * 50 THEN (SELECT p.id FROM page p ORDER BY p.id DESC LIMIT 1)
            ELSE '00000000-0000-0000-0000-000000000000' END
        WHERE b.name = 'rescan')
    SELECT g.workspace_id, g.id FROM given g;
END
$$;

-- Budgets whose counters are not the sums of their rows: `spent` against what was settled in the
-- present period, `reserved` against the reservations that are open. One statement sees one moment.
CREATE FUNCTION gristmill.budget_differences()
RETURNS TABLE (workspace_id uuid, budget_id uuid, spent numeric, settled numeric, reserved numeric, held numeric)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    SELECT b.workspace_id, b.id, b.spent, u.settled, b.reserved, r.held
    FROM budgets b
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(u.cost), 0) AS settled FROM usages u
        WHERE u.workspace_id = b.workspace_id AND u.state = 'SETTLED'
          AND (b.period IS NULL OR u.settled_at >= b.period_start)
          AND (b.user_id IS NULL OR u.user_id = b.user_id)
          AND (b.agent_id IS NULL OR u.agent_id = b.agent_id)) u
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(r.amount), 0) AS held FROM reservations r
        WHERE r.workspace_id = b.workspace_id AND r.budget_id = b.id) r
    WHERE b.spent <> u.settled OR b.reserved <> r.held
$$;

GRANT SELECT ON gristmill.schedules TO gristmill_worker;
GRANT UPDATE (problem) ON gristmill.schedules TO gristmill_worker;
-- They run with the owner's rights: nobody but the worker may call them.
REVOKE EXECUTE ON FUNCTION gristmill.publish_schedule, gristmill.tick, gristmill.run_schedule, gristmill.prune,
    gristmill.prune_anew, gristmill.sweep_logins, gristmill.sweep_keys, gristmill.sweep_workers, gristmill.sweep_limits,
    gristmill.sweep_reservations, gristmill.sweep_events, gristmill.sweep_leavings, gristmill.has_job,
    gristmill.stuck_attachments, gristmill.stuck_generations, gristmill.superseded_generations,
    gristmill.to_rescan, gristmill.budget_differences FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.publish_schedule, gristmill.tick, gristmill.run_schedule, gristmill.prune,
    gristmill.prune_anew, gristmill.sweep_logins, gristmill.sweep_keys, gristmill.sweep_workers, gristmill.sweep_limits,
    gristmill.sweep_reservations, gristmill.sweep_events, gristmill.sweep_leavings, gristmill.has_job,
    gristmill.stuck_attachments, gristmill.stuck_generations, gristmill.superseded_generations,
    gristmill.to_rescan, gristmill.budget_differences TO gristmill_worker;
