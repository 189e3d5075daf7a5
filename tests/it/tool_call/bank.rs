//! A server whose calls have effects that can be counted, whatever becomes of the answer.

use super::Chat;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

/// What the bank does once it has acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manner {
    Answers,
    /// Acts, and closes the connection without a word.
    Drops,
    /// Acts, and answers so late that whoever asked can be killed meanwhile.
    Slow,
}

impl Manner {
    pub fn path(self) -> &'static str {
        match self {
            Self::Answers => "/answers",
            Self::Drops => "/drops",
            Self::Slow => "/slow",
        }
    }
}

pub struct Bank {
    pub port: u16,
    executions: Arc<Mutex<HashMap<String, u32>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Bank {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bank {
    pub async fn open() -> std::io::Result<Self> {
        Self::at(0).await
    }

    pub async fn at(port: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let port = listener.local_addr()?.port();
        let executions = Arc::<Mutex<HashMap<String, u32>>>::default();
        let book = executions.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let book = book.clone();
                tokio::spawn(async move { serve(stream, &book).await.ok() });
            }
        });
        Ok(Self { port, executions, task })
    }

    /// Stops listening; returns when nobody does.
    pub async fn close(&mut self) {
        self.task.abort();
        (&mut self.task).await.ok();
    }

    /// How often a call was executed, by its idempotency key.
    pub fn executions(&self, call: Uuid) -> u32 {
        let book = self.executions.lock().unwrap_or_else(PoisonError::into_inner);
        book.get(&call.to_string()).copied().unwrap_or_default()
    }

    /// Executions of calls that nobody asked for.
    pub fn strangers(&self, calls: &[Uuid]) -> usize {
        let book = self.executions.lock().unwrap_or_else(PoisonError::into_inner);
        book.keys().filter(|key| !calls.iter().any(|call| call.to_string() == **key)).count()
    }

    /// Adds the tool, which the chat's agent may call without asking.
    pub async fn tool(&self, chat: &Chat<'_>, manner: Manner, effect: &str) -> anyhow::Result<String> {
        let name = format!("{}-{effect}", &manner.path()[1..]);
        let config = json!({
            "McpType": "API",
            "request": { "method": "POST", "path": manner.path(), "body": { "sum": "{{sum}}" } },
        });
        let id: Uuid = sqlx::query_scalar(
            "INSERT INTO gristmill.tools (workspace_id, name, type, endpoint, custom_config, effect)
             VALUES ($1, $2, 'custom', $3, $4, $5::gristmill.tool_effect) RETURNING id",
        )
        .bind(chat.workspace.0)
        .bind(&name)
        .bind(format!("http://127.0.0.1:{}", self.port))
        .bind(config)
        .bind(effect)
        .fetch_one(&chat.world.admin)
        .await?;
        chat.give(id).await?;
        chat.change(format!(
            "INSERT INTO gristmill.tool_policies (workspace_id, tool_id, decision) VALUES ('{}', '{id}', 'allow')",
            chat.workspace
        ))
        .await?;
        Ok(name)
    }
}

/// Arguments that the bank takes.
pub fn sum() -> Value {
    json!({ "sum": 10 })
}

async fn serve(mut stream: TcpStream, book: &Mutex<HashMap<String, u32>>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        match stream.read(&mut part).await? {
            0 => return Ok(()),
            n => request.extend_from_slice(&part[..n]),
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let header = |name: &str| {
        let line = text.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let key = header("idempotency-key").unwrap_or_else(|| "none".to_owned());
    // From here on it is done, whoever hears of it.
    *book.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    match text.split(' ').nth(1).unwrap_or_default() {
        "/drops" => return Ok(()),
        "/slow" => tokio::time::sleep(Duration::from_secs(2)).await,
        _ => {}
    }
    let body = r#"{"paid": true}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await
}
