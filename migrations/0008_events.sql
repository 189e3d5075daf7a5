-- What the chat layer learns, written in the transaction of the change it tells.

CREATE TABLE gristmill.events (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    -- The writing transaction: a reader that stays below the oldest running one skips no late committer.
    xid          xid8 NOT NULL DEFAULT pg_current_xact_id(),
    type         text NOT NULL CHECK (type ~ '^[a-z_]+(\.[a-z_]+)+$'),
    subject      text NOT NULL,
    subject_id   uuid NOT NULL,
    body         jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX events_by_workspace ON gristmill.events (workspace_id, xid, id);
CREATE INDEX events_by_subject ON gristmill.events (subject_id, id);

-- The payload is the id alone: a listener reads the row, and rights decide what it sees.
CREATE FUNCTION gristmill.announce_event() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('gristmill_events', NEW.id::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER events_announce AFTER INSERT ON gristmill.events
    FOR EACH ROW EXECUTE FUNCTION gristmill.announce_event();
