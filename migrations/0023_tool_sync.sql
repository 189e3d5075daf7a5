-- Definitions of tools, as their servers tell them: pinned, reviewed, applied.
--
-- A tool's row shows only what was approved: description, schema and effect are copied from the
-- definition when it is, and stay as they were while a changed one waits.

CREATE TYPE gristmill.review_policy AS ENUM ('trust_on_first_use', 'review_all', 'auto_for_read_only');

ALTER TABLE gristmill.mcp_servers
    -- The operator vouches for what the server says of its tools' effects; else each counts as effectful.
    ADD COLUMN believe_hints boolean NOT NULL DEFAULT false,
    -- False: it was taken out of the settings, and its connections lead nowhere.
    ADD COLUMN offered boolean NOT NULL DEFAULT true,
    -- From the settings, which therefore may change it; else an operator's own row.
    ADD COLUMN by_config boolean NOT NULL DEFAULT false;

ALTER TABLE gristmill.mcp_server_connections
    -- NULL: mcp.review of the settings.
    ADD COLUMN review gristmill.review_policy,
    ADD COLUMN synced_at timestamptz,
    -- When the server said that its tools changed, and no sync has looked since.
    ADD COLUMN changed_at timestamptz;

ALTER TABLE gristmill.tools
    -- What the server said of it last, whatever its review.
    ADD COLUMN definition_id uuid,
    -- The server's own name of it, which calls send.
    ADD COLUMN remote_name text CHECK (remote_name <> ''),
    -- When its server no longer had it; such a tool is switched on again when it comes back.
    ADD COLUMN vanished_at timestamptz,
    ADD CONSTRAINT tools_definition_id_fkey FOREIGN KEY (workspace_id, definition_id)
        REFERENCES gristmill.tool_definitions (workspace_id, id) ON DELETE SET NULL (definition_id);
CREATE INDEX tools_by_definition ON gristmill.tools (definition_id);

-- What the server says of the effect, where the operator believes it. A contradiction counts as the worse.
CREATE FUNCTION gristmill.effect_of(definition jsonb, believed boolean) RETURNS gristmill.tool_effect
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, gristmill AS $$
    SELECT CASE
        WHEN NOT believed THEN 'effectful'
        WHEN definition #>> '{annotations,readOnlyHint}' = 'true'
             AND definition #>> '{annotations,destructiveHint}' IS DISTINCT FROM 'true' THEN 'read'
        WHEN definition #>> '{annotations,idempotentHint}' = 'true' THEN 'idempotent'
        ELSE 'effectful' END::tool_effect
$$;

-- Copies an approved definition to the tool that it is of, if it is still what the server says.
CREATE FUNCTION gristmill.apply_definition(definition uuid) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, gristmill AS $$
    UPDATE tools t SET
        description = coalesce(d.definition ->> 'description', ''),
        input_schema = d.definition -> 'inputSchema',
        effect = effect_of(d.definition, s.believe_hints)
    FROM tool_definitions d, mcp_server_connections c, mcp_servers s
    WHERE d.id = apply_definition.definition AND d.review = 'APPROVED'
      AND t.id = d.tool_id AND t.definition_id = d.id
      AND c.id = t.connection_id AND s.id = c.server_id
$$;

-- A person's word on a definition. Approved, it is what the tool is from now on; either way the calls
-- that waited for it go on and see for themselves. Answers how many were woken.
CREATE FUNCTION gristmill.review_definition(
    definition uuid, decision gristmill.review_state, by_user uuid DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
#variable_conflict use_column
DECLARE
    d record;
BEGIN
    IF decision = 'PENDING' THEN
        RAISE EXCEPTION 'a review says APPROVED or REFUSED' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT x.id, x.workspace_id, x.tool_id, t.name INTO d
    FROM tool_definitions x JOIN tools t ON t.id = x.tool_id
    WHERE x.id = review_definition.definition
      AND x.workspace_id = coalesce(current_workspace(), x.workspace_id)
    FOR UPDATE OF t;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no definition %', review_definition.definition
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE tool_definitions SET review = decision, reviewed_by = by_user, reviewed_at = clock_timestamp()
    WHERE id = d.id;
    PERFORM apply_definition(d.id);
    INSERT INTO events (workspace_id, type, subject, subject_id, body)
    VALUES (d.workspace_id, CASE decision WHEN 'APPROVED' THEN 'tool.approved' ELSE 'tool.refused' END, 'tool',
            d.tool_id, jsonb_build_object('tool', d.name, 'definition', d.id, 'by', by_user));
    RETURN wake_calls(d.workspace_id, ARRAY[d.tool_id], 'NEEDS_APPROVAL');
END
$$;

-- Asks for one connection's tools to be looked at now.
CREATE FUNCTION gristmill.sync_server(connection uuid) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    workspace uuid;
    job uuid;
BEGIN
    SELECT c.workspace_id INTO workspace FROM mcp_server_connections c
    WHERE c.id = connection AND c.workspace_id = coalesce(current_workspace(), c.workspace_id);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no connection %', connection USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT e.job_id INTO job FROM enqueue(
        'tool_sync', jsonb_build_object('connection', connection), key => connection::text, workspace => workspace) e;
    RETURN job;
END
$$;

-- The server said that its tools changed: until a sync has looked, its calls wait. One that says so
-- all the time is looked at every few seconds, and no oftener.
CREATE FUNCTION gristmill.server_changed(connection uuid) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    c record;
    job uuid;
BEGIN
    UPDATE mcp_server_connections x SET changed_at = clock_timestamp()
    WHERE x.id = connection AND x.workspace_id = coalesce(current_workspace(), x.workspace_id)
    RETURNING x.workspace_id, x.synced_at INTO c;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no connection %', connection USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT e.job_id INTO job FROM enqueue(
        'tool_sync', jsonb_build_object('connection', connection), key => connection::text, workspace => c.workspace_id,
        run_at => greatest(clock_timestamp(), c.synced_at + interval '3 s')) e;
    RETURN job;
END
$$;

-- Every connection that is in use, of every tenant, for the schedule.
CREATE FUNCTION gristmill.syncable_connections() RETURNS TABLE (workspace_id uuid, id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
    SELECT c.workspace_id, c.id FROM mcp_server_connections c JOIN mcp_servers s ON s.id = c.server_id
    WHERE c.enabled AND s.offered ORDER BY c.id
$$;

-- As before, and a server that asked for a credential is looked at again.
CREATE OR REPLACE FUNCTION gristmill.credential_saved() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.renewed_at IS NOT NULL AND NEW.renewed_at IS DISTINCT FROM OLD.renewed_at THEN
        RETURN NULL;
    END IF;
    PERFORM wake_calls(
        NEW.workspace_id,
        ARRAY(SELECT t.id FROM tools t WHERE t.workspace_id = NEW.workspace_id
              AND (t.id = NEW.tool_id OR t.connection_id = NEW.connection_id)),
        'NEEDS_AUTH', NEW.user_id);
    IF EXISTS (SELECT FROM mcp_server_connections c
               WHERE c.id = NEW.connection_id AND c.enabled AND c.status <> 'connected') THEN
        BEGIN
            PERFORM sync_server(NEW.connection_id);
        EXCEPTION WHEN invalid_parameter_value THEN
            -- No worker has told yet that it can: the schedule will come by.
            NULL;
        END;
    END IF;
    RETURN NULL;
END
$$;

-- What a model may be offered: switched on, and, where a server described it, approved as it is now.
CREATE VIEW gristmill.offered_tools WITH (security_invoker = true) AS
    SELECT t.* FROM gristmill.tools t
    WHERE t.enabled AND (t.connection_id IS NULL OR EXISTS (
        SELECT FROM gristmill.tool_definitions d WHERE d.id = t.definition_id AND d.review = 'APPROVED'));

GRANT SELECT ON gristmill.offered_tools TO gristmill_worker;
REVOKE EXECUTE ON FUNCTION gristmill.effect_of, gristmill.apply_definition, gristmill.review_definition,
    gristmill.sync_server, gristmill.server_changed, gristmill.syncable_connections, gristmill.credential_saved FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.effect_of, gristmill.apply_definition, gristmill.review_definition,
    gristmill.sync_server, gristmill.server_changed, gristmill.syncable_connections TO gristmill_worker;
-- Whoever may enqueue may review definitions and ask for a sync.
DO $$
DECLARE
    grantees text;
BEGIN
    SELECT string_agg(DISTINCT g.grantee::regrole::text, ', ') INTO grantees
    FROM pg_proc p, LATERAL aclexplode(p.proacl) g
    WHERE p.oid = 'gristmill.enqueue'::regproc AND g.grantee <> 0;
    IF grantees IS NOT NULL THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION gristmill.review_definition, gristmill.sync_server TO %s', grantees);
    END IF;
END
$$;
