//! This node's number, leased in the database, so that no two running nodes make the same ids.
//!
//! The lease is measured by the database's clock (RELIABILITY R23) and renewed in time; an id is only made while it is
//! certain that the number is ours. A node that slept so long that another one took its number must stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use entities::node;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, SimpleExpr};
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, ExprTrait, PaginatorTrait, QueryFilter, QueryOrder,
};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::db::{self, AsDbFault, Database, DbFault, Tx};
use crate::ids::{Ids, NODE_NUMBERS};
use crate::messaging::outbox;
use crate::ports::clock::Clock;
use crate::tasks::Tasks;

/// How long a number is ours after a renewal.
const LEASE: Duration = Duration::from_secs(30);

/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// How often a number that another node took first is looked for again.
const ATTEMPTS: u32 = 20;

/// No node number could be had.
#[derive(Debug, Error)]
pub enum ClusterError {
    #[error("all {} node numbers are in use", NODE_NUMBERS - 1)]
    Full,
    #[error("another node took the same number at the same time")]
    Contended,
    #[error(transparent)]
    Database(#[from] DbFault),
}

impl AsDbFault for ClusterError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::Database(fault) => Some(fault),
            Self::Full | Self::Contended => None,
        }
    }
}

/// How a number is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// The one server, proven by the lock on its data directory: number 0 at once, whoever held it before.
    Alone,
    /// One of many servers, or a command beside the one: the lowest number from 1 that nobody holds.
    Shared,
}

/// This node's place among the others. Clones share it.
#[derive(Debug, Clone)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ids: Ids,
    incarnation: i64,
    live_nodes: Arc<AtomicU32>,
    lost: watch::Receiver<bool>,
    renewal: Tasks,
}

impl Cluster {
    /// Leases a number and keeps renewing it on `runtime` until [`Cluster::leave`].
    pub async fn join(
        db: &Database,
        membership: Membership,
        clock: &dyn Clock,
        runtime: &Handle,
    ) -> Result<Self, ClusterError> {
        let incarnation = i64::from_ne_bytes(rand::random()) & i64::MAX;
        let asked = Instant::now();
        let (node, live) = take_number(db, membership, incarnation).await?;
        let last = db.read(|connection| async move { outbox::last_id(&connection).await }).await?;
        let ids = Ids::behind(last, node, clock, LEASE);
        ids.extend(asked + LEASE);
        debug!(node, incarnation, "Joined as node {node}");

        let live_nodes = Arc::new(AtomicU32::new(live));
        let (lost_sender, lost) = watch::channel(false);
        let lease = Lease { db: db.clone(), ids: ids.clone(), incarnation, live_nodes: live_nodes.clone() };
        let lease = Arc::new(lease);
        let mut renewal = Tasks::new(runtime.clone(), CancellationToken::new());
        renewal.keep_until_stop("node_number", move || {
            let (lease, lost) = (lease.clone(), lost_sender.clone());
            async move { lease.keep(lost).await }
        });
        Ok(Self(Arc::new(Inner { ids, incarnation, live_nodes, lost, renewal })))
    }

    /// Ids made under this node's number.
    pub fn ids(&self) -> &Ids {
        &self.0.ids
    }

    /// This node's number.
    pub fn node(&self) -> i32 {
        self.0.ids.node()
    }

    /// A random number that tells this run of the node from every other.
    pub fn incarnation(&self) -> i64 {
        self.0.incarnation
    }

    /// How many nodes held a number at the last renewal, this one included.
    pub fn live_nodes(&self) -> u32 {
        self.0.live_nodes.load(Ordering::Relaxed)
    }

    /// Waits until another node holds our number; this one can make no ids any more and must stop.
    pub async fn lost(&self) {
        let mut lost = self.0.lost.clone();
        if lost.wait_for(|lost| *lost).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Stops renewing. The lease runs out by itself: whoever took the number at once, with a clock behind ours, could
    /// repeat our last ids.
    pub fn leave(&self) {
        self.0.renewal.cancel();
    }
}

/// What the renewing task needs; not the [`Cluster`], which must be able to end.
struct Lease {
    db: Database,
    ids: Ids,
    incarnation: i64,
    live_nodes: Arc<AtomicU32>,
}

impl Lease {
    async fn keep(&self, lost: watch::Sender<bool>) {
        let mut ticks = tokio::time::interval(RENEW_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let node = self.ids.node();
            let asked = Instant::now();
            match self.renew().await {
                Ok(Some(live)) => {
                    self.ids.extend(asked + LEASE);
                    self.live_nodes.store(live, Ordering::Relaxed);
                }
                Ok(None) => {
                    error!(node, "Another server took node number {node}: this one must stop");
                    self.ids.extend(asked);
                    lost.send_replace(true);
                    return;
                }
                Err(fault) => warn!(node, error = %fault, "Could not renew the node number; trying again"),
            }
        }
    }

    /// Renews; answers how many nodes are alive, or nothing if the number is another's.
    async fn renew(&self) -> Result<Option<u32>, DbFault> {
        let (node, incarnation) = (self.ids.node(), self.incarnation);
        let renewal = move |tx: Tx| async move {
            let now = db::now_micros(&tx).await?;
            if !hold(&tx, node, node::Column::Incarnation.eq(incarnation), incarnation, now).await? {
                return Ok(None);
            }
            live(&tx, now).await.map(Some)
        };
        self.db.transaction(renewal).await
    }
}

/// Leases a number in the database; answers it and how many nodes are alive.
async fn take_number(
    db: &Database,
    membership: Membership,
    incarnation: i64,
) -> Result<(i32, u32), ClusterError> {
    for _ in 0..ATTEMPTS {
        let taking = db
            .transaction(move |tx| async move {
                let now = db::now_micros(&tx).await?;
                let nodes = node::Entity::find().order_by_asc(node::Column::Id).all(&tx).await;
                let nodes = nodes.map_err(DbFault::from)?;
                let number = match membership {
                    Membership::Alone => 0,
                    Membership::Shared => free_number(&nodes, now).ok_or(ClusterError::Full)?,
                };
                match nodes.iter().find(|node| node.id == number) {
                    Some(before) => {
                        let unchanged = node::Column::Incarnation
                            .eq(before.incarnation)
                            .and(node::Column::ExpiresAt.eq(before.expires_at));
                        if !hold(&tx, number, unchanged, incarnation, now).await? {
                            return Err(ClusterError::Contended);
                        }
                    }
                    None => {
                        let row = node::ActiveModel {
                            id: Set(number),
                            incarnation: Set(incarnation),
                            expires_at: Set(now + lease_micros()),
                        };
                        node::Entity::insert(row).exec_without_returning(&tx).await.map_err(DbFault::from)?;
                    }
                }
                Ok((number, live(&tx, now).await?))
            })
            .await;
        match taking {
            Err(ClusterError::Contended) => {}
            Err(ClusterError::Database(fault)) if fault.is_duplicate() => {}
            done => return done,
        }
        tokio::time::sleep(Duration::from_millis(rand::random_range(10..100))).await;
    }
    Err(ClusterError::Contended)
}

/// The lowest number that nobody holds; `nodes` are in order.
fn free_number(nodes: &[node::Model], now: i64) -> Option<i32> {
    let mut held = nodes.iter().filter(|node| node.expires_at > now).map(|node| node.id).peekable();
    held.next_if_eq(&0);
    (1..NODE_NUMBERS).find(|number| held.next_if_eq(number).is_none())
}

/// Makes `number` ours from `now` on; false if its row is not as `expected`, because somebody else was faster.
async fn hold(
    connection: &impl ConnectionTrait,
    number: i32,
    expected: SimpleExpr,
    incarnation: i64,
    now: i64,
) -> Result<bool, DbFault> {
    let update = node::Entity::update_many()
        .col_expr(node::Column::Incarnation, Expr::value(incarnation))
        .col_expr(node::Column::ExpiresAt, Expr::value(now + lease_micros()))
        .filter(node::Column::Id.eq(number))
        .filter(expected);
    Ok(update.exec(connection).await?.rows_affected == 1)
}

async fn live(connection: &impl ConnectionTrait, now: i64) -> Result<u32, DbFault> {
    let count = node::Entity::find().filter(node::Column::ExpiresAt.gt(now)).count(connection).await?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

fn lease_micros() -> i64 {
    i64::try_from(LEASE.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing;
    use crate::ports::clock::SystemClock;

    #[test]
    fn the_lowest_expired_or_unused_number_from_1_is_free() {
        let row = |(id, expires_at)| node::Model { id, incarnation: 1, expires_at };
        let free = |rows: &[(i32, i64)]| free_number(&rows.iter().copied().map(row).collect::<Vec<_>>(), 100);
        assert_eq!(free(&[]), Some(1));
        assert_eq!(free(&[(0, 200), (1, 200), (2, 200)]), Some(3));
        assert_eq!(free(&[(1, 200), (2, 100), (3, 200)]), Some(2));
        assert_eq!(free(&[(1, 200), (3, 200)]), Some(2));
        assert_eq!(free(&(1..NODE_NUMBERS).map(|id| (id, 200)).collect::<Vec<_>>()), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_number_belongs_to_one_node_until_its_lease_has_run_out() {
        let ((_place, db), runtime) = (testing::fresh().await, Handle::current());
        let join = async |membership| Cluster::join(&db, membership, &SystemClock, &runtime).await.unwrap();
        let (first, second, alone) =
            (join(Membership::Shared).await, join(Membership::Shared).await, join(Membership::Alone).await);
        assert_eq!((first.node(), second.node(), alone.node()), (1, 2, 0));
        assert_eq!(alone.live_nodes(), 3);

        let lease = |cluster: &Cluster| Lease {
            db: db.clone(),
            ids: cluster.ids().clone(),
            incarnation: cluster.incarnation(),
            live_nodes: cluster.0.live_nodes.clone(),
        };
        assert_eq!(lease(&first).renew().await.unwrap(), Some(3));
        let expire = node::Entity::update_many().col_expr(node::Column::ExpiresAt, Expr::value(0));
        let expire = expire.filter(node::Column::Id.eq(1));
        db.transaction(move |tx| {
            let expire = expire.clone();
            async move { Ok::<_, DbFault>(expire.exec(&tx).await?) }
        })
        .await
        .unwrap();
        assert_eq!(join(Membership::Shared).await.node(), 1);
        assert_eq!(lease(&first).renew().await.unwrap(), None);
        assert_eq!(lease(&second).renew().await.unwrap(), Some(3));

        join(Membership::Alone).await;
        let (lost, told) = watch::channel(false);
        lease(&alone).keep(lost).await;
        assert!(*told.borrow());
        assert!(alone.ids().next::<crate::ids::EventId>().is_err());
    }
}
