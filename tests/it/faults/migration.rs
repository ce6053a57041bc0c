//! F31: the server dies while it brings the tables up to date.

use std::os::unix::process::ExitStatusExt;

use migrations::{Migrator, MigratorTrait};

use super::{Rig, faults, number, session};
use crate::support::Engine;
use crate::support::ledger::{Crowd, Sale};

faults! {
    sqlite: f31_killed_after_every_step, f31_taken_back;
    postgres: f31_killed_after_every_step, f31_taken_back;
    mariadb: f31_killed_after_every_step, f31_taken_back;
}

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
