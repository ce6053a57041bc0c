//! Activities over HTTP (API.md, Activities).
#![expect(unused_qualifications, reason = "utoipa::path spells the types of parameters out")]

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, patch, post};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tracing::warn;
use utoipa::{IntoParams, ToSchema};

use super::machine::{Event, State};
use super::model::{ActivityView, Count, Draft, Edit, Invalid, Kind, Listing, Name, Sale, Window};
use super::service::{ActivityError, ActivityService, Actor};
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, Operator, Page, PathId, Staff, Validate, answered,
    present, request_key,
};
use crate::identity::Caller;
use crate::ids::{ActivityId, GoodsId};
use crate::refusals;

refusals!(ChangeRefusals: TransitionNotAllowed);

/// An activity to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewActivity {
    #[schema(min_length = 1, max_length = 128, example = "Mooncakes at noon")]
    name: String,
    kind: Kind,
    starts_at: DateTime<Utc>,
    /// The last moment of it: after `starts_at`, and in the future.
    ends_at: DateTime<Utc>,
    #[schema(minimum = 1, maximum = 2_147_483_647)]
    stock_total: i64,
    /// How many units one user may hold; null: no limit.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 2_147_483_647)]
    take_limit_per_user: Option<i64>,
    /// The goods that a flash sale is about, if any.
    #[serde(default)]
    goods_id: Option<GoodsId>,
    /// What one unit costs in a flash sale; other kinds have no price.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    sale_price_minor: Option<i64>,
}

/// What to change about an activity; what is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActivityEdit {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 128)]
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Kind, required = false)]
    kind: Option<Kind>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = DateTime<Utc>, required = false)]
    starts_at: Option<DateTime<Utc>>,
    /// The last moment of it, in the future.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = DateTime<Utc>, required = false)]
    ends_at: Option<DateTime<Utc>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = i64, required = false, minimum = 1, maximum = 2_147_483_647)]
    stock_total: Option<i64>,
    /// Null: no limit.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 2_147_483_647)]
    take_limit_per_user: Option<Option<i64>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<GoodsId>)]
    goods_id: Option<Option<GoodsId>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 1_000_000_000_000_i64)]
    sale_price_minor: Option<Option<i64>>,
}

/// What to do to an activity.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transition {
    event: Event,
}

/// Which activities to list.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ActivityFilter {
    state: Option<State>,
    kind: Option<Kind>,
}

/// Shows an activity that was approved; its stock is as of the last quarter of a second.
#[utoipa::path(tag = "activities", responses((status = 200, description = "The activity", body = ActivityView)))]
#[get("/activities/{id}")]
pub(crate) async fn show(
    activities: Data<ActivityService>,
    _: Caller,
    id: PathId<ActivityId>,
) -> ApiResult<HttpResponse> {
    let shown = activities.shown(id.0).await.map_err(|_| unavailable())?;
    Ok(HttpResponse::Ok().json(shown.ok_or(ActivityError::NotFound)?))
}

/// Lists the activities that were approved, newest first.
#[utoipa::path(tag = "activities", params(Page, ActivityFilter),
    responses((status = 200, description = "A page of activities", body = List<ActivityView>)))]
#[get("/activities")]
pub(crate) async fn list_shown(
    activities: Data<ActivityService>,
    _: Caller,
    query: ListQuery<ActivityFilter>,
) -> ApiResult<Json<List<ActivityView>>> {
    let shown = activities.shown_list(listing(&query)).await.map_err(|_| unavailable())?;
    Ok(Json(list(&query, shown.to_vec())))
}

/// Shows an activity in any state, as it is now.
#[utoipa::path(tag = "activities", responses((status = 200, description = "The activity", body = ActivityView)))]
#[get("/admin/activities/{id}")]
pub(crate) async fn get(
    activities: Data<ActivityService>,
    _: Staff,
    id: PathId<ActivityId>,
) -> ApiResult<Json<ActivityView>> {
    Ok(Json(activities.get(id.0).await?.ok_or(ActivityError::NotFound)?))
}

/// Lists activities in any state, newest first.
#[utoipa::path(tag = "activities", params(Page, ActivityFilter),
    responses((status = 200, description = "A page of activities", body = List<ActivityView>)))]
#[get("/admin/activities")]
pub(crate) async fn list_all(
    activities: Data<ActivityService>,
    _: Staff,
    query: ListQuery<ActivityFilter>,
) -> ApiResult<Json<List<ActivityView>>> {
    let found = activities.list(listing(&query)).await?;
    Ok(Json(list(&query, found)))
}

/// Creates an activity in `editing`, with its stock.
#[utoipa::path(tag = "activities", params(IdempotencyKey), request_body = NewActivity,
    responses((status = 201, description = "The new activity", body = ActivityView)))]
#[post("/admin/activities")]
pub(crate) async fn create(
    activities: Data<ActivityService>,
    req: HttpRequest,
    operator: Operator,
    key: IdempotencyKey,
    body: JsonBody<NewActivity>,
) -> ApiResult<HttpResponse> {
    let user = operator.0.user;
    let key = request_key(user, &req, &key, body.fingerprint);
    let draft = body.value.draft().map_err(ApiError::invalid_all)?;
    Ok(answered(StatusCode::CREATED, activities.create(user, draft, key).await?))
}

/// Changes an activity while it is editing or withdrawn.
#[utoipa::path(tag = "activities", request_body = ActivityEdit,
    responses((status = 200, description = "The changed activity", body = ActivityView), ChangeRefusals))]
#[patch("/admin/activities/{id}")]
pub(crate) async fn edit(
    activities: Data<ActivityService>,
    _: Operator,
    id: PathId<ActivityId>,
    body: JsonBody<ActivityEdit>,
) -> ApiResult<Json<ActivityView>> {
    let changes = body.value.edit().map_err(ApiError::invalid_all)?;
    Ok(Json(activities.edit(id.0, changes).await?))
}

/// Moves an activity to another state. What is already so stays so and is no error.
#[utoipa::path(tag = "activities", params(IdempotencyKey), request_body = Transition,
    responses((status = 200, description = "The activity as it is now", body = ActivityView), ChangeRefusals))]
#[post("/admin/activities/{id}/transitions")]
pub(crate) async fn transition(
    activities: Data<ActivityService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<ActivityId>,
    key: IdempotencyKey,
    body: JsonBody<Transition>,
) -> ApiResult<HttpResponse> {
    let user = operator.0.user;
    let key = request_key(user, &req, &key, body.fingerprint);
    let moved = activities.transition(Actor::User(user), id.0, body.value.event, key).await?;
    Ok(answered(StatusCode::OK, moved))
}

impl NewActivity {
    fn draft(&self) -> Result<Draft, Vec<FieldError>> {
        let mut check = Check::default();
        let name = check.value("/name", Name::parse(self.name.clone()));
        let sale = check.whole(Sale::of(self.kind, self.goods_id, self.sale_price_minor));
        let window = check.whole(Window::new(self.starts_at, self.ends_at));
        let stock_total = check.value("/stock_total", Count::parse(self.stock_total));
        let take_limit_per_user = check.limit(self.take_limit_per_user);
        match (name, sale, window, stock_total, take_limit_per_user) {
            (Some(name), Some(sale), Some(window), Some(stock_total), Some(take_limit_per_user)) => {
                Ok(Draft { name, kind: self.kind, window, stock_total, take_limit_per_user, sale })
            }
            _ => Err(check.errors),
        }
    }
}

impl ActivityEdit {
    fn edit(&self) -> Result<Edit, Vec<FieldError>> {
        let mut check = Check::default();
        let parsed = Edit {
            name: self.name.clone().and_then(|name| check.value("/name", Name::parse(name))),
            kind: self.kind,
            goods_id: self.goods_id,
            sale_price_minor: self.sale_price_minor,
            starts_at: self.starts_at,
            ends_at: self.ends_at,
            stock_total: self.stock_total.and_then(|total| check.value("/stock_total", Count::parse(total))),
            take_limit_per_user: self.take_limit_per_user.and_then(|limit| check.limit(limit)),
        };
        if check.errors.is_empty() { Ok(parsed) } else { Err(check.errors) }
    }
}

impl Validate for NewActivity {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        errors.extend(self.draft().err().unwrap_or_default());
    }
}

impl Validate for ActivityEdit {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        errors.extend(self.edit().err().unwrap_or_default());
    }
}

impl Validate for Transition {
    fn validate(&self, _: &mut Vec<FieldError>) {}
}

/// Collects what is wrong with a body.
#[derive(Default)]
struct Check {
    errors: Vec<FieldError>,
}

impl Check {
    fn value<T>(&mut self, pointer: &str, parsed: Result<T, Invalid>) -> Option<T> {
        parsed
            .map_err(|invalid| {
                self.errors.push(FieldError { pointer: pointer.to_owned(), detail: invalid.to_string() });
            })
            .ok()
    }

    /// A rule that spans members finds its own at fault.
    fn whole<T>(&mut self, parsed: Result<T, Invalid>) -> Option<T> {
        let pointer = parsed.as_ref().err().map_or("", |&invalid| pointer(invalid));
        self.value(pointer, parsed)
    }

    fn limit(&mut self, limit: Option<i64>) -> Option<Option<Count>> {
        self.value("/take_limit_per_user", limit.map(Count::parse).transpose())
    }
}

/// The member that is found at fault when the rules look at the whole.
fn pointer(invalid: Invalid) -> &'static str {
    match invalid {
        Invalid::Name => "/name",
        Invalid::Count => "/stock_total",
        Invalid::StartsAt => "/starts_at",
        Invalid::EndsAt | Invalid::Over => "/ends_at",
        Invalid::SalePrice | Invalid::NoPrice => "/sale_price_minor",
        Invalid::Goods | Invalid::NoGoods => "/goods_id",
    }
}

impl From<ActivityError> for ApiError {
    fn from(error: ActivityError) -> Self {
        let detail = error.to_string();
        match error {
            ActivityError::NotFound => Self::new(Code::NotFound, detail),
            ActivityError::Transition { .. } | ActivityError::NotEditable(_) | ActivityError::Taken(_) => {
                Self::new(Code::TransitionNotAllowed, detail)
            }
            ActivityError::Invalid(invalid) => Self::invalid(pointer(invalid), detail),
            ActivityError::Key(refusal) => refusal.into(),
            ActivityError::NodeNumber(_) => {
                warn!("No ids can be made: the lease on the node number has run out");
                Self::new(Code::DependencyUnavailable, detail)
            }
            ActivityError::Fault(fault) => fault.into(),
        }
    }
}

/// The service has logged why.
fn unavailable() -> ApiError {
    ApiError::new(Code::DependencyUnavailable, "The database is not available.")
}

fn listing(query: &ListQuery<ActivityFilter>) -> Listing {
    Listing {
        state: query.filter.state,
        kind: query.filter.kind,
        before: query.page.after().map(ActivityId),
        limit: query.page.rows(),
    }
}

fn list(query: &ListQuery<ActivityFilter>, found: Vec<ActivityView>) -> List<ActivityView> {
    query.page.list(found, |activity| activity.id.0, |activity| activity)
}
