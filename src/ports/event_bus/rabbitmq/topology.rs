//! The exchanges and queues, declared by whoever connects; `docker/rabbitmq/definitions.json` holds the same as data.
//!
//! ```text
//! tombola.events (topic) ──type──► tombola.<group>                          a group without order
//!                        ──type──► tombola.<group> (headers) ──partition──► tombola.<group>.<n>      with order
//! tombola.<group>…  ──delivered too often──► tombola.dead (fanout) ──► tombola.dead
//! tombola.delay.<ms> ──after <ms>──► tombola.due
//! ```
//!
//! Every queue is a quorum queue: it survives the loss of a minority of the brokers (RELIABILITY A2). The delivery
//! limit is declared because RabbitMQ 3 has none (R16); the delay queues hand over at least once, each with one fixed
//! delay, because messages expire only at the head of a queue (R15).

use std::time::Duration;

use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use crate::messaging::catalogue::EventType;
use crate::ports::event_bus::GroupSpec;

/// Where every event is published, with its type as the routing key.
pub const EVENTS: &str = "tombola.events";

/// The exchange and the queue of messages that were delivered too often.
pub const DEAD: &str = "tombola.dead";

/// The queue of reminders whose time has come.
pub const DUE: &str = "tombola.due";

/// The header that routes an event to a partition.
pub const PARTITION: &str = "tombola-partition";

/// Queues of an ordered group; a subject always goes to the same one.
pub const PARTITIONS: u32 = 8;

/// Deliveries of one message before the broker gives it up.
const DELIVERY_LIMIT: i32 = 20;

/// The partition of the events about `subject`: FNV-1a of its bytes, so that other publishers can compute it too.
pub fn partition(subject: &str) -> u32 {
    let hash = subject
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash % PARTITIONS
}

/// The queues `group` consumes from.
pub(super) fn queues(group: &GroupSpec) -> Vec<String> {
    match group.ordered {
        true => (0..PARTITIONS).map(|partition| format!("tombola.{}.{partition}", group.name)).collect(),
        false => vec![format!("tombola.{}", group.name)],
    }
}

/// The queue that delays for `delay`.
pub(super) fn delay_queue(delay: Duration) -> String {
    format!("tombola.delay.{}", delay.as_millis())
}

/// Declares everything; what is there already stays as it is.
pub(super) async fn declare(
    channel: &Channel,
    groups: &[GroupSpec],
    delays: &[Duration],
) -> Result<(), lapin::Error> {
    exchange(channel, EVENTS, ExchangeKind::Topic).await?;
    exchange(channel, DEAD, ExchangeKind::Fanout).await?;
    queue(channel, DEAD, quorum()).await?;
    bind(channel, DEAD, DEAD, "", FieldTable::default()).await?;
    queue(channel, DUE, quorum()).await?;
    for delay in delays {
        queue(channel, &delay_queue(*delay), delaying(*delay)).await?;
    }
    for group in groups {
        declare_group(channel, group).await?;
    }
    Ok(())
}

async fn declare_group(channel: &Channel, group: &GroupSpec) -> Result<(), lapin::Error> {
    for name in queues(group) {
        queue(channel, &name, group_queue(group)).await?;
    }
    let name = format!("tombola.{}", group.name);
    if group.ordered {
        exchange(channel, &name, ExchangeKind::Headers).await?;
        for (partition, queue) in (0..).zip(queues(group)) {
            let mut only = FieldTable::default();
            only.insert("x-match".into(), text("all"));
            only.insert(PARTITION.into(), AMQPValue::LongInt(partition));
            bind(channel, &queue, &name, "", only).await?;
        }
    }
    for key in group.types.iter().map(|event_type| event_type.word()) {
        match group.ordered {
            true => {
                let options = ExchangeBindOptions::default();
                let arguments = FieldTable::default();
                channel.exchange_bind(short(&name), EVENTS.into(), key.into(), options, arguments).await?;
            }
            false => bind(channel, &name, EVENTS, key, FieldTable::default()).await?,
        }
    }
    Ok(())
}

/// Declares a queue for this connection alone that hears `types`; answers its name.
pub(super) async fn declare_ear(channel: &Channel, types: &[EventType]) -> Result<ShortString, lapin::Error> {
    let options =
        QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let name = queue.name().clone();
    for event_type in types {
        bind(channel, name.as_str(), EVENTS, event_type.word(), FieldTable::default()).await?;
    }
    Ok(name)
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments
}

fn group_queue(group: &GroupSpec) -> FieldTable {
    let mut arguments = quorum();
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    arguments.insert("x-dead-letter-exchange".into(), text(DEAD));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    if group.ordered {
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    arguments
}

fn delaying(delay: Duration) -> FieldTable {
    let mut arguments = quorum();
    let delay = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(delay));
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text(DUE));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Names of ours are short; one that is not would be refused by the broker.
fn short(name: &str) -> ShortString {
    ShortString::try_new(name).unwrap_or_default()
}

async fn exchange(channel: &Channel, name: &str, kind: ExchangeKind) -> Result<(), lapin::Error> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(short(name), kind, options, FieldTable::default()).await
}

async fn queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), lapin::Error> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(short(name), options, arguments).await.map(drop)
}

async fn bind(
    channel: &Channel,
    queue: &str,
    exchange: &str,
    key: &str,
    arguments: FieldTable,
) -> Result<(), lapin::Error> {
    let options = QueueBindOptions::default();
    channel.queue_bind(short(queue), short(exchange), short(key), options, arguments).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::event_bus::group_of;

    #[test]
    fn a_subject_has_one_partition_for_ever() {
        // Fixed: queues with events in them depend on it.
        let partitions: Vec<u32> = ["", "1", "42", "1875000000000000001"].map(partition).to_vec();
        assert_eq!(partitions, ["", "1", "42", "1875000000000000001"].map(partition));
        assert_eq!(partition(""), 0x811c_9dc5 % PARTITIONS);
        assert_eq!(partition("a"), 0xe40c_292c % PARTITIONS);
    }

    #[test]
    fn a_queue_tells_its_group() {
        let mut group = GroupSpec { ordered: true, max_batch: 1, ..GroupSpec::new("audit", &[]) };
        assert!(queues(&group).iter().all(|queue| group_of(queue) == "audit"));
        group.ordered = false;
        assert_eq!(queues(&group), ["tombola.audit"]);
        assert_eq!(group_of("tombola.audit"), "audit");
    }
}
