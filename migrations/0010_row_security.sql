-- The second lock: the worker's role sees one tenant a transaction, and holds no right it does not need.
--
-- Every table with a workspace_id has the policy `tenant`, but `jobs`: a claim looks across tenants,
-- and a job holds ids only. The policies are not forced on the owner: migrations, restores and the
-- triggers that write history run as owner. A later migration that adds a tenant table adds its policy
-- and its grants; a test looks, because default privileges would bind to whoever runs the migration.
--
-- Under a policy only leakproof operators reach an index: equality of uuid and text, order of times and
-- numbers, yes; equality of enums, `@>`, `@@` no. So what the worker sweeps is indexed by workspace and time.

DO $$
DECLARE
    tenant_table regclass;
BEGIN
    FOR tenant_table IN
        SELECT c.oid FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'workspace_id'
        WHERE c.relnamespace = 'gristmill'::regnamespace AND c.relkind = 'r' AND c.relname <> 'jobs'
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', tenant_table);
        EXECUTE format(
            'CREATE POLICY tenant ON %s USING (workspace_id = gristmill.current_workspace()) WITH CHECK (workspace_id = gristmill.current_workspace())',
            tenant_table);
    END LOOP;
END
$$;

ALTER TABLE gristmill.workspaces ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON gristmill.workspaces
    USING (id = gristmill.current_workspace()) WITH CHECK (id = gristmill.current_workspace());

-- For work that visits every tenant in turn (`tidy`, schedules): their ids, and nothing else of them.
CREATE FUNCTION gristmill.workspace_ids() RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
    SELECT id FROM gristmill.workspaces ORDER BY id
$$;
REVOKE EXECUTE ON FUNCTION gristmill.workspace_ids FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.workspace_ids TO gristmill_worker;

-- The operator's and the chat layer's rows: read.
GRANT SELECT ON
    gristmill.providers, gristmill.models, gristmill.model_prices, gristmill.mcp_servers, gristmill.spaces,
    gristmill.roles, gristmill.policies, gristmill.role_policies, gristmill.users, gristmill.profiles,
    gristmill.user_settings, gristmill.user_agents, gristmill.user_tools, gristmill.agent_tools,
    gristmill.agents, gristmill.addons, gristmill.workspace_settings, gristmill.conversation_settings,
    gristmill.message_highlights, gristmill.user_keys, gristmill.llm_connections,
    gristmill.attachment_history, gristmill.usage_stats
TO gristmill_worker;

-- Key rotation seals anew, and changes nothing else.
GRANT UPDATE (api_key, iv, auth_tag, key_id, version) ON gristmill.user_keys, gristmill.llm_connections TO gristmill_worker;

-- What is over may be removed; who it belonged to is not the worker's business.
GRANT SELECT (id, workspace_id, expires), DELETE ON gristmill.sessions, gristmill.verification_tokens TO gristmill_worker;

-- Written once.
GRANT SELECT, INSERT ON
    gristmill.summaries, gristmill.agent_versions, gristmill.prompts, gristmill.tool_approvals, gristmill.tool_results
TO gristmill_worker;

-- Written once, and removed: by `forget` with the bytes they speak of, by `tidy` when old.
GRANT SELECT, INSERT, DELETE ON gristmill.verdicts, gristmill.extractions, gristmill.events TO gristmill_worker;

-- Ledgers and what outlives its jobs: never removed by the worker.
GRANT SELECT, INSERT, UPDATE ON
    gristmill.workspaces, gristmill.conversations, gristmill.messages, gristmill.tool_definitions,
    gristmill.tool_calls, gristmill.tool_attempts, gristmill.budgets, gristmill.usages
TO gristmill_worker;

-- The worker's own.
GRANT SELECT, INSERT, UPDATE, DELETE ON
    gristmill.attachments, gristmill.resources, gristmill.generations, gristmill.chunks, gristmill.tools,
    gristmill.mcp_server_connections, gristmill.tool_credentials, gristmill.runtime_statuses,
    gristmill.reservations
TO gristmill_worker;

-- A worker says at start when the schema is older than it is.
DO $$
BEGIN
    IF to_regclass('gristmill._sqlx_migrations') IS NOT NULL THEN
        GRANT SELECT ON gristmill._sqlx_migrations TO gristmill_worker;
    END IF;
END
$$;
