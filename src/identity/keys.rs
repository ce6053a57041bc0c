//! The secrets that sign access tokens, each under a key id derived from it.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Header};
use ring::digest::{SHA256, digest};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

/// As many bytes as HMAC-SHA-256 has bits to protect (RFC 7518, 3.2).
const MIN_SECRET_BYTES: usize = 32;

/// A secret fit to sign access tokens.
#[derive(Debug, Clone)]
pub struct SigningSecret(SecretString);

/// Where the keys come from.
#[derive(Debug, Clone)]
pub enum SigningKeys {
    /// The configuration names them: `secret` signs, `previous` ones are accepted until they are taken out.
    Configured { secret: SigningSecret, previous: Vec<SigningSecret> },
    /// The server makes them and keeps them in its database.
    InDatabase,
}

/// The secret could be guessed.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error(
    "a signing secret needs at least {MIN_SECRET_BYTES} bytes, this one has {length}; make one with: openssl rand -base64 32"
)]
pub struct SecretTooShort {
    pub length: usize,
}

impl SigningSecret {
    /// A configured secret; its text, as it stands, is the key.
    pub fn new(text: SecretString) -> Result<Self, SecretTooShort> {
        match text.expose_secret().len() {
            length @ 0..MIN_SECRET_BYTES => Err(SecretTooShort { length }),
            _ => Ok(Self(text)),
        }
    }

    /// A new secret of 32 random bytes.
    pub(super) fn random() -> Result<Self, ring::error::Unspecified> {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bytes).into()))
    }

    /// A secret that [`SigningSecret::random`] made.
    pub(super) fn kept(text: String) -> Self {
        Self(text.into())
    }

    pub(super) fn text(&self) -> &str {
        self.0.expose_secret()
    }

    /// The key id: tells keys apart and tells nothing about the secret.
    pub(super) fn kid(&self) -> String {
        let hash = digest(&SHA256, &[b"tombola kid ", self.text().as_bytes()].concat());
        URL_SAFE_NO_PAD.encode(&hash.as_ref()[..12])
    }
}

/// A secret made ready for use, and when it may be used; times are in seconds since the Unix epoch.
pub(super) struct Key {
    pub(super) kid: String,
    /// The first part of every token this key signs.
    pub(super) encoded_header: String,
    pub(super) hmac: hmac::Key,
    /// Another key signs until then, while the other nodes learn of this one.
    pub(super) signs_from: i64,
    /// From then on its tokens are refused.
    pub(super) retires_at: i64,
}

impl Key {
    /// A key that signs at once and never retires.
    pub(super) fn new(secret: &SigningSecret) -> Self {
        let kid = secret.kid();
        let header = Header { kid: Some(kid.clone()), ..Header::new(Algorithm::HS256) };
        let json =
            serde_json::to_vec(&header).unwrap_or_else(|_| unreachable!("a header of strings is JSON"));
        Self {
            kid,
            encoded_header: URL_SAFE_NO_PAD.encode(json),
            hmac: hmac::Key::new(hmac::HMAC_SHA256, secret.text().as_bytes()),
            signs_from: i64::MIN,
            retires_at: i64::MAX,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("retires_at", &self.retires_at)
            .finish_non_exhaustive()
    }
}
