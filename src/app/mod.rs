//! The only place that wires. Things start in the order of the text of [`App::start`] and stop in the order of the
//! text of [`Running::stop`], so that no accepted request loses what it stands on.

mod ground;
mod modules;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::web::Data;
use futures_util::FutureExt;
use secrecy::SecretString;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::ground::{DatabaseRuntime, connect, is_in, unusable};
pub use self::ground::{Ground, TimeSource};
pub use self::modules::{Modules, Ports};
use crate::cluster::{Cluster, ClusterError};
use crate::config::{BusConfig, Config, ServerRole};
use crate::db::{Database, DbFault, InvalidDatabaseUrl};
use crate::http::{self, Check, HttpSettings, RateLimitSettings, Readiness};
use crate::identity::{
    IdentityError, IdentityService, NewPassword, Role, Roles, SecretTooShort, TokenStoreError, UserName,
};
use crate::ids::EventId;
use crate::lease;
use crate::messaging::groups::Groups;
use crate::messaging::relay::Relay;
use crate::ports::clock::{SharedClock, SystemClock};
use crate::ports::event_bus::EventBus;
use crate::ports::event_bus::embedded::EmbeddedBus;
use crate::ports::event_bus::rabbitmq::RabbitMq;
use crate::ports::payment_gateway::InvalidSetting;
use crate::tasks::Tasks;
use crate::{shop, stock, telemetry};

/// The first operator's name.
const FIRST_OPERATOR: &str = "admin";

/// Why the server did not start, and what to do.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("`database.url` {0}")]
    DatabaseUrl(#[from] InvalidDatabaseUrl),
    #[error("cannot use the data directory {}: {source}", directory.display())]
    DataDirectory { directory: PathBuf, source: std::io::Error },
    #[error(
        "another server uses the data directory {}; stop it, or give this one another `database.url`",
        .0.display()
    )]
    DataDirectoryInUse(PathBuf),
    #[error("no threads for the database: {0}")]
    Threads(std::io::Error),
    #[error("cannot open the database ({database}): {fault}")]
    Database { database: String, fault: DbFault },
    #[error("the database's tables are {0} steps behind; run `tombola migrate`")]
    NotMigrated(usize),
    #[error("cannot join the other nodes: {0}")]
    Cluster(#[from] ClusterError),
    #[error("`auth.secret`: {0}")]
    Secret(#[from] SecretTooShort),
    #[error("cannot prepare the signing keys: {0}")]
    SigningKeys(#[from] TokenStoreError),
    #[error("cannot create the first operator: {0}")]
    FirstOperator(#[from] IdentityError),
    #[error("`bus`: {0}")]
    Bus(String),
    #[error("`{}`: {}", .0.key, .0.problem)]
    Setting(#[from] InvalidSetting),
    #[error("cannot listen on {address}: {source}; `--address` takes another one")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// Brings the tables up to date.
pub async fn migrate(config: &Config) -> Result<(), StartError> {
    let runtime = DatabaseRuntime::start()?;
    let db = connect(config, runtime.handle()).await?;
    let migrated = db.migrate().await.map_err(|fault| unusable(config, fault));
    db.close().await;
    migrated
}

/// The modules for a command that may run beside the server; it has the server's currency.
pub async fn modules_for_command(ground: &Ground, config: &Config) -> Result<Modules, StartError> {
    let known = shop::known_currency(&ground.db).await.map_err(|fault| unusable(config, fault))?;
    if let Some(known) = known {
        is_in(known, config)?;
    }
    Ok(Modules::for_command(ground, config, Ports::new(config, &ground.clock)?))
}

/// Starts the server.
#[derive(Debug)]
pub struct App;

/// A server that answers requests, until it is told to stop.
#[derive(Debug)]
pub struct Running {
    /// Where it listens; the port the system chose, if it was to choose.
    pub address: SocketAddr,
    /// The operator that was created because there was none, and its password, to be shown once.
    pub first_operator: Option<(UserName, SecretString)>,
    readiness: Readiness,
    drain_delay: Duration,
    http: ServerHandle,
    jobs: Tasks,
    messaging: Tasks,
    bus: Arc<dyn EventBus>,
    modules: Modules,
    /// What keeps memory in step with the database.
    upkeep: Tasks,
    ground: Ground,
}

impl App {
    /// Starts a server within the current actix system. Several may run in one process.
    pub async fn start(config: Config, time: TimeSource) -> Result<Running, StartError> {
        let metrics = telemetry::metrics(&SystemClock);
        let ground = Ground::for_server(&config, time).await?;
        let Ground { db, cluster, .. } = &ground;
        lease::forget_the_dead(db).await.map_err(|fault| unusable(&config, fault))?;

        let (tokens, identity) = ground.identity(&config).await?;
        let first_operator = match config.is_embedded() {
            true => first_operator(&identity).await?,
            false => None,
        };
        let modules = Modules::for_server(&ground, &config, Ports::new(&config, &ground.clock)?);

        let tasks = || Tasks::new(ground.runtime.handle().clone(), CancellationToken::new());
        let mut upkeep = tasks();
        let kept_up = metrics.clone();
        upkeep.keep_until_stop("metrics", move || telemetry::keep_up(kept_up.clone()));
        let fresh = tokens.clone();
        upkeep.keep_until_stop("tokens", move || {
            let fresh = fresh.clone();
            async move { fresh.keep_fresh().await }
        });

        let jobs = modules.jobs(&ground);
        let mut running_jobs = tasks();
        if config.has_role(ServerRole::Jobs) {
            let jobs = jobs.clone();
            running_jobs.keep("jobs", move |stop| jobs.runner().run(stop));
        }

        let groups = modules.groups(&ground);
        let bus = event_bus(&config, &ground, &groups).map_err(StartError::Bus)?;
        let mut messaging = tasks();
        if config.has_role(ServerRole::Relay) {
            let every = config.messaging.relay_every;
            let relay = Relay::new(db.clone(), bus.clone(), cluster.incarnation(), every);
            let measured = relay.clone();
            messaging.keep("relay", move |stop| relay.clone().run(stop));
            messaging.keep("backlog", move |stop| measured.clone().measure(stop));
        }
        if config.has_role(ServerRole::Consumer) {
            let (db, ids, bus) = (db.clone(), cluster.ids().clone(), bus.clone());
            let retries = config.retries();
            messaging.keep("groups", move |stop| {
                let (groups, db, ids) = (groups.clone(), db.clone(), ids.clone());
                let (bus, retries) = (bus.clone(), retries.clone());
                async move { groups.run(db, ids, bus, retries, stop).await }
            });
        }
        if config.has_role(ServerRole::Http) {
            let (bus, ear) = (bus.clone(), modules.ear());
            messaging.keep("broadcasts", move |stop| {
                let (bus, ear) = (bus.clone(), ear.clone());
                async move { bus.broadcast(stock::HEARD, ear, stop).await }
            });
        }

        let readiness = Readiness::new(checks(db, cluster));
        let (tokens, identity) = (Data::new(tokens.tokens().clone()), Data::new(identity));
        let services = modules.services(&ground, jobs);
        let listening = http::start(&http_settings(&config), readiness.clone(), metrics, move |routes| {
            routes.app_data(tokens.clone()).app_data(identity.clone());
            services(routes);
        });
        let address = config.http.address;
        let listening = listening.map_err(|source| StartError::Listen { address, source })?;
        let address = listening.addresses.first().copied().unwrap_or(address);
        let http = listening.server.handle();
        actix_web::rt::spawn(listening.server);
        info!(%address, node = cluster.node(), "Listening on {address} as node {}", cluster.node());

        let drain_delay = config.http.drain_delay;
        Ok(Running {
            address,
            first_operator,
            readiness,
            drain_delay,
            http,
            jobs: running_jobs,
            messaging,
            bus,
            modules,
            upkeep,
            ground,
        })
    }
}

impl Running {
    /// By what it tells the time.
    pub fn clock(&self) -> &SharedClock {
        &self.ground.clock
    }

    /// Waits until the server can no longer do its work and must be stopped.
    pub async fn failed(&self) {
        self.ground.cluster.lost().await;
    }

    /// Stops without losing an accepted request.
    pub async fn stop(self) {
        info!("Stopping");
        self.readiness.stop();
        tokio::time::sleep(self.drain_delay).await;
        self.http.stop(true).await;
        self.jobs.stop().await;
        self.modules.stop().await;
        // Last: what the actors committed until now leaves as far as it can at once.
        self.messaging.stop().await;
        self.bus.close().await;
        self.upkeep.stop().await;
        self.ground.close().await;
        info!("Stopped");
    }
}

/// Creates an operator if nobody can log in with a password, so that a new installation can be operated.
async fn first_operator(
    identity: &IdentityService,
) -> Result<Option<(UserName, SecretString)>, IdentityError> {
    if identity.has_password_users().await? {
        return Ok(None);
    }
    let Ok(name) = UserName::parse(FIRST_OPERATOR) else { return Ok(None) };
    let (password, text) = NewPassword::generate();
    identity.add_user(&name, Roles::from(Role::Operator), password).await?;
    Ok(Some((name, text)))
}

/// What carries events from the outbox to the groups.
fn event_bus(config: &Config, ground: &Ground, groups: &Groups) -> Result<Arc<dyn EventBus>, String> {
    let specs = groups.specs();
    Ok(match &config.bus {
        BusConfig::Embedded => {
            Arc::new(EmbeddedBus::new(ground.db.clone(), ground.cluster.incarnation(), &specs))
        }
        BusConfig::RabbitMq(url) => Arc::new(RabbitMq::new(url, &specs, &config.messaging.retry_delays)?),
    })
}

/// What this server cannot do without.
fn checks(db: &Database, cluster: &Cluster) -> Vec<(&'static str, Check)> {
    let (db, ids) = (db.clone(), cluster.ids().clone());
    let database: Check = Box::new(move || {
        let db = db.clone();
        async move { db.ping().await.map_err(|fault| fault.to_string()) }.boxed()
    });
    let node_number: Check = Box::new(move || {
        let id = ids.next::<EventId>().map(drop).map_err(|lost| lost.to_string());
        std::future::ready(id).boxed()
    });
    vec![("database", database), ("node_number", node_number)]
}

fn http_settings(config: &Config) -> HttpSettings {
    let http = config.http.clone();
    let defaults = HttpSettings::default();
    HttpSettings {
        address: http.address.to_string(),
        workers: if http.workers == 0 { defaults.workers } else { http.workers },
        body_deadline: http.body_timeout,
        shutdown_timeout: http.shutdown_timeout,
        cors_origins: http.cors_origins,
        trusted_proxies: http.trusted_proxies,
        rate_limit: RateLimitSettings {
            per_user_per_s: config.rate_limit.per_user_per_s,
            sign_in_per_address_per_s: config.rate_limit.sessions_per_address_per_s,
        },
        api: config.has_role(ServerRole::Http),
        traces: config.telemetry.otlp_endpoint.is_some(),
        ..defaults
    }
}
