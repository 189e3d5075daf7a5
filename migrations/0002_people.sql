-- People and what they may do: users, their profile, keys, sessions, roles and policies.
-- A person who works in two workspaces is two rows: a tenant's rows name only the tenant's rows.

-- The chat layer's words, and COMPATIBLE for anything that speaks OpenAI's protocol.
CREATE TYPE gristmill.provider AS ENUM ('OPENAI', 'GROK', 'GEMINI', 'ANTHROPIC', 'COMPATIBLE');
CREATE TYPE gristmill.theme AS ENUM ('LIGHT', 'DARK', 'SYSTEM');
CREATE TYPE gristmill.user_status AS ENUM ('Active', 'Inactive', 'Disabled');

-- History that a reader may trust: only a cascade from its parent removes such a row.
CREATE FUNCTION gristmill.refuse_update() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are never changed', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', HINT = 'insert a new row instead';
END
$$;

-- Gives each named table the trigger that keeps `updated_at`.
CREATE PROCEDURE gristmill.keep_updated_at(VARIADIC of_tables text[])
LANGUAGE plpgsql AS $$
DECLARE
    of_table text;
BEGIN
    FOREACH of_table IN ARRAY of_tables LOOP
        EXECUTE format(
            'CREATE TRIGGER %I BEFORE UPDATE ON gristmill.%I FOR EACH ROW EXECUTE FUNCTION gristmill.touch_updated_at()',
            of_table || '_touch', of_table);
    END LOOP;
END
$$;

-- What a user may do in the workspace: 'Admin', 'Super User', 'User', or the product's own.
CREATE TABLE gristmill.roles (
    id            uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id  uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id   text,
    name          text NOT NULL CHECK (name <> ''),
    display_order int NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (workspace_id, name)
);

-- One permission: an action on a resource ('tool:weather', 'call'); '*' stands for all.
CREATE TABLE gristmill.policies (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id  text,
    name         text NOT NULL CHECK (name <> ''),
    resource     text NOT NULL CHECK (resource <> ''),
    action       text NOT NULL CHECK (action <> ''),
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (workspace_id, resource, action)
);

-- Which role carries which permission.
CREATE TABLE gristmill.role_policies (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    role_id      uuid NOT NULL REFERENCES gristmill.roles ON DELETE CASCADE,
    policy_id    uuid NOT NULL REFERENCES gristmill.policies ON DELETE CASCADE,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (role_id, policy_id)
);
CREATE INDEX role_policies_by_policy ON gristmill.role_policies (policy_id);

-- A person of a workspace. Money lies in `budgets`; the product's API key only as its digest.
CREATE TABLE gristmill.users (
    id             uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id   uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id    text,
    name           text,
    first_name     text,
    last_name      text,
    email          text CHECK (email LIKE '%_@_%'),
    email_verified timestamptz,
    image          text,
    role_id        uuid REFERENCES gristmill.roles ON DELETE SET NULL,
    status         gristmill.user_status NOT NULL DEFAULT 'Active',
    api_key_sha256 bytea UNIQUE CHECK (octet_length(api_key_sha256) = 32),
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id)
);
CREATE UNIQUE INDEX users_by_email ON gristmill.users (workspace_id, lower(email));
CREATE INDEX users_by_role ON gristmill.users (role_id);

-- Where a user is; grounded web search sends the place with the question.
CREATE TABLE gristmill.profiles (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id  text,
    user_id      uuid NOT NULL UNIQUE REFERENCES gristmill.users ON DELETE CASCADE,
    bio          text,
    city         text,
    region       text,
    country      text,
    postal_code  text,
    lat          double precision CHECK (lat BETWEEN -90 AND 90),
    lng          double precision CHECK (lng BETWEEN -180 AND 180),
    timezone     text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    CONSTRAINT place_is_whole CHECK ((lat IS NULL) = (lng IS NULL))
);

-- What a user chose once for all conversations.
CREATE TABLE gristmill.user_settings (
    id               uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id     uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id      text,
    user_id          uuid NOT NULL UNIQUE REFERENCES gristmill.users ON DELETE CASCADE,
    theme            gristmill.theme NOT NULL DEFAULT 'SYSTEM',
    default_provider gristmill.provider,
    default_model    text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id)
);

-- A user's own provider key, sealed by AES-256-GCM. `iv` and `auth_tag` are hex or base64, told
-- apart by alphabet. Without `key_id` the row was sealed by the chat layer, with no additional data.
CREATE TABLE gristmill.user_keys (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id  text,
    user_id      uuid NOT NULL REFERENCES gristmill.users ON DELETE CASCADE,
    provider     gristmill.provider NOT NULL,
    -- The only place a COMPATIBLE key is ever sent to.
    base_url     text,
    api_key      text NOT NULL CHECK (octet_length(api_key) BETWEEN 1 AND 512),
    iv           text NOT NULL CHECK (octet_length(iv) BETWEEN 16 AND 32),
    auth_tag     text NOT NULL CHECK (octet_length(auth_tag) BETWEEN 22 AND 32),
    key_id       text,
    -- Part of the additional data: an old ciphertext put back does not open.
    version      int NOT NULL DEFAULT 1 CHECK (version > 0),
    label        text,
    is_default   boolean NOT NULL DEFAULT false,
    -- Set when the user put a new key in its place; calls in flight may still hold this one.
    retired_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    CONSTRAINT compatible_names_its_url CHECK (provider <> 'COMPATIBLE' OR base_url IS NOT NULL),
    CONSTRAINT retired_is_no_default CHECK (retired_at IS NULL OR NOT is_default)
);
CREATE UNIQUE INDEX user_keys_one_in_use ON gristmill.user_keys (user_id, provider) WHERE retired_at IS NULL;
CREATE UNIQUE INDEX user_keys_one_default ON gristmill.user_keys (user_id) WHERE is_default;
CREATE INDEX user_keys_by_user ON gristmill.user_keys (user_id);
CREATE INDEX user_keys_by_key ON gristmill.user_keys (key_id);

-- A login, kept here so that `tidy` removes it when it is over. The worker cannot read token or data.
CREATE TABLE gristmill.sessions (
    id            uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id  uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id   text,
    user_id       uuid REFERENCES gristmill.users ON DELETE CASCADE,
    session_token text NOT NULL UNIQUE CHECK (session_token <> ''),
    data          text,
    expires       timestamptz NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id)
);
CREATE INDEX sessions_by_user ON gristmill.sessions (user_id);
CREATE INDEX sessions_by_expiry ON gristmill.sessions (workspace_id, expires);

-- A sign-in link that was sent, kept here so that `tidy` removes it when it is over.
CREATE TABLE gristmill.verification_tokens (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    identifier   text NOT NULL CHECK (identifier <> ''),
    token        text NOT NULL CHECK (token <> ''),
    expires      timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, identifier, token)
);
CREATE INDEX verification_tokens_by_expiry ON gristmill.verification_tokens (workspace_id, expires);

CALL gristmill.keep_updated_at('roles', 'policies', 'role_policies', 'users', 'profiles', 'user_settings',
                               'user_keys', 'sessions', 'verification_tokens');
