//! Goods sold to orders, each story on a new database of every kind there is. `tests/run` starts them.

use std::sync::Arc;
use std::time::Duration;

use entities::{goods, goods_ledger, orders};
use futures_util::future::{join, join_all};
use rstest::rstest;
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder};
use tokio::runtime::Handle;

use super::model::{Adjustment, CatalogError, Description, Edit, Name, NewGoods, Price, State, Stock};
use super::reconcile::GoodsAgainstLedger;
use super::returns::{give_back, group};
use super::{CatalogService, ReserveError, store};
use crate::actors::batching::{AdmissionLimits, BatchSettings};
use crate::db::bulk::{Column, Rows};
use crate::db::testing::{Engine, TestDatabase, fresh_on};
use crate::db::{Database, DbFault};
use crate::idempotency::Answered;
use crate::ids::{GoodsId, Ids, LedgerEntryId, OrderId, UserId};
use crate::messaging::consumer::Effect;
use crate::messaging::envelope::Envelope;
use crate::ports::clock::{Clock, ManualClock, Timestamp, to_micros};
use crate::reconciliation::Comparison;
use Engine::{MariaDb, Postgres, Sqlite};

const OPERATOR: UserId = UserId(1);

struct Story {
    _place: TestDatabase,
    db: Database,
    clock: Arc<ManualClock>,
    ids: Ids,
    catalog: CatalogService,
}

impl Story {
    async fn begin(engine: Engine) -> Self {
        let (place, db) = fresh_on(engine).await;
        let clock = Arc::new(ManualClock::new(Timestamp::from_timestamp(1_800_000_000, 0).unwrap()));
        let ids = Ids::new(1, clock.as_ref(), Duration::from_secs(600));
        let catalog = node(&db, &ids, &clock);
        Self { _place: place, db, clock, ids, catalog }
    }

    async fn goods(&self, stock_total: i32) -> GoodsId {
        let name = Name::parse("Mooncakes".to_owned()).unwrap();
        let (description, price) = (Description::default(), Price::parse(1999).unwrap());
        let new = NewGoods { name, description, store: None, price, stock_total };
        match self.catalog.create(OPERATOR, new, None).await.unwrap() {
            Answered::Fresh(goods) => goods.id,
            Answered::Replayed(_) => unreachable!("it has no key"),
        }
    }

    fn against_ledger(&self) -> GoodsAgainstLedger {
        GoodsAgainstLedger { db: self.db.clone(), clock: self.clock.clone() }
    }

    async fn order(&self) -> OrderId {
        self.orders(1).await[0]
    }

    /// New drafts.
    async fn orders(&self, count: usize) -> Vec<OrderId> {
        let ids: Vec<OrderId> = (0..count).map(|_| self.ids.next().unwrap()).collect();
        let rows: Vec<_> = ids.iter().copied().map(draft).collect();
        let inserting = self.db.transaction::<_, DbFault, _, _>(move |tx| {
            let rows = rows.clone();
            async move {
                orders::Entity::insert_many(rows).exec_without_returning(&tx).await?;
                Ok(())
            }
        });
        inserting.await.unwrap();
        ids
    }

    /// Ends the making of an order.
    async fn becomes(&self, order: OrderId, state: &'static str) {
        let changing = self.db.transaction::<_, DbFault, _, _>(move |tx| async move {
            let change = orders::Entity::update_many().col_expr(orders::Column::State, Expr::value(state));
            change.filter(orders::Column::Id.eq(order.0)).exec(&tx).await?;
            Ok(())
        });
        changing.await.unwrap();
    }

    async fn give_back(&self, orders: &[OrderId]) -> Vec<GoodsId> {
        let (ids, now, orders) = (self.ids.clone(), self.clock.now(), orders.to_vec());
        let giving = self.db.transaction(move |tx| {
            let (ids, orders) = (ids.clone(), orders.clone());
            async move { give_back(&tx, &ids, now, &orders).await }
        });
        giving.await.unwrap()
    }

    async fn adjust(&self, goods: GoodsId, delta: i32) -> Result<Stock, CatalogError> {
        let change = Adjustment { goods, delta, reason: "a story".to_owned(), by: OPERATOR };
        match self.catalog.adjust(change, None).await? {
            Answered::Fresh(adjusted) => Ok(adjusted.stock),
            Answered::Replayed(_) => unreachable!("it has no key"),
        }
    }

    async fn stock(&self, goods: GoodsId) -> Stock {
        self.catalog.get(goods).await.unwrap().unwrap().stock
    }

    /// Kinds and quantities, in the order they were written.
    async fn ledger(&self, goods: GoodsId) -> Vec<(String, i32)> {
        let read = self.db.read::<_, DbFault, _, _>(move |connection| async move {
            let entries = goods_ledger::Entity::find().filter(goods_ledger::Column::GoodsId.eq(goods.0));
            Ok(entries.order_by_asc(goods_ledger::Column::Id).all(&connection).await?)
        });
        read.await.unwrap().into_iter().map(|entry| (entry.kind, entry.quantity)).collect()
    }

    async fn ends(self) {
        let differences = self.against_ledger().compare().await.unwrap();
        assert_eq!(differences, []);
        self.catalog.stop().await;
        self.db.close().await;
    }
}

/// Another node's view of the same goods.
fn node(db: &Database, ids: &Ids, clock: &Arc<ManualClock>) -> CatalogService {
    let admission =
        AdmissionLimits { waiting_per_key: 4096, waiting_in_process: 4096, wait: Duration::from_secs(30) };
    let (answer_deadline, passivate_after) = (Duration::from_secs(30), Duration::from_secs(3600));
    let settings = BatchSettings { max_batch: 16, admission, answer_deadline, passivate_after };
    CatalogService::new(db.clone(), ids.clone(), clock.clone(), "CNY".parse().unwrap(), settings)
}

fn draft(id: OrderId) -> orders::ActiveModel {
    orders::ActiveModel {
        id: Set(id.0),
        user_id: Set(2),
        kind: Set("shop".to_owned()),
        state: Set("draft".to_owned()),
        version: Set(1),
        activity_id: Set(None),
        items: Set("[]".to_owned()),
        address: Set(None),
        goods_amount_minor: Set(0),
        shipping_fee_minor: Set(0),
        order_amount_minor: Set(0),
        coupon_id: Set(None),
        coupon_deduction_minor: Set(0),
        balance_paid_minor: Set(0),
        payable_minor: Set(0),
        currency: Set("CNY".to_owned()),
        due_at: Set(0),
        paid_payment_id: Set(None),
        refund_from: Set(None),
        cancel_cause: Set(None),
        created_at: Set(0),
        updated_at: Set(0),
    }
}

const INSUFFICIENT: fn(i32) -> Result<(), ReserveError> =
    |available| Err(ReserveError::Insufficient { available });

/// the last unit can be sold. Who wants more than is left goes empty, who is behind and wants less does not.
#[rstest]
#[actix_web::test]
async fn the_last_unit_is_sold(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let goods = story.goods(5).await;
    let orders = story.orders(4).await;
    let wishes = orders.iter().zip([3, 3, 2, 1]);
    let answers = join_all(wishes.map(|(order, units)| story.catalog.reserve(*order, goods, units))).await;
    assert_eq!(answers, [Ok(()), INSUFFICIENT(2), Ok(()), INSUFFICIENT(0)]);
    assert_eq!(story.stock(goods).await, Stock { total: 5, available: 0 });
    let sales = [("opening", 5), ("sale", -3), ("sale", -2)].map(|(kind, n)| (kind.to_owned(), n));
    assert_eq!(story.ledger(goods).await, sales);
    // From memory.
    assert_eq!(story.catalog.reserve(story.order().await, goods, 1).await, INSUFFICIENT(0));
    story.ends().await;
}

#[rstest]
#[actix_web::test]
async fn an_order_gets_its_units_once(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let (goods, other) = (story.goods(3).await, story.goods(3).await);
    let order = story.order().await;
    let again = node(&story.db, &story.ids, &story.clock);
    let twice = (0..2).map(|_| story.catalog.reserve(order, goods, 3));
    let elsewhere = (0..2).map(|_| again.reserve(order, goods, 3));
    let (here, there) = join(join_all(twice), join_all(elsewhere)).await;
    assert!(here.iter().chain(&there).all(Result::is_ok), "{here:?} {there:?}");
    assert_eq!(story.stock(goods).await, Stock { total: 3, available: 0 });

    // Found empty, its own order is still told that it has its units.
    assert_eq!(story.catalog.reserve(story.order().await, goods, 1).await, INSUFFICIENT(0));
    assert_eq!(story.catalog.reserve(order, goods, 3).await, Ok(()));
    assert_eq!(story.catalog.reserve(order, other, 1).await, Ok(()));
    again.stop().await;
    story.ends().await;
}

/// A step of the saga never happens behind its order's back.
#[rstest]
#[actix_web::test]
async fn only_drafts_get_units(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let goods = story.goods(3).await;
    let (order, nobody): (_, OrderId) = (story.order().await, story.ids.next().unwrap());
    story.becomes(order, "invalid").await;
    assert_eq!(story.catalog.reserve(order, goods, 1).await, Err(ReserveError::NotDraft));
    assert_eq!(story.catalog.reserve(nobody, goods, 1).await, Err(ReserveError::NotDraft));

    let order = story.order().await;
    assert_eq!(story.catalog.reserve(order, GoodsId(7), 1).await, Err(ReserveError::NotFound));
    let hidden = Edit { state: Some(State::OffSale), ..Edit::default() };
    story.catalog.edit(goods, hidden).await.unwrap();
    assert_eq!(story.catalog.reserve(order, goods, 1).await, Err(ReserveError::NotFound));
    assert_eq!(story.stock(goods).await, Stock { total: 3, available: 3 });
    story.ends().await;
}

/// A ledger of several pages, of which the end is not settled, while the goods are sold.
#[rstest]
#[actix_web::test]
async fn a_long_ledger_is_added_up_while_it_grows(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let goods = story.goods(30_000).await;
    let (ids, at) = (story.ids.clone(), to_micros(story.clock.now()));
    let filling = story.db.transaction::<_, DbFault, _, _>(move |tx| {
        let ids = ids.clone();
        async move {
            for _ in 0..12 {
                let entries: Vec<i64> =
                    (0..1000).map(|_| Ok(ids.next::<LedgerEntryId>()?.0)).collect::<Result<_, DbFault>>()?;
                let rows = Rows::new().column("id", Column::Big(entries));
                let sell = "INSERT INTO goods_ledger (id, goods_id, reference_id, kind, quantity, created_at) \
                    SELECT r.id, ?, r.id, 'sale', -1, ? FROM {rows}";
                let values = [goods.0.into(), at.into()];
                tx.execute_raw(rows.statement(tx.get_database_backend(), sell, values)).await?;
            }
            let sold = goods::Entity::update_many().col_expr(goods::Column::Available, Expr::value(18_000));
            sold.filter(goods::Column::Id.eq(goods.0)).exec(&tx).await?;
            Ok(())
        }
    });
    filling.await.unwrap();
    let against = story.against_ledger();
    assert_eq!(against.compare().await.unwrap(), [], "nothing is settled");
    story.clock.advance(chrono::TimeDelta::minutes(2));
    let orders = story.orders(40).await;
    let selling = async {
        for order in orders {
            assert_eq!(story.catalog.reserve(order, goods, 1).await, Ok(()));
        }
    };
    let comparing = async {
        for _ in 0..5 {
            assert_eq!(against.compare().await.unwrap(), [], "while they are sold");
        }
    };
    join(selling, comparing).await;

    let losing = story.db.transaction::<_, DbFault, _, _>(move |tx| async move {
        let change = goods::Entity::update_many().col_expr(goods::Column::Available, Expr::value(17_959));
        change.filter(goods::Column::Id.eq(goods.0)).exec(&tx).await?;
        Ok(())
    });
    losing.await.unwrap();
    let found = against.compare().await.unwrap();
    let subjects: Vec<_> =
        found.iter().map(|found| (found.expected.as_str(), found.found.as_str())).collect();
    assert_eq!(subjects, [("30000 units, 17960 free", "30000 units, 17959 free")]);
    assert!(against.apply(&found[0].subject).await.unwrap().is_some());
    assert_eq!(against.compare().await.unwrap(), []);
    assert_eq!(story.stock(goods).await, Stock { total: 30_000, available: 17_960 });
    story.ends().await;
}

/// what was taken comes back, all of it, once, and nothing else does.
#[rstest]
#[actix_web::test]
async fn what_an_order_held_comes_back_once(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let (tea, cups) = (story.goods(10).await, story.goods(10).await);
    let orders = story.orders(3).await;
    let [both, one, none] = orders[..] else { unreachable!("three") };
    story.catalog.reserve(both, tea, 2).await.unwrap();
    story.catalog.reserve(both, cups, 3).await.unwrap();
    story.catalog.reserve(one, tea, 8).await.unwrap();
    assert_eq!(story.catalog.reserve(story.order().await, tea, 1).await, INSUFFICIENT(0));

    for order in &orders {
        story.becomes(*order, "cancelled").await;
    }
    let (mut first, second) = join(story.give_back(&orders), story.give_back(&[one, both, one])).await;
    first.extend(second);
    first.sort_unstable();
    first.dedup();
    assert_eq!(first, [tea, cups]);
    assert_eq!(story.give_back(&[none, both]).await, []);
    assert_eq!(story.give_back(&[]).await, []);
    for goods in [tea, cups] {
        assert_eq!(story.stock(goods).await, Stock { total: 10, available: 10 });
    }
    assert_eq!(story.catalog.reserve(both, tea, 2).await, Err(ReserveError::NotDraft));
    let (order, again) = (story.order().await, node(&story.db, &story.ids, &story.clock));
    assert_eq!(again.reserve(order, tea, 10).await, Ok(()));
    again.stop().await;
    story.ends().await;
}

/// R5: a transaction that was given up may still be on its way; nobody is answered before it is known what it did.
#[rstest]
#[actix_web::test]
async fn a_batch_of_unknown_outcome_is_resolved_before_it_is_answered(
    #[values(Sqlite, Postgres, MariaDb)] engine: Engine,
) {
    let story = Story::begin(engine).await;
    let mut settings = story.db.settings().clone();
    settings.deadline = Duration::from_millis(400);
    let impatient = Database::connect(settings, Handle::current()).await.unwrap();
    let catalog = node(&impatient, &story.ids, &story.clock);
    let goods = story.goods(3).await;
    let orders = story.orders(2).await;
    let (holds, held) = tokio::sync::oneshot::channel();
    let holding = story.db.transaction_once::<_, DbFault, _, _>(move |tx| async move {
        store::lock(&tx, goods).await?;
        let _ = holds.send(());
        tokio::time::sleep(Duration::from_millis(1200)).await;
        Ok(())
    });
    let selling = async {
        held.await.unwrap();
        join_all(orders.iter().map(|order| catalog.reserve(*order, goods, 2))).await
    };
    let (released, answers) = join(holding, selling).await;
    released.unwrap();
    assert_eq!(answers, [Ok(()), INSUFFICIENT(1)]);
    assert_eq!(story.stock(goods).await, Stock { total: 3, available: 1 });
    assert_eq!(story.ledger(goods).await.len(), 2);
    catalog.stop().await;
    impatient.close().await;
    story.ends().await;
}

/// two nodes sell, an operator adds and withdraws, orders give back; in the end every unit is where it belongs.
#[rstest]
#[actix_web::test]
async fn stock_is_exact_while_two_nodes_sell(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let goods = story.goods(100).await;
    let other = node(&story.db, &story.ids, &story.clock);
    let orders = story.orders(120).await;
    let selling = join_all(orders.iter().enumerate().map(|(i, order)| {
        let node = if i % 2 == 0 { &story.catalog } else { &other };
        async move { (i, node.reserve(*order, goods, i32::try_from(i % 3).unwrap() + 1).await) }
    }));
    let adjusting = async {
        for delta in [20, -15, -400, 7, -30, 18] {
            match story.adjust(goods, delta).await {
                Ok(_) | Err(CatalogError::Insufficient { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let returning = async {
        for order in &orders[..10] {
            // Some have units by now, some may get them: a shared lock decides.
            story.becomes(*order, "cancelled").await;
            story.give_back(&[*order]).await;
        }
    };
    let (answers, _) = join(selling, join(adjusting, returning)).await;
    story.give_back(&orders[..10]).await;

    let sold: i32 = answers
        .iter()
        .filter(|(i, answer)| *i >= 10 && answer.is_ok())
        .map(|(i, _)| i32::try_from(i % 3).unwrap() + 1)
        .sum();
    let stock = story.stock(goods).await;
    assert_eq!(stock.available, stock.total - sold);
    for (_, answer) in answers {
        match answer {
            Ok(()) | Err(ReserveError::Insufficient { .. } | ReserveError::NotDraft) => {}
            Err(error) => panic!("{error}"),
        }
    }
    // Demand lasts: whoever asks a node without a hint gets the rest, to the last unit.
    let fresh = node(&story.db, &story.ids, &story.clock);
    for order in story.orders(usize::try_from(stock.available).unwrap()).await {
        assert_eq!(fresh.reserve(order, goods, 1).await, Ok(()));
    }
    assert_eq!(story.stock(goods).await.available, 0);
    join(other.stop(), fresh.stop()).await;
    story.ends().await;
}

/// what the event says is what the ledger knows, so nothing of it can be misread.
#[rstest]
#[actix_web::test]
async fn events_of_orders_bring_units_back(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    const CANCELLED: &str = include_str!("../../tests/fixtures/events/order.cancelled.v1.json");
    const REFUNDED: &str = include_str!("../../tests/fixtures/events/order.refunded.v1.json");
    const ORDER: &str = "117546623994691586";
    let story = Story::begin(engine).await;
    let Effect::Inside(handler) = group(story.ids.clone(), story.clock.clone()).effect else {
        unreachable!()
    };
    let goods = story.goods(10).await;
    let orders = story.orders(3).await;
    for order in &orders {
        story.catalog.reserve(*order, goods, 2).await.unwrap();
    }
    let events = [
        CANCELLED.replace(ORDER, &orders[0].to_string()),
        REFUNDED.replace(ORDER, &orders[1].to_string()).replace("\"shipped\": true", "\"shipped\": false"),
        // These goods have left.
        REFUNDED.replace(ORDER, &orders[2].to_string()),
    ];
    let events = events.map(|event| Envelope::parse(event.as_bytes()).unwrap());
    for _ in 0..2 {
        let (handler, events) = (handler.clone(), events.clone());
        let applying = story.db.transaction(move |tx| {
            let (handler, events) = (handler.clone(), events.clone());
            async move { handler.apply(&tx, &events).await }
        });
        applying.await.unwrap();
    }
    assert_eq!(story.stock(goods).await, Stock { total: 10, available: 8 });
    story.ends().await;
}

#[rstest]
#[actix_web::test]
async fn an_adjustment_is_known_at_once(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let goods = story.goods(0).await;
    let orders = story.orders(3).await;
    assert_eq!(story.catalog.reserve(orders[0], goods, 1).await, INSUFFICIENT(0));
    assert_eq!(story.adjust(goods, 1).await.unwrap(), Stock { total: 1, available: 1 });
    assert_eq!(story.catalog.reserve(orders[1], goods, 1).await, Ok(()));
    assert_eq!(story.catalog.reserve(orders[2], goods, 1).await, INSUFFICIENT(0));
    assert!(matches!(story.adjust(goods, -1).await, Err(CatalogError::Insufficient { available: 0 })));
    assert!(matches!(story.adjust(goods, i32::MAX).await, Err(CatalogError::OutOfRange(_))));
    assert!(matches!(story.adjust(GoodsId(7), 1).await, Err(CatalogError::NotFound)));
    assert_eq!(story.stock(goods).await, Stock { total: 1, available: 0 });
    story.ends().await;
}

#[rstest]
#[actix_web::test]
async fn a_difference_from_the_ledger_is_found_and_mended(
    #[values(Sqlite, Postgres, MariaDb)] engine: Engine,
) {
    let story = Story::begin(engine).await;
    let goods = story.goods(10).await;
    story.catalog.reserve(story.order().await, goods, 4).await.unwrap();
    let breaking = story.db.transaction::<_, DbFault, _, _>(move |tx| async move {
        use entities::goods::{Column, Entity};
        let change = Entity::update_many().col_expr(Column::Available, Expr::value(9));
        change.filter(Column::Id.eq(goods.0)).exec(&tx).await?;
        Ok(())
    });
    breaking.await.unwrap();
    let comparison = story.against_ledger();
    let found = comparison.compare().await.unwrap();
    let [difference] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (difference.expected.as_str(), difference.found.as_str()),
        ("10 units, 6 free", "10 units, 9 free")
    );
    let done = comparison.apply(&difference.subject).await.unwrap();
    assert_eq!(done.as_deref(), Some("9 of 10 units were free, now 6 of 10"));
    assert_eq!(comparison.apply(&difference.subject).await.unwrap(), None);
    story.ends().await;
}
