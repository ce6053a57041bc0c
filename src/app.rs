//! The only place that wires. Things start in the order of the text of [`App::start`] and stop in the order of the
//! text of [`Running::stop`], so that no accepted request loses what it stands on.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::web::Data;
use futures_util::FutureExt;
use secrecy::SecretString;
use thiserror::Error;
use tokio::runtime::{Handle, Runtime};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::activity::ActivityService;
use crate::actors::batching::{AdmissionLimits, BatchSettings};
use crate::catalog::reconcile::GoodsAgainstLedger;
use crate::catalog::{self, CartService, CatalogService};
use crate::cluster::{Cluster, ClusterError, Membership};
use crate::config::{BusConfig, Config, ServerRole};
use crate::coupon::{self, CouponService};
use crate::db::{Database, DbFault, InvalidDatabaseUrl};
use crate::http::{self, Check, HttpSettings, RateLimitSettings, Readiness};
use crate::idempotency;
use crate::identity::{
    IdentityError, IdentityService, NewPassword, Role, Roles, SecretTooShort, TokenStore, TokenStoreError,
    UserName,
};
use crate::ids::EventId;
use crate::jobs::{self, Host, JobService};
use crate::lease;
use crate::messaging::dead_letter::DeadLetters;
use crate::messaging::groups::Groups;
use crate::messaging::outbox_rows::OutboxRows;
use crate::messaging::reconcile::{CommittedAgainstSent, SentAgainstApplied};
use crate::messaging::relay::Relay;
use crate::messaging::{consumer, dead_letter, outbox_rows};
use crate::ports::clock::SharedClock;
use crate::ports::event_bus::EventBus;
use crate::ports::event_bus::embedded::EmbeddedBus;
use crate::ports::event_bus::rabbitmq::RabbitMq;
use crate::reconciliation::{Comparison, ReconciliationService};
use crate::stock::reconcile::{BlocksAgainstTakes, ProjectionAgainstBlocks, TotalAgainstBlocks};
use crate::stock::{self, StockService};
use crate::telemetry;
use crate::wallet::reconcile::AccountsAgainstEntries;
use crate::wallet::{self, Ledger, WalletService};

/// Threads for database work, at least.
const FEWEST_DATABASE_THREADS: usize = 2;

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
    #[error("cannot listen on {address}: {source}; `--address` takes another one")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// The database and this process's place among those that use it: what a server and a command beside it both need.
#[derive(Debug)]
pub struct Ground {
    pub db: Database,
    pub cluster: Cluster,
    runtime: DatabaseRuntime,
    /// Keeps a second server from the same SQLite file.
    _lock: Option<File>,
}

impl Ground {
    /// Opens the database for the server, bringing its tables up to date if the configuration says so.
    pub async fn for_server(config: &Config, clock: &SharedClock) -> Result<Self, StartError> {
        let lock = lock_data_directory(config)?;
        let runtime = DatabaseRuntime::start()?;
        let db = connect(config, runtime.handle()).await?;
        if config.database.migrate_on_start {
            db.migrate().await.map_err(|fault| unusable(config, fault))?;
        }
        let membership = if lock.is_some() { Membership::Alone } else { Membership::Shared };
        Self::join(db, runtime, lock, membership, config, clock).await
    }

    /// Opens the database for a command that may run beside the server.
    pub async fn for_command(config: &Config, clock: &SharedClock) -> Result<Self, StartError> {
        let runtime = DatabaseRuntime::start()?;
        let db = connect(config, runtime.handle()).await?;
        if config.database.migrate_on_start {
            db.migrate().await.map_err(|fault| unusable(config, fault))?;
        }
        Self::join(db, runtime, None, Membership::Shared, config, clock).await
    }

    async fn join(
        db: Database,
        runtime: DatabaseRuntime,
        lock: Option<File>,
        membership: Membership,
        config: &Config,
        clock: &SharedClock,
    ) -> Result<Self, StartError> {
        match db.pending_migrations().await.map_err(|fault| unusable(config, fault))? {
            0 => {}
            pending => return Err(StartError::NotMigrated(pending)),
        }
        let cluster = Cluster::join(&db, membership, clock.as_ref(), runtime.handle()).await?;
        Ok(Self { db, cluster, runtime, _lock: lock })
    }

    /// Sessions and users.
    pub async fn identity(
        &self,
        config: &Config,
        clock: &SharedClock,
    ) -> Result<(TokenStore, IdentityService), StartError> {
        let Self { db, cluster, .. } = self;
        let (keys, ttl) = (config.signing_keys()?, config.auth.token_ttl);
        let ids = cluster.ids().clone();
        let tokens = TokenStore::open(db.clone(), keys, ttl, clock.clone(), ids.clone()).await?;
        let dev_login = config.dev_login();
        let identity = IdentityService::new(db.clone(), tokens.clone(), ttl, dev_login, clock.clone(), ids);
        Ok((tokens, identity))
    }

    /// Every job there is.
    pub fn jobs(&self, config: &Config, clock: &SharedClock, activities: &ActivityService) -> JobService {
        let Self { db, cluster, .. } = self;
        let schedules = config.jobs.schedules.clone();
        let keep = config.messaging.keep;
        let logs = vec![
            idempotency::LOG,
            jobs::history(config.jobs.keep_runs),
            outbox_rows::log(keep),
            consumer::log(keep),
            dead_letter::log(keep),
        ];
        let all = vec![
            jobs::activity_states(activities.clone(), schedules.activity_states),
            jobs::coupon_expiry(self.coupons(config, clock), schedules.coupon_expiry),
            jobs::dead_letter_replay(self.dead_letters(config, clock), schedules.dead_letter_replay),
            jobs::log_trimming(db.clone(), clock.clone(), schedules.log_trimming, logs),
            jobs::outbox_sweep(self.outbox(clock), schedules.outbox_sweep),
            jobs::reconciliation(self.reconciliation(config, clock), schedules.reconciliation),
        ];
        let (clock, ids) = (clock.clone(), cluster.ids().clone());
        JobService::new(Host { db: db.clone(), clock, ids, holder: cluster.incarnation() }, all)
    }

    /// Every job there is, for a command: on this node nobody has to be told what it changes.
    pub fn jobs_for_command(&self, config: &Config, clock: &SharedClock) -> JobService {
        let (db, ids) = (self.db.clone(), self.cluster.ids().clone());
        let activities = ActivityService::new(db, clock.clone(), ids, Arc::new(|_| {}));
        self.jobs(config, clock, &activities)
    }

    /// Everything that should agree with something else.
    pub fn reconciliation(&self, config: &Config, clock: &SharedClock) -> ReconciliationService {
        let (db, ids) = (self.db.clone(), self.cluster.ids().clone());
        let groups = self.consumer_groups(config, clock);
        let comparisons: Vec<Box<dyn Comparison>> = vec![
            Box::new(TotalAgainstBlocks(db.clone())),
            Box::new(BlocksAgainstTakes(db.clone())),
            Box::new(ProjectionAgainstBlocks(db.clone())),
            Box::new(GoodsAgainstLedger(db.clone())),
            Box::new(CommittedAgainstSent(db.clone())),
            Box::new(SentAgainstApplied::new(db.clone(), ids.clone(), &groups)),
            Box::new(AccountsAgainstEntries(db.clone())),
        ];
        ReconciliationService::new(db, ids, clock.clone(), comparisons)
    }

    /// What the consumer groups could not apply.
    pub fn dead_letters(&self, config: &Config, clock: &SharedClock) -> DeadLetters {
        let groups = self.consumer_groups(config, clock).specs();
        DeadLetters::new(self.db.clone(), clock.clone(), self.cluster.ids().clone(), groups)
    }

    /// Every consumer group there is.
    fn consumer_groups(&self, config: &Config, clock: &SharedClock) -> Groups {
        let ledger = self.ledger(config);
        Groups::new(vec![
            stock::projection::group(),
            catalog::returns::group(self.cluster.ids().clone(), clock.clone()),
            coupon::groups::orders(self.cluster.ids().clone(), clock.clone()),
            wallet::groups::balances(ledger.clone(), clock.clone()),
            wallet::groups::points(ledger, clock.clone(), config.shop.points_per_major),
        ])
    }

    /// The coupons of users.
    fn coupons(&self, config: &Config, clock: &SharedClock) -> CouponService {
        let ids = self.cluster.ids().clone();
        CouponService::new(self.db.clone(), ids, clock.clone(), config.shop.currency)
    }

    /// What changes balances and points.
    fn ledger(&self, config: &Config) -> Ledger {
        Ledger::new(self.cluster.ids().clone(), config.shop.currency)
    }

    /// What was committed to be published.
    fn outbox(&self, clock: &SharedClock) -> OutboxRows {
        OutboxRows::new(self.db.clone(), clock.clone())
    }

    /// Closes the database.
    pub async fn close(self) {
        self.cluster.leave();
        self.db.close().await;
    }
}

/// Brings the tables up to date.
pub async fn migrate(config: &Config) -> Result<(), StartError> {
    let runtime = DatabaseRuntime::start()?;
    let db = connect(config, runtime.handle()).await?;
    let migrated = db.migrate().await.map_err(|fault| unusable(config, fault));
    db.close().await;
    migrated
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
    stop_jobs: CancellationToken,
    jobs: JoinHandle<()>,
    stop_messaging: CancellationToken,
    messaging: JoinSet<()>,
    bus: Arc<dyn EventBus>,
    stock: StockService,
    catalog: CatalogService,
    /// What keeps memory in step with the database; ends when dropped.
    upkeep: JoinSet<()>,
    ground: Ground,
}

impl App {
    /// Starts a server within the current actix system. Several may run in one process.
    pub async fn start(config: Config, clock: SharedClock) -> Result<Running, StartError> {
        let metrics = telemetry::metrics(clock.as_ref());
        let ground = Ground::for_server(&config, &clock).await?;
        let Ground { db, cluster, .. } = &ground;
        let runtime = ground.runtime.handle();
        lease::forget_the_dead(db).await.map_err(|fault| unusable(&config, fault))?;

        let (tokens, identity) = ground.identity(&config, &clock).await?;
        let first_operator = match config.is_embedded() {
            true => first_operator(&identity).await?,
            false => None,
        };
        let stock = StockService::new(db.clone(), cluster.clone(), clock.clone(), batch_settings(&config));
        let (ids, currency) = (cluster.ids().clone(), config.shop.currency);
        let catalog = CatalogService::new(db.clone(), ids, clock.clone(), currency, batch_settings(&config));
        let carts = CartService::new(db.clone(), clock.clone(), currency);
        let actors = stock.clone();
        let on_change = Arc::new(move |activity| actors.activity_changed(activity));
        let activities = ActivityService::new(db.clone(), clock.clone(), cluster.ids().clone(), on_change);

        let mut upkeep = JoinSet::new();
        upkeep.spawn_on(telemetry::keep_up(metrics.clone()), runtime);
        let fresh = tokens.clone();
        upkeep.spawn_on(async move { fresh.keep_fresh().await }, runtime);

        let jobs = ground.jobs(&config, &clock, &activities);
        let stop_jobs = CancellationToken::new();
        let running_jobs = match config.has_role(ServerRole::Jobs) {
            true => runtime.spawn(jobs.runner().run(stop_jobs.clone())),
            false => runtime.spawn(std::future::ready(())),
        };

        let groups = ground.consumer_groups(&config, &clock);
        let bus = event_bus(&config, &ground, &groups).map_err(StartError::Bus)?;
        let stop_messaging = CancellationToken::new();
        let mut messaging = JoinSet::new();
        if config.has_role(ServerRole::Relay) {
            let every = config.messaging.relay_every;
            let relay = Relay::new(db.clone(), bus.clone(), cluster.incarnation(), every);
            messaging.spawn_on(relay.run(stop_messaging.clone()), runtime);
        }
        if config.has_role(ServerRole::Consumer) {
            let (db, ids, bus) = (db.clone(), cluster.ids().clone(), bus.clone());
            let (retries, stop) = (config.retries(), stop_messaging.clone());
            messaging.spawn_on(async move { groups.run(db, ids, bus, retries, stop).await }, runtime);
        }
        if config.has_role(ServerRole::Http) {
            let (bus, stop) = (bus.clone(), stop_messaging.clone());
            let ear = stock.ear();
            messaging.spawn_on(async move { bus.broadcast(stock::HEARD, ear, stop).await }, runtime);
        }

        let readiness = Readiness::new(checks(db, cluster));
        let (tokens, identity) = (Data::new(tokens.tokens().clone()), Data::new(identity));
        let (activities, takes, jobs) = (Data::new(activities), Data::new(stock.clone()), Data::new(jobs));
        let (goods, carts) = (Data::new(catalog.clone()), Data::new(carts));
        let wallets = Data::new(WalletService::new(db.clone(), clock.clone(), ground.ledger(&config)));
        let coupons = Data::new(ground.coupons(&config, &clock));
        let reconciliation = Data::new(ground.reconciliation(&config, &clock));
        let letters = Data::new(ground.dead_letters(&config, &clock));
        let outbox = Data::new(ground.outbox(&clock));
        let listening = http::start(&http_settings(&config), readiness.clone(), metrics, move |routes| {
            routes
                .app_data(tokens.clone())
                .app_data(identity.clone())
                .app_data(activities.clone())
                .app_data(takes.clone())
                .app_data(goods.clone())
                .app_data(carts.clone())
                .app_data(wallets.clone())
                .app_data(coupons.clone())
                .app_data(reconciliation.clone())
                .app_data(jobs.clone())
                .app_data(letters.clone())
                .app_data(outbox.clone());
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
            stop_jobs,
            jobs: running_jobs,
            stop_messaging,
            messaging,
            bus,
            stock,
            catalog,
            upkeep,
            ground,
        })
    }
}

impl Running {
    /// Waits until the server can no longer do its work and must be stopped.
    pub async fn failed(&self) {
        self.ground.cluster.lost().await;
    }

    /// Stops without losing an accepted request.
    pub async fn stop(mut self) {
        info!("Stopping");
        self.readiness.stop();
        tokio::time::sleep(self.drain_delay).await;
        self.http.stop(true).await;
        self.stop_jobs.cancel();
        let _ = self.jobs.await;
        self.stock.stop().await;
        self.catalog.stop().await;
        // Last: what the actors committed until now leaves as far as it can at once.
        self.stop_messaging.cancel();
        while self.messaging.join_next().await.is_some() {}
        self.bus.close().await;
        self.upkeep.shutdown().await;
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

fn batch_settings(config: &Config) -> BatchSettings {
    let stock = &config.stock;
    BatchSettings {
        max_batch: stock.max_batch,
        admission: AdmissionLimits {
            waiting_per_key: stock.max_waiting_per_activity,
            waiting_in_process: stock.max_waiting,
            wait: stock.max_wait,
        },
        // Whoever was let in waits for the batch before theirs, then for their own.
        answer_deadline: stock.max_wait + config.database.deadline,
        passivate_after: stock.passivate_after,
    }
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

/// The threads all database work runs on (see [`crate::db`]). Dropping it does not wait: it may happen where waiting
/// is not allowed.
#[derive(Debug)]
struct DatabaseRuntime(Option<Runtime>, Handle);

impl DatabaseRuntime {
    fn start() -> Result<Self, StartError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("database")
            .worker_threads(cores.max(FEWEST_DATABASE_THREADS))
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        let handle = runtime.handle().clone();
        Ok(Self(Some(runtime), handle))
    }

    fn handle(&self) -> &Handle {
        &self.1
    }
}

impl Drop for DatabaseRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn connect(config: &Config, runtime: &Handle) -> Result<Database, StartError> {
    let settings = config.database_settings()?;
    if let Some(directory) = settings.sqlite_file().map(directory_of) {
        create_directory(directory)?;
    }
    Database::connect(settings, runtime.clone()).await.map_err(|fault| unusable(config, fault))
}

fn unusable(config: &Config, fault: DbFault) -> StartError {
    let database = config.database_settings().map_or_else(|error| error.to_string(), |s| s.describe());
    StartError::Database { database, fault }
}

/// Locks the directory of a SQLite file against a second server. The lock goes with the process, however it ends.
fn lock_data_directory(config: &Config) -> Result<Option<File>, StartError> {
    let settings = config.database_settings()?;
    let Some(file) = settings.sqlite_file() else { return Ok(None) };
    let directory = directory_of(file);
    create_directory(directory)?;
    let in_directory = |source| StartError::DataDirectory { directory: directory.to_owned(), source };
    let lock = File::create(directory.join("tombola.lock")).map_err(in_directory)?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(StartError::DataDirectoryInUse(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(in_directory(source)),
    }
}

/// A directory for us alone: the database in it holds the keys that sign access tokens.
fn private_directory() -> std::fs::DirBuilder {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

fn create_directory(directory: &Path) -> Result<(), StartError> {
    private_directory()
        .create(directory)
        .map_err(|source| StartError::DataDirectory { directory: directory.to_owned(), source })
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::{EntityTrait, PaginatorTrait};

    use super::*;
    use crate::config::Sources;
    use crate::demo::{self, Pace};
    use crate::ports::clock::SystemClock;

    fn config(directory: &Path) -> Config {
        let url = format!("sqlite://{}", directory.join("data/shop.db").display());
        let settings = [("http.address", "127.0.0.1:0".to_owned()), ("database.url", url)];
        let flags = settings.map(|(key, value)| (key, "test", value)).to_vec();
        Sources { flags, ..Sources::default() }.load().unwrap().config
    }

    async fn status(running: &Running, path: &str) -> u16 {
        let url = format!("http://{}{path}", running.address);
        reqwest::get(url).await.unwrap().status().as_u16()
    }

    #[actix_web::test]
    async fn a_server_starts_on_nothing_stops_and_starts_again() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let clock: SharedClock = Arc::new(SystemClock);
        let running = App::start(config(directory.path()), clock.clone()).await.unwrap();
        assert!(running.first_operator.is_some());
        assert_eq!(status(&running, "/livez").await, 200);
        assert_eq!(status(&running, "/readyz").await, 200);

        let second = App::start(config(directory.path()), clock.clone()).await;
        assert!(matches!(second, Err(StartError::DataDirectoryInUse(_))), "{second:?}");
        let command = Ground::for_command(&config(directory.path()), &clock).await.unwrap();
        assert_eq!((running.ground.cluster.node(), command.cluster.node()), (0, 1));
        command.close().await;

        let elsewhere = tempfile::tempdir().unwrap();
        let other = App::start(config(elsewhere.path()), clock.clone()).await.unwrap();
        assert_eq!(status(&other, "/readyz").await, 200);
        other.stop().await;
        assert_eq!(status(&running, "/readyz").await, 200);

        running.stop().await;
        let again = App::start(config(directory.path()), clock).await.unwrap();
        assert!(again.first_operator.is_none());
        assert_eq!(again.ground.cluster.node(), 0);
        again.stop().await;
    }

    #[actix_web::test]
    async fn the_demo_sells_out_and_starts_again() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let clock: SharedClock = Arc::new(SystemClock);
        let running = App::start(config(directory.path()), clock.clone()).await.unwrap();
        let (pause, db) = (Duration::from_millis(1), running.ground.db.clone());
        let pace = Pace { stock: 20, between_takes: pause, between_sales: pause };
        let shoppers = actix_web::rt::spawn(demo::run(running.address, clock, pace));
        let takes = async || {
            let count =
                db.read(|c| async move { Ok::<_, DbFault>(entities::take::Entity::find().count(&c).await?) });
            count.await.unwrap()
        };
        tokio::time::timeout(Duration::from_secs(20), async {
            while takes().await < 50 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        shoppers.abort();
        running.stop().await;
    }
}
