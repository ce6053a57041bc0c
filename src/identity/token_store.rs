//! The truth behind [`Tokens`], in the database: the keys that sign when none is configured, and revoked tokens.
//!
//! Every node reads both once a second, and the keys at once when a token names one it does not know. A new key
//! signs only after the other nodes have had time to read it, and the one before it is accepted until the last token
//! it signed has expired. Revoked tokens are read by the database's clock and with an overlap, because a
//! transaction may commit long after it asked for the time; without the database they stay revoked.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use entities::{revoked_token, signing_key};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder,
};
use thiserror::Error;
use tracing::{info, warn};

use super::keys::{Key, SigningKeys, SigningSecret};
use super::{Caller, Tokens};
use crate::db::{AsDbFault, Database, DbFault, bulk, now_micros};
use crate::ids::{Ids, TokenId};
use crate::ports::clock::{SharedClock, from_micros, to_micros};

/// How long a new key waits until it signs: all nodes have read it by then.
const KEY_SETTLES: Duration = Duration::from_secs(5);
/// How old a key gets before another takes its place.
const KEY_LIFE: Duration = Duration::from_hours(30 * 24);
/// How long before the last look a transaction may have begun that we did not see yet.
const OVERLAP: Duration = Duration::from_secs(60);
/// How long past its end a revoked token is remembered; more than nodes' clocks are apart.
const REVOKED_KEPT: Duration = Duration::from_hours(1);

const REFRESH: Duration = Duration::from_secs(1);
/// The pause after each look, however many unknown keys are presented.
const PAUSE: Duration = Duration::from_millis(200);
/// Looks between two rounds of clearing away.
const LOOKS_PER_ROUND: u32 = 60;

/// Keeps [`Tokens`] in step with the database. Clones share everything.
#[derive(Debug, Clone)]
pub struct TokenStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: Database,
    clock: SharedClock,
    tokens: Tokens,
    /// Whether the keys are in the database, not in the configuration.
    keeps_keys: bool,
    /// The longest a token lives.
    token_ttl: Duration,
    /// The database's time at the last look at the revoked tokens.
    read_until: Mutex<i64>,
}

/// The keys could not be made or kept.
#[derive(Debug, Error)]
pub enum TokenStoreError {
    #[error("the operating system gave no random bytes for a signing key")]
    NoRandomness,
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for TokenStoreError {
    fn db_fault(&self) -> Option<&DbFault> {
        match self {
            Self::NoRandomness => None,
            Self::Db(fault) => Some(fault),
        }
    }
}

impl TokenStore {
    /// Reads keys and revocations; makes the first key if keys are kept in the database and none is there.
    pub async fn open(
        db: Database,
        keys: SigningKeys,
        token_ttl: Duration,
        clock: SharedClock,
        ids: Ids,
    ) -> Result<Self, TokenStoreError> {
        let (tokens, keeps_keys) = match keys {
            SigningKeys::Configured { secret, previous } => {
                (Tokens::new(&secret, &previous, clock.clone(), ids), false)
            }
            SigningKeys::InDatabase => (Tokens::with_keys(Vec::new(), clock.clone(), ids), true),
        };
        let read_until = Mutex::new(0);
        let store = Self(Arc::new(Inner { db, clock, tokens, keeps_keys, token_ttl, read_until }));
        if keeps_keys {
            store.renew_key(Some(KEY_LIFE)).await?;
        }
        store.refresh().await?;
        Ok(store)
    }

    /// The tokens it keeps in step.
    pub fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    /// Keeps keys and revocations fresh until dropped.
    pub async fn keep_fresh(&self) {
        let mut reachable = true;
        for look in 1_u32.. {
            let mut result = self.refresh().await.map_err(TokenStoreError::from);
            if result.is_ok() && look.is_multiple_of(LOOKS_PER_ROUND) {
                result = self.clear_away().await;
            }
            match &result {
                Ok(()) if !reachable => info!("Signing keys and revoked tokens are fresh again"),
                Err(error) if reachable => warn!(%error, "Cannot refresh signing keys and revoked tokens"),
                Ok(()) | Err(_) => {}
            }
            reachable = result.is_ok();
            tokio::time::sleep(PAUSE).await;
            let _ = tokio::time::timeout(REFRESH - PAUSE, self.0.tokens.unknown_key_seen()).await;
        }
    }

    /// Brings keys and revocations made elsewhere to [`Tokens`].
    pub async fn refresh(&self) -> Result<(), DbFault> {
        let keeps_keys = self.0.keeps_keys;
        let since = *self.read_until() - micros(OVERLAP);
        let read = self.0.db.read(move |connection| async move {
            let now = now_micros(&connection).await?;
            let keys = if keeps_keys { newest_first(&connection).await? } else { Vec::new() };
            let revoked = revoked_token::Entity::find()
                .filter(revoked_token::Column::RevokedAt.gte(since))
                .all(&connection)
                .await?;
            Ok::<_, DbFault>((now, keys, revoked))
        });
        let (now, keys, revoked) = read.await?;
        if keeps_keys {
            self.0.tokens.replace_keys(keys.into_iter().map(ready).collect());
        }
        self.0.tokens.revoke(revoked.into_iter().map(|row| (TokenId(row.id), from_micros(row.expires_at))));
        *self.read_until() = now;
        Ok(())
    }

    /// Ends the token of `caller` on every node within a second, here at once; a repeat changes nothing.
    pub async fn revoke(&self, caller: &Caller) -> Result<(), DbFault> {
        let (id, expires_at) = (caller.token, caller.expires_at);
        let insert = self.0.db.transaction(move |tx| async move {
            const REVOKE: &str = "INTO revoked_token (id, expires_at, revoked_at) VALUES (?, ?, ?)";
            let (backend, now) = (tx.get_database_backend(), now_micros(&tx).await?);
            let values = [id.0.into(), to_micros(expires_at).into(), now.into()];
            tx.execute_raw(bulk::statement(backend, &bulk::insert_if_absent(backend, REVOKE), values))
                .await?;
            Ok::<_, DbFault>(())
        });
        insert.await?;
        self.0.tokens.revoke([(id, expires_at)]);
        Ok(())
    }

    /// Makes a new key and retires the present ones; tokens they signed are accepted until they expire.
    ///
    /// Tokens issued for longer than the configured life end with their key. Configured keys are not touched.
    pub async fn rotate(&self) -> Result<(), TokenStoreError> {
        if self.0.keeps_keys {
            self.renew_key(None).await?;
            self.refresh().await?;
        }
        Ok(())
    }

    /// Makes a new key, unless there is one younger than `life`; retires the others and drops those that have retired.
    async fn renew_key(&self, life: Option<Duration>) -> Result<(), TokenStoreError> {
        let secret = SigningSecret::random().map_err(|_| TokenStoreError::NoRandomness)?;
        let now = to_micros(self.0.clock.now());
        let young_from = life.map_or(i64::MAX, |life| now - micros(life));
        let retires_at = (now + micros(KEY_SETTLES)).saturating_add(micros(self.0.token_ttl));
        let renew = self.0.db.transaction(move |tx| {
            let secret = secret.clone();
            async move {
                let alive = Condition::all().add(signing_key::Column::RetiresAt.is_null());
                let young = signing_key::Column::CreatedAt.gt(young_from);
                let young = signing_key::Entity::find().filter(alive.clone().add(young)).one(&tx).await;
                if young.map_err(DbFault::from)?.is_some() {
                    return Ok(false);
                }
                signing_key::Entity::update_many()
                    .col_expr(signing_key::Column::RetiresAt, Expr::value(retires_at))
                    .filter(alive)
                    .exec(&tx)
                    .await
                    .map_err(DbFault::from)?;
                signing_key::Entity::delete_many()
                    .filter(signing_key::Column::RetiresAt.lt(now))
                    .exec(&tx)
                    .await
                    .map_err(DbFault::from)?;
                let key = signing_key::ActiveModel {
                    kid: Set(secret.kid()),
                    secret: Set(secret.text().to_owned()),
                    created_at: Set(now),
                    retires_at: Set(None),
                };
                signing_key::Entity::insert(key).exec_without_returning(&tx).await.map_err(DbFault::from)?;
                Ok::<_, DbFault>(true)
            }
        });
        if renew.await? {
            info!("Made a new key to sign access tokens with");
        }
        Ok(())
    }

    /// Forgets revoked tokens that have expired, and renews an old key.
    async fn clear_away(&self) -> Result<(), TokenStoreError> {
        self.0.tokens.forget_expired();
        let before = to_micros(self.0.clock.now()) - micros(REVOKED_KEPT);
        let delete = self.0.db.transaction(move |tx| async move {
            revoked_token::Entity::delete_many()
                .filter(revoked_token::Column::ExpiresAt.lt(before))
                .exec(&tx)
                .await?;
            Ok::<_, DbFault>(())
        });
        delete.await?;
        if self.0.keeps_keys { self.renew_key(Some(KEY_LIFE)).await } else { Ok(()) }
    }

    fn read_until(&self) -> std::sync::MutexGuard<'_, i64> {
        self.0.read_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn newest_first(connection: &impl ConnectionTrait) -> Result<Vec<signing_key::Model>, DbFault> {
    // Nodes that made a key at the same instant must still agree which one signs.
    let keys = signing_key::Entity::find()
        .order_by_desc(signing_key::Column::CreatedAt)
        .order_by_desc(signing_key::Column::Kid);
    Ok(keys.all(connection).await?)
}

fn ready(row: signing_key::Model) -> Key {
    let secret = SigningSecret::kept(row.secret);
    Key {
        signs_from: (row.created_at + micros(KEY_SETTLES)) / 1_000_000,
        retires_at: row.retires_at.map_or(i64::MAX, |micros| micros / 1_000_000),
        ..Key::new(&secret)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
