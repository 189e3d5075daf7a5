-- A row of one tenant can name only rows of the same tenant: row-level security hides foreign rows
-- from readers but does not bind foreign keys. So every foreign key between two tenant tables becomes
-- (workspace_id, column) → (workspace_id, id), with the same action on delete. A later migration that
-- adds one writes it in this form; a test looks.

DO $$
DECLARE
    fk record;
    unindexed regclass;
BEGIN
    FOR fk IN
        SELECT con.conname, con.confdeltype, con.conrelid::regclass AS child, con.confrelid::regclass AS parent,
               parent.relname AS parent_name, col.attname AS col
        FROM pg_constraint con
        JOIN pg_class parent ON parent.oid = con.confrelid
        JOIN pg_attribute col ON col.attrelid = con.conrelid AND col.attnum = con.conkey[1]
        WHERE con.contype = 'f' AND cardinality(con.conkey) = 1
          AND con.connamespace = 'gristmill'::regnamespace
          AND col.attname <> 'workspace_id'
          AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = con.conrelid AND a.attname = 'workspace_id')
          AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = con.confrelid AND a.attname = 'workspace_id')
        ORDER BY con.conrelid::regclass::text, con.conname
    LOOP
        IF NOT EXISTS (SELECT FROM pg_constraint
                       WHERE conrelid = fk.parent AND conname = fk.parent_name || '_of_tenant') THEN
            EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I UNIQUE (workspace_id, id)',
                           fk.parent, fk.parent_name || '_of_tenant');
        END IF;
        EXECUTE format(
            'ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I FOREIGN KEY (workspace_id, %I) REFERENCES %s (workspace_id, id)%s',
            fk.child, fk.conname, fk.conname, fk.col, fk.parent,
            CASE fk.confdeltype
                WHEN 'c' THEN ' ON DELETE CASCADE'
                WHEN 'n' THEN format(' ON DELETE SET NULL (%I)', fk.col)
                ELSE '' END);
    END LOOP;

    -- A tenant's rows are listed, and removed with it, by an index.
    FOR unindexed IN
        SELECT con.conrelid::regclass FROM pg_constraint con
        WHERE con.contype = 'f' AND con.confrelid = 'gristmill.workspaces'::regclass
          AND NOT EXISTS (SELECT FROM pg_index i
                          WHERE i.indrelid = con.conrelid AND i.indkey[0] = con.conkey[1] AND i.indpred IS NULL)
    LOOP
        EXECUTE format('CREATE INDEX ON %s (workspace_id)', unindexed);
    END LOOP;
END
$$;
