-- Credentials of tools: renewed by one at a time, and what waited for one goes on when it comes.

-- Who renews an OAuth token holds it for so long; the others wait for the next version. A lease, not
-- a lock: no transaction spans the request to the provider.
ALTER TABLE gristmill.tool_credentials ADD COLUMN renewing_until timestamptz;
-- Why this version no longer serves (the provider took it back); a new one clears it.
ALTER TABLE gristmill.tool_credentials ADD COLUMN failure text CHECK (failure <> '');
-- When the worker itself renewed it; NULL: a person saved it.
ALTER TABLE gristmill.tool_credentials ADD COLUMN renewed_at timestamptz;

-- Wakes the calls that are parked in `waits` for one of these tools; of one person, or of all where
-- it is null. A call's job carries the call's id as its key. What is woken looks again, and parks
-- itself again if that was not all it waited for.
CREATE FUNCTION gristmill.wake_calls(
    workspace uuid, of_tools uuid[], waits gristmill.tool_call_state, of_user uuid DEFAULT NULL
) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
    -- Locked in the order of their ids, so that two that wake the same calls do not wait in a ring.
    WITH waiting AS MATERIALIZED (
        SELECT j.id FROM tool_calls c
        JOIN jobs j ON j.kind = 'tool_call' AND j.workspace_id = c.workspace_id AND j.unique_key = c.id::text
                   AND j.state IN ('PARKED', 'RUNNING')
        WHERE c.workspace_id = workspace AND c.tool_id = ANY (of_tools) AND c.finished_at IS NULL
          -- STARTED and parked: a task of a server, whose credential ended.
          AND (c.state IN (waits, 'STARTED') OR j.state = 'RUNNING')
          AND (of_user IS NULL OR c.user_id = of_user)
          AND workspace = coalesce(current_workspace(), workspace)
        ORDER BY j.id)
    SELECT count(*) FILTER (WHERE unpark(id)) FROM waiting
$$;

-- A credential came, or a new version of one: whoever writes it, and in the same transaction. A
-- renewal wakes nobody: who waits for a person waits on, and a server that refuses each renewed
-- token would else start the same call again for ever.
CREATE FUNCTION gristmill.credential_saved() RETURNS trigger
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
    RETURN NULL;
END
$$;
CREATE TRIGGER tool_credentials_wake AFTER INSERT OR UPDATE OF credential ON gristmill.tool_credentials
    FOR EACH ROW EXECUTE FUNCTION gristmill.credential_saved();

REVOKE EXECUTE ON FUNCTION gristmill.wake_calls, gristmill.credential_saved FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.wake_calls TO gristmill_worker;
