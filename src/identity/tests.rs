//! Stories of users and sessions, each on a new database of every kind there is. `tests/run` starts them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::{TryStreamExt, future};
use rstest::rstest;
use sea_orm::{EntityTrait, PaginatorTrait};

use super::*;
use crate::db::testing::{Engine, TestDatabase, fresh_on};
use crate::db::{Database, DbFault};
use crate::ids::{Ids, UserId};
use crate::ports::clock::{ManualClock, Timestamp};
use crate::wallet::{Ledger, WalletService};
use Engine::{MariaDb, Postgres, Sqlite};

const TTL: Duration = Duration::from_secs(900);

pub(super) struct Story {
    _place: TestDatabase,
    db: Database,
    clock: Arc<ManualClock>,
    pub(super) identity: IdentityService,
    pub(super) tokens: TokenStore,
}

impl Story {
    pub(super) async fn begin(engine: Engine) -> Self {
        let (place, db) = fresh_on(engine).await;
        let clock = Arc::new(ManualClock::new(Timestamp::from_timestamp(1_800_000_000, 0).unwrap()));
        let tokens = node(&db, &clock, 1).await;
        let ids = Ids::new(2, clock.as_ref(), Duration::from_secs(600));
        let identity = IdentityService::new(db.clone(), tokens.clone(), TTL, true, clock.clone(), ids);
        Self { _place: place, db, clock, identity, tokens }
    }

    pub(super) fn wallets(&self) -> WalletService {
        let ids = Ids::new(4, self.clock.as_ref(), Duration::from_secs(600));
        let ledger = Ledger::new(ids, "CNY".parse().unwrap());
        WalletService::new(self.db.clone(), self.clock.clone(), ledger)
    }

    pub(super) fn without_dev_login(mut self) -> Self {
        let ids = Ids::new(3, self.clock.as_ref(), Duration::from_secs(600));
        let (db, tokens, clock) = (self.db.clone(), self.tokens.clone(), self.clock.clone());
        self.identity = IdentityService::new(db, tokens, TTL, false, clock, ids);
        self
    }
}

/// Another node's view of the same keys and revocations.
async fn node(db: &Database, clock: &Arc<ManualClock>, number: i32) -> TokenStore {
    let ids = Ids::new(number, clock.as_ref(), Duration::from_secs(600));
    TokenStore::open(db.clone(), SigningKeys::InDatabase, TTL, clock.clone(), ids).await.unwrap()
}

fn name(text: &str) -> UserName {
    UserName::parse(text).unwrap()
}

fn customer() -> Roles {
    Role::Customer.into()
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_concurrent_logins_one_is_the_first(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let logins = (0..20).map(|_| {
        let identity = story.identity.clone();
        tokio::spawn(async move { identity.dev_login(name("alice"), customer()).await.unwrap() })
    });
    let sessions: Vec<Session> = future::join_all(logins).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(sessions.iter().filter(|session| session.first_login).count(), 1);
    assert_eq!(sessions.iter().map(|session| session.user.id).collect::<HashSet<_>>().len(), 1);
    assert_eq!(sessions.iter().map(|session| session.token.id).collect::<HashSet<_>>().len(), 20);
    assert!(!story.identity.dev_login(name("alice"), customer()).await.unwrap().first_login);
    let id = sessions[0].user.id;
    let events: Vec<entities::outbox::Model> = story
        .db
        .read(|connection| async move {
            Ok::<_, DbFault>(entities::outbox::Entity::find().all(&connection).await?)
        })
        .await
        .unwrap();
    assert_eq!(events.len(), 1);
    let events: serde_json::Value = serde_json::from_str(&events[0].events).unwrap();
    assert_eq!(events.as_array().unwrap().len(), 1);
    assert_eq!(events[0]["type"], "user.first_login.v1");
    assert_eq!(events[0]["subject"], id.to_string());
    assert_eq!(events[0]["data"]["user_id"], id.to_string());
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_dev_login_says_what_the_user_may_do(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let first = story.identity.dev_login(name("alice"), customer()).await.unwrap();
    let operator = Roles::from_iter([Role::Customer, Role::Operator]);
    let second = story.identity.dev_login(name("alice"), operator).await.unwrap();
    assert_eq!(first.user.id, second.user.id);
    let caller = story.tokens.tokens().verify(&second.token.token).unwrap();
    assert_eq!((caller.user, caller.roles), (first.user.id, operator));
    let user = story.identity.user(caller.user).await.unwrap();
    assert_eq!(user, User { id: first.user.id, name: "alice".into(), roles: operator });
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_logs_in_with_a_password(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let identity = &story.identity;
    let password = || NewPassword::parse("correct horse".into()).unwrap();
    let added = identity.add_user(&name("olga"), Role::Operator.into(), password()).await.unwrap();
    let again = identity.add_user(&name("olga"), Role::Operator.into(), password()).await;
    assert!(matches!(again, Err(IdentityError::NameTaken)));
    for (who, what) in [("olga", "wrong horse"), ("oleg", "correct horse"), ("Olga", "correct horse")] {
        let refused = identity.password_login(&name(who), what.into()).await;
        assert!(matches!(refused, Err(IdentityError::WrongCredentials)), "{who} {what}");
    }
    // The dev login's users are others: it cannot be used to become someone who has a password.
    let other = identity.dev_login(name("olga"), customer()).await.unwrap();
    assert_ne!(other.user.id, added.id);
    for first_login in [true, false] {
        let session = identity.password_login(&name("olga"), "correct horse".into()).await.unwrap();
        assert_eq!((session.user, session.first_login), (added.clone(), first_login));
        let caller = story.tokens.tokens().verify(&session.token.token).unwrap();
        assert_eq!(caller.roles, Role::Operator.into());
    }
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_the_session_on_every_node(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let elsewhere = node(&story.db, &story.clock, 4).await;
    let session = story.identity.dev_login(name("alice"), customer()).await.unwrap();
    let other = story.identity.dev_login(name("alice"), customer()).await.unwrap();
    let caller = elsewhere.tokens().verify(&session.token.token).unwrap();
    story.identity.log_out(&caller).await.unwrap();
    story.identity.log_out(&caller).await.unwrap();
    assert_eq!(story.tokens.tokens().verify(&session.token.token), Err(TokenRefusal::Revoked));
    elsewhere.refresh().await.unwrap();
    assert_eq!(elsewhere.tokens().verify(&session.token.token), Err(TokenRefusal::Revoked));
    assert!(elsewhere.tokens().verify(&other.token.token).is_ok());
    let restarted = node(&story.db, &story.clock, 5).await;
    assert_eq!(restarted.tokens().verify(&session.token.token), Err(TokenRefusal::Revoked));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_without_refusing_anyone(#[values(Sqlite, Postgres, MariaDb)] engine: Engine) {
    let story = Story::begin(engine).await;
    let elsewhere = node(&story.db, &story.clock, 4).await;
    let issue = |store: &TokenStore| store.tokens().issue(UserId(1), customer(), TTL).unwrap().token;
    let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid;
    let old = issue(&story.tokens);
    assert_eq!(kid(&old), kid(&issue(&elsewhere)));
    story.clock.advance(TimeDelta::seconds(60));
    story.tokens.rotate().await.unwrap();
    assert_eq!(kid(&issue(&story.tokens)), kid(&old), "the new key settles first");
    story.clock.advance(TimeDelta::seconds(5));
    let new = issue(&story.tokens);
    assert_ne!(kid(&new), kid(&old));
    assert_eq!(elsewhere.tokens().verify(&new), Err(TokenRefusal::UnknownKey));
    elsewhere.refresh().await.unwrap();
    assert!(elsewhere.tokens().verify(&new).is_ok() && elsewhere.tokens().verify(&old).is_ok());
    story.clock.advance(TimeDelta::from_std(TTL).unwrap());
    let late = issue(&elsewhere);
    assert_eq!(kid(&late), kid(&new));
    assert_eq!(elsewhere.tokens().verify(&old), Err(TokenRefusal::UnknownKey));
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_unknown_key_makes_the_node_look_at_once(
    #[values(Sqlite, Postgres, MariaDb)] engine: Engine,
) {
    let story = Story::begin(engine).await;
    let elsewhere = node(&story.db, &story.clock, 4).await;
    let keeper = elsewhere.clone();
    let keeping = tokio::spawn(async move { keeper.keep_fresh().await });
    story.clock.advance(TimeDelta::seconds(60));
    story.tokens.rotate().await.unwrap();
    story.clock.advance(TimeDelta::seconds(5));
    let new = story.tokens.tokens().issue(UserId(1), customer(), TTL).unwrap().token;
    let seen = async {
        while elsewhere.tokens().verify(&new).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), seen).await.unwrap();
    keeping.abort();
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn minted_customers_exist_and_their_tokens_are_good(
    #[values(Sqlite, Postgres, MariaDb)] engine: Engine,
) {
    let story = Story::begin(engine).await;
    let portions = story.identity.mint_customers(2_500, TTL);
    let tokens = portions.try_concat().await.unwrap();
    assert_eq!(tokens.len(), 2_500);
    let callers = tokens.iter().map(|token| story.tokens.tokens().verify(&token.token).unwrap());
    assert_eq!(callers.map(|caller| caller.user).collect::<HashSet<_>>().len(), 2_500);
    let last = story.tokens.tokens().verify(&tokens[2_499].token).unwrap();
    assert_eq!(story.identity.user(last.user).await.unwrap().roles, customer());
    let count = story.db.read(|connection| async move {
        Ok::<_, DbFault>(entities::users::Entity::find().count(&connection).await?)
    });
    assert_eq!(count.await.unwrap(), 2_500);
}
