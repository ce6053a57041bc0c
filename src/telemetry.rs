//! What the server says about itself: log lines, metrics, and traces if somebody collects them.
//!
//! Logs and traces belong to the process and are set up once, by `main`; metrics are shared by every server in the
//! process, so that tests can run several.

use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Unit, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use thiserror::Error;
use tokio::runtime::{Handle, Runtime};
use tracing::warn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{LogConfig, LogFormat, TelemetryConfig};
use crate::ports::clock::Clock;

/// Upper bounds of what is measured in seconds: from a memory access to a stalled database.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The histograms that count what a batch holds.
const BATCHES: [&str; 2] = ["tombola_goods_batch_orders", "tombola_stock_batch_takes"];

/// Upper bounds of what they count.
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// How often measurements are sorted into their buckets.
const METRICS_UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Logging or tracing cannot be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    #[error("log.level: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("no thread for exporting traces: {0}")]
    Runtime(#[from] std::io::Error),
    #[error("logging is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The process's logs and traces.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<Traces>,
}

/// Traces are exported on a runtime of their own, so that they can still leave when everything else has stopped.
#[derive(Debug)]
struct Traces {
    provider: SdkTracerProvider,
    _runtime: Runtime,
}

impl Telemetry {
    /// Sends logs to standard error and, if there is an endpoint, traces to it.
    pub fn install(log: &LogConfig, config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let json = match log.format {
            LogFormat::Auto => !std::io::stderr().is_terminal(),
            LogFormat::Text => false,
            LogFormat::Json => true,
        };
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = if json {
            lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        } else {
            lines.compact().with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed()
        };
        let traces = match &config.otlp_endpoint {
            Some(endpoint) => Some(Traces::export_to(endpoint, &config.service_name)?),
            None => None,
        };
        let spans = traces.as_ref().map(|Traces { provider, .. }| {
            opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
            tracing_opentelemetry::layer().with_tracer(provider.tracer("tombola"))
        });
        tracing_subscriber::registry()
            .with(log.level.parse::<EnvFilter>()?)
            .with(lines)
            .with(spans)
            .try_init()?;
        Ok(Self { traces })
    }

    /// Sends the traces that are still here. Blocks.
    pub fn flush(self) {
        let Some(traces) = self.traces else { return };
        if let Err(error) = traces.provider.shutdown_with_timeout(Duration::from_secs(5)) {
            warn!(%error, "Some traces were not delivered");
        }
    }
}

impl Traces {
    fn export_to(endpoint: &str, service_name: &str) -> Result<Self, TelemetryError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()?;
        let exporter = OnRuntime { exporter: Arc::new(exporter), runtime: runtime.handle().clone() };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name(service_name.to_owned()).build())
            .build();
        Ok(Self { provider, _runtime: runtime })
    }
}

/// Exports on a tokio runtime: the SDK's own thread has none, and the HTTP client needs one.
#[derive(Debug)]
struct OnRuntime {
    exporter: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
}

impl SpanExporter for OnRuntime {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = self.exporter.clone();
        let exported = self.runtime.spawn(async move { exporter.export(batch).await }).await;
        exported.unwrap_or_else(|gone| Err(OTelSdkError::InternalFailure(gone.to_string())))
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

/// The numbers of every server in this process. Starts counting when it is first asked.
pub fn metrics(clock: &dyn Clock) -> PrometheusHandle {
    static SHARED: OnceLock<PrometheusHandle> = OnceLock::new();
    SHARED.get_or_init(|| start_counting(clock)).clone()
}

fn start_counting(clock: &dyn Clock) -> PrometheusHandle {
    let bounded = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .and_then(|builder| {
            BATCHES.iter().try_fold(builder, |builder, &batches| {
                builder.set_buckets_for_metric(Matcher::Full(batches.to_owned()), BATCH_SIZES)
            })
        });
    // Only an empty list of bounds is refused.
    let recorder = bounded.unwrap_or_default().build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        warn!("Another metrics recorder is installed: /metrics stays empty");
    }
    describe_gauge!("tombola_build_info", "The running version; always 1.");
    gauge!("tombola_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    describe_gauge!("process_start_time_seconds", Unit::Seconds, "When the process started, in Unix time.");
    gauge!("process_start_time_seconds").set(clock.now().timestamp() as f64);
    describe_gauge!("process_resident_memory_bytes", Unit::Bytes, "Memory in use.");
    handle
}

/// Keeps the numbers fit to be read, until dropped: recent measurements would pile up between two readers.
pub async fn keep_up(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP_EVERY);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
        if let Some(bytes) = resident_bytes() {
            gauge!("process_resident_memory_bytes").set(bytes as f64);
        }
    }
}

/// What Linux says; elsewhere the number is missing.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kilobytes.trim().parse::<u64>().ok()? * 1024)
}
