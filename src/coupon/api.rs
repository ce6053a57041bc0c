//! Coupons over HTTP.
#![expect(unused_qualifications, reason = "utoipa::path spells the types of parameters out")]

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, post};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::events::CouponState;
use super::model::{CouponError, CouponView, NewCoupon, Validity};
use super::service::CouponService;
use crate::activity::model::Name;
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, Operator, Page, PathId, Reason, Staff, Validate,
    answered, request_key,
};
use crate::identity::Caller;
use crate::ids::{CouponId, UserId};
use crate::money::MOST_MINOR;
use crate::refusals;

refusals!(VoidRefusals: TransitionNotAllowed);

/// A coupon to give to a user.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CouponBody {
    #[schema(min_length = 1, max_length = 128, example = "Five off")]
    name: String,
    /// What it takes off an order.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    face_value_minor: i64,
    /// The goods of an order must be worth as much.
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    min_spend_minor: i64,
    /// Left out: from now on.
    valid_from: Option<DateTime<Utc>>,
    /// Good until just before; after `valid_from`, and in the future.
    valid_until: DateTime<Utc>,
}

impl CouponBody {
    fn parse(&self, user: UserId, by: UserId) -> Result<NewCoupon, Vec<FieldError>> {
        let mut errors = Vec::new();
        let mut wrong = |pointer: &str, detail: String| {
            errors.push(FieldError { pointer: pointer.to_owned(), detail });
        };
        let name = Name::parse(self.name.clone()).map_err(|invalid| wrong("/name", invalid.to_string()));
        let (face_value_minor, min_spend_minor) = (self.face_value_minor, self.min_spend_minor);
        if !(1..=MOST_MINOR).contains(&face_value_minor) {
            wrong("/face_value_minor", format!("must be 1 to {MOST_MINOR}"));
        }
        if !(0..=MOST_MINOR).contains(&min_spend_minor) {
            wrong("/min_spend_minor", format!("must be 0 to {MOST_MINOR}"));
        }
        let validity = Validity::new(self.valid_from, self.valid_until);
        if validity.is_none() {
            wrong("/valid_until", "must be after valid_from, both between 1970 and 9999".to_owned());
        }
        match (name, validity) {
            (Ok(name), Some(validity)) if errors.is_empty() => {
                Ok(NewCoupon { user, name, face_value_minor, min_spend_minor, validity, by })
            }
            _ => Err(errors),
        }
    }
}

impl Validate for CouponBody {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        errors.extend(self.parse(UserId(0), UserId(0)).err().unwrap_or_default());
    }
}

/// Gives a user a coupon.
#[utoipa::path(tag = "coupons", params(IdempotencyKey), request_body = CouponBody,
    responses((status = 201, description = "The coupon is the user's", body = CouponView)))]
#[post("/admin/users/{id}/coupons")]
pub(crate) async fn give(
    coupons: Data<CouponService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<UserId>,
    key: IdempotencyKey,
    body: JsonBody<CouponBody>,
) -> ApiResult<HttpResponse> {
    let by = operator.0.user;
    let key = request_key(by, &req, &key, body.fingerprint);
    let new = body.value.parse(id.0, by).map_err(ApiError::invalid_all)?;
    Ok(answered(StatusCode::CREATED, coupons.give(new, key).await?))
}

/// Makes an unused coupon void. One that is void already stays as it is.
#[utoipa::path(tag = "coupons", params(IdempotencyKey), request_body = Reason,
    responses((status = 200, description = "The coupon, void", body = CouponView), VoidRefusals))]
#[post("/admin/coupons/{id}/void")]
pub(crate) async fn void(
    coupons: Data<CouponService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<CouponId>,
    key: IdempotencyKey,
    body: JsonBody<Reason>,
) -> ApiResult<HttpResponse> {
    let by = operator.0.user;
    let key = request_key(by, &req, &key, body.fingerprint);
    let voided = coupons.void(id.0, by, body.value.reason, key).await?;
    Ok(answered(StatusCode::OK, voided))
}

/// Which coupons to list.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CouponFilter {
    state: Option<CouponState>,
}

/// The caller's coupons, newest first.
#[utoipa::path(tag = "coupons", params(Page, CouponFilter),
    responses((status = 200, description = "A page of coupons", body = List<CouponView>)))]
#[get("/me/coupons")]
pub(crate) async fn my_coupons(
    coupons: Data<CouponService>,
    caller: Caller,
    query: ListQuery<CouponFilter>,
) -> ApiResult<Json<List<CouponView>>> {
    page_of(&coupons, caller.user, &query).await
}

/// A user's coupons, newest first.
#[utoipa::path(tag = "coupons", params(Page, CouponFilter),
    responses((status = 200, description = "A page of coupons", body = List<CouponView>)))]
#[get("/admin/users/{id}/coupons")]
pub(crate) async fn of_user(
    coupons: Data<CouponService>,
    _: Staff,
    id: PathId<UserId>,
    query: ListQuery<CouponFilter>,
) -> ApiResult<Json<List<CouponView>>> {
    page_of(&coupons, id.0, &query).await
}

async fn page_of(
    coupons: &CouponService,
    user: UserId,
    query: &ListQuery<CouponFilter>,
) -> ApiResult<Json<List<CouponView>>> {
    let page = query.page;
    let found = coupons.of_user(user, query.filter.state, page.after().map(CouponId), page.rows()).await?;
    Ok(Json(page.list(found, |coupon| coupon.id.0, |coupon| coupon)))
}

impl From<CouponError> for ApiError {
    fn from(error: CouponError) -> Self {
        let text = error.to_string();
        match error {
            CouponError::UserUnknown | CouponError::NotFound => Self::new(Code::NotFound, text),
            CouponError::Unusable(_) => Self::new(Code::CouponUnusable, text),
            CouponError::NotVoidable(_) => Self::new(Code::TransitionNotAllowed, text),
            CouponError::Over => Self::invalid("/valid_until", text),
            CouponError::Key(refusal) => refusal.into(),
            CouponError::Db(fault) => fault.into(),
        }
    }
}
