//! The HTTP server: what every application of it is made of, and how it listens.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use actix_cors::Cors;
use actix_web::body::BoxBody;
use actix_web::dev::{Server, ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::header;
use actix_web::middleware::Condition;
use actix_web::web::{self, Data};
use actix_web::{App, Error, HttpServer};
use ipnet::IpNet;
use metrics_exporter_prometheus::PrometheusHandle;
use tracing_actix_web::TracingLogger;
use utoipa_actix_web::service_config::ServiceConfig;
use utoipa_actix_web::{AppExt, scope};
use utoipa_swagger_ui::SwaggerUi;

use super::edge::Edge;
use super::extract::BodyDeadline;
use super::health::Readiness;
use super::limit::{RateLimitSettings, RateLimits};
use super::openapi::{self, Document};
use super::problem::X_REQUEST_ID;
use super::routes;

/// How the server listens and what it lets in.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// `host:port`; port 0 takes a free one.
    pub address: String,
    /// Threads that answer requests.
    pub workers: usize,
    /// Connections that may wait to be accepted.
    pub backlog: u32,
    /// How long a connection may be idle between requests.
    pub keep_alive: Duration,
    /// How long the head of a request may take.
    pub head_deadline: Duration,
    /// How long the body of a request may take.
    pub body_deadline: Duration,
    /// How long requests in flight may take once the server is stopping.
    pub shutdown_timeout: Duration,
    /// Origins whose pages may call the API; `*` means any, none means no CORS.
    pub cors_origins: Vec<String>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    pub rate_limit: RateLimitSettings,
    /// Whether `/api/v1` and the pages for customers are there, or only what operators ask.
    pub api: bool,
    /// Whether requests are recorded as spans, which costs some microseconds each.
    pub traces: bool,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:8080".to_owned(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            backlog: 16_384,
            keep_alive: Duration::from_secs(30),
            head_deadline: Duration::from_secs(5),
            body_deadline: Duration::from_secs(3),
            shutdown_timeout: Duration::from_secs(30),
            cors_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            rate_limit: RateLimitSettings::default(),
            api: true,
            traces: false,
        }
    }
}

/// A server that listens. Await `server` to its end; stop it by `server.handle()`.
#[expect(missing_debug_implementations, reason = "the framework's Server has none")]
pub struct Listening {
    pub server: Server,
    pub addresses: Vec<SocketAddr>,
}

/// Binds the address and starts answering. Must run in an actix system.
///
/// `state` adds the modules' application data: `|app| { app.app_data(Data::new(orders.clone())); }`.
pub fn start<F>(
    settings: &HttpSettings,
    readiness: Readiness,
    metrics: PrometheusHandle,
    state: F,
) -> io::Result<Listening>
where
    F: Fn(&mut ServiceConfig<'_>) + Clone + Send + 'static,
{
    let common = Common::new(settings, readiness, metrics);
    common.limits.forget_regularly();
    let server = HttpServer::new(move || app(&common, &state))
        .workers(settings.workers)
        .backlog(settings.backlog)
        .keep_alive(settings.keep_alive)
        .client_request_timeout(settings.head_deadline)
        .shutdown_timeout(settings.shutdown_timeout.as_secs())
        .disable_signals()
        .bind(&settings.address)?;
    let addresses = server.addrs();
    Ok(Listening { server: server.run(), addresses })
}

/// The OpenAPI document of all routes.
pub fn document() -> utoipa::openapi::OpenApi {
    documented(App::new(), |_| {}, true).1
}

/// What all workers share.
#[derive(Debug, Clone)]
pub(super) struct Common {
    limits: RateLimits,
    readiness: Readiness,
    metrics: PrometheusHandle,
    body_deadline: BodyDeadline,
    cors_origins: Vec<String>,
    api: bool,
    traces: bool,
}

impl Common {
    pub(super) fn new(settings: &HttpSettings, readiness: Readiness, metrics: PrometheusHandle) -> Self {
        Self {
            limits: RateLimits::new(settings.rate_limit, settings.trusted_proxies.clone()),
            readiness,
            metrics,
            body_deadline: BodyDeadline(settings.body_deadline),
            cors_origins: settings.cors_origins.clone(),
            api: settings.api,
            traces: settings.traces,
        }
    }
}

/// The application of one worker.
pub(super) fn app<F: Fn(&mut ServiceConfig<'_>)>(
    common: &Common,
    state: &F,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<BoxBody>,
        Error = Error,
        InitError = (),
    > + use<F>,
> {
    let (app, document) = documented(App::new(), state, common.api);
    app.app_data(Data::new(Document::new(&document)))
        .app_data(Data::new(common.limits.clone()))
        .app_data(Data::new(common.readiness.clone()))
        .app_data(Data::new(common.metrics.clone()))
        .app_data(Data::new(common.body_deadline))
        .service(web::redirect("/docs", "/docs/"))
        .service(SwaggerUi::new("/docs/{_:.*}").config(utoipa_swagger_ui::Config::from("/openapi.json")))
        .default_service(web::to(openapi::not_offered))
        .wrap(Condition::new(common.traces, TracingLogger::default()))
        .wrap(Condition::new(!common.cors_origins.is_empty(), cors(&common.cors_origins)))
        .wrap(Edge)
}

/// All routes, and the document they make.
fn documented<T>(
    app: App<T>,
    state: impl FnOnce(&mut ServiceConfig<'_>),
    api: bool,
) -> (App<T>, utoipa::openapi::OpenApi)
where
    T: ServiceFactory<ServiceRequest, Config = (), Error = Error, InitError = ()>,
{
    let (app, mut document) = app
        .into_utoipa_app()
        .openapi(openapi::base())
        .configure(state)
        .service(scope("/api/v1").configure(move |routes| {
            if api {
                routes::api(routes);
            }
        }))
        .configure(move |routes| {
            if api {
                routes::pages(routes);
            }
        })
        .configure(routes::operating)
        .split_for_parts();
    openapi::complete(&mut document);
    (app, document)
}

fn cors(origins: &[String]) -> Cors {
    let cors = Cors::default()
        .allowed_methods(["GET", "POST", "PUT", "PATCH", "DELETE"])
        .allowed_headers([header::AUTHORIZATION, header::CONTENT_TYPE, X_REQUEST_ID])
        .allowed_header("idempotency-key")
        .expose_headers([
            "x-request-id",
            "ratelimit",
            "ratelimit-policy",
            "retry-after",
            "idempotency-replayed",
        ])
        .max_age(600);
    if origins.iter().any(|origin| origin == "*") {
        return cors.allow_any_origin().send_wildcard();
    }
    origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin))
}

#[cfg(test)]
mod tests;
