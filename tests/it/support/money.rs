//! What must hold of orders and their money, wherever the server was stopped (I3, I6, I7, I8).
//!
//! What an event has still to bring about is asked for only once the log of its consumer group says that it did.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use entities::{
    activity, consumer_log, goods_ledger, order_event, orders, outbox, payment, points_entry, refund, take,
    wallet_account, wallet_entry,
};
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder};
use serde_json::Value;

/// Checks everything. No server runs.
pub(crate) async fn check(connection: &DatabaseConnection) {
    let books = Books::read(connection).await;
    books.flash_sales_have_takes();
    let told = books.told();
    for order in books.orders.values() {
        books.history_is_a_path(order);
        books.money_adds_up(order, &told);
        books.stock_is_held(order);
        books.balance_is_held(order);
    }
    books.refunds_return_captures();
    books.ended_orders_hold_no_token();
    accounts_are_their_entries(connection).await;
}

/// All there is about orders.
struct Books {
    orders: BTreeMap<i64, orders::Model>,
    history: HashMap<i64, Vec<order_event::Model>>,
    /// Captured ones, by order.
    captures: HashMap<i64, Vec<payment::Model>>,
    refunds: HashMap<i64, Vec<refund::Model>>,
    takes: BTreeMap<i64, take::Model>,
    flash_sales: HashSet<i64>,
    sales: HashMap<i64, Vec<goods_ledger::Model>>,
    wallet: HashMap<i64, Vec<wallet_entry::Model>>,
    /// Type, subject's order, and data of each event, by its id.
    events: HashMap<i64, (String, Value)>,
    /// Which groups have applied which events.
    applied: HashSet<(String, i64)>,
}

macro_rules! all {
    ($connection:ident, $table:ident) => {
        $table::Entity::find().all($connection).await.unwrap()
    };
}

fn by_order<T>(rows: Vec<T>, order: impl Fn(&T) -> i64) -> HashMap<i64, Vec<T>> {
    let mut groups: HashMap<i64, Vec<T>> = HashMap::new();
    for row in rows {
        groups.entry(order(&row)).or_default().push(row);
    }
    groups
}

impl Books {
    async fn read(connection: &DatabaseConnection) -> Self {
        let history = order_event::Entity::find().order_by_asc(order_event::Column::Version);
        let captured = payment::Entity::find().filter(payment::Column::State.eq("succeeded"));
        let moved = goods_ledger::Entity::find().filter(goods_ledger::Column::Kind.is_in(["sale", "return"]));
        let spent = wallet_entry::Entity::find().filter(wallet_entry::Column::Kind.is_in(["pay", "refund"]));
        let activities = all!(connection, activity).into_iter();
        let mut events = HashMap::new();
        for row in all!(connection, outbox) {
            for mut event in serde_json::from_str::<Vec<Value>>(&row.events).unwrap() {
                let text = |member: &str| event[member].as_str().unwrap().to_owned();
                let (id, event_type) = (text("id").parse().unwrap(), text("type"));
                events.insert(id, (event_type, event["data"].take()));
            }
        }
        Self {
            orders: all!(connection, orders).into_iter().map(|order| (order.id, order)).collect(),
            history: by_order(history.all(connection).await.unwrap(), |entry| entry.order_id),
            captures: by_order(captured.all(connection).await.unwrap(), |payment| payment.order_id),
            refunds: by_order(all!(connection, refund), |refund| refund.order_id),
            takes: all!(connection, take).into_iter().map(|take| (take.id, take)).collect(),
            flash_sales: activities.filter(|it| it.kind == "flash_sale").map(|it| it.id).collect(),
            sales: by_order(moved.all(connection).await.unwrap(), |entry| entry.reference_id),
            wallet: by_order(spent.all(connection).await.unwrap(), |entry| entry.reference_id),
            events,
            applied: all!(connection, consumer_log)
                .into_iter()
                .map(|entry| (entry.group_name, entry.event_id))
                .collect(),
        }
    }

    /// The data of each event of a type that `group` has applied.
    fn applied<'a>(&'a self, group: &'a str, event_type: &'a str) -> impl Iterator<Item = &'a Value> {
        self.applied.iter().filter(move |(name, _)| name == group).filter_map(move |(_, id)| {
            let (found, data) = self.events.get(id)?;
            (found == event_type).then_some(data)
        })
    }

    /// The captures of which their orders were told.
    fn told(&self) -> HashSet<i64> {
        let told = self.applied("order_payments", "payment.succeeded.v1");
        told.map(|event| event["payment_id"].as_str().unwrap().parse().unwrap()).collect()
    }

    /// I3: each order of a flash sale has its take, and each take its order.
    fn flash_sales_have_takes(&self) {
        for order in self.orders.values().filter(|order| order.kind == "flash_sale") {
            let take =
                self.takes.get(&order.id).unwrap_or_else(|| panic!("an order without a take: {order:?}"));
            assert_eq!(
                (order.activity_id, order.user_id),
                (Some(take.activity_id), take.user_id),
                "{order:?}"
            );
        }
        for take in self.takes.values().filter(|take| self.flash_sales.contains(&take.activity_id)) {
            assert!(self.orders.contains_key(&take.id), "a take without an order: {take:?}");
        }
    }

    /// I6: versions have no gaps, and each step follows from the one before.
    fn history_is_a_path(&self, order: &orders::Model) {
        let history = self.history.get(&order.id).map_or(&[][..], Vec::as_slice);
        let versions: Vec<i64> = history.iter().map(|entry| entry.version).collect();
        assert_eq!(versions, (2..=order.version).collect::<Vec<_>>(), "the history of {order:?}");
        let mut state = if order.kind == "flash_sale" { "awaiting_payment" } else { "draft" };
        let mut refund_from = "";
        for entry in history {
            let data: Value = serde_json::from_str(&entry.data).unwrap();
            state = match (state, entry.event_type.as_str()) {
                ("draft", "created") => "awaiting_payment",
                ("draft", "invalid") => "invalid",
                ("awaiting_payment", "paid") => "paid",
                ("awaiting_payment", "cancelled") => "cancelled",
                ("paid", "shipped") => "shipped",
                ("shipped", "finished") => "finished",
                ("awaiting_payment" | "paid", "address_set") => state,
                // Money too much goes back and changes nothing else.
                (_, "refund_requested") if data["payment_id"].is_string() => state,
                ("paid" | "shipped" | "finished", "refund_requested") => {
                    refund_from = state;
                    "refunding"
                }
                ("refunding", "refund_refused") => refund_from,
                ("refunding", "refunded") => "refunded",
                (state, step) => panic!("{step} after {state} in the history of {order:?}"),
            };
        }
        assert_eq!(order.state, state, "{order:?} after {history:?}");
    }

    /// I7: what was captured and does not go back is what the order costs, or nothing.
    fn money_adds_up(&self, order: &orders::Model, told: &HashSet<i64>) {
        let is = |states: &[&str]| states.contains(&order.state.as_str());
        let captures = self.captures.get(&order.id).map_or(&[][..], Vec::as_slice);
        let paid_by = captures.iter().find(|payment| Some(payment.id) == order.paid_payment_id);
        let paid = is(&["paid", "shipped", "finished", "refunding", "refunded"]);
        if paid && order.payable_minor > 0 {
            let capture = paid_by.unwrap_or_else(|| panic!("paid by nothing: {order:?}"));
            assert_eq!((capture.amount_minor, &capture.currency), (order.payable_minor, &order.currency));
        } else {
            assert_eq!(order.paid_payment_id, None, "{order:?}");
        }
        let refunds = self.refunds.get(&order.id).map_or(&[][..], Vec::as_slice);
        let known = |payment: &&payment::Model| {
            Some(payment.id) == order.paid_payment_id
                || told.contains(&payment.id)
                || refunds.iter().any(|refund| refund.payment_id == Some(payment.id))
        };
        let captured: i64 = captures.iter().filter(known).map(|payment| payment.amount_minor).sum();
        // A rejected one names no payment.
        let returned = refunds.iter().filter(|refund| refund.payment_id.is_some());
        let returned: i64 = returned.map(|refund| refund.amount_minor).sum();
        let kept = if is(&["paid", "shipped", "finished"]) { order.payable_minor } else { 0 };
        assert_eq!(captured - returned, kept, "captured less returned of {order:?}");
        if is(&["refunded"]) {
            let refund = refunds.iter().find(|refund| refund.refunded_order_id == Some(order.id));
            let refund = refund.unwrap_or_else(|| panic!("refunded without a refund: {order:?}"));
            assert_eq!(
                (refund.state.as_str(), refund.amount_minor, refund.balance_minor),
                ("succeeded", order.payable_minor, order.balance_paid_minor),
                "{refund:?}"
            );
        }
    }

    /// A refund returns one capture of its order, once and not more of it than there was.
    fn refunds_return_captures(&self) {
        let mut returned = BTreeSet::new();
        for refund in self.refunds.values().flatten() {
            assert!(self.orders.contains_key(&refund.order_id), "a refund of no order: {refund:?}");
            let Some(payment) = refund.payment_id else {
                assert!(refund.state == "rejected" || refund.amount_minor == 0, "{refund:?}");
                continue;
            };
            let of_order = self.captures.get(&refund.order_id).map_or(&[][..], Vec::as_slice);
            let capture = of_order.iter().find(|capture| capture.id == payment);
            let capture = capture.unwrap_or_else(|| panic!("returns what was not captured: {refund:?}"));
            assert!(refund.amount_minor <= capture.amount_minor, "{refund:?} of {capture:?}");
            assert!(returned.insert(payment), "returned twice: {refund:?}");
        }
    }

    /// I8: what ended before it was shipped holds no token, once its end has reached the stock.
    fn ended_orders_hold_no_token(&self) {
        let ended = self.applied("stock_orders", "order.cancelled.v1");
        let refunded =
            self.applied("stock_orders", "order.refunded.v1").filter(|order| order["shipped"] == false);
        for order in ended.chain(refunded).filter(|order| order["kind"] == "flash_sale") {
            let id = order["order_id"].as_str().unwrap().parse().unwrap();
            let Some(take) = self.takes.get(&id) else { continue };
            assert_eq!((take.live_token, take.live_take_no), (None, None), "{take:?} of an order that ended");
        }
    }

    /// An order of the shop that has not ended holds the goods of its lines.
    fn stock_is_held(&self, order: &orders::Model) {
        let holds = ["awaiting_payment", "paid", "shipped", "finished", "refunding"];
        if order.kind != "shop" || !holds.contains(&order.state.as_str()) {
            return;
        }
        let mut wanted: BTreeMap<i64, i64> = BTreeMap::new();
        for line in serde_json::from_str::<Vec<Value>>(&order.items).unwrap() {
            let goods = line["goods_id"].as_str().unwrap().parse().unwrap();
            *wanted.entry(goods).or_default() -= line["quantity"].as_i64().unwrap();
        }
        let entries = self.sales.get(&order.id).map_or(&[][..], Vec::as_slice);
        let held: BTreeMap<i64, i64> =
            entries.iter().map(|entry| (entry.goods_id, i64::from(entry.quantity))).collect();
        assert!(entries.iter().all(|entry| entry.kind == "sale"), "given back too early: {order:?}");
        assert_eq!(held, wanted, "goods of {order:?}");
    }

    /// An order that has not ended holds what it took from its user's balance; nothing else goes back than what was taken.
    fn balance_is_held(&self, order: &orders::Model) {
        let entries = self.wallet.get(&order.id).map_or(&[][..], Vec::as_slice);
        let sum = |kind: &str| -> i64 {
            entries.iter().filter(|entry| entry.kind == kind).map(|entry| entry.amount_minor).sum()
        };
        let (spent, returned) = (-sum("pay"), sum("refund"));
        assert!(returned == 0 || returned == spent, "{order:?} took {spent} and gave {returned} back");
        match order.state.as_str() {
            "awaiting_payment" | "paid" | "shipped" | "finished" | "refunding" => {
                assert_eq!((spent, returned), (order.balance_paid_minor, 0), "{order:?}");
            }
            "cancelled" | "refunded" => assert_eq!(spent, order.balance_paid_minor, "{order:?}"),
            _ => assert!(spent == 0 || spent == order.balance_paid_minor, "{order:?} took {spent}"),
        }
    }
}

/// Balances and points are what their entries add up to, and never negative.
async fn accounts_are_their_entries(connection: &DatabaseConnection) {
    let mut sums: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for entry in all!(connection, wallet_entry) {
        sums.entry(entry.user_id).or_default().0 += entry.amount_minor;
    }
    for entry in all!(connection, points_entry) {
        sums.entry(entry.user_id).or_default().1 += entry.points;
    }
    for account in all!(connection, wallet_account) {
        let (balance, points) = sums.remove(&account.user_id).unwrap_or_default();
        assert_eq!((account.balance_minor, account.points), (balance, points), "{account:?}");
        assert!(balance >= 0, "{account:?}");
    }
    assert!(sums.is_empty(), "entries of no account: {sums:?}");
}
