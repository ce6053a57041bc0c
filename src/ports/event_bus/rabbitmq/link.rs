//! Connections to the broker: every step has a time limit, nothing recovers by itself. Whoever meets an error drops the
//! connection and asks for a new one (RELIABILITY R14).

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicQosOptions, ConfirmSelectOptions};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::topology;
use crate::ports::event_bus::GroupSpec;

/// How long each step of connecting and declaring may take.
const STEP: Duration = Duration::from_secs(8);

/// How often the broker and we show each other that we live.
const HEARTBEAT_S: u16 = 10;

/// Why the broker cannot be used.
#[derive(Debug, Error)]
pub(super) enum LinkError {
    #[error("{0}")]
    Broker(#[from] lapin::Error),
    #[error("no connection to {address}: {source}")]
    Connect { address: String, source: std::io::Error },
    #[error("no answer within {} seconds", STEP.as_secs())]
    Silent,
}

impl LinkError {
    /// Whether it has ended its channel and nothing else.
    pub(super) fn is_of_channel(&self) -> bool {
        matches!(self, Self::Broker(error) if error.is_amqp_soft_error())
    }
}

/// Where the broker is. The URL was checked when it was read.
#[derive(Debug, Clone)]
pub(super) struct Broker {
    uri: AMQPUri,
}

impl Broker {
    pub(super) fn new(url: &SecretString) -> Result<Self, String> {
        let mut uri: AMQPUri = url.expose_secret().parse()?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        Ok(Self { uri })
    }

    /// A new connection, named `purpose` in the broker's list.
    pub(super) async fn connect(&self, purpose: &str) -> Result<Connection, LinkError> {
        // lapin's own connect leaves a thread behind for each address that does not answer.
        let authority = &self.uri.authority;
        let address = (authority.host.as_str(), authority.port);
        let reachable = timeout(STEP, TcpStream::connect(address)).await.map_err(|_| LinkError::Silent)?;
        reachable.map_err(|source| LinkError::Connect {
            address: format!("{}:{}", authority.host, authority.port),
            source,
        })?;
        let properties =
            ConnectionProperties::default().with_connection_name(format!("tombola {purpose}").into());
        within(Connection::connect_uri(self.uri.clone(), properties)).await
    }
}

/// Time-limits one step.
pub(super) async fn within<T>(step: impl Future<Output = Result<T, lapin::Error>>) -> Result<T, LinkError> {
    Ok(timeout(STEP, step).await.map_err(|_| LinkError::Silent)??)
}

/// Declares the exchanges, and the queues of `groups` and `delays`.
pub(super) async fn declare(
    connection: &Connection,
    groups: &[GroupSpec],
    delays: &[Duration],
) -> Result<(), LinkError> {
    let channel = within(connection.create_channel()).await?;
    // Some dozens of steps.
    timeout(STEP * 4, topology::declare(&channel, groups, delays)).await.map_err(|_| LinkError::Silent)??;
    within(channel.close(200, "OK".into())).await
}

/// A channel that confirms what is published on it.
pub(super) async fn confirming(connection: &Connection) -> Result<Channel, LinkError> {
    let channel = within(connection.create_channel()).await?;
    within(channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// A channel that holds at most `prefetch` messages that are not acknowledged.
pub(super) async fn consuming(connection: &Connection, prefetch: u16) -> Result<Channel, LinkError> {
    let channel = within(connection.create_channel()).await?;
    within(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    Ok(channel)
}

/// A connection that several tasks share, made when it is first needed and again when it is gone.
#[derive(Debug)]
pub(super) struct Shared {
    broker: Broker,
    purpose: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Shared {
    pub(super) fn new(broker: Broker, purpose: &'static str) -> Self {
        Self { broker, purpose, connection: Mutex::new(None) }
    }

    pub(super) async fn get(&self) -> Result<Arc<Connection>, LinkError> {
        let mut shared = self.connection.lock().await;
        if let Some(connection) = shared.as_ref()
            && connection.status().connected()
        {
            return Ok(connection.clone());
        }
        let connection = Arc::new(self.broker.connect(self.purpose).await?);
        *shared = Some(connection.clone());
        Ok(connection)
    }

    /// Ends a connection that something went wrong on. Dropping it is not enough: a consumer whose start was given up
    /// may start all the same, and would hold its messages for as long as the connection lives.
    pub(super) async fn discard(&self, broken: &Arc<Connection>) {
        self.connection.lock().await.take_if(|connection| Arc::ptr_eq(connection, broken));
        close(broken).await;
    }

    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            close(&connection).await;
        }
    }
}

/// Says good-bye, and does not wait long for the answer.
pub(super) async fn close(connection: &Connection) {
    let _ = timeout(Duration::from_secs(2), connection.close(200, "OK".into())).await;
}
