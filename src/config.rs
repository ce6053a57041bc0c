//! The settings, typed and checked before anything starts.
//!
//! Layers, later wins: `default.toml` (embedded; it explains every key), the file of `--config`, the environment, flags.
//! Whatever is wrong is named with its key and the place it was written, because "invalid type" helps nobody at night.

mod payment;
mod url;
mod wechat;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use config::{Map, Source, Value, ValueKind};
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

pub use self::payment::{AlipaySettings, PaymentConfig, PlatformKey, SandboxSettings, WechatSettings};
use self::url::{optional_url, plain_url, secret_url};
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

/// The embedded defaults, which explain every key.
pub const DEFAULTS: &str = include_str!("default.toml");

/// The longest times that make sense: for what somebody waits for, for an event that comes again (RabbitMQ counts its
/// milliseconds in 32 bits), and for everything else.
const HOUR: Duration = Duration::from_hours(1);
const MONTH: Duration = Duration::from_hours(30 * 24);
pub(crate) const YEAR: Duration = Duration::from_hours(365 * 24);

/// As many threads as the HTTP server takes.
const MOST_WORKERS: usize = 512;

/// What our variables begin with.
const PREFIX: &str = "TOMBOLA__";

/// Variables other software defines, and the key each one sets.
const FOREIGN_VARIABLES: &[(&str, &str)] = &[
    ("RUST_LOG", "log.level"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp_endpoint"),
    ("OTEL_SERVICE_NAME", "telemetry.service_name"),
];

/// Keys that may be read from the file named by the same key with `_file` behind it.
const SECRETS: &[&str] = &[
    "bus",
    "database.url",
    "auth.secret",
    "auth.previous_secrets",
    "payment.sandbox.secret",
    "payment.wechat.private_key",
    "payment.wechat.api_v3_key",
    "payment.alipay.private_key",
    "payment.alipay.public_key",
    "wechat.app_secret",
];

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

/// A setting that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("{} is not valid TOML: {problem} (line {line}, column {column})", file.display())]
    Syntax { file: PathBuf, problem: String, line: usize, column: usize },
    #[error("there is no setting `{key}` ({origin}); {known}")]
    Unknown { key: String, origin: String, known: String },
    #[error("`{key}` ({origin}): {problem}")]
    Invalid { key: String, origin: String, problem: String },
}

/// Where settings come from, besides the embedded defaults.
#[derive(Debug, Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    /// The environment's variables, ours and others'.
    pub environment: Vec<(String, String)>,
    /// Key, the flag that set it, its value.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

/// The settings, and where each of them was written.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    origins: BTreeMap<String, String>,
}

impl Config {
    /// The embedded defaults alone.
    pub fn defaults() -> Result<Self, ConfigError> {
        Ok(Loaded::from_layers(vec![Layer::defaults()?])?.config)
    }

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

impl Sources {
    /// The process's own environment and nothing else.
    pub fn from_environment() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        Self { environment: std::env::vars_os().filter_map(text).collect(), ..Self::default() }
    }

    /// Reads, layers and checks everything.
    pub fn load(self) -> Result<Loaded, ConfigError> {
        let mut layers = vec![Layer::defaults()?];
        if let Some(file) = &self.file {
            layers.push(Layer::file(file)?);
        }
        layers.push(Layer::foreign_variables(&self.environment));
        layers.push(Layer::variables(&self.environment));
        layers.push(Layer::flags(self.flags));
        Loaded::from_layers(layers)
    }
}

impl Loaded {
    fn from_layers(mut layers: Vec<Layer>) -> Result<Self, ConfigError> {
        if layers.len() > 1 {
            let known = known_keys()?;
            for (key, value) in layers.iter().flat_map(|layer| &layer.0) {
                check_known(&known, key, value)?;
            }
            layers.push(Layer::secret_files(&layers)?);
        }
        let origins = layers
            .iter()
            .flat_map(|layer| &layer.0)
            .map(|(key, value)| (key.clone(), value.origin().unwrap_or_default().to_owned()))
            .collect();
        let mut builder = config::Config::builder();
        for layer in layers {
            builder = builder.add_source(layer);
        }
        let result = builder.build().and_then(config::Config::try_deserialize);
        let config: Config = result.map_err(|error| located(error, &origins))?;
        if let Some((key, problem)) = config.problem() {
            return Err(invalid(key, &origins, problem));
        }
        Ok(Self { config, origins })
    }

    /// Every setting on a line of its own, as TOML, with the place it was written; secrets are masked.
    pub fn show(&self) -> Result<String, ConfigError> {
        let settings = flat(&self.config)?.into_iter().map(|(key, value)| match value {
            serde_json::Value::Null => format!("# {key} is not set\n"),
            value => format!("{key} = {value} # {}\n", self.origin(&key)),
        });
        Ok(settings.collect())
    }

    /// Says what is wrong with the setting `key` that its text alone does not tell.
    pub fn refuse(&self, key: &str, problem: String) -> ConfigError {
        invalid(key, &self.origins, problem)
    }

    fn origin(&self, key: &str) -> &str {
        self.origins.get(key).map_or("not set", String::as_str)
    }
}

/// The settings of one place, by dotted key; each value knows where it was written.
#[derive(Debug, Clone, Default)]
struct Layer(BTreeMap<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone().into_iter().collect())
    }
}

impl Layer {
    fn defaults() -> Result<Self, ConfigError> {
        Self::toml(Path::new("default.toml"), DEFAULTS, |_| "default".to_owned())
    }

    fn file(file: &Path) -> Result<Self, ConfigError> {
        let text = read(file)?;
        Self::toml(file, &text, |line| format!("{} line {line}", file.display()))
    }

    fn toml(file: &Path, text: &str, origin: impl Fn(usize) -> String) -> Result<Self, ConfigError> {
        let parsed = DeTable::parse(text).map_err(|error| syntax(file, text, &error))?;
        let origin = |at: usize| origin(text[..at].lines().count().max(1));
        let mut layer = Self::default();
        layer.add_table("", parsed.get_ref(), &origin);
        Ok(layer)
    }

    fn add_table(&mut self, prefix: &str, table: &DeTable<'_>, origin: &impl Fn(usize) -> String) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(table) => self.add_table(&format!("{key}."), table, origin),
                value => {
                    self.0.insert(key, Value::new(Some(&origin(name.span().end)), kind(value)));
                }
            }
        }
    }

    fn variables(environment: &[(String, String)]) -> Self {
        let ours = environment.iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(PREFIX)?.to_lowercase().replace("__", ".");
            Some((key, variable(name, value)))
        });
        Self(ours.collect())
    }

    fn foreign_variables(environment: &[(String, String)]) -> Self {
        let known = environment.iter().filter_map(|(name, value)| {
            let (_, key) = FOREIGN_VARIABLES.iter().find(|(foreign, _)| foreign == name)?;
            Some(((*key).to_owned(), variable(name, value)))
        });
        Self(known.filter(|(_, value)| value.kind != ValueKind::String(String::new())).collect())
    }

    fn flags(flags: Vec<(&'static str, &'static str, String)>) -> Self {
        let flags = flags.into_iter();
        Self(
            flags
                .map(|(key, flag, value)| (key.to_owned(), Value::new(Some(&flag.to_owned()), value)))
                .collect(),
        )
    }

    /// What the files named by `…_file` keys hold. A secret set in both ways is refused: which one is meant?
    fn secret_files(layers: &[Self]) -> Result<Self, ConfigError> {
        let last = |key: &str| layers.iter().skip(1).rev().find_map(|layer| layer.0.get(key));
        let mut secrets = Self::default();
        for key in SECRETS {
            let Some(file) = last(&format!("{key}_file")) else { continue };
            let origin = file.origin().unwrap_or_default();
            if let Some(other) = last(key) {
                let problem = format!("{key}_file is set as well ({origin}); set only one of the two");
                let origin = other.origin().unwrap_or_default().to_owned();
                return Err(ConfigError::Invalid { key: (*key).to_owned(), origin, problem });
            }
            let path = PathBuf::from(file.to_string());
            let secret = std::fs::read_to_string(&path).map_err(|error| ConfigError::Invalid {
                key: format!("{key}_file"),
                origin: origin.to_owned(),
                problem: format!("cannot read {}: {error}", path.display()),
            })?;
            let secret = secret.trim().to_owned();
            let origin = format!("{}, named by {origin}", path.display());
            secrets.0.insert((*key).to_owned(), Value::new(Some(&origin), secret));
        }
        Ok(secrets)
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })
}

/// The place and what is wrong there; never the line itself, which may hold a secret.
fn syntax(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    ConfigError::Syntax { file: file.to_owned(), problem: error.message().replace('\n', ", "), line, column }
}

fn variable(name: &str, value: &str) -> Value {
    Value::new(Some(&format!("environment variable {name}")), value)
}

fn kind(value: &DeValue<'_>) -> ValueKind {
    match value {
        DeValue::String(text) => ValueKind::String(text.to_string()),
        DeValue::Boolean(value) => ValueKind::Boolean(*value),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => ValueKind::I64(number),
            Err(_) => ValueKind::String(number.to_string()),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => ValueKind::Float(number),
            Err(_) => ValueKind::String(number.to_string()),
        },
        DeValue::Datetime(time) => ValueKind::String(time.to_string()),
        DeValue::Array(items) => {
            ValueKind::Array(items.iter().map(|item| Value::new(None, kind(item.get_ref()))).collect())
        }
        DeValue::Table(table) => ValueKind::Table(
            table
                .iter()
                .map(|(name, item)| (name.to_string(), Value::new(None, kind(item.get_ref()))))
                .collect(),
        ),
    }
}

/// Every key there is, whether or not it has a default: those of the struct itself.
fn known_keys() -> Result<BTreeSet<String>, ConfigError> {
    Ok(flat(&Config::defaults()?)?.into_keys().collect())
}

fn check_known(known: &BTreeSet<String>, key: &str, value: &Value) -> Result<(), ConfigError> {
    if known.contains(key) {
        return Ok(());
    }
    let origin = value.origin().unwrap_or_default().to_owned();
    let inner = format!("{key}.");
    if known.iter().any(|other| other.starts_with(&inner)) {
        let problem = "is a section; set the keys in it".to_owned();
        return Err(ConfigError::Invalid { key: key.to_owned(), origin, problem });
    }
    let section = key.rsplit_once('.').map_or("", |(section, _)| section);
    let siblings: Vec<&str> = known
        .iter()
        .filter_map(|other| {
            let (prefix, name) = other.rsplit_once('.').unwrap_or(("", other));
            (prefix == section).then_some(name)
        })
        .collect();
    let sections: BTreeSet<&str> = known.iter().filter_map(|other| Some(other.rsplit_once('.')?.0)).collect();
    let known = match siblings.as_slice() {
        [] => format!("the sections are {}", Vec::from_iter(sections).join(", ")),
        _ if section.is_empty() => {
            format!("outside the sections there are {}", siblings.join(", "))
        }
        _ => format!("[{section}] has {}", siblings.join(", ")),
    };
    Err(ConfigError::Unknown { key: key.to_owned(), origin, known })
}

/// The settings by dotted key; what is not set is null.
fn flat(config: &Config) -> Result<BTreeMap<String, serde_json::Value>, ConfigError> {
    fn add(prefix: &str, value: serde_json::Value, flat: &mut BTreeMap<String, serde_json::Value>) {
        match value {
            serde_json::Value::Object(members) => {
                let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}.") };
                members.into_iter().for_each(|(name, value)| add(&format!("{prefix}{name}"), value, flat));
            }
            leaf => {
                flat.insert(prefix.to_owned(), leaf);
            }
        }
    }
    let tree = serde_json::to_value(config).map_err(|error| ConfigError::Invalid {
        key: "config".to_owned(),
        origin: "all of it".to_owned(),
        problem: error.to_string(),
    })?;
    let mut settings = BTreeMap::new();
    add("", tree, &mut settings);
    Ok(settings)
}

fn invalid(key: &str, origins: &BTreeMap<String, String>, problem: String) -> ConfigError {
    let origin = origins.get(key).map_or_else(|| "not set".to_owned(), Clone::clone);
    ConfigError::Invalid { key: key.to_owned(), origin, problem }
}

/// The crate knows key and cause; where it was written we know better.
fn located(error: config::ConfigError, origins: &BTreeMap<String, String>) -> ConfigError {
    use config::ConfigError as Error;
    let (key, problem) = match error {
        Error::Type { unexpected, expected, key, .. } => (key, format!("{unexpected} is not {expected}")),
        Error::At { error, key, .. } => (key, error.to_string()),
        other => (None, other.to_string()),
    };
    let key = key.unwrap_or_default();
    // An item of a list has no place of its own.
    invalid(key.split('[').next().unwrap_or_default(), origins, problem)
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

/// A list, or its items in one string with commas between them, as an environment variable has them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list, or a string with commas between the items")]
enum List {
    Items(Vec<String>),
    Commas(String),
}

fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: fmt::Display>,
{
    let items = match List::deserialize(deserializer)? {
        List::Items(items) => items,
        List::Commas(text) => {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
        }
    };
    let parse = |item: &String| item.parse().map_err(|error| format!("{item:?}: {error}"));
    items.iter().map(parse).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

/// A list of whole numbers of milliseconds.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of whole numbers, or a string with commas between them")]
enum Numbers {
    Items(Vec<u64>),
    Commas(String),
}

fn millis_list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Duration>, D::Error> {
    let numbers = match Numbers::deserialize(deserializer)? {
        Numbers::Items(numbers) => numbers,
        Numbers::Commas(text) => {
            let parse = |item: &str| item.parse().map_err(|_| format!("{item:?} is not a whole number"));
            let numbers = text.split(',').map(str::trim).map(parse).collect::<Result<_, _>>();
            numbers.map_err(serde::de::Error::custom)?
        }
    };
    Ok(numbers.into_iter().map(Duration::from_millis).collect())
}

fn in_millis<S: serde::Serializer>(times: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(times.iter().map(Duration::as_millis))
}

fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    listening_address(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Where to listen: names are not looked up.
pub fn listening_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is no IP address with a port, as in \"127.0.0.1:8080\""))
}

/// A single address is a network of one.
fn networks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: String| {
        let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
        address.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is neither an address nor a network"))
    };
    let texts: Vec<String> = list(deserializer)?;
    texts.into_iter().map(network).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

fn texts<S: serde::Serializer>(items: &[impl fmt::Display], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(items.iter().map(ToString::to_string))
}

fn secret_list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<SecretString>, D::Error> {
    Ok(list::<D, String>(deserializer)?.into_iter().map(SecretString::from).collect())
}

fn masked<'a, S: serde::Serializer, T>(secrets: &'a T, serializer: S) -> Result<S::Ok, S::Error>
where
    &'a T: IntoIterator<Item = &'a SecretString>,
{
    match secrets.into_iter().count() {
        0 => serializer.serialize_none(),
        _ => serializer.serialize_str("***"),
    }
}

/// A duration as a whole number of milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// A duration as a whole number of seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(time.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

/// A duration as a whole number of days.
mod days {
    use chrono::TimeDelta;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &TimeDelta, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.num_days())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TimeDelta, D::Error> {
        u16::deserialize(deserializer).map(|days| TimeDelta::days(days.into()))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Sources {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Sources { environment: environment.collect(), ..Sources::default() }
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("shop.toml");
        std::fs::write(&file, text).unwrap();
        (directory, file)
    }

    /// Every key of the struct is in `default.toml`, set or as a comment, under a comment that names its variable.
    #[test]
    fn the_defaults_explain_every_key() {
        let known = known_keys().unwrap();
        let mut section = String::new();
        let mut explained = BTreeSet::new();
        for paragraph in DEFAULTS.split("\n\n").skip(1) {
            let mut comment = String::new();
            for line in paragraph.lines() {
                if let Some(name) = line.strip_prefix('[') {
                    section = format!("{}.", name.trim_end_matches(']'));
                    continue;
                }
                let key = line
                    .trim_start_matches("# ")
                    .split_once(" = ")
                    .map(|(name, _)| format!("{section}{name}"));
                match key.filter(|key| known.contains(key)) {
                    Some(key) => {
                        let variable = format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"));
                        assert!(comment.starts_with(&format!("# {variable}")), "{key}: {comment}");
                        explained.insert(key);
                    }
                    None => comment.push_str(line),
                }
            }
        }
        assert_eq!(explained, known);
    }

    #[test]
    fn later_layers_win_and_show_where_each_setting_was_written() {
        let (_directory, file) = file("[http]\nworkers = 3\n\n[stock]\nmax_batch = 64\nmax_waiting = 7\n");
        let loaded = Sources {
            file: Some(file.clone()),
            flags: vec![("http.address", "flag --address", "127.0.0.1:9".to_owned())],
            ..environment(&[
                ("TOMBOLA__STOCK__MAX_BATCH", "32"),
                ("TOMBOLA__HTTP__ADDRESS", "127.0.0.1:8"),
                ("TOMBOLA__HTTP__CORS_ORIGINS", "https://a.example, https://b.example"),
                ("TOMBOLA__HTTP__TRUSTED_PROXIES", "10.0.0.0/8,::1"),
                ("RUST_LOG", "debug"),
                ("OTEL_SERVICE_NAME", ""),
                ("PATH", "/bin"),
            ])
        };
        let loaded = loaded.load().unwrap();
        let Config { http, stock, log, telemetry, .. } = &loaded.config;
        assert_eq!((http.workers, stock.max_batch, stock.max_waiting), (3, 32, 7));
        assert_eq!(http.address.port(), 9);
        assert_eq!(http.cors_origins, ["https://a.example", "https://b.example"]);
        assert_eq!(http.trusted_proxies, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        assert_eq!((log.level.as_str(), telemetry.service_name.as_str()), ("debug", "tombola"));

        let shown = loaded.show().unwrap();
        for line in [
            format!("http.workers = 3 # {} line 2", file.display()),
            format!("stock.max_waiting = 7 # {} line 6", file.display()),
            "http.address = \"127.0.0.1:9\" # flag --address".to_owned(),
            "stock.max_batch = 32 # environment variable TOMBOLA__STOCK__MAX_BATCH".to_owned(),
            "shop.currency = \"CNY\" # default".to_owned(),
            "# auth.secret is not set".to_owned(),
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
        toml::from_str::<toml::Table>(&shown).unwrap();
    }

    #[rstest]
    #[case::unknown(
        "TOMBOLA__HTTP__ADRESS",
        "1",
        "no setting `http.adress`",
        "[http] has address, body_timeout_ms"
    )]
    #[case::unknown_section(
        "TOMBOLA__HTPP__WORKERS",
        "1",
        "no setting `htpp.workers`",
        "sections are auth, database"
    )]
    #[case::unknown_outside("TOMBOLA__BUSS", "1", "no setting `buss`", "bus, bus_file, roles, shared_state")]
    #[case::section("TOMBOLA__HTTP", "1", "`http`", "is a section")]
    #[case::number("TOMBOLA__HTTP__WORKERS", "many", "`http.workers`", "\"many\" is not an integer")]
    #[case::negative("TOMBOLA__HTTP__WORKERS", "-1", "`http.workers`", "\"-1\" is not")]
    #[case::time(
        "TOMBOLA__HTTP__BODY_TIMEOUT_MS",
        "1.5",
        "`http.body_timeout_ms`",
        "\"1.5\" is not an integer"
    )]
    #[case::boolean(
        "TOMBOLA__AUTH__DEV_LOGIN",
        "perhaps",
        "`auth.dev_login`",
        "\"perhaps\" is not a boolean"
    )]
    #[case::address("TOMBOLA__HTTP__ADDRESS", "localhost:8080", "`http.address`", "as in \"127.0.0.1:8080\"")]
    #[case::no_address("TOMBOLA__HTTP__ADDRESS", "", "`http.address`", "as in \"127.0.0.1:8080\"")]
    #[case::workers("TOMBOLA__HTTP__WORKERS", "513", "`http.workers`", "must be at most 512")]
    #[case::origin("TOMBOLA__HTTP__CORS_ORIGINS", "shop.example", "`http.cors_origins`", "is no origin")]
    #[case::origin_with_path(
        "TOMBOLA__HTTP__CORS_ORIGINS",
        "*,https://a.example/",
        "`http.cors_origins`",
        "is no origin"
    )]
    #[case::collector("TOMBOLA__TELEMETRY__OTLP_ENDPOINT", "nope", "`telemetry.otlp_endpoint`", "is no URL")]
    #[case::no_collector(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "ftp://a",
        "`telemetry.otlp_endpoint`",
        "must begin with"
    )]
    #[case::collector_login(
        "TOMBOLA__TELEMETRY__OTLP_ENDPOINT",
        "http://ann:0123456789@127.0.0.1:4318",
        "`telemetry.otlp_endpoint`",
        "must not have a user or a password"
    )]
    #[case::ttl("TOMBOLA__AUTH__TOKEN_TTL_S", "99999999999999999", "`auth.token_ttl_s`", "at most 31536000")]
    #[case::no_ttl("TOMBOLA__AUTH__TOKEN_TTL_S", "0", "`auth.token_ttl_s`", "more than 0")]
    #[case::drain("TOMBOLA__HTTP__DRAIN_DELAY_S", "3601", "`http.drain_delay_s`", "at most 3600")]
    #[case::patience(
        "TOMBOLA__HTTP__BODY_TIMEOUT_MS",
        "3600001",
        "`http.body_timeout_ms`",
        "at most 3600000"
    )]
    #[case::long_delay(
        "TOMBOLA__MESSAGING__RETRY_DELAYS_MS",
        "1,2592000001",
        "`messaging.retry_delays_ms`",
        "at most 2592000000"
    )]
    #[case::no_delay(
        "TOMBOLA__MESSAGING__RETRY_DELAYS_MS",
        "1,0",
        "`messaging.retry_delays_ms`",
        "more than 0"
    )]
    #[case::secret_file(
        "TOMBOLA__AUTH__SECRET_FILE",
        "/nowhere",
        "`auth.secret_file`",
        "cannot read /nowhere"
    )]
    #[case::proxy("TOMBOLA__HTTP__TRUSTED_PROXIES", "::1,x", "`http.trusted_proxies`", "\"x\" is neither")]
    #[case::bus("TOMBOLA__BUS", "kafka://localhost", "`bus`", "is neither \"embedded\" nor the URL")]
    #[case::role("TOMBOLA__ROLES", "http,cook", "`roles`", "the roles are http, relay")]
    #[case::delays(
        "TOMBOLA__MESSAGING__RETRY_DELAYS_MS",
        "1,x",
        "`messaging.retry_delays_ms`",
        "\"x\" is not"
    )]
    #[case::shared("TOMBOLA__SHARED_STATE", "redis://localhost", "`shared_state`", "only has \"embedded\"")]
    #[case::database("TOMBOLA__DATABASE__URL", "oracle://x", "`database.url`", "sqlite://")]
    #[case::deadline("TOMBOLA__DATABASE__DEADLINE_MS", "10", "`database.statement_timeout_ms`", "less than")]
    #[case::currency("TOMBOLA__SHOP__CURRENCY", "yuan", "`shop.currency`", "three capital letters")]
    #[case::secret("TOMBOLA__AUTH__SECRET", "short", "`auth.secret`", "at least 32 bytes")]
    #[case::orphans(
        "TOMBOLA__AUTH__PREVIOUS_SECRETS",
        "0123456789012345678901234567890123",
        "`auth.previous_secrets`",
        "needs auth.secret"
    )]
    #[case::level("TOMBOLA__LOG__LEVEL", "a=b=c", "`log.level`", "error parsing level")]
    #[case::format("TOMBOLA__LOG__FORMAT", "xml", "`log.format`", "neither")]
    #[case::schedule(
        "TOMBOLA__JOBS__SCHEDULES__LOG_TRIMMING",
        "61 * * * *",
        "`jobs.schedules.log_trimming`",
        "nor a cron schedule"
    )]
    #[case::no_job(
        "TOMBOLA__JOBS__SCHEDULES__LUNCH",
        "@daily",
        "no setting",
        "[jobs.schedules] has activity_states"
    )]
    #[case::batch("TOMBOLA__STOCK__MAX_BATCH", "0", "`stock.max_batch`", "at least 1")]
    fn what_is_wrong_is_named_with_its_place(
        #[case] variable: &str,
        #[case] value: &str,
        #[case] key: &str,
        #[case] problem: &str,
    ) {
        let error = environment(&[(variable, value)]).load().unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(problem), "{error}");
        if !error.contains("database.statement_timeout_ms") {
            assert!(error.contains(&format!("environment variable {variable}")), "{error}");
        }
        assert!(!error.contains("0123456789"), "{error}");
    }

    #[rstest]
    #[case("[http]\n\nworkers = \"x\"\n", "line 3")]
    #[case("bus = \"embedded\"\nbuss = 1\n", "line 2")]
    #[case("http = 1\n", "line 1")]
    #[case("[shop\n", "not valid TOML")]
    #[case("[auth]\nsecret = \"unterminatedLEAK\n", "(line 2, column ")]
    fn a_file_is_blamed_with_its_line(#[case] text: &str, #[case] place: &str) {
        let (_directory, file) = file(text);
        let error =
            Sources { file: Some(file.clone()), ..Sources::default() }.load().unwrap_err().to_string();
        assert!(error.contains(place) && error.contains("shop.toml"), "{error}");
        assert!(!error.contains("LEAK") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn secrets_come_from_files_and_are_never_shown() {
        let secret = "a-secret-of-more-than-thirty-two-bytes";
        let (_directory, secret_file) = file(&format!("{secret}\n"));
        let path = secret_file.to_str().unwrap();
        let loaded = environment(&[
            ("TOMBOLA__AUTH__SECRET_FILE", path),
            ("TOMBOLA__DATABASE__URL", "postgres://ann:pass@word@db.example/shop"),
        ]);
        let loaded = loaded.load().unwrap();
        assert_eq!(loaded.config.auth.secret.as_ref().unwrap().expose_secret(), secret);
        let shown = loaded.show().unwrap() + &format!("{loaded:?}");
        assert!(!shown.contains(secret) && !shown.contains("word@") && !shown.contains("pass@"), "{shown}");
        assert!(shown.contains("postgres://ann:***@db.example/shop"), "{shown}");

        let urls = environment(&[
            ("TOMBOLA__BUS", "amqp://ann:mqpass@mq/%2f"),
            ("TOMBOLA__DATABASE__URL", "postgres://ann@db.example/shop?password=dbpass"),
            ("TOMBOLA__WECHAT__BASE_URL", "http://ann:wepass@127.0.0.1"),
            ("TOMBOLA__PAYMENT__ALIPAY__BASE_URL", "http://ann:alpass@127.0.0.1"),
        ]);
        let shown = urls.load().unwrap().show().unwrap();
        assert!(!shown.contains("pass@") && !shown.contains("dbpass"), "{shown}");
        assert!(shown.contains("\"http://ann:***@127.0.0.1\""), "{shown}");

        let both = environment(&[("TOMBOLA__AUTH__SECRET_FILE", path), ("TOMBOLA__AUTH__SECRET", secret)]);
        let error = both.load().unwrap_err().to_string();
        assert!(error.contains("set only one") && !error.contains(secret), "{error}");
    }

    #[rstest]
    #[case("sqlite://data/x.db", "127.0.0.1:1", None, true)]
    #[case("sqlite://data/x.db", "[::1]:1", None, true)]
    #[case("sqlite://data/x.db", "0.0.0.0:1", None, false)]
    #[case("postgres://db/x", "127.0.0.1:1", None, false)]
    #[case("postgres://db/x", "0.0.0.0:1", Some("true"), true)]
    #[case("sqlite://data/x.db", "127.0.0.1:1", Some("false"), false)]
    fn anyone_may_sign_in_only_on_ones_own_machine(
        #[case] url: &str,
        #[case] address: &str,
        #[case] asked: Option<&str>,
        #[case] allowed: bool,
    ) {
        let mut variables = vec![("TOMBOLA__DATABASE__URL", url), ("TOMBOLA__HTTP__ADDRESS", address)];
        variables.extend(asked.map(|asked| ("TOMBOLA__AUTH__DEV_LOGIN", asked)));
        assert_eq!(environment(&variables).load().unwrap().config.dev_login(), allowed);
    }
}
