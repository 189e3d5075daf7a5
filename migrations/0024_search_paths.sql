-- A function with a search_path of its own looks temporary objects through first, types and tables
-- alike, unless the path names them last. Called by one that runs with its owner's rights, it would
-- run what whoever called that one left there: so every path says where they come.
DO $$
DECLARE
    pathed record;
BEGIN
    FOR pathed IN
        SELECT p.oid::regprocedure AS name, substr(c.setting, length('search_path=') + 1) AS path
        FROM pg_proc p, unnest(p.proconfig) AS c (setting)
        WHERE p.pronamespace = 'gristmill'::regnamespace
          AND c.setting LIKE 'search_path=%' AND c.setting NOT LIKE '%pg_temp'
    LOOP
        EXECUTE format('ALTER ROUTINE %s SET search_path = %s, pg_temp', pathed.name, pathed.path);
    END LOOP;
END
$$;
