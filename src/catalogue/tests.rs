use super::*;
use secrecy::ExposeSecret;
use serde_json::json;

fn entry(command: &str, arguments: &[&str], env: &[(&str, &str)], parameters: Value) -> Entry {
    Entry {
        name: "x".into(),
        command: command.into(),
        arguments: arguments.iter().map(ToString::to_string).collect(),
        env: env.iter().map(|(k, v)| ((*k).to_owned(), EnvValue::Text((*v).to_owned()))).collect(),
        parameters,
    }
}

/// The catalogue's own server, as an operator writes it.
fn files() -> Entry {
    let parameters = json!({
        "type": "object", "required": ["folder"],
        "properties": {
            "folder": { "type": "string", "pattern": "^/srv/shared(/[a-z0-9_.-]+)*$" },
            "depth": { "type": "integer", "minimum": 1, "maximum": 9, "default": 3 },
            "label": { "type": "string" },
            "mode": { "type": "string", "enum": ["ro", "rw"], "default": "ro" },
        },
    });
    let arguments =
        ["-y", "@example/server-files@1.2.3", "--depth", "{depth}", "--mode", "{mode}", "{folder}"];
    entry("/usr/bin/npx", &arguments, &[("TZ", "UTC")], parameters)
}

#[allow(clippy::needless_pass_by_value, reason = "rows are written in place")]
fn given(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[test]
fn the_catalogues_own_entry_is_filled_argument_by_argument() {
    let filled =
        files().fill(&given(json!({ "folder": "/srv/shared/a b".replace(' ', "-") })), None).unwrap();
    assert_eq!(filled.arguments[2..], ["--depth", "3", "--mode", "ro", "/srv/shared/a-b"]);
    assert_eq!(filled.command, "/usr/bin/npx");
    assert_eq!(filled.env[0].1.expose_secret(), "UTC");
    let other = files()
        .fill(&given(json!({ "folder": "/srv/shared", "depth": 5, "mode": "rw", "label": "my team" })), None);
    assert_eq!(other.unwrap().arguments[3], "5");
}

#[test]
fn what_a_tenant_may_not_fill_in_is_refused() {
    let rows = [
        // Not the tenant's to say.
        json!({ "folder": "/srv/shared", "command": "/bin/sh" }),
        json!({ "folder": "/srv/shared", "arguments": ["-c", "id"] }),
        json!({ "folder": "/srv/shared", "args": ["-c", "id"] }),
        json!({ "folder": "/srv/shared", "env": { "NODE_OPTIONS": "--require /tmp/x.js" } }),
        json!({ "folder": "/srv/shared", "LD_PRELOAD": "/tmp/x.so" }),
        json!({ "folder": "/srv/shared", "PYTHONSTARTUP": "/tmp/x.py" }),
        json!({ "folder": "/srv/shared", "transport": "stdio" }),
        // Not of the declared form.
        json!({ "folder": ["/srv/shared", "-c"] }),
        json!({ "folder": { "toString": "x" } }),
        json!({ "folder": null }),
        json!({ "folder": "/srv/shared", "depth": "3; id" }),
        json!({ "folder": "/srv/shared", "depth": 99 }),
        json!({ "folder": "/srv/shared", "mode": "rwx" }),
        json!({}),
        // Options, paths elsewhere, ways out.
        json!({ "folder": "--eval=require('child_process')" }),
        json!({ "folder": "-c" }),
        json!({ "folder": "/etc" }),
        json!({ "folder": "/srv/shared/../../etc" }),
        json!({ "folder": "/srv/shared/.." }),
        json!({ "folder": "/srv/shared\n--eval" }),
        json!({ "folder": "/srv/shared\u{0}x" }),
        json!({ "folder": "/srv/shared", "label": "/etc/passwd" }),
        json!({ "folder": "/srv/shared", "label": "~/.ssh/id_rsa" }),
        json!({ "folder": "/srv/shared", "label": "--inspect=0.0.0.0:9229" }),
        json!({ "folder": "/srv/shared", "label": "a; rm -rf /" }),
        json!({ "folder": "/srv/shared", "label": "$(id)" }),
        json!({ "folder": "/srv/shared", "label": "`id`" }),
        json!({ "folder": "/srv/shared", "label": "a | b" }),
        json!({ "folder": "/srv/shared", "label": "a && b" }),
        json!({ "folder": "/srv/shared", "label": "a > /tmp/x" }),
        json!({ "folder": "/srv/shared", "label": "file:///etc/passwd" }),
        json!({ "folder": "/srv/shared", "label": "{folder}" }),
        json!({ "folder": "/srv/shared", "label": "%2e%2e%2f" }),
        json!({ "folder": "/srv/shared", "label": "x".repeat(1025) }),
        json!({ "folder": "/srv/shared", "label": "" }),
    ];
    assert!(rows.len() >= 25);
    for row in rows {
        let refused = files().fill(&given(row.clone()), None);
        assert!(refused.is_err(), "{row} gave {refused:?}");
    }
}

#[test]
fn entries_that_would_run_what_they_are_given_are_not_offered() {
    let any = || json!({ "type": "object", "properties": { "p": { "type": "string" } } });
    let rows = [
        entry("sh", &["-c", "{p}"], &[], any()),
        entry("/bin/bash", &["-lc", "server"], &[], any()),
        entry("/usr/bin/env", &["node", "x.js"], &[], any()),
        entry("busybox", &["sh"], &[], any()),
        entry("sudo", &["server"], &[], any()),
        entry("npx", &["-c", "server"], &[], any()),
        entry("npx", &["--package", "server", "-c", "id"], &[], any()),
        entry("npx", &["--call=id"], &[], any()),
        entry("npx", &["-yc", "id"], &[], any()),
        entry("npx", &["-y", "{p}"], &[], any()),
        entry("npm", &["exec", "{p}"], &[], any()),
        entry("uvx", &["{p}"], &[], any()),
        entry("uvx", &["--from", "{p}", "server"], &[], any()),
        entry("node", &["--eval=1"], &[], any()),
        entry("node", &["-e", "1"], &[], any()),
        entry("node", &["-pe", "1"], &[], any()),
        entry("node", &["--require", "/tmp/x.js", "server.js"], &[], any()),
        entry("node", &["--import=data:text/javascript,1", "server.js"], &[], any()),
        entry("node", &["{p}"], &[], any()),
        entry("node", &[], &[], any()),
        entry("python3", &["-c", "1"], &[], any()),
        entry("python3.11", &["-cimport os"], &[], any()),
        entry("python3", &["-m", "{p}"], &[], any()),
        entry("perl", &["-e", "1"], &[], any()),
        entry("deno", &["run", "{p}"], &[], any()),
        entry("server", &[], &[("NODE_OPTIONS", "--require /tmp/x.js")], any()),
        entry("server", &[], &[("LD_PRELOAD", "/tmp/x.so")], any()),
        entry("server", &[], &[("LD_LIBRARY_PATH", "/tmp")], any()),
        entry("server", &[], &[("PYTHONSTARTUP", "/tmp/x.py")], any()),
        entry("server", &[], &[("PYTHONPATH", "/tmp")], any()),
        entry("server", &[], &[("DYLD_INSERT_LIBRARIES", "/tmp/x")], any()),
        entry("server", &[], &[("npm_config_registry", "http://evil.test")], any()),
        entry("server", &[], &[("BASH_ENV", "/tmp/x")], any()),
        entry("server", &[], &[("PATH", "/tmp")], any()),
        entry("server", &[], &[("GRISTMILL_MCP_OWNER", "1")], any()),
        entry("server", &[], &[("A=B", "1")], any()),
        entry("./server", &[], &[], any()),
        entry("../server", &[], &[], any()),
        entry("/opt/../tmp/server", &[], &[], any()),
        entry("server --flag", &[], &[], any()),
        entry("", &[], &[], any()),
        entry("server", &["--file={p}"], &[], any()),
        entry("server", &["{q}"], &[], any()),
        entry("server", &["{p}"], &[], json!({ "type": "object", "properties": { "p": {} } })),
        entry(
            "server",
            &["{p}"],
            &[],
            json!({ "type": "object", "properties": { "p": { "type": "array" } } }),
        ),
        entry(
            "server",
            &[],
            &[],
            json!({ "type": "object", "properties": { "p": { "type": "string", "pattern": "(" } } }),
        ),
    ];
    for row in rows {
        assert!(row.check().is_err(), "{row:?}");
        // And none of them starts, whoever put the row there.
        assert!(row.fill(&given(json!({ "p": "x" })), None).is_err());
    }
    let fine = [
        entry("npx", &["-y", "@example/server@1", "-c", "config.json", "{p}"], &[], any()),
        entry("uvx", &["--python", "3.12", "mcp-server-time", "--local-timezone", "{p}"], &[], any()),
        entry("uvx", &["mcp-server-git"], &[("GIT_AUTHOR_NAME", "x")], json!({})),
        entry("node", &["--no-warnings", "/srv/server.js", "-e", "{p}"], &[], any()),
        entry("python3", &["-I", "-m", "mcp_server_time"], &[], json!({})),
        entry("/opt/server", &["{\"json\": true}"], &[], json!({})),
    ];
    for row in fine {
        row.check().unwrap_or_else(|why| panic!("{row:?}: {why}"));
    }
}

#[test]
fn a_credential_goes_into_the_variables_that_carry_it_and_nowhere_else() {
    let mut entry = entry("server", &[], &[("TZ", "UTC")], json!({}));
    entry.env.insert("API_TOKEN".into(), EnvValue::Credential { credential: true });
    let wrong = entry.fill(&Map::new(), None).unwrap_err();
    assert!(matches!(&wrong, CatalogueError::NoCredential { variable } if variable == "API_TOKEN"));
    let filled = entry.fill(&Map::new(), Some(&"canary".into())).unwrap();
    assert!(!format!("{filled:?}").contains("canary"));
    let carried = filled.env.iter().filter(|(_, value)| value.expose_secret() == "canary");
    assert_eq!(carried.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["API_TOKEN"]);
}

#[test]
fn a_catalogue_is_checked_as_a_whole_and_the_wrong_server_named() {
    let server = |toml: &str| -> CatalogueServer {
        serde_json::from_value(serde_json::from_str(toml).unwrap()).unwrap()
    };
    let fine = [
        server(r#"{"name": "a", "command": "uvx", "arguments": ["mcp-server-time"]}"#),
        server(r#"{"name": "b", "transport": "streamable_http", "url": "https://b.test/mcp"}"#),
    ];
    check(&fine).unwrap();
    let wrong = [
        r#"{"name": "x", "command": "sh", "arguments": ["-c", "id"]}"#,
        r#"{"name": "x"}"#,
        r#"{"name": "x y", "command": "uvx", "arguments": ["s"]}"#,
        r#"{"name": "x", "command": "server", "url": "https://b.test/"}"#,
        r#"{"name": "x", "transport": "sse", "command": "server"}"#,
        r#"{"name": "x", "transport": "sse", "url": "file:///etc/passwd"}"#,
        r#"{"name": "x", "transport": "sse", "url": "https://u:p@b.test/"}"#,
        r#"{"name": "a", "command": "server"}"#,
    ];
    for text in wrong {
        let all = [&fine[..], &[server(text)]].concat();
        assert!(check(&all).is_err(), "{text}");
    }
}
