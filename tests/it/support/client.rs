//! A client of the API, and what it is answered.

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use super::app::Node;

/// Somebody who sends requests: as a user, once signed in.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    pub(crate) user_id: String,
    pub(crate) token: String,
}

/// A unit of an activity in the hands of a user. Every member of the contract, and no other.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Take {
    pub(crate) id: String,
    pub(crate) activity_id: String,
    pub(crate) user_id: String,
    pub(crate) token_no: i64,
    pub(crate) take_no: i64,
    pub(crate) state: String,
    pub(crate) taken_at: String,
}

impl Client {
    pub(crate) fn new(http: reqwest::Client, url: &str) -> Self {
        Self { http, url: url.to_owned(), user_id: String::new(), token: String::new() }
    }

    /// This client after a sign-in under this name, with one role.
    pub(crate) async fn signed_in(&self, name: &str, role: &str) -> Self {
        let body = json!({"provider": "dev", "name": name, "roles": [role]});
        let session = self.post("/sessions", body).await.is(201);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self { user_id: text(&session["user"]["id"]), token: text(&session["access_token"]), ..self.clone() }
    }

    /// The same user, asking another server.
    pub(crate) fn at(&self, node: &Node) -> Self {
        Self { url: node.url(), ..self.clone() }
    }

    /// The same client with another access token.
    pub(crate) fn bearing(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// A request to a path below `/api/v1`.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.at_root(method, &format!("/api/v1{path}"))
    }

    /// A request to any path.
    pub(crate) fn at_root(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::to(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::to(self.request(Method::POST, path).json(&body)).await
    }

    /// A request that can be repeated.
    pub(crate) async fn post_once(&self, path: &str, body: Value, key: &str) -> Answer {
        Answer::to(self.request(Method::POST, path).header("idempotency-key", key).json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        Answer::to(self.request(Method::PATCH, path).json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        Answer::to(self.request(Method::PUT, path).json(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        Answer::to(self.request(Method::DELETE, path)).await
    }

    /// Asks for one unit of an activity.
    pub(crate) async fn take(&self, activity: &str) -> Answer {
        Answer::to(self.request(Method::POST, &format!("/activities/{activity}/takes"))).await
    }

    /// Asks for one unit in a way that can be repeated.
    pub(crate) async fn take_once(&self, activity: &str, key: &str) -> Answer {
        let request = self.request(Method::POST, &format!("/activities/{activity}/takes"));
        Answer::to(request.header("idempotency-key", key)).await
    }

    /// Everything the user has taken, newest first.
    pub(crate) async fn my_takes(&self) -> Vec<Take> {
        let page = self.get("/me/takes?limit=100").await.is(200);
        assert_eq!(page["next_cursor"], Value::Null, "more takes than a page has");
        serde_json::from_value(page["items"].clone()).unwrap()
    }

    /// Asks an activity for a move, as in `close`.
    pub(crate) async fn asks(&self, activity: &str, event: &str) -> Answer {
        self.post(&format!("/admin/activities/{activity}/transitions"), json!({"event": event})).await
    }

    pub(crate) async fn adjust(&self, activity: &str, delta: i64) -> Answer {
        let body = json!({"delta": delta, "reason": "a story"});
        self.post(&format!("/admin/activities/{activity}/stock-adjustments"), body).await
    }

    pub(crate) async fn release(&self, take: &str) -> Answer {
        self.post(&format!("/admin/takes/{take}/release"), json!({"reason": "a story"})).await
    }
}

/// An answer with a body of JSON, or none.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The answer to `request`.
    pub(crate) async fn to(request: RequestBuilder) -> Self {
        Self::read(request.send().await.expect("an answer")).await.expect("a whole answer")
    }

    /// The answer to `request`, if one comes.
    pub(crate) async fn if_any(request: RequestBuilder) -> Option<Self> {
        Self::read(request.send().await.ok()?).await.ok()
    }

    async fn read(response: reqwest::Response) -> Result<Self, reqwest::Error> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text)
                .unwrap_or_else(|_| panic!("{status} with {text:?}, which is not JSON"))
        };
        Ok(Self { status, headers, body })
    }

    /// The body of an answer that has this status.
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    /// The take of an answer that grants one.
    #[track_caller]
    pub(crate) fn take(self) -> Take {
        let mut body = self.is(201);
        let take = serde_json::from_value(body["take"].take()).unwrap();
        assert_eq!(body, json!({"take": null}), "nothing beside the take");
        take
    }

    /// The problem of an answer that refuses with this status and code, in the form of the contract (API.md, Errors).
    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) -> Value {
        let Self { status: found, headers, body } = self;
        assert_eq!((found, body["code"].as_str()), (status, Some(code)), "{body}");
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("content-type"), Some("application/problem+json"), "{body}");
        assert_eq!(body["type"], format!("/docs/problems#{code}"), "{body}");
        assert_eq!(body["status"], status, "{body}");
        for text in ["title", "detail", "instance"] {
            assert!(body[text].as_str().is_some_and(|text| !text.is_empty()), "{text} of {body}");
        }
        assert_eq!(body["request_id"].as_str(), header("x-request-id"), "{body}");
        assert!(body["retryable"].is_boolean(), "{body}");
        assert_eq!(body.get("errors").is_some(), code == "validation_failed", "{body}");
        assert_eq!(header("retry-after").is_some(), matches!(status, 429 | 503), "{body}");
        assert_eq!(header("www-authenticate").is_some(), status == 401, "{body}");
        body
    }

    /// Whether it repeats what an earlier request was answered.
    pub(crate) fn is_replayed(&self) -> bool {
        self.headers.get("idempotency-replayed").is_some_and(|value| value == "true")
    }
}
