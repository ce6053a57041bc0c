//! Orders over HTTP.
#![expect(unused_qualifications, reason = "utoipa::path spells the types of parameters out")]

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, post};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::machine::{Command, Refusal, State};
use super::model::{Order, OrderView, TimelineEntry};
use super::service::{By, OrderError, OrderService};
use super::store::Listing;
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, NoMembers, Operator, OptionalBody, Page, PathId,
    Reason, Staff, Validate, answered, request_key, validate_reason,
};
use crate::idempotency::Answered;
use crate::identity::Caller;
use crate::ids::OrderId;
use crate::refusals;

refusals!(CancelRefusals: OrderNotCancellable, IdempotencyKeyReused, Overloaded);
refusals!(RefundRefusals: OrderNotRefundable, AlreadyRefunded, IdempotencyKeyReused, Overloaded);
refusals!(MoveRefusals: TransitionNotAllowed, IdempotencyKeyReused, Overloaded);

/// Which orders to list.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct OrderFilter {
    state: Option<State>,
}

/// Shows one of the caller's orders.
#[utoipa::path(tag = "orders", responses((status = 200, description = "The order", body = OrderView)))]
#[get("/orders/{id}")]
pub(crate) async fn show(
    orders: Data<OrderService>,
    caller: Caller,
    id: PathId<OrderId>,
) -> ApiResult<Json<OrderView>> {
    Ok(Json(orders.get(By::Customer(caller.user), id.0).await?.view()?))
}

/// The caller's orders, newest first.
#[utoipa::path(tag = "orders", params(Page, OrderFilter),
    responses((status = 200, description = "A page of orders", body = List<OrderView>)))]
#[get("/me/orders")]
pub(crate) async fn mine(
    orders: Data<OrderService>,
    caller: Caller,
    query: ListQuery<OrderFilter>,
) -> ApiResult<Json<List<OrderView>>> {
    list(&orders, &query, Some(caller.user)).await
}

/// What happened to one of the caller's orders, oldest first.
#[utoipa::path(tag = "orders", responses((status = 200, description = "The timeline", body = List<TimelineEntry>)))]
#[get("/orders/{id}/timeline")]
pub(crate) async fn timeline(
    orders: Data<OrderService>,
    caller: Caller,
    id: PathId<OrderId>,
) -> ApiResult<Json<List<TimelineEntry>>> {
    Ok(Json(List::whole(orders.timeline(By::Customer(caller.user), id.0).await?)))
}

/// Why an order is not wanted any more.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cancellation {
    /// Kept in the timeline.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 256)]
    reason: Option<String>,
}

impl Validate for Cancellation {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        if let Some(reason) = &self.reason {
            validate_reason(reason, errors);
        }
    }
}

/// Cancels one of the caller's orders that is not paid; what it held goes back.
///
/// A payment that is open is closed at its gateway first. If the gateway does not say clearly that nothing was paid, the
/// order stays as it is and the answer is 503.
#[utoipa::path(tag = "orders", params(IdempotencyKey), request_body = Option<Cancellation>,
    responses((status = 200, description = "The order, cancelled", body = OrderView), CancelRefusals))]
#[post("/orders/{id}/cancel")]
pub(crate) async fn cancel(
    orders: Data<OrderService>,
    req: HttpRequest,
    caller: Caller,
    id: PathId<OrderId>,
    key: IdempotencyKey,
    body: OptionalBody<Cancellation>,
) -> ApiResult<HttpResponse> {
    let key = request_key(caller.user, &req, &key, body.fingerprint);
    let cancelled = orders.cancel(By::Customer(caller.user), id.0, body.value.reason, key).await?;
    shown(StatusCode::OK, cancelled)
}

/// Asks for the money of one of the caller's orders back.
///
/// 202: it is on its way, or waits for an operator; `GET /orders/{id}/refunds` tells.
#[utoipa::path(tag = "orders", params(IdempotencyKey), request_body = Reason,
    responses((status = 202, description = "The order, being refunded", body = OrderView), RefundRefusals))]
#[post("/orders/{id}/refunds")]
pub(crate) async fn refund(
    orders: Data<OrderService>,
    req: HttpRequest,
    caller: Caller,
    id: PathId<OrderId>,
    key: IdempotencyKey,
    body: JsonBody<Reason>,
) -> ApiResult<HttpResponse> {
    let key = request_key(caller.user, &req, &key, body.fingerprint);
    let refunding = orders.refund(By::Customer(caller.user), id.0, body.value.reason, key).await?;
    shown(StatusCode::ACCEPTED, refunding)
}

/// Shows an order of anybody, in any state.
#[utoipa::path(tag = "orders", responses((status = 200, description = "The order", body = OrderView)))]
#[get("/admin/orders/{id}")]
pub(crate) async fn get(
    orders: Data<OrderService>,
    staff: Staff,
    id: PathId<OrderId>,
) -> ApiResult<Json<OrderView>> {
    Ok(Json(orders.get(By::Operator(staff.0.user), id.0).await?.view()?))
}

/// Orders of anybody, in any state, newest first.
#[utoipa::path(tag = "orders", params(Page, OrderFilter),
    responses((status = 200, description = "A page of orders", body = List<OrderView>)))]
#[get("/admin/orders")]
pub(crate) async fn list_all(
    orders: Data<OrderService>,
    _: Staff,
    query: ListQuery<OrderFilter>,
) -> ApiResult<Json<List<OrderView>>> {
    list(&orders, &query, None).await
}

/// What happened to an order of anybody, oldest first.
#[utoipa::path(tag = "orders", responses((status = 200, description = "The timeline", body = List<TimelineEntry>)))]
#[get("/admin/orders/{id}/timeline")]
pub(crate) async fn timeline_of_any(
    orders: Data<OrderService>,
    staff: Staff,
    id: PathId<OrderId>,
) -> ApiResult<Json<List<TimelineEntry>>> {
    Ok(Json(List::whole(orders.timeline(By::Operator(staff.0.user), id.0).await?)))
}

/// Cancels an order of anybody that is not paid.
#[utoipa::path(tag = "orders", params(IdempotencyKey), request_body = Reason,
    responses((status = 200, description = "The order, cancelled", body = OrderView), CancelRefusals))]
#[post("/admin/orders/{id}/cancel")]
pub(crate) async fn cancel_any(
    orders: Data<OrderService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<OrderId>,
    key: IdempotencyKey,
    body: JsonBody<Reason>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    let by = By::Operator(operator.0.user);
    shown(StatusCode::OK, orders.cancel(by, id.0, Some(body.value.reason), key).await?)
}

/// The goods have left.
#[utoipa::path(tag = "orders", params(IdempotencyKey), request_body = Option<NoMembers>,
    responses((status = 200, description = "The order, shipped", body = OrderView), MoveRefusals))]
#[post("/admin/orders/{id}/ship")]
pub(crate) async fn ship(
    orders: Data<OrderService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<OrderId>,
    key: IdempotencyKey,
    body: OptionalBody<NoMembers>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    shown(StatusCode::OK, orders.deliver(operator.0.user, id.0, Command::Ship, key).await?)
}

/// The goods have arrived.
#[utoipa::path(tag = "orders", params(IdempotencyKey), request_body = Option<NoMembers>,
    responses((status = 200, description = "The order, finished", body = OrderView), MoveRefusals))]
#[post("/admin/orders/{id}/finish")]
pub(crate) async fn finish(
    orders: Data<OrderService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<OrderId>,
    key: IdempotencyKey,
    body: OptionalBody<NoMembers>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    shown(StatusCode::OK, orders.deliver(operator.0.user, id.0, Command::Finish, key).await?)
}

async fn list(
    orders: &OrderService,
    query: &ListQuery<OrderFilter>,
    user: Option<crate::ids::UserId>,
) -> ApiResult<Json<List<OrderView>>> {
    let page = query.page;
    let listing =
        Listing { user, state: query.filter.state, before: page.after().map(OrderId), limit: page.rows() };
    let found = orders.list(listing).await?;
    let views = found.iter().map(Order::view).collect::<Result<Vec<_>, _>>()?;
    Ok(Json(page.list(views, |order| order.id.0, |order| order)))
}

fn shown(status: StatusCode, order: Answered<Order>) -> ApiResult<HttpResponse> {
    Ok(match order {
        Answered::Fresh(order) => answered(status, Answered::Fresh(order.view()?)),
        Answered::Replayed(first) => answered::<OrderView>(status, Answered::Replayed(first)),
    })
}

impl From<OrderError> for ApiError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::NotFound => Self::new(Code::NotFound, "There is no order with this id."),
            OrderError::Refused { command, state, refusal } => {
                let code = match (command, refusal) {
                    (_, Refusal::AlreadyRefunded) if command == Command::Refund => Code::AlreadyRefunded,
                    (Command::Refund, _) => Code::OrderNotRefundable,
                    (Command::Cancel, _) => Code::OrderNotCancellable,
                    (Command::Pay(_), _) => Code::OrderNotPayable,
                    (
                        Command::Confirm
                        | Command::Abandon
                        | Command::Expire
                        | Command::Ship
                        | Command::Finish
                        | Command::RefuseRefund
                        | Command::CompleteRefund,
                        _,
                    ) => Code::TransitionNotAllowed,
                };
                Self::new(code, format!("The order is {state}: {refusal}."))
            }
            OrderError::Key(refusal) => refusal.into(),
            OrderError::PaymentUnclear(_) => Self::new(
                Code::DependencyUnavailable,
                "The payment gateway does not say whether the order was paid; it stays as it is. Try again.",
            ),
            OrderError::Lane(error) => {
                error.into_api_error(|()| Self::new(Code::InternalError, "A refusal was lost."))
            }
            OrderError::Db(fault) => fault.into(),
        }
    }
}
