-- The queue's terms: which kinds there are and what their payloads look like, keys that outlive
-- their job, whose turn it is, and a stop on request.

-- Jobs of the house itself (schedules, tidying) belong to a workspace of their own.
INSERT INTO gristmill.workspaces (id, external_id, name)
VALUES ('00000000-0000-0000-0000-000000000001', 'gristmill:system', 'Gristmill itself');

-- What workers can do. A worker publishes its kinds when it starts, and so does `gristmill migrate`.
CREATE TABLE gristmill.kinds (
    kind           text PRIMARY KEY CHECK (kind ~ '^[a-z][a-z_]*$'),
    -- 0: a person waits for it; 1: bulk work.
    lane           smallint NOT NULL CHECK (lane IN (0, 1)),
    -- JSON Schema of the payload, in the words that gristmill.misfit knows.
    schema         jsonb NOT NULL,
    -- The newest migration its publisher knew: an older worker does not overwrite a newer one.
    schema_version bigint NOT NULL,
    -- The operator's: jobs of this kind at work at once, over all workers.
    in_flight_cap  int CHECK (in_flight_cap >= 0),
    published_at   timestamptz NOT NULL DEFAULT now()
);

-- The operator's word on whose turn it is; a workspace without a row has weight 1.
CREATE TABLE gristmill.shares (
    workspace_id  uuid PRIMARY KEY REFERENCES gristmill.workspaces ON DELETE CASCADE,
    -- Turns taken for each turn of a workspace of weight 1, while both have work.
    weight        smallint NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 100),
    -- Jobs at work at once in each lane, over all workers; NULL: queue.workspace_cap.
    in_flight_cap int CHECK (in_flight_cap >= 0)
);

-- Keys that hold for a time or for ever, whatever became of their job.
CREATE TABLE gristmill.job_keys (
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    kind         text NOT NULL,
    key          text NOT NULL,
    job_id       uuid NOT NULL,
    until        timestamptz NOT NULL,
    PRIMARY KEY (workspace_id, kind, key)
);
CREATE INDEX job_keys_until ON gristmill.job_keys (until);

-- Who is there, for people. No lease depends on it.
CREATE TABLE gristmill.workers (
    name       text PRIMARY KEY,
    host       text NOT NULL,
    pid        int NOT NULL,
    version    text NOT NULL,
    kinds      text[] NOT NULL,
    places     int NOT NULL CHECK (places > 0),
    started_at timestamptz NOT NULL DEFAULT now(),
    last_seen  timestamptz NOT NULL DEFAULT now()
);

-- Who is next within a workspace: who has waited longest, a point of priority counting as a
-- minute of waiting. So an urgent job goes first and nobody waits for ever.
CREATE FUNCTION gristmill.turn(run_at timestamptz, priority smallint) RETURNS timestamptz
-- Minutes do not depend on the time zone, which is why this may be called immutable.
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT run_at - priority * interval '1 minute'
$$;
ALTER TABLE gristmill.jobs ADD COLUMN turn timestamptz NOT NULL GENERATED ALWAYS AS (gristmill.turn(run_at, priority)) STORED;
DROP INDEX gristmill.jobs_waiting;
CREATE INDEX jobs_waiting ON gristmill.jobs (lane, workspace_id, kind, turn) WHERE state = 'WAITING';
DROP INDEX gristmill.jobs_in_flight;
CREATE INDEX jobs_in_flight ON gristmill.jobs (lane, workspace_id, kind) WHERE state = 'RUNNING';

-- Why a value does not fit a JSON Schema, or NULL when it does. Knows the keywords that payload
-- schemas use: type, enum, const, properties, required, additionalProperties, items, oneOf,
-- anyOf, allOf, $ref within the document, the bounds of numbers, strings and lists, pattern,
-- and format uuid. What else stands in a schema is read as a remark.
CREATE FUNCTION gristmill.misfit(schema jsonb, given jsonb, root jsonb DEFAULT NULL, path text DEFAULT '$')
RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    found_type text := jsonb_typeof(given);
    part record;
    fault text;
    fits int;
BEGIN
    root := coalesce(root, schema);
    IF jsonb_typeof(schema) = 'boolean' THEN
        RETURN CASE WHEN schema = 'false' THEN format('%s is not allowed', path) END;
    END IF;
    IF schema ? '$ref' THEN
        fault := gristmill.misfit(root #> string_to_array(substr(schema ->> '$ref', 3), '/'), given, root, path);
        IF fault IS NOT NULL THEN RETURN fault; END IF;
    END IF;
    IF schema ? 'type' THEN
        IF found_type = 'number' AND (given #>> '{}')::numeric % 1 = 0 THEN
            found_type := 'integer';
        END IF;
        IF NOT (schema -> 'type' @> to_jsonb(found_type)
                OR found_type = 'integer' AND schema -> 'type' @> '"number"') THEN
            RETURN format('%s is %s where %s is wanted', path, found_type, schema -> 'type');
        END IF;
    END IF;
    IF schema ? 'const' AND schema -> 'const' <> given
       OR schema ? 'enum' AND NOT EXISTS (SELECT FROM jsonb_array_elements(schema -> 'enum') AS e (choice) WHERE e.choice = given) THEN
        RETURN format('%s is %s where one of %s is wanted', path, given, coalesce(schema -> 'enum', schema -> 'const'));
    END IF;
    IF schema ? 'allOf' OR schema ? 'oneOf' OR schema ? 'anyOf' THEN
        FOR part IN SELECT e.form FROM jsonb_array_elements(schema -> 'allOf') AS e (form) LOOP
            fault := gristmill.misfit(part.form, given, root, path);
            IF fault IS NOT NULL THEN RETURN fault; END IF;
        END LOOP;
        SELECT count(*) FILTER (WHERE gristmill.misfit(e.form, given, root, path) IS NULL) INTO fits
        FROM jsonb_array_elements(coalesce(schema -> 'oneOf', schema -> 'anyOf')) AS e (form);
        IF schema ? 'oneOf' AND fits <> 1 OR schema ? 'anyOf' AND fits = 0 THEN
            RETURN format('%s fits %s of its possible forms, not one', path, fits);
        END IF;
    END IF;
    RETURN CASE jsonb_typeof(given)
        WHEN 'object' THEN gristmill.misfit_object(schema, given, root, path)
        WHEN 'array' THEN gristmill.misfit_list(schema, given, root, path)
        WHEN 'string' THEN gristmill.misfit_text(schema, given #>> '{}', path)
        WHEN 'number' THEN gristmill.misfit_number(schema, (given #>> '{}')::numeric, path)
    END;
END
$$;

CREATE FUNCTION gristmill.misfit_object(schema jsonb, given jsonb, root jsonb, path text)
RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    field record;
    missing text;
    fault text;
BEGIN
    SELECT string_agg(name, ', ') INTO missing
    FROM jsonb_array_elements_text(schema -> 'required') AS name WHERE NOT given ? name;
    IF missing IS NOT NULL THEN
        RETURN format('%s lacks %s', path, missing);
    END IF;
    FOR field IN SELECT f.name, f.held FROM jsonb_each(given) AS f (name, held) LOOP
        fault := gristmill.misfit(
            coalesce(schema #> ARRAY['properties', field.name], schema -> 'additionalProperties', 'true'),
            field.held, root, path || '.' || field.name);
        IF fault IS NOT NULL THEN RETURN fault; END IF;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE FUNCTION gristmill.misfit_list(schema jsonb, given jsonb, root jsonb, path text)
RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    item record;
    fault text;
BEGIN
    IF jsonb_array_length(given) < (schema ->> 'minItems')::numeric
       OR jsonb_array_length(given) > (schema ->> 'maxItems')::numeric THEN
        RETURN format('%s has %s items', path, jsonb_array_length(given));
    END IF;
    IF schema ? 'items' THEN
        FOR item IN SELECT e.held, e.n FROM jsonb_array_elements(given) WITH ORDINALITY AS e (held, n) LOOP
            fault := gristmill.misfit(schema -> 'items', item.held, root, format('%s[%s]', path, item.n - 1));
            IF fault IS NOT NULL THEN RETURN fault; END IF;
        END LOOP;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION gristmill.misfit_text(schema jsonb, given text, path text)
RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF schema ->> 'format' = 'uuid' AND given !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN
        RETURN format('%s is no uuid', path);
    ELSIF length(given) < (schema ->> 'minLength')::numeric OR length(given) > (schema ->> 'maxLength')::numeric THEN
        RETURN format('%s has %s characters', path, length(given));
    ELSIF given !~ (schema ->> 'pattern') THEN
        RETURN format('%s does not match %s', path, schema ->> 'pattern');
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION gristmill.misfit_number(schema jsonb, given numeric, path text)
RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF given < (schema ->> 'minimum')::numeric OR given > (schema ->> 'maximum')::numeric
       OR given <= (schema ->> 'exclusiveMinimum')::numeric OR given >= (schema ->> 'exclusiveMaximum')::numeric THEN
        RETURN format('%s is %s, out of bounds', path, given);
    END IF;
    RETURN NULL;
END
$$;

-- Says what a kind is. A publisher that knows fewer migrations changes nothing.
CREATE FUNCTION gristmill.publish_kind(kind text, lane int, schema jsonb, schema_version bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    INSERT INTO gristmill.kinds AS k (kind, lane, schema, schema_version)
    VALUES (publish_kind.kind, publish_kind.lane, publish_kind.schema, publish_kind.schema_version)
    ON CONFLICT ON CONSTRAINT kinds_pkey DO UPDATE
    SET lane = excluded.lane, schema = excluded.schema, schema_version = excluded.schema_version, published_at = now()
    WHERE k.schema_version <= excluded.schema_version
      AND (k.lane, k.schema, k.schema_version) IS DISTINCT FROM (excluded.lane, excluded.schema, excluded.schema_version)
$$;

-- Refuses a kind that nobody knows and a payload that does not fit; answers with the lane.
CREATE FUNCTION gristmill.lane_of(kind text, payload jsonb) RETURNS smallint
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
    fault := gristmill.misfit(known.schema, payload);
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'the payload does not fit the kind "%": %', kind, fault
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = format('its JSON Schema: select schema from gristmill.kinds where kind = %L', kind);
    END IF;
    RETURN known.lane;
END
$$;

-- The root of the tree that a child of `parent` belongs to. Only the house's own jobs have
-- children in other workspaces.
CREATE FUNCTION gristmill.root_of(parent uuid, workspace uuid) RETURNS uuid
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, gristmill AS $$
DECLARE
    above record;
BEGIN
    SELECT coalesce(p.root_id, p.id) AS root, p.workspace_id INTO above FROM gristmill.jobs p WHERE p.id = parent;
    IF above.workspace_id NOT IN (workspace, '00000000-0000-0000-0000-000000000001') THEN
        RAISE EXCEPTION 'the parent % is a job of another workspace', parent USING ERRCODE = 'foreign_key_violation';
    END IF;
    -- A parent that was pruned already is the root as far as anybody can tell.
    RETURN coalesce(above.root, parent);
END
$$;

-- Whoever may enqueue may go on to: the grants of a function go with it.
SELECT set_config('gristmill.may_enqueue', coalesce(string_agg(DISTINCT g.grantee::regrole::text, ', '), ''), true)
FROM pg_proc p, LATERAL aclexplode(p.proacl) g
WHERE p.oid = 'gristmill.enqueue'::regproc AND g.grantee <> 0;
DROP FUNCTION gristmill.enqueue;

-- Queues a job in the caller's transaction. A key that is taken answers with its job
-- (is_new = false) and leaves the transaction usable. A key is taken until its job is over,
-- and with `unique_for` for that long from now as well ('1000 years' is for ever).
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
    unique_for interval DEFAULT NULL,
    OUT job_id uuid,
    OUT is_new boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
#variable_conflict use_column
DECLARE
    lane smallint := gristmill.lane_of(enqueue.kind, enqueue.payload);
    new_id uuid := gristmill.uuid7();
    due boolean := coalesce(enqueue.run_at, now()) <= now();
BEGIN
    IF workspace IS NULL THEN
        RAISE EXCEPTION 'a job needs a workspace' USING ERRCODE = 'not_null_violation',
            HINT = 'pass workspace => ..., or set gristmill.workspace for the transaction';
    END IF;
    IF enqueue.key IS NOT NULL AND unique_for IS NOT NULL THEN
        INSERT INTO gristmill.job_keys AS k (workspace_id, kind, key, job_id, until)
        VALUES (workspace, enqueue.kind, enqueue.key, new_id, now() + unique_for)
        ON CONFLICT (workspace_id, kind, key) DO UPDATE SET job_id = excluded.job_id, until = excluded.until
        WHERE k.until <= now()
        RETURNING k.job_id INTO job_id;
        IF job_id IS NULL THEN
            is_new := false;
            SELECT k.job_id INTO job_id FROM gristmill.job_keys k
            WHERE k.workspace_id = workspace AND k.kind = enqueue.kind AND k.key = enqueue.key;
            RETURN;
        END IF;
    ELSIF enqueue.key IS NOT NULL THEN
        SELECT k.job_id INTO job_id FROM gristmill.job_keys k
        WHERE k.workspace_id = workspace AND k.kind = enqueue.kind AND k.key = enqueue.key AND k.until > now();
        IF FOUND THEN
            is_new := false;
            RETURN;
        END IF;
    END IF;
    -- The job that holds the key may end between the two statements: then the key is free again.
    FOR try IN 1..5 LOOP
        INSERT INTO gristmill.jobs AS j
            (id, workspace_id, kind, lane, priority, state, max_attempts, payload, unique_key, run_at, parent_id, root_id)
        VALUES (
            new_id, workspace, enqueue.kind, lane, coalesce(enqueue.priority, 0),
            CASE WHEN due THEN 'WAITING' ELSE 'SCHEDULED' END::gristmill.job_state,
            coalesce(enqueue.max_attempts, 10), enqueue.payload, enqueue.key, coalesce(enqueue.run_at, now()), enqueue.parent,
            CASE WHEN enqueue.parent IS NOT NULL THEN gristmill.root_of(enqueue.parent, workspace) END)
        ON CONFLICT (workspace_id, kind, unique_key)
            WHERE unique_key IS NOT NULL AND state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')
            DO NOTHING
        RETURNING j.id INTO job_id;
        IF job_id IS NOT NULL THEN
            is_new := true;
            -- Bulk work is found by polling; a notification costs every commit (queue-wide lock).
            IF lane = 0 AND due THEN
                PERFORM pg_notify('gristmill_jobs', enqueue.kind);
            END IF;
            RETURN;
        END IF;
        SELECT j.id INTO job_id FROM gristmill.jobs j
        WHERE j.workspace_id = workspace AND j.kind = enqueue.kind AND j.unique_key = enqueue.key
          AND j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED');
        IF job_id IS NOT NULL THEN
            is_new := false;
            IF unique_for IS NOT NULL THEN
                UPDATE gristmill.job_keys k SET job_id = enqueue.job_id
                WHERE k.workspace_id = workspace AND k.kind = enqueue.kind AND k.key = enqueue.key;
            END IF;
            RETURN;
        END IF;
    END LOOP;
    RAISE EXCEPTION 'the key % of % changes hands too fast', enqueue.key, enqueue.kind
        USING ERRCODE = 'serialization_failure', HINT = 'try again';
END
$$;

-- Queues many jobs in one statement: a JSON array of objects whose fields are enqueue's
-- arguments, and `delay` (an interval) in place of run_at. All or none; the answers are in the array's order (ord from 1).
CREATE FUNCTION gristmill.enqueue_many(jobs jsonb, workspace uuid DEFAULT gristmill.current_workspace())
RETURNS TABLE (ord int, job_id uuid, is_new boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
#variable_conflict use_column
DECLARE
    asked record;
    bell boolean := false;
BEGIN
    IF jsonb_typeof(jobs) <> 'array' THEN
        RAISE EXCEPTION 'enqueue_many wants a JSON array of jobs' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR asked IN
        WITH wish AS MATERIALIZED (
            SELECT w.*, gristmill.uuid7() AS new_id, gristmill.lane_of(w.kind, w.payload) AS lane,
                   coalesce(w.workspace, enqueue_many.workspace) AS of_workspace,
                   coalesce(w.run_at, now() + w.delay, now()) AS at
            FROM ROWS FROM (jsonb_to_recordset(jobs) AS (
                kind text, payload jsonb, key text, workspace uuid, priority int, run_at timestamptz, delay interval,
                max_attempts int, parent uuid, unique_for interval)) WITH ORDINALITY
                AS w (kind, payload, key, workspace, priority, run_at, delay, max_attempts, parent, unique_for, ord)),
        made AS (
            INSERT INTO gristmill.jobs AS j
                (id, workspace_id, kind, lane, priority, state, max_attempts, payload, unique_key, run_at, parent_id, root_id)
            SELECT w.new_id, w.of_workspace, w.kind, w.lane, coalesce(w.priority, 0),
                   CASE WHEN w.at <= now() THEN 'WAITING' ELSE 'SCHEDULED' END::gristmill.job_state,
                   coalesce(w.max_attempts, 10), w.payload, w.key, w.at, w.parent,
                   CASE WHEN w.parent IS NOT NULL THEN gristmill.root_of(w.parent, w.of_workspace) END
            FROM wish w
            WHERE w.unique_for IS NULL AND w.of_workspace IS NOT NULL AND NOT EXISTS (
                SELECT FROM gristmill.job_keys k WHERE k.workspace_id = w.of_workspace AND k.kind = w.kind
                    AND k.key = w.key AND k.until > now())
            -- Two batches over the same keys take them in the same order.
            ORDER BY w.of_workspace, w.kind, w.key, w.ord
            ON CONFLICT (workspace_id, kind, unique_key)
                WHERE unique_key IS NOT NULL AND state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED')
                DO NOTHING
            RETURNING j.id)
        SELECT w.*, m.id AS made FROM wish w LEFT JOIN made m ON m.id = w.new_id ORDER BY w.ord
    LOOP
        ord := asked.ord;
        IF asked.made IS NOT NULL THEN
            job_id := asked.made;
            is_new := true;
            bell := bell OR asked.lane = 0 AND asked.at <= now();
        ELSE
            -- Its key was taken, or is to outlive its job: one by one.
            SELECT e.job_id, e.is_new INTO job_id, is_new FROM gristmill.enqueue(
                asked.kind, asked.payload, asked.key, asked.of_workspace, asked.priority, asked.at,
                asked.max_attempts, asked.parent, asked.unique_for) e;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF bell THEN
        PERFORM pg_notify('gristmill_jobs', 'many');
    END IF;
END
$$;

DROP FUNCTION gristmill.claim;

-- Takes up to `want` due jobs of one lane. It goes round the workspaces from where the caller
-- left off (`after`, with `credit` turns left there); each gets weight x quantum turns a round,
-- more from round to round, so that places left over go to whoever has work. The cost does not grow with
-- the backlog: each step is a probe into an index, and at most 200 workspaces are visited.
-- Claims of one lane go one after the other, which is what makes the caps exact; the lock is
-- held for this statement, never for a worker's pleasure. Every row carries where the round
-- stopped; the one without an id says that nothing was taken.
CREATE FUNCTION gristmill.claim(
    by_worker text, of_lane int, of_kinds text[], want int, lease interval, workspace_cap int, after uuid, credit int
) RETURNS TABLE (
    id uuid, workspace_id uuid, kind text, payload jsonb, attempts int, max_attempts int, epoch int,
    reason text, cancel boolean, place uuid, turns_left int
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, gristmill
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    quantum int := greatest(1, want / 8);
    -- For each kind asked for: how many more may be at work.
    rooms bigint[];
    room bigint;
    weight int;
    picked record;
    taken uuid[] := '{}';
    taken_kinds text[] := '{}';
    taken_places uuid[] := '{}';
    -- Where this claim began its first round.
    first uuid;
    -- Where a round without any yield began: back there, everybody was asked.
    barren uuid;
    visits int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('gristmill.claim', of_lane));
    -- What has become due joins those who wait.
    UPDATE gristmill.jobs j SET state = 'WAITING'
    WHERE j.id = ANY (ARRAY(
        SELECT s.id FROM gristmill.jobs s WHERE s.state = 'SCHEDULED' AND s.run_at <= now()
        ORDER BY s.run_at LIMIT 500 FOR UPDATE SKIP LOCKED));
    rooms := ARRAY(
        SELECT CASE WHEN k.in_flight_cap IS NULL THEN want ELSE k.in_flight_cap - (
                   SELECT count(*) FROM gristmill.jobs r WHERE r.state = 'RUNNING' AND r.kind = k.kind) END
        FROM unnest(of_kinds) WITH ORDINALITY AS asked (kind, n)
        LEFT JOIN gristmill.kinds k ON k.kind = asked.kind ORDER BY asked.n);

    place := after;
    turns_left := credit;
    WHILE cardinality(taken) < want AND visits < 200 LOOP
        visits := visits + 1;
        IF turns_left <= 0 THEN
            place := coalesce(
                (SELECT j.workspace_id FROM gristmill.jobs j
                 WHERE j.state = 'WAITING' AND j.lane = of_lane AND j.workspace_id > place
                 ORDER BY j.workspace_id LIMIT 1),
                (SELECT j.workspace_id FROM gristmill.jobs j
                 WHERE j.state = 'WAITING' AND j.lane = of_lane ORDER BY j.workspace_id LIMIT 1));
            EXIT WHEN place IS NULL OR place = barren;
            IF place = first THEN
                quantum := 2 * quantum;
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
        SELECT coalesce(array_agg(t.id), '{}') AS ids, coalesce(array_agg(t.kind), '{}') AS kinds INTO picked
        FROM (
            SELECT next.id, next.kind
            FROM unnest(of_kinds, rooms) AS open (kind, kind_room),
                 LATERAL (
                    SELECT j.id, j.kind, j.turn FROM gristmill.jobs j
                    WHERE j.state = 'WAITING' AND j.lane = of_lane AND j.workspace_id = place AND j.kind = open.kind
                      AND NOT j.id = ANY (taken)
                    ORDER BY j.turn
                    LIMIT greatest(0, least(room, open.kind_room - cardinality(array_positions(taken_kinds, open.kind))))
                    FOR UPDATE SKIP LOCKED) AS next
            ORDER BY next.turn LIMIT room) AS t;
        IF cardinality(picked.ids) = 0 THEN
            turns_left := 0;
            barren := coalesce(barren, place);
            CONTINUE;
        END IF;
        taken := taken || picked.ids;
        taken_kinds := taken_kinds || picked.kinds;
        taken_places := taken_places || array_fill(place, ARRAY[cardinality(picked.ids)]);
        -- One that had fewer than its turns has nothing left for now.
        turns_left := CASE WHEN cardinality(picked.ids) < room THEN 0 ELSE turns_left - cardinality(picked.ids) END;
        barren := NULL;
    END LOOP;

    place := coalesce(place, after);
    IF cardinality(taken) = 0 THEN
        RETURN NEXT;
        RETURN;
    END IF;
    RETURN QUERY
    UPDATE gristmill.jobs j SET
        state = 'RUNNING', worker = by_worker, epoch = j.epoch + 1, attempts = j.attempts + 1,
        lease_until = clock_timestamp() + lease, started_at = clock_timestamp()
    WHERE j.id = ANY (taken)
    RETURNING j.id, j.workspace_id, j.kind, j.payload, j.attempts::int, j.max_attempts::int, j.epoch, j.reason,
              j.cancel_requested, claim.place, claim.turns_left;
END
$$;

-- Asks for a job's end. One at work learns of it at once; one that waits is claimed once more,
-- before all others of its workspace, so that its subject learns why. Answers with the state
-- it was found in, or NULL where there is no such job (of the tenant, where one is set).
CREATE FUNCTION gristmill.cancel(job uuid) RETURNS gristmill.job_state
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
DECLARE
    found_state gristmill.job_state;
BEGIN
    SELECT state INTO found_state FROM gristmill.jobs
    WHERE id = job AND workspace_id = coalesce(gristmill.current_workspace(), workspace_id) FOR UPDATE;
    IF found_state IN ('SCHEDULED', 'WAITING', 'PARKED') THEN
        UPDATE gristmill.jobs
        SET cancel_requested = true, state = 'WAITING', run_at = least(run_at, now()), priority = 32767
        WHERE id = job;
    ELSIF found_state = 'RUNNING' THEN
        UPDATE gristmill.jobs SET cancel_requested = true WHERE id = job;
    ELSE
        RETURN found_state;
    END IF;
    PERFORM pg_notify('gristmill_jobs', 'cancel ' || job);
    RETURN found_state;
END
$$;

DROP FUNCTION gristmill.bury;

-- Lays a job among the dead, or the cancelled, inside the transaction that tells its subject why.
CREATE FUNCTION gristmill.bury(job uuid, at_epoch int, why text, as_state gristmill.job_state DEFAULT 'DEAD') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE gristmill.jobs SET state = as_state, lease_until = NULL, reason = why,
        attempts = least(attempts, max_attempts), finished_at = clock_timestamp()
    WHERE id = job AND epoch = at_epoch AND state = 'RUNNING';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of job % has moved on from epoch %', job, at_epoch
            USING ERRCODE = 'GM001';
    END IF;
END
$$;

-- A worker shows that it is there.
CREATE FUNCTION gristmill.report_worker(name text, host text, pid int, version text, kinds text[], places int) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    INSERT INTO gristmill.workers (name, host, pid, version, kinds, places)
    VALUES (report_worker.name, report_worker.host, report_worker.pid, report_worker.version,
            report_worker.kinds, report_worker.places)
    ON CONFLICT ON CONSTRAINT workers_pkey DO UPDATE SET last_seen = now()
$$;

-- Queue-internal: reached through the functions above, but for people who look.
ALTER TABLE gristmill.shares ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON gristmill.shares
    USING (workspace_id = gristmill.current_workspace()) WITH CHECK (workspace_id = gristmill.current_workspace());
ALTER TABLE gristmill.job_keys ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON gristmill.job_keys
    USING (workspace_id = gristmill.current_workspace()) WITH CHECK (workspace_id = gristmill.current_workspace());
GRANT SELECT ON gristmill.kinds, gristmill.shares, gristmill.job_keys, gristmill.workers TO gristmill_worker;
REVOKE EXECUTE ON FUNCTION gristmill.publish_kind, gristmill.lane_of, gristmill.root_of, gristmill.enqueue,
    gristmill.enqueue_many, gristmill.claim, gristmill.cancel, gristmill.bury, gristmill.report_worker FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.publish_kind, gristmill.lane_of, gristmill.root_of, gristmill.enqueue,
    gristmill.enqueue_many, gristmill.claim, gristmill.cancel, gristmill.bury, gristmill.report_worker TO gristmill_worker;
DO $$
BEGIN
    IF current_setting('gristmill.may_enqueue') <> '' THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION gristmill.enqueue, gristmill.enqueue_many, gristmill.cancel TO %s',
                       current_setting('gristmill.may_enqueue'));
    END IF;
END
$$;
