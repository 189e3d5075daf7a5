-- Models, what they cost, and the ledger of what was spent. Money is NUMERIC in US dollars.

CREATE TYPE gristmill.model_type AS ENUM ('chat', 'embedding', 'reranking');
CREATE TYPE gristmill.usage_type AS ENUM ('user', 'agent', 'guardrail');
CREATE TYPE gristmill.usage_kind AS ENUM (
    'chat', 'embedding', 'rerank', 'summary', 'title', 'ocr', 'tool', 'web_search', 'guardrail');
CREATE TYPE gristmill.usage_state AS ENUM ('OPEN', 'SETTLED', 'RELEASED');
CREATE TYPE gristmill.usage_source AS ENUM ('reported', 'estimated', 'reconciled');
CREATE TYPE gristmill.key_source AS ENUM ('user', 'workspace', 'platform', 'local');
CREATE TYPE gristmill.budget_period AS ENUM ('day', 'week', 'month');

-- A provider as the platform reaches it: operator's rows, for all workspaces. Its key is sealed.
CREATE TABLE gristmill.providers (
    id          uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    external_id text UNIQUE,
    name        text NOT NULL UNIQUE CHECK (name <> ''),
    provider    gristmill.provider NOT NULL,
    endpoint    text NOT NULL CHECK (endpoint <> ''),
    api_key     text CHECK (api_key <> ''),
    iv          text CHECK (octet_length(iv) BETWEEN 16 AND 32),
    auth_tag    text CHECK (octet_length(auth_tag) BETWEEN 22 AND 32),
    key_id      text,
    version     int NOT NULL DEFAULT 1 CHECK (version > 0),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT provider_key_is_whole CHECK (num_nonnulls(api_key, iv, auth_tag, key_id) IN (0, 4))
);
CREATE INDEX providers_by_key ON gristmill.providers (key_id);

-- A model of a provider: its limits, and when a conversation with it is folded. Prices are rows of their own.
CREATE TABLE gristmill.models (
    id                  uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    external_id         text UNIQUE,
    provider_id         uuid NOT NULL REFERENCES gristmill.providers ON DELETE CASCADE,
    -- What people call it, and what the provider's wire calls it.
    name                text NOT NULL CHECK (name <> ''),
    internal_name       text NOT NULL CHECK (internal_name <> ''),
    type                gristmill.model_type NOT NULL,
    description         text NOT NULL DEFAULT '',
    -- Tokens since the last summary that call for the next one.
    summarize_threshold bigint CHECK (summarize_threshold > 0),
    default_parameters  jsonb NOT NULL DEFAULT '{}',
    max_context         bigint CHECK (max_context > 0),
    max_output          bigint CHECK (max_output > 0),
    max_reasoning       bigint CHECK (max_reasoning >= 0),
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    UNIQUE (provider_id, internal_name),
    CONSTRAINT folds_before_it_is_full CHECK (summarize_threshold <= max_context)
);

-- A price list from a day on, never changed: a usage row names the one it was billed by.
CREATE TABLE gristmill.model_prices (
    id                      uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    model_id                uuid NOT NULL REFERENCES gristmill.models ON DELETE CASCADE,
    effective_from          timestamptz NOT NULL,
    cost_1k_input           numeric NOT NULL CHECK (cost_1k_input >= 0),
    cost_1k_output          numeric NOT NULL CHECK (cost_1k_output >= 0),
    cost_1k_cache_read      numeric NOT NULL CHECK (cost_1k_cache_read >= 0),
    cost_1k_cache_write     numeric NOT NULL CHECK (cost_1k_cache_write >= 0),
    created_at              timestamptz NOT NULL DEFAULT now(),
    UNIQUE (model_id, effective_from)
);
CREATE TRIGGER model_prices_immutable BEFORE UPDATE ON gristmill.model_prices
    FOR EACH ROW EXECUTE FUNCTION gristmill.refuse_update();

-- A workspace's own way to a provider. The key is sent to the origin of `base_url` it was sealed for.
CREATE TABLE gristmill.llm_connections (
    id             uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id   uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id    text,
    name           text NOT NULL CHECK (name <> ''),
    provider       gristmill.provider NOT NULL,
    base_url       text NOT NULL CHECK (base_url <> ''),
    custom_headers jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(custom_headers) = 'object'),
    api_key        text CHECK (api_key <> ''),
    iv             text CHECK (octet_length(iv) BETWEEN 16 AND 32),
    auth_tag       text CHECK (octet_length(auth_tag) BETWEEN 22 AND 32),
    key_id         text,
    key_origin     text,
    version        int NOT NULL DEFAULT 1 CHECK (version > 0),
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (workspace_id, name),
    CONSTRAINT connection_key_is_whole CHECK (num_nonnulls(api_key, iv, auth_tag, key_id, key_origin) IN (0, 5))
);
CREATE INDEX llm_connections_by_key ON gristmill.llm_connections (key_id);

ALTER TABLE gristmill.agents ADD COLUMN model_id uuid REFERENCES gristmill.models ON DELETE SET NULL;
CREATE INDEX agents_by_model ON gristmill.agents (model_id);

-- What a workspace, a user or an agent may spend. No `amount` means no limit, yet spending is counted.
-- A period begins anew by one update that sets spent to 0 and moves period_start.
CREATE TABLE gristmill.budgets (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    user_id      uuid REFERENCES gristmill.users ON DELETE CASCADE,
    agent_id     uuid REFERENCES gristmill.agents ON DELETE CASCADE,
    amount       numeric CHECK (amount >= 0),
    spent        numeric NOT NULL DEFAULT 0 CHECK (spent >= 0),
    reserved     numeric NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    remaining    numeric GENERATED ALWAYS AS (amount - spent - reserved) STORED,
    period       gristmill.budget_period,
    period_start timestamptz NOT NULL DEFAULT now(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (workspace_id, user_id, agent_id),
    CONSTRAINT budget_of_one_subject CHECK (num_nonnulls(user_id, agent_id) <= 1)
);
CREATE INDEX budgets_by_user ON gristmill.budgets (user_id);
CREATE INDEX budgets_by_agent ON gristmill.budgets (agent_id);

-- No reservation takes a budget over its amount. A plain CHECK would say too much: a provider may
-- bill more than was reserved, an owner may lower the amount, and neither fact may be refused.
CREATE FUNCTION gristmill.guard_reservation() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.spent + NEW.reserved > NEW.amount AND (TG_OP = 'INSERT' OR NEW.reserved > OLD.reserved) THEN
        RAISE EXCEPTION 'reserving % would take the budget over its %', NEW.reserved, NEW.amount
            USING ERRCODE = 'check_violation', CONSTRAINT = 'reservation_within_budget',
                  TABLE = 'budgets', SCHEMA = 'gristmill';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER budgets_guard BEFORE INSERT OR UPDATE OF reserved ON gristmill.budgets
    FOR EACH ROW WHEN (NEW.reserved > 0) EXECUTE FUNCTION gristmill.guard_reservation();

-- One call of a model or a paid tool. The id is ours, made before the call; the provider's request id
-- is a note, because providers repeat them. Cost is unknown (null) until settled, and where no price is.
CREATE TABLE gristmill.usages (
    id                  uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id        uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id         text,
    type                gristmill.usage_type NOT NULL,
    kind                gristmill.usage_kind NOT NULL,
    state               gristmill.usage_state NOT NULL DEFAULT 'OPEN',
    user_id             uuid REFERENCES gristmill.users ON DELETE SET NULL,
    agent_id            uuid REFERENCES gristmill.agents ON DELETE SET NULL,
    conversation_id     uuid REFERENCES gristmill.conversations ON DELETE SET NULL,
    message_id          uuid REFERENCES gristmill.messages ON DELETE SET NULL,
    tool_call_id        uuid REFERENCES gristmill.tool_calls ON DELETE SET NULL,
    -- Jobs are pruned, the ledger is not: no foreign key.
    job_id              uuid,
    provider            text NOT NULL CHECK (provider <> ''),
    model               text NOT NULL CHECK (model <> ''),
    model_id            uuid REFERENCES gristmill.models ON DELETE SET NULL,
    price_id            uuid REFERENCES gristmill.model_prices ON DELETE SET NULL,
    key_source          gristmill.key_source NOT NULL,
    input_tokens        bigint CHECK (input_tokens >= 0),
    cache_read_tokens   bigint CHECK (cache_read_tokens >= 0),
    cache_write_tokens  bigint CHECK (cache_write_tokens >= 0),
    output_tokens       bigint CHECK (output_tokens >= 0),
    reasoning_tokens    bigint CHECK (reasoning_tokens >= 0),
    cost                numeric CHECK (cost >= 0),
    unpriced            boolean NOT NULL DEFAULT false,
    source              gristmill.usage_source,
    latency_ms          bigint CHECK (latency_ms >= 0),
    provider_request_id text,
    failure             text,
    settled_at          timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    CONSTRAINT closed_has_its_time CHECK ((state = 'OPEN') = (settled_at IS NULL)),
    CONSTRAINT settled_is_counted CHECK (
        (state = 'SETTLED') = (num_nonnulls(input_tokens, cache_read_tokens, cache_write_tokens,
                                            output_tokens, reasoning_tokens, source) = 6)),
    -- An unknown price is flagged, never zero.
    CONSTRAINT settled_is_priced_or_flagged CHECK ((state = 'SETTLED' AND NOT unpriced) = (cost IS NOT NULL))
);
CREATE INDEX usages_by_workspace ON gristmill.usages (workspace_id, created_at);
CREATE INDEX usages_by_user ON gristmill.usages (user_id, created_at);
CREATE INDEX usages_by_agent ON gristmill.usages (agent_id, created_at);
CREATE INDEX usages_by_conversation ON gristmill.usages (conversation_id);
CREATE INDEX usages_by_message ON gristmill.usages (message_id);
CREATE INDEX usages_by_tool_call ON gristmill.usages (tool_call_id);
CREATE INDEX usages_by_model ON gristmill.usages (model_id, created_at);
CREATE INDEX usages_by_price ON gristmill.usages (price_id);
CREATE INDEX usages_open ON gristmill.usages (workspace_id, created_at) WHERE settled_at IS NULL;

-- What an open call holds of a budget. The row goes when the call settles; a sweeper takes the dead ones.
CREATE TABLE gristmill.reservations (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    usage_id     uuid NOT NULL REFERENCES gristmill.usages ON DELETE CASCADE,
    budget_id    uuid NOT NULL REFERENCES gristmill.budgets ON DELETE CASCADE,
    amount       numeric NOT NULL CHECK (amount >= 0),
    expires_at   timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (usage_id, budget_id)
);
CREATE INDEX reservations_by_budget ON gristmill.reservations (budget_id);
CREATE INDEX reservations_by_expiry ON gristmill.reservations (workspace_id, expires_at);

-- Settled usage in the shape that workspaces read it; the reader's row-level security applies.
CREATE VIEW gristmill.usage_stats WITH (security_invoker = true) AS
SELECT id, workspace_id, model, provider,
       input_tokens + cache_read_tokens + cache_write_tokens AS input_tokens,
       output_tokens + reasoning_tokens AS output_tokens,
       input_tokens + cache_read_tokens + cache_write_tokens + output_tokens + reasoning_tokens AS total_tokens,
       cost, settled_at AS "timestamp"
FROM gristmill.usages
WHERE state = 'SETTLED';

CALL gristmill.keep_updated_at('providers', 'models', 'llm_connections', 'budgets', 'usages');
