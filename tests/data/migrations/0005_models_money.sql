INSERT INTO gristmill.providers (id, name, provider, endpoint)
VALUES ('00000000-0000-7000-8000-000000000401', 'Anthropic', 'ANTHROPIC', 'https://api.example.org');
INSERT INTO gristmill.models (id, provider_id, name, internal_name, type, summarize_threshold, max_context)
VALUES ('00000000-0000-7000-8000-000000000402', '00000000-0000-7000-8000-000000000401', 'A model', 'a-model', 'chat', 8000, 200000);
INSERT INTO gristmill.model_prices (id, model_id, effective_from, cost_1k_input, cost_1k_output, cost_1k_cache_read, cost_1k_cache_write)
VALUES ('00000000-0000-7000-8000-000000000403', '00000000-0000-7000-8000-000000000402', '2026-01-01', 0.003, 0.015, 0.0003, 0.00375);
UPDATE gristmill.agents SET model_id = '00000000-0000-7000-8000-000000000402';
INSERT INTO gristmill.llm_connections (workspace_id, name, provider, base_url)
VALUES ('00000000-0000-7000-8000-00000000000a', 'local', 'COMPATIBLE', 'http://127.0.0.1:8080/v1');
INSERT INTO gristmill.budgets (id, workspace_id, user_id, amount)
VALUES ('00000000-0000-7000-8000-000000000404', '00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000103', 10);
INSERT INTO gristmill.usages (id, workspace_id, type, kind, user_id, agent_id, conversation_id, message_id, tool_call_id,
                              provider, model, model_id, key_source)
VALUES ('00000000-0000-7000-8000-000000000405', '00000000-0000-7000-8000-00000000000a', 'user', 'chat',
        '00000000-0000-7000-8000-000000000103', '00000000-0000-7000-8000-000000000301',
        '00000000-0000-7000-8000-000000000201', '00000000-0000-7000-8000-000000000203',
        '00000000-0000-7000-8000-000000000308', 'ANTHROPIC', 'a-model', '00000000-0000-7000-8000-000000000402', 'user');
INSERT INTO gristmill.usages (workspace_id, type, kind, state, provider, model, model_id, price_id, key_source, input_tokens,
                              cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost, source, settled_at)
VALUES ('00000000-0000-7000-8000-00000000000a', 'guardrail', 'guardrail', 'SETTLED', 'ANTHROPIC', 'a-model',
        '00000000-0000-7000-8000-000000000402', '00000000-0000-7000-8000-000000000403', 'platform',
        1000, 100, 10, 200, 50, 0.0068, 'reported', now());
INSERT INTO gristmill.reservations (workspace_id, usage_id, budget_id, amount, expires_at)
VALUES ('00000000-0000-7000-8000-00000000000a', '00000000-0000-7000-8000-000000000405',
        '00000000-0000-7000-8000-000000000404', 0.5, now() + interval '10 minutes');
UPDATE gristmill.budgets SET reserved = reserved + 0.5 WHERE id = '00000000-0000-7000-8000-000000000404';
