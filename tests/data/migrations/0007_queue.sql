SELECT gristmill.enqueue('fetch', '{"attachment": "00000000-0000-7000-8000-000000000501"}', key => 'a',
                         workspace => '00000000-0000-7000-8000-00000000000a');
