//! The tool `web_search`: a question answered from the web, by the provider that searches it.
//!
//! Before it: a question, a model, a key, and where the user is, if the user said so. After it:
//! an answer with its citations in one shape whoever gave it, and the tokens it cost. The
//! addresses are the operator's own settings, never a user's, so the guard is open; redirects
//! are not followed, because a key is on its way.

mod answer;
mod anthropic;
mod error;
mod gemini;
mod responses;

pub use answer::{Answer, Citation, Usage};
pub use error::GroundError;

use crate::config;
use crate::domain::ToolOutput;
use crate::guard::Guard;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Response};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

/// Who searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Gemini,
    OpenAi,
    Anthropic,
    Grok,
}

/// Where the user is; each part only where it is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Place {
    pub latitude_longitude: Option<(f64, f64)>,
    pub city: Option<String>,
    pub region: Option<String>,
    /// Two letters (ISO 3166-1).
    pub country: Option<String>,
    /// An IANA name.
    pub timezone: Option<String>,
}

/// One search.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub provider: Provider,
    pub model: &'a str,
    pub query: &'a str,
    pub place: Option<&'a Place>,
    pub key: &'a SecretString,
}

/// Asks the providers of grounded search.
#[derive(Debug, Clone)]
pub struct Ground {
    client: Client,
    settings: config::WebSearch,
}

/// What is sent: a path below the provider's address, headers, and a body.
struct Wish {
    path: String,
    headers: HeaderMap,
    body: Value,
}

/// What one answer says.
enum Told {
    Done(Answer),
    /// The provider wants its own words back, to go on with them.
    GoOn {
        body: Value,
        so_far: Answer,
    },
}

/// Turns that one question may take.
const MOST_TURNS: usize = 4;

impl Ground {
    /// Makes the client.
    pub fn new(settings: &config::WebSearch) -> reqwest::Result<Self> {
        let everything = [ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()];
        let client = Guard::new(&everything).client(Duration::from_secs(settings.connect_seconds), None)?;
        Ok(Self { client, settings: settings.clone() })
    }

    /// What a model is shown of the tool's arguments.
    pub fn input_schema() -> Value {
        json!({
            "type": "object",
            "properties": { "query": { "type": "string", "minLength": 1, "description": "What to find out." } },
            "required": ["query"],
            "additionalProperties": false,
        })
    }

    /// Asks, and gives the answer as a tool's output.
    pub async fn search(&self, question: &Question<'_>) -> Result<ToolOutput, GroundError> {
        self.answer(question).await.map(Answer::output)
    }

    /// Asks. An error carries nothing of the key.
    pub async fn answer(&self, question: &Question<'_>) -> Result<Answer, GroundError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:/".contains(c);
        if question.model.is_empty() || !question.model.chars().all(is_name) || question.model.contains("..")
        {
            return Err(GroundError::Model);
        }
        self.converse(question).await
    }

    async fn converse(&self, question: &Question<'_>) -> Result<Answer, GroundError> {
        let mut wish = match question.provider {
            Provider::Gemini => gemini::wish(question, &self.settings)?,
            Provider::OpenAi => responses::openai(question, &self.settings)?,
            Provider::Grok => responses::grok(question, &self.settings)?,
            Provider::Anthropic => anthropic::wish(question, &self.settings)?,
        };
        let mut answer = Answer::new(question);
        let end = Instant::now() + Duration::from_secs(self.settings.total_seconds);
        for turn in 0..MOST_TURNS {
            let told = tokio::time::timeout_at(end, self.turn(question, &wish, answer.clone()))
                .await
                .unwrap_or(Err(GroundError::Timeout { sent: true }));
            match told {
                Ok(Told::Done(answer)) => return Ok(answer),
                Ok(Told::GoOn { body, so_far }) => {
                    wish.body = body;
                    answer = so_far;
                }
                Err(error) if turn == 0 => return Err(error),
                // What was said so far is paid for, and asking anew would be paid for twice.
                Err(error) => {
                    tracing::warn!(%error, turn, "a search broke off between two turns");
                    break;
                }
            }
        }
        answer.truncated = true;
        Ok(answer)
    }

    async fn turn(&self, question: &Question<'_>, wish: &Wish, so_far: Answer) -> Result<Told, GroundError> {
        let told = self.ask(question, wish).await?;
        let told = match question.provider {
            Provider::Gemini => gemini::read(&told, so_far),
            Provider::OpenAi | Provider::Grok => responses::read(&told, so_far),
            Provider::Anthropic => anthropic::read(&told, so_far, &wish.body),
        };
        told.ok_or(GroundError::Shape)
    }

    async fn ask(&self, question: &Question<'_>, wish: &Wish) -> Result<Value, GroundError> {
        let base = match question.provider {
            Provider::Gemini => &self.settings.gemini_url,
            Provider::OpenAi => &self.settings.openai_url,
            Provider::Anthropic => &self.settings.anthropic_url,
            Provider::Grok => &self.settings.grok_url,
        };
        let address = format!("{}/{}", base.trim_end_matches('/'), wish.path);
        let url = Url::parse(&address).map_err(|_| GroundError::Address)?;
        let sent = self
            .client
            .post(url)
            .headers(wish.headers.clone())
            .header("content-type", "application/json")
            .body(wish.body.to_string())
            .send();
        let response = sent.await.map_err(GroundError::sending)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read(response, self.settings.max_bytes).await?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| GroundError::Shape);
        }
        let text = String::from_utf8_lossy(&body).replace(question.key.expose_secret(), "[key]");
        Err(GroundError::status(status, &headers, &text))
    }
}

async fn read(mut response: Response, limit: u64) -> Result<Vec<u8>, GroundError> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(bytes)) if body.len() as u64 + bytes.len() as u64 > limit => {
                return Err(GroundError::TooLarge { limit });
            }
            Ok(Some(bytes)) => body.extend_from_slice(&bytes),
            Ok(None) => return Ok(body),
            Err(_) => return Err(GroundError::Cut { at: body.len() as u64 }),
        }
    }
}

/// A header that no log shows.
fn secret(text: &str) -> Result<HeaderValue, GroundError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| GroundError::Key)?;
    value.set_sensitive(true);
    Ok(value)
}

/// The form in which OpenAI and Anthropic take a place; `None` where nothing is known that they take.
fn approximate(place: Option<&Place>) -> Option<Value> {
    let place = place?;
    let mut known = json!({ "type": "approximate" });
    let parts = [
        ("city", &place.city),
        ("region", &place.region),
        ("country", &place.country),
        ("timezone", &place.timezone),
    ];
    let mut any = false;
    for (name, part) in parts {
        if let Some(part) = part {
            known[name] = part.as_str().into();
            any = true;
        }
    }
    any.then_some(known)
}
