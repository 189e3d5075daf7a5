INSERT INTO gristmill.workspaces (id, external_id, name) VALUES
    ('00000000-0000-7000-8000-00000000000a', 'acme', 'Acme'),
    ('00000000-0000-7000-8000-00000000000b', 'birch', 'Birch');
