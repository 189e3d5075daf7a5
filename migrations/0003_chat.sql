-- Conversations, their messages, and the summaries that fold long ones.

CREATE TYPE gristmill.message_role AS ENUM ('system', 'user', 'assistant', 'tool');
CREATE TYPE gristmill.sender_type AS ENUM ('USER', 'AI', 'SYSTEM');
CREATE TYPE gristmill.highlight_kind AS ENUM ('TEXT', 'CODE');
CREATE TYPE gristmill.summary_method AS ENUM ('MODEL', 'EXTRACTIVE');

-- How a workspace answers where a conversation says nothing else.
CREATE TABLE gristmill.workspace_settings (
    id                uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id      uuid NOT NULL UNIQUE REFERENCES gristmill.workspaces ON DELETE CASCADE,
    default_model     text,
    system_prompt     text,
    temperature       double precision CHECK (temperature BETWEEN 0 AND 2),
    max_tokens        bigint CHECK (max_tokens > 0),
    top_p             double precision CHECK (top_p BETWEEN 0 AND 1),
    frequency_penalty double precision CHECK (frequency_penalty BETWEEN -2 AND 2),
    presence_penalty  double precision CHECK (presence_penalty BETWEEN -2 AND 2),
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);

-- A chat. A branch or thread is a conversation of its own that names its parent.
CREATE TABLE gristmill.conversations (
    id                uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id      uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id       text,
    user_id           uuid REFERENCES gristmill.users ON DELETE CASCADE,
    user_key_id       uuid REFERENCES gristmill.user_keys ON DELETE SET NULL,
    title             text,
    -- Preview of the newest message.
    last_message      text,
    branch_id         text,
    parent_id         uuid REFERENCES gristmill.conversations ON DELETE SET NULL,
    -- The parent's messages up to this one come before the branch's own.
    forked_after_sn   bigint CHECK (forked_after_sn >= 0),
    is_shared         boolean NOT NULL DEFAULT false,
    share_token       text UNIQUE,
    deleted_at        timestamptz,
    deleted           boolean NOT NULL GENERATED ALWAYS AS (deleted_at IS NOT NULL) STORED,
    -- The last message that the summary in force covers; moves by compare-and-set only.
    latest_summary_sn bigint,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    CONSTRAINT shared_by_token CHECK (NOT is_shared OR share_token IS NOT NULL),
    CONSTRAINT branch_is_not_its_parent CHECK (parent_id <> id),
    CONSTRAINT fork_names_its_parent CHECK (forked_after_sn IS NULL OR parent_id IS NOT NULL)
);
CREATE INDEX conversations_by_user ON gristmill.conversations (user_id, updated_at);
CREATE INDEX conversations_by_user_key ON gristmill.conversations (user_key_id);
CREATE INDEX conversations_by_parent ON gristmill.conversations (parent_id);

-- What one conversation asks of its answers.
CREATE TABLE gristmill.conversation_settings (
    id                uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id      uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id       text,
    conversation_id   uuid NOT NULL UNIQUE REFERENCES gristmill.conversations ON DELETE CASCADE,
    system_prompt     text,
    enable_thinking   boolean NOT NULL DEFAULT false,
    track_usage       boolean NOT NULL DEFAULT false,
    enable_web_search boolean NOT NULL DEFAULT false,
    enable_asset_gen  boolean NOT NULL DEFAULT false,
    max_tokens        bigint CHECK (max_tokens > 0),
    usage_alerts      boolean NOT NULL DEFAULT true,
    temperature       double precision DEFAULT 1 CHECK (temperature BETWEEN 0 AND 2),
    top_p             double precision DEFAULT 1 CHECK (top_p BETWEEN 0 AND 1),
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id)
);

-- One message. Writers give `role` or `sender_type`, and a serial number or none: triggers fill the rest.
CREATE TABLE gristmill.messages (
    id                   uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id         uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id          text,
    conversation_id      uuid NOT NULL REFERENCES gristmill.conversations ON DELETE CASCADE,
    serial_number        bigint NOT NULL CHECK (serial_number > 0),
    role                 gristmill.message_role NOT NULL,
    sender_type          gristmill.sender_type NOT NULL,
    user_id              uuid REFERENCES gristmill.users ON DELETE SET NULL,
    provider             gristmill.provider,
    model                text,
    user_key_id          uuid REFERENCES gristmill.user_keys ON DELETE SET NULL,
    -- The parts of a structured message; `content_text` is what a reader sees of it.
    content              jsonb,
    content_text         text NOT NULL DEFAULT '',
    thinking_text        text,
    thinking_duration    bigint CHECK (thinking_duration >= 0),
    tokens               bigint CHECK (tokens >= 0),
    -- The message that this one answers anew (try again), or that it branches from.
    parent_id            uuid REFERENCES gristmill.messages ON DELETE SET NULL,
    -- The assistant's message whose call a `tool` message answers.
    assistant_message_id uuid REFERENCES gristmill.messages ON DELETE SET NULL,
    tool_call_id         text,
    liked                boolean NOT NULL DEFAULT false,
    disliked             boolean NOT NULL DEFAULT false,
    try_again            boolean NOT NULL DEFAULT false,
    metadata             jsonb NOT NULL DEFAULT '{}',
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (conversation_id, serial_number),
    CONSTRAINT role_and_sender_agree CHECK (sender_type = CASE role
        WHEN 'user' THEN 'USER'::gristmill.sender_type
        WHEN 'assistant' THEN 'AI'
        ELSE 'SYSTEM' END),
    CONSTRAINT not_liked_and_disliked CHECK (NOT (liked AND disliked))
);
CREATE INDEX messages_by_user ON gristmill.messages (user_id);
CREATE INDEX messages_by_user_key ON gristmill.messages (user_key_id);
CREATE INDEX messages_by_parent ON gristmill.messages (parent_id);
CREATE INDEX messages_by_assistant_message ON gristmill.messages (assistant_message_id);
CREATE INDEX messages_by_tool_call ON gristmill.messages (conversation_id, tool_call_id) WHERE tool_call_id IS NOT NULL;

CREATE FUNCTION gristmill.complete_message() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.role IS NULL THEN
        NEW.role := CASE NEW.sender_type
            WHEN 'AI' THEN 'assistant' WHEN 'SYSTEM' THEN 'system' ELSE 'user' END;
    END IF;
    IF NEW.sender_type IS NULL THEN
        NEW.sender_type := CASE NEW.role WHEN 'user' THEN 'USER' WHEN 'assistant' THEN 'AI' ELSE 'SYSTEM' END;
    END IF;
    IF NEW.serial_number IS NULL THEN
        -- Writers of one conversation wait for each other here, so numbers follow commits.
        PERFORM FROM gristmill.conversations WHERE id = NEW.conversation_id FOR NO KEY UPDATE;
        SELECT coalesce(max(serial_number), 0) + 1 INTO NEW.serial_number
        FROM gristmill.messages WHERE conversation_id = NEW.conversation_id;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER messages_complete BEFORE INSERT ON gristmill.messages
    FOR EACH ROW EXECUTE FUNCTION gristmill.complete_message();

-- A passage that a user marked.
CREATE TABLE gristmill.message_highlights (
    id            uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id  uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id   text,
    message_id    uuid NOT NULL REFERENCES gristmill.messages ON DELETE CASCADE,
    user_id       uuid NOT NULL REFERENCES gristmill.users ON DELETE CASCADE,
    kind          gristmill.highlight_kind NOT NULL DEFAULT 'TEXT',
    text_quote    jsonb NOT NULL,
    range_start   int CHECK (range_start >= 0),
    range_end     int,
    language      text,
    color         text,
    note          text,
    is_pinned     boolean NOT NULL DEFAULT false,
    -- Computed by the chat layer; the same passage is marked once.
    selector_hash text NOT NULL CHECK (octet_length(selector_hash) BETWEEN 1 AND 64),
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (workspace_id, selector_hash),
    CONSTRAINT range_runs_forward CHECK (range_end >= range_start)
);
CREATE INDEX message_highlights_by_message ON gristmill.message_highlights (message_id, created_at);
CREATE INDEX message_highlights_by_user ON gristmill.message_highlights (user_id, created_at);
CREATE INDEX message_highlights_pinned ON gristmill.message_highlights (workspace_id, created_at) WHERE is_pinned;

-- A summary of the messages from_sn..to_sn, never changed once written. In force is the newest
-- row whose to_sn is the conversation's latest_summary_sn; undo moves the pointer, not the row.
CREATE TABLE gristmill.summaries (
    id              uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id    uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    conversation_id uuid NOT NULL REFERENCES gristmill.conversations ON DELETE CASCADE,
    -- The summary that this one was rolled forward from.
    previous_id     uuid REFERENCES gristmill.summaries,
    from_sn         bigint NOT NULL CHECK (from_sn > 0),
    to_sn           bigint NOT NULL,
    content         text NOT NULL CHECK (content <> ''),
    -- Goals, facts, decisions, open questions, names and numbers, tool outcomes.
    structure       jsonb NOT NULL DEFAULT '{}',
    method          gristmill.summary_method NOT NULL,
    model           text,
    prompt_name     text,
    prompt_version  int,
    tokens          bigint NOT NULL CHECK (tokens > 0),
    source_tokens   bigint NOT NULL CHECK (source_tokens > 0),
    -- What was checked before the pointer moved, and what was found.
    checks          jsonb NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT summary_runs_forward CHECK (to_sn >= from_sn),
    CONSTRAINT model_names_itself CHECK ((method = 'MODEL') = (model IS NOT NULL))
);
CREATE INDEX summaries_by_conversation ON gristmill.summaries (conversation_id, to_sn, id);
CREATE INDEX summaries_by_previous ON gristmill.summaries (previous_id);
CREATE TRIGGER summaries_immutable BEFORE UPDATE ON gristmill.summaries
    FOR EACH ROW EXECUTE FUNCTION gristmill.refuse_update();

CREATE FUNCTION gristmill.guard_summary_pointer() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM gristmill.summaries
                   WHERE conversation_id = NEW.id AND to_sn = NEW.latest_summary_sn) THEN
        RAISE EXCEPTION 'conversation % has no summary up to message %', NEW.id, NEW.latest_summary_sn
            USING ERRCODE = 'check_violation', HINT = 'insert the summary first, then move the pointer';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER conversations_guard BEFORE INSERT OR UPDATE OF latest_summary_sn ON gristmill.conversations
    FOR EACH ROW WHEN (NEW.latest_summary_sn IS NOT NULL) EXECUTE FUNCTION gristmill.guard_summary_pointer();

CALL gristmill.keep_updated_at('workspace_settings', 'conversations', 'conversation_settings', 'messages',
                               'message_highlights');
