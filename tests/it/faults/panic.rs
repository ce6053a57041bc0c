//! F4, F5: a panic costs its own batch and nothing else; so does an answer that never arrives.

use super::{Rig, faults};
use crate::support::Engine;
use crate::support::ledger::{Crowd, Sale};
use crate::support::wire::{Wire, get};

faults! {
    sqlite: f04_a_panic_costs_one_batch, f04_what_keeps_panicking_is_left_alone, f05_no_answer_arrives;
    postgres: f04_a_panic_costs_one_batch, f05_no_answer_arrives;
    mariadb: f04_a_panic_costs_one_batch, f05_no_answer_arrives;
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
