//! Serves batches of take requests, one after the other, in plain sequential code.
//!
//! Decide from memory, commit, then remember. Whatever the database contradicts is forgotten and read again: a stale
//! block or activity, a user whose takes were made elsewhere, a commit whose answer was lost (*Resolving*: nobody is
//! answered and no token moves until the outcome is known).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::hints::Hints;
use super::model::{Take, TakeAnswer, TakeError, TakeState};
use super::store::{ActivityView, Batch, CommitError, StockStore};
use super::user_takes::{ReserveError, Takers};
use super::window::{HeldBlock, TokenWindow};
use crate::actors::batching::{self, Ask};
use crate::db::DbFault;
use crate::faults;
use crate::idempotency::{Answer, Answered, KeyRefusal, RequestKey};
use crate::ids::{ActivityId, BatchId, TakeId, UserId};
use crate::order::flash_sale::Sale;
use crate::ports::clock::Timestamp;

/// How often a batch is decided anew, and for how long at least, before its requests are refused.
const ATTEMPTS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(4);
/// How often the pause between two attempts doubles at most.
const MOST_DOUBLINGS: u32 = 6;
/// After so many collisions the requests go one by one, so that the innocent ones pass.
const COLLISIONS_BEFORE_SINGLE: u32 = 2;
/// Requests answered in one transaction at most.
pub const MAX_BATCH: usize = 1024;

/// One user's wish for one take.
#[derive(Debug, Clone, Copy)]
pub struct TakeRequest {
    pub user: UserId,
    pub key: Option<RequestKey>,
}

type TakeAsk = Ask<StockEngine>;

/// What the actor learns from outside its batches.
#[derive(Debug, Clone)]
pub enum Notice {
    /// The activity changed; what is known of it is old.
    Changed,
    /// A take was released.
    Released(Take),
}

/// An activity's memory and its hand on the database.
#[derive(Debug)]
pub struct StockEngine {
    activity: ActivityId,
    store: StockStore,
    hints: Arc<Hints>,
    view: Option<ActivityView>,
    /// Whether there was no such activity when it was looked for.
    unknown: bool,
    window: TokenWindow,
    takers: Takers,
    /// The limit that `takers` was read under.
    limit: Option<Option<u32>>,
    /// The hints' count of changes when `view` was read.
    seen: u64,
}

/// A request that has a token and a number, and those with the same key behind it.
struct Draft {
    ask: TakeAsk,
    twins: Vec<TakeAsk>,
    granted: Granted,
}

impl Draft {
    /// What a repeat of this request is to be told.
    fn kept_answer(&self) -> Option<(RequestKey, Answer)> {
        Some((self.ask.request.key?, Answer { status: 201, body: body_of(&self.granted)? }))
    }
}

/// A take that was committed, and what it was sold by: whoever asked for it makes the answer of it.
#[derive(Debug, Clone)]
pub struct Granted {
    take: Take,
    sale: Option<Arc<Sale>>,
}

impl From<Granted> for TakeAnswer {
    fn from(Granted { take, sale }: Granted) -> Self {
        let order = sale.map(|sale| Box::new(sale.view(&take)));
        Self { take, order }
    }
}

/// What the requests of one batch have run into so far.
#[derive(Default)]
struct Doubts {
    collisions: u32,
    /// Users whose takes were read for this batch.
    read_again: HashSet<UserId>,
}

/// How a batch ended.
enum Outcome {
    Committed,
    /// Decide again.
    Again,
    /// The database cannot be used now.
    Unavailable,
}

impl batching::Engine for StockEngine {
    const NAME: &'static str = "stock";

    type Key = ActivityId;
    type Request = TakeRequest;
    type Answer = Answered<Granted>;
    type Error = TakeError;
    type Notice = Notice;
    type Hints = Hints;

    fn note(&mut self, notice: Notice) {
        match notice {
            Notice::Changed => self.view = None,
            Notice::Released(take) => {
                if let Some(view) = &mut self.view {
                    view.sold_out_announced = false;
                }
                // Both refuse what they know better; if the database knows better still, the next batch learns it.
                let token = u32::try_from(take.token_no).unwrap_or(0);
                if let Err(error) = self.window.release(token) {
                    debug!(%error, take.id = %take.id, "The released token was known already");
                }
                self.takers.release(take.user_id, u32::try_from(take.take_no).unwrap_or(0));
            }
        }
    }

    async fn serve(&mut self, asks: Vec<TakeAsk>) {
        let mut todo = asks;
        let (mut attempts, mut doubts, mut progress) = (0, Doubts::default(), Instant::now());
        let mut committed = false;
        while !todo.is_empty() {
            todo.retain(|ask| !ask.is_abandoned());
            let _ = faults::point("before_decide").await;
            let before = todo.len();
            let outcome = self.attempt(&mut todo, &mut doubts).await.unwrap_or_else(|fault| {
                warn!(activity.id = %self.activity, error = %fault, "Takes wait for the database");
                if fault.is_conflict() { Outcome::Again } else { Outcome::Unavailable }
            });
            committed = matches!(outcome, Outcome::Committed);
            if todo.len() < before {
                (attempts, progress) = (0, Instant::now());
            } else {
                attempts += 1;
            }
            if attempts > 1 {
                // Another node keeps being faster: step out of its stride, soon for longer than a claim and a batch take.
                let doubled = Ord::min(attempts, MOST_DOUBLINGS);
                tokio::time::sleep(Duration::from_millis(rand::random_range(1..=4) << doubled)).await;
            }
            let in_vain = attempts >= ATTEMPTS && progress.elapsed() >= PATIENCE;
            if matches!(outcome, Outcome::Unavailable) || in_vain {
                refuse_all(&mut todo, &TakeError::Unavailable);
            }
        }
        if committed {
            self.look_whether_sold_out().await;
        }
    }

    /// Anybody may ask for any number, and an activity that does not exist has nothing to remember.
    fn is_needed(&self) -> bool {
        !self.unknown
    }

    /// Gives this node's blocks back: it stops selling.
    async fn rest(&mut self) {
        let held: Vec<HeldBlock> = std::mem::take(&mut self.window).blocks().collect();
        if held.is_empty() {
            return;
        }
        if let Err(fault) = self.store.hand_back(held).await {
            debug!(activity.id = %self.activity, error = %fault, "Blocks were not handed back; others take them over");
        }
    }

    fn hear(hints: &Hints, _: &Notice) {
        hints.changed();
    }
}

impl StockEngine {
    pub fn new(activity: ActivityId, store: StockStore, hints: Arc<Hints>) -> Self {
        let (window, takers) = (TokenWindow::default(), Takers::default());
        Self { activity, store, hints, view: None, unknown: false, window, takers, limit: None, seen: 0 }
    }

    /// One round: answers what needs no token, claims tokens if there are none, commits what gets one.
    async fn attempt(&mut self, todo: &mut Vec<TakeAsk>, doubts: &mut Doubts) -> Result<Outcome, DbFault> {
        let known = self.hints.changes();
        if known != self.seen {
            // The notice may still be on its way.
            (self.seen, self.view) = (known, None);
        }
        self.replay(todo).await?;
        if todo.is_empty() {
            return Ok(Outcome::Committed);
        }
        let view = self.view().await?;
        self.unknown = view.is_none();
        let Some(view) = view else {
            refuse_all(todo, &TakeError::NotFound);
            return Ok(Outcome::Committed);
        };
        let now = self.store.clock.now();
        if let Some(closed) = view.closed_at(now) {
            // It may be started on another node: whoever asks next has it read again.
            self.view = None;
            self.hints.not_running(known, closed);
            return self.refuse(todo, TakeError::NotRunning(closed)).await;
        }
        // Whoever has no key came here because the hint was due to be looked at.
        if todo.iter().all(|ask| ask.request.key.is_some())
            && let Some(refusal) = self.hints.refusal(now)
        {
            return self.refuse(todo, refusal).await;
        }
        if self.window.available_in_front() == 0 && !self.claim().await? {
            self.hints.sold_out(known, view.window.ends_at());
            let outcome = self.refuse(todo, TakeError::SoldOut).await;
            self.announce_sold_out(&view).await;
            return outcome;
        }
        self.hints.not_sold_out();
        self.look_up_takers(todo, view.limit, doubts).await?;
        let Some(block) = self.window.front_block() else { return Ok(Outcome::Again) };
        let most = if doubts.collisions > COLLISIONS_BEFORE_SINGLE { 1 } else { MAX_BATCH };
        let id = self.store.ids().next()?;
        let mut limited = Vec::new();
        let drafts = self.draft(todo, &mut limited, &view, now, most);
        if let Some(limit) = view.limit
            && !limited.is_empty()
        {
            self.refuse(&mut limited, TakeError::LimitReached(limit)).await.or_else(|fault| {
                warn!(activity.id = %self.activity, error = %fault, "Repeats could not be told from others");
                refuse_all(&mut limited, &TakeError::Unavailable);
                Ok::<_, DbFault>(Outcome::Committed)
            })?;
        }
        if drafts.is_empty() {
            return Ok(Outcome::Again);
        }
        let takes = drafts.iter().map(|draft| draft.granted.take.clone()).collect();
        let parents = drafts.iter().map(|draft| draft.ask.parent).collect();
        let answers = drafts.iter().filter_map(Draft::kept_answer).collect();
        let (activity, version) = (self.activity, view.version);
        let sale = view.sale.clone();
        let batch = Batch { id, activity, version, block, takes, sale, parents, answers, now };
        let collisions = doubts.collisions;
        let outcome = self.commit(batch, &drafts, doubts).await;
        match outcome {
            Outcome::Committed => {
                let _ = faults::point("before_reply").await;
                answer(drafts, block, &mut self.window);
                faults::point("after_reply").await.map_err(DbFault::from)?;
            }
            Outcome::Again | Outcome::Unavailable => {
                for draft in drafts {
                    todo.push(draft.ask);
                    todo.extend(draft.twins);
                }
                if doubts.collisions > collisions {
                    // Another node sells to these users: what is known of any of them is as old.
                    for ask in todo.iter() {
                        self.takers.forget(ask.request.user);
                    }
                }
            }
        }
        Ok(outcome)
    }

    async fn view(&mut self) -> Result<Option<ActivityView>, DbFault> {
        if self.view.is_none() {
            self.view = self.store.view(self.activity).await?;
            if let Some(view) = &self.view {
                if self.limit != Some(view.limit) {
                    // What other nodes granted under another limit may count now.
                    self.takers = Takers::default();
                    if view.untouched {
                        self.takers.loaded();
                    }
                }
                self.limit = Some(view.limit);
            }
        }
        Ok(self.view.clone())
    }

    /// Refuses all of `todo`, except for repeats of requests that succeeded since they were looked up.
    async fn refuse(&self, todo: &mut Vec<TakeAsk>, error: TakeError) -> Result<Outcome, DbFault> {
        self.replay(todo).await?;
        refuse_all(todo, &error);
        Ok(Outcome::Committed)
    }

    /// Gives repeats the answer of their first request.
    async fn replay(&self, todo: &mut Vec<TakeAsk>) -> Result<(), DbFault> {
        let keys: Vec<RequestKey> = todo.iter().filter_map(|ask| ask.request.key).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let kept = self.store.kept_answers(keys).await?;
        let kept: HashMap<[u8; 32], (RequestKey, Answer)> =
            kept.into_iter().map(|(key, answer)| (key.id, (key, answer))).collect();
        let (repeats, rest): (Vec<_>, Vec<_>) = std::mem::take(todo)
            .into_iter()
            .partition(|ask| ask.request.key.is_some_and(|key| kept.contains_key(&key.id)));
        *todo = rest;
        for ask in repeats {
            let Some(key) = ask.request.key else { continue };
            let Some((first, answer)) = kept.get(&key.id) else { continue };
            ask.answer(key.replay(first, answer.clone()).map_err(TakeError::from));
        }
        Ok(())
    }

    /// Gets tokens to sell; `false` if every token of the activity is sold.
    async fn claim(&mut self) -> Result<bool, DbFault> {
        self.window.take_exhausted();
        let Some(claimed) = self.store.claim(self.activity).await? else { return Ok(false) };
        debug!(activity.id = %self.activity, block = ?claimed.held, "Claimed tokens");
        metrics::counter!("tombola_stock_blocks_claimed_total").increment(1);
        // Whatever gave tokens back, perhaps on another node, ended the sell-out.
        if let Some(view) = &mut self.view {
            view.sold_out_announced = false;
        }
        if let Err(error) = self.window.add_block(claimed.held, claimed.free) {
            // Another claim of ours overlaps: memory is wrong, the database is not.
            error!(activity.id = %self.activity, %error, "Forgot the token window");
            self.window = TokenWindow::default();
        }
        Ok(true)
    }

    /// Announces the sell-out that the last batch brought about: perhaps nobody asks again.
    async fn look_whether_sold_out(&mut self) {
        let Some(view) = &self.view else { return };
        if view.sold_out_announced || self.window.available_in_front() > 0 {
            return;
        }
        match self.store.is_any_left(self.activity).await {
            Ok(true) => {}
            Ok(false) => self.announce_sold_out(&view.clone()).await,
            Err(fault) => {
                debug!(activity.id = %self.activity, error = %fault, "Whether it is sold out is unknown");
            }
        }
    }

    async fn announce_sold_out(&mut self, view: &ActivityView) {
        if view.sold_out_announced {
            return;
        }
        match self.store.announce_sold_out(self.activity).await {
            Ok(announced) => {
                if announced {
                    info!(activity.id = %self.activity, "Activity {} is sold out", self.activity);
                }
                if let Some(view) = &mut self.view {
                    view.sold_out_announced = announced;
                }
            }
            Err(fault) => {
                warn!(activity.id = %self.activity, error = %fault, "The sell-out is announced later");
            }
        }
    }

    /// Reads the takes of users that memory does not know, and once more those of users it would refuse: a take may
    /// have been released on another node.
    async fn look_up_takers(
        &mut self,
        todo: &[TakeAsk],
        limit: Option<u32>,
        doubts: &mut Doubts,
    ) -> Result<(), DbFault> {
        let doubtful = |user: &UserId| match self.takers.get(*user) {
            None => true,
            Some(takes) => takes.next(limit).is_none() && !doubts.read_again.contains(user),
        };
        let users: HashSet<UserId> = todo.iter().map(|ask| ask.request.user).filter(doubtful).collect();
        if !users.is_empty() {
            doubts.read_again.extend(&users);
            let found = self.store.user_takes(self.activity, users.into_iter().collect()).await?;
            for (user, takes) in found {
                self.takers.insert(user, takes);
            }
        }
        Ok(())
    }

    /// Gives tokens of the front block to as many requests as it has; leaves the others in `todo`, but for those whose
    /// users hold as many as they may.
    fn draft(
        &mut self,
        todo: &mut Vec<TakeAsk>,
        limited: &mut Vec<TakeAsk>,
        view: &ActivityView,
        now: Timestamp,
        most: usize,
    ) -> Vec<Draft> {
        let most = most.min(self.window.available_in_front() as usize);
        let mut drafts: Vec<Draft> = Vec::with_capacity(most.min(todo.len()));
        let mut by_key: HashMap<[u8; 32], usize> = HashMap::new();
        let mut rest = Vec::new();
        for ask in std::mem::take(todo) {
            if let Some(first) = ask.request.key.and_then(|key| by_key.get(&key.id)) {
                drafts[*first].twins.push(ask);
                continue;
            }
            if drafts.len() == most {
                rest.push(ask);
                continue;
            }
            let take_no = match self.takers.reserve(ask.request.user, view.limit) {
                Ok(number) => number,
                // Undecided while another take of the same user is: that one may still fail.
                Err(ReserveError::LimitReached)
                    if drafts.iter().any(|draft| draft.ask.request.user == ask.request.user) =>
                {
                    rest.push(ask);
                    continue;
                }
                Err(ReserveError::LimitReached) => {
                    limited.push(ask);
                    continue;
                }
                Err(ReserveError::UserUnknown) => {
                    rest.push(ask);
                    continue;
                }
            };
            let token =
                self.store.ids().next::<TakeId>().ok().and_then(|id| Some((id, self.window.reserve()?)));
            let Some((id, token)) = token else {
                self.takers.put_back(ask.request.user, take_no);
                rest.push(ask);
                continue;
            };
            if let Some(key) = ask.request.key {
                by_key.insert(key.id, drafts.len());
            }
            let take = Take {
                id,
                activity_id: self.activity,
                user_id: ask.request.user,
                token_no: i32::try_from(token).unwrap_or(i32::MAX),
                take_no: i32::try_from(take_no).unwrap_or(i32::MAX),
                state: TakeState::Unused,
                taken_at: now,
            };
            let granted = Granted { take, sale: view.sale.clone() };
            drafts.push(Draft { ask, twins: Vec::new(), granted });
        }
        *todo = rest;
        drafts
    }

    async fn commit(&mut self, batch: Batch, drafts: &[Draft], doubts: &mut Doubts) -> Outcome {
        let (id, block) = (batch.id, batch.block);
        metrics::histogram!("tombola_stock_batch_takes")
            .record(u32::try_from(drafts.len()).unwrap_or(u32::MAX));
        let error = match self.store.commit(batch).await {
            Ok(()) => return Outcome::Committed,
            Err(error) => error,
        };
        match &error {
            CommitError::Stale => {
                metrics::counter!("tombola_stock_stale_batches_total").increment(1);
                debug!(activity.id = %self.activity, "The block or the activity changed: reading both again");
                self.put_back(drafts);
                self.view = None;
                // Mostly the activity alone has changed, and a claim would queue for its lock behind the next change.
                if !self.store.holds(block).await.unwrap_or(false) {
                    self.window.remove_block(block.id);
                }
                Outcome::Again
            }
            CommitError::Db(fault) if fault.is_ambiguous() => {
                metrics::counter!("tombola_stock_ambiguous_commits_total").increment(1);
                warn!(activity.id = %self.activity, batch.id = %id, error = %fault, "Resolving a batch of unknown outcome");
                let stands = self.resolve(id, drafts, block).await;
                info!(activity.id = %self.activity, batch.id = %id, stands, "Resolved a batch of unknown outcome");
                if !stands {
                    self.put_back(drafts);
                }
                // Fencing it off made our epoch an old one.
                self.window.remove_block(block.id);
                if stands { Outcome::Committed } else { Outcome::Again }
            }
            CommitError::Db(fault) if fault.is_duplicate() => {
                metrics::counter!("tombola_stock_collisions_total").increment(1);
                debug!(activity.id = %self.activity, error = %fault, "A batch collided: reading its users and tokens again");
                doubts.collisions += 1;
                self.put_back(drafts);
                self.window.remove_block(block.id);
                Outcome::Again
            }
            CommitError::Db(fault) => {
                self.put_back(drafts);
                if fault.is_conflict() {
                    return Outcome::Again;
                }
                warn!(activity.id = %self.activity, error = %fault, "A batch was not committed");
                Outcome::Unavailable
            }
        }
    }

    /// Asks until the database tells whether the batch stands.
    async fn resolve(&self, batch: BatchId, drafts: &[Draft], block: HeldBlock) -> bool {
        let Some(witness) = drafts.first().map(|draft| draft.granted.take.id) else { return false };
        let mut pause = Duration::from_millis(20);
        loop {
            match self.store.resolve(witness, block).await {
                Ok(stands) => return stands,
                Err(fault) => debug!(batch.id = %batch, error = %fault, "The outcome is still unknown"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn put_back(&mut self, drafts: &[Draft]) {
        for Draft { granted: Granted { take, .. }, .. } in drafts {
            self.takers.put_back(take.user_id, u32::try_from(take.take_no).unwrap_or(0));
            if let Err(error) = self.window.put_back(u32::try_from(take.token_no).unwrap_or(0)) {
                error!(activity.id = %self.activity, %error, "A reserved token was not in flight");
            }
        }
    }
}

/// The answer's JSON. `None` cannot happen: every field serializes.
fn body_of(granted: &Granted) -> Option<String> {
    serde_json::to_string(&TakeAnswer::from(granted.clone())).ok()
}

/// Remembers and answers what was committed.
fn answer(drafts: Vec<Draft>, block: HeldBlock, window: &mut TokenWindow) {
    let still_held = window.blocks().any(|held| held.id == block.id);
    for Draft { ask, twins, granted } in drafts {
        let take = &granted.take;
        if still_held && let Err(error) = window.confirm(u32::try_from(take.token_no).unwrap_or(0)) {
            error!(%error, take.id = %take.id, "A committed token was not in flight");
        }
        for twin in twins {
            let same = twin.request.key == ask.request.key;
            twin.answer(if same {
                let body = body_of(&granted).ok_or(TakeError::Unanswered);
                body.map(|body| Answered::Replayed(Answer { status: 201, body }))
            } else {
                Err(KeyRefusal::Reused.into())
            });
        }
        ask.answer(Ok(Answered::Fresh(granted)));
    }
}

fn refuse_all(todo: &mut Vec<TakeAsk>, error: &TakeError) {
    for ask in todo.drain(..) {
        ask.answer(Err(error.clone()));
    }
}
