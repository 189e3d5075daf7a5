INSERT INTO gristmill.workspace_settings (workspace_id, default_model)
VALUES ('00000000-0000-7000-8000-00000000000a', 'a-model');
INSERT INTO gristmill.conversations (id, workspace_id, external_id, user_id, user_key_id, title)
VALUES ('00000000-0000-7000-8000-000000000201', '00000000-0000-7000-8000-00000000000a', 'chat1',
        '00000000-0000-7000-8000-000000000103', '00000000-0000-7000-8000-000000000104', 'A plan');
INSERT INTO gristmill.conversation_settings (workspace_id, conversation_id)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000201');
INSERT INTO gristmill.messages (id, workspace_id, conversation_id, role, content_text)
VALUES ('00000000-0000-7000-8000-000000000202', '00000000-0000-7000-8000-00000000000a',
        '00000000-0000-7000-8000-000000000201', 'user', 'What is the plan?');
INSERT INTO gristmill.messages (id, workspace_id, conversation_id, sender_type, content, parent_id)
VALUES ('00000000-0000-7000-8000-000000000203', '00000000-0000-7000-8000-00000000000a',
        '00000000-0000-7000-8000-000000000201', 'AI', '[{"type": "text", "text": "To ship."}]',
        '00000000-0000-7000-8000-000000000202');
INSERT INTO gristmill.message_highlights (workspace_id, message_id, user_id, text_quote, selector_hash)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000203',
        '00000000-0000-7000-8000-000000000103', '{"exact": "ship"}', repeat('ab', 32));
INSERT INTO gristmill.summaries (id, workspace_id, conversation_id, from_sn, to_sn, content, method, tokens, source_tokens)
VALUES ('00000000-0000-7000-8000-000000000204', '00000000-0000-7000-8000-00000000000a',
        '00000000-0000-7000-8000-000000000201', 1, 1, 'Ada asks for the plan.', 'EXTRACTIVE', 6, 5);
INSERT INTO gristmill.summaries (workspace_id, conversation_id, previous_id, from_sn, to_sn, content, method, model, tokens, source_tokens)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000201',
        '00000000-0000-7000-8000-000000000204', 1, 2, 'The plan is to ship.', 'MODEL', 'a-model', 6, 9);
UPDATE gristmill.conversations SET latest_summary_sn = 2 WHERE id = '00000000-0000-7000-8000-000000000201';
