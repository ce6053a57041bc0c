//! F2, F30: two servers sell one activity, and one of them falls asleep.

use std::time::{Duration, Instant};

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
    // Alone at first, it takes the whole stock to sell.
    let sleeper = rig.launch.start().await;
    let sale = Sale::open(&rig.launch, 3000, None).await;
    let ledger = Crowd::rush(&sale, &[sleeper.address], 8, 200).finish().await;
    let launch = Launch::on(&rig.database.url);
    let awake = launch.start().await;

    // A nap: the other takes half of its tokens, the rest is unsold. Only the epoch can tell that the block changed.
    sleeper.signal(Signal::Stop);
    let ledger = Crowd::rush_again(&sale, &[awake.address], 8, 240, ledger).finish().await;
    sleeper.signal(Signal::Continue);
    let ledger = Crowd::rush_again(&sale, &[sleeper.address], 8, 280, ledger).finish().await;
    assert!(sleeper.counted("tombola_stock_stale_batches_total").await > 0, "no stale epoch was refused");

    // A night, from the middle of a sale until everything is sold.
    let crowd = Crowd::rush_again(&sale, &[sleeper.address, awake.address], 24, 3100, ledger);
    crowd.until_taken(800).await;
    sleeper.signal(Signal::Stop);
    let database = session(&rig.database.url).await;
    let sold = format!("SELECT count(live_token) FROM take WHERE activity_id = {}", sale.activity);
    let deadline = Instant::now() + PATIENCE;
    while number(&database, &sold).await < 3000 {
        assert!(Instant::now() < deadline, "stock is stranded on a node that sleeps");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    database.close().await.unwrap();
    sleeper.signal(Signal::Continue);
    Crowd::rush(&sale.under("late"), &[sleeper.address], 4, 20).finish().await;
    let ledger = crowd.finish().await;
    rig.judge(&sale, &ledger).await.stands().without_errors();
}
