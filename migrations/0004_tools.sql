-- Agents, the tools they may call, and the ledger of every call.

CREATE TYPE gristmill.tool_type AS ENUM ('MCP', 'custom');
CREATE TYPE gristmill.transport AS ENUM ('stdio', 'streamable_http', 'sse');
CREATE TYPE gristmill.connection_status AS ENUM ('connected', 'disconnected', 'error');
CREATE TYPE gristmill.tool_auth AS ENUM ('none', 'header', 'bearer', 'basic', 'query', 'oauth', 'client_credentials');
CREATE TYPE gristmill.tool_effect AS ENUM ('read', 'idempotent', 'effectful');
CREATE TYPE gristmill.review_state AS ENUM ('PENDING', 'APPROVED', 'REFUSED');
CREATE TYPE gristmill.tool_call_state AS ENUM (
    'REQUESTED', 'NEEDS_APPROVAL', 'NEEDS_AUTH', 'BUDGET', 'STARTED', 'OK', 'ERROR', 'UNKNOWN', 'DENIED', 'CANCELLED');
CREATE TYPE gristmill.agent_role AS ENUM ('admin', 'user');
CREATE TYPE gristmill.runtime AS ENUM ('python', 'node');

-- An assistant that a workspace uses: a prompt, a model, tools.
CREATE TABLE gristmill.agents (
    id               uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id     uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id      text,
    name             text NOT NULL CHECK (name <> ''),
    description      text NOT NULL DEFAULT '',
    -- temperature, maxToken, topP, topK, …
    model_parameters jsonb NOT NULL DEFAULT '{}',
    creator_id       uuid REFERENCES gristmill.users ON DELETE SET NULL,
    version          text,
    source           text,
    installed_at     timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id)
);
CREATE INDEX agents_by_creator ON gristmill.agents (creator_id);

-- What an installed agent declared of itself, kept for each version.
CREATE TABLE gristmill.agent_versions (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    agent_id     uuid NOT NULL REFERENCES gristmill.agents ON DELETE CASCADE,
    version      text NOT NULL CHECK (version <> ''),
    -- name, description, version, author, tools, instructions.
    manifest     jsonb NOT NULL CHECK (jsonb_typeof(manifest) = 'object'),
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (agent_id, version)
);
CREATE TRIGGER agent_versions_immutable BEFORE UPDATE ON gristmill.agent_versions
    FOR EACH ROW EXECUTE FUNCTION gristmill.refuse_update();

-- A prompt at one version. An edit is a new row, so an old answer can name what it was asked.
CREATE TABLE gristmill.prompts (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id  text,
    agent_id     uuid REFERENCES gristmill.agents ON DELETE CASCADE,
    name         text NOT NULL CHECK (name <> ''),
    version      int NOT NULL DEFAULT 1 CHECK (version > 0),
    content      text NOT NULL,
    variables    text[] NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (workspace_id, agent_id, name, version)
);
-- One product's prompt keeps its id over all versions.
CREATE UNIQUE INDEX prompts_by_external_id ON gristmill.prompts (workspace_id, external_id, version);
CREATE INDEX prompts_by_agent ON gristmill.prompts (agent_id);
CREATE TRIGGER prompts_immutable BEFORE UPDATE ON gristmill.prompts
    FOR EACH ROW EXECUTE FUNCTION gristmill.refuse_update();

ALTER TABLE gristmill.agents ADD COLUMN prompt_id uuid REFERENCES gristmill.prompts ON DELETE SET NULL;
CREATE INDEX agents_by_prompt ON gristmill.agents (prompt_id);
ALTER TABLE gristmill.conversations ADD COLUMN agent_id uuid REFERENCES gristmill.agents ON DELETE SET NULL;
CREATE INDEX conversations_by_agent ON gristmill.conversations (agent_id);

-- The operator's catalogue of MCP servers, for all workspaces: the worker reads it and cannot write it,
-- so no tenant's row ever becomes a command line. `env` holds no secret; those lie in tool_credentials.
CREATE TABLE gristmill.mcp_servers (
    id          uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    external_id text UNIQUE,
    name        text NOT NULL UNIQUE CHECK (name ~ '^[a-zA-Z0-9_-]{1,64}$'),
    transport   gristmill.transport NOT NULL DEFAULT 'stdio',
    command     text,
    arguments   text[] NOT NULL DEFAULT '{}',
    env         jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(env) = 'object'),
    url         text,
    -- JSON Schema of what a connection may fill in.
    parameters  jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT stdio_names_its_command CHECK ((transport = 'stdio') = (command IS NOT NULL)),
    CONSTRAINT http_names_its_url CHECK ((transport = 'stdio') = (url IS NULL))
);

-- A workspace's use of a server of the catalogue, and how the server was when last seen.
CREATE TABLE gristmill.mcp_server_connections (
    id               uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id     uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id      text,
    server_id        uuid NOT NULL REFERENCES gristmill.mcp_servers ON DELETE CASCADE,
    enabled          boolean NOT NULL DEFAULT true,
    parameters       jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(parameters) = 'object'),
    status           gristmill.connection_status NOT NULL DEFAULT 'disconnected',
    failure          text,
    protocol_version text,
    seen_at          timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (workspace_id, server_id),
    CONSTRAINT error_says_why CHECK ((status = 'error') = (failure IS NOT NULL))
);
CREATE INDEX mcp_server_connections_by_server ON gristmill.mcp_server_connections (server_id);

-- Something an agent can call. Of McpType `knowledgebase` it owns resources and chunks.
CREATE TABLE gristmill.tools (
    id                  uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id        uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id         text,
    connection_id       uuid REFERENCES gristmill.mcp_server_connections ON DELETE CASCADE,
    name                text NOT NULL CHECK (name <> ''),
    description         text NOT NULL DEFAULT '',
    type                gristmill.tool_type NOT NULL,
    authentication_type gristmill.tool_auth NOT NULL DEFAULT 'none',
    endpoint            text,
    transport_type      gristmill.transport,
    input_schema        jsonb NOT NULL DEFAULT '{"type": "object"}' CHECK (jsonb_typeof(input_schema) = 'object'),
    -- McpType, embeddingModelID, rerankingModelID, chunkSize, overlap, retrieveTopN, rerankTopN, …
    custom_config       jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(custom_config) = 'object'),
    mcp_type            text GENERATED ALWAYS AS (custom_config ->> 'McpType') STORED,
    effect              gristmill.tool_effect NOT NULL DEFAULT 'effectful',
    enabled             boolean NOT NULL DEFAULT true,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (workspace_id, name),
    CONSTRAINT custom_names_its_kind CHECK (
        (type = 'custom') = (mcp_type IS NOT NULL)
        AND mcp_type IN ('knowledgebase', 'API', 'database', 'web_search')),
    CONSTRAINT overlap_below_chunk_size CHECK (
        (custom_config ->> 'overlap')::int < (custom_config ->> 'chunkSize')::int),
    CONSTRAINT counts_are_positive CHECK (
        (custom_config ->> 'chunkSize')::int > 0 AND (custom_config ->> 'overlap')::int >= 0
        AND (custom_config ->> 'retrieveTopN')::int > 0 AND (custom_config ->> 'rerankTopN')::int > 0)
);
CREATE INDEX tools_by_connection ON gristmill.tools (connection_id);

-- A tool's definition as its server told it. A changed definition is a new row and waits for review.
CREATE TABLE gristmill.tool_definitions (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    tool_id      uuid NOT NULL REFERENCES gristmill.tools ON DELETE CASCADE,
    -- Of the canonical form of name, description, schema and annotations.
    sha256       bytea NOT NULL CHECK (octet_length(sha256) = 32),
    definition   jsonb NOT NULL CHECK (jsonb_typeof(definition) = 'object'),
    review       gristmill.review_state NOT NULL DEFAULT 'PENDING',
    reviewed_by  uuid REFERENCES gristmill.users ON DELETE SET NULL,
    reviewed_at  timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tool_id, sha256),
    CONSTRAINT review_has_its_time CHECK ((review = 'PENDING') = (reviewed_at IS NULL))
);
CREATE INDEX tool_definitions_by_reviewer ON gristmill.tool_definitions (reviewed_by);
-- The review of a definition changes, the definition never does.
CREATE TRIGGER tool_definitions_immutable BEFORE UPDATE OF tool_id, sha256, definition ON gristmill.tool_definitions
    FOR EACH ROW EXECUTE FUNCTION gristmill.refuse_update();

-- Who may use, and who may manage, an agent.
CREATE TABLE gristmill.user_agents (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    user_id      uuid NOT NULL REFERENCES gristmill.users ON DELETE CASCADE,
    agent_id     uuid NOT NULL REFERENCES gristmill.agents ON DELETE CASCADE,
    role         gristmill.agent_role NOT NULL DEFAULT 'user',
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, agent_id)
);
CREATE INDEX user_agents_by_agent ON gristmill.user_agents (agent_id);

-- Which tools a user has; the credential, where there is one, lies in tool_credentials.
CREATE TABLE gristmill.user_tools (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    user_id      uuid NOT NULL REFERENCES gristmill.users ON DELETE CASCADE,
    tool_id      uuid NOT NULL REFERENCES gristmill.tools ON DELETE CASCADE,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, tool_id)
);
CREATE INDEX user_tools_by_tool ON gristmill.user_tools (tool_id);

-- Which tools an agent may call.
CREATE TABLE gristmill.agent_tools (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    agent_id     uuid NOT NULL REFERENCES gristmill.agents ON DELETE CASCADE,
    tool_id      uuid NOT NULL REFERENCES gristmill.tools ON DELETE CASCADE,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (agent_id, tool_id)
);
CREATE INDEX agent_tools_by_tool ON gristmill.agent_tools (tool_id);

-- A credential (JSON, sealed by AES-256-GCM) of a user, or of the whole workspace where user_id is null.
-- It is sent to the origin it was saved for and nowhere else, whatever the tool's endpoint says now.
CREATE TABLE gristmill.tool_credentials (
    id            uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id  uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    user_id       uuid REFERENCES gristmill.users ON DELETE CASCADE,
    tool_id       uuid REFERENCES gristmill.tools ON DELETE CASCADE,
    connection_id uuid REFERENCES gristmill.mcp_server_connections ON DELETE CASCADE,
    origin        text NOT NULL CHECK (origin <> ''),
    credential    text NOT NULL CHECK (credential <> ''),
    iv            text NOT NULL CHECK (octet_length(iv) BETWEEN 16 AND 32),
    auth_tag      text NOT NULL CHECK (octet_length(auth_tag) BETWEEN 22 AND 32),
    key_id        text NOT NULL,
    version       int NOT NULL DEFAULT 1 CHECK (version > 0),
    -- When an OAuth access token ends and must be refreshed.
    expires_at    timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (workspace_id, user_id, tool_id, connection_id),
    CONSTRAINT credential_of_one_thing CHECK (num_nonnulls(tool_id, connection_id) = 1)
);
CREATE INDEX tool_credentials_by_user ON gristmill.tool_credentials (user_id);
CREATE INDEX tool_credentials_by_tool ON gristmill.tool_credentials (tool_id);
CREATE INDEX tool_credentials_by_connection ON gristmill.tool_credentials (connection_id);
CREATE INDEX tool_credentials_by_key ON gristmill.tool_credentials (key_id);

-- A call that a model asked for, from intent to outcome.
CREATE TABLE gristmill.tool_calls (
    id               uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id     uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id      text,
    conversation_id  uuid NOT NULL REFERENCES gristmill.conversations ON DELETE CASCADE,
    -- The assistant's message that asked, the model's id of the call, and its place among the message's calls.
    message_id       uuid NOT NULL REFERENCES gristmill.messages ON DELETE CASCADE,
    tool_call_id     text NOT NULL CHECK (tool_call_id <> ''),
    ord              int NOT NULL DEFAULT 0 CHECK (ord >= 0),
    tool_id          uuid REFERENCES gristmill.tools ON DELETE SET NULL,
    -- As the model named it, so that a refused or deleted tool can still be told.
    tool_name        text NOT NULL,
    definition_id    uuid REFERENCES gristmill.tool_definitions ON DELETE SET NULL,
    user_id          uuid REFERENCES gristmill.users ON DELETE SET NULL,
    agent_id         uuid REFERENCES gristmill.agents ON DELETE SET NULL,
    arguments        jsonb NOT NULL,
    arguments_sha256 bytea NOT NULL CHECK (octet_length(arguments_sha256) = 32),
    state            gristmill.tool_call_state NOT NULL DEFAULT 'REQUESTED',
    reason           text,
    -- A call still parked then is CANCELLED.
    expires_at       timestamptz,
    finished_at      timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (message_id, tool_call_id),
    CONSTRAINT outcome_has_its_time CHECK (
        (state IN ('OK', 'ERROR', 'UNKNOWN', 'DENIED', 'CANCELLED')) = (finished_at IS NOT NULL)),
    CONSTRAINT unhappy_says_why CHECK (
        state NOT IN ('NEEDS_APPROVAL', 'NEEDS_AUTH', 'BUDGET', 'ERROR', 'UNKNOWN', 'DENIED', 'CANCELLED')
        OR reason IS NOT NULL)
);
CREATE INDEX tool_calls_by_conversation ON gristmill.tool_calls (conversation_id);
CREATE INDEX tool_calls_by_tool ON gristmill.tool_calls (tool_id);
CREATE INDEX tool_calls_by_definition ON gristmill.tool_calls (definition_id);
CREATE INDEX tool_calls_by_user ON gristmill.tool_calls (user_id);
CREATE INDEX tool_calls_by_agent ON gristmill.tool_calls (agent_id);
CREATE INDEX tool_calls_unfinished ON gristmill.tool_calls (workspace_id, updated_at) WHERE finished_at IS NULL;

-- The legal edges. STARTED > REQUESTED is a retry of what may run again; UNKNOWN > REQUESTED is a
-- person's word that it may.
CREATE FUNCTION gristmill.tool_call_edge(
    old_state gristmill.tool_call_state, new_state gristmill.tool_call_state
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT (old_state, new_state) IN (
        ('REQUESTED', 'STARTED'), ('STARTED', 'OK'), ('STARTED', 'ERROR'), ('STARTED', 'UNKNOWN'),
        ('STARTED', 'CANCELLED'), ('STARTED', 'REQUESTED'), ('STARTED', 'NEEDS_AUTH'),
        ('REQUESTED', 'NEEDS_APPROVAL'), ('REQUESTED', 'NEEDS_AUTH'), ('REQUESTED', 'BUDGET'),
        ('REQUESTED', 'ERROR'), ('REQUESTED', 'DENIED'), ('REQUESTED', 'CANCELLED'),
        ('NEEDS_APPROVAL', 'REQUESTED'), ('NEEDS_APPROVAL', 'DENIED'), ('NEEDS_APPROVAL', 'CANCELLED'),
        ('NEEDS_AUTH', 'REQUESTED'), ('NEEDS_AUTH', 'DENIED'), ('NEEDS_AUTH', 'CANCELLED'),
        ('BUDGET', 'REQUESTED'), ('BUDGET', 'DENIED'), ('BUDGET', 'CANCELLED'),
        ('UNKNOWN', 'REQUESTED'), ('UNKNOWN', 'OK'), ('UNKNOWN', 'ERROR'))
$$;

CREATE FUNCTION gristmill.guard_tool_call() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'REQUESTED' THEN
            RAISE EXCEPTION 'a tool call cannot begin as %', NEW.state USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NEW.state <> OLD.state AND NOT gristmill.tool_call_edge(OLD.state, NEW.state) THEN
        RAISE EXCEPTION 'a tool call cannot go from % to %', OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    ELSIF (NEW.arguments, NEW.arguments_sha256, NEW.tool_name, NEW.message_id)
          IS DISTINCT FROM (OLD.arguments, OLD.arguments_sha256, OLD.tool_name, OLD.message_id)
          -- A deleted tool leaves its calls; another tool may not take its place.
          OR NEW.tool_id IS DISTINCT FROM OLD.tool_id AND NEW.tool_id IS NOT NULL THEN
        RAISE EXCEPTION 'what a tool call asks for cannot change' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER tool_calls_guard BEFORE INSERT OR UPDATE ON gristmill.tool_calls
    FOR EACH ROW EXECUTE FUNCTION gristmill.guard_tool_call();

-- One start of a call, written before anything is sent; its id is the call id the other side sees.
CREATE TABLE gristmill.tool_attempts (
    id              uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id    uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    call_id         uuid NOT NULL REFERENCES gristmill.tool_calls ON DELETE CASCADE,
    effect          gristmill.tool_effect NOT NULL,
    idempotency_key text NOT NULL CHECK (idempotency_key <> ''),
    -- A person ordered another start of an effectful call whose outcome is unknown.
    ordered         boolean NOT NULL DEFAULT false,
    ordered_by      uuid REFERENCES gristmill.users ON DELETE SET NULL,
    outcome         gristmill.tool_call_state CHECK (outcome IN ('OK', 'ERROR', 'UNKNOWN', 'CANCELLED')),
    failure         text,
    started_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at     timestamptz,
    CONSTRAINT orderer_ordered CHECK (ordered OR ordered_by IS NULL),
    CONSTRAINT attempt_ends_with_outcome CHECK ((outcome IS NULL) = (finished_at IS NULL))
);
CREATE INDEX tool_attempts_by_call ON gristmill.tool_attempts (call_id, started_at);
CREATE INDEX tool_attempts_by_orderer ON gristmill.tool_attempts (ordered_by);
-- What has effects starts once, unless a person ordered it again.
CREATE UNIQUE INDEX tool_attempts_effectful_once ON gristmill.tool_attempts (call_id)
    WHERE effect = 'effectful' AND NOT ordered;

-- A person's word on a parked call, bound to the arguments that the person saw.
CREATE TABLE gristmill.tool_approvals (
    id               uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id     uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    call_id          uuid NOT NULL REFERENCES gristmill.tool_calls ON DELETE CASCADE,
    arguments_sha256 bytea NOT NULL CHECK (octet_length(arguments_sha256) = 32),
    decision         gristmill.review_state NOT NULL CHECK (decision <> 'PENDING'),
    decided_by       uuid REFERENCES gristmill.users ON DELETE SET NULL,
    expires_at       timestamptz NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tool_approvals_by_call ON gristmill.tool_approvals (call_id);
CREATE INDEX tool_approvals_by_person ON gristmill.tool_approvals (decided_by);
-- Forgetting the person is the one change.
CREATE TRIGGER tool_approvals_immutable BEFORE UPDATE OF call_id, arguments_sha256, decision, expires_at
    ON gristmill.tool_approvals
    FOR EACH ROW EXECUTE FUNCTION gristmill.refuse_update();

-- What a call gave: whole, inline or as an object, and the bounded view that the model reads.
CREATE TABLE gristmill.tool_results (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    call_id      uuid NOT NULL UNIQUE REFERENCES gristmill.tool_calls ON DELETE CASCADE,
    -- The `tool` message made of it.
    message_id   uuid REFERENCES gristmill.messages ON DELETE SET NULL,
    result       jsonb,
    bucket       text,
    key          text,
    sha256       bytea NOT NULL CHECK (octet_length(sha256) = 32),
    size         bigint NOT NULL CHECK (size >= 0),
    view         text NOT NULL,
    error        text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT result_lies_in_one_place CHECK (
        (result IS NOT NULL AND key IS NULL) OR (result IS NULL AND key IS NOT NULL AND bucket IS NOT NULL))
);
CREATE INDEX tool_results_by_message ON gristmill.tool_results (message_id);

-- Whether a host's python and node can start MCP servers, as `doctor` found them.
CREATE TABLE gristmill.runtime_statuses (
    id         uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    host       text NOT NULL CHECK (host <> ''),
    runtime    gristmill.runtime NOT NULL,
    installed  boolean NOT NULL,
    version    text,
    path       text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (host, runtime),
    CONSTRAINT installed_lies_somewhere CHECK (NOT installed OR path IS NOT NULL)
);

-- An addon of the product and whether this workspace has it switched on.
CREATE TABLE gristmill.addons (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id  text,
    name         text NOT NULL CHECK (name <> ''),
    description  text NOT NULL DEFAULT '',
    version      text NOT NULL,
    enabled      boolean NOT NULL DEFAULT false,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (workspace_id, name)
);

CALL gristmill.keep_updated_at('agents', 'mcp_servers', 'mcp_server_connections', 'tools', 'user_agents',
                               'user_tools', 'agent_tools', 'tool_credentials', 'tool_calls',
                               'runtime_statuses', 'addons');
