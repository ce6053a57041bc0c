//! Stories of users and sessions against a database of their own.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::{TryStreamExt, future};
use sea_orm::{EntityTrait, PaginatorTrait};
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::*;
use crate::db::{Database, DatabaseSettings, DbFault};
use crate::ids::{Ids, UserId};
use crate::ports::clock::{Clock, Timestamp};

const TTL: Duration = Duration::from_secs(900);

#[derive(Debug)]
struct Micros(AtomicI64);

impl Micros {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for Micros {
    fn now(&self) -> Timestamp {
        Timestamp::from_timestamp_micros(self.0.load(Ordering::Relaxed)).unwrap()
    }
}

struct Story {
    _directory: TempDir,
    db: Database,
    clock: Arc<Micros>,
    identity: IdentityService,
    tokens: TokenStore,
}

impl Story {
    async fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("identity.db").display());
        let settings = DatabaseSettings::new(&url.into()).unwrap();
        let db = Database::connect(settings, Handle::current()).await.unwrap();
        db.migrate().await.unwrap();
        let clock = Arc::new(Micros(AtomicI64::new(1_800_000_000_000_000)));
        let tokens = node(&db, &clock, 1).await;
        let ids = Ids::new(2, clock.as_ref(), Duration::from_secs(600));
        let identity = IdentityService::new(db.clone(), tokens.clone(), TTL, true, clock.clone(), ids);
        Self { _directory: directory, db, clock, identity, tokens }
    }
}

/// Another node's view of the same keys and revocations.
async fn node(db: &Database, clock: &Arc<Micros>, number: i32) -> TokenStore {
    let ids = Ids::new(number, clock.as_ref(), Duration::from_secs(600));
    TokenStore::open(db.clone(), SigningKeys::InDatabase, TTL, clock.clone(), ids).await.unwrap()
}

fn name(text: &str) -> UserName {
    UserName::parse(text).unwrap()
}

fn customer() -> Roles {
    Role::Customer.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_concurrent_logins_one_is_the_first() {
    let story = Story::begin().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_dev_login_says_what_the_user_may_do() {
    let story = Story::begin().await;
    let first = story.identity.dev_login(name("alice"), customer()).await.unwrap();
    let operator = Roles::from_iter([Role::Customer, Role::Operator]);
    let second = story.identity.dev_login(name("alice"), operator).await.unwrap();
    assert_eq!(first.user.id, second.user.id);
    let caller = story.tokens.tokens().verify(&second.token.token).unwrap();
    assert_eq!((caller.user, caller.roles), (first.user.id, operator));
    let user = story.identity.user(caller.user).await.unwrap();
    assert_eq!(user, User { id: first.user.id, name: "alice".into(), roles: operator });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dev_login_can_be_switched_off() {
    let story = Story::begin().await;
    let ids = Ids::new(3, story.clock.as_ref(), Duration::from_secs(600));
    let strict = IdentityService::new(story.db, story.tokens, TTL, false, story.clock, ids);
    let refused = strict.dev_login(name("alice"), customer()).await.unwrap_err();
    assert!(matches!(refused, IdentityError::DevLoginDisabled));
    assert!(refused.to_string().contains("auth.dev_login"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_logs_in_with_a_password() {
    let story = Story::begin().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_the_session_on_every_node() {
    let story = Story::begin().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_without_refusing_anyone() {
    let story = Story::begin().await;
    let elsewhere = node(&story.db, &story.clock, 4).await;
    let issue = |store: &TokenStore| store.tokens().issue(UserId(1), customer(), TTL).unwrap().token;
    let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid;
    let old = issue(&story.tokens);
    assert_eq!(kid(&old), kid(&issue(&elsewhere)));
    story.clock.advance(Duration::from_secs(60));
    story.tokens.rotate().await.unwrap();
    assert_eq!(kid(&issue(&story.tokens)), kid(&old), "the new key settles first");
    story.clock.advance(Duration::from_secs(5));
    let new = issue(&story.tokens);
    assert_ne!(kid(&new), kid(&old));
    assert_eq!(elsewhere.tokens().verify(&new), Err(TokenRefusal::UnknownKey));
    elsewhere.refresh().await.unwrap();
    assert!(elsewhere.tokens().verify(&new).is_ok() && elsewhere.tokens().verify(&old).is_ok());
    story.clock.advance(TTL);
    let late = issue(&elsewhere);
    assert_eq!(kid(&late), kid(&new));
    assert_eq!(elsewhere.tokens().verify(&old), Err(TokenRefusal::UnknownKey));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_unknown_key_makes_the_node_look_at_once() {
    let story = Story::begin().await;
    let elsewhere = node(&story.db, &story.clock, 4).await;
    let keeper = elsewhere.clone();
    let keeping = tokio::spawn(async move { keeper.keep_fresh().await });
    story.clock.advance(Duration::from_secs(60));
    story.tokens.rotate().await.unwrap();
    story.clock.advance(Duration::from_secs(5));
    let new = story.tokens.tokens().issue(UserId(1), customer(), TTL).unwrap().token;
    let seen = async {
        while elsewhere.tokens().verify(&new).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), seen).await.unwrap();
    keeping.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn minted_customers_exist_and_their_tokens_are_good() {
    let story = Story::begin().await;
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
