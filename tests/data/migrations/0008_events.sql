INSERT INTO gristmill.events (workspace_id, type, subject, subject_id)
VALUES ('00000000-0000-7000-8000-00000000000a', 'attachment.ready', 'attachment', '00000000-0000-7000-8000-000000000501');
