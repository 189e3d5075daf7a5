//! A server that keeps what it was sent, and answers each path with what it was given.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request as it came: the first line, headers with lower-case names, and the body.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Heard {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

pub struct Recorder {
    pub port: u16,
    pub connections: Arc<AtomicUsize>,
    heard: Arc<Mutex<Vec<Heard>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorder {
    /// Answers by path, or, for a path with several answers, by each in turn; others hang.
    pub async fn start(host: &str, answers: Vec<(&'static str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, heard) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<Heard>>>::default());
        let (count, keep) = (Arc::clone(&connections), Arc::clone(&heard));
        let answers = Arc::new(Mutex::new(answers));
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (keep, answers) = (Arc::clone(&keep), Arc::clone(&answers));
                tokio::spawn(async move {
                    let request = hear(&mut stream).await;
                    let path = request.line.split(' ').nth(1).unwrap_or_default();
                    let path = path.split('?').next().unwrap_or_default().to_owned();
                    keep.lock().unwrap().push(request);
                    let answer = {
                        let mut answers = answers.lock().unwrap();
                        let mut same = (0..answers.len()).filter(|i| answers[*i].0 == path);
                        match (same.next(), same.next()) {
                            (Some(first), Some(_)) => Some(answers.remove(first).1),
                            (Some(only), None) => Some(answers[only].1.clone()),
                            (None, _) => None,
                        }
                    };
                    match answer {
                        Some(answer) => drop(stream.write_all(&answer).await),
                        None => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, connections, heard, task }
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

async fn hear(stream: &mut TcpStream) -> Heard {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lines = head.lines();
            let mut heard = Heard { line: lines.next().unwrap_or_default().to_owned(), ..Heard::default() };
            let pair = |line: &str| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned()));
            heard.headers = lines.filter_map(pair).collect();
            let length = heard.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                body.clone_into(&mut heard.body);
                return heard;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return Heard::default(),
        }
    }
}

/// An answer with a status, headers (each with its line end) and a body.
pub fn answer(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

pub fn json(status: &str, body: &serde_json::Value) -> Vec<u8> {
    answer(status, "content-type: application/json\r\n", body.to_string())
}
