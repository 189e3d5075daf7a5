-- The life of a tool call, from the chat layer's word to its `tool` message; callable in any language.
--
--   call_tool      writes the call and its job, in the caller's transaction
--   approve_call, deny_call, cancel_call, resolve_unknown    a person's word on it
--   write_tool_messages    appends what is finished, in the order of the calls
--
-- Locks are taken in one order by all: the job, the call, the conversation. So a transaction of the
-- chat layer says a person's word on its calls before it writes messages of their conversation. Every
-- change of a state writes its event in the same transaction, by trigger, whoever made it.
--
-- Who may talk to an agent is the chat layer's word (user_agents): whoever may write an assistant's
-- message of that agent may have it call the agent's tools. The worker asks agent_tools, user_tools
-- and the role's policies, and never user_agents.

CREATE TYPE gristmill.tool_decision AS ENUM ('allow', 'ask', 'deny');

-- Calls of one message at work at once; NULL: tools.parallel_calls of the settings.
ALTER TABLE gristmill.agents ADD COLUMN parallel_calls int CHECK (parallel_calls > 0);

ALTER TABLE gristmill.tools
    -- Only users who have it in user_tools may call it.
    ADD COLUMN per_user boolean NOT NULL DEFAULT false,
    -- How long it may be silent, and how long a call may take in all; NULL: the settings.
    ADD COLUMN idle_seconds int CHECK (idle_seconds BETWEEN 1 AND 3600),
    ADD COLUMN total_seconds int CHECK (total_seconds BETWEEN 1 AND 3600),
    -- The worker's own tool. Rows from before are let be: the built-in one goes first.
    ADD CONSTRAINT name_is_not_built_in CHECK (name <> 'read_result') NOT VALID;

-- What becomes of calls without asking anybody, and what must be asked. The first that fits decides:
-- by `ord`, one of the tool before one of all tools.
CREATE TABLE gristmill.tool_policies (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    -- NULL: all tools.
    tool_id      uuid,
    ord          int NOT NULL DEFAULT 0,
    -- A JSON Schema that the arguments must fit; NULL: any arguments.
    arguments    jsonb CHECK (jsonb_typeof(arguments) IN ('object', 'boolean')),
    decision     gristmill.tool_decision NOT NULL,
    -- The effect of such a call, where it is not the tool's own.
    effect       gristmill.tool_effect,
    note         text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (workspace_id, tool_id) REFERENCES gristmill.tools (workspace_id, id) ON DELETE CASCADE
);
CREATE INDEX tool_policies_by_tool ON gristmill.tool_policies (workspace_id, tool_id, ord);
ALTER TABLE gristmill.tool_policies ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON gristmill.tool_policies
    USING (workspace_id = gristmill.current_workspace()) WITH CHECK (workspace_id = gristmill.current_workspace());
GRANT SELECT ON gristmill.tool_policies TO gristmill_worker;

ALTER TABLE gristmill.tool_calls
    -- A person ordered one more start of what may have been done already; the next start uses it up.
    ADD COLUMN ordered boolean NOT NULL DEFAULT false,
    ADD COLUMN ordered_by uuid,
    -- How often a lost job was replaced.
    ADD COLUMN revived smallint NOT NULL DEFAULT 0,
    -- Why it was called off while its server works on it: the worker tells the server, and ends it.
    ADD COLUMN called_off text CHECK (called_off <> ''),
    ADD FOREIGN KEY (workspace_id, ordered_by) REFERENCES gristmill.users (workspace_id, id) ON DELETE SET NULL (ordered_by);
CREATE INDEX tool_calls_by_orderer ON gristmill.tool_calls (ordered_by);
CREATE INDEX tool_calls_by_expiry ON gristmill.tool_calls (expires_at) WHERE expires_at IS NOT NULL;

-- An attempt that surely never reached the other side may be made again, whatever the tool does.
ALTER TABLE gristmill.tool_attempts
    ADD COLUMN unsent boolean NOT NULL DEFAULT false,
    -- The other side works on it under this name: whoever takes the job up asks for it there.
    ADD COLUMN task text CHECK (task <> ''),
    ADD CONSTRAINT unsent_is_an_error CHECK (NOT unsent OR (outcome IS NOT NULL AND outcome = 'ERROR'));
DROP INDEX gristmill.tool_attempts_effectful_once;
CREATE UNIQUE INDEX tool_attempts_effectful_once ON gristmill.tool_attempts (call_id)
    WHERE effect = 'effectful' AND NOT ordered AND NOT unsent;

-- As before, and a call that was started when it was taken for harmless, whose outcome is not known,
-- and that counts as effectful now: REQUESTED > UNKNOWN.
CREATE OR REPLACE FUNCTION gristmill.tool_call_edge(
    old_state gristmill.tool_call_state, new_state gristmill.tool_call_state
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT (old_state, new_state) IN (
        ('REQUESTED', 'STARTED'), ('STARTED', 'OK'), ('STARTED', 'ERROR'), ('STARTED', 'UNKNOWN'),
        ('STARTED', 'CANCELLED'), ('STARTED', 'REQUESTED'), ('STARTED', 'NEEDS_AUTH'),
        ('REQUESTED', 'NEEDS_APPROVAL'), ('REQUESTED', 'NEEDS_AUTH'), ('REQUESTED', 'BUDGET'),
        ('REQUESTED', 'ERROR'), ('REQUESTED', 'DENIED'), ('REQUESTED', 'CANCELLED'), ('REQUESTED', 'UNKNOWN'),
        ('NEEDS_APPROVAL', 'REQUESTED'), ('NEEDS_APPROVAL', 'DENIED'), ('NEEDS_APPROVAL', 'CANCELLED'),
        ('NEEDS_AUTH', 'REQUESTED'), ('NEEDS_AUTH', 'DENIED'), ('NEEDS_AUTH', 'CANCELLED'),
        ('BUDGET', 'REQUESTED'), ('BUDGET', 'DENIED'), ('BUDGET', 'CANCELLED'),
        ('UNKNOWN', 'REQUESTED'), ('UNKNOWN', 'OK'), ('UNKNOWN', 'ERROR'))
$$;

ALTER TABLE gristmill.tool_results
    ADD COLUMN is_error boolean NOT NULL DEFAULT false,
    -- The `tool` message's content: the view, and what is no text.
    ADD COLUMN blocks jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(blocks) = 'array'),
    -- The view is not the whole; the rest is read by `read_result`.
    ADD COLUMN truncated boolean NOT NULL DEFAULT false,
    -- A complete result that lies in the bucket, as the conversation knows it.
    ADD COLUMN resource_id uuid,
    -- When its message was written; a message may be removed later and is not written again.
    ADD COLUMN answered_at timestamptz,
    ADD FOREIGN KEY (workspace_id, resource_id) REFERENCES gristmill.resources (workspace_id, id) ON DELETE SET NULL (resource_id);
CREATE INDEX tool_results_by_resource ON gristmill.tool_results (resource_id);

-- What approvals are bound to: the sha256 of the arguments as `jsonb` writes them, which is one
-- text for equal arguments: keys sorted, each once, no blanks of the writer's.
CREATE FUNCTION gristmill.arguments_digest(arguments jsonb) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
    SELECT sha256(convert_to(arguments::text, 'UTF8'))
$$;

-- Tells every state a call comes to.
CREATE FUNCTION gristmill.tell_tool_call() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.state = OLD.state THEN
        RETURN NULL;
    END IF;
    INSERT INTO gristmill.events (workspace_id, type, subject, subject_id, body)
    VALUES (
        NEW.workspace_id,
        'tool_call.' || CASE
            WHEN TG_OP = 'INSERT' OR NEW.state <> 'REQUESTED' THEN lower(NEW.state::text)
            WHEN OLD.state = 'NEEDS_APPROVAL' AND EXISTS (
                SELECT FROM gristmill.tool_approvals a
                WHERE a.call_id = NEW.id AND a.decision = 'APPROVED' AND a.expires_at > now()
                  AND a.arguments_sha256 = NEW.arguments_sha256) THEN 'approved'
            WHEN OLD.state = 'STARTED' THEN 'retried'
            WHEN OLD.state = 'UNKNOWN' THEN 'ordered'
            ELSE 'resumed' END,
        'tool_call', NEW.id,
        jsonb_strip_nulls(jsonb_build_object(
            'tool', NEW.tool_name, 'tool_call_id', NEW.tool_call_id, 'conversation', NEW.conversation_id,
            'message', NEW.message_id, 'ord', NEW.ord, 'reason', NEW.reason, 'expires_at', NEW.expires_at)));
    RETURN NULL;
END
$$;
CREATE TRIGGER tool_calls_tell AFTER INSERT OR UPDATE OF state ON gristmill.tool_calls
    FOR EACH ROW EXECUTE FUNCTION gristmill.tell_tool_call();

-- Asks for a call that an assistant's message made, in the caller's transaction. `tool` is a tool's
-- name, id or external id; a name that no tool has is answered to the model. Asked again with the
-- same message and tool_call_id, it answers with the call that is there.
CREATE FUNCTION gristmill.call_tool(
    message uuid,
    tool_call_id text,
    tool text,
    arguments jsonb DEFAULT '{}',
    -- Its place among the message's calls; the next one.
    ord int DEFAULT NULL,
    -- For whom and as which agent, where not as the conversation says.
    as_user uuid DEFAULT NULL,
    as_agent uuid DEFAULT NULL,
    external_id text DEFAULT NULL,
    OUT call_id uuid,
    OUT job_id uuid,
    OUT is_new boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
#variable_conflict use_column
DECLARE
    asker record;
    digest bytea := gristmill.arguments_digest(coalesce(call_tool.arguments, '{}'));
    known record;
BEGIN
    SELECT m.workspace_id, m.conversation_id, m.role INTO asker FROM gristmill.messages m
    WHERE m.id = call_tool.message AND m.workspace_id = coalesce(gristmill.current_workspace(), m.workspace_id);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no message %', call_tool.message USING ERRCODE = 'invalid_parameter_value';
    ELSIF asker.role <> 'assistant' THEN
        RAISE EXCEPTION 'message % is of role %: only an assistant''s message calls tools', call_tool.message, asker.role
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Calls of one message get their places one after the other.
    PERFORM FROM gristmill.conversations c WHERE c.id = asker.conversation_id FOR NO KEY UPDATE;
    INSERT INTO gristmill.tool_calls AS x
        (workspace_id, external_id, conversation_id, message_id, tool_call_id, ord, tool_id, tool_name,
         user_id, agent_id, arguments, arguments_sha256)
    SELECT asker.workspace_id, call_tool.external_id, asker.conversation_id, call_tool.message, call_tool.tool_call_id,
           coalesce(call_tool.ord, (SELECT max(o.ord) + 1 FROM gristmill.tool_calls o WHERE o.message_id = call_tool.message), 0),
           t.id, coalesce(t.name, call_tool.tool), coalesce(call_tool.as_user, c.user_id),
           coalesce(call_tool.as_agent, c.agent_id), coalesce(call_tool.arguments, '{}'), digest
    FROM gristmill.conversations c
    LEFT JOIN LATERAL (
        SELECT f.id, f.name FROM gristmill.tools f
        WHERE f.workspace_id = asker.workspace_id AND call_tool.tool <> 'read_result'
          AND (f.name = call_tool.tool OR f.external_id = call_tool.tool OR f.id::text = lower(call_tool.tool))
        ORDER BY f.name = call_tool.tool DESC, f.external_id IS NOT DISTINCT FROM call_tool.tool DESC LIMIT 1) t ON true
    WHERE c.id = asker.conversation_id
    ON CONFLICT (message_id, tool_call_id) DO NOTHING
    RETURNING x.id INTO call_id;
    is_new := call_id IS NOT NULL;
    IF is_new THEN
        SELECT e.job_id INTO job_id FROM gristmill.enqueue(
            'tool_call', jsonb_build_object('call', call_id), key => call_id::text,
            workspace => asker.workspace_id, max_attempts => 4) e;
        RETURN;
    END IF;
    -- The tool may have been renamed since: any of its names is the same call.
    SELECT x.id, x.arguments_sha256, x.tool_name, call_tool.tool = x.tool_name
           OR call_tool.tool IN (f.name, f.external_id) OR lower(call_tool.tool) = x.tool_id::text AS is_its_tool
    INTO known FROM gristmill.tool_calls x LEFT JOIN gristmill.tools f ON f.id = x.tool_id
    WHERE x.message_id = call_tool.message AND x.tool_call_id = call_tool.tool_call_id;
    call_id := known.id;
    IF known.arguments_sha256 <> digest THEN
        RAISE EXCEPTION 'call % of message % was asked for with other arguments', call_tool.tool_call_id, call_tool.message
            USING ERRCODE = 'invalid_parameter_value', HINT = 'a changed call needs a tool_call_id of its own';
    ELSIF known.is_its_tool IS NOT TRUE THEN
        RAISE EXCEPTION 'call % of message % was asked for of another tool, %', call_tool.tool_call_id, call_tool.message,
            known.tool_name
            USING ERRCODE = 'invalid_parameter_value', HINT = 'a changed call needs a tool_call_id of its own';
    END IF;
    SELECT j.id INTO job_id FROM gristmill.jobs j
    WHERE j.workspace_id = asker.workspace_id AND j.kind = 'tool_call' AND j.unique_key = call_id::text
    ORDER BY j.id DESC LIMIT 1;
END
$$;

-- All calls of one message: a JSON array of {tool_call_id, tool, arguments, external_id}, in the
-- order in which the model made them and their answers will stand.
CREATE FUNCTION gristmill.call_tools(
    message uuid, calls jsonb, as_user uuid DEFAULT NULL, as_agent uuid DEFAULT NULL
) RETURNS TABLE (ord int, call_id uuid, job_id uuid, is_new boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF jsonb_typeof(calls) <> 'array' THEN
        RAISE EXCEPTION 'call_tools wants a JSON array of calls' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY
    SELECT (w.n - 1)::int, made.call_id, made.job_id, made.is_new
    FROM ROWS FROM (jsonb_to_recordset(calls) AS (
             tool_call_id text, tool text, arguments jsonb, external_id text)) WITH ORDINALITY
             AS w (tool_call_id, tool, arguments, external_id, n),
         LATERAL gristmill.call_tool(
             call_tools.message, w.tool_call_id, w.tool, w.arguments, (w.n - 1)::int,
             call_tools.as_user, call_tools.as_agent, w.external_id) made;
END
$$;

-- Appends the `tool` messages of the calls that are finished, in the order of the calls: one that
-- ended before its elders waits for them here, as a row, and the last of them writes it too. Lets
-- the next call that waits for a place among its siblings come. Answers how many were written.
CREATE FUNCTION gristmill.write_tool_messages(message uuid) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    asker record;
    c record;
    made record;
    written int := 0;
BEGIN
    SELECT m.workspace_id, m.conversation_id INTO asker FROM gristmill.messages m
    WHERE m.id = write_tool_messages.message
      AND m.workspace_id = coalesce(gristmill.current_workspace(), m.workspace_id);
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    -- Those that end at once come here one after the other, and each sees what the others wrote.
    PERFORM FROM gristmill.conversations x WHERE x.id = asker.conversation_id FOR NO KEY UPDATE;
    FOR c IN
        SELECT x.*, r.id AS result_id, r.answered_at, r.view, r.blocks, r.is_error, r.truncated, r.size,
               count(*) FILTER (WHERE r.answered_at IS NULL) OVER (ORDER BY x.ord DESC, x.id DESC) - 1 AS still_open
        FROM gristmill.tool_calls x LEFT JOIN gristmill.tool_results r ON r.call_id = x.id
        WHERE x.message_id = write_tool_messages.message ORDER BY x.ord, x.id
    LOOP
        EXIT WHEN c.result_id IS NULL;
        CONTINUE WHEN c.answered_at IS NOT NULL;
        INSERT INTO gristmill.messages
            (workspace_id, conversation_id, role, content, content_text, assistant_message_id, tool_call_id, metadata)
        VALUES (
            c.workspace_id, c.conversation_id, 'tool', c.blocks, c.view, c.message_id, c.tool_call_id,
            jsonb_build_object('call', c.id, 'tool', c.tool_name, 'state', c.state, 'is_error', c.is_error,
                               'result', c.result_id, 'size', c.size, 'truncated', c.truncated, 'untrusted', true))
        RETURNING id, serial_number INTO made;
        UPDATE gristmill.tool_results SET message_id = made.id, answered_at = clock_timestamp() WHERE id = c.result_id;
        INSERT INTO gristmill.events (workspace_id, type, subject, subject_id, body)
        VALUES (c.workspace_id, 'tool_call.answered', 'tool_call', c.id,
                jsonb_build_object('conversation', c.conversation_id, 'message', c.message_id, 'tool_message', made.id,
                                   'serial_number', made.serial_number, 'still_open', c.still_open));
        written := written + 1;
    END LOOP;
    -- Held rows are not waited for: a call that waits for its place looks again by itself.
    UPDATE gristmill.jobs SET run_at = clock_timestamp()
    WHERE id = ANY (ARRAY(
        SELECT j.id FROM gristmill.tool_calls x
        JOIN gristmill.jobs j ON j.workspace_id = x.workspace_id AND j.kind = 'tool_call' AND j.unique_key = x.id::text
        WHERE x.message_id = write_tool_messages.message AND x.state = 'REQUESTED'
          AND j.state = 'SCHEDULED' AND j.reason LIKE 'siblings:%'
        ORDER BY x.ord LIMIT 1 FOR UPDATE OF j SKIP LOCKED));
    IF FOUND THEN
        PERFORM pg_notify('gristmill_jobs', 'tool_call');
    END IF;
    RETURN written;
END
$$;

-- Holds a call, and its job before it, as workers do. Without patience a held one is left alone: NULL.
CREATE FUNCTION gristmill.hold_tool_call(call uuid, patient boolean DEFAULT true) RETURNS gristmill.tool_calls
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    held gristmill.tool_calls;
    job uuid;
BEGIN
    SELECT * INTO held FROM gristmill.tool_calls x
    WHERE x.id = call AND x.workspace_id = coalesce(gristmill.current_workspace(), x.workspace_id);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no tool call %', call USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT j.id INTO job FROM gristmill.jobs j
    WHERE j.workspace_id = held.workspace_id AND j.kind = 'tool_call' AND j.unique_key = call::text
      AND j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED');
    IF patient THEN
        PERFORM FROM gristmill.jobs j WHERE j.id = job FOR NO KEY UPDATE;
        SELECT * INTO held FROM gristmill.tool_calls x WHERE x.id = call FOR NO KEY UPDATE;
        RETURN held;
    END IF;
    IF job IS NOT NULL THEN
        PERFORM FROM gristmill.jobs j WHERE j.id = job FOR NO KEY UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    SELECT * INTO held FROM gristmill.tool_calls x WHERE x.id = call FOR NO KEY UPDATE SKIP LOCKED;
    RETURN held;
END
$$;

-- Has a worker look at the call again: wakes its job, or queues another where it has none.
CREATE FUNCTION gristmill.wake_tool_call(held gristmill.tool_calls) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    job uuid;
BEGIN
    SELECT j.id INTO job FROM gristmill.jobs j
    WHERE j.workspace_id = held.workspace_id AND j.kind = 'tool_call' AND j.unique_key = held.id::text
      AND j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED');
    IF FOUND THEN
        PERFORM gristmill.unpark(job);
        RETURN job;
    END IF;
    SELECT e.job_id INTO job FROM gristmill.enqueue(
        'tool_call', jsonb_build_object('call', held.id), key => held.id::text,
        workspace => held.workspace_id, max_attempts => 4) e;
    RETURN job;
END
$$;

-- Whether a start of a call, other than `besides`, may have had an effect that nobody knows of.
CREATE FUNCTION gristmill.may_be_done(call uuid, besides uuid DEFAULT NULL) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, gristmill, pg_temp AS $$
    SELECT EXISTS (SELECT FROM gristmill.tool_attempts a
                   WHERE a.call_id = call AND a.id IS DISTINCT FROM besides AND a.effect = 'effectful' AND NOT a.unsent
                     AND (a.outcome IS NULL OR a.outcome = 'UNKNOWN'))
$$;

-- Ends a call without its tool's word: the model reads `why`. Where nobody has said what became of
-- a start, the model is not left to believe that nothing was done.
CREATE FUNCTION gristmill.end_tool_call(held gristmill.tool_calls, as_state gristmill.tool_call_state, why text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    says text;
    given jsonb;
BEGIN
    IF held.workspace_id <> coalesce(gristmill.current_workspace(), held.workspace_id) THEN
        RAISE EXCEPTION 'there is no tool call %', held.id USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- What ends an UNKNOWN call speaks of that itself.
    IF held.state <> 'UNKNOWN' AND gristmill.may_be_done(held.id) THEN
        why := why || '; it may have been done all the same: how a start of it ended is not known';
    END IF;
    says := format('[from the house, about the tool %s: %s] %s', held.tool_name, as_state, why);
    given := jsonb_build_object('content', jsonb_build_array(jsonb_build_object('type', 'text', 'text', says)),
                                'isError', as_state <> 'OK');
    UPDATE gristmill.tool_attempts SET
        outcome = CASE WHEN as_state = 'DENIED' THEN 'CANCELLED' ELSE as_state END, failure = why,
        finished_at = clock_timestamp()
    WHERE call_id = held.id AND workspace_id = held.workspace_id AND outcome IS NULL;
    UPDATE gristmill.tool_calls SET
        state = as_state, reason = why, finished_at = coalesce(finished_at, clock_timestamp()), expires_at = NULL,
        ordered = false
    WHERE id = held.id AND workspace_id = held.workspace_id;
    INSERT INTO gristmill.tool_results (workspace_id, call_id, result, sha256, size, view, error, is_error, blocks)
    VALUES (held.workspace_id, held.id, given, sha256(convert_to(given::text, 'UTF8')),
            octet_length(given::text), says, CASE WHEN as_state <> 'OK' THEN why END, as_state <> 'OK', given -> 'content');
    PERFORM gristmill.write_tool_messages(held.message_id);
END
$$;

-- A person's yes to a parked call, bound to the arguments: given the digest of those the person
-- saw, other arguments are refused. Answers the id of the approval.
CREATE FUNCTION gristmill.approve_call(
    call uuid, by_user uuid DEFAULT NULL, arguments_sha256 bytea DEFAULT NULL, valid_for interval DEFAULT '24 hours'
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
#variable_conflict use_column
DECLARE
    held gristmill.tool_calls := gristmill.hold_tool_call(call);
    approval uuid;
BEGIN
    IF held.state <> 'NEEDS_APPROVAL' THEN
        RAISE EXCEPTION 'tool call % is %: there is nothing to approve', call, held.state
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = CASE held.state WHEN 'UNKNOWN' THEN 'use gristmill.resolve_unknown' ELSE 'only a call that is NEEDS_APPROVAL waits for a yes' END;
    ELSIF held.expires_at <= now() THEN
        RAISE EXCEPTION 'tool call % waited too long: its time was over at %', call, held.expires_at
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'ask for the call anew';
    ELSIF approve_call.arguments_sha256 <> held.arguments_sha256 THEN
        RAISE EXCEPTION 'the arguments of tool call % are not the ones that were approved', call
            USING ERRCODE = 'check_violation', HINT = 'look at the call again: gristmill tool log';
    END IF;
    INSERT INTO gristmill.tool_approvals AS a (workspace_id, call_id, arguments_sha256, decision, decided_by, expires_at)
    VALUES (held.workspace_id, call, held.arguments_sha256, 'APPROVED', by_user, now() + valid_for)
    RETURNING a.id INTO approval;
    UPDATE gristmill.tool_calls x SET state = 'REQUESTED', reason = NULL, expires_at = NULL WHERE x.id = call;
    PERFORM gristmill.wake_tool_call(held);
    RETURN approval;
END
$$;

-- A person's no to a call that has not started.
CREATE FUNCTION gristmill.deny_call(call uuid, by_user uuid DEFAULT NULL, reason text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
#variable_conflict use_column
DECLARE
    held gristmill.tool_calls := gristmill.hold_tool_call(call);
BEGIN
    IF held.state NOT IN ('REQUESTED', 'NEEDS_APPROVAL', 'NEEDS_AUTH', 'BUDGET') THEN
        RAISE EXCEPTION 'tool call % is %: it cannot be denied any more', call, held.state
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'one at work can be cancelled';
    END IF;
    INSERT INTO gristmill.tool_approvals (workspace_id, call_id, arguments_sha256, decision, decided_by, expires_at)
    VALUES (held.workspace_id, call, held.arguments_sha256, 'REFUSED', by_user, 'infinity');
    PERFORM gristmill.end_tool_call(held, 'DENIED', 'a person said no' || coalesce(': ' || deny_call.reason, ''));
    PERFORM gristmill.wake_tool_call(held);
END
$$;

-- Ends a call. One at work is told to stop, and ends when its worker heard; what it did by then is
-- done. Answers the state it has now.
CREATE FUNCTION gristmill.cancel_call(call uuid, reason text DEFAULT NULL) RETURNS gristmill.tool_call_state
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
#variable_conflict use_column
DECLARE
    held gristmill.tool_calls := gristmill.hold_tool_call(call);
    why text := 'cancelled' || coalesce(': ' || cancel_call.reason, ' on request');
    job record;
BEGIN
    IF held.state = 'UNKNOWN' THEN
        RAISE EXCEPTION 'the outcome of tool call % is unknown: it cannot be cancelled', call
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'use gristmill.resolve_unknown';
    ELSIF held.finished_at IS NOT NULL THEN
        RETURN held.state;
    END IF;
    IF held.state = 'STARTED' THEN
        SELECT j.id, j.state INTO job FROM gristmill.jobs j
        WHERE j.workspace_id = held.workspace_id AND j.kind = 'tool_call' AND j.unique_key = call::text
          AND j.state IN ('SCHEDULED', 'WAITING', 'RUNNING', 'PARKED');
        IF FOUND AND job.state <> 'RUNNING' AND EXISTS (
            SELECT FROM gristmill.tool_attempts a WHERE a.call_id = call AND a.outcome IS NULL AND a.task IS NOT NULL) THEN
            -- Its server works on it, and only a worker can tell it to stop.
            UPDATE gristmill.tool_calls x SET called_off = why WHERE x.id = call;
            UPDATE gristmill.jobs j SET state = 'WAITING', reason = NULL, run_at = clock_timestamp(), priority = 32767
            WHERE j.id = job.id;
            PERFORM pg_notify('gristmill_jobs', 'tool_call');
            RETURN held.state;
        ELSIF job.id IS NOT NULL THEN
            PERFORM gristmill.cancel(job.id);
            RETURN held.state;
        END IF;
    END IF;
    PERFORM gristmill.end_tool_call(held, 'CANCELLED', why);
    PERFORM gristmill.wake_tool_call(held);
    RETURN 'CANCELLED';
END
$$;

-- A person's word on a call that may or may not have been done: `again` orders one more start, `ok`
-- and `error` say how it ended, `leave` lets the model know that nobody knows.
CREATE FUNCTION gristmill.resolve_unknown(call uuid, verdict text, by_user uuid DEFAULT NULL, note text DEFAULT NULL)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
#variable_conflict use_column
DECLARE
    held gristmill.tool_calls := gristmill.hold_tool_call(call);
BEGIN
    IF verdict IS NULL OR verdict NOT IN ('again', 'ok', 'error', 'leave') THEN
        RAISE EXCEPTION 'the verdict is one of again, ok, error, leave' USING ERRCODE = 'invalid_parameter_value';
    ELSIF held.state <> 'UNKNOWN' OR EXISTS (SELECT FROM gristmill.tool_results r WHERE r.call_id = call) THEN
        RAISE EXCEPTION 'tool call % is %: there is nothing to resolve', call, held.state
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF verdict = 'again' THEN
        UPDATE gristmill.tool_calls x SET
            state = 'REQUESTED', reason = NULL, expires_at = NULL, finished_at = NULL, ordered = true, ordered_by = by_user
        WHERE x.id = call;
    ELSE
        PERFORM gristmill.end_tool_call(
            held, CASE verdict WHEN 'ok' THEN 'OK' WHEN 'error' THEN 'ERROR' ELSE 'UNKNOWN' END::gristmill.tool_call_state,
            CASE verdict
                WHEN 'ok' THEN 'a person looked: it was done'
                WHEN 'error' THEN 'a person looked: it was not done'
                ELSE 'nobody knows whether it was done; do not repeat it without looking' END || coalesce(': ' || note, ''));
    END IF;
    PERFORM gristmill.wake_tool_call(held);
END
$$;

-- Ends parked calls whose time is over, over all tenants: CANCELLED, and what is UNKNOWN stays so,
-- and the model is told. One that somebody holds is for the next look.
CREATE FUNCTION gristmill.expire_tool_calls(at_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    one record;
    held gristmill.tool_calls;
    ended bigint := 0;
BEGIN
    FOR one IN
        SELECT x.id, x.workspace_id FROM gristmill.tool_calls x WHERE x.expires_at <= now() ORDER BY x.expires_at LIMIT at_most
    LOOP
        PERFORM set_config('gristmill.workspace', one.workspace_id::text, true);
        held := gristmill.hold_tool_call(one.id, false);
        CONTINUE WHEN held.id IS NULL OR held.expires_at IS NULL OR held.expires_at > now();
        IF held.state = 'UNKNOWN' THEN
            PERFORM gristmill.end_tool_call(held, 'UNKNOWN',
                'nobody said in time whether it was done; do not repeat it without looking');
        ELSE
            PERFORM gristmill.end_tool_call(held, 'CANCELLED',
                format('it waited too long (%s)', left(held.reason, 300)));
        END IF;
        PERFORM gristmill.wake_tool_call(held);
        ended := ended + 1;
    END LOOP;
    PERFORM set_config('gristmill.workspace', '', true);
    RETURN ended;
END
$$;

-- Calls that are not finished and that no job carries, for longer than `deadline`: a job is queued
-- again, twice; then the call ends.
CREATE FUNCTION gristmill.revive_tool_calls(deadline interval, at_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    one record;
    held gristmill.tool_calls;
    revived bigint := 0;
BEGIN
    FOR one IN
        SELECT x.id, x.workspace_id FROM gristmill.tool_calls x
        WHERE x.finished_at IS NULL AND x.updated_at < now() - deadline
          AND NOT gristmill.has_job(x.workspace_id, '{tool_call}', x.id)
        ORDER BY x.updated_at LIMIT at_most
    LOOP
        PERFORM set_config('gristmill.workspace', one.workspace_id::text, true);
        held := gristmill.hold_tool_call(one.id, false);
        CONTINUE WHEN held.id IS NULL OR held.finished_at IS NOT NULL;
        IF held.revived < 2 OR held.state = 'STARTED' THEN
            UPDATE gristmill.tool_calls x SET revived = least(x.revived, 32766) + 1 WHERE x.id = held.id;
            PERFORM gristmill.wake_tool_call(held);
        ELSE
            PERFORM gristmill.end_tool_call(held, 'CANCELLED', 'stuck: no job carries it, and queueing it again did not help');
        END IF;
        revived := revived + 1;
    END LOOP;
    PERFORM set_config('gristmill.workspace', '', true);
    RETURN revived;
END
$$;

-- Wakes calls that waited for money where there is some again.
CREATE FUNCTION gristmill.afford_tool_calls(at_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    one record;
    held gristmill.tool_calls;
    woken bigint := 0;
BEGIN
    FOR one IN
        SELECT x.id, x.workspace_id FROM gristmill.tool_calls x
        WHERE x.finished_at IS NULL AND x.state = 'BUDGET' AND NOT EXISTS (
            SELECT FROM gristmill.budgets b
            WHERE b.workspace_id = x.workspace_id AND b.remaining <= 0
              AND (b.user_id IS NULL AND b.agent_id IS NULL OR b.user_id = x.user_id OR b.agent_id = x.agent_id))
        ORDER BY x.updated_at LIMIT at_most
    LOOP
        PERFORM set_config('gristmill.workspace', one.workspace_id::text, true);
        held := gristmill.hold_tool_call(one.id, false);
        CONTINUE WHEN held.state IS DISTINCT FROM 'BUDGET';
        UPDATE gristmill.tool_calls SET state = 'REQUESTED', reason = NULL, expires_at = NULL WHERE id = held.id;
        PERFORM gristmill.wake_tool_call(held);
        woken := woken + 1;
    END LOOP;
    PERFORM set_config('gristmill.workspace', '', true);
    RETURN woken;
END
$$;

-- Wakes parked calls that wait for what is there: a credential or a user's key that came, a definition
-- that was approved. Whoever brings it wakes them too; but a call that parks while that transaction is
-- open is seen by neither. Only what came not long before the call's last look counts, so that a
-- credential that its server refuses is not shown again for ever.
CREATE FUNCTION gristmill.remind_tool_calls(at_most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    one record;
    held gristmill.tool_calls;
    woken bigint := 0;
BEGIN
    FOR one IN
        SELECT x.id, x.workspace_id, x.state FROM gristmill.tool_calls x
        JOIN gristmill.tools t ON t.id = x.tool_id
        WHERE CASE
            WHEN x.finished_at IS NOT NULL THEN false
            WHEN x.state = 'NEEDS_AUTH' OR x.state = 'STARTED' THEN
                EXISTS (SELECT FROM gristmill.tool_credentials k
                        WHERE k.workspace_id = x.workspace_id AND (k.tool_id = t.id OR k.connection_id = t.connection_id)
                          AND (k.user_id IS NULL OR k.user_id = x.user_id)
                          AND k.failure IS NULL AND k.updated_at > x.updated_at - interval '10 min')
                OR EXISTS (SELECT FROM gristmill.user_keys u
                           WHERE u.workspace_id = x.workspace_id AND u.user_id = x.user_id AND u.retired_at IS NULL
                             AND u.updated_at > x.updated_at - interval '10 min')
            WHEN x.state = 'NEEDS_APPROVAL' AND x.reason LIKE 'definition:%' THEN
                EXISTS (SELECT FROM gristmill.offered_tools o WHERE o.id = t.id)
                AND NOT EXISTS (SELECT FROM gristmill.mcp_server_connections c
                                WHERE c.id = t.connection_id AND c.changed_at IS NOT NULL)
            ELSE false END
          AND EXISTS (SELECT FROM gristmill.jobs j
                      WHERE j.workspace_id = x.workspace_id AND j.kind = 'tool_call' AND j.unique_key = x.id::text
                        AND j.state = 'PARKED')
        ORDER BY x.updated_at LIMIT at_most
    LOOP
        PERFORM set_config('gristmill.workspace', one.workspace_id::text, true);
        held := gristmill.hold_tool_call(one.id, false);
        CONTINUE WHEN held.state IS DISTINCT FROM one.state;
        PERFORM gristmill.wake_tool_call(held);
        woken := woken + 1;
    END LOOP;
    PERFORM set_config('gristmill.workspace', '', true);
    RETURN woken;
END
$$;

REVOKE EXECUTE ON FUNCTION gristmill.arguments_digest, gristmill.tell_tool_call, gristmill.call_tool, gristmill.call_tools,
    gristmill.write_tool_messages, gristmill.hold_tool_call, gristmill.wake_tool_call, gristmill.end_tool_call,
    gristmill.approve_call, gristmill.deny_call, gristmill.cancel_call, gristmill.resolve_unknown,
    gristmill.expire_tool_calls, gristmill.revive_tool_calls, gristmill.afford_tool_calls, gristmill.remind_tool_calls,
    gristmill.may_be_done FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.arguments_digest, gristmill.call_tool, gristmill.call_tools,
    gristmill.write_tool_messages, gristmill.hold_tool_call, gristmill.end_tool_call,
    gristmill.approve_call, gristmill.deny_call, gristmill.cancel_call, gristmill.resolve_unknown,
    gristmill.expire_tool_calls, gristmill.revive_tool_calls, gristmill.afford_tool_calls, gristmill.remind_tool_calls,
    gristmill.may_be_done TO gristmill_worker;
-- Whoever may enqueue may call tools and say a person's word on the calls.
DO $$
DECLARE
    grantees text;
BEGIN
    SELECT string_agg(DISTINCT g.grantee::regrole::text, ', ') INTO grantees
    FROM pg_proc p, LATERAL aclexplode(p.proacl) g
    WHERE p.oid = 'gristmill.enqueue'::regproc AND g.grantee <> 0;
    IF grantees IS NOT NULL THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION gristmill.arguments_digest, gristmill.call_tool, gristmill.call_tools,
            gristmill.approve_call, gristmill.deny_call, gristmill.cancel_call, gristmill.resolve_unknown TO %s', grantees);
    END IF;
END
$$;
