//! Orders over HTTP.
#![expect(unused_qualifications, reason = "utoipa::path spells the types of parameters out")]

use std::collections::HashSet;

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, post, put};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::checkout::{Mismatch, Wish, WishedLine};
use super::machine::{Command, Refusal, State};
use super::model::{Address, Order, OrderView, TimelineEntry};
use super::saga::{Checkout, CheckoutError};
use super::service::{By, OrderError, OrderService};
use super::store::Listing;
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, NoMembers, Object, Operator, OptionalBody, Page,
    PathId, Reason, Staff, Validate, answered, request_key, validate_reason,
};
use crate::idempotency::Answered;
use crate::identity::Caller;
use crate::ids::{CouponId, GoodsId, OrderId, UserId};
use crate::money::MOST_MINOR;
use crate::payment::service::PaymentError;
use crate::refusals;

refusals!(CancelRefusals: OrderNotCancellable, Overloaded);
refusals!(RefundRefusals: OrderNotRefundable, AlreadyRefunded, Overloaded);
refusals!(MoveRefusals: TransitionNotAllowed, Overloaded);
refusals!(AddressRefusals: TransitionNotAllowed);

refusals!(PlaceRefusals: GoodsNotFound, PriceMismatch, StockInsufficient, ShippingFeeMismatch, OrderAmountMismatch,
    CouponNotFound, CouponUnusable, BalanceInsufficient, Overloaded);

/// Lines one order may have.
const MOST_LINES: usize = 50;
/// Units one line may have.
const MOST_UNITS: i64 = 999;

/// Characters that the members of an address may have.
const MOST_CONSIGNEE: usize = 64;
const MOST_PHONE: usize = 32;
const MOST_ADDRESS_LINE: usize = 256;

/// The largest address, in bytes: JSON may spell each character as two escapes of six, as in `\ud83d\ude00`; the rest is for
/// the names of the members and what is between them.
const ADDRESS_LIMIT: usize = 12 * (MOST_CONSIGNEE + MOST_PHONE + MOST_ADDRESS_LINE) + 1024;

/// An order as the customer wants it; the amounts are what the customer was shown.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewOrder {
    /// Each goods once.
    #[schema(min_items = 1, max_items = 50, value_type = Vec<NewLine>)]
    items: Vec<Object<NewLine>>,
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    shipping_fee_minor: i64,
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    order_amount_minor: i64,
    #[serde(default)]
    coupon_id: Option<CouponId>,
    /// To be taken from the balance.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    balance_minor: i64,
    #[schema(value_type = Address)]
    address: Object<Address>,
}

/// One kind of goods in an order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewLine {
    goods_id: GoodsId,
    #[schema(minimum = 1, maximum = 999)]
    quantity: i64,
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    unit_price_minor: i64,
}

impl Validate for NewOrder {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        let mut refuse = |pointer: String, detail: String| errors.push(FieldError { pointer, detail });
        if !(1..=MOST_LINES).contains(&self.items.len()) {
            refuse("/items".to_owned(), format!("must have 1 to {MOST_LINES} items"));
        }
        let mut seen = HashSet::new();
        for (i, Object(line)) in self.items.iter().enumerate() {
            if !seen.insert(line.goods_id) {
                refuse(format!("/items/{i}/goods_id"), "each goods may be listed once".to_owned());
            }
            if !(1..=MOST_UNITS).contains(&line.quantity) {
                refuse(format!("/items/{i}/quantity"), format!("must be 1 to {MOST_UNITS}"));
            }
            if !(0..=MOST_MINOR).contains(&line.unit_price_minor) {
                refuse(format!("/items/{i}/unit_price_minor"), format!("must be 0 to {MOST_MINOR}"));
            }
        }
        let amounts = [
            ("/shipping_fee_minor", self.shipping_fee_minor),
            ("/order_amount_minor", self.order_amount_minor),
            ("/balance_minor", self.balance_minor),
        ];
        for (pointer, amount) in amounts {
            if !(0..=MOST_MINOR).contains(&amount) {
                refuse(pointer.to_owned(), format!("must be 0 to {MOST_MINOR}"));
            }
        }
        validate_address(&self.address.0, "/address", errors);
    }
}

impl Validate for Address {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        validate_address(self, "", errors);
    }
}

fn validate_address(address: &Address, at: &str, errors: &mut Vec<FieldError>) {
    let texts = [
        ("consignee", &address.consignee, MOST_CONSIGNEE),
        ("phone", &address.phone, MOST_PHONE),
        ("line", &address.line, MOST_ADDRESS_LINE),
    ];
    for (member, text, most) in texts {
        let chars = text.chars().count();
        if !(1..=most).contains(&chars) || text.trim().is_empty() || text.chars().any(char::is_control) {
            let pointer = format!("{at}/{member}");
            let detail =
                format!("must be 1 to {most} characters, not all blank, none of them a control character");
            errors.push(FieldError { pointer, detail });
        }
    }
}

impl From<NewOrder> for Wish {
    fn from(new: NewOrder) -> Self {
        let lines = new.items.into_iter().map(|Object(line)| WishedLine {
            goods_id: line.goods_id,
            quantity: i32::try_from(line.quantity).unwrap_or(i32::MAX),
            unit_price_minor: line.unit_price_minor,
        });
        Self {
            lines: lines.collect(),
            shipping_fee_minor: new.shipping_fee_minor,
            order_amount_minor: new.order_amount_minor,
            coupon: new.coupon_id,
            balance_minor: new.balance_minor,
            address: new.address.0,
        }
    }
}

/// Orders goods of the shop.
///
/// Everything is compared with what the shop knows, in this order: goods, prices, quantities, shipping fee, amount,
/// coupon, balance; the first mismatch is answered. What is left to pay is due by `payment_due_at`; if nothing is, the
/// order is paid at once.
#[utoipa::path(tag = "orders", params(IdempotencyKey), request_body = NewOrder,
    responses((status = 201, description = "The order", body = OrderView), PlaceRefusals))]
#[post("/orders")]
pub(crate) async fn place(
    checkout: Data<Checkout>,
    req: HttpRequest,
    caller: Caller,
    key: IdempotencyKey,
    body: JsonBody<NewOrder, 16_384>,
) -> ApiResult<HttpResponse> {
    let key = request_key(caller.user, &req, &key, body.fingerprint);
    shown(StatusCode::CREATED, checkout.place(caller.user, body.value.into(), key).await?)
}

/// Which orders to list.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct OrderFilter {
    state: Option<State>,
}

/// Which orders of which customer to list.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AnyOrderFilter {
    user_id: Option<UserId>,
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
    let OrderFilter { state } = query.filter;
    let (before, limit) = (query.page.after().map(OrderId), query.page.rows());
    list(&orders, query.page, Listing { user: Some(caller.user), visible: true, state, before, limit }).await
}

/// What happened to one of the caller's orders, oldest first.
#[utoipa::path(tag = "orders", params(Page),
    responses((status = 200, description = "A page of the timeline", body = List<TimelineEntry>)))]
#[get("/orders/{id}/timeline")]
pub(crate) async fn timeline(
    orders: Data<OrderService>,
    caller: Caller,
    id: PathId<OrderId>,
    query: ListQuery,
) -> ApiResult<Json<List<TimelineEntry>>> {
    page_of_timeline(&orders, By::Customer(caller.user), id.0, query.page).await
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

/// Asks for the money of anybody's order back, in the name of its customer.
///
/// It goes back as if the customer had asked: whether an operator has to agree to refunds is a setting of its own.
#[utoipa::path(tag = "orders", params(IdempotencyKey), request_body = Reason,
    responses((status = 202, description = "The order, being refunded", body = OrderView), RefundRefusals))]
#[post("/admin/orders/{id}/refunds")]
pub(crate) async fn refund_any(
    orders: Data<OrderService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<OrderId>,
    key: IdempotencyKey,
    body: JsonBody<Reason>,
) -> ApiResult<HttpResponse> {
    let by = operator.0.user;
    let key = request_key(by, &req, &key, body.fingerprint);
    let refunding = orders.refund(By::Operator(by), id.0, body.value.reason, key).await?;
    shown(StatusCode::ACCEPTED, refunding)
}

/// Says where one of the caller's orders goes, until it is shipped: a take brings its order without an address.
#[utoipa::path(tag = "orders", params(IdempotencyKey), request_body = Address,
    responses((status = 200, description = "The order as it is now", body = OrderView), AddressRefusals))]
#[put("/orders/{id}/address")]
pub(crate) async fn send_to(
    orders: Data<OrderService>,
    req: HttpRequest,
    caller: Caller,
    id: PathId<OrderId>,
    key: IdempotencyKey,
    body: JsonBody<Address, ADDRESS_LIMIT>,
) -> ApiResult<HttpResponse> {
    let key = request_key(caller.user, &req, &key, body.fingerprint);
    let order = orders.send_to(By::Customer(caller.user), id.0, &body.value, key).await?;
    Ok(answered(StatusCode::OK, order))
}

/// Says where an order of anybody goes, until it is shipped.
#[utoipa::path(tag = "orders", params(IdempotencyKey), request_body = Address,
    responses((status = 200, description = "The order as it is now", body = OrderView), AddressRefusals))]
#[put("/admin/orders/{id}/address")]
pub(crate) async fn send_any_to(
    orders: Data<OrderService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<OrderId>,
    key: IdempotencyKey,
    body: JsonBody<Address, ADDRESS_LIMIT>,
) -> ApiResult<HttpResponse> {
    let by = operator.0.user;
    let key = request_key(by, &req, &key, body.fingerprint);
    let order = orders.send_to(By::Operator(by), id.0, &body.value, key).await?;
    Ok(answered(StatusCode::OK, order))
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
#[utoipa::path(tag = "orders", params(Page, AnyOrderFilter),
    responses((status = 200, description = "A page of orders", body = List<OrderView>)))]
#[get("/admin/orders")]
pub(crate) async fn list_all(
    orders: Data<OrderService>,
    _: Staff,
    query: ListQuery<AnyOrderFilter>,
) -> ApiResult<Json<List<OrderView>>> {
    let AnyOrderFilter { user_id: user, state } = query.filter;
    let (before, limit) = (query.page.after().map(OrderId), query.page.rows());
    list(&orders, query.page, Listing { user, visible: false, state, before, limit }).await
}

/// What happened to an order of anybody, oldest first.
#[utoipa::path(tag = "orders", params(Page),
    responses((status = 200, description = "A page of the timeline", body = List<TimelineEntry>)))]
#[get("/admin/orders/{id}/timeline")]
pub(crate) async fn timeline_of_any(
    orders: Data<OrderService>,
    staff: Staff,
    id: PathId<OrderId>,
    query: ListQuery,
) -> ApiResult<Json<List<TimelineEntry>>> {
    page_of_timeline(&orders, By::Operator(staff.0.user), id.0, query.page).await
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

async fn page_of_timeline(
    orders: &OrderService,
    by: By,
    id: OrderId,
    page: Page,
) -> ApiResult<Json<List<TimelineEntry>>> {
    let entries = orders.timeline(by, id, page.after().unwrap_or_default(), page.rows()).await?;
    Ok(Json(page.list(entries, |entry| entry.version, |entry| entry)))
}

async fn list(orders: &OrderService, page: Page, listing: Listing) -> ApiResult<Json<List<OrderView>>> {
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

impl From<CheckoutError> for ApiError {
    fn from(error: CheckoutError) -> Self {
        let detail = error.to_string();
        match error {
            CheckoutError::Mismatch(mismatch) => {
                let code = match mismatch {
                    Mismatch::Goods(_) => Code::GoodsNotFound,
                    Mismatch::Price { .. } => Code::PriceMismatch,
                    Mismatch::Quantity { .. } => Code::StockInsufficient,
                    Mismatch::ShippingFee(_) => Code::ShippingFeeMismatch,
                    Mismatch::OrderAmount(_) | Mismatch::BalanceTooMuch(_) => Code::OrderAmountMismatch,
                    Mismatch::Coupon => Code::CouponNotFound,
                    Mismatch::CouponUnusable(_) => Code::CouponUnusable,
                    Mismatch::Balance(_) => Code::BalanceInsufficient,
                };
                Self::new(code, detail)
            }
            CheckoutError::Key(refusal) => refusal.into(),
            CheckoutError::Overloaded { retry_after_s } => Self::overloaded(retry_after_s),
            CheckoutError::Unavailable | CheckoutError::GivenUp => {
                Self::new(Code::DependencyUnavailable, "The order could not be made; nothing of it remains.")
            }
            CheckoutError::Unanswered => Self::unconfirmed(),
            CheckoutError::NodeNumber(lost) => crate::db::DbFault::from(lost).into(),
            CheckoutError::Db(fault) => fault.into(),
        }
    }
}

impl From<OrderError> for ApiError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::NotFound => Self::new(Code::NotFound, "There is no order with this id."),
            OrderError::AddressFixed(state) => {
                Self::new(Code::TransitionNotAllowed, format!("The order is {state}: its address stays."))
            }
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
            OrderError::PaymentUnclear(gone @ PaymentError::GatewayGone { .. }) => gone.into(),
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

// The OpenAPI document says them in digits.
const _: () = assert!(MOST_CONSIGNEE == 64 && MOST_PHONE == 32 && MOST_ADDRESS_LINE == 256);
