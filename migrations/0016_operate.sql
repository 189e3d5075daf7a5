-- What people do with jobs: try one again with its subject, ask why one waits, look for rows that
-- cross tenants. Any language may call these; `gristmill jobs` and `gristmill verify` do.
--
-- In a transaction that set a tenant, a job of another tenant is answered as if there were none.

-- The attachment that a step of ingest works on; NULL for other kinds and for unreadable payloads.
CREATE FUNCTION gristmill.attachment_of(kind text, payload jsonb) RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    SELECT CASE
        WHEN $1 IN ('fetch', 'scan', 'extract')
             AND $2 ->> 'attachment' ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
            THEN ($2 ->> 'attachment')::uuid
        WHEN $1 = 'embed'
             AND $2 ->> 'generation' ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
            THEN (SELECT r.attachment_id FROM gristmill.generations g
                  JOIN gristmill.resources r ON r.id = g.resource_id
                  WHERE g.id = ($2 ->> 'generation')::uuid)
    END
$$;

-- Whether a step can go on by itself: an index under construction keeps its plan and its chunks.
CREATE FUNCTION gristmill.goes_on(kind text, payload jsonb) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    SELECT $1 = 'embed' AND EXISTS (
        SELECT FROM gristmill.generations g
        JOIN gristmill.resources r ON r.id = g.resource_id
        JOIN gristmill.attachments a ON a.id = r.attachment_id
        WHERE g.id::text = $2 ->> 'generation' AND g.status IN ('CHUNKING', 'EMBEDDING')
          AND a.status IN ('SCANNING', 'READY', 'ATTACHED'))
$$;

-- Prepares an attachment so that the work on it can begin again, and says at which step.
--
-- FAILED goes back to STORED by its legal edge and the chat layer is told. The steps before the one
-- that failed are run again: they are cheap (verdict, text and vectors of the same bytes are kept),
-- and nothing is parsed on the word of a scan whose signatures have grown old meanwhile. An attachment
-- that is READY keeps its index; a new generation is opened beside it where the last one failed.
-- `step` is NULL when there is nothing to do again: then `verdict` is settled or refused, and `says` tells why.
-- `pinned`: the bytes lie in the bucket and were looked at, so `scan` may come first too.
CREATE FUNCTION gristmill.revive(
    of_attachment uuid, OUT step text, OUT pinned boolean, OUT verdict text, OUT says text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    subject gristmill.attachments;
BEGIN
    SELECT * INTO subject FROM gristmill.attachments WHERE id = of_attachment FOR NO KEY UPDATE;
    pinned := subject.etag IS NOT NULL;
    IF NOT FOUND THEN
        verdict := 'settled';
        says := 'its attachment was forgotten';
    ELSIF subject.status = 'QUARANTINED' THEN
        verdict := 'refused';
        says := format('its attachment is QUARANTINED (%s): its bytes are not read again', subject.failure_code);
    ELSIF subject.status = 'FAILED' THEN
        UPDATE gristmill.attachments SET status = 'STORED', failure_code = NULL, failure = NULL
        WHERE id = of_attachment;
        INSERT INTO gristmill.events (workspace_id, type, subject, subject_id, body)
        VALUES (subject.workspace_id, 'attachment.stored', 'attachment', of_attachment,
                jsonb_build_object('retried', true, 'failed_with', subject.failure_code));
        step := 'fetch';
    ELSIF subject.status IN ('READY', 'ATTACHED') THEN
        INSERT INTO gristmill.generations (workspace_id, resource_id)
        SELECT r.workspace_id, r.id FROM gristmill.resources r
        LEFT JOIN LATERAL (SELECT g.status FROM gristmill.generations g WHERE g.resource_id = r.id
                           ORDER BY g.created_at DESC, g.id DESC LIMIT 1) newest ON true
        WHERE r.attachment_id = of_attachment AND coalesce(newest.status, 'FAILED') = 'FAILED';
        IF EXISTS (SELECT FROM gristmill.generations g JOIN gristmill.resources r ON r.id = g.resource_id
                   WHERE r.attachment_id = of_attachment AND g.finished_at IS NULL) THEN
            step := 'extract';
        ELSE
            verdict := 'settled';
            says := format('its attachment is %s', subject.status);
        END IF;
    ELSE
        -- On its way, but the job that carried it is gone.
        step := CASE WHEN subject.status = 'SCANNING' THEN 'scan' ELSE 'fetch' END;
    END IF;
END
$$;

-- Tries a dead or cancelled job again, with all its attempts. `outcome` is one of
--   retried    the job waits again, under a new epoch
--   restarted  its subject begins anew at an earlier step: `job_id` is that step's job, and the old one
--              is closed as CANCELLED with its successor's id
--   alive      nothing was changed: `job_id` is at work, or holds the job's key or its subject
--   settled    there is nothing left to do: the subject is READY, or the job itself was DONE
--   refused    it must not run again, and `says` tells why
--   unknown    there is no such job
CREATE FUNCTION gristmill.retry(job uuid, OUT job_id uuid, OUT outcome text, OUT says text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    old gristmill.jobs;
    attachment uuid;
    revived record;
    is_new boolean;
BEGIN
    SELECT * INTO old FROM gristmill.jobs j
    WHERE j.id = job AND j.workspace_id = coalesce(gristmill.current_workspace(), j.workspace_id)
    FOR NO KEY UPDATE;
    job_id := job;
    IF NOT FOUND THEN
        outcome := 'unknown';
        says := 'there is no such job';
        RETURN;
    ELSIF old.state NOT IN ('DEAD', 'CANCELLED') THEN
        outcome := CASE WHEN old.state = 'DONE' THEN 'settled' ELSE 'alive' END;
        says := format('it is %s', old.state);
        RETURN;
    END IF;

    IF old.unique_key IS NOT NULL THEN
        SELECT j.id INTO job_id FROM gristmill.jobs j
        WHERE j.workspace_id = old.workspace_id AND j.kind = old.kind AND j.unique_key = old.unique_key
          AND j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED');
        IF FOUND THEN
            outcome := 'alive';
            says := format('%s has its key', job_id);
            PERFORM gristmill.close_for(old.id, job_id);
            RETURN;
        END IF;
        -- A key may outlive its job: whoever was given it since has done the work, or will.
        SELECT k.job_id INTO job_id FROM gristmill.job_keys k
        WHERE k.workspace_id = old.workspace_id AND k.kind = old.kind AND k.key = old.unique_key
          AND k.job_id <> old.id AND k.until > now();
        IF FOUND THEN
            outcome := 'settled';
            says := format('%s has its key', job_id);
            PERFORM gristmill.close_for(old.id, job_id);
            RETURN;
        END IF;
        job_id := job;
    END IF;

    -- A payload that names no attachment runs as it is, and dies of its own reason.
    attachment := gristmill.attachment_of(old.kind, old.payload);
    IF attachment IS NOT NULL AND NOT gristmill.goes_on(old.kind, old.payload) THEN
        SELECT * INTO revived FROM gristmill.revive(attachment);
        IF revived.step IS NULL THEN
            outcome := revived.verdict;
            says := revived.says;
            IF outcome = 'settled' THEN
                PERFORM gristmill.close_for(old.id, NULL, says);
            END IF;
            RETURN;
        ELSIF revived.step <> old.kind AND NOT (old.kind = 'scan' AND revived.pinned) THEN
            SELECT e.job_id, e.is_new INTO job_id, is_new FROM gristmill.enqueue(
                revived.step, jsonb_build_object('attachment', attachment), key => attachment::text,
                workspace => old.workspace_id, parent => old.id) e;
            outcome := CASE WHEN is_new THEN 'restarted' ELSE 'alive' END;
            says := format('its attachment begins again at `%s`', revived.step);
            PERFORM gristmill.close_for(old.id, job_id);
            RETURN;
        END IF;
    END IF;

    BEGIN
        UPDATE gristmill.jobs j SET
            -- A cancel had moved it before all others.
            priority = CASE WHEN j.priority = 32767 THEN 0 ELSE j.priority END,
            state = 'WAITING', attempts = 0, epoch = j.epoch + 1, run_at = now(), cancel_requested = false,
            started_at = NULL, finished_at = NULL, worker = NULL,
            reason = 'retried; before: ' || left(coalesce(old.reason, 'no reason'), 500)
        WHERE j.id = job;
    EXCEPTION WHEN unique_violation THEN
        -- Its key was taken since it was looked for.
        SELECT j.id INTO job_id FROM gristmill.jobs j
        WHERE j.workspace_id = old.workspace_id AND j.kind = old.kind AND j.unique_key = old.unique_key
          AND j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED');
        outcome := 'alive';
        says := format('%s has its key', job_id);
        RETURN;
    END;
    IF old.lane = 0 THEN
        PERFORM pg_notify('gristmill_jobs', old.kind);
    END IF;
    outcome := 'retried';
    says := format('it waits again, with %s attempts', old.max_attempts);
END
$$;

-- Takes a job from among the dead, because another one does its work or nothing is left of it.
CREATE FUNCTION gristmill.close_for(job uuid, successor uuid, why text DEFAULT NULL) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    UPDATE gristmill.jobs SET
        state = 'CANCELLED', finished_at = clock_timestamp(),
        reason = left(coalesce('retried as ' || successor, 'settled: ' || why) || '; before: ' || coalesce(reason, '-'), 2000)
    WHERE id = job AND state = 'DEAD'
$$;

-- Begins a FAILED attachment anew, whether a job died of it or a verdict refused it (an object was
-- missing and has been uploaded since). Answers as `retry` does.
CREATE FUNCTION gristmill.retry_attachment(attachment uuid, OUT job_id uuid, OUT outcome text, OUT says text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    tenant uuid;
    dead uuid[];
    revived record;
    is_new boolean;
BEGIN
    SELECT a.workspace_id INTO tenant FROM gristmill.attachments a
    WHERE a.id = attachment AND a.workspace_id = coalesce(gristmill.current_workspace(), a.workspace_id);
    IF NOT FOUND THEN
        outcome := 'unknown';
        says := 'there is no such attachment';
        RETURN;
    END IF;
    -- Jobs first, then the attachment: the order in which a worker takes them.
    dead := ARRAY(
        SELECT j.id FROM gristmill.jobs j
        WHERE j.workspace_id = tenant AND j.state = 'DEAD'
          AND gristmill.attachment_of(j.kind, j.payload) = attachment
        ORDER BY j.id FOR NO KEY UPDATE);
    SELECT * INTO revived FROM gristmill.revive(attachment);
    IF revived.step IS NULL THEN
        outcome := revived.verdict;
        says := revived.says;
        RETURN;
    END IF;
    SELECT e.job_id, e.is_new INTO job_id, is_new FROM gristmill.enqueue(
        revived.step, jsonb_build_object('attachment', attachment), key => attachment::text,
        workspace => tenant, parent => dead[array_upper(dead, 1)]) e;
    outcome := CASE WHEN is_new THEN 'restarted' ELSE 'alive' END;
    says := format('it begins again at `%s`', revived.step);
    PERFORM gristmill.close_for(d, job_id) FROM unnest(dead) d;
END
$$;

-- A span of time as people say it.
CREATE FUNCTION gristmill.in_words(span interval) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
    SELECT CASE
        WHEN s < 1 THEN round(s * 1000) || ' ms'
        WHEN s < 120 THEN round(s) || ' s'
        WHEN s < 7200 THEN round(s / 60) || ' min'
        WHEN s < 172800 THEN round(s / 3600) || ' h'
        ELSE round(s / 86400) || ' days' END
    FROM (SELECT abs(extract(epoch FROM span)) AS s)
$$;

-- Why a job is where it is: one row a reason, the weightiest first. `code` is for programs, `says`
-- for people, `facts` hold the numbers. No row: there is no such job.
CREATE FUNCTION gristmill.explain(job uuid) RETURNS TABLE (code text, says text, facts jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    j gristmill.jobs;
    clock timestamptz := clock_timestamp();
BEGIN
    SELECT * INTO j FROM gristmill.jobs x
    WHERE x.id = job AND x.workspace_id = coalesce(gristmill.current_workspace(), x.workspace_id);
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF j.cancel_requested AND j.finished_at IS NULL THEN
        RETURN QUERY SELECT 'cancel_requested', 'a cancel was asked for; it ends CANCELLED at the next look', '{}'::jsonb;
    END IF;
    IF j.finished_at IS NOT NULL THEN
        RETURN QUERY SELECT lower(j.state::text),
            CASE j.state
                WHEN 'DONE' THEN format('done %s ago, at attempt %s, after %s of work',
                    in_words(clock - j.finished_at), j.attempts, in_words(j.finished_at - coalesce(j.started_at, j.finished_at)))
                WHEN 'DEAD' THEN format('dead since %s: %s; `gristmill jobs retry` tries it again',
                    in_words(clock - j.finished_at), j.reason)
                ELSE format('cancelled %s ago: %s', in_words(clock - j.finished_at), coalesce(j.reason, 'no reason was given'))
            END,
            jsonb_build_object('finished_at', j.finished_at, 'attempts', j.attempts, 'reason', j.reason);
    ELSIF j.state = 'RUNNING' THEN
        RETURN QUERY SELECT
            CASE WHEN j.lease_until < clock THEN 'lease_lapsed' ELSE 'running' END,
            CASE WHEN j.lease_until < clock
                THEN format('%s was at work on it, but its lease lapsed %s ago: the next worker that looks takes it back',
                    j.worker, in_words(clock - j.lease_until))
                ELSE format('%s has been at work on it for %s, attempt %s of %s; the lease has %s left',
                    j.worker, in_words(clock - j.started_at), j.attempts, j.max_attempts, in_words(j.lease_until - clock))
            END,
            jsonb_build_object('worker', j.worker, 'started_at', j.started_at, 'lease_until', j.lease_until,
                               'attempt', j.attempts, 'max_attempts', j.max_attempts);
    ELSIF j.state = 'PARKED' THEN
        RETURN QUERY SELECT 'parked_' || lower(coalesce(substring(j.reason FROM '^[A-Z_]+'), 'other')),
            CASE substring(j.reason FROM '^[A-Z_]+')
                WHEN 'NEEDS_APPROVAL' THEN 'it waits for a person''s approval'
                WHEN 'NEEDS_AUTH' THEN 'it waits until its user gives or renews a credential'
                WHEN 'BUDGET' THEN 'it waits for money: its budget is used up'
                ELSE 'it is parked' END || format(' (%s); no attempt is spent, and no place held', j.reason),
            jsonb_build_object('reason', j.reason);
    ELSIF j.run_at > clock THEN
        RETURN QUERY SELECT
            CASE WHEN j.reason LIKE 'worker_crash:%' THEN 'rescued'
                 WHEN j.reason LIKE 'rate limit of %' THEN 'rate_limit'
                 WHEN j.reason IS NULL THEN 'schedule'
                 WHEN j.attempts > 0 THEN 'backoff'
                 ELSE 'asked_to_wait' END,
            CASE WHEN j.reason IS NULL THEN format('it was asked for in %s, not before', in_words(j.run_at - clock))
                 WHEN j.attempts > 0 THEN format('attempt %s of %s failed (%s); the next is in %s',
                    j.attempts, j.max_attempts, j.reason, in_words(j.run_at - clock))
                 ELSE format('it is to look again in %s: %s', in_words(j.run_at - clock), j.reason) END,
            jsonb_build_object('run_at', j.run_at, 'attempts', j.attempts, 'max_attempts', j.max_attempts, 'reason', j.reason);
    ELSE
        RETURN QUERY SELECT * FROM gristmill.explain_waiting(j);
    END IF;
END
$$;

-- Why a job that is due is not at work: who could do it, what caps it, and who is before it.
CREATE FUNCTION gristmill.explain_waiting(j gristmill.jobs) RETURNS TABLE (code text, says text, facts jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    cap int;
    busy bigint;
    before_it bigint;
    neighbours bigint;
    hindered boolean := false;
BEGIN
    IF NOT EXISTS (
        SELECT FROM gristmill.workers w
        WHERE j.kind = ANY (w.kinds) AND w.last_seen > clock_timestamp() - interval '2 minutes')
    THEN
        hindered := true;
        RETURN QUERY SELECT 'no_worker', format('no worker that was seen in the last 2 minutes does `%s`', j.kind),
            jsonb_build_object('kind', j.kind);
    END IF;
    IF j.attempts >= j.max_attempts THEN
        RETURN QUERY SELECT 'used_up', format('its %s attempts are used up: the next claim lays it among the dead', j.max_attempts),
            jsonb_build_object('attempts', j.attempts, 'reason', j.reason);
    END IF;

    SELECT s.in_flight_cap INTO cap FROM gristmill.shares s WHERE s.workspace_id = j.workspace_id;
    SELECT count(*) INTO busy FROM gristmill.jobs x
    WHERE x.workspace_id = j.workspace_id AND x.lane = j.lane AND x.state = 'RUNNING';
    IF cap = 0 THEN
        hindered := true;
        RETURN QUERY SELECT 'paused', 'its workspace is paused: it may have no job at work', '{"in_flight_cap": 0}'::jsonb;
    ELSIF busy >= cap THEN
        hindered := true;
        RETURN QUERY SELECT 'workspace_cap', format('its workspace has %s jobs at work in this lane, as many as it may', busy),
            jsonb_build_object('at_work', busy, 'in_flight_cap', cap);
    END IF;
    SELECT k.in_flight_cap INTO cap FROM gristmill.kinds k WHERE k.kind = j.kind;
    SELECT count(*) INTO busy FROM gristmill.jobs x WHERE x.kind = j.kind AND x.state = 'RUNNING';
    IF cap = 0 THEN
        hindered := true;
        RETURN QUERY SELECT 'paused', format('`%s` is paused: no job of this kind may be at work', j.kind),
            '{"in_flight_cap": 0}'::jsonb;
    ELSIF busy >= cap THEN
        hindered := true;
        RETURN QUERY SELECT 'kind_cap', format('%s jobs of `%s` are at work, as many as may be', busy, j.kind),
            jsonb_build_object('at_work', busy, 'in_flight_cap', cap);
    END IF;

    -- A backlog is counted to ten thousand.
    SELECT count(*) INTO before_it FROM (
        SELECT FROM gristmill.jobs x
        WHERE x.state = 'WAITING' AND x.lane = j.lane AND x.workspace_id = j.workspace_id AND x.id <> j.id
          AND x.turn < j.turn
        LIMIT 10000) x;
    SELECT count(DISTINCT x.workspace_id) INTO neighbours FROM (
        SELECT x.workspace_id FROM gristmill.jobs x
        WHERE x.state = 'WAITING' AND x.lane = j.lane AND x.workspace_id <> j.workspace_id LIMIT 10000) x;
    IF before_it > 0 THEN
        RETURN QUERY SELECT 'turn', format('%s%s jobs of its workspace are before it, and %s other workspaces take turns with it',
                CASE WHEN before_it = 10000 THEN 'at least ' ELSE '' END, before_it, neighbours),
            jsonb_build_object('before_it', before_it, 'other_workspaces', neighbours);
    END IF;
    SELECT count(*) INTO busy FROM gristmill.jobs x WHERE x.state = 'RUNNING' AND x.lane = j.lane;
    IF busy > 0 THEN
        RETURN QUERY SELECT 'places', format('%s jobs are at work in its lane (%s); it takes a place when one is free',
                busy, CASE j.lane WHEN 0 THEN 'interactive' ELSE 'bulk' END),
            jsonb_build_object('at_work', busy, 'lane', j.lane, 'other_workspaces', neighbours);
    END IF;
    RETURN QUERY SELECT 'due',
        format('it has been due for %s', in_words(clock_timestamp() - j.run_at))
            || CASE WHEN hindered THEN '' ELSE ', and is taken at the next look' END,
        jsonb_build_object('run_at', j.run_at);
END
$$;

-- Rows that name a row of another tenant, whichever foreign key they do it by. The keys themselves
-- forbid it (0009_tenant_keys.sql); this looks at what is stored, for the owner alone.
CREATE FUNCTION gristmill.rows_across_tenants() RETURNS TABLE (child text, id text, names text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, gristmill AS $$
DECLARE
    fk record;
BEGIN
    FOR fk IN
        SELECT con.conrelid::regclass AS child, con.confrelid::regclass AS parent, col.attname AS col
        FROM pg_constraint con
        JOIN pg_attribute col ON col.attrelid = con.conrelid AND col.attnum = con.conkey[2]
        WHERE con.contype = 'f' AND con.connamespace = 'gristmill'::regnamespace AND cardinality(con.conkey) = 2
          AND (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = con.conrelid AND a.attnum = con.conkey[1]) = 'workspace_id'
        ORDER BY 1, 3
    LOOP
        RETURN QUERY EXECUTE format(
            'SELECT %L, c.id::text, format(%L, p.id) FROM %s c JOIN %s p ON p.id = c.%I AND p.workspace_id <> c.workspace_id',
            fk.child::text, fk.col || ' = %s of ' || fk.parent, fk.child, fk.parent, fk.col);
    END LOOP;
    RETURN QUERY
        SELECT 'gristmill.jobs', j.id::text, format('%s of attachment %s', j.kind, a.id)
        FROM gristmill.jobs j JOIN gristmill.attachments a
          ON a.id = gristmill.attachment_of(j.kind, j.payload) AND a.workspace_id <> j.workspace_id
        WHERE j.state NOT IN ('DONE', 'DEAD', 'CANCELLED');
    RETURN QUERY
        SELECT 'gristmill.events', e.id::text, format('attachment %s', a.id)
        FROM gristmill.events e JOIN gristmill.attachments a
          ON a.id = e.subject_id AND a.workspace_id <> e.workspace_id WHERE e.subject = 'attachment';
END
$$;

REVOKE EXECUTE ON FUNCTION gristmill.attachment_of, gristmill.goes_on, gristmill.revive, gristmill.retry,
    gristmill.close_for, gristmill.retry_attachment, gristmill.explain, gristmill.explain_waiting,
    gristmill.rows_across_tenants FROM PUBLIC;
-- The steps of a retry are its own: only the whole is called.
GRANT EXECUTE ON FUNCTION gristmill.retry, gristmill.retry_attachment, gristmill.explain TO gristmill_worker;
