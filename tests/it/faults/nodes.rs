//! F2, F30: two servers sell one activity, and one of them falls asleep.

use std::time::Instant;

use super::{Rig, faults, number, session};
use crate::support::Engine;
use crate::support::ledger::{Crowd, Sale};
use crate::support::process::{Launch, PATIENCE, Signal};

faults! {
    postgres: f30_one_of_two_nodes_sleeps;
    mariadb: f30_one_of_two_nodes_sleeps;
}

/// Whatever the sleeper held is sold by the other; when it wakes, what it still believes commits nothing.
async fn f30_one_of_two_nodes_sleeps(engine: Engine) {
    let rig = Rig::on(engine).await;
    let (awake, launch) = (rig.launch.start().await, Launch::on(&rig.database.url));
    let sleeper = launch.start().await;
    let sale = Sale::open(&rig.launch, 3000, None).await;
    let crowd = Crowd::rush(&sale, &[sleeper.address, awake.address], 24, 3100);
    crowd.until_taken(500).await;
    sleeper.signal(Signal::Stop);
    let database = session(&rig.database.url).await;
    let deadline = Instant::now() + PATIENCE;
    let sold = format!("SELECT count(live_token) FROM take WHERE activity_id = {}", sale.activity);
    while number(&database, &sold).await < 3000 {
        assert!(Instant::now() < deadline, "stock is stranded on a node that sleeps");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    database.close().await.unwrap();
    sleeper.signal(Signal::Continue);
    // It thinks that it still has tokens to sell.
    Crowd::rush(&sale.under("late"), &[sleeper.address], 4, 20).finish().await;
    sleeper.counts("tombola_stock_stale_batches_total", 1).await;
    let ledger = crowd.finish().await;
    rig.judge(&sale, &ledger).await.stands().without_errors();
}
