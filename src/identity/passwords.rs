//! Passwords: argon2id with OWASP's parameters (19 MiB, 2 passes, 1 lane), which are the crate's defaults.
//!
//! One hash costs tens of milliseconds of a core and 19 MiB, so hashing runs beside the request threads, at most on
//! half of the cores, and a login that would wait long for its turn is refused. An unknown name costs the same time
//! as a wrong password, so the answer's delay does not tell who exists.

use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{Error, PasswordHasher, PasswordVerifier};
use rand::RngExt;
use rand::distr::Alphanumeric;
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use tokio::sync::Semaphore;

/// How long a login waits for its turn.
const PATIENCE: Duration = Duration::from_secs(3);

/// What an unknown name's password is compared with: no password hashes to it.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A password good enough to be set: 8 to 256 characters (NIST SP 800-63B; the upper end bounds the work).
#[derive(Debug, Clone)]
pub struct NewPassword(SecretString);

/// The text cannot be set as a password.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("a password has 8 to 256 characters")]
pub struct InvalidPassword;

impl NewPassword {
    pub fn parse(text: SecretString) -> Result<Self, InvalidPassword> {
        match text.expose_secret().chars().count() {
            8..=256 => Ok(Self(text)),
            _ => Err(InvalidPassword),
        }
    }

    /// A random password, and its text to be shown once.
    pub fn generate() -> (Self, SecretString) {
        let text: String = rand::rng().sample_iter(Alphanumeric).take(20).map(char::from).collect();
        let text = SecretString::from(text);
        (Self(text.clone()), text)
    }
}

/// A password could be neither hashed nor compared.
#[derive(Debug, Error)]
pub(super) enum PasswordFault {
    #[error("too many passwords are being checked")]
    Busy,
    #[error("cannot hash or compare a password: {0}")]
    Broken(String),
}

/// Hashes and compares passwords, a few at a time.
#[derive(Debug, Clone)]
pub(super) struct Passwords {
    turns: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { turns: Arc::new(Semaphore::new((cores / 2).max(1))) }
    }

    /// The hash of `password`, as a PHC string with a salt of its own.
    pub(super) async fn hash(&self, password: NewPassword) -> Result<String, PasswordFault> {
        self.run(move || {
            Ok(Argon2::default().hash_password(password.0.expose_secret().as_bytes())?.to_string())
        })
        .await
    }

    /// Whether `password` hashes to `hash`; without a hash it does not, and finding out takes as long.
    pub(super) async fn matches(
        &self,
        password: SecretString,
        hash: Option<String>,
    ) -> Result<bool, PasswordFault> {
        self.run(move || {
            let hash = PasswordHash::new(hash.as_deref().unwrap_or(NOBODY))?;
            match Argon2::default().verify_password(password.expose_secret().as_bytes(), &hash) {
                Ok(()) => Ok(true),
                Err(Error::PasswordInvalid) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, PasswordFault> {
        let turn = tokio::time::timeout(PATIENCE, self.turns.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| PasswordFault::Busy)?;
        let hashing = tokio::task::spawn_blocking(move || {
            // Held here, so that a caller who goes away does not let the next one in early.
            let _turn = turn;
            work().map_err(|error| PasswordFault::Broken(error.to_string()))
        });
        hashing.await.map_err(|panic| PasswordFault::Broken(panic.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_own_hash_only() {
        let passwords = Passwords::new();
        let good = SecretString::from("correct horse");
        let hash = passwords.hash(NewPassword::parse(good.clone()).unwrap()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.matches(good.clone(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.matches("wrong horse".into(), Some(hash)).await.unwrap());
        assert!(!passwords.matches(good, None).await.unwrap());
    }

    #[test]
    fn a_password_is_neither_short_nor_endless() {
        assert!(NewPassword::parse("8 signs.".into()).is_ok());
        assert!(NewPassword::parse("7 signs".into()).is_err());
        assert!(NewPassword::parse("x".repeat(257).into()).is_err());
    }
}
