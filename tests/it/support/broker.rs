//! RabbitMQ as a test has it: virtual hosts of its own on the shared broker, brokers that it may hurt, and a subscriber
//! that shares nothing with the server but the wire.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use entities::outbox as rows;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind, Queue};
use reqwest::Method;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder};
use serde_json::{Value, json};
use tempfile::TempDir;
use tombola::messaging::envelope::Envelope;
use tombola::messaging::outbox;
use tombola::ports::event_bus::rabbitmq::EVENTS;

use super::eventually;
use super::process::{Signal, send};

/// What `docker/` loads into a broker; a server must find it as it would have made it.
pub(crate) const DEFINITIONS: &str = include_str!("../../../docker/rabbitmq/definitions.json");

/// The name and the password of the administrator, and of everybody else.
const USER: &str = "tombola";

/// How long everything that was committed may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(60);

/// One node of a RabbitMQ that `tests/services.sh` has started.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    /// Where it keeps everything: see `start_rabbitmq_nodes`.
    directory: PathBuf,
}

/// Three nodes that end with this value.
pub(crate) struct Cluster {
    directory: TempDir,
    pub(crate) nodes: Vec<Broker>,
}

/// A broker that is short of memory until this value ends.
pub(crate) struct Alarm(Broker);

/// A virtual host that nobody else uses, with the exchanges and queues of `docker/`.
#[derive(Debug, Clone)]
pub(crate) struct VirtualHost {
    /// To connect with.
    pub(crate) url: String,
    name: String,
    broker: Broker,
}

/// Another system: a queue that gets every event.
#[derive(Debug)]
pub(crate) struct Subscriber {
    vhost: VirtualHost,
}

/// What a subscriber has received.
#[derive(Debug)]
pub(crate) struct Heard {
    /// Every message, in the order of arrival, repeats included.
    pub(crate) events: Vec<Envelope>,
}

impl Broker {
    /// The broker that all tests share.
    pub(crate) fn shared() -> Self {
        let command = std::env::var("TOMBOLA_TEST_RABBITMQCTL");
        let command = command.expect("tests/run starts a broker and sets TOMBOLA_TEST_RABBITMQCTL");
        let directory = Path::new(&command).parent().expect("the node's directory");
        Self { directory: directory.to_owned() }
    }

    /// The broker of those faults that strike a whole broker; they run one at a time. It ends with the services.
    pub(crate) fn of_the_faults() -> &'static Self {
        static BROKER: LazyLock<Broker> = LazyLock::new(|| {
            let services =
                std::env::var("TOMBOLA_TEST_SERVICES").expect("tests/run sets TOMBOLA_TEST_SERVICES");
            let place = Path::new(&services).parent().expect("a directory");
            let directory = place.join(format!("rabbitmq-of-faults-{}", std::process::id()));
            services_shell("start_rabbitmq_nodes \"$0\" 1", &directory);
            Broker { directory: directory.join("1") }
        });
        &BROKER
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        let url = self.file("url");
        let (_, place) = url.rsplit_once('@').expect("a URL with a user");
        place.split('/').next().and_then(|address| address.parse().ok()).expect("an address")
    }

    /// Runs `rabbitmqctl` with these arguments.
    pub(crate) async fn ctl(&self, arguments: &[&str]) {
        let mut command = Command::new(self.directory.join("rabbitmqctl"));
        command.arg("--silent").args(arguments);
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.unwrap().expect("rabbitmqctl");
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Takes its memory away: it takes no messages.
    pub(crate) async fn starve(&self) -> Alarm {
        self.ctl(&["set_vm_memory_high_watermark", "0"]).await;
        Alarm(self.clone())
    }

    /// Sends its process a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.file("pid").parse().expect("a process id"), signal);
    }

    /// Starts it again, on the same data and port.
    pub(crate) async fn run(&self) {
        let directory = self.directory.clone();
        let starting = move || services_shell("run_rabbitmq \"$0\"", &directory);
        tokio::task::spawn_blocking(starting).await.unwrap();
    }

    async fn api(&self, method: Method, path: &str, body: Value) -> Value {
        // Fails only if a provider is there already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}{path}", self.file("api"));
        // Everything asked here may be asked twice, and a busy broker sometimes hangs up in the middle of an answer.
        let ask = || client.request(method.clone(), &url).json(&body).send();
        let answer = match ask().await {
            Ok(answer) => answer,
            Err(_) => ask().await.unwrap(),
        };
        assert!(answer.status().is_success(), "{path}: {answer:?}");
        answer.json().await.unwrap_or_default()
    }

    fn file(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.directory.join(name)).expect("a file of the broker");
        text.trim().to_owned()
    }
}

impl Cluster {
    /// Starts three nodes.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // The brokers run as a user of their own.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), readable).unwrap();
        let place = directory.path().join("cluster");
        let nodes = (1..=3).map(|node| Broker { directory: place.join(node.to_string()) }).collect();
        let starting = move || services_shell("start_rabbitmq_cluster \"$0\"", &place);
        tokio::task::spawn_blocking(starting).await.unwrap();
        Self { directory, nodes }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let command = Command::new(self.0.directory.join("rabbitmqctl"))
            .args(["--silent", "set_vm_memory_high_watermark", "absolute", "1GB"])
            .output();
        assert!(command.is_ok_and(|done| done.status.success()), "the broker keeps starving");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let end = "for pid in \"$0\"/cluster/*/pid \"$0\"/cluster/epmd.pid; do kill -KILL \"$(cat \"$pid\")\"; done";
        let _ = Command::new("bash")
            .args(["-c", end])
            .arg(self.directory.path())
            .stderr(std::process::Stdio::null())
            .status();
    }
}

impl VirtualHost {
    /// A new one on the broker that all tests share.
    pub(crate) async fn create() -> Self {
        Self::on(&Broker::shared()).await
    }

    /// A new one on `broker`.
    pub(crate) async fn on(broker: &Broker) -> Self {
        let vhost = Self::bare(broker).await;
        let mut definitions: Value = serde_json::from_str(DEFINITIONS).unwrap();
        // Groups are the server's, or a test's own: what they do not want finds no queue.
        let queues = definitions["queues"].as_array_mut().unwrap();
        let of_groups: Vec<Value> =
            queues.extract_if(.., |queue| !queue["arguments"]["x-delivery-limit"].is_null()).collect();
        let is_bound_to =
            |binding: &Value| of_groups.iter().any(|queue| queue["name"] == binding["destination"]);
        definitions["bindings"].as_array_mut().unwrap().retain(|binding| !is_bound_to(binding));
        broker.api(Method::POST, &format!("/definitions/{}", vhost.name), definitions).await;
        vhost
    }

    /// A new one on `broker`, with nothing in it.
    pub(crate) async fn bare(broker: &Broker) -> Self {
        let name = format!("story-{}", uuid::Uuid::now_v7().simple());
        broker.api(Method::PUT, &format!("/vhosts/{name}"), json!({})).await;
        let vhost = Self { url: String::new(), name, broker: broker.clone() };
        vhost.permit().await;
        vhost.at(broker)
    }

    /// Its exchanges, queues and bindings, in the form of [`DEFINITIONS`].
    pub(crate) async fn definitions(&self) -> Value {
        self.broker.api(Method::GET, &format!("/definitions/{}", self.name), json!({})).await
    }

    /// The same virtual host, by another node of its cluster.
    pub(crate) fn at(&self, broker: &Broker) -> Self {
        let (name, broker) = (self.name.clone(), broker.clone());
        Self { url: self.url_through(broker.address()), name, broker }
    }

    /// Its URL, if the broker is reached at `address`.
    pub(crate) fn url_through(&self, address: SocketAddr) -> String {
        format!("amqp://{USER}:{USER}@{address}/{}", self.name)
    }

    /// Lets everybody do everything.
    pub(crate) async fn permit(&self) {
        let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
        self.broker.api(Method::PUT, &self.permissions(), everything).await;
    }

    /// Lets nobody in.
    pub(crate) async fn forbid(&self) {
        self.broker.api(Method::DELETE, &self.permissions(), json!({})).await;
    }

    fn permissions(&self) -> String {
        format!("/permissions/{}/{USER}", self.name)
    }

    /// Closes every connection, as a broker does that is stopped for maintenance.
    pub(crate) async fn close_connections(&self) {
        self.broker.ctl(&["close_all_connections", "--vhost", &self.name, "maintenance"]).await;
    }

    /// A channel on a connection of its own.
    pub(crate) async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    /// Puts `body` into a queue, as whoever may do so can.
    pub(crate) async fn send(&self, queue: &str, body: &[u8]) {
        let (connection, channel) = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        // A server that has just started is still declaring its queues.
        eventually(async || {
            let persistent = BasicProperties::default().with_delivery_mode(2);
            let sent = channel.basic_publish("".into(), queue.into(), mandatory, body, persistent);
            matches!(sent.await.unwrap().await.unwrap(), Confirmation::Ack(None))
        })
        .await;
        connection.close(200, "OK".into()).await.unwrap();
    }

    /// How many messages `queue` has ready for a consumer.
    pub(crate) async fn waiting(&self, queue: &str) -> u32 {
        self.look_at(queue).await.message_count()
    }

    /// How many consumers `queue` has.
    pub(crate) async fn consumers(&self, queue: &str) -> u32 {
        self.look_at(queue).await.consumer_count()
    }

    async fn look_at(&self, queue: &str) -> Queue {
        let (connection, channel) = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap();
        connection.close(200, "OK".into()).await.unwrap();
        found
    }

    /// Deletes a queue, with all that is in it.
    pub(crate) async fn delete_queue(&self, queue: &str) {
        self.broker.api(Method::DELETE, &format!("/queues/{}/{queue}", self.name), json!({})).await;
    }

    /// Removes it with all it holds.
    pub(crate) async fn remove(self) {
        self.broker.api(Method::DELETE, &format!("/vhosts/{}", self.name), json!({})).await;
    }
}

impl Subscriber {
    const QUEUE: &str = "another.system";

    /// Subscribes to every event from now on.
    pub(crate) async fn to(vhost: &VirtualHost) -> Self {
        let (connection, channel) = vhost.channel().await;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel
            .exchange_declare(EVENTS.into(), ExchangeKind::Topic, durable, FieldTable::default())
            .await
            .unwrap();
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut quorum = FieldTable::default();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare(Self::QUEUE.into(), durable, quorum).await.unwrap();
        let (queue, every) = (Self::QUEUE.into(), "#".into());
        let bound = channel.queue_bind(
            queue,
            EVENTS.into(),
            every,
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.unwrap();
        connection.close(200, "OK".into()).await.unwrap();
        Self { vhost: vhost.clone() }
    }

    /// The same subscriber, by another node of the cluster.
    pub(crate) fn at(&self, broker: &Broker) -> Self {
        Self { vhost: self.vhost.at(broker) }
    }

    /// Receives until it knows every event that `database` has committed, and nothing is left. No server runs.
    pub(crate) async fn hear_all(&self, database: &DatabaseConnection) -> Heard {
        let mut missing: HashSet<i64> = committed(database).await.iter().map(|event| event.id.0).collect();
        let (connection, channel) = self.vhost.channel().await;
        let consume = BasicConsumeOptions::default();
        let mut messages = channel
            .basic_consume(Self::QUEUE.into(), "".into(), consume, FieldTable::default())
            .await
            .unwrap();
        let mut events = Vec::new();
        let deadline = tokio::time::Instant::now() + ARRIVAL;
        loop {
            let wait = if missing.is_empty() { Duration::from_millis(100) } else { ARRIVAL };
            let until = deadline.min(tokio::time::Instant::now() + wait);
            let Ok(next) = tokio::time::timeout_at(until, messages.next()).await else { break };
            let message = next.expect("the queue is still there").unwrap();
            let event = Envelope::parse(&message.data).unwrap();
            assert_eq!(message.properties.message_id().as_ref().unwrap().as_str(), event.id.to_string());
            missing.remove(&event.id.0);
            events.push(event);
            message.ack(BasicAckOptions::default()).await.unwrap();
        }
        connection.close(200, "OK".into()).await.unwrap();
        assert!(missing.is_empty(), "{} events were lost, and {} arrived", missing.len(), events.len());
        Heard { events }
    }
}

impl Heard {
    /// How many messages were repeats.
    pub(crate) fn repeats(&self) -> usize {
        let different: HashSet<i64> = self.events.iter().map(|event| event.id.0).collect();
        self.events.len() - different.len()
    }

    /// Fails the test unless exactly what was committed arrived, each aggregate's events in their order. Only what the
    /// broker refused, to take it later, may come after its successors.
    pub(crate) async fn is_what_was_committed(&self, database: &DatabaseConnection) -> &Self {
        let committed: BTreeSet<i64> = committed(database).await.iter().map(|event| event.id.0).collect();
        let heard: BTreeSet<i64> = self.events.iter().map(|event| event.id.0).collect();
        let of_nobody: Vec<&i64> = heard.difference(&committed).collect();
        assert!(of_nobody.is_empty(), "arrived and never committed: {of_nobody:?}");
        let lost: Vec<&i64> = committed.difference(&heard).collect();
        assert!(lost.is_empty(), "committed and never arrived: {lost:?}");
        let mut known = HashSet::new();
        let mut positions: BTreeMap<&str, i64> = BTreeMap::new();
        let refused = refused(database).await;
        for event in
            self.events.iter().filter(|event| known.insert(event.id.0) && !refused.contains(&event.id.0))
        {
            let Some(sequence) = event.sequence else { continue };
            let before = positions.insert(&event.subject, sequence).unwrap_or(0);
            assert!(before < sequence, "{} came after sequence {before}", event.to_text());
        }
        self
    }
}

/// Every event in the outbox.
pub(crate) async fn committed(database: &DatabaseConnection) -> Vec<Envelope> {
    let rows = rows::Entity::find().order_by_asc(rows::Column::Id).all(database).await.unwrap();
    rows.iter().flat_map(|row| outbox::read(&row.events, None).unwrap()).collect()
}

/// The events of rows that the broker refused at first.
async fn refused(database: &DatabaseConnection) -> HashSet<i64> {
    let rows = rows::Entity::find().filter(rows::Column::Attempts.gt(0)).all(database).await.unwrap();
    rows.iter().flat_map(|row| outbox::read(&row.events, None).unwrap()).map(|event| event.id.0).collect()
}

/// Runs a script that uses `tests/services.sh`; `$0` is `directory`.
fn services_shell(script: &str, directory: &Path) {
    let script = format!("set -euo pipefail; source tests/services.sh; {script} >&2");
    let output = Command::new("bash")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["-c", &script])
        .arg(directory)
        .output()
        .expect("bash");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}
