-- Attachments and what becomes of them: verdict, extraction, generations, chunks.

CREATE TYPE gristmill.asset_origin AS ENUM ('UPLOAD', 'REMOTE', 'GENERATED');
CREATE TYPE gristmill.asset_status AS ENUM (
    'REQUESTED', 'PLANNED', 'UPLOADING', 'STORED', 'SCANNING', 'READY', 'FAILED', 'QUARANTINED', 'ATTACHED');
CREATE TYPE gristmill.index_status AS ENUM (
    'PENDING', 'EXTRACTING', 'CHUNKING', 'EMBEDDING', 'INDEXED', 'EMPTY', 'PARTIAL', 'NEEDS_OCR', 'FAILED', 'CANCELLED');
CREATE TYPE gristmill.verdict_outcome AS ENUM ('CLEAN', 'INFECTED', 'UNSCANNABLE', 'REFUSED');

CREATE TABLE gristmill.attachments (
    id              uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id    uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id     text,
    conversation_id uuid REFERENCES gristmill.conversations ON DELETE CASCADE,
    user_id         uuid REFERENCES gristmill.users ON DELETE CASCADE,
    message_id      uuid REFERENCES gristmill.messages ON DELETE SET NULL,
    origin          gristmill.asset_origin NOT NULL DEFAULT 'UPLOAD',
    status          gristmill.asset_status NOT NULL DEFAULT 'REQUESTED',
    bucket          text NOT NULL CHECK (bucket <> ''),
    key             text NOT NULL CHECK (key <> '' AND octet_length(key) <= 1024),
    region          text NOT NULL DEFAULT 'us-east-1',
    size            bigint CHECK (size >= 0),
    mime            text,
    etag            text,
    version_id      text,
    checksum_sha256 text CHECK (checksum_sha256 ~ '^[0-9a-f]{64}$'),
    source_url      text,
    name            text,
    meta            jsonb NOT NULL DEFAULT '{}',
    -- A machine-readable code and a sentence that says what to do.
    failure_code    text,
    failure         text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id),
    UNIQUE (bucket, key),
    CONSTRAINT remote_names_its_source CHECK (origin <> 'REMOTE' OR source_url IS NOT NULL),
    CONSTRAINT failed_says_why CHECK ((status IN ('FAILED', 'QUARANTINED')) = (failure_code IS NOT NULL)),
    CONSTRAINT stored_is_pinned CHECK (status NOT IN ('READY', 'ATTACHED', 'QUARANTINED')
                                       OR (size IS NOT NULL AND checksum_sha256 IS NOT NULL))
);
CREATE INDEX attachments_by_conversation ON gristmill.attachments (conversation_id, created_at);
CREATE INDEX attachments_by_user ON gristmill.attachments (user_id, created_at);
CREATE INDEX attachments_by_status ON gristmill.attachments (status, created_at);
CREATE INDEX attachments_by_message ON gristmill.attachments (message_id);
CREATE INDEX attachments_by_checksum ON gristmill.attachments (workspace_id, checksum_sha256);
CREATE TRIGGER attachments_touch BEFORE UPDATE ON gristmill.attachments
    FOR EACH ROW EXECUTE FUNCTION gristmill.touch_updated_at();

-- Every status an attachment ever had, written by trigger alone.
CREATE TABLE gristmill.attachment_history (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id  uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    attachment_id uuid NOT NULL REFERENCES gristmill.attachments ON DELETE CASCADE,
    from_status   gristmill.asset_status,
    to_status     gristmill.asset_status NOT NULL,
    reason        text,
    at            timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX attachment_history_by_attachment ON gristmill.attachment_history (attachment_id, id);

-- The legal edges. FAILED > STORED is a retry by hand; READY and ATTACHED go to
-- QUARANTINED when a rescan with newer signatures finds something.
CREATE FUNCTION gristmill.attachment_edge(
    old_status gristmill.asset_status, new_status gristmill.asset_status
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT (old_status, new_status) IN (
        ('REQUESTED', 'PLANNED'), ('PLANNED', 'UPLOADING'), ('UPLOADING', 'STORED'),
        ('STORED', 'SCANNING'), ('SCANNING', 'READY'), ('READY', 'ATTACHED'),
        ('REQUESTED', 'FAILED'), ('PLANNED', 'FAILED'), ('UPLOADING', 'FAILED'),
        ('STORED', 'FAILED'), ('SCANNING', 'FAILED'),
        ('SCANNING', 'QUARANTINED'), ('READY', 'QUARANTINED'), ('ATTACHED', 'QUARANTINED'),
        ('FAILED', 'STORED'))
$$;

CREATE FUNCTION gristmill.guard_attachment_status() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status NOT IN ('REQUESTED', 'PLANNED', 'UPLOADING', 'STORED') THEN
            RAISE EXCEPTION 'an attachment cannot begin as %', NEW.status
                USING ERRCODE = 'check_violation', HINT = 'insert it as REQUESTED or STORED and enqueue `fetch`';
        END IF;
    ELSIF NEW.status <> OLD.status AND NOT gristmill.attachment_edge(OLD.status, NEW.status) THEN
        RAISE EXCEPTION 'an attachment cannot go from % to %', OLD.status, NEW.status
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER attachments_guard BEFORE INSERT OR UPDATE OF status ON gristmill.attachments
    FOR EACH ROW EXECUTE FUNCTION gristmill.guard_attachment_status();

CREATE FUNCTION gristmill.record_attachment_status() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.status <> OLD.status THEN
        INSERT INTO gristmill.attachment_history (workspace_id, attachment_id, from_status, to_status, reason)
        VALUES (NEW.workspace_id, NEW.id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END, NEW.status, NEW.failure_code);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER attachments_record AFTER INSERT OR UPDATE OF status ON gristmill.attachments
    FOR EACH ROW EXECUTE FUNCTION gristmill.record_attachment_status();

-- What a scanner said of some bytes. OK without our own limits checked is never CLEAN.
CREATE TABLE gristmill.verdicts (
    id                uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id      uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    sha256            text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    outcome           gristmill.verdict_outcome NOT NULL,
    engine            text NOT NULL,
    signature_version text NOT NULL,
    signature         text,
    detail            text,
    limits_hit        text[] NOT NULL DEFAULT '{}',
    detected_mime     text NOT NULL,
    size              bigint NOT NULL CHECK (size >= 0),
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (workspace_id, sha256, engine, signature_version),
    CONSTRAINT infected_names_its_signature CHECK ((outcome = 'INFECTED') = (signature IS NOT NULL)),
    CONSTRAINT clean_hit_no_limit CHECK (outcome <> 'CLEAN' OR cardinality(limits_hit) = 0)
);

-- The text of some bytes, stored once as an object; facts say what it holds.
CREATE TABLE gristmill.extractions (
    id           uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    sha256       text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    extractor    text NOT NULL,
    bucket       text NOT NULL,
    key          text NOT NULL,
    facts        jsonb NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, sha256, extractor)
);

-- A vector space: one model at one revision. Its HNSW index is partial, made with it.
CREATE TABLE gristmill.spaces (
    id         int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model      text NOT NULL,
    revision   text NOT NULL,
    dimensions int NOT NULL CHECK (dimensions BETWEEN 1 AND 4000),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (model, revision)
);

-- A file as a knowledge base or a conversation knows it.
CREATE TABLE gristmill.resources (
    id              uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id    uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    external_id     text,
    tool_id         uuid REFERENCES gristmill.tools ON DELETE CASCADE,
    conversation_id uuid REFERENCES gristmill.conversations ON DELETE CASCADE,
    message_id      uuid REFERENCES gristmill.messages ON DELETE SET NULL,
    attachment_id   uuid REFERENCES gristmill.attachments ON DELETE CASCADE,
    name            text NOT NULL,
    description     text,
    metadata        jsonb NOT NULL DEFAULT '{}',
    s3_uri          text,
    mime            text,
    content         text,
    -- Retrieval sees exactly this generation.
    live_generation uuid,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, external_id)
);
CREATE INDEX resources_by_tool ON gristmill.resources (tool_id);
CREATE INDEX resources_by_conversation ON gristmill.resources (conversation_id);
CREATE INDEX resources_by_message ON gristmill.resources (message_id);
CREATE INDEX resources_by_attachment ON gristmill.resources (attachment_id);
CREATE INDEX resources_by_workspace ON gristmill.resources (workspace_id, live_generation);
CREATE INDEX resources_by_metadata ON gristmill.resources USING gin (metadata jsonb_path_ops);
CREATE TRIGGER resources_touch BEFORE UPDATE ON gristmill.resources
    FOR EACH ROW EXECUTE FUNCTION gristmill.touch_updated_at();

-- One index of one resource, built beside the live one and flipped by one update.
CREATE TABLE gristmill.generations (
    id            uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id  uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    resource_id   uuid NOT NULL REFERENCES gristmill.resources ON DELETE CASCADE,
    extraction_id uuid REFERENCES gristmill.extractions,
    space_id      int REFERENCES gristmill.spaces,
    chunk_size    int,
    chunk_overlap int,
    status        gristmill.index_status NOT NULL DEFAULT 'PENDING',
    -- Where each chunk begins and ends in the extracted text, fixed before the first is embedded.
    plan          bytea,
    done          int NOT NULL DEFAULT 0 CHECK (done >= 0),
    total         int CHECK (total >= done),
    detail        jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    finished_at   timestamptz,
    CONSTRAINT indexed_is_complete CHECK (status <> 'INDEXED' OR (total IS NOT NULL AND done = total)),
    CONSTRAINT final_has_its_time CHECK (
        (status IN ('INDEXED', 'EMPTY', 'PARTIAL', 'NEEDS_OCR', 'FAILED', 'CANCELLED')) = (finished_at IS NOT NULL))
);
CREATE INDEX generations_by_resource ON gristmill.generations (resource_id, created_at);
CREATE INDEX generations_by_extraction ON gristmill.generations (extraction_id);
CREATE INDEX generations_unfinished ON gristmill.generations (updated_at) WHERE finished_at IS NULL;
CREATE TRIGGER generations_touch BEFORE UPDATE ON gristmill.generations
    FOR EACH ROW EXECUTE FUNCTION gristmill.touch_updated_at();
ALTER TABLE gristmill.resources ADD CONSTRAINT resources_live_generation
    FOREIGN KEY (live_generation) REFERENCES gristmill.generations ON DELETE SET NULL;

CREATE TABLE gristmill.chunks (
    id              uuid PRIMARY KEY DEFAULT gristmill.uuid7(),
    workspace_id    uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    generation_id   uuid NOT NULL REFERENCES gristmill.generations ON DELETE CASCADE,
    resource_id     uuid NOT NULL REFERENCES gristmill.resources ON DELETE CASCADE,
    tool_id         uuid REFERENCES gristmill.tools ON DELETE CASCADE,
    conversation_id uuid REFERENCES gristmill.conversations ON DELETE CASCADE,
    space_id        int NOT NULL REFERENCES gristmill.spaces,
    ord             int NOT NULL CHECK (ord >= 0),
    content         text NOT NULL CHECK (content <> ''),
    content_sha256  bytea NOT NULL CHECK (octet_length(content_sha256) = 32),
    tokens          int NOT NULL CHECK (tokens > 0),
    -- Slicing the stored extraction's bytes by this range gives `content` exactly.
    start_byte      bigint NOT NULL CHECK (start_byte >= 0),
    end_byte        bigint NOT NULL,
    page_first      int,
    page_last       int,
    -- The text search configuration that made `terms`: the language of the text.
    language        regconfig NOT NULL,
    terms           tsvector NOT NULL,
    -- Length of the chunk in lexemes, counted with repetition (BM25's document length).
    term_count      int NOT NULL CHECK (term_count >= 0),
    embedding       vector NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (generation_id, ord),
    CHECK (end_byte > start_byte)
);
CREATE INDEX chunks_by_resource ON gristmill.chunks (resource_id);
CREATE INDEX chunks_by_tool ON gristmill.chunks (tool_id) WHERE tool_id IS NOT NULL;
CREATE INDEX chunks_by_conversation ON gristmill.chunks (conversation_id) WHERE conversation_id IS NOT NULL;
CREATE INDEX chunks_by_terms ON gristmill.chunks USING gin (terms);
-- The embedding cache: the same text in the same space is embedded once per workspace.
CREATE INDEX chunks_by_content ON gristmill.chunks (workspace_id, space_id, content_sha256);

-- Registers a vector space and makes its HNSW index: `vector` to 2000 dimensions, `halfvec` to 4000.
CREATE FUNCTION gristmill.ensure_space(of_model text, at_revision text, with_dimensions int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, public AS $$
DECLARE
    space int;
    kind text := CASE WHEN with_dimensions <= 2000 THEN 'vector' ELSE 'halfvec' END;
BEGIN
    SELECT id INTO space FROM gristmill.spaces WHERE model = of_model AND revision = at_revision;
    IF space IS NOT NULL THEN
        RETURN space;
    END IF;
    IF with_dimensions > 4000 THEN
        RAISE EXCEPTION '% has % dimensions; pgvector indexes at most 4000', of_model, with_dimensions
            USING HINT = 'choose a model with fewer dimensions, or let the provider shorten the vectors';
    END IF;
    -- Two workers may meet here: the second waits, then finds the row.
    PERFORM pg_advisory_xact_lock(hashtextextended('gristmill.spaces', 0));
    SELECT id INTO space FROM gristmill.spaces WHERE model = of_model AND revision = at_revision;
    IF space IS NULL THEN
        INSERT INTO gristmill.spaces (model, revision, dimensions)
        VALUES (of_model, at_revision, with_dimensions) RETURNING id INTO space;
        EXECUTE format(
            'CREATE INDEX chunks_hnsw_%s ON gristmill.chunks USING hnsw ((embedding::%s(%s)) %s_cosine_ops) WHERE space_id = %s',
            space, kind, with_dimensions, kind, space);
    END IF;
    RETURN space;
END
$$;
-- It runs with the owner's rights, to make an index: nobody but the worker may call it.
REVOKE EXECUTE ON FUNCTION gristmill.ensure_space FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.ensure_space TO gristmill_worker;
