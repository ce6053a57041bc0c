//! Access tokens: JWTs signed with HS256, issued and verified in memory.
//!
//! Every request pays for a verification, and `jsonwebtoken::decode` reads header and claims twice and prepares the key
//! each time. So the header is compared with those our own keys write, and only an unfamiliar one is read; the signature
//! is then checked by ring, and the claims against our [`Clock`](crate::ports::clock::Clock). A token's key is one of
//! ours, named by `kid`; whatever else its header points to is not followed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use ring::hmac;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;

use super::keys::{Key, SigningSecret};
use super::{Caller, Roles};
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
#[derive(Clone)]
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
    #[error("the claims cannot be written: {0}")]
    Claims(#[from] serde_json::Error),
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
        let state = RwLock::new(State { keys, revoked: HashMap::new() });
        Self(Arc::new(Inner { clock, ids, state, unknown_key: Notify::new() }))
    }

    /// A new token that says for `ttl`, in whole seconds, that its bearer is `user`.
    pub fn issue(&self, user: UserId, roles: Roles, ttl: Duration) -> Result<AccessToken, IssueError> {
        let now = self.now();
        let id = self.0.ids.next()?;
        let exp = now.saturating_add_unsigned(ttl.as_secs());
        let claims = Claims {
            iss: ISSUER.into(),
            aud: AUDIENCE.into(),
            sub: user,
            iat: now,
            nbf: now,
            exp,
            jti: id,
            roles,
        };
        let state = self.read();
        let key = state.signer(now).ok_or(IssueError::NoKey)?;
        let message =
            format!("{}.{}", key.encoded_header, URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims)?));
        let signature = hmac::sign(&key.hmac, message.as_bytes());
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
        Ok(AccessToken { token, expires_at: from_seconds(exp), id })
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
        let mut tag = [0; 32];
        let length = URL_SAFE_NO_PAD.decode_slice(signature, &mut tag).map_err(|_| Malformed)?;
        hmac::verify(&key.hmac, message.as_bytes(), &tag[..length]).map_err(|_| WrongSignature)?;
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
        Ok(Caller {
            user: claims.sub,
            roles: claims.roles,
            token: claims.jti,
            expires_at: from_seconds(claims.exp),
        })
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

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever reads a log must not become the bearer.
        f.debug_struct("AccessToken")
            .field("id", &self.id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
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

/// The instant of a claim; what is beyond chrono's range reads as its end.
fn from_seconds(seconds: i64) -> Timestamp {
    Timestamp::from_timestamp(seconds, 0).unwrap_or(Timestamp::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::super::{Role, TokenRefusal::*};
    use super::*;
    use crate::ports::clock::ManualClock;

    const NOW: i64 = 1_800_000_000;
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "another secret of 32 bytes and so";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_timestamp(seconds, 0).unwrap()
    }

    fn secret(text: &str) -> SigningSecret {
        SigningSecret::new(text.into()).unwrap()
    }

    fn tokens_at(now: i64) -> (Tokens, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(at(now)));
        let ids = Ids::new(1, clock.as_ref(), Duration::from_secs(600));
        (Tokens::new(&secret(SECRET), &[], clock.clone(), ids), clock)
    }

    /// A JWT made by hand, without the code under test.
    fn forge(header: &Value, claims: &Value, secret: &str) -> String {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())))
    }

    fn header() -> Value {
        json!({"alg": "HS256", "kid": secret(SECRET).kid()})
    }

    fn claims() -> Value {
        json!({"iss": "tombola", "aud": "tombola", "sub": "7", "iat": NOW, "nbf": NOW, "exp": NOW + 900,
               "jti": "9", "roles": ["customer"]})
    }

    /// `base` with the members of `change`; null takes one out.
    fn with(mut base: Value, change: Value) -> Value {
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => drop(base.as_object_mut().unwrap().remove(name)),
                value => base[name] = value.clone(),
            }
        }
        base
    }

    #[test]
    fn a_token_says_what_was_issued() {
        let (tokens, _) = tokens_at(NOW);
        let roles = Roles::from_iter([Role::Operator, Role::Viewer]);
        let issued = tokens.issue(UserId(42), roles, Duration::from_millis(60_900)).unwrap();
        assert_eq!(issued.expires_at.timestamp(), NOW + 60);
        let caller = Caller { user: UserId(42), roles, token: issued.id, expires_at: issued.expires_at };
        assert_eq!(tokens.verify(&issued.token), Ok(caller));
        assert_eq!(jsonwebtoken::decode_header(&issued.token).unwrap().kid, Some(secret(SECRET).kid()));
    }

    #[test]
    fn a_life_without_end_does_not_overflow() {
        let (tokens, _) = tokens_at(NOW);
        let issued = tokens.issue(UserId(1), Role::Customer.into(), Duration::MAX).unwrap();
        assert_eq!(tokens.verify(&issued.token).unwrap().expires_at, Timestamp::MAX_UTC);
    }

    #[test]
    fn another_library_may_write_tokens_with_our_secret() {
        let (tokens, _) = tokens_at(NOW);
        let caller = tokens.verify(&forge(&header(), &claims(), SECRET)).unwrap();
        assert_eq!((caller.user, caller.token), (UserId(7), TokenId(9)));
        let typed = with(header(), json!({"typ": "jwt"}));
        let more = with(claims(), json!({"name": "al\"ice", "iss": "tombol\u{61}"}));
        assert!(tokens.verify(&forge(&typed, &more, SECRET)).is_ok());
    }

    #[rstest]
    #[case::alg_none(json!({"alg": "none"}), json!({}), Malformed)]
    #[case::alg_hs512(json!({"alg": "HS512"}), json!({}), UnsupportedAlgorithm)]
    #[case::alg_rs256(json!({"alg": "RS256"}), json!({}), UnsupportedAlgorithm)]
    #[case::alg_missing(json!({"alg": null}), json!({}), Malformed)]
    #[case::kid_unknown(json!({"kid": "other"}), json!({}), UnknownKey)]
    #[case::kid_missing(json!({"kid": null}), json!({}), UnknownKey)]
    #[case::key_by_address(json!({"kid": null, "jku": "https://evil.example/keys"}), json!({}), UnknownKey)]
    #[case::critical_extension(json!({"crit": ["exp"]}), json!({}), Malformed)]
    #[case::not_a_jwt(json!({"typ": "JOSE"}), json!({}), Malformed)]
    #[case::expired(json!({}), json!({"exp": NOW - 60}), Expired)]
    #[case::expired_at_the_leeway(json!({}), json!({"exp": NOW - 5}), Expired)]
    #[case::exp_a_string(json!({}), json!({"exp": (NOW + 900).to_string()}), Malformed)]
    #[case::exp_a_fraction(json!({}), json!({"exp": 1.9e9}), Malformed)]
    #[case::exp_missing(json!({}), json!({"exp": null}), Malformed)]
    #[case::exp_beyond_64_bits(json!({}), json!({"exp": u64::MAX}), Malformed)]
    #[case::not_before_future(json!({}), json!({"nbf": NOW + 6}), NotYetValid)]
    #[case::nbf_a_string(json!({}), json!({"nbf": "0"}), Malformed)]
    #[case::nbf_missing(json!({}), json!({"nbf": null}), Malformed)]
    #[case::issued_in_future(json!({}), json!({"iat": NOW + 6}), NotYetValid)]
    #[case::audience(json!({}), json!({"aud": "tombola-ws"}), WrongAudience)]
    #[case::audience_missing(json!({}), json!({"aud": null}), Malformed)]
    #[case::issuer(json!({}), json!({"iss": "someone"}), WrongIssuer)]
    #[case::subject_a_number(json!({}), json!({"sub": 7}), Malformed)]
    #[case::subject_a_name(json!({}), json!({"sub": "alice"}), Malformed)]
    #[case::no_token_id(json!({}), json!({"jti": null}), Malformed)]
    #[case::unknown_role(json!({}), json!({"roles": ["root"]}), Malformed)]
    fn a_bad_token_is_refused(
        #[case] header_change: Value,
        #[case] claims_change: Value,
        #[case] refusal: TokenRefusal,
    ) {
        let (tokens, _) = tokens_at(NOW);
        let token = forge(&with(header(), header_change), &with(claims(), claims_change), SECRET);
        assert_eq!(tokens.verify(&token), Err(refusal));
    }

    #[rstest]
    #[case::expired_within_the_leeway(json!({"exp": NOW - 4}))]
    #[case::clock_behind_the_issuer(json!({"nbf": NOW + 5, "iat": NOW + 5}))]
    fn clocks_may_differ_a_little(#[case] change: Value) {
        let (tokens, _) = tokens_at(NOW);
        assert!(tokens.verify(&forge(&header(), &with(claims(), change), SECRET)).is_ok());
    }

    #[test]
    fn a_forged_signature_is_refused() {
        let (tokens, _) = tokens_at(NOW);
        let issued = tokens.issue(UserId(1), Role::Customer.into(), Duration::from_secs(60)).unwrap().token;
        assert_eq!(tokens.verify(&forge(&header(), &claims(), OTHER)), Err(WrongSignature));
        let (message, _) = issued.rsplit_once('.').unwrap();
        assert_eq!(tokens.verify(&format!("{message}.")), Err(WrongSignature));
        let (head, _) = message.split_once('.').unwrap();
        let (_, signature) = issued.rsplit_once('.').unwrap();
        let operator = with(claims(), json!({"roles": ["operator"]})).to_string();
        let swapped = format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode(operator));
        assert_eq!(tokens.verify(&swapped), Err(WrongSignature));
    }

    #[test]
    fn garbage_is_refused() {
        let (tokens, _) = tokens_at(NOW);
        let issued = tokens.issue(UserId(1), Role::Customer.into(), Duration::from_secs(60)).unwrap().token;
        for length in 0..issued.len() {
            assert!(tokens.verify(&issued[..length]).is_err(), "{length} bytes of {issued}");
        }
        for garbage in ["", ".", "..", "...", "a.b.c", "é.é.é", &"x".repeat(10_000), &"e30.".repeat(200)] {
            assert_eq!(tokens.verify(garbage), Err(Malformed), "{garbage}");
        }
        assert!(tokens.verify(&format!("{issued}=")).is_err());
        assert!(tokens.verify(&format!("{issued}.x")).is_err());
    }

    #[test]
    fn a_token_ends_with_the_clock() {
        let (tokens, clock) = tokens_at(NOW);
        let issued = tokens.issue(UserId(1), Role::Customer.into(), Duration::from_secs(60)).unwrap();
        clock.set(at(NOW + 64));
        assert!(tokens.verify(&issued.token).is_ok());
        clock.set(at(NOW + 65));
        assert_eq!(tokens.verify(&issued.token), Err(Expired));
    }

    #[test]
    fn a_revoked_token_is_refused_and_forgotten_when_it_has_expired() {
        let (tokens, clock) = tokens_at(NOW);
        let issue = || tokens.issue(UserId(1), Role::Customer.into(), Duration::from_secs(60)).unwrap();
        let (ended, other) = (issue(), issue());
        tokens.revoke([(ended.id, ended.expires_at)]);
        assert_eq!(tokens.verify(&ended.token), Err(Revoked));
        assert!(tokens.verify(&other.token).is_ok());
        tokens.forget_expired();
        assert_eq!(tokens.verify(&ended.token), Err(Revoked));
        clock.set(at(NOW + 65));
        tokens.forget_expired();
        assert!(tokens.read().revoked.is_empty());
    }

    #[test]
    fn a_previous_secret_is_accepted_but_does_not_sign() {
        let (before, clock) = tokens_at(NOW);
        let old = before.issue(UserId(1), Role::Customer.into(), Duration::from_secs(60)).unwrap();
        let ids = Ids::new(1, clock.as_ref(), Duration::from_secs(600));
        let after = Tokens::new(&secret(OTHER), &[secret(SECRET)], clock, ids);
        assert!(after.verify(&old.token).is_ok());
        let new = after.issue(UserId(1), Role::Customer.into(), Duration::from_secs(60)).unwrap();
        assert_eq!(before.verify(&new.token), Err(UnknownKey));
    }

    #[test]
    fn the_newest_settled_key_signs_and_a_retired_one_is_refused() {
        let (tokens, clock) = tokens_at(NOW);
        let signer = |tokens: &Tokens, now| tokens.read().signer(now).map(|key| key.kid.clone());
        let key = |text, signs_from, retires_at| Key { signs_from, retires_at, ..Key::new(&secret(text)) };
        tokens.replace_keys(vec![key(OTHER, NOW + 5, i64::MAX), key(SECRET, 0, NOW + 100)]);
        assert_eq!(signer(&tokens, NOW), Some(secret(SECRET).kid()));
        let issued = tokens.issue(UserId(1), Role::Customer.into(), Duration::from_secs(900)).unwrap();
        assert_eq!(signer(&tokens, NOW + 5), Some(secret(OTHER).kid()));
        clock.set(at(NOW + 99));
        assert!(tokens.verify(&issued.token).is_ok());
        clock.set(at(NOW + 100));
        assert_eq!(tokens.verify(&issued.token), Err(UnknownKey));
        // The only key signs at once, however new.
        tokens.replace_keys(vec![key(OTHER, NOW + 500, i64::MAX)]);
        assert_eq!(signer(&tokens, NOW), Some(secret(OTHER).kid()));
        tokens.replace_keys(Vec::new());
        let issue = tokens.issue(UserId(1), Roles::default(), Duration::ZERO);
        assert!(matches!(issue, Err(IssueError::NoKey)));
    }

    #[test]
    fn a_secret_that_could_be_guessed_is_refused() {
        let refusal = SigningSecret::new("0123456789abcdef0123456789abcde".into()).unwrap_err();
        assert_eq!(refusal.length, 31);
        assert!(refusal.to_string().contains("at least 32 bytes"), "{refusal}");
    }
}
