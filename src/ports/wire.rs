//! Requests to other systems. Whatever keeps an answer from coming whole and in time leaves open what the other did.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, StatusCode};
use thiserror::Error;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(3);

/// How long a request may take, answer included.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct Unanswered(pub(super) String);

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The one value of a header; none if there are several.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok(),
            _ => None,
        }
    }
}

/// A client that does not follow redirections: what the other system is told is for it alone.
pub(super) fn client(timeout: Duration) -> Result<Client, String> {
    let client = Client::builder()
        .user_agent(concat!("tombola/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT.min(timeout))
        .timeout(timeout)
        .redirect(Policy::none());
    client.build().map_err(|error| format!("no HTTP client: {error}"))
}

/// Sends a request and reads the answer, of `longest` bytes at most. No error names the URL, which may hold a secret.
pub(super) async fn send(request: RequestBuilder, longest: usize) -> Result<Answer, Unanswered> {
    let lost = |error: reqwest::Error| Unanswered(with_causes(&error.without_url()));
    let mut response = request.send().await.map_err(lost)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(lost)? {
        body.extend_from_slice(&chunk);
        if body.len() > longest {
            return Err(Unanswered("the answer does not end".to_owned()));
        }
    }
    Ok(Answer { status: response.status(), headers: response.headers().clone(), body })
}

/// An address on the web: what is wrong with it, if something is.
pub(crate) fn check_url(text: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    match url.scheme() {
        "http" | "https" if url.query().is_none() && url.fragment().is_none() => Ok(()),
        "http" | "https" => Err("must not have a query or a fragment".to_owned()),
        _ => Err("must begin with https:// (or http://)".to_owned()),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
