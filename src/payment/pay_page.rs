//! The page on which a customer pays in the sandbox. As at a real gateway, whoever has its address may pay.
//!
//! What is chosen there comes back as a notice, signed and through the same door as any gateway's. Without the sandbox
//! there is no page.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ContentType, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse, get, post};
use futures_util::future::try_join_all;
use serde::Deserialize;
use tracing::warn;
use utoipa::ToSchema;

use super::model::PaymentState;
use super::opening::payment_order;
use super::service::{NoticeError, PaymentError, PaymentService};
use crate::error::{ApiError, Code};
use crate::http::{ApiResult, PathId, RawBody};
use crate::ids::PaymentId;
use crate::ports::payment_gateway::sandbox::{PayChoice, SIGNATURE, Sandbox, Signal};
use crate::ports::payment_gateway::sandbox_page::{Shown, page};
use crate::ports::payment_gateway::{Channel, GatewayState, NoticeHeaders, PaymentGateway, PaymentOrder};
use crate::refusals;

refusals!(PageRefusals: DependencyUnavailable);
refusals!(PayRefusals: DependencyUnavailable, Overloaded);

/// What the customer does on the page.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageForm {
    choice: PayChoice,
}

/// The page to pay on.
#[utoipa::path(tag = "payments", security(()),
    responses((status = 200, description = "A page for people", content_type = "text/html", body = String), PageRefusals))]
#[get("/pay/sandbox/{id}")]
pub(crate) async fn show(payments: Data<PaymentService>, id: PathId<PaymentId>) -> ApiResult<HttpResponse> {
    let (_, order, state) = find(&payments, id.0).await?;
    let shown = if state == PaymentState::Succeeded { Shown::Paid } else { Shown::Choices };
    Ok(html(page(&order, shown)))
}

/// The customer pays, or does not, and the shop is told.
#[utoipa::path(tag = "payments", security(()),
    request_body(content = PageForm, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "A page for people", content_type = "text/html", body = String), PayRefusals))]
#[post("/pay/sandbox/{id}")]
pub(crate) async fn pay(
    payments: Data<PaymentService>,
    req: HttpRequest,
    id: PathId<PaymentId>,
    body: RawBody<256>,
) -> ApiResult<HttpResponse> {
    let choice = form(&req, &body.0)?.choice;
    let (sandbox, order, state) = find(&payments, id.0).await?;
    if state == PaymentState::Succeeded {
        return Ok(html(page(&order, Shown::Paid)));
    }
    let signals = sandbox.pay(&order, choice, payments.clock().now());
    if signals.is_empty() {
        // The shop may not know yet that it was paid.
        let shown = match sandbox.query(id.0).await.map_err(PaymentError::from)? {
            GatewayState::Succeeded(_) | GatewayState::Refunded(_) => Shown::Paid,
            GatewayState::NotFound | GatewayState::Pending | GatewayState::Failed | GatewayState::Closed => {
                Shown::TooLate
            }
        };
        return Ok(html(page(&order, shown)));
    }
    let (now, later): (Vec<Signal>, Vec<Signal>) =
        signals.into_iter().partition(|signal| signal.delay.is_zero());
    for signal in later {
        let (payments, sandbox, id) = (payments.get_ref().clone(), sandbox.clone(), id.0);
        let place = sandbox.place_to_wait().ok_or_else(|| too_many_are_late(signal.delay))?;
        actix_web::rt::spawn(async move {
            let _until_told = place;
            actix_web::rt::time::sleep(signal.delay).await;
            if let Err(error) = tell(&payments, &sandbox, &signal).await {
                warn!(payment.id = %id, %error, "The sandbox could not tell of payment {id}");
            }
        });
    }
    // All at once, as a gateway does that repeats itself.
    try_join_all(now.iter().map(|signal| tell(&payments, &sandbox, signal))).await?;
    Ok(html(page(&order, Shown::Done(choice))))
}

/// By the end of `delay` this one would have been told, and so are most that wait.
fn too_many_are_late(delay: Duration) -> ApiError {
    let detail = "The sandbox has as many late payments to tell of as it can keep in mind. Nothing was paid.";
    let retry_after_s = Some(u32::try_from(delay.as_secs()).unwrap_or(u32::MAX));
    ApiError { retry_after_s, ..ApiError::new(Code::Overloaded, detail) }
}

/// The sandbox, and what is to be paid in it.
async fn find(
    payments: &PaymentService,
    id: PaymentId,
) -> ApiResult<(Arc<Sandbox>, PaymentOrder, PaymentState)> {
    let not_found = || ApiError::new(Code::NotFound, "There is no such payment in the sandbox.");
    let sandbox = payments.gateways().sandbox().cloned().ok_or_else(not_found)?;
    let (payment, order) = payments.with_order(id).await?;
    if payment.channel != Channel::Sandbox {
        return Err(not_found());
    }
    let order = payment_order(&payment, &order)?;
    Ok((sandbox, order, payment.state))
}

async fn tell(payments: &PaymentService, sandbox: &Sandbox, signal: &Signal) -> Result<(), NoticeError> {
    let body = signal.body.as_bytes();
    let signature = sandbox.sign(body, payments.clock().now());
    let headers = NoticeHeaders::from_iter([(SIGNATURE, signature)]);
    payments.notice(Channel::Sandbox, &headers, body).await.map(drop)
}

fn form(req: &HttpRequest, body: &[u8]) -> ApiResult<PageForm> {
    let declared = req.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        let detail = "Send the body as application/x-www-form-urlencoded";
        return Err(ApiError::new(Code::UnsupportedMediaType, detail));
    }
    serde_urlencoded::from_bytes(body).map_err(|error| ApiError::invalid("/choice", error.to_string()))
}

/// A page that runs nothing, loads nothing, is framed by nobody and stays out of caches.
fn html(page: String) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(ContentType::html())
        .insert_header((
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        ))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .body(page)
}
