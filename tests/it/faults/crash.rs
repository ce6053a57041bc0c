//! F1, F3: the server dies in the middle of a sale, or is told to stop.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use super::{Rig, faults, seeds};
use crate::support::Engine;
use crate::support::ledger::{Crowd, Sale};
use crate::support::process::Signal;

faults! {
    sqlite: f01_killed_at_every_point, f01_killed_at_random, f03_told_to_stop;
    postgres: f01_killed_at_every_point, f01_killed_at_random, f03_told_to_stop;
    mariadb: f01_killed_at_every_point, f01_killed_at_random, f03_told_to_stop;
}

/// Each point on its first pass and a later one. A server passes `before_begin`, `before_commit` and `after_commit`
/// while it starts as well; at `after_send` the database has one to work on.
const KILLS: &[&str] = &[
    "before_begin=kill@1",
    "before_begin=kill@40",
    "before_decide=kill@1",
    "before_decide=kill@9",
    "before_fence=kill@1",
    "before_fence=kill@7",
    "after_send=kill@1",
    "after_send=kill@8",
    "before_commit=kill@2",
    "before_commit=kill@30",
    "after_commit=kill@3",
    "after_commit=kill@12",
    "before_reply=kill@1",
    "before_reply=kill@5",
    "after_reply=kill@1",
    "after_reply=kill@6",
];

/// Where a transaction is more than one message.
const KILLS_WITHIN: &[&str] = &["after_insert=kill@1", "after_insert=kill@8"];

async fn f01_killed_at_every_point(engine: Engine) {
    let rig = Rig::on(engine).await;
    let mut server = rig.launch.start().await;
    let sale = Sale::open(&rig.launch, 5000, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 12, 5100);
    crowd.until_taken(20).await;
    server.kill().await;
    let within = if engine == Engine::MariaDb { KILLS_WITHIN } else { &[] };
    for kill in KILLS.iter().chain(within) {
        let mut server = rig.launch.clone().with_faults(kill).spawn();
        let end = server.ended().await;
        assert_eq!(end.signal(), Some(9), "{kill}: {end}");
        assert!(!crowd.is_over(), "the sale was over before {kill}");
    }
    let _server = rig.launch.start().await;
    let ledger = crowd.finish().await;
    rig.judge(&sale, &ledger).await.stands().recovered_some();
}

async fn f01_killed_at_random(engine: Engine) {
    let rig = Rig::on(engine).await;
    let mut server = rig.launch.start().await;
    let kills = seeds(4);
    let stock = 2000 + 500 * kills;
    let sale = Sale::open(&rig.launch, stock, Some(stock / 40)).await;
    let crowd = Crowd::rush(&sale, &[server.address], 12, stock + 100);
    for _ in 0..kills {
        let before = crowd.taken().len();
        crowd.until_taken(before + 1).await;
        tokio::time::sleep(Duration::from_micros(rand::random_range(0..300_000))).await;
        server.kill().await;
        server = rig.launch.start().await;
    }
    let ledger = crowd.finish().await;
    rig.judge(&sale, &ledger).await.stands();
}

async fn f03_told_to_stop(engine: Engine) {
    let rig = Rig::on(engine).await;
    let mut server = rig.launch.start().await;
    let sale = Sale::open(&rig.launch, 3000, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 24, 3100);
    for _ in 0..2 {
        let before = crowd.taken().len();
        crowd.until_taken(before + 200).await;
        server.signal(Signal::Terminate);
        let end = server.ended().await;
        assert!(end.success(), "{end}");
        server = rig.launch.start().await;
    }
    let ledger = crowd.finish().await;
    let verdict = rig.judge(&sale, &ledger).await;
    // Whoever was let in was answered: nobody had to ask again to learn of a take.
    assert_eq!(verdict.stands().without_errors().recovered, 0);
}
