//! What the server survives: crashes, lost commits, cut connections, stalled peers, full disks, brokers in trouble
//! (RELIABILITY.md, part B).
//!
//! Each fault strikes a real server process, its database or its broker, while a crowd takes; afterwards the ledger of what the
//! crowd was told is held against the database. A fault that was never seen fails its test as well.

mod broker;
mod clock;
mod crash;
mod crowd;
mod database;
mod delivery;
mod disk;
mod instance;
mod lock;
mod migration;
mod nodes;
mod orders;
mod panic;

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection};

use crate::support::Engine;
use crate::support::database::{TestDatabase, session};
use crate::support::ledger::{Ledger, Sale, Verdict};
use crate::support::process::Launch;

/// How long a fault may take before something must be stuck; each seed beyond the usual ones adds to it.
const LONGEST_FAULT: Duration = Duration::from_secs(240);

/// Faults load the whole machine: one at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Makes each named fault a test on each of the databases, as in `faults::crash::postgres::f01_killed_at_random`.
macro_rules! faults {
    ($($engine:ident: $($fault:ident),+;)+) => {
        $($crate::faults::faults!(@ $engine $($fault)+);)+
    };
    (@ sqlite $($fault:ident)+) => {
        mod sqlite { $(#[test] fn $fault() { $crate::faults::survive($crate::support::Engine::Sqlite, super::$fault); })+ }
    };
    (@ postgres $($fault:ident)+) => {
        mod postgres { $(#[test] fn $fault() { $crate::faults::survive($crate::support::Engine::Postgres, super::$fault); })+ }
    };
    (@ mariadb $($fault:ident)+) => {
        mod mariadb { $(#[test] fn $fault() { $crate::faults::survive($crate::support::Engine::MariaDb, super::$fault); })+ }
    };
}
pub(crate) use faults;

/// Runs one fault test, alone.
fn survive(engine: Engine, fault: impl AsyncFnOnce(Engine)) {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    threads.block_on(async {
        let _alone = ALONE.lock().await;
        let longest = LONGEST_FAULT + Duration::from_secs(20) * u32::try_from(seeds(0)).unwrap();
        tokio::time::timeout(longest, fault(engine)).await.expect("the fault comes to an end");
    });
}

/// How many random moments a fault strikes at: `usual`, unless `TOMBOLA_FAULT_SEEDS` asks for more, as at night.
fn seeds(usual: usize) -> usize {
    let asked = std::env::var("TOMBOLA_FAULT_SEEDS").ok();
    asked.map_or(usual, |seeds| seeds.parse().expect("TOMBOLA_FAULT_SEEDS is a number"))
}

/// A database on the shared instances and how to start servers on it.
struct Rig {
    database: TestDatabase,
    launch: Launch,
}

impl Rig {
    async fn on(engine: Engine) -> Self {
        let database = TestDatabase::create(engine).await;
        let launch = Launch::on(&database.url);
        Self { database, launch }
    }

    /// Holds the ledger against the database and removes that.
    async fn judge(self, sale: &Sale, ledger: &Ledger) -> Verdict {
        let database = self.database.connect().await;
        let verdict = ledger.judge(sale, &database).await;
        database.close().await.unwrap();
        self.database.remove().await;
        verdict
    }
}

/// Holds the ledger against the database at `url`.
async fn judge(url: &str, sale: &Sale, ledger: &Ledger) -> Verdict {
    let database = session(url).await;
    let verdict = ledger.judge(sale, &database).await;
    database.close().await.unwrap();
    verdict
}

/// The one number a query answers with.
async fn number(session: &DatabaseConnection, sql: &str) -> i64 {
    let query = sea_orm::Statement::from_string(session.get_database_backend(), sql);
    let row = session.query_one_raw(query).await.unwrap().unwrap();
    row.try_get_by_index::<i64>(0).unwrap()
}
