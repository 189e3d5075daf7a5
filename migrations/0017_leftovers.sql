-- What of a forgotten attachment still lies in the bucket after its rows are gone.
--
-- `forget` decides under a lock which texts are nobody else's, and removes rows in that same
-- transaction; objects cannot be part of one. So their places are written down here first, and
-- a crash between leaves a note, not a lost object. Such an object is never asked for again: the
-- key of a text belongs to one attempt at one extraction.

CREATE TABLE gristmill.leftovers (
    workspace_id  uuid NOT NULL REFERENCES gristmill.workspaces ON DELETE CASCADE,
    -- Its row is gone, so it is no foreign key.
    attachment_id uuid NOT NULL,
    -- An array of {bucket, key}.
    objects       jsonb NOT NULL CHECK (jsonb_typeof(objects) = 'array'),
    -- What the event will say was removed.
    removed       jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, attachment_id)
);
ALTER TABLE gristmill.leftovers ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON gristmill.leftovers
    USING (workspace_id = gristmill.current_workspace()) WITH CHECK (workspace_id = gristmill.current_workspace());
GRANT SELECT, INSERT, DELETE ON gristmill.leftovers TO gristmill_worker;
