SELECT gristmill.publish_kind('fetch', 1, '{"type": "object", "required": ["attachment"], "properties": {"attachment": {"type": "string", "format": "uuid"}}}', 12);
INSERT INTO gristmill.shares (workspace_id, weight, in_flight_cap) VALUES ('00000000-0000-7000-8000-00000000000a', 3, 8);
SELECT gristmill.enqueue('fetch', '{"attachment": "00000000-0000-7000-8000-000000000501"}', key => 'for a day',
                         workspace => '00000000-0000-7000-8000-00000000000a', unique_for => '1 day');
SELECT gristmill.report_worker('1-a', 'host', 1, '0.1.0', '{fetch}', 4);
