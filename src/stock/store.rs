//! The stock's business steps in the database, each one transaction or one read.

use std::collections::HashMap;
use std::sync::Arc;

use entities::{activity, take, token_block};
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::ThisNode;
use super::blocks::{self, ClaimedBlock};
use super::changes::no_longer_sold_out;
use super::events::{SoldOut, Taken};
use super::model::{Closed, Take};
use super::user_takes::UserTakes;
use super::window::HeldBlock;
use crate::activity::machine::State;
use crate::activity::model::Window;
use crate::cluster::Cluster;
use crate::db::bulk::{Column, Rows, Script};
use crate::db::{Database, DbFault, Fence, turn};
use crate::idempotency::{self, Answer, RequestKey};
use crate::ids::{ActivityId, BatchId, GoodsId, Ids, TakeId, UserId};
use crate::messaging::outbox::{self, Events};
use crate::order::flash_sale::{Sale, Terms};
use crate::ports::clock::{SharedClock, Timestamp, from_micros, to_micros};
use crate::trace::Traceparent;

/// The stock's door to the database.
#[derive(Debug, Clone)]
pub struct StockStore {
    pub(super) db: Database,
    cluster: Cluster,
    pub(super) clock: SharedClock,
    terms: Terms,
}

/// What a take needs to know of its activity; good as long as the version in the database is `version`.
#[derive(Debug, Clone)]
pub struct ActivityView {
    pub version: i64,
    pub running: bool,
    pub window: Window,
    pub limit: Option<u32>,
    pub sold_out_announced: bool,
    /// Whether anyone ever took; if not, memory is complete from the start.
    pub untouched: bool,
    /// What a take brings in a flash sale: an order on these terms.
    pub sale: Option<Arc<Sale>>,
}

impl ActivityView {
    /// Why nothing is taken at `now`, by state and by date (ACT-4, ACT-8).
    pub fn closed_at(&self, now: Timestamp) -> Option<Closed> {
        if !self.running {
            Some(Closed::NotStarted)
        } else if self.window.is_ahead(now) {
            Some(Closed::TooEarly(self.window.starts_at()))
        } else if self.window.is_over(now) {
            Some(Closed::Over(self.window.ends_at()))
        } else {
            None
        }
    }
}

/// Takes that are to be committed together, with all they bring. Every row of it joins one transaction, in the order
/// of the fields; what else a take may bring (a coupon, a draw) is a further field here.
#[derive(Debug, Clone)]
pub struct Batch {
    pub id: BatchId,
    pub activity: ActivityId,
    /// The version the takes were decided by.
    pub version: i64,
    /// The block all tokens come from.
    pub block: HeldBlock,
    pub takes: Vec<Take>,
    /// What each take is an order for, in a flash sale.
    pub sale: Option<Arc<Sale>>,
    /// The trace of the request behind each take.
    pub parents: Vec<Option<Traceparent>>,
    pub answers: Vec<(RequestKey, Answer)>,
    pub now: Timestamp,
}

/// Why a batch was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The block changed hands or the activity changed: decide again from what the database says.
    #[error("the token block or the activity changed")]
    Stale,
    #[error(transparent)]
    Db(#[from] DbFault),
}

/// The takes of some users in one activity.
const USER_TAKES: &str = "SELECT take.user_id, take.live_take_no FROM {rows} JOIN take ON take.user_id = r.user_id \
    AND take.activity_id = ?";

impl StockStore {
    pub fn new(db: Database, cluster: Cluster, clock: SharedClock, terms: Terms) -> Self {
        Self { db, cluster, clock, terms }
    }

    pub(super) fn ids(&self) -> &Ids {
        self.cluster.ids()
    }

    /// This node as an owner of blocks.
    pub(super) fn this_node(&self) -> ThisNode {
        ThisNode {
            node: self.cluster.node(),
            incarnation: self.cluster.incarnation(),
            live_nodes: self.cluster.live_nodes(),
        }
    }

    /// The activity as it is now; `None` if there is none.
    pub async fn view(&self, id: ActivityId) -> Result<Option<ActivityView>, DbFault> {
        let terms = self.terms;
        self.db
            .read(move |connection| async move {
                let Some(row) = activity::Entity::find_by_id(id.0).one(&connection).await? else {
                    return Ok(None);
                };
                let window = Window::new(from_micros(row.starts_at), from_micros(row.ends_at));
                let window = window.map_err(|_| DbFault::Missing("a valid activity"))?;
                let first_take = take::Entity::find()
                    .select_only()
                    .column(take::Column::Id)
                    .filter(take::Column::ActivityId.eq(id.0))
                    .limit(1);
                let untouched = first_take.into_tuple::<i64>().one(&connection).await?.is_none();
                let sale = row
                    .sale_price_minor
                    .map(|price| Arc::new(Sale::new(id, &row.name, row.goods_id.map(GoodsId), price, terms)));
                Ok(Some(ActivityView {
                    sale,
                    version: row.version,
                    running: row.state == State::Running.word(),
                    window,
                    limit: row.take_limit_per_user.and_then(|limit| u32::try_from(limit).ok()),
                    sold_out_announced: row.sold_out_at.is_some(),
                    untouched,
                }))
            })
            .await
    }

    /// The live take numbers of each of `users`; who never took has none.
    pub async fn user_takes(
        &self,
        activity: ActivityId,
        users: Vec<UserId>,
    ) -> Result<HashMap<UserId, UserTakes>, DbFault> {
        self.db
            .read(move |connection| async move {
                let rows =
                    Rows::new().column("user_id", Column::Big(users.iter().map(|user| user.0).collect()));
                let backend = connection.get_database_backend();
                let found = connection
                    .query_all_raw(rows.statement(backend, USER_TAKES, [activity.0.into()]))
                    .await?;
                let mut numbers: HashMap<UserId, Vec<Option<u32>>> =
                    users.into_iter().map(|user| (user, Vec::new())).collect();
                for row in found {
                    let live: Option<i32> = row.try_get("", "live_take_no")?;
                    let live = live.and_then(|no| u32::try_from(no).ok());
                    numbers.entry(UserId(row.try_get("", "user_id")?)).or_default().push(live);
                }
                Ok(numbers.into_iter().map(|(user, numbers)| (user, numbers.into_iter().collect())).collect())
            })
            .await
    }

    /// The answers kept under `keys`.
    pub async fn kept_answers(&self, keys: Vec<RequestKey>) -> Result<Vec<(RequestKey, Answer)>, DbFault> {
        self.db
            .read(move |connection| async move { idempotency::kept_answers(&connection, &keys).await })
            .await
    }

    /// Tokens for this node to sell; `None` if every token of the activity is sold.
    pub async fn claim(&self, activity: ActivityId) -> Result<Option<ClaimedBlock>, DbFault> {
        let (ids, me) = (self.ids().clone(), self.this_node());
        self.db
            .transaction(move |tx| {
                let ids = ids.clone();
                async move { blocks::claim(&tx, &ids, me, activity).await }
            })
            .await
    }

    /// Gives `held` back, so that other nodes find them free.
    pub async fn hand_back(&self, held: Vec<HeldBlock>) -> Result<(), DbFault> {
        self.db
            .transaction(move |tx| {
                let held = held.clone();
                async move { blocks::hand_back(&tx, &held).await }
            })
            .await
    }

    /// Commits `batch` as one transaction.
    pub async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        commit(&self.db, self.ids(), batch).await
    }

    /// Whether the batch of unknown outcome that wrote the take `witness` stands. The answer is final: its block is fenced off first, which waits for
    /// the old transaction to end (R5).
    pub async fn resolve(&self, witness: TakeId, block: HeldBlock) -> Result<bool, DbFault> {
        self.db.transaction(move |tx| async move { blocks::fence_off(&tx, block.id).await }).await?;
        self.db
            .read(move |connection| async move {
                Ok(take::Entity::find_by_id(witness.0).one(&connection).await?.is_some())
            })
            .await
    }

    /// Whether a batch of `block` would still be let through. Waits for nobody.
    pub async fn holds(&self, block: HeldBlock) -> Result<bool, DbFault> {
        let block =
            token_block::Entity::find_by_id(block.id.0).filter(token_block::Column::Epoch.eq(block.epoch));
        self.db.read(|connection| async move { Ok(block.one(&connection).await?.is_some()) }).await
    }

    /// Whether a token is left, on whatever node.
    pub async fn is_any_left(&self, activity: ActivityId) -> Result<bool, DbFault> {
        self.db.read(move |connection| async move { blocks::is_any_left(&connection, activity).await }).await
    }

    /// Announces, once, that every token is sold; `false` if that is not so any more.
    pub async fn announce_sold_out(&self, activity: ActivityId) -> Result<bool, DbFault> {
        let (ids, clock) = (self.ids().clone(), self.clock.clone());
        self.db
            .transaction(move |tx| {
                let (ids, now) = (ids.clone(), clock.now());
                async move {
                    turn::to_change(&tx, activity.0).await?;
                    let marked = activity::Entity::update_many()
                        .col_expr(activity::Column::SoldOutAt, Some(to_micros(now)).into())
                        .filter(activity::Column::Id.eq(activity.0))
                        .filter(activity::Column::SoldOutAt.is_null())
                        .exec(&tx)
                        .await?;
                    if marked.rows_affected == 0 {
                        return Ok(true);
                    }
                    if !blocks::are_sold_out(&tx, activity).await? {
                        no_longer_sold_out(&tx, activity).await?;
                        return Ok(false);
                    }
                    outbox::append_one(&tx, &ids, now, &SoldOut { activity_id: activity, at: now }).await?;
                    Ok(true)
                }
            })
            .await
    }

    /// A user's takes, newest first, older than `before`.
    pub async fn takes_of(
        &self,
        user: UserId,
        before: Option<TakeId>,
        limit: u64,
    ) -> Result<Vec<Take>, DbFault> {
        self.db
            .read(move |connection| async move {
                let mut query = take::Entity::find().filter(take::Column::UserId.eq(user.0));
                if let Some(before) = before {
                    query = query.filter(take::Column::Id.lt(before.0));
                }
                let rows = query.order_by_desc(take::Column::Id).limit(limit).all(&connection).await?;
                rows.into_iter().map(Take::try_from).collect()
            })
            .await
    }
}

/// Commits `batch` as one transaction, in one go.
pub(super) async fn commit(db: &Database, ids: &Ids, batch: Batch) -> Result<(), CommitError> {
    let events = taken_events(ids, &batch)?;
    let mut script = Script::new();
    insert_takes(&batch, &mut script);
    if let Some(sale) = &batch.sale {
        sale.insert_orders(&batch.takes, &mut script);
    }
    idempotency::keep_all(&batch.answers, batch.now, &mut script);
    outbox::add(batch.id, events, batch.now, &mut script);
    if db.apply(fences(&batch), script).await? { Ok(()) } else { Err(CommitError::Stale) }
}

/// The activity must still be what the takes were decided by, and the block ours; counts them as sold. The lock on the
/// activity makes its changes wait for this batch, and this batch for them.
fn fences(batch: &Batch) -> Vec<Fence> {
    let sold = i32::try_from(batch.takes.len()).unwrap_or(i32::MAX);
    vec![
        Fence::Turn(batch.activity.0),
        Fence::Finds(
            "SELECT 1 FROM activity WHERE id = ? AND version = ?",
            vec![batch.activity.0.into(), batch.version.into()],
        ),
        Fence::Touches(
            "UPDATE token_block SET sold = sold + ? WHERE id = ? AND epoch = ?",
            vec![sold.into(), batch.block.id.0.into(), batch.block.epoch.into()],
        ),
    ]
}

fn insert_takes(batch: &Batch, script: &mut Script) {
    // In one order on every node, so that two batches of the same users wait for each other and do not deadlock (R9).
    let mut takes: Vec<&Take> = batch.takes.iter().collect();
    takes.sort_unstable_by_key(|take| take.user_id);
    let rows = Rows::new()
        .column("id", Column::Big(takes.iter().map(|take| take.id.0).collect()))
        .column("user_id", Column::Big(takes.iter().map(|take| take.user_id.0).collect()))
        .column("token", Column::Int(takes.iter().map(|take| take.token_no).collect()))
        .column("number", Column::Int(takes.iter().map(|take| take.take_no).collect()));
    script.push_rows(
        "INSERT INTO take (id, activity_id, user_id, token_no, take_no, live_token, live_take_no, state, taken_at) \
         SELECT r.id, ?, r.user_id, r.token, r.number, r.token, r.number, 'unused', ? FROM {rows}",
        [batch.activity.0.into(), to_micros(batch.now).into()],
        rows,
    );
}

fn taken_events(ids: &Ids, batch: &Batch) -> Result<Events, DbFault> {
    let mut events = Events::at(batch.now);
    let taken_at = events.time().to_owned();
    for (take, parent) in batch.takes.iter().zip(&batch.parents) {
        let event = Taken {
            take_id: take.id,
            activity_id: take.activity_id,
            user_id: take.user_id,
            token_no: take.token_no,
            take_no: take.take_no,
            taken_at: taken_at.as_str(),
        };
        events.push_traced(ids.next()?, &event, *parent)?;
        if let Some(sale) = &batch.sale {
            events.push_traced(ids.next()?, &sale.created(take), *parent)?;
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn sqlite_looks_users_up_and_reads_no_other_takes() {
        let (_place, db) = crate::db::testing::fresh().await;
        let rows = Rows::new().column("user_id", Column::Big(vec![1, 2]));
        let explain = format!("EXPLAIN QUERY PLAN {USER_TAKES}");
        let explain = rows.statement(db.backend(), &explain, [7.into()]);
        let plan = db.read::<_, DbFault, _, _>(|connection| async move {
            let steps = connection.query_all_raw(explain).await?;
            Ok(steps.iter().map(|step| step.try_get("", "detail")).collect::<Result<Vec<String>, _>>()?)
        });
        let plan = plan.await.unwrap();
        assert!(
            plan[0].starts_with("SCAN json_each") && plan[1].contains("user_id=? AND activity_id=?"),
            "{plan:?}"
        );
        db.close().await;
    }

    #[test]
    fn takes_are_let_in_from_the_first_moment_to_the_last() {
        let (start, tick) = (Timestamp::UNIX_EPOCH, TimeDelta::microseconds(1));
        let end = start + TimeDelta::hours(1);
        let view = ActivityView {
            version: 1,
            running: true,
            window: Window::new(start, end).unwrap(),
            limit: None,
            sold_out_announced: false,
            untouched: true,
            sale: None,
        };
        assert_eq!(view.closed_at(start - tick), Some(Closed::TooEarly(start)));
        assert_eq!(view.closed_at(start), None);
        assert_eq!(view.closed_at(end), None);
        assert_eq!(view.closed_at(end + tick), Some(Closed::Over(end)));
        assert_eq!(ActivityView { running: false, ..view }.closed_at(start), Some(Closed::NotStarted));
    }
}
