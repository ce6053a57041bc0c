//! Takes and stock over HTTP.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{FromRequest, HttpRequest, HttpResponse, get, post};
use chrono::SecondsFormat;
use serde::Deserialize;
use utoipa::ToSchema;

use super::changes::{Adjusted, Adjustment};
use super::model::{AdjustError, Closed, ReleaseError, Take, TakeAnswer, TakeError};
use super::service::StockService;
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, NoMembers, Operator, OptionalBody, Page, PathId,
    Reason, Validate, answered, has_body, request_key, validate_reason,
};
use crate::identity::Caller;
use crate::ids::{ActivityId, TakeId};
use crate::ports::clock::Timestamp;
use crate::refusals;

refusals!(TakeRefusals: ActivityNotRunning, SoldOut, TakeLimitReached, Overloaded);
refusals!(ReleaseRefusals: TransitionNotAllowed);
refusals!(AdjustRefusals: TransitionNotAllowed, StockInsufficient);

/// Takes one token of the activity.
///
/// 201 is sent after the database committed. Without an answer, repeat with the same `Idempotency-Key`. While a server
/// knows that it would refuse everyone, such as after the sell-out, it does not look at the token of a request without a
/// key or a body, nor count it against the rate limit.
#[utoipa::path(tag = "takes", params(IdempotencyKey), request_body = Option<NoMembers>,
    responses((status = 201, description = "The token is the caller's", body = TakeAnswer), TakeRefusals))]
#[post("/activities/{id}/takes")]
pub(crate) async fn take(
    stock: Data<StockService>,
    req: HttpRequest,
    Contender(caller): Contender,
    id: PathId<ActivityId>,
    key: IdempotencyKey,
    body: OptionalBody<NoMembers>,
) -> ApiResult<HttpResponse> {
    let key = request_key(caller.user, &req, &key, body.fingerprint);
    Ok(answered(StatusCode::CREATED, stock.take(caller.user, id.0, key).await?))
}

/// A caller who may succeed: after the sell-out nearly every request is refused here, before its token costs anything
/// (RELIABILITY C3).
pub(crate) struct Contender(Caller);

impl FromRequest for Contender {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        ready(match refusal_of_everyone(req) {
            Some(refusal) => Err(refusal.into()),
            None => Caller::from_request(req, payload).into_inner().map(Self),
        })
    }
}

/// A repeat is told what its first request was told, so whoever has a key is never refused here; nor is who sends a body,
/// because the framework hangs up on whoever is answered before it was read.
fn refusal_of_everyone(req: &HttpRequest) -> Option<TakeError> {
    if IdempotencyKey::is_in(req) || has_body(req.headers()) {
        return None;
    }
    let activity = PathId::<ActivityId>::from_request(req, &mut Payload::None).into_inner().ok()?;
    req.app_data::<Data<StockService>>()?.refusal_of_everyone(activity.0)
}

/// The caller's takes, newest first.
#[utoipa::path(tag = "takes", params(Page), responses((status = 200, description = "The takes", body = List<Take>)))]
#[get("/me/takes")]
pub(crate) async fn my_takes(
    stock: Data<StockService>,
    caller: Caller,
    query: ListQuery,
) -> ApiResult<Json<List<Take>>> {
    let page = query.page;
    let takes: Vec<Take> = stock.takes_of(caller.user, page.after().map(TakeId), page.rows()).await?;
    Ok(Json(page.list(takes, |row| row.id.0, |row| row)))
}

/// Gives a take's token back, to be sold again.
///
/// The user's limit gets it back too. A take released before answers the same.
#[utoipa::path(tag = "takes", params(IdempotencyKey), request_body = Reason,
    responses((status = 200, description = "The take, released", body = Take), ReleaseRefusals))]
#[post("/admin/takes/{id}/release")]
pub(crate) async fn release(
    stock: Data<StockService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<TakeId>,
    key: IdempotencyKey,
    body: JsonBody<Reason>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    let released = stock.release(id.0, body.value.reason, key).await?;
    Ok(answered(StatusCode::OK, released))
}

/// How the stock is to change.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdjustmentBody {
    /// Tokens to add; to withdraw, if negative. Not 0.
    pub delta: i32,
    /// Kept with the adjustment.
    #[schema(min_length = 1, max_length = 256)]
    pub reason: String,
}

impl Validate for AdjustmentBody {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        if self.delta == 0 {
            let detail = "a change of 0 changes nothing".to_owned();
            errors.push(FieldError { pointer: "/delta".to_owned(), detail });
        }
        validate_reason(&self.reason, errors);
    }
}

/// Adds tokens to an activity's stock or withdraws free ones, also while it runs.
#[utoipa::path(tag = "activities", params(IdempotencyKey), request_body = AdjustmentBody,
    responses((status = 201, description = "The stock as it is now", body = Adjusted), AdjustRefusals))]
#[post("/admin/activities/{id}/stock-adjustments")]
pub(crate) async fn adjust_stock(
    stock: Data<StockService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<ActivityId>,
    key: IdempotencyKey,
    body: JsonBody<AdjustmentBody>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    let AdjustmentBody { delta, reason } = body.value;
    let change = Adjustment { activity: id.0, delta, reason, by: operator.0.user };
    Ok(answered(StatusCode::CREATED, stock.adjust(change, key).await?))
}

impl From<TakeError> for ApiError {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::NotFound => Self::new(Code::NotFound, "There is no activity with this id."),
            TakeError::NotRunning(closed) => {
                let time = |at: Timestamp| at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
                let detail = match closed {
                    Closed::NotStarted => "The activity is not running.".to_owned(),
                    Closed::TooEarly(at) => format!("The activity starts at {}.", time(at)),
                    Closed::Over(at) => format!("The activity ended at {}.", time(at)),
                };
                Self::new(Code::ActivityNotRunning, detail)
            }
            TakeError::SoldOut => Self::new(Code::SoldOut, "All tokens of this activity are taken."),
            TakeError::LimitReached(limit) => {
                Self::new(Code::TakeLimitReached, format!("One user may take {limit} of this activity."))
            }
            TakeError::Key(refusal) => refusal.into(),
            TakeError::Overloaded { retry_after_s } => Self::overloaded(retry_after_s),
            TakeError::Unavailable | TakeError::NotBegun => {
                Self::new(Code::DependencyUnavailable, "The database is not available; nothing was taken.")
            }
            TakeError::Unanswered => Self::unconfirmed(),
        }
    }
}

impl From<ReleaseError> for ApiError {
    fn from(error: ReleaseError) -> Self {
        match error {
            ReleaseError::NotFound => Self::new(Code::NotFound, "There is no take with this id."),
            ReleaseError::Used => {
                Self::new(Code::TransitionNotAllowed, "The take was used; its token cannot be given back.")
            }
            ReleaseError::Ordered => {
                Self::new(Code::TransitionNotAllowed, "The take has an order: cancel or refund that one.")
            }
            ReleaseError::Key(refusal) => refusal.into(),
            ReleaseError::Db(fault) => fault.into(),
        }
    }
}

impl From<AdjustError> for ApiError {
    fn from(error: AdjustError) -> Self {
        match error {
            AdjustError::NotFound => Self::new(Code::NotFound, "There is no activity with this id."),
            AdjustError::Closed => Self::new(
                Code::TransitionNotAllowed,
                "The activity is closed; reopen it to change its stock.",
            ),
            AdjustError::Insufficient { free } => Self::new(
                Code::StockInsufficient,
                format!("Only {free} tokens are free; what is sold cannot be withdrawn."),
            ),
            AdjustError::OutOfRange(total) => Self::invalid(
                "/delta",
                format!("the stock would be {total}; it must stay between 0 and {}", i32::MAX),
            ),
            AdjustError::Key(refusal) => refusal.into(),
            AdjustError::Db(fault) => fault.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_activity_tells_its_times_as_everything_else_does() {
        let at: Timestamp = "2026-11-22T12:38:00.471698Z".parse().unwrap();
        for (closed, detail) in [
            (Closed::TooEarly(at), "The activity starts at 2026-11-22T12:38:00.471698Z."),
            (Closed::Over(at), "The activity ended at 2026-11-22T12:38:00.471698Z."),
        ] {
            assert_eq!(ApiError::from(TakeError::NotRunning(closed)).detail, detail);
        }
    }
}
