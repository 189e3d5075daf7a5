INSERT INTO gristmill.jobs (workspace_id, kind, payload, unique_key)
VALUES ('00000000-0000-7000-8000-00000000000a', 'fetch', '{"attachment": "00000000-0000-7000-8000-000000000501"}', 'a');
