//! What everything stands on: the database, its threads, and this process's place among those that share it.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::StartError;
use crate::cluster::{Cluster, Membership};
use crate::config::Config;
use crate::db::{Database, DatabaseClock, DbFault};
use crate::identity::{IdentityService, TokenStore};
use crate::money::Currency;
use crate::ports::clock::{SharedClock, SystemClock};
use crate::ports::payment_gateway::InvalidSetting;
use crate::shop;
use crate::tasks::Tasks;

/// Threads for database work, at least.
const FEWEST_DATABASE_THREADS: usize = 2;

/// What tells the time.
#[derive(Debug, Clone)]
pub enum TimeSource {
    /// The clock that all nodes share: the database's. A SQLite file is used on one machine, whose own clock it is.
    Database,
    /// This one, as in tests.
    Clock(SharedClock),
}

/// The database and this process's place among those that use it: what a server and a command beside it both need.
#[derive(Debug)]
pub struct Ground {
    pub db: Database,
    pub clock: SharedClock,
    pub cluster: Cluster,
    pub(super) runtime: DatabaseRuntime,
    /// Keeps the clock right.
    timekeeping: Tasks,
    /// Keeps a second server from the same SQLite file.
    _lock: Option<File>,
}

impl Ground {
    /// Opens the database for the server, bringing its tables up to date if the configuration says so.
    pub async fn for_server(config: &Config, time: TimeSource) -> Result<Self, StartError> {
        let lock = lock_data_directory(config)?;
        let runtime = DatabaseRuntime::start()?;
        let db = open(config, &runtime).await?;
        let currency = shop::keep_currency(&db, config.shop.currency).await;
        is_in(currency.map_err(|fault| unusable(config, fault))?, config)?;
        let membership = if lock.is_some() { Membership::Alone } else { Membership::Shared };
        Self::join(db, runtime, lock, membership, config, time).await
    }

    /// Opens the database for a command that may run beside the server.
    pub async fn for_command(config: &Config) -> Result<Self, StartError> {
        let runtime = DatabaseRuntime::start()?;
        let db = open(config, &runtime).await?;
        Self::join(db, runtime, None, Membership::Shared, config, TimeSource::Database).await
    }

    async fn join(
        db: Database,
        runtime: DatabaseRuntime,
        lock: Option<File>,
        membership: Membership,
        config: &Config,
        time: TimeSource,
    ) -> Result<Self, StartError> {
        let mut timekeeping = Tasks::new(runtime.handle().clone(), CancellationToken::new());
        let clock: SharedClock = match time {
            TimeSource::Clock(clock) => clock,
            TimeSource::Database if config.database_settings()?.sqlite_file().is_some() => {
                Arc::new(SystemClock)
            }
            TimeSource::Database => {
                let clock = DatabaseClock::of(&db).await.map_err(|fault| unusable(config, fault))?;
                let (clock, db) = (Arc::new(clock), db.clone());
                let followed = clock.clone();
                timekeeping.keep_until_stop("clock", move || {
                    let (followed, db) = (followed.clone(), db.clone());
                    async move { followed.follow(&db).await }
                });
                clock
            }
        };
        let cluster = Cluster::join(&db, membership, clock.as_ref(), runtime.handle()).await?;
        Ok(Self { db, clock, cluster, runtime, timekeeping, _lock: lock })
    }

    /// Sessions and users.
    pub async fn identity(&self, config: &Config) -> Result<(TokenStore, IdentityService), StartError> {
        let Self { db, clock, cluster, .. } = self;
        let (keys, ttl) = (config.signing_keys()?, config.auth.token_ttl);
        let ids = cluster.ids().clone();
        let tokens = TokenStore::open(db.clone(), keys, ttl, clock.clone(), ids.clone()).await?;
        let dev_login = config.dev_login();
        let identity = IdentityService::new(db.clone(), tokens.clone(), ttl, dev_login, clock.clone(), ids);
        Ok((tokens, identity))
    }

    /// Closes the database.
    pub async fn close(self) {
        self.timekeeping.stop().await;
        self.cluster.leave();
        self.db.close().await;
    }
}

/// The threads all database work runs on (see [`crate::db`]). Dropping it does not wait: it may happen where waiting
/// is not allowed.
#[derive(Debug)]
pub(super) struct DatabaseRuntime(Option<Runtime>, Handle);

impl DatabaseRuntime {
    pub(super) fn start() -> Result<Self, StartError> {
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

    pub(super) fn handle(&self) -> &Handle {
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

pub(super) async fn connect(config: &Config, runtime: &Handle) -> Result<Database, StartError> {
    let settings = config.database_settings()?;
    if let Some(file) = settings.sqlite_file() {
        create_directory(directory_of(file))?;
        create_private(file)?;
    }
    Database::connect(settings, runtime.clone()).await.map_err(|fault| unusable(config, fault))
}

/// The database with its tables up to date, if need be by bringing them there.
async fn open(config: &Config, runtime: &DatabaseRuntime) -> Result<Database, StartError> {
    let db = connect(config, runtime.handle()).await?;
    if config.database.migrate_on_start {
        db.migrate().await.map_err(|fault| unusable(config, fault))?;
        return Ok(db);
    }
    match db.pending_migrations().await.map_err(|fault| unusable(config, fault))? {
        0 => Ok(db),
        pending => Err(StartError::NotMigrated(pending)),
    }
}

/// Refuses the configured currency if the amounts in the database are in another one.
pub(super) fn is_in(currency: Currency, config: &Config) -> Result<(), InvalidSetting> {
    if config.shop.currency == currency {
        return Ok(());
    }
    let problem = format!(
        "the amounts in the database are in {currency}, not in {}, and nothing converts them; set it to {currency}, or \
         `database.url` to another database",
        config.shop.currency
    );
    Err(InvalidSetting::new("shop.currency", problem))
}

pub(super) fn unusable(config: &Config, fault: DbFault) -> StartError {
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

/// An empty file for us alone unless there is one, before SQLite would make one for everybody; the log and the index
/// beside it get its mode.
fn create_private(file: &Path) -> Result<(), StartError> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(file) {
        Ok(_) => Ok(()),
        // Not opened: closing it would end the locks that SQLite holds on it in this process.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if is_open_to_others(file) {
                warn!(
                    "Others can read {}, and the keys in it that sign access tokens: `chmod go-rwx` it",
                    file.display()
                );
            }
            Ok(())
        }
        Err(source) => Err(StartError::DataDirectory { directory: directory_of(file).to_owned(), source }),
    }
}

/// Whether the group or all users may read `file` in a directory that lets them in.
#[cfg(unix)]
fn is_open_to_others(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.permissions().mode());
    let (readable, entered) = (mode(file) & 0o044, mode(directory_of(file)) & 0o011);
    readable & (entered << 2) != 0
}

#[cfg(not(unix))]
fn is_open_to_others(_: &Path) -> bool {
    false
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs::{Permissions, metadata, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use rstest::rstest;

    use super::*;

    #[tokio::test]
    async fn the_database_file_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let file = directory.path().join("tombola.db");
        let mut config = Config::defaults().unwrap();
        config.database.url = format!("sqlite://{}", file.display()).into();
        let runtime = DatabaseRuntime::start().unwrap();
        let db = connect(&config, runtime.handle()).await.unwrap();
        db.migrate().await.unwrap();
        for name in ["tombola.db", "tombola.db-wal", "tombola.db-shm"] {
            let mode = metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        db.close().await;

        set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        create_private(&file).unwrap();
        assert_eq!(metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[rstest]
    #[case(0o755, 0o644, true)]
    #[case(0o750, 0o640, true)]
    #[case(0o755, 0o600, false)]
    #[case(0o700, 0o644, false)]
    #[case(0o750, 0o604, false)]
    fn a_file_is_open_to_whom_its_directory_lets_in(
        #[case] outer: u32,
        #[case] inner: u32,
        #[case] open: bool,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tombola.db");
        File::create(&file).unwrap();
        set_permissions(&file, Permissions::from_mode(inner)).unwrap();
        set_permissions(directory.path(), Permissions::from_mode(outer)).unwrap();
        assert_eq!(is_open_to_others(&file), open);
    }
}
