//! What the server says about itself: log lines, metrics, and traces if somebody collects them.
//!
//! Logs and traces belong to the process and are set up once, by `main`; metrics are shared by every server in the
//! process, so that tests can run several.

use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
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

use self::Kind::{Counter, Gauge, Histogram};
use crate::config::{LogConfig, LogFormat, TelemetryConfig};
use crate::ports::clock::Clock;

/// Upper bounds of what is measured in seconds: from a memory access to a stalled database.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The histograms that count what a batch holds.
const BATCHES: [&str; 2] = ["tombola_goods_batch_orders", "tombola_stock_batch_takes"];

/// Upper bounds of what they count.
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// What is measured, and how `/metrics` explains it; the unit ends the name.
const FAMILIES: &[(Kind, &str, &str)] = &[
    (Gauge, "tombola_build_info", "The running version; always 1."),
    (Gauge, "process_start_time_seconds", "When the process started, in Unix time."),
    (Gauge, "process_resident_memory_bytes", "Memory in use."),
    (Histogram, "http_server_request_duration_seconds", "From a request's head to its answer."),
    (Counter, "tombola_takes_total", "Takes that were asked for, by what became of them."),
    (Histogram, "tombola_stock_batch_takes", "Takes written in one transaction."),
    (Counter, "tombola_stock_blocks_claimed_total", "Blocks of tokens this server leased."),
    (Counter, "tombola_stock_stale_batches_total", "Batches decided again: block or activity changed."),
    (Counter, "tombola_stock_collisions_total", "Batches decided again: a unique key refused them."),
    (Counter, "tombola_stock_ambiguous_commits_total", "Batches of takes whose outcome was looked up."),
    (Histogram, "tombola_goods_batch_orders", "Orders whose goods were reserved in one transaction."),
    (Counter, "tombola_goods_ambiguous_commits_total", "Batches of goods whose outcome was looked up."),
    (Counter, "tombola_payment_contradictions_total", "Payments of which a gateway said what cannot be."),
    (Gauge, "tombola_differences", "What did not agree when it was last compared."),
    (Counter, "tombola_differences_applied_total", "Differences that were settled as proposed."),
    (Counter, "tombola_events_published_total", "Events the bus has stored."),
    (Gauge, "tombola_outbox_unsent_rows", "Rows of the outbox that are not published yet."),
    (Gauge, "tombola_outbox_oldest_unsent_age_seconds", "Age of the oldest row not published yet."),
    (Gauge, "tombola_embedded_queue_rows", "Rows of the queues in the database, not consumed yet."),
    (Gauge, "tombola_embedded_queue_oldest_age_seconds", "Age of the oldest row not consumed yet."),
    (Counter, "tombola_events_applied_total", "Events that consumer groups applied."),
    (Counter, "tombola_events_ignored_total", "Events that came again, or too late."),
    (Counter, "tombola_event_failures_total", "Tries of an event that failed."),
    (Histogram, "tombola_event_delay_seconds", "From the oldest event of a batch to its being applied."),
    (Gauge, "tombola_parked_events", "Failed events that wait to be tried again."),
    (Gauge, "tombola_parked_events_overdue_seconds", "How long the next of them is overdue."),
    (Counter, "tombola_dead_letters_total", "Events that were given up."),
    (Gauge, "tombola_dead_letters_waiting", "Dead letters that wait for somebody."),
    (Counter, "tombola_job_runs_total", "Runs of jobs that ended, by outcome."),
    (Histogram, "tombola_job_duration_seconds", "How long runs of jobs took."),
    (Gauge, "tombola_job_last_success_timestamp_seconds", "When a job last succeeded, in Unix time."),
    (Counter, "tombola_actor_deaths_total", "Actors that panicked and were replaced."),
    (Counter, "tombola_task_deaths_total", "Long tasks that panicked and were started again."),
    (Counter, "tombola_database_pools_replaced_total", "Times that connections were replaced."),
    (Gauge, "tombola_wall_clock_ahead_seconds", "How far this clock is ahead of the database's."),
];

/// How a number moves.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

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
    describe();
    gauge!("tombola_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("process_start_time_seconds").set(clock.now().timestamp() as f64);
    handle
}

fn describe() {
    for &(kind, name, text) in FAMILIES {
        let unit = match name {
            _ if name.ends_with("_seconds") => Unit::Seconds,
            _ if name.ends_with("_bytes") => Unit::Bytes,
            _ => Unit::Count,
        };
        match kind {
            Counter => describe_counter!(name, unit, text),
            Gauge => describe_gauge!(name, unit, text),
            Histogram => describe_histogram!(name, unit, text),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_family_is_explained() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            for &(kind, name, ..) in FAMILIES {
                match kind {
                    Counter => metrics::counter!(name).increment(1),
                    Gauge => gauge!(name).set(1.0),
                    Histogram => metrics::histogram!(name).record(1.0),
                }
            }
        });
        let shown = recorder.handle().render();
        for (_, name, text) in FAMILIES {
            assert!(shown.contains(&format!("# HELP {name} {text}\n")), "{name}\n{shown}");
        }
    }

    /// What the sources count is in the table, and nothing else.
    #[test]
    fn every_family_that_is_counted_has_an_explanation() {
        // Counted in this file, which also has the table.
        let mut counted: BTreeSet<String> =
            ["tombola_build_info", "process_start_time_seconds", "process_resident_memory_bytes"]
                .map(str::to_owned)
                .into();
        let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("telemetry.rs") {
                    let text = std::fs::read_to_string(path).unwrap();
                    let names = text.split('"').filter(|name| {
                        (name.starts_with("tombola_") || name.starts_with("http_server_"))
                            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
                    });
                    counted.extend(names.map(str::to_owned));
                }
            }
        }
        let explained: BTreeSet<String> = FAMILIES.iter().map(|(_, name, ..)| (*name).to_owned()).collect();
        assert_eq!(counted, explained);
    }
}
