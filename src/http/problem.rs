//! Refusals on the wire: `application/problem+json` (RFC 9457) with a stable `code`.
//!
//! A handler answers an [`ApiError`]; the body is written by [`super::edge`], because only there are the path and the
//! request id at hand. `type` is a relative reference, so it leads to the page of the very server that answered.

use std::fmt::Write;

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, ContentType, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use actix_web::{HttpResponse, ResponseError, get};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{ApiError, Code, FieldError};

/// The media type of refusals.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What a handler answers.
pub type ApiResult<T> = Result<T, ApiError>;

/// A refusal (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem<'a> {
    /// Where the code is explained, relative to this server.
    #[schema(example = "/docs/problems#sold_out")]
    r#type: &'static str,
    /// What the code means; never varies.
    title: &'static str,
    status: u16,
    /// This occurrence, for people.
    detail: &'a str,
    /// The path that was asked for.
    instance: &'a str,
    code: Code,
    /// Names this request in the server's log.
    request_id: &'a str,
    /// Whether the same request may succeed later.
    retryable: bool,
    /// The members at fault, for `validation_failed`.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [FieldError],
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        status_of(self.code)
    }

    /// Status only: the edge writes headers and body.
    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.status_code())
    }
}

fn status_of(code: Code) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A refusal as it goes out.
pub(super) struct Written {
    code: Code,
    retry_after_s: Option<u32>,
    body: Vec<u8>,
}

impl Written {
    pub(super) fn new(error: &ApiError, instance: &str, request_id: &str) -> Self {
        let problem = Problem {
            r#type: error.code.type_uri(),
            title: error.code.title(),
            status: error.code.status(),
            detail: &error.detail,
            instance,
            code: error.code,
            request_id,
            retryable: error.code.retryable(),
            errors: &error.errors,
        };
        let mut body = Vec::with_capacity(384);
        // Writing plain strings and numbers into memory does not fail.
        if serde_json::to_writer(&mut body, &problem).is_err() {
            body.clear();
        }
        Self { code: error.code, retry_after_s: error.retry_after_s, body }
    }

    /// `response` with this refusal in it; headers it has already stay.
    pub(super) fn into_answer<B>(self, response: HttpResponse<B>) -> HttpResponse {
        let mut response = response.set_body(BoxBody::new(self.body));
        *response.status_mut() = status_of(self.code);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.code == Code::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// The refusal that stands for an error answer of the framework itself.
pub(super) fn from_status(status: StatusCode, cause: Option<&actix_web::Error>) -> ApiError {
    let code = match status.as_u16() {
        401 => Code::Unauthenticated,
        403 => Code::Forbidden,
        404 => Code::NotFound,
        405 => Code::MethodNotAllowed,
        408 => Code::RequestTimeout,
        413 => Code::BodyTooLarge,
        415 => Code::UnsupportedMediaType,
        422 => Code::ValidationFailed,
        429 => Code::RateLimited,
        503 => Code::DependencyUnavailable,
        400..=499 => Code::MalformedRequest,
        _ => Code::InternalError,
    };
    match cause {
        // What the framework says about a request is for the client; what it says about us is not.
        Some(cause) if status.is_client_error() => ApiError::new(code, cause.to_string()),
        _ => ApiError::new(code, code.title()),
    }
}

/// The page `type` leads to: every code with its status and meaning.
#[utoipa::path(tag = "operating", responses((status = 200, description = "A page for people", content_type = "text/html", body = String)))]
#[get("/docs/problems")]
pub(super) async fn problems_page() -> HttpResponse {
    let mut page = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Tombola: problems</title>\
         <style>body{font:16px/1.5 sans-serif;margin:2rem auto;max-width:60rem}td,th{padding:.2rem 1rem .2rem 0;\
         text-align:left}:target{background:#ff8}</style><h1>Problems</h1><table><tr><th>code<th>status<th>meaning\
         <th>may the same request succeed later?",
    );
    for code in Code::ALL {
        let retry = if code.retryable() { "yes" } else { "no" };
        // Writing into a String does not fail.
        let _ = write!(
            page,
            "<tr id={code}><td><code>{code}</code><td>{}<td>{}<td>{retry}",
            code.status(),
            code.title()
        );
    }
    HttpResponse::Ok().content_type(ContentType::html()).body(page)
}

/// The header that names a request.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
