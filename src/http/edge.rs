//! The outermost middleware: what every request and every answer has in common.
//!
//! It names the request (`x-request-id`, honoured if it is sane), writes every refusal as problem+json, answers 500
//! when a handler panics, serves HEAD as GET, adds the rate limit's headers, counts the duration and writes the access
//! log. At 100,000 requests a second it has some hundred nanoseconds: no span, no formatting unless somebody listens,
//! and metric handles looked up per thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Ready, ready};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::error::InternalError;
use actix_web::http::Method;
use actix_web::http::header::{HeaderMap, HeaderValue};
use actix_web::{Error, HttpResponse};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use metrics::Histogram;
use tracing::{debug, error, warn};

use super::limit;
use super::problem::{self, X_REQUEST_ID};
use crate::error::{ApiError, Code};
use crate::trace::{self, TRACEPARENT, Traceparent};

/// The middleware; see the module's page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge;

impl<S, B> Transform<S, ServiceRequest> for Edge
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    S::Future: 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<BoxBody>;
    type Error = Error;
    type Transform = EdgeService<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: S) -> Self::Future {
        ready(Ok(EdgeService { service }))
    }
}

#[derive(Debug)]
pub(super) struct EdgeService<S> {
    service: S,
}

impl<S, B> Service<ServiceRequest> for EdgeService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
    S::Future: 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<BoxBody>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    forward_ready!(service);

    fn call(&self, mut req: ServiceRequest) -> Self::Future {
        let started = (!is_probe(req.path())).then(Instant::now);
        let request_id = request_id(req.headers());
        req.headers_mut().insert(X_REQUEST_ID, request_id.clone());
        // The encoder remembers that this was a HEAD and leaves the body out.
        if req.method() == Method::HEAD {
            req.head_mut().method = Method::GET;
        }
        let (method, uri) = (req.method().clone(), req.uri().clone());
        let parent =
            req.headers().get(TRACEPARENT).and_then(|value| Traceparent::parse(value.to_str().ok()?));
        let answering = AssertUnwindSafe(trace::within(parent, self.service.call(req))).catch_unwind();
        Box::pin(async move {
            let response = match answering.await {
                Ok(Ok(response)) => finish(response.map_into_boxed_body(), &request_id),
                // Without the request there is no way back through the middleware, only straight to the wire.
                failed => {
                    let id = request_id.to_str().unwrap_or_default();
                    let refusal = match failed {
                        Ok(Err(error)) => problem::from_status(error.error_response().status(), Some(&error)),
                        _ => {
                            error!(%method, path = uri.path(), request_id = id, "The handler panicked");
                            ApiError::new(Code::InternalError, Code::InternalError.title())
                        }
                    };
                    let blank = HttpResponse::new(actix_web::http::StatusCode::INTERNAL_SERVER_ERROR);
                    let mut response = problem::Written::new(&refusal, uri.path(), id).into_answer(blank);
                    response.headers_mut().insert(X_REQUEST_ID, request_id);
                    if let Some(started) = started {
                        record(&method, None, refusal.code.status(), started);
                    }
                    return Err(InternalError::from_response("no answer from the handler", response).into());
                }
            };
            let status = response.status().as_u16();
            if let Some(started) = started {
                record(&method, response.request().match_pattern(), status, started);
            }
            // 503 is how overload is refused, at any rate: it is counted, and its cause is logged where it arises.
            let (path, id) = (uri.path(), request_id.to_str().unwrap_or_default());
            if status >= 500 && status != 503 {
                warn!(target: "tombola::access", %method, path, status, request_id = id, "{method} {path}: {status}");
            } else if let Some(started) = started {
                debug!(target: "tombola::access", %method, path, status, duration_us = started.elapsed().as_micros(),
                    request_id = id, "{method} {path}: {status}");
            }
            Ok(response)
        })
    }
}

/// Names the answer and writes its refusal, if it is one.
fn finish(response: ServiceResponse, request_id: &HeaderValue) -> ServiceResponse {
    let (req, mut response) = response.into_parts();
    if response.status().as_u16() >= 400 {
        let of_framework;
        let refusal = match response.error() {
            Some(error) => match error.as_error::<ApiError>() {
                Some(refusal) => Some(refusal),
                None => {
                    of_framework = problem::from_status(response.status(), Some(error));
                    Some(&of_framework)
                }
            },
            // A body of its own, such as what /readyz answers, stays.
            None if !matches!(response.body().size(), BodySize::None | BodySize::Sized(0)) => None,
            None => {
                of_framework = problem::from_status(response.status(), None);
                Some(&of_framework)
            }
        };
        let id = request_id.to_str().unwrap_or_default();
        if let Some(written) = refusal.map(|refusal| problem::Written::new(refusal, req.uri().path(), id)) {
            response = written.into_answer(response);
        }
    }
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, request_id.clone());
    limit::describe(&req, headers);
    ServiceResponse::new(req, response)
}

/// Questions of load balancers and of monitoring, which nobody wants counted among the customers' requests.
fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/healthz" | "/metrics")
}

/// The caller's name for this request if it is a sane one, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=64).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    headers.get(X_REQUEST_ID).filter(sane).cloned().unwrap_or_else(next_request_id)
}

thread_local! {
    /// 64 random bits of this thread, and how many requests it has named.
    static NAMED: Cell<(u64, u32)> = Cell::new((rand::random(), 0));
}

/// A name no other request has: not a secret, hence no random numbers per request.
fn next_request_id() -> HeaderValue {
    let (thread, count) = NAMED.get();
    // A new random part after four thousand million names.
    NAMED.set(if count == u32::MAX { (rand::random(), 0) } else { (thread, count + 1) });
    let mut name = [0; 24];
    for (at, digit) in name.iter_mut().enumerate() {
        let bits = if at < 16 { thread >> (60 - 4 * at) } else { u64::from(count) >> (4 * (23 - at)) };
        *digit = b"0123456789abcdef"[(bits & 15) as usize];
    }
    HeaderValue::from_bytes(&name).unwrap_or_else(|_| HeaderValue::from_static("unnamed"))
}

/// Method, route and status.
type Answered = (Method, Option<String>, u16);

thread_local! {
    /// Nobody outside chooses the keys, so a fast hash is safe.
    static DURATIONS: RefCell<HashMap<Answered, Histogram, foldhash::fast::RandomState>> = RefCell::default();
}

/// Counts a request into `http_server_request_duration_seconds`.
fn record(method: &Method, route: Option<String>, status: u16, started: Instant) {
    // Clients choose methods freely; the table of handles must not grow with their fancy.
    let method = match *method {
        Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE | Method::OPTIONS => {
            method.clone()
        }
        _ => Method::TRACE,
    };
    DURATIONS.with_borrow_mut(|durations| {
        let handle =
            durations.entry((method, route, status)).or_insert_with_key(|(method, route, status)| {
                let method = if *method == Method::TRACE { "_OTHER" } else { method.as_str() };
                metrics::histogram!("http_server_request_duration_seconds", "method" => method.to_owned(),
                "route" => route.clone().unwrap_or_else(|| "none".to_owned()), "status" => status.to_string())
            });
        handle.record(started.elapsed());
    });
}
