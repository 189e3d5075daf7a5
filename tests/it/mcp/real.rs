//! Servers nobody here wrote. `make deps-tools` brings them; what is not there is skipped.

use super::{call, clients, deaf, key, python, settings, words};
use gristmill::mcp::{Clients, Endpoint, Heard, Program, Server};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A file below `.deps/mcp`, or the word that it is not there.
fn brought(what: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps/mcp").join(what);
    if !path.exists() {
        eprintln!("skipped: {what} is not here (`make deps-tools` brings it)");
    }
    path.exists().then_some(path)
}

fn node() -> Option<PathBuf> {
    let node = gristmill::mcp::resolve("node", &std::env::var("PATH").unwrap());
    if node.is_none() {
        eprintln!("skipped: there is no node");
    }
    node
}

fn of_npm(name: &str, arguments: &[&str]) -> Option<Program> {
    let script = brought(&format!("servers/node_modules/@modelcontextprotocol/{name}/dist/index.js"))?;
    let mut all = vec![script.display().to_string()];
    all.extend(arguments.iter().map(|&a| a.to_owned()));
    Some(Program { command: node()?, arguments: all, env: vec![] })
}

fn of_pypi(folder: &str, module: &str, arguments: &[&str]) -> Option<Program> {
    let packages = brought(folder)?;
    // Not all of them can be started with `-m`.
    let mut all = vec!["-c".to_owned(), format!("import {module}; {module}.main()")];
    all.extend(arguments.iter().map(|&a| a.to_owned()));
    let env = vec![("PYTHONPATH".to_owned(), packages.display().to_string().into())];
    Some(Program { command: python(), arguments: all, env })
}

fn pool() -> Clients {
    let mut settings = settings();
    // Node and Python load much on a busy machine.
    settings.initialise_seconds = 30.0;
    settings.request_seconds = 30.0;
    clients(&settings)
}

async fn names(clients: &Clients, server: &Server) -> Vec<String> {
    let listing = clients.list(&key(), server).await.unwrap();
    assert!(listing.tools.iter().all(|tool| tool.input_schema.contains_key("type")));
    listing.tools.into_iter().map(|tool| tool.name).collect()
}

/// What every transport of `server-everything` must do.
async fn everything(server: &Server) {
    let (clients, key, never) = (pool(), key(), CancellationToken::new());
    let ask = async |tool, arguments| {
        clients.call(&key, server, &call(tool, arguments), deaf(), &never).await.unwrap()
    };
    assert!(names(&clients, server).await.iter().any(|name| name == "get-tiny-image"));

    assert_eq!(words(&ask("echo", json!({ "message": "hi" })).await), "Echo: hi");
    let wrong = ask("get-sum", json!({ "a": "one" })).await;
    assert!(wrong.is_error, "bad arguments come back as a result: {wrong:?}");
    let image = ask("get-tiny-image", json!({})).await;
    assert!(image.content.iter().any(|block| block["type"] == "image" && block["mimeType"] == "image/png"));
    let structured = ask("get-structured-content", json!({ "location": "New York" })).await;
    assert!(structured.structured_content.is_some_and(|content| content["temperature"].is_number()));

    let links = ask("get-resource-links", json!({ "count": 2 })).await;
    let link = links.content.iter().find(|block| block["type"] == "resource_link").unwrap();
    let read = clients.read_resource(&key, server, link["uri"].as_str().unwrap()).await.unwrap();
    assert_eq!(read[0]["uri"], link["uri"]);

    let (heard, mut ears) = mpsc::channel(100);
    let long = call("trigger-long-running-operation", json!({ "duration": 1, "steps": 4 }));
    let output = clients.call(&key, server, &long, heard, &never).await.unwrap();
    assert!(words(&output).contains("completed"), "{output:?}");
    let mut progress = 0;
    while let Some(said) = ears.recv().await {
        progress += usize::from(matches!(said, Heard::Progress { .. }));
    }
    assert_eq!(progress, 4);

    // Many at once over the one session.
    let many = (0..50).map(|n| ask("get-sum", json!({ "a": n, "b": 1 })));
    for (n, output) in futures::future::join_all(many).await.iter().enumerate() {
        assert!(words(output).contains(&format!(" {}", n + 1)), "{output:?}");
    }
    assert_eq!(clients.open_sessions(), 2, "one to list with, one to call");
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_everything_over_stdio() {
    let Some(program) = of_npm("server-everything", &[]) else { return };
    everything(&Server::Stdio(program)).await;
}

/// A server of its own on a free port, until it is dropped.
struct Listening(Child, u16);

impl Listening {
    async fn start(mode: &str) -> Option<Self> {
        let program = of_npm("server-everything", &[mode])?;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program.command);
        command.args(program.arguments).env("PORT", port.to_string());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let listening = Self(child, port);
        for _ in 0..600 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(listening);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("server-everything does not listen");
    }

    fn endpoint(&self, path: &str) -> Endpoint {
        let url = format!("http://127.0.0.1:{}/{path}", self.1).parse().unwrap();
        Endpoint { url, headers: http::HeaderMap::default() }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_everything_over_streamable_http() {
    let Some(listening) = Listening::start("streamableHttp").await else { return };
    everything(&Server::StreamableHttp(listening.endpoint("mcp"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_everything_over_the_first_http_transport() {
    let Some(listening) = Listening::start("sse").await else { return };
    everything(&Server::Sse(listening.endpoint("sse"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_filesystem_reads_and_writes_within_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let within = folder.path().canonicalize().unwrap();
    let Some(program) = of_npm("server-filesystem", &[within.to_str().unwrap()]) else { return };
    let (clients, key, never, server) = (pool(), key(), CancellationToken::new(), Server::Stdio(program));
    let ask = async |tool, arguments| {
        clients.call(&key, &server, &call(tool, arguments), deaf(), &never).await.unwrap()
    };
    let note = within.join("note.txt");
    let written = ask("write_file", json!({ "path": note, "content": "milled" })).await;
    assert!(!written.is_error, "{written:?}");
    assert_eq!(std::fs::read_to_string(&note).unwrap(), "milled");
    assert_eq!(words(&ask("read_text_file", json!({ "path": note })).await), "milled");
    assert!(ask("read_text_file", json!({ "path": "/etc/passwd" })).await.is_error);
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_memory_keeps_what_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut program) = of_npm("server-memory", &[]) else { return };
    let file = folder.path().join("memory.jsonl").display().to_string();
    program.env.push(("MEMORY_FILE_PATH".into(), file.into()));
    let (clients, key, never, server) = (pool(), key(), CancellationToken::new(), Server::Stdio(program));
    let ask = async |tool, arguments| {
        clients.call(&key, &server, &call(tool, arguments), deaf(), &never).await.unwrap()
    };
    let mill = json!({ "entities": [{ "name": "mill", "entityType": "thing", "observations": ["grinds"] }] });
    ask("create_entities", mill).await;
    let read = ask("read_graph", json!({})).await;
    assert!(words(&read).contains("grinds"), "{read:?}");
    clients.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_the_python_library_answer() {
    let Some(time) = of_pypi("python", "mcp_server_time", &["--local-timezone", "Etc/UTC"]) else { return };
    let (clients, never, server) = (pool(), CancellationToken::new(), Server::Stdio(time));
    let now = call("get_current_time", json!({ "timezone": "Europe/Berlin" }));
    let output = clients.call(&key(), &server, &now, deaf(), &never).await.unwrap();
    assert!(words(&output).contains("Europe/Berlin"), "{output:?}");

    let Some(fetch) = of_pypi("python", "mcp_server_fetch", &["--ignore-robots-txt", "--allow-private-ips"])
    else {
        return;
    };
    let page = page().await;
    let server = Server::Stdio(fetch);
    let output = clients
        .call(&key(), &server, &call("fetch", json!({ "url": page, "raw": true })), deaf(), &never)
        .await
        .unwrap();
    assert!(words(&output).contains("a page of our own"), "{output:?}");
    clients.close().await;
}

/// The address of a page on this machine.
async fn page() -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            // The request may be read or not: the answer is always the same.
            let _ = connection.read(&mut [0; 4096]).await;
            let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 17\r\nConnection: close\r\n\r\na page of our own";
            connection.write_all(answer.as_bytes()).await.ok();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sqlite_of_the_older_library_answers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db").display().to_string();
    let Some(program) = of_pypi("sqlite", "mcp_server_sqlite", &["--db-path", &file]) else { return };
    let (clients, key, never, server) = (pool(), key(), CancellationToken::new(), Server::Stdio(program));
    let ask = async |tool, query: &str| {
        let asked = call(tool, json!({ "query": query }));
        clients.call(&key, &server, &asked, deaf(), &never).await.unwrap()
    };
    ask("create_table", "CREATE TABLE grain (n int)").await;
    ask("write_query", "INSERT INTO grain VALUES (42)").await;
    let read: Value = words(&ask("read_query", "SELECT n FROM grain").await).into();
    assert!(read.as_str().unwrap().contains("42"), "{read}");
    clients.close().await;
}
