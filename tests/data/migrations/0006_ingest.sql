INSERT INTO gristmill.attachments (id, workspace_id, conversation_id, user_id, message_id, status, bucket, key)
VALUES ('00000000-0000-7000-8000-000000000501', '00000000-0000-7000-8000-00000000000a',
        '00000000-0000-7000-8000-000000000201', '00000000-0000-7000-8000-000000000103',
        '00000000-0000-7000-8000-000000000202', 'STORED', 'bucket', 'a/plan.md');
INSERT INTO gristmill.verdicts (workspace_id, sha256, outcome, engine, signature_version, detected_mime, size)
VALUES ('00000000-0000-7000-8000-00000000000a', repeat('ab', 32), 'CLEAN', 'built-in', '1', 'text/markdown', 21);
INSERT INTO gristmill.extractions (id, workspace_id, sha256, extractor, bucket, key, facts)
VALUES ('00000000-0000-7000-8000-000000000502', '00000000-0000-7000-8000-00000000000a', repeat('ab', 32), 'text/1',
        'bucket', 'a/text', '{}');
INSERT INTO gristmill.resources (id, workspace_id, tool_id, conversation_id, message_id, attachment_id, name)
VALUES ('00000000-0000-7000-8000-000000000503', '00000000-0000-7000-8000-00000000000a',
        '00000000-0000-7000-8000-000000000305', '00000000-0000-7000-8000-000000000201',
        '00000000-0000-7000-8000-000000000202', '00000000-0000-7000-8000-000000000501', 'plan.md');
INSERT INTO gristmill.generations (id, workspace_id, resource_id, extraction_id, space_id, status, done, total, finished_at)
VALUES ('00000000-0000-7000-8000-000000000504', '00000000-0000-7000-8000-00000000000a',
        '00000000-0000-7000-8000-000000000503', '00000000-0000-7000-8000-000000000502',
        gristmill.ensure_space('a-model', '1', 3), 'INDEXED', 1, 1, now());
INSERT INTO gristmill.chunks (workspace_id, generation_id, resource_id, tool_id, conversation_id, space_id, ord, content,
                              content_sha256, tokens, start_byte, end_byte, language, terms, term_count, embedding)
SELECT workspace_id, id, resource_id, '00000000-0000-7000-8000-000000000305', '00000000-0000-7000-8000-000000000201', space_id,
       0, 'The plan is to ship.', sha256('The plan is to ship.'), 6, 0, 20, 'english',
       to_tsvector('english', 'The plan is to ship.'), 2, '[1,0,0]'
FROM gristmill.generations;
UPDATE gristmill.resources SET live_generation = '00000000-0000-7000-8000-000000000504';
