//! Requests to authorization servers: guarded, bounded, and redirected only within one origin.

use crate::guard::{Guard, Refusal, refused, target};
use crate::oauth::{OauthError, REQUEST, clean};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Request, Response};
use rmcp::transport::auth::{
    OAuthHttpClient, OAuthHttpClientError, OAuthHttpClientFuture, OAuthHttpRedirectPolicy, OAuthHttpRequest,
};
use url::Url;

/// The largest answer that is read.
const LIMIT: usize = 1 << 20;
const REDIRECTS: usize = 3;

/// What rmcp asks with, and we.
pub struct Guarded {
    pub client: Client,
    pub guard: Guard,
}

/// An answer, read to its end.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Guarded {
    /// Sends `request`, and its followers where it may be redirected.
    pub async fn send(&self, request: Request, redirects: usize) -> Result<Answer, OauthError> {
        tokio::time::timeout(REQUEST, self.send_in_time(request, redirects))
            .await
            .unwrap_or(Err(OauthError::Timeout))
    }

    async fn send_in_time(&self, mut request: Request, redirects: usize) -> Result<Answer, OauthError> {
        for _ in 0..=redirects {
            self.guard.check(request.url())?;
            // Only what has no body is sent again.
            let again = request.try_clone().filter(|_| redirects > 0 && request.body().is_none());
            let response = self.client.execute(request).await.map_err(sorted)?;
            match again.filter(|_| response.status().is_redirection()) {
                None => return read(response).await,
                Some(mut next) => {
                    let url = target(next.url(), response.headers())?;
                    same_origin(next.url(), &url)?;
                    *next.url_mut() = url;
                    request = next;
                }
            }
        }
        Err(Refusal::TooManyRedirects { limit: redirects }.into())
    }
}

fn same_origin(from: &Url, to: &Url) -> Result<(), OauthError> {
    if from.origin() == to.origin() { Ok(()) } else { Err(Refusal::BadRedirect.into()) }
}

async fn read(mut response: Response) -> Result<Answer, OauthError> {
    let status = response.status().as_u16();
    let headers = std::mem::take(response.headers_mut());
    let mut body = Vec::new();
    // A server's stream of events has no end, and nothing of an authorization in it.
    let stream =
        headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    while !stream && let Some(bytes) = response.chunk().await.map_err(sorted)? {
        if body.len() + bytes.len() > LIMIT {
            return Err(OauthError::TooLarge { limit: LIMIT });
        }
        body.extend_from_slice(&bytes);
    }
    Ok(Answer { status, headers, body })
}

fn sorted(error: reqwest::Error) -> OauthError {
    if error.is_timeout() {
        return OauthError::Timeout;
    }
    match refused(&error) {
        Some(reason) => reason.into(),
        None => OauthError::Unreachable(clean(&cause(&error.without_url()))),
    }
}

/// The innermost cause, which is the one that says something.
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}

impl OAuthHttpClient for Guarded {
    fn execute(&self, wanted: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(async move {
            let redirects =
                if wanted.redirect_policy == OAuthHttpRedirectPolicy::Follow { REDIRECTS } else { 0 };
            let request = Request::try_from(wanted.request).map_err(boxed)?;
            let answer = self.send(request, redirects).await.map_err(boxed)?;
            let mut response = ::http::Response::new(answer.body);
            *response.status_mut() = ::http::StatusCode::from_u16(answer.status).map_err(boxed)?;
            *response.headers_mut() = answer.headers;
            Ok(response)
        })
    }
}

fn boxed<E: std::error::Error + Send + Sync + 'static>(error: E) -> OAuthHttpClientError {
    Box::new(error)
}
