//! Who is calling, and what they may do.
//!
//! A session is an access token: a JWT signed with HS256, so every node knows its callers without asking anyone.
//! [`Tokens`] issues and verifies them in memory; [`TokenStore`] keeps the truth in the database (signing keys,
//! tokens ended before their time) and brings it to [`Tokens`] every second. [`IdentityService`] is the front door:
//! logins, new users, logout.

pub(crate) mod api;
pub mod events;
mod keys;
mod model;
mod passwords;
mod service;
mod store;
#[cfg(test)]
mod tests;
mod token_store;
mod tokens;
pub(crate) mod users_api;

pub use keys::{SecretTooShort, SigningKeys, SigningSecret};
pub use model::{Caller, InvalidUserName, Provider, Registered, Role, Roles, User, UserName};
pub use passwords::{InvalidPassword, NewPassword};
pub use service::{IdentityError, IdentityService, Session};
pub use store::{exists, rows_of};
pub use token_store::{TokenStore, TokenStoreError};
pub use tokens::{AccessToken, IssueError, TokenRefusal, Tokens};
