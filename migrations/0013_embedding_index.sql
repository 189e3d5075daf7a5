-- A vector space gets its HNSW index when it is worth one, not when it is made.
--
-- An index over a few thousand vectors finds nothing that comparing each does not, and every
-- insert pays for it: most of what an embed job costs the database. So a space counts what comes
-- in, and gets its index at the number from which search asks it (`EXACT_UP_TO` of the store).
-- Spaces that have their index keep it.

-- How many chunks were stored in the space, counted until there are enough. What is forgotten is
-- not taken off, so the rows themselves are counted once before an index is made; a crash between
-- two counts makes it come some hundred chunks late.
ALTER TABLE gristmill.spaces ADD COLUMN chunks_seen bigint NOT NULL DEFAULT 0 CHECK (chunks_seen >= 0);

-- Registers a vector space.
CREATE OR REPLACE FUNCTION gristmill.ensure_space(of_model text, at_revision text, with_dimensions int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
DECLARE
    space int;
BEGIN
    SELECT id INTO space FROM spaces WHERE model = of_model AND revision = at_revision;
    IF space IS NOT NULL THEN
        RETURN space;
    END IF;
    IF with_dimensions > 4000 THEN
        RAISE EXCEPTION '% has % dimensions; pgvector indexes at most 4000', of_model, with_dimensions
            USING HINT = 'choose a model with fewer dimensions, or let the provider shorten the vectors';
    END IF;
    INSERT INTO spaces (model, revision, dimensions)
    VALUES (of_model, at_revision, with_dimensions)
    ON CONFLICT (model, revision) DO NOTHING RETURNING id INTO space;
    IF space IS NULL THEN
        -- Another worker was faster, and its row is committed: the insert waited for it.
        SELECT id INTO space FROM spaces WHERE model = of_model AND revision = at_revision;
    END IF;
    RETURN space;
END
$$;

CREATE FUNCTION gristmill.has_index(space int) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT to_regclass('gristmill.chunks_hnsw_' || space) IS NOT NULL
$$;

-- Counts `more` stored chunks of a space, no further than `enough`; answers whether the space has
-- enough and no index yet. All embed jobs of a model share this row: callers count hundreds at
-- once, in a transaction of its own.
CREATE FUNCTION gristmill.count_chunks(space int, more bigint, enough bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, gristmill, pg_temp AS $$
BEGIN
    IF has_index(space) THEN
        RETURN false;
    END IF;
    UPDATE spaces SET chunks_seen = chunks_seen + greatest(more, 0) WHERE id = space AND chunks_seen < enough;
    RETURN (SELECT chunks_seen >= enough FROM spaces WHERE id = space);
END
$$;

-- Makes the HNSW index of a space (`vector` to 2000 dimensions, `halfvec` to 4000), unless it is
-- there or fewer than `enough` chunks are; answers whether it was made. In a transaction of its own:
--
-- A plain CREATE INDEX (a concurrent one needs the table's owner outside a transaction) lets
-- readers pass and holds up everybody who writes chunks while it builds: a second or two at the
-- size at which it is asked for. To begin it waits for the writers before it, and those behind it
-- wait too: so not longer than a second, then it fails with lock_not_available and the next
-- embed job asks again. Of two that ask at once one builds, and the other goes its way.
CREATE FUNCTION gristmill.ensure_index(space int, enough bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, gristmill, public, pg_temp SET lock_timeout = '1s' AS $$
DECLARE
    there bigint;
    width int := (SELECT dimensions FROM spaces WHERE id = space);
    kind text := CASE WHEN width <= 2000 THEN 'vector' ELSE 'halfvec' END;
BEGIN
    IF width IS NULL THEN
        RAISE EXCEPTION 'there is no vector space %', space USING ERRCODE = 'no_data_found';
    END IF;
    IF has_index(space) OR NOT pg_try_advisory_xact_lock(hashtextextended('gristmill.index/' || space, 0)) THEN
        RETURN false;
    END IF;
    -- Made between the look and the lock.
    IF has_index(space) THEN
        RETURN false;
    END IF;
    SELECT count(*) INTO there FROM (SELECT FROM chunks WHERE space_id = space LIMIT enough) c;
    IF there < enough THEN
        -- Some were forgotten. From half, so that a space that stays just below is seldom counted.
        UPDATE spaces SET chunks_seen = least(there, enough / 2) WHERE id = space;
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE INDEX chunks_hnsw_%s ON gristmill.chunks USING hnsw ((embedding::%s(%s)) %s_cosine_ops) WHERE space_id = %s',
        space, kind, width, kind, space);
    RETURN true;
END
$$;

-- They run with the owner's rights: nobody but the worker may call them.
REVOKE EXECUTE ON FUNCTION gristmill.count_chunks, gristmill.ensure_index FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.count_chunks, gristmill.ensure_index TO gristmill_worker;
