INSERT INTO gristmill.limits (key_ref, model, requests_per_minute) VALUES ('platform:openai', 'gpt-x', 600);
INSERT INTO gristmill.limit_turns (job_id, key_ref, model, lane, tenant, seconds, waiting_since)
SELECT id, 'platform:openai', 'gpt-x', 1, workspace_id, 0.1, now() FROM gristmill.jobs LIMIT 1;
