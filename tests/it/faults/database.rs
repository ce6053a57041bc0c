//! F5–F8: the database loses its answer, restarts, cuts its connections, or falls silent.

use std::time::{Duration, Instant};

use sea_orm::ConnectionTrait;

use super::instance::{Instance, address, through};
use super::{Rig, faults, judge, number, session};
use crate::support::Engine;
use crate::support::ledger::{Crowd, Sale};
use crate::support::process::{Launch, PATIENCE, Signal, send};
use crate::support::proxy::Proxy;

faults! {
    postgres: f05_commit_obeyed_and_its_answer_lost, f05_commits_lost_on_the_way, f06_restarted,
        f07_sessions_ended, f07_connections_cut, f08_black_hole, f08_one_backend_stopped;
    mariadb: f05_commits_lost_on_the_way, f06_restarted, f07_sessions_ended, f07_connections_cut, f08_black_hole;
}

/// How long takes may go on failing once the database is back; RELIABILITY I16, doubled for a debug build.
const RECOVERY: Duration = Duration::from_secs(10);

/// Commits become durable and then wait for a standby that does not exist; ending their sessions loses the answers.
async fn f05_commit_obeyed_and_its_answer_lost(engine: Engine) {
    let instance = Instance::start(engine).await;
    let launch = Launch::on(&instance.url());
    let server = launch.start().await;
    let sale = Sale::open(&launch, 6000, None).await.without_keys();
    let crowd = Crowd::rush(&sale, &[server.address], 24, 6100);
    let administrator = session(&instance.administrator_url()).await;
    administrator.execute_unprepared("SET synchronous_commit = local").await.unwrap();
    for round in 1..=3 {
        let before = crowd.taken().len();
        crowd.until_taken(before + 30).await;
        administrator
            .execute_unprepared("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            .await
            .unwrap();
        administrator.execute_unprepared("SELECT pg_reload_conf()").await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        let end =
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        while server.counted("tombola_stock_ambiguous_commits_total").await < round {
            number(&administrator, end).await;
            assert!(Instant::now() < deadline, "no commit was ambiguous");
        }
        administrator.execute_unprepared("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
        administrator.execute_unprepared("SELECT pg_reload_conf()").await.unwrap();
        // Those that began to wait before the setting was gone.
        let deadline = Instant::now() + Duration::from_millis(300);
        while Instant::now() < deadline {
            number(&administrator, end).await;
        }
    }
    let ledger = crowd.finish().await;
    judge(&instance.url(), &sale, &ledger).await.stands().without_errors();
}

async fn f05_commits_lost_on_the_way(engine: Engine) {
    let rig = Rig::on(engine).await;
    let proxy = Proxy::to(address(&rig.database.url)).await;
    let launch = rig.launch.clone().with("DATABASE__URL", through(&rig.database.url, proxy.address));
    let server = launch.start().await;
    let sale = Sale::open(&launch, 1500, None).await.without_keys();
    let crowd = Crowd::rush(&sale, &[server.address], 24, 1600);
    // A batch is likely the first to be hit, in each of the three ways; its resolution is next.
    for count in [3, 4, 5, 3, 4, 5] {
        let before = crowd.taken().len();
        crowd.until_taken(before + 100).await;
        proxy.lose_commits(engine, count);
    }
    server.counts("tombola_stock_ambiguous_commits_total", 4).await;
    let ledger = crowd.finish().await;
    let lost = proxy.lost_commits();
    assert!(lost.iter().all(|count| *count >= 2), "without an answer, unsent, late: {lost:?}");
    rig.judge(&sale, &ledger).await.stands().without_errors();
}

async fn f06_restarted(engine: Engine) {
    let instance = Instance::start(engine).await;
    let launch = Launch::on(&instance.url());
    let server = launch.start().await;
    let sale = Sale::open(&launch, 2000, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 24, 2100);
    for _ in 0..2 {
        let before = crowd.taken().len();
        crowd.until_taken(before + 100).await;
        instance.crash_and_restart();
        let back = Instant::now();
        let before = crowd.taken().len();
        crowd.until_taken(before + 50).await;
        assert!(back.elapsed() < RECOVERY, "back in business after {:?}", back.elapsed());
    }
    let ledger = crowd.finish().await;
    judge(&instance.url(), &sale, &ledger).await.stands().without_errors();
}

async fn f07_sessions_ended(engine: Engine) {
    let rig = Rig::on(engine).await;
    let server = rig.launch.start().await;
    let sale = Sale::open(&rig.launch, 2000, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 24, 2100);
    let administrator = session(&rig.database.url).await;
    let mut ended = 0;
    for _ in 0..5 {
        let before = crowd.taken().len();
        crowd.until_taken(before + 50).await;
        ended += end_sessions(engine, &administrator).await;
    }
    assert!(ended > 5, "sessions ended: {ended}");
    let ledger = crowd.finish().await;
    administrator.close().await.unwrap();
    rig.judge(&sale, &ledger).await.stands().without_errors();
}

/// Ends every other session on the database; answers how many there were.
async fn end_sessions(engine: Engine, administrator: &sea_orm::DatabaseConnection) -> i64 {
    if engine == Engine::Postgres {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        return number(administrator, end).await;
    }
    let others = "SELECT CAST(id AS SIGNED) FROM information_schema.processlist \
                  WHERE db = DATABASE() AND id <> CONNECTION_ID()";
    let others = sea_orm::Statement::from_string(administrator.get_database_backend(), others);
    let mut ended = 0;
    for row in administrator.query_all_raw(others).await.unwrap() {
        let id: i64 = row.try_get_by_index(0).unwrap();
        // It may have ended by itself meanwhile.
        ended += i64::from(administrator.execute_unprepared(&format!("KILL {id}")).await.is_ok());
    }
    ended
}

async fn f07_connections_cut(engine: Engine) {
    let rig = Rig::on(engine).await;
    let proxy = Proxy::to(address(&rig.database.url)).await;
    // Slow answers: most cuts meet a transaction under way.
    proxy.delay(Duration::from_millis(2));
    let launch = rig.launch.clone().with("DATABASE__URL", through(&rig.database.url, proxy.address));
    let server = launch.start().await;
    let sale = Sale::open(&launch, 1000, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 24, 1100);
    for _ in 0..8 {
        let before = crowd.taken().len();
        crowd.until_taken(before + 20).await;
        proxy.cut();
    }
    let ledger = crowd.finish().await;
    assert!(!ledger.unknown.is_empty(), "no cut was noticed");
    rig.judge(&sale, &ledger).await.stands().without_errors();
}

async fn f08_black_hole(engine: Engine) {
    let rig = Rig::on(engine).await;
    let proxy = Proxy::to(address(&rig.database.url)).await;
    let url = through(&rig.database.url, proxy.address);
    let launch = impatient(&rig.launch).with("DATABASE__URL", url);
    let server = launch.start().await;
    let sale = Sale::open(&launch, 1500, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 24, 1600);
    crowd.until_taken(100).await;
    proxy.fall_silent();
    server.counts("tombola_database_pools_replaced_total", 1).await;
    crowd.until_troubled(20).await;
    proxy.recover();
    let healed = Instant::now();
    let before = crowd.taken().len();
    crowd.until_taken(before + 50).await;
    assert!(healed.elapsed() < RECOVERY, "back in business after {:?}", healed.elapsed());
    let ledger = crowd.finish().await;
    rig.judge(&sale, &ledger).await.stands().without_errors();
}

async fn f08_one_backend_stopped(engine: Engine) {
    let instance = Instance::start(engine).await;
    let launch = impatient(&Launch::on(&instance.url())).with("DATABASE__CONNECTIONS", 4);
    let server = launch.start().await;
    // More than a crowd can take before a stopped backend is noticed.
    let sale = Sale::open(&launch, 200_000, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 24, 200_000);
    let administrator = session(&instance.administrator_url()).await;
    // Connections of the pool before are about to go: stopping one of them would trouble nobody.
    let mut newer_than = 0;
    for replaced in 1..=2 {
        let before = crowd.taken().len();
        crowd.until_taken(before + 50).await;
        const STARTED: &str = "(extract(epoch FROM backend_start) * 1000000)::bigint";
        let of_server = "FROM pg_stat_activity WHERE datname = 'tombola' AND backend_type = 'client backend'";
        let busiest = format!(
            "SELECT pid::bigint {of_server} AND {STARTED} > {newer_than} \
             ORDER BY state = 'active' DESC, state_change DESC LIMIT 1"
        );
        let deadline = Instant::now() + PATIENCE;
        let backend = loop {
            let backend = u32::try_from(number(&administrator, &busiest).await).unwrap();
            let newest = number(&administrator, &format!("SELECT max({STARTED}) {of_server}")).await;
            send(backend, Signal::Stop);
            let noticed = async || server.counted("tombola_database_pools_replaced_total").await >= replaced;
            let look_until = Instant::now() + Duration::from_secs(8);
            while !noticed().await && Instant::now() < look_until {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if noticed().await {
                newer_than = newest;
                break backend;
            }
            // Nobody needed that one: it was on its way out of the pool. Another, then.
            send(backend, Signal::Continue);
            assert!(Instant::now() < deadline, "no stopped backend was ever noticed");
        };
        // It may hold the lock of the block that is being sold: nobody can end that but itself.
        send(backend, Signal::Continue);
        let healed = Instant::now();
        let before = crowd.taken().len();
        crowd.until_taken(before + 50).await;
        assert!(healed.elapsed() < RECOVERY, "back in business after {:?}", healed.elapsed());
    }
    crowd.close();
    let ledger = crowd.finish().await;
    judge(&instance.url(), &sale, &ledger).await.stands().without_errors();
}

/// Deadlines so short that a test can wait for them.
fn impatient(launch: &Launch) -> Launch {
    let launch = launch.clone().with("DATABASE__DEADLINE_MS", 2000);
    launch.with("DATABASE__STATEMENT_TIMEOUT_MS", 1500).with("DATABASE__LOCK_TIMEOUT_MS", 1000)
}
