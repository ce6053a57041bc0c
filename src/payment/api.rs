//! Payments and refunds over HTTP.
#![expect(unused_qualifications, reason = "utoipa::path spells the types of parameters out")]

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, post};
use serde::Deserialize;
use tracing::warn;
use utoipa::{IntoParams, ToSchema};

use super::machine::Contradiction;
use super::model::{
    Opened, PaymentDetail, PaymentRecord, PaymentState, PaymentView, Refund, RefundState, RefundView, Wish,
};
use super::service::{NoticeError, PaymentError, PaymentService};
use super::{refund, store};
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, NoMembers, Operator, OptionalBody, Page, PathId,
    PathName, RawBody, Reason, Staff, Validate, answered, request_key,
};
use crate::identity::Caller;
use crate::ids::{OrderId, PaymentId, PaymentRecordId, RefundId};
use crate::ports::payment_gateway::{Channel, GatewayError, NoticeHeaders, NoticeRefusal, PaymentMode};
use crate::refusals;

refusals!(OpenRefusals: OrderNotPayable, OrderAlreadyPaid, GatewayRefused);
refusals!(NoticeRefusals: PaymentMismatch, MalformedRequest, Unauthenticated, NotFound, Overloaded, BodyTooLarge);
refusals!(DecisionRefusals: TransitionNotAllowed);

/// How to pay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPayment {
    channel: Channel,
    /// Unless given, the way of the payment that is open, or what the channel usually does: `native` (WeChat), `precreate`
    /// (Alipay).
    #[serde(default)]
    mode: Option<PaymentMode>,
    /// The customer's openid, for the mode `jsapi`.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    payer: Option<String>,
}

impl Validate for NewPayment {
    fn validate(&self, errors: &mut Vec<FieldError>) {
        let acceptable = |payer: &String| {
            (1..=128).contains(&payer.chars().count()) && !payer.chars().any(char::is_control)
        };
        if !self.payer.as_ref().is_none_or(acceptable) {
            let detail = "1 to 128 characters, no control characters".to_owned();
            errors.push(FieldError { pointer: "/payer".to_owned(), detail });
        }
    }
}

/// Opens a payment of the caller's order, or the one of this channel that is open already.
#[utoipa::path(tag = "payments", params(IdempotencyKey), request_body = NewPayment,
    responses((status = 201, description = "What the client needs in order to pay", body = Opened), OpenRefusals))]
#[post("/orders/{id}/payments")]
pub(crate) async fn open(
    payments: Data<PaymentService>,
    req: HttpRequest,
    caller: Caller,
    id: PathId<OrderId>,
    key: IdempotencyKey,
    body: JsonBody<NewPayment>,
) -> ApiResult<HttpResponse> {
    let key = request_key(caller.user, &req, &key, body.fingerprint);
    let NewPayment { channel, mode, payer } = body.value;
    let opened = payments.create(caller.user, id.0, channel, Wish { mode, payer }, key).await?;
    Ok(answered(StatusCode::CREATED, opened))
}

/// The payments of the caller's order, oldest first.
#[utoipa::path(tag = "payments", params(Page),
    responses((status = 200, description = "A page of payments", body = List<PaymentView>)))]
#[get("/orders/{id}/payments")]
pub(crate) async fn of_order(
    payments: Data<PaymentService>,
    caller: Caller,
    id: PathId<OrderId>,
    query: ListQuery,
) -> ApiResult<Json<List<PaymentView>>> {
    let found = payments.of_order(caller.user, id.0).await?;
    Ok(Json(query.page.of(found, |payment| payment.id.0, PaymentView::from)))
}

/// The refunds of the caller's order, oldest first.
#[utoipa::path(tag = "payments", params(Page),
    responses((status = 200, description = "A page of refunds", body = List<RefundView>)))]
#[get("/orders/{id}/refunds")]
pub(crate) async fn refunds_of_order(
    payments: Data<PaymentService>,
    caller: Caller,
    id: PathId<OrderId>,
    query: ListQuery,
) -> ApiResult<Json<List<RefundView>>> {
    let found = payments.refunds_of(caller.user, id.0).await?;
    Ok(Json(query.page.of(found, |refund| refund.id.0, RefundView::from)))
}

/// What payment gateways tell, in their own formats, signed by their own keys.
#[utoipa::path(tag = "payments", security(()), request_body(content = String, content_type = "*/*"),
    responses((status = 200, description = "It is kept; the body is what the gateway wants to read"), NoticeRefusals))]
#[post("/payments/callbacks/{name}")]
pub(crate) async fn notice(
    payments: Data<PaymentService>,
    req: HttpRequest,
    channel: PathName,
    body: RawBody<65_536>,
) -> ApiResult<HttpResponse> {
    let channel: Channel = channel.0.parse().map_err(|_| NoticeError::ChannelOff)?;
    let headers: NoticeHeaders = req
        .headers()
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    let kept = payments.notice(channel, &headers, &body.0).await.inspect_err(|error| {
        if let NoticeError::Refused(refusal) = error {
            warn!(target: "security", %channel, "Refused a payment notice: {refusal}");
        }
    })?;
    let status = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
    Ok(HttpResponse::build(status).insert_header((CONTENT_TYPE, kept.content_type)).body(kept.body))
}

fn refused(refusal: &NoticeRefusal) -> ApiError {
    match refusal {
        NoticeRefusal::Forged(_) | NoticeRefusal::Stale => {
            ApiError::new(Code::Unauthenticated, "The signature does not hold.")
        }
        NoticeRefusal::Malformed(detail) => ApiError::new(Code::MalformedRequest, detail.clone()),
        NoticeRefusal::WrongMerchant { .. } => {
            ApiError::new(Code::PaymentMismatch, "The notice is about another merchant.")
        }
    }
}

impl From<NoticeError> for ApiError {
    fn from(error: NoticeError) -> Self {
        match error {
            NoticeError::ChannelOff => Self::new(Code::NotFound, "There is no such payment channel here."),
            NoticeError::Refused(refusal) => refused(&refusal),
            NoticeError::Contradiction(contradiction) => mismatch(&contradiction),
            NoticeError::Lane(error) => error.into_api_error(|contradiction| mismatch(&contradiction)),
            NoticeError::Payment(error) => error.into(),
        }
    }
}

fn mismatch(contradiction: &Contradiction) -> ApiError {
    ApiError::new(Code::PaymentMismatch, contradiction.to_string())
}

/// Which payments to list.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PaymentFilter {
    order_id: Option<OrderId>,
    state: Option<PaymentState>,
    channel: Option<Channel>,
}

/// Payments of anybody, newest first.
#[utoipa::path(tag = "payments", params(Page, PaymentFilter),
    responses((status = 200, description = "A page of payments", body = List<PaymentDetail>)))]
#[get("/admin/payments")]
pub(crate) async fn list_all(
    payments: Data<PaymentService>,
    _: Staff,
    query: ListQuery<PaymentFilter>,
) -> ApiResult<Json<List<PaymentDetail>>> {
    let page = query.page;
    let PaymentFilter { order_id: order, state, channel } = query.filter;
    let (before, limit) = (page.after().map(PaymentId), page.rows());
    let found = payments.list(store::Listing { order, state, channel, before, limit }).await?;
    Ok(Json(page.list(found, |payment| payment.id.0, PaymentDetail::from)))
}

/// What its gateway said of a payment, as far as it was news, oldest first.
#[utoipa::path(tag = "payments", params(Page),
    responses((status = 200, description = "A page of records", body = List<PaymentRecord>)))]
#[get("/admin/payments/{id}/records")]
pub(crate) async fn records(
    payments: Data<PaymentService>,
    _: Staff,
    id: PathId<PaymentId>,
    query: ListQuery,
) -> ApiResult<Json<List<PaymentRecord>>> {
    let page = query.page;
    let after = PaymentRecordId(page.after().unwrap_or_default());
    let found = payments.records(id.0, after, page.rows()).await?;
    Ok(Json(page.list(found, |record| record.id.0, |record| record)))
}

/// Says that a payment that is open at a gateway that is not set up here any more comes to nothing; its order can end.
///
/// Whoever learns that it was paid gives the money back at the gateway first. A gateway that is set up is asked instead,
/// whenever the order is cancelled or its time is up.
#[utoipa::path(tag = "payments", params(IdempotencyKey), request_body = Reason,
    responses((status = 200, description = "The payment as it is now", body = PaymentDetail), DecisionRefusals))]
#[post("/admin/payments/{id}/settle")]
pub(crate) async fn give_up(
    payments: Data<PaymentService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<PaymentId>,
    key: IdempotencyKey,
    body: JsonBody<Reason>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    let settled = payments.give_up(operator.0.user, id.0, body.value.reason, key).await?;
    Ok(answered(StatusCode::OK, settled))
}

/// Which refunds to list.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RefundFilter {
    order_id: Option<OrderId>,
    state: Option<RefundState>,
}

/// Refunds, newest first.
#[utoipa::path(tag = "payments", params(Page, RefundFilter),
    responses((status = 200, description = "A page of refunds", body = List<Refund>)))]
#[get("/admin/refunds")]
pub(crate) async fn refunds(
    payments: Data<PaymentService>,
    _: Staff,
    query: ListQuery<RefundFilter>,
) -> ApiResult<Json<List<Refund>>> {
    let page = query.page;
    let RefundFilter { order_id: order, state } = query.filter;
    let (before, limit) = (page.after().map(RefundId), page.rows());
    let found = payments.refunds(refund::Listing { order, state, before, limit }).await?;
    Ok(Json(page.list(found, |refund| refund.id.0, |refund| refund)))
}

/// Agrees to a refund, or has one that failed at the gateway tried again.
#[utoipa::path(tag = "payments", params(IdempotencyKey), request_body = Option<NoMembers>,
    responses((status = 200, description = "The refund as it is now", body = Refund), DecisionRefusals))]
#[post("/admin/refunds/{id}/approve")]
pub(crate) async fn approve(
    payments: Data<PaymentService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<RefundId>,
    key: IdempotencyKey,
    body: OptionalBody<NoMembers>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    Ok(answered(StatusCode::OK, payments.approve(operator.0.user, id.0, key).await?))
}

/// Refuses a refund that waits for an operator; the order is again what it was.
#[utoipa::path(tag = "payments", params(IdempotencyKey), request_body = Reason,
    responses((status = 200, description = "The refund as it is now", body = Refund), DecisionRefusals))]
#[post("/admin/refunds/{id}/refuse")]
pub(crate) async fn refuse(
    payments: Data<PaymentService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<RefundId>,
    key: IdempotencyKey,
    body: JsonBody<Reason>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    let refused = payments.refuse(operator.0.user, id.0, body.value.reason, key).await?;
    Ok(answered(StatusCode::OK, refused))
}

/// Says that the money of a refund went back another way; the order is refunded.
///
/// For a refund that failed at its gateway, or is approved and its gateway is not set up here any more. Whoever says so has
/// made sure that the gateway did not give the money back as well.
#[utoipa::path(tag = "payments", params(IdempotencyKey), request_body = Reason,
    responses((status = 200, description = "The refund as it is now", body = Refund), DecisionRefusals))]
#[post("/admin/refunds/{id}/settle")]
pub(crate) async fn settle(
    payments: Data<PaymentService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<RefundId>,
    key: IdempotencyKey,
    body: JsonBody<Reason>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    let settled = payments.settle_by_hand(operator.0.user, id.0, body.value.reason, key).await?;
    Ok(answered(StatusCode::OK, settled))
}

impl From<PaymentError> for ApiError {
    fn from(error: PaymentError) -> Self {
        match error {
            PaymentError::NotFound => Self::new(Code::NotFound, "There is nothing with this id."),
            PaymentError::NotPayable(state) => {
                Self::new(Code::OrderNotPayable, format!("The order is {state}."))
            }
            PaymentError::TooLate => Self::new(Code::OrderNotPayable, "The time to pay is over."),
            PaymentError::AlreadyPaid => Self::new(Code::OrderAlreadyPaid, "The order is paid."),
            PaymentError::ChannelOff(channel) => {
                Self::invalid("/channel", format!("payments through {channel} are not set up here"))
            }
            PaymentError::GatewayGone { payment, channel } => Self::new(
                Code::DependencyUnavailable,
                format!(
                    "Payment {payment} went through {channel}, which is not set up here any more: nobody can say \
                     whether it was paid. An operator can set {channel} up again, or settle the payment by hand."
                ),
            ),
            PaymentError::GatewayDecides(channel) => Self::new(
                Code::TransitionNotAllowed,
                format!("Payments through {channel} are set up here, so what {channel} says counts."),
            ),
            PaymentError::PaymentSettled(state) => {
                Self::new(Code::TransitionNotAllowed, format!("The payment is {state}."))
            }
            PaymentError::RefundSettled(state) => {
                Self::new(Code::TransitionNotAllowed, format!("The refund is {state}."))
            }
            PaymentError::Gateway(GatewayError::Unclear(_)) => Self::new(
                Code::DependencyUnavailable,
                "The payment gateway does not answer clearly. Try again.",
            ),
            PaymentError::Gateway(GatewayError::Refused { code, message }) => {
                Self::new(Code::GatewayRefused, format!("{code}: {message}"))
            }
            PaymentError::Gateway(GatewayError::Unfit(detail)) => Self::invalid("/mode", detail),
            PaymentError::Contradiction(contradiction) => mismatch(&contradiction),
            PaymentError::Unavailable => {
                Self::new(Code::DependencyUnavailable, "The database is not available.")
            }
            PaymentError::Key(refusal) => refusal.into(),
            PaymentError::NodeNumber(lost) => crate::db::DbFault::from(lost).into(),
            PaymentError::Db(fault) => fault.into(),
        }
    }
}
