//! F9, F13: somebody else holds the lock, or the process stands still while its files are copied.

use std::path::Path;
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, EntityTrait};

use super::{Rig, faults, number, session};
use crate::support::Engine;
use crate::support::ledger::{Crowd, Sale};
use crate::support::process::Signal;

faults! {
    sqlite: f13_locked_by_another_process, f13_copied_while_it_stands_still;
    postgres: f09_table_locked;
    mariadb: f09_table_locked;
}

/// Longer than a statement may wait for a lock, and than it may run.
const HELD: Duration = Duration::from_secs(7);

async fn f09_table_locked(engine: Engine) {
    let lock = match engine {
        Engine::MariaDb => &["LOCK TABLES take WRITE"][..],
        _ => &["BEGIN", "LOCK TABLE take IN ACCESS EXCLUSIVE MODE"],
    };
    let unlock = if engine == Engine::MariaDb { "UNLOCK TABLES" } else { "ROLLBACK" };
    a_lock_is_held(engine, lock, unlock).await;
}

async fn f13_locked_by_another_process(engine: Engine) {
    a_lock_is_held(engine, &["BEGIN IMMEDIATE"], "ROLLBACK").await;
}

async fn a_lock_is_held(engine: Engine, lock: &[&str], unlock: &str) {
    let rig = Rig::on(engine).await;
    let server = rig.launch.start().await;
    let sale = Sale::open(&rig.launch, 1000, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 24, 1100);
    crowd.until_taken(100).await;
    let holder = session(&rig.database.url).await;
    for statement in lock {
        holder.execute_unprepared(statement).await.unwrap();
    }
    let held = Instant::now();
    let before = crowd.taken().len();
    crowd.until_troubled(24).await;
    tokio::time::sleep(HELD.saturating_sub(held.elapsed())).await;
    let meanwhile = crowd.taken().len() - before;
    assert!(meanwhile <= 24, "{meanwhile} takes in spite of the lock");
    holder.execute_unprepared(unlock).await.unwrap();
    holder.close().await.unwrap();
    let ledger = crowd.finish().await;
    rig.judge(&sale, &ledger).await.stands().without_errors();
}

async fn f13_copied_while_it_stands_still(engine: Engine) {
    let rig = Rig::on(engine).await;
    let server = rig.launch.start().await;
    let sale = Sale::open(&rig.launch, 2000, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 24, 2100);
    let copies = tempfile::tempdir().unwrap();
    for round in 1..=5 {
        let before = crowd.taken().len();
        crowd.until_taken(before + 100).await;
        server.signal(Signal::Stop);
        let told = crowd.taken();
        let copy = copies.path().join(format!("{round}.db"));
        copy_database(rig.database.url.trim_start_matches("sqlite://"), &copy);
        server.signal(Signal::Continue);

        let copy = session(&format!("sqlite://{}", copy.display())).await;
        check_integrity(&copy).await;
        let kept = entities::take::Entity::find().all(&copy).await.unwrap();
        let kept: std::collections::HashSet<i64> = kept.iter().map(|take| take.id).collect();
        let missing = told.iter().filter(|take| !kept.contains(take)).count();
        assert_eq!(missing, 0, "answers that the copy does not know, of {}", told.len());
        copy.close().await.unwrap();
    }
    let ledger = crowd.finish().await;
    rig.judge(&sale, &ledger).await.stands();
}

/// The database as a power cut would leave it: without the shared memory beside it.
fn copy_database(from: &str, to: &Path) {
    std::fs::copy(from, to).unwrap();
    std::fs::copy(format!("{from}-wal"), format!("{}-wal", to.display())).unwrap();
}

/// Fails unless SQLite finds its file sound.
pub(super) async fn check_integrity(database: &sea_orm::DatabaseConnection) {
    let sound = "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'";
    assert_eq!(number(database, sound).await, 1, "PRAGMA integrity_check");
}
