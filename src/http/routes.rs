//! Every route on one page.
//!
//! Routes are mounted by `.service()`, which takes only documented handlers. They are tried in the order given here,
//! so what is asked most often comes first.

use utoipa_actix_web::service_config::ServiceConfig;

use super::{health, openapi, problem};

/// Everything under `/api/v1`.
pub(super) fn api(_routes: &mut ServiceConfig<'_>) {}

/// What operators, load balancers and monitoring ask.
pub(super) fn operating(routes: &mut ServiceConfig<'_>) {
    routes
        .service(health::livez)
        .service(health::readyz)
        .service(health::healthz)
        .service(health::metrics)
        .service(openapi::openapi_json)
        .service(problem::problems_page);
}
