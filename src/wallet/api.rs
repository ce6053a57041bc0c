//! Wallets over HTTP.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, post};
use serde::Deserialize;
use utoipa::ToSchema;

use super::model::{
    Adjusted, Adjustment, Entry, MOST_POINTS, PointsAdjusted, PointsAdjustment, PointsEntry, WalletError,
};
use super::service::WalletService;
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, Operator, Page, PathId, Staff, Validate, answered,
    request_key, validate_reason,
};
use crate::identity::Caller;
use crate::ids::{LedgerEntryId, UserId};
use crate::money::MOST_MINOR;
use crate::refusals;

refusals!(AdjustRefusals: BalanceInsufficient);

/// How a balance is to change.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BalanceAdjustmentBody)]
pub(crate) struct AdjustmentBody {
    /// What to add; to take, if negative. Not 0.
    #[schema(minimum = -1_000_000_000_000_i64, maximum = 1_000_000_000_000_i64)]
    amount_minor: i64,
    /// Kept with the entry; its user may read it.
    #[schema(min_length = 1, max_length = 256)]
    reason: String,
}

impl Validate for AdjustmentBody {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        validate_change("/amount_minor", self.amount_minor, MOST_MINOR, errors);
        validate_reason(&self.reason, errors);
    }
}

/// How points are to change.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PointsAdjustmentBody {
    /// What to add; to take, if negative. Not 0.
    #[schema(minimum = -1_000_000_000_000_i64, maximum = 1_000_000_000_000_i64)]
    points: i64,
    /// Kept with the entry; its user may read it.
    #[schema(min_length = 1, max_length = 256)]
    reason: String,
}

impl Validate for PointsAdjustmentBody {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        validate_change("/points", self.points, MOST_POINTS, errors);
        validate_reason(&self.reason, errors);
    }
}

fn validate_change(pointer: &str, change: i64, most: i64, errors: &mut Vec<FieldError>) {
    if change == 0 || change.unsigned_abs() > most.unsigned_abs() {
        let detail = format!("not 0, and at most {most} either way");
        errors.push(FieldError { pointer: pointer.to_owned(), detail });
    }
}

/// Adds to a user's balance, or takes from it; never below zero.
#[utoipa::path(tag = "wallet", params(IdempotencyKey), request_body = AdjustmentBody,
    responses((status = 201, description = "The balance as it is now", body = Adjusted), AdjustRefusals))]
#[post("/admin/users/{id}/wallet-adjustments")]
pub(crate) async fn adjust(
    wallets: Data<WalletService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<UserId>,
    key: IdempotencyKey,
    body: JsonBody<AdjustmentBody>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    let AdjustmentBody { amount_minor, reason } = body.value;
    let wish = Adjustment { user: id.0, amount_minor, reason, by: operator.0.user };
    Ok(answered(StatusCode::CREATED, wallets.adjust(wish, key).await?))
}

/// The changes of a user's balance, newest first.
#[utoipa::path(tag = "wallet", params(Page),
    responses((status = 200, description = "A page of changes", body = List<Entry>)))]
#[get("/admin/users/{id}/wallet-entries")]
pub(crate) async fn entries(
    wallets: Data<WalletService>,
    _: Staff,
    id: PathId<UserId>,
    query: ListQuery,
) -> ApiResult<Json<List<Entry>>> {
    page_of(&wallets, id.0, query.page).await
}

/// The changes of the caller's balance, newest first.
#[utoipa::path(tag = "wallet", params(Page),
    responses((status = 200, description = "A page of changes", body = List<Entry>)))]
#[get("/me/wallet-entries")]
pub(crate) async fn my_entries(
    wallets: Data<WalletService>,
    caller: Caller,
    query: ListQuery,
) -> ApiResult<Json<List<Entry>>> {
    page_of(&wallets, caller.user, query.page).await
}

async fn page_of(wallets: &WalletService, user: UserId, page: Page) -> ApiResult<Json<List<Entry>>> {
    let changes = wallets.entries(user, page.after().map(LedgerEntryId), page.rows()).await?;
    Ok(Json(page.list(changes, |change| change.id.0, |change| change)))
}

/// Adds to a user's points, or takes from them; never below zero.
#[utoipa::path(tag = "wallet", params(IdempotencyKey), request_body = PointsAdjustmentBody,
    responses((status = 201, description = "The points as they are now", body = PointsAdjusted), AdjustRefusals))]
#[post("/admin/users/{id}/points-adjustments")]
pub(crate) async fn adjust_points(
    wallets: Data<WalletService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<UserId>,
    key: IdempotencyKey,
    body: JsonBody<PointsAdjustmentBody>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    let PointsAdjustmentBody { points, reason } = body.value;
    let wish = PointsAdjustment { user: id.0, points, reason, by: operator.0.user };
    Ok(answered(StatusCode::CREATED, wallets.adjust_points(wish, key).await?))
}

/// The changes of a user's points, newest first.
#[utoipa::path(tag = "wallet", params(Page),
    responses((status = 200, description = "A page of changes", body = List<PointsEntry>)))]
#[get("/admin/users/{id}/points-entries")]
pub(crate) async fn points_entries(
    wallets: Data<WalletService>,
    _: Staff,
    id: PathId<UserId>,
    query: ListQuery,
) -> ApiResult<Json<List<PointsEntry>>> {
    page_of_points(&wallets, id.0, query.page).await
}

/// The changes of the caller's points, newest first.
#[utoipa::path(tag = "wallet", params(Page),
    responses((status = 200, description = "A page of changes", body = List<PointsEntry>)))]
#[get("/me/points-entries")]
pub(crate) async fn my_points_entries(
    wallets: Data<WalletService>,
    caller: Caller,
    query: ListQuery,
) -> ApiResult<Json<List<PointsEntry>>> {
    page_of_points(&wallets, caller.user, query.page).await
}

async fn page_of_points(
    wallets: &WalletService,
    user: UserId,
    page: Page,
) -> ApiResult<Json<List<PointsEntry>>> {
    let changes = wallets.points_entries(user, page.after().map(LedgerEntryId), page.rows()).await?;
    Ok(Json(page.list(changes, |change| change.id.0, |change| change)))
}

impl From<WalletError> for ApiError {
    fn from(error: WalletError) -> Self {
        let text = error.to_string();
        match error {
            WalletError::UserUnknown => Self::new(Code::NotFound, text),
            WalletError::Insufficient { .. } | WalletError::PointsInsufficient { .. } => {
                Self::new(Code::BalanceInsufficient, text)
            }
            WalletError::TooMuch => Self::invalid("/amount_minor", text),
            WalletError::TooManyPoints => Self::invalid("/points", text),
            WalletError::Key(refusal) => refusal.into(),
            WalletError::Db(fault) => fault.into(),
        }
    }
}

// The OpenAPI document says it in digits.
const _: () = assert!(MOST_MINOR == 1_000_000_000_000 && MOST_POINTS == 1_000_000_000_000);
