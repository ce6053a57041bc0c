//! Consumes: takes in what has arrived, together, and acknowledges after it is settled.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::Fuse;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as Message;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Connection, Consumer};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::link::{self, LinkError};
use super::topology::{self, DUE};
use crate::messaging::catalogue::EventType;
use crate::messaging::envelope::Envelope;
use crate::ports::event_bus::{Delivery, GroupSpec, Heard, Listener, Sink, Unreadable};

/// The most a quorum queue lets a consumer hold.
const MOST_PREFETCH: u16 = 2000;

/// Consumes from `queue` until the broker ends it, something fails, or `stop`.
pub(super) async fn consume(
    connection: &Connection,
    queue: &str,
    group: &GroupSpec,
    sink: &dyn Sink,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    let prefetch = group.max_batch.saturating_mul(2).min(MOST_PREFETCH);
    let channel = link::consuming(connection, prefetch).await?;
    let mut messages = subscribe(&channel, queue, BasicConsumeOptions::default()).await?;
    let origin: Arc<str> = queue.into();
    while let Some(batch) = next_batch(&mut messages, group).await? {
        let Some(last) = batch.last().map(|message| message.delivery_tag) else { continue };
        let mut pause = Duration::from_millis(100);
        // Settled, or not at all: what is taken in twice is known by the consumer log.
        while let Err(error) =
            sink.take_in(batch.iter().map(|message| delivery(message, &origin)).collect()).await
        {
            warn!(queue, %error, "Queue {queue} waits {pause:?}: {error}");
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Ok(());
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
        link::within(channel.basic_ack(last, BasicAckOptions { multiple: true })).await?;
    }
    Ok(())
}

/// Waits for a message, and gathers what comes with it.
async fn next_batch(
    messages: &mut Fuse<Consumer>,
    group: &GroupSpec,
) -> Result<Option<Vec<Message>>, LinkError> {
    let Some(first) = messages.next().await else { return Ok(None) };
    let mut batch = vec![first?];
    let until = Instant::now() + group.linger;
    while batch.len() < usize::from(group.max_batch) {
        let next = match group.linger {
            Duration::ZERO => messages.next().now_or_never(),
            _ => timeout_at(until, messages.next()).await.ok(),
        };
        match next {
            Some(Some(message)) => batch.push(message?),
            // What is there is taken in; the end shows up again at the next call.
            Some(None) | None => break,
        }
    }
    Ok(Some(batch))
}

fn delivery(message: &Message, origin: &Arc<str>) -> Delivery {
    let headers = message.properties.headers().as_ref().map(FieldTable::inner);
    let counted = headers.and_then(|headers| headers.get("x-delivery-count")).and_then(integer);
    let redeliveries = counted.unwrap_or_else(|| message.redelivered.into());
    // A dead message tells where it lived.
    let lived = headers.and_then(|headers| headers.get("x-first-death-queue"));
    let origin = match lived {
        Some(AMQPValue::LongString(queue)) => queue.to_string().into(),
        _ => origin.clone(),
    };
    let content = Envelope::parse(&message.data);
    let content = content.map_err(|error| Unreadable { body: message.data.clone(), error });
    Delivery { content, origin, redeliveries }
}

fn integer(value: &AMQPValue) -> Option<u32> {
    match value {
        AMQPValue::LongLongInt(count) => u32::try_from(*count).ok(),
        AMQPValue::LongInt(count) => u32::try_from(*count).ok(),
        AMQPValue::LongUInt(count) => Some(*count),
        _ => None,
    }
}

/// Tells `listener` every event of `types`, until something fails.
pub(super) async fn listen(
    connection: &Connection,
    types: &[EventType],
    listener: &Listener,
) -> Result<(), LinkError> {
    let channel = link::consuming(connection, MOST_PREFETCH).await?;
    let queue = link::within(topology::declare_ear(&channel, types)).await?;
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..BasicConsumeOptions::default() };
    let mut messages = subscribe(&channel, queue.as_str(), options).await?;
    listener(Heard::Anew).await;
    while let Some(message) = messages.next().await {
        match Envelope::parse(&message?.data) {
            Ok(event) => listener(Heard::Event(event)).await,
            Err(error) => warn!(%error, "Heard something that is no event: {error}"),
        }
    }
    Ok(())
}

/// Wakes for every reminder, until something fails.
pub(super) async fn wake(connection: &Connection, wake: &Notify) -> Result<(), LinkError> {
    let channel = link::consuming(connection, MOST_PREFETCH).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut reminders = subscribe(&channel, DUE, options).await?;
    while let Some(reminder) = reminders.next().await {
        reminder?;
        wake.notify_one();
    }
    Ok(())
}

/// The messages of `queue`. lapin tells their end once and then waits for ever, hence the fuse.
async fn subscribe(
    channel: &lapin::Channel,
    queue: &str,
    options: BasicConsumeOptions,
) -> Result<Fuse<Consumer>, LinkError> {
    let queue = ShortString::try_new(queue).unwrap_or_default();
    let consuming = channel.basic_consume(queue, "".into(), options, FieldTable::default());
    Ok(link::within(consuming).await?.fuse())
}
