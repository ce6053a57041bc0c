//! Lanes: a mailbox for many things, so that each is asked one thing at a time and all commit in groups.
//!
//! A million orders may wait for their payment, and each is asked a handful of things in its life. An actor for each
//! would cost memory while it waits and a transaction of its own whenever it is asked; a lane orders what its things are
//! asked just the same, and what comes together commits together. What a thing is asked must be harmless if repeated:
//! after a commit of unknown outcome the lane asks again, and the database's answer is the truth.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tracing::warn;

use super::batching::{Ask, BatchSettings, Batcher, Engine, Unserved};
use crate::db::{Database, DbFault, Tx};
use crate::error::{ApiError, Code};
use crate::trace;

/// Mailboxes of each kind. More of them would make smaller groups.
const LANES: u16 = 2;
/// How often a group of unknown outcome is asked again before its requests are told so.
const REPEATS: u32 = 3;

/// Does what the requests of one lane ask, together.
pub trait Desk: Clone + Debug + Send + Sync + 'static {
    /// What its lanes are called in logs.
    const NAME: &'static str;
    /// What is asked. Cloned once for each group it is in.
    type Item: Clone + Debug + Send + Sync + 'static;
    type Done: Send + 'static;
    type Refusal: Send + 'static;

    /// Does each of `items` or refuses it, within `tx`; what was done before is answered as it was then.
    fn settle(
        &self,
        tx: Tx,
        items: Arc<[Self::Item]>,
    ) -> impl Future<Output = Result<Answers<Self>, DbFault>> + Send;
}

/// Why a lane did not do what it was asked.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum LaneError<R> {
    #[error("refused")]
    Refused(R),
    #[error("the database is not available")]
    Unavailable,
    #[error(transparent)]
    Unserved(#[from] Unserved),
}

impl<R> LaneError<R> {
    /// What a client is told, if `refused` tells what a refusal means.
    pub fn into_api_error(self, refused: impl FnOnce(R) -> ApiError) -> ApiError {
        match self {
            Self::Refused(refusal) => refused(refusal),
            Self::Unavailable | Self::Unserved(Unserved::NotBegun) => ApiError::new(
                Code::DependencyUnavailable,
                "The database is not available; nothing was changed.",
            ),
            Self::Unserved(Unserved::Overloaded { retry_after_s }) => ApiError::overloaded(retry_after_s),
            Self::Unserved(Unserved::Unanswered) => ApiError::unconfirmed(),
        }
    }
}

/// The lanes of one kind. Clones share them.
pub struct Lanes<D: Desk>(Batcher<Lane<D>>);

impl<D: Desk> Clone for Lanes<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Desk> Debug for Lanes<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<D: Desk> Lanes<D> {
    /// Must be called within an actix `System`.
    pub fn new(db: Database, settings: BatchSettings, desk: D) -> Self {
        let lane = Lane { db: db.clone(), desk };
        Self(Batcher::new(db, settings, move |_, _| lane.clone()))
    }

    /// Asks the lane of the thing with the number `id`.
    pub async fn ask(&self, id: i64, item: D::Item) -> Result<D::Done, LaneError<D::Refusal>> {
        // The low bits of an id count within a millisecond, and most are 0.
        let lane = (id >> 12 ^ id) % i64::from(LANES);
        self.0.ask(u16::try_from(lane).unwrap_or(0), item).await
    }

    /// Lets every lane finish what was accepted.
    pub async fn stop(&self) {
        self.0.stop().await;
    }
}

/// One lane.
#[derive(Debug, Clone)]
pub struct Lane<D> {
    db: Database,
    desk: D,
}

impl<D: Desk> Engine for Lane<D> {
    const NAME: &'static str = D::NAME;
    type Key = u16;
    type Request = D::Item;
    type Answer = D::Done;
    type Error = LaneError<D::Refusal>;
    type Notice = ();
    type Hints = ();

    fn note(&mut self, (): ()) {}

    async fn serve(&mut self, mut asks: Vec<Ask<Self>>) {
        asks.retain(|ask| !ask.is_abandoned());
        if asks.is_empty() {
            return;
        }
        match self.settle(&asks).await {
            Ok(answers) => answer(asks, answers),
            Err(fault) if asks.len() > 1 && !fault.is_outage() && !is_unknown(&fault) => {
                warn!(error = %fault, "{} requests to {} are tried one by one", asks.len(), D::NAME);
                for ask in asks {
                    let alone = vec![ask];
                    match self.settle(&alone).await {
                        Ok(answers) => answer(alone, answers),
                        Err(fault) => fail(alone, &fault),
                    }
                }
            }
            Err(fault) => fail(asks, &fault),
        }
    }
}

/// What became of each item of a group, in its place.
pub type Answers<D> = Vec<Result<<D as Desk>::Done, <D as Desk>::Refusal>>;

impl<D: Desk> Lane<D> {
    async fn settle(&self, asks: &[Ask<Self>]) -> Result<Answers<D>, DbFault> {
        let items: Arc<[D::Item]> = asks.iter().map(|ask| ask.request.clone()).collect();
        let parent = asks.first().filter(|_| asks.len() == 1).and_then(|ask| ask.parent);
        let mut repeats = 0;
        loop {
            let (desk, items) = (self.desk.clone(), items.clone());
            let settling = self.db.transaction(move |tx| {
                let (desk, items) = (desk.clone(), items.clone());
                async move { desk.settle(tx, items).await }
            });
            match trace::within(parent, settling).await {
                // A duplicate: another lane or node was faster, and what it wrote can be read now.
                Err(fault) if (is_unknown(&fault) || fault.is_duplicate()) && repeats < REPEATS => {
                    repeats += 1;
                    warn!(error = %fault, "Asking {} again", D::NAME);
                    tokio::time::sleep(Duration::from_millis(50 << repeats)).await;
                }
                outcome => return outcome,
            }
        }
    }
}

/// Whether the work may have been done.
fn is_unknown(fault: &DbFault) -> bool {
    // A panic was before the commit.
    fault.is_ambiguous() && !matches!(fault, DbFault::Panicked(_))
}

fn answer<D: Desk>(asks: Vec<Ask<Lane<D>>>, answers: Answers<D>) {
    for (ask, answer) in asks.into_iter().zip(answers) {
        ask.answer(answer.map_err(LaneError::Refused));
    }
}

fn fail<D: Desk>(asks: Vec<Ask<Lane<D>>>, fault: &DbFault) {
    warn!(error = %fault, "{} did not do what it was asked", D::NAME);
    for ask in asks {
        ask.answer(Err(match is_unknown(fault) {
            true => LaneError::Unserved(Unserved::Unanswered),
            false => LaneError::Unavailable,
        }));
    }
}
