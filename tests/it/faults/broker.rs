//! F1, F18–F22: the server dies while it publishes, or its broker dies, sleeps, loses answers, takes nothing or lets
//! nobody in. The sale goes on, and every committed event arrives at another system, in order per aggregate.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use lapin::types::FieldTable;
use tokio::task::JoinHandle;
use tombola::messaging::catalogue::EventType;
use tombola::ports::event_bus::rabbitmq::EVENTS;

use super::{Rig, faults, number, session};
use crate::support::broker::{Broker, Cluster, Subscriber, VirtualHost};
use crate::support::ledger::{Crowd, Ledger, Operator, Sale};
use crate::support::process::{Server, Signal};
use crate::support::proxy::Proxy;
use crate::support::{Engine, eventually};

faults! {
    sqlite: f01_killed_while_it_publishes, f01_killed_while_it_consumes, f19_short_of_memory, f20_confirms_lost,
        f20_asleep, f21_queue_unbound_and_deleted, f22_nobody_let_in;
    postgres: f18_gone_and_back, f18_one_of_three_nodes_dies;
}

/// How long what was committed may wait once the broker is back (I9).
const DRAIN: Duration = Duration::from_secs(30);

/// More than a crowd can take while a fault lasts: it stops when the fault is over.
const STOCK: usize = 100_000;

const PUBLISHED: &str = "tombola_events_published_total";

/// What the log tells when a test fails.
const LOGGED: &str = "warn,tombola::messaging=info,tombola::ports=info";

/// What the projection of the stock listens to.
const PROJECTED: [EventType; 4] = [
    EventType::ActivityStateChanged,
    EventType::ActivityStockAdjusted,
    EventType::ActivityTaken,
    EventType::ActivityTakeReleased,
];

/// A server with a virtual host of its own, and somebody else who listens there.
struct Stage {
    rig: Rig,
    vhost: VirtualHost,
    subscriber: Subscriber,
}

/// Somebody who changes the stock of another activity again and again: events that have an order.
struct Adjusting(JoinHandle<()>);

impl Stage {
    async fn on(engine: Engine, broker: &Broker) -> Self {
        let vhost = VirtualHost::on(broker).await;
        let subscriber = Subscriber::to(&vhost).await;
        let mut rig = Rig::on(engine).await;
        rig.launch = rig.launch.with("BUS", &vhost.url).with("LOG__LEVEL", LOGGED);
        Self { rig, vhost, subscriber }
    }

    /// Holds what everybody was told against the database; answers how many messages were repeats.
    async fn judge(self, mut server: Server, sale: &Sale, ledger: &Ledger) -> usize {
        self.rig.drains().await;
        self.rig.projection_is_right(sale).await;
        server.kill().await;
        let database = self.rig.database.connect().await;
        let heard = self.subscriber.hear_all(&database).await;
        heard.is_what_was_committed(&database).await;
        database.close().await.unwrap();
        self.vhost.remove().await;
        self.rig.judge(sale, ledger).await.stands();
        heard.repeats()
    }
}

impl Rig {
    async fn ask(&self, sql: &str) -> i64 {
        let database = session(&self.database.url).await;
        let answer = number(&database, sql).await;
        database.close().await.unwrap();
        answer
    }

    async fn unsent(&self) -> i64 {
        self.ask("SELECT count(*) FROM outbox WHERE sent_at IS NULL").await
    }

    /// I9: everything that was committed is published soon.
    async fn drains(&self) {
        let deadline = Instant::now() + DRAIN;
        while self.unsent().await > 0 {
            assert!(Instant::now() < deadline, "I9: {} rows of the outbox are unsent", self.unsent().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The events reached the server's own consumers as well.
    async fn projection_is_right(&self, sale: &Sale) {
        let wrong = format!(
            "SELECT count(*) FROM stock_projection WHERE activity_id = {0} AND remaining = {1} - \
             (SELECT count(live_token) FROM take WHERE activity_id = {0})",
            sale.activity, sale.stock
        );
        eventually(async || self.ask(&wrong).await == 1).await;
    }
}

impl Adjusting {
    async fn begin(server: &Server) -> Self {
        let mut operator = Operator::at(server.address).await;
        let activity = operator.open(10, None).await;
        Self(tokio::spawn(async move {
            loop {
                // The server may be gone just now.
                let _ = operator.add_one(&activity).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }))
    }

    /// Waits until the last change has its answer, or never will have.
    async fn end(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

async fn more(crowd: &Crowd, takes: usize) {
    crowd.until_taken(crowd.taken().len() + takes).await;
}

async fn f01_killed_while_it_publishes(engine: Engine) {
    const KILLS: [&str; 8] = [
        "after_publish=kill@1",
        "after_publish=kill@3",
        "after_confirm=kill@1",
        "after_confirm=kill@1",
        "after_confirm=kill@5",
        "after_effect_commit=kill@1",
        "after_effect_commit=kill@1",
        "after_effect_commit=kill@2",
    ];
    let stage = Stage::on(engine, &Broker::shared()).await;
    let mut server = stage.rig.launch.start().await;
    let sale = Sale::open(&stage.rig.launch, STOCK, None).await;
    let adjusting = Adjusting::begin(&server).await;
    let crowd = Crowd::rush(&sale, &[server.address], 3, STOCK);
    crowd.until_taken(20).await;
    server.kill().await;
    for kill in KILLS {
        let end = stage.rig.launch.clone().with_faults(kill).spawn().ended().await;
        assert_eq!(end.signal(), Some(9), "{kill}: {end}");
    }
    let server = stage.rig.launch.start().await;
    crowd.close();
    let ledger = crowd.finish().await;
    adjusting.end().await;
    let repeats = stage.judge(server, &sale, &ledger).await;
    assert!(repeats > 0, "nothing was published twice: no kill came between publishing and marking");
}

/// On the embedded bus.
async fn f01_killed_while_it_consumes(engine: Engine) {
    let rig = Rig::on(engine).await;
    let mut server = rig.launch.start().await;
    let sale = Sale::open(&rig.launch, STOCK, None).await;
    let adjusting = Adjusting::begin(&server).await;
    let crowd = Crowd::rush(&sale, &[server.address], 3, STOCK);
    crowd.until_taken(20).await;
    server.kill().await;
    for kill in ["after_effect_commit=kill@1", "after_effect_commit=kill@1", "after_effect_commit=kill@2"] {
        let end = rig.launch.clone().with_faults(kill).spawn().ended().await;
        assert_eq!(end.signal(), Some(9), "{kill}: {end}");
    }
    let mut server = rig.launch.start().await;
    crowd.close();
    let ledger = crowd.finish().await;
    adjusting.end().await;
    rig.drains().await;
    eventually(async || rig.ask("SELECT count(*) FROM queued_events").await == 0).await;
    rig.projection_is_right(&sale).await;
    server.kill().await;
    rig.judge(&sale, &ledger).await.stands();
}

async fn f18_gone_and_back(engine: Engine) {
    let broker = Broker::of_the_faults();
    let stage = Stage::on(engine, broker).await;
    let server = stage.rig.launch.start().await;
    let sale = Sale::open(&stage.rig.launch, STOCK, None).await;
    let adjusting = Adjusting::begin(&server).await;
    let crowd = Crowd::rush(&sale, &[server.address], 8, STOCK);
    more(&crowd, 100).await;
    stage.vhost.close_connections().await;
    more(&crowd, 100).await;
    broker.ctl(&["stop_app"]).await;
    more(&crowd, 100).await;
    assert!(stage.rig.unsent().await > 0 && server.is_ready().await);
    broker.ctl(&["start_app"]).await;
    server.counts(PUBLISHED, server.counted(PUBLISHED).await + 100).await;
    broker.signal(Signal::Kill);
    more(&crowd, 100).await;
    assert!(stage.rig.unsent().await > 0 && server.is_ready().await);
    broker.run().await;
    more(&crowd, 100).await;
    crowd.close();
    let ledger = crowd.finish().await;
    adjusting.end().await;
    stage.judge(server, &sale, &ledger).await;
}

/// Quorum queues: what was confirmed is on two other nodes.
async fn f18_one_of_three_nodes_dies(engine: Engine) {
    let cluster = Cluster::start().await;
    let [first, second, _] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let stage = Stage::on(engine, first).await;
    // As a load balancer: it leads to a node that lives.
    let proxy = Proxy::to(first.address()).await;
    let launch = stage.rig.launch.clone().with("BUS", stage.vhost.url_through(proxy.address));
    let server = launch.start().await;
    let sale = Sale::open(&launch, STOCK, None).await;
    let adjusting = Adjusting::begin(&server).await;
    let crowd = Crowd::rush(&sale, &[server.address], 8, STOCK);
    more(&crowd, 100).await;
    first.signal(Signal::Kill);
    proxy.lead_to(second.address());
    more(&crowd, 500).await;
    crowd.close();
    let ledger = crowd.finish().await;
    adjusting.end().await;
    let stage = Stage { subscriber: stage.subscriber.at(second), vhost: stage.vhost.at(second), ..stage };
    stage.judge(server, &sale, &ledger).await;
}

async fn f19_short_of_memory(engine: Engine) {
    let broker = Broker::of_the_faults();
    let stage = Stage::on(engine, broker).await;
    let mut server = stage.rig.launch.start().await;
    let sale = Sale::open(&stage.rig.launch, STOCK, None).await;
    let adjusting = Adjusting::begin(&server).await;
    let crowd = Crowd::rush(&sale, &[server.address], 8, STOCK);
    more(&crowd, 100).await;
    let alarm = broker.starve().await;
    more(&crowd, 100).await;
    assert!(stage.rig.unsent().await > 0 && server.is_ready().await);
    // Nobody waits for the broker in order to stop.
    server.signal(Signal::Terminate);
    let end = server.ended().await;
    assert!(end.success(), "{end}");
    let server = stage.rig.launch.start().await;
    more(&crowd, 100).await;
    drop(alarm);
    more(&crowd, 100).await;
    crowd.close();
    let ledger = crowd.finish().await;
    adjusting.end().await;
    stage.judge(server, &sale, &ledger).await;
}

async fn f20_confirms_lost(engine: Engine) {
    let stage = Stage::on(engine, &Broker::shared()).await;
    let proxy = Proxy::to(Broker::shared().address()).await;
    let launch = stage.rig.launch.clone().with("BUS", stage.vhost.url_through(proxy.address));
    let server = launch.start().await;
    let sale = Sale::open(&launch, STOCK, None).await;
    let adjusting = Adjusting::begin(&server).await;
    let crowd = Crowd::rush(&sale, &[server.address], 8, STOCK);
    for _ in 0..4 {
        more(&crowd, 100).await;
        // The relay is connected.
        server.counts(PUBLISHED, server.counted(PUBLISHED).await + 1).await;
        let lost = proxy.lost_confirms();
        proxy.lose_answers();
        eventually(async || proxy.lost_confirms() > lost).await;
        more(&crowd, 100).await;
        proxy.cut_and_answer();
    }
    crowd.close();
    let ledger = crowd.finish().await;
    adjusting.end().await;
    let repeats = stage.judge(server, &sale, &ledger).await;
    assert!(repeats > 0, "what was stored and not confirmed was not published again");
}

/// Whether it still stores what it was told before it fell asleep is up to the broker.
async fn f20_asleep(engine: Engine) {
    let broker = Broker::of_the_faults();
    let stage = Stage::on(engine, broker).await;
    let server = stage.rig.launch.start().await;
    let sale = Sale::open(&stage.rig.launch, STOCK, None).await;
    let adjusting = Adjusting::begin(&server).await;
    let crowd = Crowd::rush(&sale, &[server.address], 4, STOCK);
    more(&crowd, 100).await;
    broker.signal(Signal::Stop);
    server.says("Lost the connection to RabbitMQ while publishing").await;
    broker.signal(Signal::Continue);
    more(&crowd, 100).await;
    crowd.close();
    let ledger = crowd.finish().await;
    adjusting.end().await;
    stage.judge(server, &sale, &ledger).await;
}

/// Without another system: a message that anyone receives is not unroutable.
async fn f21_queue_unbound_and_deleted(engine: Engine) {
    const QUEUE: &str = "tombola.stock_projection";
    let vhost = VirtualHost::create().await;
    let rig = Rig::on(engine).await;
    let launch = rig.launch.clone().with("BUS", &vhost.url);
    let mut server = launch.start().await;
    let sale = Sale::open(&launch, STOCK, None).await;
    let crowd = Crowd::rush(&sale, &[server.address], 4, STOCK);
    let (connection, channel) = vhost.channel().await;
    // Some rows must have gone while all was well.
    eventually(async || rig.ask("SELECT count(sent_at) FROM outbox").await > 0).await;
    for round in 1..=2 {
        more(&crowd, 100).await;
        for event in PROJECTED {
            let (queue, key) = (QUEUE.into(), event.word().into());
            channel.queue_unbind(queue, EVENTS.into(), key, FieldTable::default()).await.unwrap();
        }
        let refused = "SELECT count(*) FROM outbox WHERE attempts > 0";
        eventually(async || rig.ask(refused).await >= round).await;
        more(&crowd, 100).await;
        vhost.delete_queue(QUEUE).await;
    }
    // What a deleted queue held is gone, so the projection needs to hear of later takes.
    more(&crowd, 100).await;
    crowd.close();
    let ledger = crowd.finish().await;
    rig.drains().await;
    rig.projection_is_right(&sale).await;
    server.kill().await;
    let blamed = rig.ask("SELECT count(*) FROM outbox WHERE attempts > 0").await;
    let all = rig.ask("SELECT count(*) FROM outbox").await;
    assert!(blamed < all, "every row was blamed");
    connection.close(200, "OK".into()).await.unwrap();
    vhost.remove().await;
    rig.judge(&sale, &ledger).await.stands();
}

async fn f22_nobody_let_in(engine: Engine) {
    let stage = Stage::on(engine, &Broker::shared()).await;
    let server = stage.rig.launch.start().await;
    let sale = Sale::open(&stage.rig.launch, STOCK, None).await;
    let adjusting = Adjusting::begin(&server).await;
    let crowd = Crowd::rush(&sale, &[server.address], 4, STOCK);
    more(&crowd, 100).await;
    stage.vhost.forbid().await;
    stage.vhost.close_connections().await;
    more(&crowd, 100).await;
    assert!(stage.rig.unsent().await > 0 && server.is_ready().await);
    stage.vhost.permit().await;
    more(&crowd, 100).await;
    crowd.close();
    let ledger = crowd.finish().await;
    adjusting.end().await;
    stage.judge(server, &sale, &ledger).await;
}
