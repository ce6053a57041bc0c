//! F10, F11: what crowds do to a server: everything twice, and leaving before the answer.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Rig, faults, number, session};
use crate::support::Engine;
use crate::support::ledger::{Crowd, Ledger, Sale};
use crate::support::process::Launch;
use crate::support::wire::Wire;

faults! {
    sqlite: f10_one_key_a_hundred_times, f11_clients_that_hang_up;
    postgres: f10_one_key_a_hundred_times, f10_one_user_a_hundred_times, f10_two_nodes_for_the_same_users,
        f11_clients_that_hang_up;
    mariadb: f10_one_key_a_hundred_times, f10_one_user_a_hundred_times, f10_two_nodes_for_the_same_users,
        f11_clients_that_hang_up;
}

/// The same request, a hundred times at once, on two nodes if the database allows: one take, one answer.
async fn f10_one_key_a_hundred_times(engine: Engine) {
    let rig = Rig::on(engine).await;
    let _first = rig.launch.start().await;
    let second = (engine != Engine::Sqlite).then(|| Launch::on(&rig.database.url));
    let _second = match &second {
        Some(second) => Some(second.start().await),
        None => None,
    };
    let nodes = [rig.launch.address, second.map_or(rig.launch.address, |second| second.address)];
    let sale = Sale::open(&rig.launch, 500, None).await;
    let mut clients = JoinSet::new();
    for client in 0..100 {
        let (request, node) = (sale.request(0), nodes[client % 2]);
        clients.spawn(async move {
            let mut wire = Wire::default();
            loop {
                let said = wire.ask(node, &request).await.unwrap();
                // Only a server that is still at the first one may say so.
                if said.status == 201 {
                    return (said.body, said.replayed);
                }
                assert!(matches!(said.status, 409 | 503), "{}", said.body);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    let answers = clients.join_all().await;
    assert_eq!(answers.iter().filter(|(_, replayed)| !replayed).count(), 1, "answers that were not repeats");
    assert!(answers.iter().all(|(body, _)| *body == answers[0].0), "not the same answer to all");
    let ledger = Crowd::rush(&sale, &nodes, 24, 600).finish().await;
    rig.judge(&sale, &ledger).await.stands();
}

/// A limit of one, and every user asks under many keys on two nodes at once.
async fn f10_one_user_a_hundred_times(engine: Engine) {
    let rig = Rig::on(engine).await;
    let (_first, second) = (rig.launch.start().await, Launch::on(&rig.database.url));
    let _second = second.start().await;
    // Fifty customers, so everyone sends forty requests and at most fifty are sold.
    let sale = Sale::open(&rig.launch, 500, Some(1)).await;
    let ledger = Crowd::rush(&sale, &[rig.launch.address, second.address], 100, 2000).finish().await;
    let verdict = rig.judge(&sale, &ledger).await;
    assert_eq!(verdict.stands().accepted, 50);
    assert_eq!(verdict.refused["take_limit_reached"], 1950);
}

/// Both nodes sell to the same users: their take numbers clash, and the batch that comes second is decided anew.
async fn f10_two_nodes_for_the_same_users(engine: Engine) {
    let rig = Rig::on(engine).await;
    let (first, launch) = (rig.launch.start().await, Launch::on(&rig.database.url));
    let second = launch.start().await;
    let sale = Sale::open(&rig.launch, 2000, None).await;
    let ledger = Crowd::rush(&sale, &[first.address, second.address], 32, 2100).finish().await;
    let mut collisions = 0;
    for node in [&first, &second] {
        collisions += node.counted("tombola_stock_collisions_total").await;
    }
    assert!(collisions > 0, "no batch collided");
    rig.judge(&sale, &ledger).await.stands().without_errors();
}

/// Thousands of clients reset their connection up to 5 ms after sending: no transaction is left open, and each key has
/// one definite outcome.
async fn f11_clients_that_hang_up(engine: Engine) {
    const ABANDONED: usize = 2000;
    let rig = Rig::on(engine).await;
    let server = rig.launch.start().await;
    let sale = Sale::open(&rig.launch, 3000, None).await;
    let mut clients = JoinSet::new();
    for client in 0..32 {
        let (sale, address) = (sale.clone(), server.address);
        clients.spawn(async move {
            for number in (client..ABANDONED).step_by(32) {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(sale.request(number).as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_micros(rand::random_range(0..5000))).await;
                // Closing sends a reset.
                stream.set_zero_linger().unwrap();
            }
        });
    }
    clients.join_all().await;
    let mut ledger = Ledger::default();
    (0..ABANDONED).for_each(|number| ledger.abandon(number));
    let ledger = Crowd::rush_again(&sale, &[server.address], 24, 3100, ledger).finish().await;
    if let Some(open) = open_transactions(engine) {
        let database = session(&rig.database.url).await;
        assert_eq!(number(&database, open).await, 0, "transactions left open");
        database.close().await.unwrap();
    }
    rig.judge(&sale, &ledger).await.stands().recovered_some().without_errors();
}

/// How many other sessions of the database are idle in a transaction.
fn open_transactions(engine: Engine) -> Option<&'static str> {
    match engine {
        Engine::Sqlite => None,
        Engine::Postgres => Some(
            "SELECT count(*) FROM pg_stat_activity \
             WHERE datname = current_database() AND state LIKE 'idle in transaction%' \
             AND state_change < now() - interval '1 s'",
        ),
        Engine::MariaDb => Some(
            "SELECT count(*) FROM information_schema.innodb_trx t \
             JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id \
             WHERE p.db = DATABASE() AND p.command = 'Sleep' AND t.trx_started < NOW() - INTERVAL 1 SECOND",
        ),
    }
}
