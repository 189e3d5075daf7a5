//! The conversation with the server: one request, its redirects by hand, one bounded answer.

use super::body::{Answer, is_put_off};
use super::error::ApiError;
use super::place::Request;
use super::{Api, Call};
use crate::domain::ToolOutput;
use crate::guard::{Refusal, target};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Response};
use url::Url;

/// What a redirect asks of us.
enum Redirect {
    /// To send the request again, over there.
    Follow(Url),
    /// To do what we do not do; said to the model.
    Left(String),
}

impl Api {
    /// Sends the request and reads the answer, in whatever time that takes.
    pub(super) async fn converse(
        &self,
        mut request: Request,
        call: &Call<'_>,
    ) -> Result<ToolOutput, ApiError> {
        let mut hops = 0;
        loop {
            self.guard.check(&request.url).map_err(|reason| ApiError::Refused { reason, sent: hops > 0 })?;
            let response = self.ask(&request).await.map_err(|error| ApiError::sending(error, hops))?;
            let status = response.status();
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                match self.redirect(&request, &response, call, hops)? {
                    Redirect::Follow(url) => {
                        if url.origin() != request.url.origin() {
                            // Headers and body of a template may be meant for this server alone.
                            request.headers.clear();
                            request.body = None;
                        }
                        request.url = url;
                        hops += 1;
                        continue;
                    }
                    Redirect::Left(why) => return Ok(ToolOutput::error(why)),
                }
            }
            if let Some(retry_after) = is_put_off(&request.method, status, response.headers()) {
                return Err(ApiError::Busy { code: status.as_u16(), retry_after });
            }
            let answer = Answer::read(response, self.max_bytes).await?;
            return Ok(answer.output(&call.tool.pick, call.saved.as_ref()));
        }
    }

    async fn ask(&self, request: &Request) -> reqwest::Result<Response> {
        let mut wish = self
            .client
            .request(request.method.clone(), request.url.clone())
            .header(ACCEPT, HeaderValue::from_static("application/json, text/*;q=0.8, */*;q=0.5"))
            .headers(request.headers.clone());
        if let Some(body) = &request.body {
            if !request.headers.contains_key(CONTENT_TYPE) {
                wish = wish.header(CONTENT_TYPE, "application/json");
            }
            wish = wish.body(body.to_string());
        }
        wish.send().await
    }

    /// Follows only where nothing of ours can end up with somebody else: never with a
    /// credential, and a request that may change something only within its own origin.
    fn redirect(
        &self,
        request: &Request,
        response: &Response,
        call: &Call<'_>,
        hops: usize,
    ) -> Result<Redirect, ApiError> {
        let refused = |reason| ApiError::Refused { reason, sent: true };
        let next = target(&request.url, response.headers()).map_err(refused)?;
        let code = response.status().as_u16();
        let to = next.origin().ascii_serialization();
        if call.saved.is_some() {
            let why = format!(
                "The server redirects to {to} (status {code}). A request with a credential follows no redirect."
            );
            return Ok(Redirect::Left(why));
        }
        if hops == self.max_redirects {
            return Err(refused(Refusal::TooManyRedirects { limit: self.max_redirects }));
        }
        let is_safe = matches!(request.method, Method::GET | Method::HEAD);
        let keeps_method = matches!(code, 307 | 308);
        if is_safe || (keeps_method && next.origin() == request.url.origin()) {
            return Ok(Redirect::Follow(next));
        }
        Ok(Redirect::Left(format!(
            "The server answered with status {code}, a redirect to {to}, which is not followed for {}.",
            request.method
        )))
    }
}
