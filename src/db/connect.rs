//! Opening the three databases with the settings our promises rest on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{self, Connection, Executor};
use sea_orm::{ConnectOptions, DatabaseConnection, DbBackend, DbErr, RuntimeErr};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use tokio::runtime::Handle;

use super::fault::is_pool_timeout;
use super::{DbFault, Pools};

/// How long a schema change waits for the rows of somebody else on MySQL and MariaDB, who cannot wait for ever.
const LONGEST_MIGRATION_LOCK: Duration = Duration::from_secs(3600);

/// Where the database is and how long to wait for it.
#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    target: Target,
    /// Connections in the pool (on SQLite: for reading; one more writes).
    pub connections: u32,
    /// How long a caller waits for any one piece of database work.
    pub deadline: Duration,
    /// How long the server lets one statement run; shorter than `deadline`.
    pub statement_timeout: Duration,
    /// How long a statement waits for a lock.
    pub lock_timeout: Duration,
}

/// One database; a URL that cannot be used does not get this far.
#[derive(Debug, Clone)]
enum Target {
    Sqlite(PathBuf),
    Postgres(SecretString),
    Mysql(SecretString),
}

/// The database URL cannot be used.
#[derive(Debug, Error)]
pub enum InvalidDatabaseUrl {
    #[error("an in-memory database would lose every sale; name a file, as in sqlite://data/tombola.db")]
    InMemory,
    #[error("starts with neither sqlite://, postgres:// nor mysql://")]
    UnknownScheme,
    #[error("cannot be read: {0}")]
    Malformed(String),
}

impl DatabaseSettings {
    /// Settings for `url` with the default waits.
    pub fn new(url: &SecretString) -> Result<Self, InvalidDatabaseUrl> {
        Ok(Self {
            target: Target::parse(url)?,
            connections: 10,
            deadline: Duration::from_secs(8),
            statement_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(3),
        })
    }

    pub(super) fn backend(&self) -> DbBackend {
        match self.target {
            Target::Sqlite(_) => DbBackend::Sqlite,
            Target::Postgres(_) => DbBackend::Postgres,
            Target::Mysql(_) => DbBackend::MySql,
        }
    }

    /// The file, if it is SQLite.
    pub fn sqlite_file(&self) -> Option<&Path> {
        match &self.target {
            Target::Sqlite(file) => Some(file),
            Target::Postgres(_) | Target::Mysql(_) => None,
        }
    }

    /// What to call the storage on a screen: no user, no password.
    pub fn describe(&self) -> String {
        match &self.target {
            Target::Sqlite(file) => format!("SQLite file {}", file.display()),
            Target::Postgres(url) => format!("PostgreSQL at {}", without_credentials(url)),
            Target::Mysql(url) => format!("MySQL or MariaDB at {}", without_credentials(url)),
        }
    }

    pub(super) async fn open(&self) -> Result<Pools, DbFault> {
        let stalled = Arc::new(AtomicBool::new(false));
        let write = self.connect(self.options(Use::Write, &stalled)).await?;
        let read = match self.target {
            Target::Sqlite(_) => sea_orm::Database::connect(self.options(Use::Read, &stalled)).await?,
            Target::Postgres(_) | Target::Mysql(_) => write.clone(),
        };
        Ok(Pools { read, write, stalled })
    }

    /// A pool with a connection. It tries for `lock_timeout`, because the database may be starting as well, and would
    /// then tell only that it did: one more attempt tells what stood in the way.
    async fn connect(&self, options: ConnectOptions) -> Result<DatabaseConnection, DbErr> {
        match sea_orm::Database::connect(options.clone()).await {
            Err(error) if is_pool_timeout(&error) => {}
            connected => return connected,
        }
        let attempt = tokio::time::timeout(self.lock_timeout, self.connect_once()).await;
        match attempt.unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))) {
            Ok(()) => sea_orm::Database::connect(options).await,
            Err(cause) => Err(DbErr::Conn(RuntimeErr::SqlxError(cause.into()))),
        }
    }

    async fn connect_once(&self) -> Result<(), sqlx::Error> {
        match &self.target {
            Target::Sqlite(_) => Ok(()),
            Target::Postgres(url) => {
                sqlx::postgres::PgConnection::connect(url.expose_secret()).await?.close().await
            }
            Target::Mysql(url) => {
                sqlx::mysql::MySqlConnection::connect(url.expose_secret()).await?.close().await
            }
        }
    }

    /// The one connection that changes the schema, without the limits of the others.
    pub(super) async fn open_for_migration(&self) -> Result<DatabaseConnection, DbFault> {
        let stalled = Arc::new(AtomicBool::new(false));
        Ok(sea_orm::Database::connect(self.options(Use::Migrate, &stalled)).await?)
    }

    /// Pools that connect on first use. Called with a lock held, hence without waiting.
    pub(super) fn open_lazily(&self, runtime: &Handle) -> Result<Pools, DbFault> {
        use futures_util::FutureExt;
        let stalled = Arc::new(AtomicBool::new(false));
        let mut options = self.options(Use::Write, &stalled);
        options.connect_lazy(true);
        let _entered = runtime.enter();
        let write: DatabaseConnection = sea_orm::Database::connect(options)
            .now_or_never()
            .ok_or(DbFault::Missing("a lazily connecting pool"))??;
        Ok(Pools { read: write.clone(), write, stalled })
    }

    fn options(&self, purpose: Use, stalled: &Arc<AtomicBool>) -> ConnectOptions {
        let url = match &self.target {
            Target::Sqlite(file) => format!("sqlite://{}", file.display()),
            Target::Postgres(url) | Target::Mysql(url) => url.expose_secret().to_owned(),
        };
        let mut options = ConnectOptions::new(url);
        options
            .max_connections(match (&self.target, purpose) {
                (Target::Sqlite(_), Use::Write) | (_, Use::Migrate) => 1,
                _ => self.connections,
            })
            .acquire_timeout(self.lock_timeout)
            .connect_timeout(self.lock_timeout)
            .test_before_acquire(false)
            .sqlx_logging(false);
        match self.target {
            Target::Sqlite(_) => self.sqlite(&mut options, purpose),
            Target::Postgres(_) => self.postgres(&mut options, purpose, stalled.clone()),
            Target::Mysql(_) => self.mysql(&mut options, purpose, stalled.clone()),
        }
        options
    }

    fn sqlite(&self, options: &mut ConnectOptions, purpose: Use) {
        let busy_timeout = self.lock_timeout;
        // A writer that goes away would come back without its page cache and its prepared statements.
        options.idle_timeout(None).max_lifetime(None);
        options.map_sqlx_sqlite_opts(move |options| {
            options
                .create_if_missing(purpose == Use::Write)
                .read_only(purpose == Use::Read)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true)
                .busy_timeout(busy_timeout)
                // A commit after which pages were split looks at the whole cache: larger ones made it slower.
                .pragma("cache_size", "-8192")
                .pragma("mmap_size", "0")
                // What a statement would undo is kept in memory, not in a temporary file for each batch.
                .pragma("temp_store", "memory")
                // The COMMIT that copies the log into the file makes everybody wait: rather shortly than rarely.
                .pragma("wal_autocheckpoint", "1000")
        });
        // A COMMIT that failed on a full disk was rolled back by SQLite itself, but not for the driver, which would
        // nest everything that follows and never commit it. Such a connection is closed and opened anew.
        options.map_sqlx_sqlite_before_acquire(|connection, _| {
            let sound = !connection.is_in_transaction();
            Box::pin(async move { Ok(sound) })
        });
    }

    fn postgres(&self, options: &mut ConnectOptions, purpose: Use, stalled: Arc<AtomicBool>) {
        // 0 is no limit, whatever the database or the user was given.
        let limit = |timeout: Duration| match purpose {
            Use::Migrate => "0".to_owned(),
            Use::Read | Use::Write => timeout.as_millis().to_string(),
        };
        let session = [
            ("statement_timeout", limit(self.statement_timeout)),
            ("lock_timeout", limit(self.lock_timeout)),
            // Whoever stalls inside a transaction loses it, and its locks (R2).
            ("idle_in_transaction_session_timeout", limit(self.statement_timeout)),
            // A sale fills an empty table faster than statistics are gathered, and a plan made for the empty table stays:
            // without this, repeats were looked up by reading every kept answer.
            ("enable_seqscan", "off".to_owned()),
            ("enable_hashjoin", "off".to_owned()),
            ("enable_mergejoin", "off".to_owned()),
            // What has to read a whole table is dear enough now to be compiled first, for a tenth of a second.
            ("jit", "off".to_owned()),
            ("default_transaction_isolation", "read committed".to_owned()),
            // A ROLLBACK without a transaction, as below, is worth a warning to PostgreSQL, each time.
            ("client_min_messages", "error".to_owned()),
        ];
        options.set_application_name("tombola");
        options.map_sqlx_postgres_opts(move |options| options.options(session.clone()));
        if purpose == Use::Migrate {
            return keep_one(options);
        }
        // A connection whose BEGIN was cancelled would hide the next borrower's writes (R2): end what is open.
        let patience = self.idle_answer_timeout();
        options.map_sqlx_postgres_before_acquire(move |connection, _| {
            let stalled = stalled.clone();
            Box::pin(async move { answers_in(patience, connection.execute("ROLLBACK"), &stalled).await })
        });
    }

    fn mysql(&self, options: &mut ConnectOptions, purpose: Use, stalled: Arc<AtomicBool>) {
        let (lock_timeout_s, statement_timeout_s) = match purpose {
            // 0 is no limit to a statement, and no patience with a lock.
            Use::Migrate => (LONGEST_MIGRATION_LOCK.as_secs(), 0),
            Use::Read | Use::Write => {
                (self.lock_timeout.as_secs().max(1), self.statement_timeout.as_secs().max(1))
            }
        };
        options.map_sqlx_mysql_pool_opts(move |pool| {
            pool.after_connect(move |connection, _| {
                Box::pin(async move {
                    connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
                    let lock = format!("SET SESSION innodb_lock_wait_timeout = {lock_timeout_s}");
                    connection.execute(sqlx::AssertSqlSafe(lock)).await?;
                    // Only MariaDB can limit writing statements and idle transactions; MySQL has the client's deadline.
                    let version: (String,) =
                        sqlx::query_as("SELECT VERSION()").fetch_one(&mut *connection).await?;
                    if version.0.contains("MariaDB") {
                        let limits = format!(
                            "SET SESSION max_statement_time = {statement_timeout_s}, \
                             SESSION idle_transaction_timeout = {statement_timeout_s}"
                        );
                        connection.execute(sqlx::AssertSqlSafe(limits)).await?;
                    }
                    Ok(())
                })
            })
        });
        if purpose == Use::Migrate {
            return keep_one(options);
        }
        let patience = self.idle_answer_timeout();
        options.map_sqlx_mysql_before_acquire(move |connection, _| {
            let stalled = stalled.clone();
            Box::pin(async move { answers_in(patience, connection.execute("ROLLBACK"), &stalled).await })
        });
    }

    /// How long an idle connection may take to answer; a caller waits `lock_timeout` for one that does.
    fn idle_answer_timeout(&self) -> Duration {
        self.lock_timeout / 3
    }
}

/// No connection in the place of the first one: it would not have its lock.
fn keep_one(options: &mut ConnectOptions) {
    options.idle_timeout(None).max_lifetime(None);
}

/// Whether a connection answers in time. If not, its neighbours will hardly do better, and each would cost a caller
/// this wait: the pool is marked as stalled, to be replaced as a whole.
async fn answers_in<T>(
    patience: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
    stalled: &AtomicBool,
) -> Result<bool, sqlx::Error> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer.map(|_| true),
        Err(_) => {
            stalled.store(true, Ordering::Release);
            Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
        }
    }
}

/// What a pool is for; only SQLite tells reading from writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
    Migrate,
}

impl Target {
    fn parse(url: &SecretString) -> Result<Self, InvalidDatabaseUrl> {
        let text = url.expose_secret();
        let scheme = text.split(':').next().unwrap_or_default();
        match scheme {
            "sqlite" => {
                let file = text.trim_start_matches("sqlite:").trim_start_matches("//");
                // What sqlx and sea-orm users write out of habit; here a missing file is always created.
                let file = file.strip_suffix("?mode=rwc").unwrap_or(file);
                if file.contains(['?', '%']) {
                    return Err(InvalidDatabaseUrl::Malformed(
                        "a file name without parameters is expected".into(),
                    ));
                }
                if file.is_empty() || file == ":memory:" {
                    return Err(InvalidDatabaseUrl::InMemory);
                }
                Ok(Self::Sqlite(PathBuf::from(file)))
            }
            "postgres" | "postgresql" => match text.parse::<sqlx::postgres::PgConnectOptions>() {
                Ok(_) => Ok(Self::Postgres(url.clone())),
                Err(error) => Err(InvalidDatabaseUrl::Malformed(error.to_string())),
            },
            "mysql" | "mariadb" => match text.parse::<sqlx::mysql::MySqlConnectOptions>() {
                Ok(_) => Ok(Self::Mysql(SecretString::from(text.replacen("mariadb:", "mysql:", 1)))),
                Err(error) => Err(InvalidDatabaseUrl::Malformed(error.to_string())),
            },
            _ => Err(InvalidDatabaseUrl::UnknownScheme),
        }
    }
}

/// `postgres://user:secret@host/db?…` as `host/db`.
fn without_credentials(url: &SecretString) -> String {
    let text = url.expose_secret();
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    // What follows the path may hold an `@` of its own.
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{host}{path}")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use sea_orm::{ConnectionTrait, Statement};

    use super::*;
    use crate::db::testing::{Engine, fresh_on};

    #[rstest]
    #[case("postgres://ann:pw@db.example:5432/shop", "PostgreSQL at db.example:5432/shop")]
    #[case("postgres://ann:p@w@db.example/shop", "PostgreSQL at db.example/shop")]
    #[case("postgres://db.example/shop?user=ann&password=p@w", "PostgreSQL at db.example/shop")]
    #[case("mysql://ann:pw@db.example", "MySQL or MariaDB at db.example")]
    #[case("sqlite://data/tombola.db", "SQLite file data/tombola.db")]
    fn a_database_is_described_without_credentials(#[case] url: &str, #[case] described: &str) {
        assert_eq!(DatabaseSettings::new(&url.to_owned().into()).unwrap().describe(), described);
    }

    #[rstest]
    #[case("postgres://ann:hidden@127.0.0.1:1/shop")]
    #[case("mysql://ann:hidden@127.0.0.1:1/shop")]
    #[tokio::test]
    async fn why_there_is_no_connection_is_told(#[case] url: &str) {
        let mut settings = DatabaseSettings::new(&url.to_owned().into()).unwrap();
        settings.lock_timeout = Duration::from_millis(100);
        let fault = settings.open().await.unwrap_err().to_string();
        assert!(fault.contains("refused") && !fault.contains("hidden"), "{fault}");
    }

    #[tokio::test]
    async fn postgres_does_not_compile_what_reads_a_whole_table() {
        let (_place, db) = fresh_on(Engine::Postgres).await;
        let explain = "EXPLAIN ANALYZE SELECT COUNT(*), MIN(queued_at) FROM queued_events";
        let explain = Statement::from_string(DbBackend::Postgres, explain);
        let plan = db
            .read(|connection| async move { connection.query_all_raw(explain).await.map_err(DbFault::from) })
            .await
            .unwrap();
        let lines: Vec<String> = plan.iter().map(|row| row.try_get_by_index(0).unwrap()).collect();
        assert!(!lines.iter().any(|line| line.contains("JIT")), "{lines:#?}");
    }
}
