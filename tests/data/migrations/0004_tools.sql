INSERT INTO gristmill.agents (id, workspace_id, name, creator_id, version)
VALUES ('00000000-0000-7000-8000-000000000301', '00000000-0000-7000-8000-00000000000a', 'Planner',
        '00000000-0000-7000-8000-000000000103', '1.0.0');
INSERT INTO gristmill.agent_versions (workspace_id, agent_id, version, manifest)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000301', '1.0.0', '{"name": "Planner"}');
INSERT INTO gristmill.prompts (id, workspace_id, agent_id, name, content, variables)
VALUES ('00000000-0000-7000-8000-000000000302', '00000000-0000-7000-8000-00000000000a',
        '00000000-0000-7000-8000-000000000301', 'system', 'Plan {topic}.', '{topic}');
UPDATE gristmill.agents SET prompt_id = '00000000-0000-7000-8000-000000000302';
UPDATE gristmill.conversations SET agent_id = '00000000-0000-7000-8000-000000000301';
INSERT INTO gristmill.mcp_servers (id, name, command, arguments)
VALUES ('00000000-0000-7000-8000-000000000303', 'clock', '/usr/bin/clock-server', '{--stdio}');
INSERT INTO gristmill.mcp_server_connections (id, workspace_id, server_id)
VALUES ('00000000-0000-7000-8000-000000000304', '00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000303');
INSERT INTO gristmill.tools (id, workspace_id, name, type, custom_config)
VALUES ('00000000-0000-7000-8000-000000000305', '00000000-0000-7000-8000-00000000000a', 'handbook', 'custom',
        '{"McpType": "knowledgebase", "chunkSize": 256, "overlap": 32}');
INSERT INTO gristmill.tools (id, workspace_id, connection_id, name, type)
VALUES ('00000000-0000-7000-8000-000000000306', '00000000-0000-7000-8000-00000000000a',
        '00000000-0000-7000-8000-000000000304', 'clock__now', 'MCP');
INSERT INTO gristmill.tool_definitions (id, workspace_id, tool_id, sha256, definition)
VALUES ('00000000-0000-7000-8000-000000000307', '00000000-0000-7000-8000-00000000000a',
        '00000000-0000-7000-8000-000000000306', sha256('now'), '{"name": "now"}');
INSERT INTO gristmill.user_agents (workspace_id, user_id, agent_id)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000103', '00000000-0000-7000-8000-000000000301');
INSERT INTO gristmill.user_tools (workspace_id, user_id, tool_id)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000103', '00000000-0000-7000-8000-000000000306');
INSERT INTO gristmill.agent_tools (workspace_id, agent_id, tool_id)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000301', '00000000-0000-7000-8000-000000000306');
INSERT INTO gristmill.tool_credentials (workspace_id, user_id, connection_id, origin, credential, iv, auth_tag, key_id)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000103', '00000000-0000-7000-8000-000000000304',
        'https://clock.example.org', 'c0ffee', repeat('09', 12), repeat('0a', 16), 'k1');
INSERT INTO gristmill.tool_calls (id, workspace_id, conversation_id, message_id, tool_call_id, tool_id, tool_name, definition_id,
                                  user_id, agent_id, arguments, arguments_sha256)
VALUES ('00000000-0000-7000-8000-000000000308', '00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000201',
        '00000000-0000-7000-8000-000000000203', 'call_1', '00000000-0000-7000-8000-000000000306', 'clock__now',
        '00000000-0000-7000-8000-000000000307', '00000000-0000-7000-8000-000000000103',
        '00000000-0000-7000-8000-000000000301', '{}', sha256('{}'));
INSERT INTO gristmill.tool_attempts (workspace_id, call_id, effect, idempotency_key, ordered, ordered_by)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000308', 'effectful', 'k', true,
        '00000000-0000-7000-8000-000000000103');
INSERT INTO gristmill.tool_approvals (workspace_id, call_id, arguments_sha256, decision, decided_by, expires_at)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000308', sha256('{}'), 'APPROVED',
        '00000000-0000-7000-8000-000000000103', now() + interval '1 day');
INSERT INTO gristmill.tool_results (workspace_id, call_id, message_id, result, sha256, size, view)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000308', '00000000-0000-7000-8000-000000000203',
        '"noon"', sha256('noon'), 4, 'noon');
INSERT INTO gristmill.runtime_statuses (host, runtime, installed, version, path)
VALUES ('host-1', 'python', true, '3.13.1', '/usr/bin/python3');
INSERT INTO gristmill.addons (workspace_id, name, version, enabled)
VALUES ('00000000-0000-7000-8000-00000000000a', 'charts', '0.1.0', true);
