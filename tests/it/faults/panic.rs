//! F4, F5: a panic costs its own batch and nothing else; so does an answer that never arrives.

use super::{Rig, faults, number};
use crate::support::database::session;
use crate::support::ledger::{Crowd, Sale};
use crate::support::wire::{Wire, get};
use crate::support::{Engine, eventually};

faults! {
    sqlite: f04_a_panic_costs_one_batch, f04_tasks_that_panicked_go_on, f04_what_keeps_panicking_is_left_alone,
        f05_no_answer_arrives;
    postgres: f04_a_panic_costs_one_batch, f04_tasks_that_panicked_go_on, f05_no_answer_arrives;
    mariadb: f04_a_panic_costs_one_batch, f04_tasks_that_panicked_go_on, f05_no_answer_arrives;
}

async fn f04_a_panic_costs_one_batch(engine: Engine) {
    let rig = Rig::on(engine).await;
    let faults = "before_decide=panic@6,before_fence=panic@5,after_reply=panic@15";
    let launch = rig.launch.clone().with_faults(faults);
    let server = launch.start().await;
    let sale = Sale::open(&launch, 1000, None).await;
    let ledger = Crowd::rush(&sale, &[server.address], 24, 1100).finish().await;
    // In the actor's own code a panic ends the actor; in a transaction it is an unknown outcome.
    server.counts("tombola_actor_deaths_total", 2).await;
    server.counts("tombola_stock_ambiguous_commits_total", 1).await;
    rig.judge(&sale, &ledger).await.stands().without_errors();
}

/// The relay and a group panic: what was committed goes through them nevertheless.
async fn f04_tasks_that_panicked_go_on(engine: Engine) {
    let rig = Rig::on(engine).await;
    let launch = rig.launch.clone().with_faults("before_relaying=panic@3,before_taking_in=panic@1");
    let server = launch.start().await;
    let sale = Sale::open(&launch, 100, None).await;
    let ledger = Crowd::rush(&sale, &[server.address], 8, 110).finish().await;
    server.counts("tombola_task_deaths_total", 2).await;
    let database = session(&rig.database.url).await;
    let waiting =
        "SELECT (SELECT count(*) FROM outbox WHERE sent_at IS NULL) + (SELECT count(*) FROM queued_events)";
    eventually(async || number(&database, waiting).await == 0).await;
    assert!(server.counted("tombola_events_applied_total").await > 0, "nothing was consumed");
    database.close().await.unwrap();
    rig.judge(&sale, &ledger).await.stands().without_errors();
}

/// What the database answers never arrives: each batch is looked for, found, and answered.
async fn f05_no_answer_arrives(engine: Engine) {
    let rig = Rig::on(engine).await;
    let launch = rig.launch.clone().with_faults("after_send=error");
    let server = launch.start().await;
    let sale = Sale::open(&launch, 200, None).await;
    let ledger = Crowd::rush(&sale, &[server.address], 12, 220).finish().await;
    server.counts("tombola_stock_ambiguous_commits_total", 10).await;
    rig.judge(&sale, &ledger).await.stands().without_errors();
}

async fn f04_what_keeps_panicking_is_left_alone(engine: Engine) {
    let rig = Rig::on(engine).await;
    let mut server = rig.launch.clone().with_faults("before_decide=panic").start().await;
    let sale = Sale::open(&rig.launch, 300, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 8, 400);
    crowd.until_troubled(100).await;
    assert_eq!(
        server.counted("tombola_actor_deaths_total").await,
        3,
        "deaths until the activity is left alone"
    );
    let livez = Wire::default().ask(server.address, &get("/livez")).await.unwrap();
    assert_eq!(livez.status, 200);
    server.kill().await;
    let _server = rig.launch.start().await;
    let ledger = crowd.finish().await;
    rig.judge(&sale, &ledger).await.stands();
}
