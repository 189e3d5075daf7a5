//! Servers over HTTP that do what they are told: one line of code an answer, and every request kept.

use super::{clients, deaf, key, plain, settings};
use gristmill::mcp::{Endpoint, McpError, Server};
use http::HeaderMap;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// One request as a server got it.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: Value,
}

/// What a server does with a request.
pub enum Act {
    Json(u16, Vec<(&'static str, String)>, Value),
    /// A status with headers and no body.
    Bare(u16, Vec<(&'static str, String)>),
    /// Events as they are, and then the end of the connection.
    Events(Vec<String>),
    /// An event of so many bytes.
    LargeEvent(usize),
    /// A body of so many bytes.
    LargeBody(usize),
    /// Closes without a word.
    HangUp,
    /// Answers after a while.
    Late(Duration, Value),
}

/// A server that counts connections, keeps requests, and does what it was made to do.
pub struct Served {
    pub url: String,
    pub connections: Arc<AtomicUsize>,
    pub asked: Arc<Mutex<Vec<Asked>>>,
}

impl Served {
    pub async fn start(act: impl Fn(&Asked) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let served = Self { url, connections: Arc::default(), asked: Arc::default() };
        let (connections, asked, act) =
            (Arc::clone(&served.connections), Arc::clone(&served.asked), Arc::new(act));
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (asked, act) = (Arc::clone(&asked), Arc::clone(&act));
                tokio::spawn(async move { converse(connection, &asked, &*act).await });
            }
        });
        served
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint { url: self.url.parse().unwrap(), headers: HeaderMap::default() }
    }

    pub fn server(&self) -> Server {
        Server::StreamableHttp(self.endpoint())
    }

    pub fn calls(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| asked.body["method"] == "tools/call").cloned().collect()
    }
}

async fn converse(connection: TcpStream, asked: &Mutex<Vec<Asked>>, act: &(dyn Fn(&Asked) -> Act + Sync)) {
    let mut connection = BufReader::new(connection);
    while let Some(request) = read(&mut connection).await {
        asked.lock().unwrap().push(request.clone());
        let act = act(&request);
        if write(&mut connection, act).await.is_none() {
            return;
        }
    }
}

async fn read(connection: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    connection.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut request = Asked { method: words.next()?, path: words.next()?, ..Asked::default() };
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        request.headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = request.headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.ok()?;
    request.body = serde_json::from_slice(&body).unwrap_or_default();
    Some(request)
}

/// `None` when the connection is over.
async fn write(connection: &mut BufReader<TcpStream>, act: Act) -> Option<()> {
    let head = |status: u16, headers: &[(&str, String)]| {
        let lines: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("HTTP/1.1 {status} Words\r\n{}", lines.concat())
    };
    let stream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    match act {
        Act::Late(pause, body) => {
            tokio::time::sleep(pause).await;
            Box::pin(write(connection, Act::Json(200, vec![], body))).await
        }
        Act::Json(status, headers, body) => {
            let body = body.to_string();
            let length = body.len();
            let head = head(status, &headers);
            let answer =
                format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
            connection.write_all(answer.as_bytes()).await.ok()
        }
        Act::Bare(status, headers) => {
            let answer = format!("{}Content-Length: 0\r\n\r\n", head(status, &headers));
            connection.write_all(answer.as_bytes()).await.ok()
        }
        Act::Events(events) => {
            connection.write_all(stream.as_bytes()).await.ok()?;
            for event in events {
                connection.write_all(format!("{event}\n\n").as_bytes()).await.ok()?;
            }
            connection.shutdown().await.ok();
            None
        }
        Act::LargeEvent(bytes) => {
            connection.write_all(format!("{stream}data: ").as_bytes()).await.ok()?;
            pour(connection, bytes).await
        }
        Act::LargeBody(bytes) => {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {bytes}\r\n\r\n"
            );
            connection.write_all(head.as_bytes()).await.ok()?;
            pour(connection, bytes).await
        }
        Act::HangUp => None,
    }
}

async fn pour(connection: &mut BufReader<TcpStream>, bytes: usize) -> Option<()> {
    let some = vec![b'x'; 65536];
    for _ in 0..bytes / some.len() {
        connection.write_all(&some).await.ok()?;
    }
    None
}

pub fn result(asked: &Asked, result: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": asked.body["id"], "result": result })
}

pub fn text(words: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": words }] })
}

/// The handshake of a server of 2025; what comes after it is up to the caller.
pub fn handshake(asked: &Asked) -> Option<Act> {
    let info = json!({ "protocolVersion": "2025-06-18", "capabilities": { "tools": {} },
                       "serverInfo": { "name": "made up", "version": "1" } });
    match (asked.method.as_str(), asked.body["method"].as_str()) {
        ("GET" | "DELETE", _) => Some(Act::Bare(405, vec![])),
        (_, Some("server/discover")) => Some(Act::Bare(400, vec![])),
        (_, Some("initialize")) => {
            Some(Act::Json(200, vec![("Mcp-Session-Id", "s-1".into())], result(asked, &info)))
        }
        (_, Some(method)) if method.starts_with("notifications/") => Some(Act::Bare(202, vec![])),
        _ => None,
    }
}

/// One call of a pool of its own.
pub async fn asks(served: &Served, tool: &str) -> Result<gristmill::domain::ToolOutput, McpError> {
    let clients = clients(&settings());
    let ended = clients.call(&key(), &served.server(), &plain(tool), deaf(), &CancellationToken::new()).await;
    clients.close().await;
    ended
}
