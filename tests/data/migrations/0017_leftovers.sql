INSERT INTO gristmill.leftovers (workspace_id, attachment_id, objects, removed)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000001701',
        '[{"bucket": "bucket", "key": "a/texts/1"}]', '{"chunks": 1}');
