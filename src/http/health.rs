//! What load balancers and monitoring ask. `/livez` says that the process answers and touches nothing else: restarting
//! this server heals no database. `/readyz` says whether to send customers here: its checks pass and it is not
//! stopping.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpResponse, get, web};
use futures_util::future::{BoxFuture, join_all};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use tracing::warn;
use utoipa::{IntoParams, ToSchema};

use super::page::Query;

/// How long one check may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(2);
/// How long a result is shown again: asking often must not become load on what is checked.
const SHOWN_AGAIN: Duration = Duration::from_millis(500);

/// Whether this server wants customers.
#[derive(Clone)]
pub struct Readiness(Arc<Inner>);

struct Inner {
    checks: Vec<(&'static str, Check)>,
    stopping: AtomicBool,
    last: tokio::sync::Mutex<Option<(Instant, Vec<CheckResult>)>>,
}

/// Fails while this server cannot do without something that is missing.
pub type Check = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The answer of `/readyz`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReadinessReport {
    status: ReadinessStatus,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    checks: Vec<CheckResult>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ReadinessStatus {
    Ready,
    NotReady,
    Stopping,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct CheckResult {
    name: &'static str,
    ok: bool,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.checks.iter().map(|(name, _)| name).collect();
        f.debug_struct("Readiness").field("checks", &names).finish_non_exhaustive()
    }
}

impl Readiness {
    /// Ready while every one of the named checks passes.
    pub fn new(checks: Vec<(&'static str, Check)>) -> Self {
        Self(Arc::new(Inner {
            checks,
            stopping: AtomicBool::new(false),
            last: tokio::sync::Mutex::default(),
        }))
    }

    /// From now on answers 503, so that load balancers send customers elsewhere.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
    }

    async fn report(&self) -> ReadinessReport {
        if self.0.stopping.load(Ordering::Acquire) {
            return ReadinessReport { status: ReadinessStatus::Stopping, checks: Vec::new() };
        }
        let mut last = self.0.last.lock().await;
        let checks = match &*last {
            Some((at, checks)) if at.elapsed() < SHOWN_AGAIN => checks.clone(),
            _ => {
                let checks = join_all(self.0.checks.iter().map(|(name, check)| run(name, check))).await;
                *last = Some((Instant::now(), checks.clone()));
                checks
            }
        };
        let ready = checks.iter().all(|check| check.ok);
        let status = if ready { ReadinessStatus::Ready } else { ReadinessStatus::NotReady };
        ReadinessReport { status, checks }
    }
}

async fn run(name: &'static str, check: &Check) -> CheckResult {
    let failure = match tokio::time::timeout(CHECK_DEADLINE, check()).await {
        Ok(Ok(())) => return CheckResult { name, ok: true },
        Ok(Err(failure)) => failure,
        Err(_) => format!("no answer within {} s", CHECK_DEADLINE.as_secs()),
    };
    // What exactly failed is for the log, not for whoever asks.
    warn!(check = name, error = failure, "Not ready: {name}: {failure}");
    CheckResult { name, ok: false }
}

/// This process answers.
#[utoipa::path(tag = "operating", responses((status = 200, description = "Alive", body = String, content_type = "text/plain")))]
#[get("/livez")]
pub(super) async fn livez() -> &'static str {
    "ok"
}

/// This process answers; the same as `/livez`.
#[utoipa::path(tag = "operating", responses((status = 200, description = "Alive", body = String, content_type = "text/plain")))]
#[get("/healthz")]
pub(super) async fn healthz() -> &'static str {
    "ok"
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadyzQuery {
    /// Given (with or without a value), the answer lists every check.
    verbose: Option<String>,
}

/// This server wants customers.
#[utoipa::path(tag = "operating", responses(
    (status = 200, description = "Ready", body = ReadinessReport),
    (status = 503, description = "Not ready, or stopping", body = ReadinessReport),
))]
#[get("/readyz")]
pub(super) async fn readyz(readiness: web::Data<Readiness>, query: Query<ReadyzQuery>) -> HttpResponse {
    let mut report = readiness.report().await;
    if query.0.verbose.is_none() {
        report.checks.clear();
    }
    let mut answer = match report.status {
        ReadinessStatus::Ready => HttpResponse::Ok(),
        ReadinessStatus::NotReady | ReadinessStatus::Stopping => HttpResponse::ServiceUnavailable(),
    };
    answer.insert_header((CACHE_CONTROL, "no-store")).json(report)
}

/// Metrics in the text format of Prometheus.
#[utoipa::path(tag = "operating", responses((status = 200, description = "Metrics", body = String, content_type = "text/plain")))]
#[get("/metrics")]
pub(super) async fn metrics(metrics: web::Data<PrometheusHandle>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(metrics.render())
}
