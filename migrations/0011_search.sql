-- The lexical side of retrieval: a true BM25 over `chunks.terms`, in each chunk's own language.
--
-- Nothing is kept beside the chunks: the numbers BM25 needs (how many chunks, how long, in how many
-- a word stands) are counted over the searched scope when a question comes. So ingest writes no
-- statistics, no row is hot, and the numbers are never stale.

-- Trusted and part of contrib. It lets one GIN index hold tenant and terms, so a search in a
-- small workspace does not walk the postings of all the others.
CREATE EXTENSION IF NOT EXISTS btree_gin;
DROP INDEX gristmill.chunks_by_terms;
CREATE INDEX chunks_by_terms ON gristmill.chunks USING gin (workspace_id, terms);
-- How many chunks a scope has and how long they are, without touching the table.
CREATE INDEX chunks_by_length ON gristmill.chunks (workspace_id, generation_id) INCLUDE (language, term_count);
-- Every scored chunk's terms are read, its vector and text are not: those go out of line first.
ALTER TABLE gristmill.chunks ALTER COLUMN terms SET STORAGE MAIN;

-- The text search configuration for a language (ISO 639-1, a region is ignored).
-- An unknown language is `simple`: words are compared as they stand, in lower case.
CREATE FUNCTION gristmill.language_of(iso text) RETURNS regconfig
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
    SELECT coalesce(
        (SELECT c.oid::regconfig
         FROM (VALUES
             ('ar', 'arabic'), ('ca', 'catalan'), ('da', 'danish'), ('de', 'german'), ('el', 'greek'),
             ('en', 'english'), ('es', 'spanish'), ('et', 'estonian'), ('eu', 'basque'), ('fi', 'finnish'),
             ('fr', 'french'), ('ga', 'irish'), ('hi', 'hindi'), ('hu', 'hungarian'), ('hy', 'armenian'),
             ('id', 'indonesian'), ('it', 'italian'), ('lt', 'lithuanian'), ('nb', 'norwegian'),
             ('ne', 'nepali'), ('nl', 'dutch'), ('nn', 'norwegian'), ('no', 'norwegian'), ('pt', 'portuguese'),
             ('ro', 'romanian'), ('ru', 'russian'), ('sr', 'serbian'), ('sv', 'swedish'), ('ta', 'tamil'),
             ('tr', 'turkish'), ('yi', 'yiddish')) AS known (code, config)
         -- Older servers have fewer of them.
         JOIN pg_ts_config c ON c.cfgname = known.config AND c.cfgnamespace = 'pg_catalog'::regnamespace
         WHERE known.code = lower(left(iso, 2)) AND (length(iso) = 2 OR substr(iso, 3, 1) IN ('-', '_'))),
        'pg_catalog.simple'::regconfig)
$$;

-- A chunk's length in lexemes, counted with repetition: what `chunks.term_count` holds.
CREATE FUNCTION gristmill.term_count(terms tsvector) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(sum(cardinality(positions)), 0)::int FROM unnest(terms)
$$;

-- A question's words as the lexemes they are in each language; `no` is the word.
--
-- A stop word of any of the languages is left out of all: the German `die` has no posting in a
-- German chunk, so in an English one it would pass for a rare and telling word.
CREATE FUNCTION gristmill.question_lexemes(languages regconfig[], question text)
RETURNS TABLE (no bigint, language regconfig, lexeme text)
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
    WITH words AS (
        SELECT l.language, d.no, d.lexemes, bool_or(d.lexemes = '{}') OVER (PARTITION BY d.no) AS stop
        FROM unnest(languages) AS l (language),
             -- All built-in configurations share one parser, so word numbers agree.
             ts_debug(l.language, left(question, 4000)) WITH ORDINALITY
                 AS d (alias, description, token, dictionaries, dictionary, lexemes, no)
        WHERE d.lexemes IS NOT NULL
    ), distinct_lexemes AS (
        SELECT min(w.no) AS no, w.language, x.lexeme
        FROM words w, unnest(w.lexemes) AS x (lexeme)
        WHERE NOT w.stop
        GROUP BY w.language, x.lexeme
    ), counted AS (
        SELECT d.*, dense_rank() OVER (ORDER BY d.no) AS place FROM distinct_lexemes d
    )
    -- 64 words are more than a question has; a pasted page is cut.
    SELECT c.no, c.language, c.lexeme FROM counted c WHERE c.place <= 64
$$;

-- One lexeme as a query, whatever characters it holds.
CREATE FUNCTION gristmill.exactly(lexeme text) RETURNS tsquery
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
    SELECT ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''')::tsquery
$$;

-- The best `want` chunks of the scope for a question, by BM25 (Robertson, Spärck Jones), and
-- beside them the scores of the chunks named in `also` that match at all.
--
-- k1 = 0.9 and b = 0.4 are Anserini's defaults, those of BEIR's BM25 baseline: chunks are cut to
-- one size, so a short one is a tail and not a terse document, and deserves little of b's favour.
--
-- It runs as its owner because `@@` is not leakproof: under row-level security the planner would
-- never let it near the GIN index. Hence every read below names the tenant itself.
CREATE FUNCTION gristmill.bm25(
    question text, want int,
    of_tool uuid DEFAULT NULL, of_conversation uuid DEFAULT NULL, of_resource uuid DEFAULT NULL,
    with_metadata jsonb DEFAULT NULL, also uuid[] DEFAULT '{}',
    k1 float8 DEFAULT 0.9, b float8 DEFAULT 0.4
) RETURNS TABLE (chunk_id uuid, score float8)
LANGUAGE plpgsql STABLE SECURITY DEFINER COST 10000 ROWS 200
SET search_path = pg_catalog, gristmill AS $$
DECLARE
    tenant uuid := current_workspace();
    live uuid[];
    chunk_total bigint;
    mean_length float8;
    languages regconfig[];
    postings text;
BEGIN
    SELECT array_agg(r.live_generation) INTO live
    FROM resources r
    WHERE r.workspace_id = tenant AND r.live_generation IS NOT NULL
      AND (of_tool IS NULL OR r.tool_id = of_tool)
      AND (of_conversation IS NULL OR r.conversation_id = of_conversation)
      AND (of_resource IS NULL OR r.id = of_resource)
      AND (with_metadata IS NULL OR r.metadata @> with_metadata);

    SELECT sum(s.n), greatest(sum(s.lexemes) / sum(s.n), 1), array_agg(s.language)
    INTO chunk_total, mean_length, languages
    FROM (SELECT c.language, count(*) AS n, sum(c.term_count) AS lexemes
          FROM chunks c WHERE c.workspace_id = tenant AND c.generation_id = ANY (live)
          GROUP BY c.language) s;
    IF chunk_total IS NULL THEN
        RETURN;
    END IF;

    -- One branch a lexeme, its value in the text: so the planner knows how common it is. ts_rank of
    -- one lexeme with equal weights is sum(1/i², i = 1..tf) / (π²/6), which gives tf back.
    SELECT string_agg(format(
        'SELECT %s, c.id, c.generation_id, c.term_count, ts_rank(''{1,1,1,1}'', c.terms, %3$L) FROM %4$s c '
        'WHERE c.terms @@ %3$L::tsquery AND c.language = %2$L::regconfig%5$s',
        q.no, q.language, exactly(q.lexeme),
        -- A small scope is read once from its generations; in a large one each lexeme's postings are.
        CASE WHEN chunk_total <= 4000 THEN 'scope' ELSE 'chunks' END,
        CASE WHEN chunk_total <= 4000 THEN '' ELSE format(' AND c.workspace_id = %L', tenant) END),
        ' UNION ALL ')
    INTO postings
    FROM question_lexemes(languages, question) q;
    IF postings IS NULL THEN
        RETURN;
    END IF;

    RETURN QUERY EXECUTE format($q$
        WITH scope AS MATERIALIZED (
            SELECT c.id, c.generation_id, c.language, c.term_count, c.terms FROM chunks c
            WHERE c.workspace_id = $1 AND c.generation_id = ANY ($2)
        ), postings AS MATERIALIZED (
            SELECT p.no, p.id, p.term_count, round(6 / (pi() ^ 2 * (1 - p.rank)) - 0.5) AS tf
            -- The fence keeps the planner from testing generations once a branch.
            FROM (%s OFFSET 0) p (no, id, generation_id, term_count, rank)
            WHERE p.generation_id = ANY ($2)
        ), words AS (
            -- A word's forms in all languages are one term.
            SELECT p.no, ln(1 + ($3 - count(*) + 0.5) / (count(*) + 0.5))::float8 AS idf
            FROM postings p GROUP BY p.no
        ), scores AS MATERIALIZED (
            SELECT p.id,
                   sum(w.idf * p.tf * ($7 + 1) / (p.tf + $7 * (1 - $8 + $8 * p.term_count / $4))) AS score
            FROM postings p JOIN words w USING (no)
            GROUP BY p.id
        )
        (SELECT s.id, s.score FROM scores s ORDER BY s.score DESC, s.id LIMIT $5)
        UNION
        SELECT s.id, s.score FROM scores s WHERE s.id = ANY ($6)
        $q$, postings)
    USING tenant, live, chunk_total, mean_length, want, also, k1, b;
END
$$;
REVOKE EXECUTE ON FUNCTION gristmill.bm25 FROM PUBLIC;
GRANT EXECUTE ON FUNCTION gristmill.bm25 TO gristmill_worker;

-- The passages of a chunk that answer to a question, the words that match between the control
-- characters STX and ETX, at most three fragments: the caller turns the marks into its own.
CREATE FUNCTION gristmill.highlight(language regconfig, content text, question text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
    SELECT CASE
        WHEN q.any_of IS NULL THEN left(content, 240)
        ELSE ts_headline(language, left(content, 20000), q.any_of,
            format('StartSel="%s", StopSel="%s", MaxFragments=3, MinWords=8, MaxWords=24, FragmentDelimiter=" … "',
                   chr(2), chr(3)))
    END
    FROM (SELECT string_agg(gristmill.exactly(l.lexeme)::text, ' | ')::tsquery AS any_of
          FROM gristmill.question_lexemes(ARRAY[language], question) l) q
$$;
