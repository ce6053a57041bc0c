//! The settings, typed and checked before anything starts.
//!
//! Layers, later wins: `default.toml` (embedded; it explains every key), the file of `--config`, the environment, flags.
//! Whatever is wrong is named with its key and the place it was written, because "invalid type" helps nobody at night.

mod format;
mod layers;
mod payment;
#[cfg(test)]
mod tests;
mod url;
mod wechat;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

pub use self::format::listening_address;
use self::format::{
    address, days, in_millis, list, masked, millis, millis_list, networks, seconds, secret_list, texts,
};
pub use self::layers::{ConfigError, DEFAULTS, Loaded, Sources};
pub use self::payment::{AlipaySettings, PaymentConfig, PlatformKey, SandboxSettings, WechatSettings};
use self::url::{optional_url, secret_url};
pub use self::wechat::{MiniProgramConfig, Template};
use crate::db::{DatabaseSettings, InvalidDatabaseUrl};
use crate::identity::{SecretTooShort, SigningKeys, SigningSecret};
use crate::jobs::Schedule;
use crate::messaging::parking::Retries;
use crate::money::{Currency, MOST_MINOR};
use crate::ports::clock::{SharedClock, SystemClock};
use crate::ports::event_bus::rabbitmq::RabbitMq;
use crate::ports::wire;
use crate::stock::engine::MAX_BATCH;

/// The longest times that make sense: for what somebody waits for, for an event that comes again (RabbitMQ counts its
/// milliseconds in 32 bits), and for everything else.
const HOUR: Duration = Duration::from_hours(1);
const MONTH: Duration = Duration::from_hours(30 * 24);
pub(crate) const YEAR: Duration = Duration::from_hours(365 * 24);

/// As many threads as the HTTP server takes.
const MOST_WORKERS: usize = 512;

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub bus: BusConfig,
    pub bus_file: Option<PathBuf>,
    pub shared_state: Backend,
    #[serde(deserialize_with = "list", serialize_with = "texts")]
    pub roles: Vec<ServerRole>,
    pub http: HttpConfig,
    pub database: DatabaseConfig,
    pub auth: AuthConfig,
    pub rate_limit: RateLimitConfig,
    pub stock: StockConfig,
    pub messaging: MessagingConfig,
    pub jobs: JobsConfig,
    pub shop: ShopConfig,
    pub order: OrderConfig,
    pub payment: PaymentConfig,
    pub wechat: MiniProgramConfig,
    pub log: LogConfig,
    pub telemetry: TelemetryConfig,
}

/// What stands behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", rename_all = "snake_case")]
pub enum Backend {
    /// Within this process.
    Embedded,
}

/// How events travel.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub enum BusConfig {
    /// Within the servers that share the database.
    Embedded,
    /// Over RabbitMQ, at this URL.
    RabbitMq(SecretString),
}

impl BusConfig {
    /// Whether events stay within the servers.
    pub fn is_embedded(&self) -> bool {
        matches!(self, Self::Embedded)
    }
}

/// A part of the server that can run by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRole {
    /// Answers requests. Health and metrics are answered by every server.
    Http,
    /// Publishes events.
    Relay,
    /// Applies events.
    Consumer,
    /// Runs jobs.
    Jobs,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MessagingConfig {
    #[serde(rename = "relay_every_ms", with = "millis")]
    pub relay_every: Duration,
    #[serde(rename = "retry_delays_ms", deserialize_with = "millis_list", serialize_with = "in_millis")]
    pub retry_delays: Vec<Duration>,
    #[serde(rename = "sweep_every_ms", with = "millis")]
    pub sweep_every: Duration,
    #[serde(rename = "keep_days", with = "days")]
    pub keep: TimeDelta,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    pub workers: usize,
    #[serde(deserialize_with = "list")]
    pub cors_origins: Vec<String>,
    #[serde(deserialize_with = "networks", serialize_with = "texts")]
    pub trusted_proxies: Vec<IpNet>,
    #[serde(rename = "body_timeout_ms", with = "millis")]
    pub body_timeout: Duration,
    #[serde(rename = "drain_delay_s", with = "seconds")]
    pub drain_delay: Duration,
    #[serde(rename = "shutdown_timeout_s", with = "seconds")]
    pub shutdown_timeout: Duration,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    #[serde(serialize_with = "secret_url")]
    pub url: SecretString,
    pub url_file: Option<PathBuf>,
    pub connections: u32,
    #[serde(rename = "deadline_ms", with = "millis")]
    pub deadline: Duration,
    #[serde(rename = "statement_timeout_ms", with = "millis")]
    pub statement_timeout: Duration,
    #[serde(rename = "lock_timeout_ms", with = "millis")]
    pub lock_timeout: Duration,
    pub migrate_on_start: bool,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// What was asked for; [`Config::dev_login`] decides.
    pub dev_login: Option<bool>,
    #[serde(serialize_with = "masked")]
    pub secret: Option<SecretString>,
    pub secret_file: Option<PathBuf>,
    #[serde(deserialize_with = "secret_list", serialize_with = "masked")]
    pub previous_secrets: Vec<SecretString>,
    pub previous_secrets_file: Option<PathBuf>,
    #[serde(rename = "token_ttl_s", with = "seconds")]
    pub token_ttl: Duration,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    pub per_user_per_s: u32,
    pub sessions_per_address_per_s: u32,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StockConfig {
    pub max_batch: usize,
    pub max_waiting_per_activity: usize,
    pub max_waiting: usize,
    #[serde(rename = "max_wait_ms", with = "millis")]
    pub max_wait: Duration,
    #[serde(rename = "passivate_after_s", with = "seconds")]
    pub passivate_after: Duration,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JobsConfig {
    pub schedules: JobSchedules,
    #[serde(rename = "keep_runs_days", with = "days")]
    pub keep_runs: TimeDelta,
}

/// When each job runs, by its name.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JobSchedules {
    pub activity_states: Schedule,
    pub coupon_expiry: Schedule,
    pub dead_letter_replay: Schedule,
    pub log_trimming: Schedule,
    pub order_deadlines: Schedule,
    pub outbox_sweep: Schedule,
    pub overdue_payments: Schedule,
    pub payment_queries: Schedule,
    pub reconciliation: Schedule,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ShopConfig {
    pub currency: Currency,
    pub shipping: ShippingConfig,
    pub points_per_major: i64,
}

/// What it costs to send an order.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ShippingConfig {
    pub fee_minor: i64,
    pub free_from_minor: i64,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OrderConfig {
    #[serde(rename = "payment_timeout_s", with = "seconds")]
    pub payment_timeout: Duration,
    #[serde(rename = "draft_timeout_s", with = "seconds")]
    pub draft_timeout: Duration,
    pub refund_approval: bool,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    #[serde(serialize_with = "optional_url")]
    pub otlp_endpoint: Option<String>,
    pub service_name: String,
}

impl Config {
    /// How to open the database.
    pub fn database_settings(&self) -> Result<DatabaseSettings, InvalidDatabaseUrl> {
        let mut settings = DatabaseSettings::new(&self.database.url)?;
        settings.connections = self.database.connections;
        settings.deadline = self.database.deadline;
        settings.statement_timeout = self.database.statement_timeout;
        settings.lock_timeout = self.database.lock_timeout;
        Ok(settings)
    }

    /// Where the keys that sign access tokens come from.
    pub fn signing_keys(&self) -> Result<SigningKeys, SecretTooShort> {
        let Some(secret) = self.auth.secret.clone() else { return Ok(SigningKeys::InDatabase) };
        let previous = self.auth.previous_secrets.iter().cloned().map(SigningSecret::new);
        Ok(SigningKeys::Configured {
            secret: SigningSecret::new(secret)?,
            previous: previous.collect::<Result<_, _>>()?,
        })
    }

    /// When failed events are tried again.
    pub fn retries(&self) -> Retries {
        let MessagingConfig { retry_delays, sweep_every, .. } = &self.messaging;
        Retries {
            delays: retry_delays.as_slice().into(),
            sweep_every: *sweep_every,
            // A try reads, asks another system up to twice, and writes; a deadline ends each.
            claim: self.database.deadline * 3 + wire::TIMEOUT * 2,
            patience: Duration::from_secs(600),
        }
    }

    /// Whether this server has `role`.
    pub fn has_role(&self, role: ServerRole) -> bool {
        self.roles.contains(&role)
    }

    /// Whether one process and one file are the whole installation.
    pub fn is_embedded(&self) -> bool {
        self.database.url.expose_secret().starts_with("sqlite:")
    }

    /// Whether anyone may sign in under any name.
    pub fn dev_login(&self) -> bool {
        self.auth.dev_login.unwrap_or_else(|| self.is_embedded() && self.is_private())
    }

    /// Whether only this machine can reach the server; a loopback address behind a proxy is the whole world's.
    fn is_private(&self) -> bool {
        self.http.address.ip().is_loopback() && self.http.trusted_proxies.is_empty()
    }

    /// The first setting that cannot be used: its key and what is wrong.
    fn problem(&self) -> Option<(&'static str, String)> {
        let Self { http, database, auth, messaging, stock, shop, log, telemetry, .. } = self;
        let url = self.database_settings().err();
        let unfit = |secret: &SecretString| SigningSecret::new(secret.clone()).err();
        let orphans = auth.secret.is_none() && !auth.previous_secrets.is_empty();
        let level = log.level.parse::<tracing_subscriber::EnvFilter>().err();
        let at_least_one = |n: usize| (n == 0).then(|| "must be at least 1".to_owned());
        let amount =
            |minor: i64| (!(0..=MOST_MINOR).contains(&minor)).then(|| format!("must be 0 to {MOST_MINOR}"));
        let checks = [
            ("database.url", url.map(|error| error.to_string())),
            ("database.connections", at_least_one(database.connections as usize)),
            (
                "database.lock_timeout_ms",
                (database.lock_timeout >= database.statement_timeout)
                    .then(|| "must be less than database.statement_timeout_ms".to_owned()),
            ),
            (
                "database.statement_timeout_ms",
                (database.statement_timeout >= database.deadline)
                    .then(|| "must be less than database.deadline_ms".to_owned()),
            ),
            (
                "http.workers",
                (http.workers > MOST_WORKERS).then(|| format!("must be at most {MOST_WORKERS}")),
            ),
            ("http.cors_origins", http.cors_origins.iter().find_map(|origin| url::not_an_origin(origin))),
            ("auth.secret", auth.secret.as_ref().and_then(unfit).map(|error| error.to_string())),
            (
                "auth.previous_secrets",
                auth.previous_secrets.iter().find_map(unfit).map(|error| error.to_string()),
            ),
            (
                "auth.previous_secrets",
                orphans.then(|| "needs auth.secret, which signs new tokens".to_owned()),
            ),
            ("roles", at_least_one(self.roles.len())),
            ("bus", self.bus.problem()),
            ("messaging.retry_delays_ms", at_least_one(messaging.retry_delays.len())),
            (
                "messaging.keep_days",
                (messaging.keep < TimeDelta::days(1)).then(|| {
                    "must be at least 1: what was applied is known by its log when it comes again".to_owned()
                }),
            ),
            ("stock.max_batch", at_least_one(stock.max_batch)),
            (
                "stock.max_batch",
                (stock.max_batch > MAX_BATCH).then(|| format!("must be at most {MAX_BATCH}")),
            ),
            ("stock.max_waiting_per_activity", at_least_one(stock.max_waiting_per_activity)),
            ("stock.max_waiting", at_least_one(stock.max_waiting)),
            ("shop.shipping.fee_minor", amount(shop.shipping.fee_minor)),
            ("shop.shipping.free_from_minor", amount(shop.shipping.free_from_minor)),
            (
                "shop.points_per_major",
                (!(0..=1000).contains(&shop.points_per_major)).then(|| "must be 0 to 1000".to_owned()),
            ),
            ("log.level", level.map(|error| error.to_string())),
            ("telemetry.otlp_endpoint", telemetry.otlp_endpoint.as_deref().and_then(url::not_a_collector)),
        ];
        let found = checks.into_iter().find_map(|(key, problem)| Some((key, problem?)));
        found.or_else(|| self.unfit_time()).or_else(|| {
            let clock: SharedClock = Arc::new(SystemClock);
            let invalid = self.gateways(&clock).err().or_else(|| self.notifier().err());
            invalid.map(|invalid| (invalid.key, invalid.problem))
        })
    }

    /// The first time that is none, or longer than makes sense.
    fn unfit_time(&self) -> Option<(&'static str, String)> {
        let Self { http, database, auth, messaging, stock, order, .. } = self;
        let may_be_none = [
            ("http.drain_delay_s", http.drain_delay, HOUR),
            ("http.shutdown_timeout_s", http.shutdown_timeout, HOUR),
        ];
        let delays = messaging.retry_delays.iter().map(|delay| ("messaging.retry_delays_ms", *delay, MONTH));
        let times = [
            ("http.body_timeout_ms", http.body_timeout, HOUR),
            ("database.deadline_ms", database.deadline, HOUR),
            ("database.statement_timeout_ms", database.statement_timeout, HOUR),
            ("database.lock_timeout_ms", database.lock_timeout, HOUR),
            ("auth.token_ttl_s", auth.token_ttl, YEAR),
            ("stock.max_wait_ms", stock.max_wait, HOUR),
            ("stock.passivate_after_s", stock.passivate_after, YEAR),
            ("messaging.relay_every_ms", messaging.relay_every, HOUR),
            ("messaging.sweep_every_ms", messaging.sweep_every, HOUR),
            ("order.payment_timeout_s", order.payment_timeout, YEAR),
            ("order.draft_timeout_s", order.draft_timeout, YEAR),
        ];
        let none = |(key, time, _): (_, Duration, _)| {
            time.is_zero().then(|| (key, "must be more than 0".to_owned()))
        };
        let too_long = |(key, time, longest): (&'static str, Duration, Duration)| {
            let most = if key.ends_with("_ms") { longest.as_millis() } else { longest.as_secs().into() };
            (time > longest).then(|| (key, format!("must be at most {most}")))
        };
        let none = times.into_iter().chain(delays.clone()).find_map(none);
        none.or_else(|| times.into_iter().chain(delays).chain(may_be_none).find_map(too_long))
    }
}

impl TryFrom<String> for Backend {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "embedded" => Ok(Self::Embedded),
            _ => Err("this version only has \"embedded\"".to_owned()),
        }
    }
}

impl TryFrom<String> for BusConfig {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once("://") {
            None if text == "embedded" => Ok(Self::Embedded),
            Some(("amqp" | "amqps", _)) => Ok(Self::RabbitMq(text.into())),
            _ => Err("is neither \"embedded\" nor the URL of a RabbitMQ, as in \"amqp://name:password@host:5672/%2f\"".to_owned()),
        }
    }
}

impl Serialize for BusConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Embedded => serializer.serialize_str("embedded"),
            Self::RabbitMq(url) => secret_url(url, serializer),
        }
    }
}

impl BusConfig {
    fn problem(&self) -> Option<String> {
        match self {
            Self::Embedded => None,
            Self::RabbitMq(url) => RabbitMq::new(url, &[], &[]).err(),
        }
    }
}

impl std::str::FromStr for ServerRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "http" => Ok(Self::Http),
            "relay" => Ok(Self::Relay),
            "consumer" => Ok(Self::Consumer),
            "jobs" => Ok(Self::Jobs),
            _ => Err("the roles are http, relay, consumer, jobs".to_owned()),
        }
    }
}

impl fmt::Display for ServerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Relay => "relay",
            Self::Consumer => "consumer",
            Self::Jobs => "jobs",
        })
    }
}

impl TryFrom<String> for LogFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is neither \"auto\", \"text\" nor \"json\"")),
        }
    }
}
