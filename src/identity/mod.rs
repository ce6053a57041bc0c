//! Who is calling, and what they may do.
//!
//! A session is an access token: a JWT signed with HS256, so every node knows its callers without asking anyone.
//! [`Tokens`] issues and verifies them in memory.

mod crypto;
mod keys;
mod model;
mod tokens;

pub use keys::{SecretTooShort, SigningSecret};
pub use model::{Caller, InvalidUserName, Role, Roles, UserName};
pub use tokens::{AccessToken, IssueError, TokenRefusal, Tokens};
