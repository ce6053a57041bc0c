//! An engine that does what its requests say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all};

use super::*;
use crate::db::testing::{self, TestDatabase};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Life,
    /// That there be no use for the engine any more.
    Oblivion,
    /// That the engine dies with its batch.
    Death,
}

/// What an engine knew when it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    together: usize,
    notices: u32,
}

struct Toy {
    notices: u32,
    needed: bool,
    rested: Arc<AtomicU32>,
}

impl Engine for Toy {
    const NAME: &'static str = "toy";

    type Key = u64;
    type Request = Wish;
    type Answer = Known;
    type Error = Unserved;
    type Notice = ();
    type Hints = AtomicU32;

    fn note(&mut self, (): ()) {
        self.notices += 1;
    }

    async fn serve(&mut self, asks: Vec<Ask<Self>>) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let together = asks.len();
        for ask in asks {
            assert_ne!(ask.request, Wish::Death, "as it wished");
            self.needed = ask.request == Wish::Life;
            ask.answer(Ok(Known { together, notices: self.notices }));
        }
    }

    fn is_needed(&self) -> bool {
        self.needed
    }

    async fn rest(&mut self) {
        self.rested.fetch_add(1, Ordering::Relaxed);
    }

    fn hear(hints: &AtomicU32, (): &()) {
        hints.fetch_add(1, Ordering::Relaxed);
    }
}

struct Toys {
    _place: TestDatabase,
    front: Batcher<Toy>,
    rested: Arc<AtomicU32>,
}

impl Toys {
    async fn new(passivate_after: Duration) -> Self {
        let (place, db) = testing::fresh().await;
        let settings = BatchSettings {
            max_batch: 8,
            admission: AdmissionLimits {
                waiting_per_key: 64,
                waiting_in_process: 64,
                wait: Duration::from_secs(5),
            },
            answer_deadline: Duration::from_secs(5),
            passivate_after,
        };
        let rested = Arc::new(AtomicU32::new(0));
        let counter = rested.clone();
        let front =
            Batcher::new(db, settings, move |_, _| Toy { notices: 0, needed: true, rested: counter.clone() });
        Self { _place: place, front, rested }
    }

    async fn have_rested(&self, times: u32) {
        while self.rested.load(Ordering::Relaxed) < times {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

const NEVER: Duration = Duration::from_secs(3600);

#[actix_web::test]
async fn who_comes_during_a_batch_is_in_the_next_one() {
    let toys = Toys::new(NEVER).await;
    let all = join_all((0..20).map(|_| toys.front.ask(7, Wish::Life))).await;
    let most = all.iter().map(|answer| answer.unwrap().together).max();
    assert_eq!(most, Some(8));
    toys.front.stop().await;
}

#[actix_web::test]
async fn the_batch_of_a_dead_engine_is_told_so_and_whoever_was_behind_it_is_served() {
    let toys = Toys::new(NEVER).await;
    let first = toys.front.ask_unless(7, Wish::Death, |_| None).unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (first, behind) = join(first.answer(), toys.front.ask(7, Wish::Life)).await;
    assert_eq!(first, Err(Unserved::Unanswered));
    assert_eq!(behind, Ok(Known { together: 1, notices: 0 }));
    toys.front.stop().await;
}

#[actix_web::test]
async fn a_key_whose_actors_keep_dying_is_left_alone() {
    let toys = Toys::new(NEVER).await;
    for _ in 0..4 {
        assert_eq!(toys.front.ask(7, Wish::Death).await, Err(Unserved::Unanswered));
    }
    assert_eq!(toys.front.ask(7, Wish::Life).await, Err(Unserved::Overloaded { retry_after_s: 30 }));
    assert!(toys.front.ask(8, Wish::Life).await.is_ok());
    toys.front.stop().await;
}

#[actix_web::test]
async fn a_notice_is_known_before_what_comes_after_it() {
    let toys = Toys::new(NEVER).await;
    toys.front.tell(7, ());
    assert_eq!(toys.front.ask(7, Wish::Life).await.unwrap().notices, 0, "there was nobody to tell");
    toys.front.tell_all(&());
    let heard = |hints: &AtomicU32| {
        assert_eq!(hints.load(Ordering::Relaxed), 1);
        None
    };
    let asked = toys.front.ask_unless(7, Wish::Life, heard).unwrap();
    assert_eq!(asked.answer().await.unwrap().notices, 1);
    toys.front.stop().await;
}

#[actix_web::test]
async fn an_actor_that_nobody_needs_rests_at_once() {
    let toys = Toys::new(NEVER).await;
    assert!(toys.front.ask(7, Wish::Oblivion).await.is_ok());
    toys.have_rested(1).await;
    assert!(toys.front.ask(7, Wish::Life).await.is_ok());
    toys.front.stop().await;
    toys.have_rested(2).await;
}

#[actix_web::test]
async fn an_idle_actor_rests_and_the_next_request_starts_another() {
    let toys = Toys::new(Duration::from_millis(50)).await;
    assert!(toys.front.ask(7, Wish::Life).await.is_ok());
    toys.have_rested(1).await;
    assert!(toys.front.ask(7, Wish::Life).await.is_ok());
    toys.front.stop().await;
    toys.have_rested(2).await;
}
