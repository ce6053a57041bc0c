//! Random histories of balances and points on a real SQLite file: whatever happens, they are the sums of their entries
//! and not negative.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use sea_orm::EntityTrait;

use super::model::{Adjustment, PointsAdjustment, WalletError};
use super::points::Earning;
use super::reconcile::AccountsAgainstEntries;
use super::{Account, Ledger};
use crate::db::testing::{self, TestDatabase};
use crate::db::{Database, DbFault};
use crate::ids::{Ids, OrderId, UserId};
use crate::ports::clock::{Clock, SystemClock};
use crate::reconciliation::Comparison;

#[derive(Debug, Clone)]
enum Step {
    /// An order of a user is paid, perhaps again.
    Pay(i64, i64, i64),
    /// Orders are cancelled or refunded, perhaps again.
    GiveBack(Vec<i64>),
    Adjust(i64, i64),
    Earn(i64, i64, i64),
    TakeBack(i64, i64),
    AdjustPoints(i64, i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (users, orders) = (1..4_i64, 1..7_i64);
    let step = prop_oneof![
        4 => (orders.clone(), users.clone(), 1..80_i64).prop_map(|(order, user, minor)| Step::Pay(order, user, minor)),
        3 => proptest::collection::vec(orders.clone(), 0..5).prop_map(Step::GiveBack),
        3 => (users.clone(), -60..100_i64).prop_filter("0 is refused", |(_, minor)| *minor != 0)
            .prop_map(|(user, minor)| Step::Adjust(user, minor)),
        2 => (orders.clone(), users.clone(), 1..50_i64).prop_map(|(order, user, points)| Step::Earn(order, user, points)),
        1 => (orders, users.clone()).prop_map(|(order, user)| Step::TakeBack(order, user)),
        1 => (users, -40..40_i64).prop_filter("0 is refused", |(_, points)| *points != 0)
            .prop_map(|(user, points)| Step::AdjustPoints(user, points)),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What the ledger must say, kept the plain way.
#[derive(Debug, Default)]
struct Model {
    accounts: BTreeMap<i64, Account>,
    paid: BTreeMap<(i64, i64), i64>,
    given_back: BTreeSet<(i64, i64)>,
    earned: BTreeMap<i64, i64>,
    taken_back: BTreeSet<i64>,
}

struct Shop {
    _place: TestDatabase,
    db: Database,
    ledger: Ledger,
    model: Model,
}

impl Shop {
    async fn new() -> Self {
        let (place, db) = testing::fresh().await;
        let ids = Ids::new(0, &SystemClock, Duration::from_secs(600));
        Self { _place: place, db, ledger: Ledger::new(ids, "CNY".parse().unwrap()), model: Model::default() }
    }

    fn balance(&mut self, user: i64) -> &mut i64 {
        &mut self.model.accounts.entry(user).or_default().balance_minor
    }

    async fn pay(&mut self, order: i64, user: i64, minor: i64) {
        let ledger = self.ledger.clone();
        let paying = self.db.transaction(move |tx| {
            let ledger = ledger.clone();
            async move { ledger.pay(&tx, SystemClock.now(), OrderId(order), UserId(user), minor).await }
        });
        let paid = paying.await;
        let had = *self.balance(user);
        let repeated = self.model.paid.contains_key(&(order, user));
        if !repeated && had < minor {
            let Err(WalletError::Insufficient { balance_minor }) = paid else { panic!("{paid:?}") };
            assert_eq!(balance_minor, had);
            return;
        }
        paid.unwrap();
        if !repeated {
            self.model.paid.insert((order, user), minor);
            *self.balance(user) -= minor;
        }
    }

    async fn give_back(&mut self, orders: Vec<i64>) {
        let ledger = self.ledger.clone();
        let ids: Vec<OrderId> = orders.iter().copied().map(OrderId).collect();
        let giving = self.db.transaction(move |tx| {
            let (ledger, ids) = (ledger.clone(), ids.clone());
            async move { ledger.give_back(&tx, SystemClock.now(), &ids).await }
        });
        giving.await.unwrap();
        for ((order, user), minor) in self.model.paid.clone() {
            if orders.contains(&order) && self.model.given_back.insert((order, user)) {
                *self.balance(user) += minor;
            }
        }
    }

    async fn adjust(&mut self, user: i64, minor: i64) {
        let ledger = self.ledger.clone();
        let wish =
            Adjustment { user: UserId(user), amount_minor: minor, reason: "test".into(), by: UserId(9) };
        let adjusting = self.db.transaction(move |tx| {
            let (ledger, wish) = (ledger.clone(), wish.clone());
            async move { ledger.adjust(&tx, SystemClock.now(), wish).await }
        });
        match adjusting.await {
            Ok(adjusted) => {
                *self.balance(user) += minor;
                assert_eq!(adjusted.balance_minor, *self.balance(user));
            }
            Err(WalletError::Insufficient { .. }) => assert!(*self.balance(user) + minor < 0),
            Err(error) => panic!("{error}"),
        }
    }

    async fn earn(&mut self, order: i64, user: i64, points: i64) {
        let ledger = self.ledger.clone();
        let earning = Earning { order: OrderId(order), user: UserId(user), points };
        let earn = self.db.transaction::<_, DbFault, _, _>(move |tx| {
            let ledger = ledger.clone();
            async move { ledger.earn(&tx, SystemClock.now(), &[earning, earning]).await }
        });
        earn.await.unwrap();
        let account = self.model.accounts.entry(user).or_default();
        if !self.model.taken_back.contains(&order) && !self.model.earned.contains_key(&order) {
            self.model.earned.insert(order, points);
            account.points += points;
        }
    }

    async fn take_back(&mut self, order: i64, user: i64) {
        let ledger = self.ledger.clone();
        let take = self.db.transaction::<_, DbFault, _, _>(move |tx| {
            let ledger = ledger.clone();
            let order = (OrderId(order), UserId(user));
            async move { ledger.take_back(&tx, SystemClock.now(), &[order, order]).await }
        });
        take.await.unwrap();
        let account = self.model.accounts.entry(user).or_default();
        if self.model.taken_back.insert(order) {
            let earned = self.model.earned.get(&order).copied().unwrap_or(0);
            account.points -= earned.min(account.points);
        }
    }

    async fn adjust_points(&mut self, user: i64, points: i64) {
        let ledger = self.ledger.clone();
        let wish = PointsAdjustment { user: UserId(user), points, reason: "test".into(), by: UserId(9) };
        let adjusting = self.db.transaction(move |tx| {
            let (ledger, wish) = (ledger.clone(), wish.clone());
            async move { ledger.adjust_points(&tx, SystemClock.now(), wish).await }
        });
        let account = self.model.accounts.entry(user).or_default();
        match adjusting.await {
            Ok(adjusted) => {
                account.points += points;
                assert_eq!(adjusted.points_total, account.points);
            }
            Err(WalletError::PointsInsufficient { points: had }) => {
                assert_eq!(had, account.points);
                assert!(had + points < 0);
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn adds_up(&self) {
        let read = self.db.read::<_, DbFault, _, _>(|connection| async move {
            Ok(entities::wallet_account::Entity::find().all(&connection).await?)
        });
        let accounts: BTreeMap<i64, Account> =
            read.await.unwrap().into_iter().map(|row| (row.user_id, row.into())).collect();
        for (user, expected) in &self.model.accounts {
            assert_eq!(accounts.get(user).copied().unwrap_or_default(), *expected);
        }
        assert!(accounts.values().all(|account| account.balance_minor >= 0 && account.points >= 0));
        assert_eq!(AccountsAgainstEntries(self.db.clone()).compare().await.unwrap(), []);
    }
}

async fn play(steps: Vec<Step>) {
    let mut shop = Shop::new().await;
    for step in steps {
        match step {
            Step::Pay(order, user, minor) => shop.pay(order, user, minor).await,
            Step::GiveBack(orders) => shop.give_back(orders).await,
            Step::Adjust(user, minor) => shop.adjust(user, minor).await,
            Step::Earn(order, user, points) => shop.earn(order, user, points).await,
            Step::TakeBack(order, user) => shop.take_back(order, user).await,
            Step::AdjustPoints(user, points) => shop.adjust_points(user, points).await,
        }
        shop.adds_up().await;
    }
    shop.db.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_balance_adds_up_whatever_happens(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}
