INSERT INTO gristmill.roles (id, workspace_id, name)
VALUES ('00000000-0000-7000-8000-000000000101', '00000000-0000-7000-8000-00000000000a', 'Admin');
INSERT INTO gristmill.policies (id, workspace_id, name, resource, action)
VALUES ('00000000-0000-7000-8000-000000000102', '00000000-0000-7000-8000-00000000000a', 'call all', 'tool:*', 'call');
INSERT INTO gristmill.role_policies (workspace_id, role_id, policy_id)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000101', '00000000-0000-7000-8000-000000000102');
INSERT INTO gristmill.users (id, workspace_id, external_id, email, role_id)
VALUES ('00000000-0000-7000-8000-000000000103', '00000000-0000-7000-8000-00000000000a', 'clx1', 'ada@example.org',
        '00000000-0000-7000-8000-000000000101');
INSERT INTO gristmill.profiles (workspace_id, user_id, city, lat, lng)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000103', 'Graz', 47.07, 15.44);
INSERT INTO gristmill.user_settings (workspace_id, user_id, default_provider)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000103', 'ANTHROPIC');
INSERT INTO gristmill.user_keys (id, workspace_id, user_id, provider, api_key, iv, auth_tag)
VALUES ('00000000-0000-7000-8000-000000000104', '00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000103',
        'OPENAI', 'c0ffee', repeat('09', 12), repeat('0a', 16));
INSERT INTO gristmill.sessions (workspace_id, user_id, session_token, expires)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000103', 'token', now() - interval '1 day');
INSERT INTO gristmill.verification_tokens (workspace_id, identifier, token, expires)
VALUES ('00000000-0000-7000-8000-00000000000a', 'ada@example.org', 'token', now() - interval '1 day');
