//! Two nodes share one drum on a real SQLite file: random histories, and after each step the drum must add up.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};

use super::ThisNode;
use super::blocks;
use super::changes::{Adjustment, adjust};
use super::model::{AdjustError, Take, TakeState};
use super::release::release;
use super::store::{Batch, CommitError, commit};
use super::window::{HeldBlock, TokenWindow};
use crate::db::testing::{self, TestDatabase};
use crate::db::{Database, DbFault};
use crate::ids::{ActivityId, Ids, TakeId, UserId};
use crate::ports::clock::{Clock, SystemClock, to_micros};

const ACTIVITY: ActivityId = ActivityId(77);
const STOCK: i32 = 40;

#[derive(Debug, Clone)]
enum Step {
    /// A node gets tokens if it has none.
    Claim(usize),
    /// A node sells so many, of its front block.
    Sell(usize, usize),
    /// Somebody gives a token back.
    Release,
    Adjust(i32),
    HandBack(usize),
    /// A node forgets everything, as by kill -9.
    Restart(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..2_usize).prop_map(Step::Claim),
        5 => (0..2_usize, 1..12_usize).prop_map(|(node, n)| Step::Sell(node, n)),
        3 => Just(Step::Release),
        2 => (-15..15_i32).prop_filter("0 is refused", |delta| *delta != 0).prop_map(Step::Adjust),
        1 => (0..2_usize).prop_map(Step::HandBack),
        1 => (0..2_usize).prop_map(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

struct Drum {
    _place: TestDatabase,
    db: Database,
    ids: Ids,
    windows: [TokenWindow; 2],
    users: i64,
    rng: rand::rngs::SmallRng,
    stale: usize,
}

impl Drum {
    async fn new(seed: u64) -> Self {
        let (place, db) = testing::fresh().await;
        let ids = Ids::new(0, &SystemClock, std::time::Duration::from_secs(600));
        let makes = ids.clone();
        db.transaction::<_, DbFault, _, _>(move |tx| {
            let ids = makes.clone();
            async move {
                let activity = entities::activity::ActiveModel {
                    goods_id: sea_orm::Set(None),
                    sale_price_minor: sea_orm::Set(None),
                    id: sea_orm::Set(ACTIVITY.0),
                    name: sea_orm::Set("drum".into()),
                    kind: sea_orm::Set("giveaway".into()),
                    state: sea_orm::Set("running".into()),
                    starts_at: sea_orm::Set(0),
                    ends_at: sea_orm::Set(i64::MAX),
                    stock_total: sea_orm::Set(STOCK),
                    take_limit_per_user: sea_orm::Set(None),
                    sold_out_at: sea_orm::Set(None),
                    version: sea_orm::Set(1),
                    created_by: sea_orm::Set(1),
                    created_at: sea_orm::Set(0),
                    updated_at: sea_orm::Set(0),
                };
                entities::activity::Entity::insert(activity).exec_without_returning(&tx).await?;
                blocks::create(&tx, &ids, ACTIVITY, STOCK).await
            }
        })
        .await
        .unwrap();
        let rng = rand::rngs::SmallRng::seed_from_u64(seed);
        Self { _place: place, db, ids, windows: Default::default(), users: 0, rng, stale: 0 }
    }

    async fn activity(&self) -> entities::activity::Model {
        let found = self.db.read::<_, DbFault, _, _>(|connection| async move {
            Ok(entities::activity::Entity::find_by_id(ACTIVITY.0).one(&connection).await?)
        });
        found.await.unwrap().unwrap()
    }

    async fn live(&self) -> Vec<entities::take::Model> {
        let found = self.db.read::<_, DbFault, _, _>(|connection| async move {
            let live = entities::take::Column::LiveToken.is_not_null();
            Ok(entities::take::Entity::find().filter(live).all(&connection).await?)
        });
        found.await.unwrap()
    }

    /// `false` if every token is sold.
    async fn claim(&mut self, node: usize) -> bool {
        if self.windows[node].available_in_front() > 0 {
            return true;
        }
        self.windows[node].take_exhausted();
        let me = ThisNode { node: i32::try_from(node).unwrap(), incarnation: 1, live_nodes: 2 };
        let ids = self.ids.clone();
        let claimed = self.db.transaction::<_, DbFault, _, _>(move |tx| {
            let ids = ids.clone();
            async move { blocks::claim(&tx, &ids, me, ACTIVITY).await }
        });
        let Some(claimed) = claimed.await.unwrap() else { return false };
        self.windows[node].add_block(claimed.held, claimed.free).unwrap();
        true
    }

    async fn sell(&mut self, node: usize, wanted: usize) {
        let Some(block) = self.windows[node].front_block() else { return };
        let version = self.activity().await.version;
        let now = SystemClock.now();
        let mut takes = Vec::new();
        for _ in 0..wanted.min(self.windows[node].available_in_front() as usize) {
            let token = self.windows[node].reserve().unwrap();
            self.users += 1;
            takes.push(Take {
                id: self.ids.next().unwrap(),
                activity_id: ACTIVITY,
                user_id: UserId(self.users),
                token_no: i32::try_from(token).unwrap(),
                take_no: 1,
                state: TakeState::Unused,
                taken_at: now,
            });
        }
        let tokens: Vec<i32> = takes.iter().map(|take| take.token_no).collect();
        let id = self.ids.next().unwrap();
        let (parents, answers) = (vec![None; takes.len()], Vec::new());
        let sale = None;
        let batch = Batch { id, activity: ACTIVITY, version, block, takes, sale, parents, answers, now };
        match commit(&self.db, &self.ids, batch).await {
            Ok(()) => {
                tokens.iter().for_each(|token| self.windows[node].confirm(token.unsigned_abs()).unwrap());
            }
            Err(CommitError::Stale) => {
                self.stale += 1;
                self.windows[node].remove_block(block.id);
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn release(&mut self) {
        let live = self.live().await;
        let Some(take) = live.choose(&mut self.rng).map(|take| TakeId(take.id)) else { return };
        let ids = self.ids.clone();
        let released = self.db.transaction(move |tx| {
            let ids = ids.clone();
            async move { release(&tx, &ids, SystemClock.now(), take, "changed their mind").await }
        });
        let (take, now) = released.await.unwrap();
        assert!(now);
        // One node learns of it at once; the other finds it through the database.
        let _ = self.windows[0].release(take.token_no.unsigned_abs());
    }

    async fn adjust(&mut self, delta: i32) {
        let change = Adjustment { activity: ACTIVITY, delta, reason: "test".into(), by: UserId(1) };
        let total = self.activity().await.stock_total;
        let sold = i32::try_from(self.live().await.len()).unwrap();
        let ids = self.ids.clone();
        let adjusted = self.db.transaction(move |tx| {
            let (ids, change) = (ids.clone(), change.clone());
            async move { adjust(&tx, &ids, SystemClock.now(), change).await }
        });
        match adjusted.await {
            Ok(done) => {
                assert!(total + delta >= sold);
                assert_eq!(done.stock.remaining, i64::from(total + delta - sold));
            }
            Err(AdjustError::Insufficient { .. }) => assert!(total + delta < sold),
            Err(error) => panic!("{error}"),
        }
    }

    async fn hand_back(&mut self, node: usize) {
        let held: Vec<HeldBlock> = std::mem::take(&mut self.windows[node]).blocks().collect();
        let handed = self.db.transaction::<_, DbFault, _, _>(move |tx| {
            let held = held.clone();
            async move { blocks::hand_back(&tx, &held).await }
        });
        handed.await.unwrap();
    }

    /// Blocks part the tokens without gap or overlap; each counts its live takes; retired ones hold none.
    async fn adds_up(&self) {
        let blocks = self.db.read::<_, DbFault, _, _>(|connection| async move {
            let order = entities::token_block::Column::FirstToken;
            Ok(entities::token_block::Entity::find().order_by_asc(order).all(&connection).await?)
        });
        let blocks = blocks.await.unwrap();
        let live = self.live().await;
        let mut next = 1;
        let mut capacity = 0;
        for block in &blocks {
            assert_eq!(block.first_token, next, "{blocks:?}");
            assert!(block.last_token >= block.first_token);
            next = block.last_token + 1;
            let range = block.first_token..=block.last_token;
            let within = live.iter().filter(|take| range.contains(&take.live_token.unwrap())).count();
            assert_eq!(usize::try_from(block.sold).unwrap(), within, "{block:?}");
            if block.state == "retired" {
                assert_eq!(within, 0);
            } else {
                capacity += block.last_token - block.first_token + 1;
            }
        }
        assert_eq!(capacity, self.activity().await.stock_total);
        assert!(live.iter().all(|take| take.token_no == take.live_token.unwrap()
            && take.taken_at > to_micros(chrono::DateTime::UNIX_EPOCH)));
    }
}

async fn play(steps: Vec<Step>, seed: u64) {
    let mut drum = Drum::new(seed).await;
    for step in steps {
        match step {
            Step::Claim(node) => drop(drum.claim(node).await),
            Step::Sell(node, wanted) => drum.sell(node, wanted).await,
            Step::Release => drum.release().await,
            Step::Adjust(delta) => drum.adjust(delta).await,
            Step::HandBack(node) => drum.hand_back(node).await,
            Step::Restart(node) => drum.windows[node] = TokenWindow::default(),
        }
        drum.adds_up().await;
    }
    // Whichever node is asked, it sells the rest, to the last token, and says sold out only then.
    while drum.claim(1).await {
        drum.sell(1, 7).await;
        drum.adds_up().await;
    }
    let total = drum.activity().await.stock_total;
    assert_eq!(drum.live().await.len(), usize::try_from(total).unwrap());
    drum.db.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_drum_adds_up_whatever_two_nodes_do(steps in steps(), seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(steps, seed));
    }
}
