//! HTTP: every route, and what requests and answers have in common.
//!
//! A module's `api.rs` writes handlers and mounts them in [`routes`], the one page with every route:
//!
//! ```text
//! refusals!(ReleaseRefusals: TransitionNotAllowed);
//!
//! /// Gives a take's token back, to be sold again.
//! #[utoipa::path(tag = "takes", params(IdempotencyKey), request_body = Reason,
//!     responses((status = 200, description = "The take, released", body = Take), ReleaseRefusals))]
//! #[post("/admin/takes/{id}/release")]
//! pub(crate) async fn release(
//!     stock: Data<StockService>,
//!     req: HttpRequest,
//!     operator: Operator,                  // 401, 403; Caller where anyone signed in will do: 401
//!     id: PathId<TakeId>,                  // 404
//!     key: IdempotencyKey,                 // 400
//!     body: JsonBody<Reason>,              // 400, 408, 413, 415, 422; OptionalBody where nothing is required
//! ) -> ApiResult<HttpResponse> {
//!     let key = request_key(operator.0.user, &req, &key, body.fingerprint);
//!     let released = stock.release(id.0, body.value.reason, key).await?;
//!     Ok(answered(StatusCode::OK, released))
//! }
//! ```
//!
//! - Refusals are [`ApiError`](crate::error::ApiError)s; [`problem`] turns each into problem+json.
//! - Bodies derive `Deserialize` with `#[serde(deny_unknown_fields)]` and `ToSchema`, and implement [`Validate`].
//! - Lists take [`ListQuery<Filter>`](ListQuery), read [`Page::rows`] rows behind [`Page::after`] and answer
//!   [`Page::list`]; their `params(Page, Filter)`. Other queries take [`Query<T>`](Query).
//! - [`openapi`] adds the bearer token (a public handler says `security(())`), the path's `{id}` and the refusals
//!   that the extractors bring; a handler documents only its own, with `refusals!`.
//! - `POST /sessions` takes [`SignIn`] first, which counts the address.

mod answer;
mod auth;
mod edge;
mod extract;
mod health;
mod limit;
pub mod openapi;
mod page;
mod problem;
mod routes;
mod server;

pub use answer::answered;
pub use auth::{Operator, SignIn, Staff};
pub use extract::{
    BODY_LIMIT, BodyDeadline, IdempotencyKey, JsonBody, NoMembers, Object, OptionalBody, PathId, PathName,
    RawBody, Reason, Validate, has_body, present, request_key, validate_reason,
};
pub use health::{Check, Readiness, ReadinessReport};
pub use limit::{RateLimitSettings, RateLimits};
pub use page::{List, ListQuery, NoFilter, Page, Query};
pub use problem::{ApiResult, PROBLEM_JSON, Problem};
pub use server::{HttpSettings, Listening, document, start};
