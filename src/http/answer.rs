//! Answers to requests that may be repeats.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use serde::Serialize;

use crate::idempotency::{Answer, Answered};

/// The answer to a request with or without an `Idempotency-Key`: `status` with `fresh` as JSON, or what the first
/// request with the key was answered, marked by `Idempotency-Replayed: true`.
pub fn answered<T: Serialize>(status: StatusCode, answer: Answered<T>) -> HttpResponse {
    match answer {
        Answered::Fresh(fresh) => HttpResponse::build(status).json(fresh),
        Answered::Replayed(Answer { status: first, body }) => {
            HttpResponse::build(StatusCode::from_u16(first).unwrap_or(status))
                .insert_header(("idempotency-replayed", "true"))
                .content_type("application/json")
                .body(body)
        }
    }
}
