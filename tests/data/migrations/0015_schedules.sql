SELECT gristmill.publish_schedule('tidy', 'tidy', '{}', '*/5 * * * *', true, 'sweeps');

INSERT INTO gristmill.bookmarks (name) VALUES ('prune.done');
