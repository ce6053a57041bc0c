//! Where settings come from: each place is a layer, and later ones win.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use config::{Map, Source, Value, ValueKind};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

use super::Config;

/// The embedded defaults, which explain every key.
pub const DEFAULTS: &str = include_str!("../default.toml");

/// What our variables begin with.
pub(super) const PREFIX: &str = "TOMBOLA__";

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
pub(super) fn known_keys() -> Result<BTreeSet<String>, ConfigError> {
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
