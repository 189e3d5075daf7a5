//! An MCP server's front and its authorization server in one, with knobs for their moods.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;
use url::form_urlencoded::parse;

/// How the server behaves.
#[derive(Debug, Default, Clone)]
pub struct Rules {
    /// A refresh token serves once.
    pub rotates: bool,
    /// So long a token request takes.
    pub slow: Duration,
    /// Promises RFC 9207's `iss`.
    pub names_issuer: bool,
    pub methods: Vec<&'static str>,
    pub takes_only_post: bool,
    pub authorization_server: Option<String>,
    pub token_endpoint: Option<String>,
    pub registration_endpoint: Option<String>,
}

#[derive(Default)]
struct Books {
    /// Code to challenge, redirect and resource.
    codes: HashMap<String, (String, String, String)>,
    access: HashSet<String>,
    refresh: HashSet<String>,
    next_answer: Option<(u16, String)>,
}

pub struct Provider {
    port: u16,
    rules: Rules,
    books: Mutex<Books>,
    pub requests: AtomicUsize,
    pub token_requests: AtomicUsize,
    pub renewals: AtomicUsize,
    pub programs: AtomicUsize,
}

struct Request {
    path: String,
    authorization: Option<String>,
    body: String,
}

impl Provider {
    pub async fn start(rules: Rules) -> Arc<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let provider = Arc::new(Self {
            port: listener.local_addr().unwrap().port(),
            rules,
            books: Mutex::default(),
            requests: AtomicUsize::new(0),
            token_requests: AtomicUsize::new(0),
            renewals: AtomicUsize::new(0),
            programs: AtomicUsize::new(0),
        });
        let weak = Arc::downgrade(&provider);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(provider) = weak.upgrade() else { return };
                tokio::spawn(async move { provider.serve(stream).await });
            }
        });
        provider
    }

    pub fn url(&self, path: &str) -> Url {
        format!("http://127.0.0.1:{}{path}", self.port).parse().unwrap()
    }

    fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn accepts(&self, token: &str) -> bool {
        self.books.lock().unwrap().access.contains(token)
    }

    pub fn answer_once(&self, status: u16, body: &str) {
        self.books.lock().unwrap().next_answer = Some((status, body.to_owned()));
    }

    pub fn end_all_logins(&self) {
        self.books.lock().unwrap().refresh.clear();
    }

    /// What the user's browser does: it opens the address and is sent back with a code.
    pub fn consent(&self, url: &Url) -> Url {
        let asked: HashMap<_, _> = url.query_pairs().into_owned().collect();
        let code = uuid::Uuid::now_v7().to_string();
        let kept =
            (asked["code_challenge"].clone(), asked["redirect_uri"].clone(), asked["resource"].clone());
        self.books.lock().unwrap().codes.insert(code.clone(), kept);
        let mut back = Url::parse(&asked["redirect_uri"]).unwrap();
        back.query_pairs_mut().append_pair("code", &code).append_pair("state", &asked["state"]);
        if self.rules.names_issuer {
            back.query_pairs_mut().append_pair("iss", &self.issuer());
        }
        back
    }

    async fn serve(&self, mut stream: TcpStream) {
        let Some(request) = read(&mut stream).await else { return };
        self.requests.fetch_add(1, Ordering::SeqCst);
        let (status, body) = match &*request.path {
            "/token" => {
                tokio::time::sleep(self.rules.slow).await;
                self.token(&request)
            }
            path => self.told(path, &request),
        };
        let challenge = if status == 401 { "www-authenticate: Bearer\r\n" } else { "" };
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{challenge}connection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    fn told(&self, path: &str, request: &Request) -> (u16, String) {
        let at = |path: &str| self.url(path).to_string();
        let body = match path {
            "/mcp" => return (401, "{}".to_owned()),
            "/.well-known/oauth-protected-resource/mcp" => json!({
                "resource": at("/mcp"), "scopes_supported": ["tools:read"],
                "authorization_servers": [self.rules.authorization_server.clone().unwrap_or(self.issuer())],
            }),
            "/.well-known/oauth-authorization-server" => json!({
                "issuer": self.issuer(), "authorization_endpoint": at("/authorize"),
                "token_endpoint": self.rules.token_endpoint.clone().unwrap_or(at("/token")),
                "registration_endpoint": self.rules.registration_endpoint.clone().unwrap_or(at("/register")),
                "response_types_supported": ["code"], "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": if self.rules.methods.is_empty() { Value::Null } else { json!(self.rules.methods) },
                "authorization_response_iss_parameter_supported": self.rules.names_issuer,
            }),
            "/register" => {
                let asked: Value = serde_json::from_str(&request.body).unwrap_or_default();
                json!({ "client_id": "registered", "redirect_uris": asked["redirect_uris"] })
            }
            _ => return (404, "{}".to_owned()),
        };
        (200, body.to_string())
    }

    fn token(&self, request: &Request) -> (u16, String) {
        self.token_requests.fetch_add(1, Ordering::SeqCst);
        let form: HashMap<_, _> = parse(request.body.as_bytes()).into_owned().collect();
        let mut books = self.books.lock().unwrap();
        if let Some((status, body)) = books.next_answer.take() {
            return (status, body);
        }
        let refuse = |code: &str| (400, json!({ "error": code }).to_string());
        if !self.knows(request, &form) {
            return (401, json!({ "error": "invalid_client" }).to_string());
        }
        let field = |name: &str| form.get(name).cloned().unwrap_or_default();
        match &*field("grant_type") {
            "authorization_code" => {
                let Some((challenge, redirect, resource)) = books.codes.remove(&field("code")) else {
                    return refuse("invalid_grant");
                };
                let hashed = Sha256::digest(field("code_verifier"));
                let hashed =
                    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, hashed);
                if hashed != challenge || redirect != field("redirect_uri") || resource != field("resource") {
                    return refuse("invalid_grant");
                }
            }
            "refresh_token" => {
                self.renewals.fetch_add(1, Ordering::SeqCst);
                let token = field("refresh_token");
                let known = if self.rules.rotates {
                    books.refresh.remove(&token)
                } else {
                    books.refresh.contains(&token)
                };
                if !known || field("resource") != self.url("/mcp").as_str() {
                    // Reuse of a rotated token ends the login.
                    books.refresh.clear();
                    return refuse("invalid_grant");
                }
            }
            "client_credentials" if field("resource") == self.url("/mcp").as_str() => {
                self.programs.fetch_add(1, Ordering::SeqCst);
            }
            _ => return refuse("unsupported_grant_type"),
        }
        let (access, refresh) = (uuid::Uuid::now_v7().to_string(), uuid::Uuid::now_v7().to_string());
        books.access.insert(access.clone());
        books.refresh.insert(refresh.clone());
        let body = json!({ "access_token": access, "refresh_token": refresh, "token_type": "bearer", "expires_in": 3600 });
        (200, body.to_string())
    }

    /// Public clients by their id alone; the known one by its secret, where the rules want it.
    fn knows(&self, request: &Request, form: &HashMap<String, String>) -> bool {
        if form.get("client_id").is_some_and(|id| id == "registered") {
            return true;
        }
        let posted = form.get("client_secret").is_some_and(|secret| secret == "s3cret&=%");
        // `known:s3cret&=%`, each part form-encoded first.
        let basic =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, "known:s3cret%26%3D%25");
        let shown = request.authorization.as_deref() == Some(&format!("Basic {basic}"));
        if self.rules.takes_only_post { posted } else { shown }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let head = loop {
        let mut some = [0; 4096];
        let n = stream.read(&mut some).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&some[..n]);
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let header = |name: &str| {
        let mut lines = text.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let length: usize = header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    while bytes.len() < head + 4 + length {
        let mut some = [0; 4096];
        let n = stream.read(&mut some).await.ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&some[..n]);
    }
    let path = text.split(' ').nth(1)?.split('?').next()?.to_owned();
    let body = String::from_utf8_lossy(&bytes[head + 4..head + 4 + length]).into_owned();
    Some(Request { path, authorization: header("authorization"), body })
}
