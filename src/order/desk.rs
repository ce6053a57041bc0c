//! What the lanes of orders do: new drafts, and steps of orders, many in one transaction, each answer kept for repeats
//! of its request.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use entities::order_request;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryResult};

use super::machine::State;
use super::model::Order;
use super::store::{self, Policy, Step, StepRefusal};
use crate::actors::lanes::Desk;
use crate::catalog::returns::holds_units;
use crate::db::bulk::{Column, Rows, Script};
use crate::db::{DbFault, Tx};
use crate::idempotency::{self, Answer, Answered, KeyRefusal, RequestKey};
use crate::ids::{Ids, OrderId};
use crate::jobs::{Log, Stamp};
use crate::ports::clock::{SharedClock, to_micros};

/// What is asked of one order.
#[derive(Debug, Clone)]
pub enum Work {
    /// To be stored as it is: the first step of the saga.
    Draft { order: Arc<Order>, key: Option<RequestKey> },
    /// To go on.
    Step { step: Step, key: Option<RequestKey>, status: u16 },
}

impl Work {
    pub fn order(&self) -> OrderId {
        match self {
            Self::Draft { order, .. } => order.id,
            Self::Step { step, .. } => step.order,
        }
    }
}

/// Why an order was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkRefusal {
    #[error(transparent)]
    Step(#[from] StepRefusal),
    #[error(transparent)]
    Key(#[from] KeyRefusal),
}

/// See the module.
#[derive(Debug, Clone)]
pub struct OrderDesk {
    pub ids: Ids,
    pub clock: SharedClock,
    pub policy: Policy,
}

impl Desk for OrderDesk {
    const NAME: &'static str = "orders";
    type Item = Work;
    type Done = Answered<Order>;
    type Refusal = WorkRefusal;

    async fn settle(
        &self,
        tx: Tx,
        items: Arc<[Work]>,
    ) -> Result<Vec<Result<Answered<Order>, WorkRefusal>>, DbFault> {
        let mut kept = kept_answers(&tx, &items).await?;
        let begun = begun_requests(&tx, &items).await?;
        let stored = stored_drafts(&tx, &items).await?;
        let mut answers: Vec<Option<Result<Answered<Order>, WorkRefusal>>> = Vec::with_capacity(items.len());
        let (mut drafts, mut steps) = (Vec::new(), Vec::new());
        let mut drafted: HashMap<[u8; 32], OrderId> = begun;
        for work in items.iter() {
            let repeat = key_of(work).and_then(|key| {
                let (first, answer) = kept.get(&key.id)?;
                Some(key.replay(first, answer.clone()).map_err(WorkRefusal::from))
            });
            answers.push(match (repeat, work) {
                (Some(repeat), _) => Some(repeat),
                (None, Work::Draft { order, key }) => match key {
                    Some(key) if drafted.get(&key.id).is_some_and(|begun| *begun != order.id) => {
                        Some(Err(KeyRefusal::InProgress.into()))
                    }
                    key => {
                        if let Some(key) = key {
                            drafted.insert(key.id, order.id);
                        }
                        if !stored.contains(&order.id) {
                            drafts.push((order.clone(), *key));
                        }
                        Some(Ok(Answered::Fresh(order.as_ref().clone())))
                    }
                },
                (None, Work::Step { step, .. }) => {
                    steps.push(step.clone());
                    None
                }
            });
        }
        insert_drafts(&tx, &drafts, &self.clock).await?;
        let now = self.clock.now();
        let mut advanced = store::advance(&tx, &self.ids, now, self.policy, &steps).await?.into_iter();
        let mut to_keep = Vec::new();
        for (work, answer) in items.iter().zip(&mut answers) {
            let (None, Work::Step { key, status, .. }) = (&answer, work) else { continue };
            let Some(result) = advanced.next() else { return Err(DbFault::Missing("an answer to a step")) };
            *answer = Some(match (result, key) {
                (Err(refusal), _) => Err(refusal.into()),
                (Ok(advanced), None) => Ok(Answered::Fresh(advanced.into_order())),
                (Ok(advanced), Some(key)) => {
                    let order = advanced.into_order();
                    let first = Answer { status: *status, body: serde_json::to_string(&order.view()?)? };
                    match kept.insert(key.id, (*key, first.clone())) {
                        // A twin within this group was first.
                        Some((twin, answer)) => key.replay(&twin, answer).map_err(WorkRefusal::from),
                        None => {
                            to_keep.push((*key, first));
                            Ok(Answered::Fresh(order))
                        }
                    }
                }
            });
        }
        let mut script = Script::new();
        idempotency::keep_all(&to_keep, now, &mut script);
        if !to_keep.is_empty() {
            script.execute(&tx).await?;
        }
        answers.into_iter().map(|answer| answer.ok_or(DbFault::Missing("an answer to an order"))).collect()
    }
}

fn key_of(work: &Work) -> Option<RequestKey> {
    match work {
        Work::Draft { key, .. } | Work::Step { key, .. } => *key,
    }
}

async fn kept_answers(tx: &Tx, items: &[Work]) -> Result<HashMap<[u8; 32], (RequestKey, Answer)>, DbFault> {
    let keys: Vec<RequestKey> = items.iter().filter_map(key_of).collect();
    let kept = idempotency::kept_answers(tx, &keys).await?;
    Ok(kept.into_iter().map(|(key, answer)| (key.id, (key, answer))).collect())
}

/// What requests with the keys of new drafts began already, unless it came to nothing: then its row is forgotten, and the
/// request is judged anew.
async fn begun_requests(tx: &Tx, items: &[Work]) -> Result<HashMap<[u8; 32], OrderId>, DbFault> {
    let keys = items.iter().filter_map(|work| match work {
        Work::Draft { key: Some(key), .. } => Some(key.id),
        Work::Draft { key: None, .. } | Work::Step { .. } => None,
    });
    let (mut begun, mut forgotten) = (HashMap::new(), Vec::new());
    for (key, first) in requests(tx, keys.collect()).await? {
        match first {
            Begun::UnderWay(order) => drop(begun.insert(key, order)),
            Begun::ForNothing => forgotten.push(key.to_vec()),
        }
    }
    if !forgotten.is_empty() {
        order_request::Entity::delete_many()
            .filter(order_request::Column::Id.is_in(forgotten))
            .exec(tx)
            .await?;
    }
    Ok(begun)
}

/// What became of the order that a request began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It stands, may yet, or came to nothing and still holds something: what a repeat would want is on its way back.
    UnderWay(OrderId),
    /// It came to nothing, and nothing of it remains.
    ForNothing,
}

/// What requests with `keys` began.
pub async fn requests(
    connection: &impl ConnectionTrait,
    keys: Vec<[u8; 32]>,
) -> Result<Vec<([u8; 32], Begun)>, DbFault> {
    const BEGUN: &str = concat!(
        "SELECT q.id, q.order_id, CASE WHEN o.id IS NULL THEN 1 WHEN o.state <> ? THEN 0 WHEN ",
        holds_units!(),
        " THEN 0 \
        WHEN EXISTS (SELECT 1 FROM user_coupon AS c WHERE c.order_id = o.id AND c.state = 'locked') THEN 0 \
        WHEN EXISTS (SELECT 1 FROM wallet_entry AS p WHERE p.reference_id = o.id AND p.kind = 'pay' \
        AND NOT EXISTS (SELECT 1 FROM wallet_entry AS b WHERE b.reference_id = p.reference_id \
        AND b.user_id = p.user_id AND b.kind = 'refund')) THEN 0 ELSE 1 END AS for_nothing \
        FROM {rows} JOIN order_request AS q ON q.id = r.id LEFT JOIN orders AS o ON o.id = q.order_id"
    );
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = Rows::new().column("id", Column::Hash(keys));
    let invalid = [State::Invalid.word().into()];
    let found = connection.query_all_raw(rows.statement(connection.get_database_backend(), BEGUN, invalid));
    let begun = |row: &QueryResult| {
        let key: Vec<u8> = row.try_get("", "id")?;
        let key = key.try_into().map_err(|_| DbFault::Missing("a 32-byte hash"))?;
        let first = match row.try_get::<i32>("", "for_nothing")? {
            0 => Begun::UnderWay(OrderId(row.try_get("", "order_id")?)),
            _ => Begun::ForNothing,
        };
        Ok((key, first))
    };
    found.await?.iter().map(begun).collect()
}

/// The requests that began orders, for repeats of them.
pub const REQUESTS: Log = Log {
    table: "order_request",
    aged_by: "created_at",
    stamped_by: Stamp::Server,
    kept_for: chrono::TimeDelta::hours(24),
    only_if: None,
};

/// The new drafts that are there already: a group of unknown outcome is asked again.
async fn stored_drafts(tx: &Tx, items: &[Work]) -> Result<HashSet<OrderId>, DbFault> {
    let drafts = items.iter().filter(|work| matches!(work, Work::Draft { .. }));
    let ids: Vec<i64> = drafts.map(|work| work.order().0).collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = Rows::new().column("id", Column::Big(ids));
    let sql = "SELECT o.id FROM {rows} JOIN orders o ON o.id = r.id";
    let found = tx.query_all_raw(rows.statement(tx.get_database_backend(), sql, [])).await?;
    found.iter().map(|row| Ok(OrderId(row.try_get("", "id")?))).collect()
}

async fn insert_drafts(
    tx: &Tx,
    drafts: &[(Arc<Order>, Option<RequestKey>)],
    clock: &SharedClock,
) -> Result<(), DbFault> {
    if drafts.is_empty() {
        return Ok(());
    }
    let now = to_micros(clock.now());
    let mut script = Script::new();
    let orders: Vec<&Order> = drafts.iter().map(|(order, _)| order.as_ref()).collect();
    store::insert_all(&orders, &mut script);
    let keyed: Vec<(RequestKey, OrderId)> =
        drafts.iter().filter_map(|(order, key)| Some(((*key)?, order.id))).collect();
    if !keyed.is_empty() {
        let rows = Rows::new()
            .column("id", Column::Hash(keyed.iter().map(|(key, _)| key.id).collect()))
            .column("order_id", Column::Big(keyed.iter().map(|(_, order)| order.0).collect()));
        script.push_rows(
            "INSERT INTO order_request (id, order_id, created_at) SELECT r.id, r.order_id, ? FROM {rows}",
            [now.into()],
            rows,
        );
    }
    script.execute(tx).await?;
    Ok(())
}
