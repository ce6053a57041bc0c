//! Takes and stock over HTTP.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, post};
use serde::Deserialize;
use utoipa::ToSchema;

use super::changes::{Adjusted, Adjustment};
use super::model::{Take, TakeAnswer};
use super::service::StockService;
use crate::error::FieldError;
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, NoMembers, Operator, OptionalBody, Page, PathId,
    Reason, Validate, answered, request_key, validate_reason,
};
use crate::identity::Caller;
use crate::ids::{ActivityId, TakeId};
use crate::refusals;

refusals!(TakeRefusals: ActivityNotRunning, SoldOut, TakeLimitReached, IdempotencyKeyReused, Overloaded);
refusals!(ReleaseRefusals: TransitionNotAllowed, IdempotencyKeyReused, IdempotencyInProgress);
refusals!(AdjustRefusals: TransitionNotAllowed, StockInsufficient, IdempotencyKeyReused, IdempotencyInProgress);

/// Takes one token of the activity.
///
/// 201 is sent after the database committed. Without an answer, repeat with the same `Idempotency-Key`.
#[utoipa::path(tag = "takes", params(IdempotencyKey), request_body = Option<NoMembers>,
    responses((status = 201, description = "The token is the caller's", body = TakeAnswer), TakeRefusals))]
#[post("/activities/{id}/takes")]
pub(crate) async fn take(
    stock: Data<StockService>,
    req: HttpRequest,
    caller: Caller,
    id: PathId<ActivityId>,
    key: IdempotencyKey,
    body: OptionalBody<NoMembers>,
) -> ApiResult<HttpResponse> {
    let key = request_key(caller.user, &req, &key, body.fingerprint);
    Ok(answered(StatusCode::CREATED, stock.take(caller.user, id.0, key).await?))
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
