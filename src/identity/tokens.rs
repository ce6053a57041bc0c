//! Access tokens: JWTs signed with HS256, issued and verified in memory.
//!
//! Every request pays for a verification, and `jsonwebtoken::decode` reads header and claims twice (2.5 µs where this
//! takes 0.9). So the header is compared with those our own keys write, and only an unfamiliar one is read; the
//! signature is then checked by `jsonwebtoken`, and the claims against our [`Clock`](crate::ports::clock::Clock).
//! A token's key is one of ours, named by `kid`; whatever else its header points to is not followed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;

use super::keys::{Key, SigningSecret};
use super::{Caller, Roles, crypto};
use crate::error::{ApiError, Code};
use crate::ids::{Ids, NodeNumberLost, TokenId, UserId};
use crate::ports::clock::{SharedClock, Timestamp};

const ISSUER: &str = "tombola";
const AUDIENCE: &str = "tombola";
/// How far two clocks may be apart.
const LEEWAY_S: i64 = 5;
/// Ours have some 330 bytes; what is much longer is not worth reading.
const MAX_BYTES: usize = 1024;

/// Issues and verifies access tokens. Clones share keys and revocations.
#[derive(Debug, Clone)]
pub struct Tokens(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: SharedClock,
    ids: Ids,
    state: RwLock<State>,
    unknown_key: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Newest first.
    keys: Vec<Key>,
    /// Tokens ended before their time, with the second they would have ended in.
    revoked: HashMap<TokenId, i64>,
}

/// A token for its bearer.
#[derive(Debug, Clone)]
pub struct AccessToken {
    pub token: String,
    pub expires_at: Timestamp,
    pub id: TokenId,
}

/// No token could be issued.
#[derive(Debug, Error)]
pub enum IssueError {
    #[error("there is no key to sign with")]
    NoKey,
    #[error(transparent)]
    NoId(#[from] NodeNumberLost),
    #[error("cannot sign: {0}")]
    Signing(#[from] jsonwebtoken::errors::Error),
}

/// Why a token does not say who is calling.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum TokenRefusal {
    #[error("the access token is not a JWT of this server")]
    Malformed,
    #[error("the access token is not signed with HS256")]
    UnsupportedAlgorithm,
    #[error("the access token is signed with a key this server does not have")]
    UnknownKey,
    #[error("the access token's signature is wrong")]
    WrongSignature,
    #[error("the access token was not issued by this server")]
    WrongIssuer,
    #[error("the access token is not meant for this server")]
    WrongAudience,
    #[error("the access token is not valid yet")]
    NotYetValid,
    #[error("the access token has expired")]
    Expired,
    #[error("the access token was revoked")]
    Revoked,
}

/// All of them must be there, once, and of this type.
#[derive(Serialize, Deserialize)]
struct Claims<'a> {
    #[serde(borrow)]
    iss: Cow<'a, str>,
    #[serde(borrow)]
    aud: Cow<'a, str>,
    sub: UserId,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: TokenId,
    roles: Roles,
}

impl Tokens {
    /// Tokens signed with `secret`; those signed with one of `previous` are accepted too.
    pub fn new(secret: &SigningSecret, previous: &[SigningSecret], clock: SharedClock, ids: Ids) -> Self {
        let keys = std::iter::once(secret).chain(previous).map(Key::new).collect();
        Self::with_keys(keys, clock, ids)
    }

    /// Tokens signed with the first of `keys` that may sign.
    pub(super) fn with_keys(keys: Vec<Key>, clock: SharedClock, ids: Ids) -> Self {
        crypto::install();
        let state = RwLock::new(State { keys, revoked: HashMap::new() });
        Self(Arc::new(Inner { clock, ids, state, unknown_key: Notify::new() }))
    }

    /// A new token that says for `ttl`, in whole seconds, that its bearer is `user`.
    pub fn issue(&self, user: UserId, roles: Roles, ttl: Duration) -> Result<AccessToken, IssueError> {
        let now = self.now();
        let id = self.0.ids.next()?;
        let expires_at = self.0.clock.now() + ttl;
        let expires_at = Timestamp::from_timestamp(expires_at.timestamp(), 0).unwrap_or(expires_at);
        let claims = Claims {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            sub: user,
            iat: now,
            nbf: now,
            exp: expires_at.timestamp(),
            jti: id,
            roles,
        };
        let state = self.read();
        let key = state.signer(now).ok_or(IssueError::NoKey)?;
        let token = jsonwebtoken::encode(&key.header, &claims, &key.encoding)?;
        Ok(AccessToken { token, expires_at, id })
    }

    /// Who bears `token`.
    pub fn verify(&self, token: &str) -> Result<Caller, TokenRefusal> {
        use TokenRefusal::{
            Expired, Malformed, NotYetValid, Revoked, WrongAudience, WrongIssuer, WrongSignature,
        };
        if token.len() > MAX_BYTES {
            return Err(Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(Malformed)?;
        let now = self.now();
        let state = self.read();
        let key = match state.keys.iter().find(|key| key.encoded_header == header) {
            Some(key) if now < key.retires_at => key,
            _ => state.key_named_in(token, now).inspect_err(|refusal| {
                if *refusal == TokenRefusal::UnknownKey {
                    self.0.unknown_key.notify_one();
                }
            })?,
        };
        if !jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.decoding, Algorithm::HS256)
            .map_err(|_| Malformed)?
        {
            return Err(WrongSignature);
        }
        let mut json = [0; MAX_BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(payload, &mut json).map_err(|_| Malformed)?;
        let claims: Claims<'_> = serde_json::from_slice(&json[..length]).map_err(|_| Malformed)?;
        if claims.iss != ISSUER {
            return Err(WrongIssuer);
        }
        if claims.aud != AUDIENCE {
            return Err(WrongAudience);
        }
        if now >= claims.exp.saturating_add(LEEWAY_S) {
            return Err(Expired);
        }
        if now.saturating_add(LEEWAY_S) < claims.nbf.max(claims.iat) {
            return Err(NotYetValid);
        }
        if state.revoked.contains_key(&claims.jti) {
            return Err(Revoked);
        }
        let expires_at = Timestamp::from_timestamp(claims.exp, 0).unwrap_or(Timestamp::MAX_UTC);
        Ok(Caller { user: claims.sub, roles: claims.roles, token: claims.jti, expires_at })
    }

    /// Refuses `tokens` from now on; each comes with the instant it would have ended at.
    pub(super) fn revoke(&self, tokens: impl IntoIterator<Item = (TokenId, Timestamp)>) {
        let mut tokens = tokens.into_iter().peekable();
        if tokens.peek().is_some() {
            self.write().revoked.extend(tokens.map(|(token, expires_at)| (token, expires_at.timestamp())));
        }
    }

    /// Forgets revoked tokens that have expired meanwhile.
    pub(super) fn forget_expired(&self) {
        let now = self.now();
        self.write().revoked.retain(|_, expires_at| now < expires_at.saturating_add(LEEWAY_S));
    }

    /// Puts `keys` in the place of the present ones, newest first.
    pub(super) fn replace_keys(&self, keys: Vec<Key>) {
        self.write().keys = keys;
    }

    /// Waits for a token whose key is not known here, since the last time this was called.
    pub(super) async fn unknown_key_seen(&self) {
        self.0.unknown_key.notified().await;
    }

    fn now(&self) -> i64 {
        self.0.clock.now().timestamp()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The newest key that may sign; while all are too new for the other nodes to know, the oldest.
    fn signer(&self, now: i64) -> Option<&Key> {
        let mut alive = self.keys.iter().filter(|key| now < key.retires_at);
        alive.clone().find(|key| key.signs_from <= now).or_else(|| alive.next_back())
    }

    /// The key that the header of `token`, written by someone else, names.
    fn key_named_in(&self, token: &str, now: i64) -> Result<&Key, TokenRefusal> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenRefusal::Malformed)?;
        if header.alg != Algorithm::HS256 {
            return Err(TokenRefusal::UnsupportedAlgorithm);
        }
        if header.crit.is_some() || header.typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
            return Err(TokenRefusal::Malformed);
        }
        let kid = header.kid.ok_or(TokenRefusal::UnknownKey)?;
        let key = self.keys.iter().find(|key| key.kid == kid && now < key.retires_at);
        key.ok_or(TokenRefusal::UnknownKey)
    }
}

impl From<TokenRefusal> for ApiError {
    fn from(refusal: TokenRefusal) -> Self {
        Self::new(Code::Unauthenticated, refusal.to_string())
    }
}

impl From<IssueError> for ApiError {
    fn from(error: IssueError) -> Self {
        tracing::error!(%error, "Cannot issue an access token");
        match error {
            IssueError::NoKey | IssueError::NoId(_) => {
                Self::new(Code::DependencyUnavailable, "No access token can be issued at the moment.")
            }
            IssueError::Signing(_) => {
                Self::new(Code::InternalError, "The server failed to do this; the log has the cause.")
            }
        }
    }
}
