//! F31: the server dies while it brings the tables up to date, several do so at once, or somebody is in the way.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use migrations::{Migrator, MigratorTrait};
use sea_orm::ConnectionTrait;

use super::{Rig, faults, number, session};
use crate::support::Engine;
use crate::support::ledger::{Crowd, Sale};

faults! {
    sqlite: f31_killed_after_every_step, f31_migrated_by_several, f31_migrated_behind_a_lock,
        f31_taken_back;
    postgres: f31_killed_after_every_step, f31_migrated_by_several, f31_migrated_behind_a_lock,
        f31_taken_back;
    mariadb: f31_killed_after_every_step, f31_migrated_by_several, f31_migrated_behind_a_lock,
        f31_taken_back;
}

/// Longer than a statement may wait for a lock, and than it may run.
const HELD: Duration = Duration::from_secs(7);

/// Takes one schema change back.
const UNDO: &[&str] = &[
    "ALTER TABLE points_entry DROP COLUMN reason",
    "ALTER TABLE points_entry DROP COLUMN made_by",
    "ALTER TABLE goods DROP COLUMN store_id",
    "DELETE FROM seaql_migrations WHERE version = 'm20261121_000016_points_and_stores'",
];

async fn f31_killed_after_every_step(engine: Engine) {
    let undisturbed = Rig::on(engine).await;
    assert!(undisturbed.launch.run(&["migrate"]).status.success());
    let whole = size(engine, &undisturbed.database.url).await;
    undisturbed.database.remove().await;

    let rig = Rig::on(engine).await;
    let (mut deaths, mut pass, mut before) = (0, 1, 0);
    loop {
        let mut server = rig.launch.clone().with_faults(&format!("after_migration_step=kill@{pass}")).spawn();
        if server.is_ready_in_time().await {
            break;
        }
        let end = server.ended().await;
        assert_eq!(end.signal(), Some(9), "pass {pass}: {end}");
        deaths += 1;
        // Where the dead server's steps stand, the next one dies after its first; elsewhere it comes one step further.
        let reached = size(engine, &rig.database.url).await;
        pass = if reached == before { pass + 1 } else { 1 };
        before = reached;
    }
    assert!(deaths > 60, "{deaths} deaths");
    assert_eq!(size(engine, &rig.database.url).await, whole);
    sells(rig).await;
}

async fn f31_migrated_by_several(engine: Engine) {
    let rig = Rig::on(engine).await;
    // Long enough for all of them to arrive.
    let launch = rig.launch.clone().with_faults("after_migration_step=sleep:60");
    let migrating: Vec<_> = (0..4)
        .map(|_| {
            let launch = launch.clone();
            tokio::task::spawn_blocking(move || launch.run(&["migrate"]))
        })
        .collect();
    let mut waited = 0;
    for process in migrating {
        let output = process.await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        waited += usize::from(said.contains("tables up to date"));
    }
    assert!(waited > 0, "nobody had to wait");
    sells(rig).await;
}

/// A step that waits, or runs, longer than any statement may otherwise.
async fn f31_migrated_behind_a_lock(engine: Engine) {
    let rig = Rig::on(engine).await;
    assert!(rig.launch.run(&["migrate"]).status.success());
    let meddler = session(&rig.database.url).await;
    for statement in UNDO {
        meddler.execute_unprepared(statement).await.unwrap();
    }
    let begin = if engine == Engine::Sqlite { "BEGIN IMMEDIATE" } else { "BEGIN" };
    for statement in [begin, "SELECT id FROM goods"] {
        meddler.execute_unprepared(statement).await.unwrap();
    }
    let launch = rig.launch.clone();
    let started = Instant::now();
    let migrating = tokio::task::spawn_blocking(move || launch.run(&["migrate"]));
    tokio::time::sleep(HELD).await;
    assert!(!migrating.is_finished(), "{:?}", migrating.await);
    meddler.execute_unprepared("ROLLBACK").await.unwrap();
    meddler.close().await.unwrap();
    let output = migrating.await.unwrap();
    assert!(output.status.success(), "after {:?}: {output:?}", started.elapsed());
    sells(rig).await;
}

async fn f31_taken_back(engine: Engine) {
    let rig = Rig::on(engine).await;
    assert!(rig.launch.run(&["migrate"]).status.success());
    let whole = size(engine, &rig.database.url).await;
    let database = session(&rig.database.url).await;
    Migrator::down(&database, None).await.unwrap();
    database.close().await.unwrap();
    assert!(size(engine, &rig.database.url).await < whole / 10);
    assert!(rig.launch.run(&["migrate"]).status.success());
    assert_eq!(size(engine, &rig.database.url).await, whole);
    rig.database.remove().await;
}

async fn sells(rig: Rig) {
    let server = rig.launch.start().await;
    let sale = Sale::open(&rig.launch, 100, None).await;
    let ledger = Crowd::rush(&sale, &[server.address], 8, 120).finish().await;
    rig.judge(&sale, &ledger).await.stands();
}

/// How much of a schema is there: it grows with each step that adds a table, a column or an index.
async fn size(engine: Engine, url: &str) -> i64 {
    let database = session(url).await;
    let counted = match engine {
        Engine::Sqlite => "SELECT COALESCE(SUM(LENGTH(sql)), 0) FROM sqlite_master",
        Engine::Postgres => {
            "SELECT (SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = 'public') \
             + (SELECT COUNT(*) FROM pg_indexes WHERE schemaname = 'public')"
        }
        Engine::MariaDb => {
            "SELECT (SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = DATABASE()) \
             + (SELECT COUNT(*) FROM information_schema.statistics WHERE table_schema = DATABASE())"
        }
    };
    let size = number(&database, counted).await;
    database.close().await.unwrap();
    size
}
