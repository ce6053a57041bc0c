//! Answers kept for repeats (API.md, Errors: Idempotency-Key; draft-ietf-httpapi-idempotency-key-header-07).
//!
//! The key's row is inserted first, in the effect's own transaction, so a crash leaves neither: there is no state
//! "running" to get stuck in. A twin that arrives meanwhile waits for that transaction and then sees its answer. Only
//! effects are kept: a refusal changed nothing, so its repeat is judged anew.

use sea_orm::ConnectionTrait;
use serde::Serialize;
use thiserror::Error;

use crate::db::bulk::{self, Column, Rows, Script};
use crate::db::{AsDbFault, Database, DbFault, Tx};
use crate::error::{ApiError, Code};
use crate::ids::UserId;
use crate::jobs::{Log, Stamp};
use crate::ports::clock::{SharedClock, Timestamp, to_micros};

/// What a repeat is recognised by, and what it must have in common with the first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestKey {
    /// SHA-256 over user, route and key.
    pub id: [u8; 32],
    /// SHA-256 over the body.
    pub fingerprint: [u8; 32],
}

impl RequestKey {
    /// The key `key` that `user` sent to `route` (method and path) with a body of this `fingerprint`.
    pub fn new(user: UserId, route: &str, key: &str, fingerprint: [u8; 32]) -> Self {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(&user.0.to_be_bytes());
        hash.update(route.as_bytes());
        hash.update(&[0]);
        hash.update(key.as_bytes());
        let mut id = [0; 32];
        id.copy_from_slice(hash.finish().as_ref());
        Self { id, fingerprint }
    }

    /// What the request with this key is told if `first`, of the same id, was answered `answer`.
    pub fn replay<T>(&self, first: &Self, answer: Answer) -> Result<Answered<T>, KeyRefusal> {
        if first == self { Ok(Answered::Replayed(answer)) } else { Err(KeyRefusal::Reused) }
    }
}

/// An answer as it was first given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// JSON.
    pub body: String,
}

/// The answer to a request that may be a repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered<T> {
    /// The effect happened now.
    Fresh(T),
    /// The effect happened at an earlier request with this key; nothing happened now.
    Replayed(Answer),
}

impl<T> Answered<T> {
    /// What happened now, as `change` makes it.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answered<U> {
        match self {
            Self::Fresh(done) => Answered::Fresh(change(done)),
            Self::Replayed(answer) => Answered::Replayed(answer),
        }
    }
}

/// A request whose key cannot be honoured.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum KeyRefusal {
    #[error("this Idempotency-Key was already used here with another body")]
    Reused,
    #[error("the first request with this Idempotency-Key is still running")]
    InProgress,
}

impl From<KeyRefusal> for ApiError {
    fn from(refusal: KeyRefusal) -> Self {
        let code = match refusal {
            KeyRefusal::Reused => Code::IdempotencyKeyReused,
            KeyRefusal::InProgress => Code::IdempotencyInProgress,
        };
        Self::new(code, refusal.to_string())
    }
}

/// Runs `work` in a transaction, once per key: a repeat gets the first answer and changes nothing.
///
/// `status` is what the answer is sent with. Without a key this is [`Database::transaction`].
pub async fn once<T, E, F, Fut>(
    db: &Database,
    clock: &SharedClock,
    key: Option<RequestKey>,
    status: u16,
    work: F,
) -> Result<Answered<T>, E>
where
    T: Serialize + Send + 'static,
    E: From<DbFault> + From<KeyRefusal> + AsDbFault + Send + 'static,
    F: Fn(Tx) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    let Some(key) = key else { return db.transaction(work).await.map(Answered::Fresh) };
    let now = to_micros(clock.now());
    let work = std::sync::Arc::new(work);
    db.transaction(move |tx| {
        let work = work.clone();
        async move {
            match claim(&tx, &key, now).await {
                Ok(None) => {}
                Ok(Some((first, answer))) => return Ok(key.replay(&first, answer)?),
                // The transaction holds nothing yet, so what it waited for in vain is the key.
                Err(fault) if fault.is_lock_timeout() => return Err(KeyRefusal::InProgress.into()),
                Err(fault) => return Err(fault.into()),
            }
            let done = work(tx.clone()).await?;
            let body = serde_json::to_string(&done).map_err(DbFault::from)?;
            keep(&tx, &key, &Answer { status, body }).await?;
            Ok(Answered::Fresh(done))
        }
    })
    .await
}

/// What a repeat of the request with `key` is told, if an answer is kept.
pub async fn kept<T, E>(db: &Database, key: Option<RequestKey>) -> Result<Option<Answered<T>>, E>
where
    E: From<DbFault> + From<KeyRefusal>,
{
    let Some(key) = key else { return Ok(None) };
    let kept: Result<_, DbFault> = db.read(move |db| async move { kept_answers(&db, &[key]).await }).await;
    kept?.pop().map(|(first, answer)| key.replay(&first, answer)).transpose().map_err(E::from)
}

/// Claims `key` for the open transaction, or tells what was answered earlier under its id.
async fn claim(tx: &Tx, key: &RequestKey, now: i64) -> Result<Option<(RequestKey, Answer)>, DbFault> {
    const CLAIM: &str =
        "INTO idempotency (id, fingerprint, status, body, created_at) VALUES (?, ?, 0, '', ?)";
    let backend = tx.get_database_backend();
    let values = [key.id.to_vec().into(), key.fingerprint.to_vec().into(), now.into()];
    let insert = bulk::statement(backend, &bulk::insert_if_absent(backend, CLAIM), values);
    if tx.execute_raw(insert).await?.rows_affected() == 1 {
        return Ok(None);
    }
    let kept = kept_answers(tx, &[*key]).await?.pop();
    kept.map(Some).ok_or(DbFault::Missing("the kept answer"))
}

async fn keep(tx: &Tx, key: &RequestKey, answer: &Answer) -> Result<(), DbFault> {
    use sea_orm::{ActiveModelTrait, ActiveValue::Set, ActiveValue::Unchanged};
    let row = entities::idempotency::ActiveModel {
        id: Unchanged(key.id.to_vec()),
        status: Set(i32::from(answer.status)),
        body: Set(answer.body.clone()),
        ..Default::default()
    };
    row.update(tx).await?;
    Ok(())
}

/// Adds to `script` the keeping of answers that are decided already; a key that is kept already fails it as a duplicate.
pub fn keep_all(answers: &[(RequestKey, Answer)], now: Timestamp, script: &mut Script) {
    if answers.is_empty() {
        return;
    }
    let rows = Rows::new()
        .column("id", Column::Hash(answers.iter().map(|(key, _)| key.id).collect()))
        .column("fingerprint", Column::Hash(answers.iter().map(|(key, _)| key.fingerprint).collect()))
        .column("status", Column::Int(answers.iter().map(|(_, answer)| i32::from(answer.status)).collect()))
        .column("body", Column::Text(answers.iter().map(|(_, answer)| answer.body.clone()).collect()));
    script.push_rows(
        "INSERT INTO idempotency (id, fingerprint, status, body, created_at) \
         SELECT r.id, r.fingerprint, r.status, r.body, ? FROM {rows}",
        [to_micros(now).into()],
        rows,
    );
}

/// The answers kept under the ids of `keys`, each with the key it was kept under (its fingerprint may differ).
pub async fn kept_answers(
    connection: &impl ConnectionTrait,
    keys: &[RequestKey],
) -> Result<Vec<(RequestKey, Answer)>, DbFault> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = Rows::new().column("id", Column::Hash(keys.iter().map(|key| key.id).collect()));
    let sql = "SELECT i.id, i.fingerprint, i.status, i.body FROM {rows} JOIN idempotency i ON i.id = r.id";
    let found = connection.query_all_raw(rows.statement(connection.get_database_backend(), sql, [])).await?;
    found
        .into_iter()
        .map(|row| {
            let hash = |column| -> Result<[u8; 32], DbFault> {
                let bytes: Vec<u8> = row.try_get("", column)?;
                bytes.try_into().map_err(|_| DbFault::Missing("a 32-byte hash"))
            };
            let key = RequestKey { id: hash("id")?, fingerprint: hash("fingerprint")? };
            let status: i32 = row.try_get("", "status")?;
            let status = u16::try_from(status).map_err(|_| DbFault::Missing("an HTTP status"))?;
            Ok((key, Answer { status, body: row.try_get("", "body")? }))
        })
        .collect()
}

/// Answers are kept for a day.
pub const LOG: Log = Log {
    table: "idempotency",
    aged_by: "created_at",
    stamped_by: Stamp::Server,
    kept_for: chrono::TimeDelta::hours(24),
    only_if: None,
};

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rstest::rstest;
    use tokio::sync::Notify;

    use super::*;
    use crate::db::testing::Engine::{self, MariaDb, Postgres, Sqlite};
    use crate::db::{DatabaseSettings, testing};
    use crate::ports::clock::ManualClock;

    fn clock() -> SharedClock {
        Arc::new(ManualClock::new(chrono::DateTime::UNIX_EPOCH))
    }

    fn key(name: &str) -> Option<RequestKey> {
        Some(RequestKey::new(UserId(1), "POST /x", name, [0; 32]))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_is_given_again() {
        let (_place, db) = testing::fresh().await;
        let clock = clock();
        let ask = || once::<u32, TestError, _, _>(&db, &clock, key("k"), 201, |_| async { Ok(7) });
        let first = Answer { status: 201, body: "7".to_owned() };
        assert_eq!(ask().await.unwrap(), Answered::Fresh(7));
        assert_eq!(ask().await.unwrap(), Answered::Replayed(first));
        db.close().await;
    }

    /// SQLite has one writer at a time: a twin is not told from any other.
    #[rstest]
    #[tokio::test(flavor = "multi_thread")]
    async fn a_twin_that_waits_too_long_is_told_before_its_deadline(
        #[values(Postgres, MariaDb)] engine: Engine,
    ) {
        let (_place, db) = testing::fresh_on(engine).await;
        let clock = clock();
        let (begun, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (begins, ends) = (begun.clone(), done.clone());
        let first = once::<u32, TestError, _, _>(&db, &clock, key("k"), 201, move |_| {
            let (begins, ends) = (begins.clone(), ends.clone());
            async move {
                begins.notify_one();
                ends.notified().await;
                Ok(7)
            }
        });
        let twin = async {
            begun.notified().await;
            let twin = once::<u32, TestError, _, _>(&db, &clock, key("k"), 201, |_| async { Ok(8) }).await;
            done.notify_one();
            twin
        };
        let (first, twin) = tokio::join!(first, twin);
        assert_eq!(first.unwrap(), Answered::Fresh(7));
        assert!(matches!(twin, Err(TestError::Key(KeyRefusal::InProgress))), "{twin:?}");
        db.close().await;
    }

    /// The key is free, what its request changes is not.
    #[rstest]
    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_held_up_by_others_is_no_twin(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
        let (place, db) = testing::fresh_on(engine).await;
        let mut slow = DatabaseSettings::new(&place.url.clone().into()).unwrap();
        slow.deadline *= 2;
        let slow = Database::connect(slow, tokio::runtime::Handle::current()).await.unwrap();
        let clock = clock();
        let hold = async |db: &Database, begun: Arc<Notify>, done: Arc<Notify>| {
            let holding = db.transaction(move |tx| {
                let (begun, done) = (begun.clone(), done.clone());
                async move {
                    touch(&tx).await?;
                    begun.notify_one();
                    // Nobody may be idle within a transaction for longer.
                    for _ in 0..10 {
                        let pause = tokio::time::timeout(Duration::from_secs(1), done.notified());
                        if pause.await.is_ok() {
                            break;
                        }
                        touch(&tx).await?;
                    }
                    Ok::<_, DbFault>(())
                }
            });
            holding.await
        };
        db.transaction(|tx| async move {
            tx.execute_unprepared("INSERT INTO shop (id, currency) VALUES (7, 'CNY')").await?;
            Ok::<_, DbFault>(())
        })
        .await
        .unwrap();
        let (begun, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let held_up = async {
            begun.notified().await;
            let held_up = once::<u32, TestError, _, _>(&db, &clock, key("k"), 201, |tx| async move {
                touch(&tx).await?;
                Ok(7)
            });
            let held_up = held_up.await;
            done.notify_one();
            held_up
        };
        let (held, held_up) = tokio::join!(hold(&slow, begun.clone(), done.clone()), held_up);
        held.unwrap();
        let Err(TestError::Db(fault)) = held_up else { panic!("{held_up:?}") };
        assert!(fault.is_conflict(), "{fault:?}");
        let refusal = ApiError::from(fault);
        assert_eq!((refusal.code, refusal.retry_after_s), (Code::DependencyUnavailable, Some(1)));
        slow.close().await;
        db.close().await;
    }

    async fn touch(tx: &Tx) -> Result<(), DbFault> {
        tx.execute_unprepared("UPDATE shop SET currency = 'USD' WHERE id = 7").await?;
        Ok(())
    }

    #[derive(Debug, Error)]
    enum TestError {
        #[error(transparent)]
        Key(#[from] KeyRefusal),
        #[error(transparent)]
        Db(#[from] DbFault),
    }

    impl AsDbFault for TestError {
        fn db_fault(&self) -> Option<&DbFault> {
            match self {
                Self::Db(fault) => Some(fault),
                Self::Key(_) => None,
            }
        }
    }
}
