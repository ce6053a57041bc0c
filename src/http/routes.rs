//! Every route on one page.
//!
//! Routes are mounted by `.service()`, which takes only documented handlers. They are tried in the order given here,
//! so what is asked most often comes first.

use utoipa_actix_web::service_config::ServiceConfig;

use super::{health, openapi, problem};
use crate::activity::api as activity;
use crate::catalog::{api as goods, cart_api as cart};
use crate::coupon::api as coupon;
use crate::identity::{api as identity, users_api as users};
use crate::jobs::api as jobs;
use crate::messaging::{api as messaging, asyncapi};
use crate::notification::api as notification;
use crate::order::api as order;
use crate::payment::{api as payment, pay_page};
use crate::reconciliation::api as reconciliation;
use crate::stock::api as stock;
use crate::wallet::api as wallet;

/// Everything under `/api/v1`.
pub(super) fn api(routes: &mut ServiceConfig<'_>) {
    routes
        .service(stock::take)
        .service(activity::show)
        .service(activity::list_shown)
        .service(stock::my_takes)
        .service(goods::show)
        .service(goods::list_shown)
        .service(cart::show)
        .service(cart::put)
        .service(cart::remove)
        .service(identity::sign_in)
        .service(identity::sign_out)
        .service(identity::me)
        .service(wallet::my_entries)
        .service(wallet::my_points_entries)
        .service(coupon::my_coupons)
        .service(payment::notice)
        .service(order::place)
        .service(order::show)
        .service(order::mine)
        .service(order::timeline)
        .service(order::cancel)
        .service(order::refund)
        .service(order::send_to)
        .service(payment::open)
        .service(payment::of_order)
        .service(payment::refunds_of_order)
        .service(order::get)
        .service(order::list_all)
        .service(order::timeline_of_any)
        .service(order::cancel_any)
        .service(order::refund_any)
        .service(order::send_any_to)
        .service(order::ship)
        .service(order::finish)
        .service(payment::list_all)
        .service(payment::records)
        .service(payment::give_up)
        .service(payment::refunds)
        .service(payment::approve)
        .service(payment::refuse)
        .service(payment::settle)
        .service(notification::my_notifications)
        .service(notification::read)
        .service(activity::get)
        .service(activity::list_all)
        .service(activity::create)
        .service(activity::edit)
        .service(activity::transition)
        .service(stock::adjust_stock)
        .service(stock::release)
        .service(users::list)
        .service(users::get)
        .service(wallet::adjust)
        .service(wallet::entries)
        .service(wallet::adjust_points)
        .service(wallet::points_entries)
        .service(coupon::give)
        .service(coupon::of_user)
        .service(coupon::void)
        .service(goods::get)
        .service(goods::list_all)
        .service(goods::create)
        .service(goods::edit)
        .service(goods::adjust_stock)
        .service(goods::stock_entries)
        .service(jobs::list)
        .service(jobs::edit)
        .service(jobs::start)
        .service(jobs::history)
        .service(jobs::show)
        .service(messaging::outbox)
        .service(messaging::list)
        .service(messaging::replay_all)
        .service(messaging::show)
        .service(messaging::replay)
        .service(messaging::discard)
        .service(reconciliation::list)
        .service(reconciliation::differences)
        .service(reconciliation::run)
        .service(reconciliation::apply);
}

/// Pages for customers, and what is sent from them.
pub(super) fn pages(routes: &mut ServiceConfig<'_>) {
    routes.service(pay_page::show).service(pay_page::pay);
}

/// What operators, load balancers and monitoring ask.
pub(super) fn operating(routes: &mut ServiceConfig<'_>) {
    routes
        .service(health::livez)
        .service(health::readyz)
        .service(health::healthz)
        .service(health::metrics)
        .service(openapi::openapi_json)
        .service(asyncapi::asyncapi_json)
        .service(problem::problems_page);
}
