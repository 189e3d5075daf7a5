INSERT INTO gristmill.tool_policies (workspace_id, tool_id, arguments, decision)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000306', '{"required": ["zone"]}', 'ask');
