//! Callers, what they may do, and what they may be called.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use utoipa::ToSchema;

use crate::ids::{TokenId, UserId};
use crate::messaging::outbox::serialize_rfc3339;
use crate::ports::clock::Timestamp;
use crate::words::words;

/// Whoever sent a request, as their access token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub user: UserId,
    pub roles: Roles,
    pub token: TokenId,
    /// When the access token ends.
    pub expires_at: Timestamp,
}

/// A user, as others may see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct User {
    pub id: UserId,
    pub name: String,
    pub roles: Roles,
}

words! {
    /// Who vouches for a user: with `dev` nobody, whoever says a name is that user; with `password` the user knows it;
    /// `minted` users were made together with an access token, and nobody can sign in as one.
    Provider, "provider of users" {
        Dev = "dev",
        Password = "password",
        Minted = "minted",
    }
}

/// A user, as operators may see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Registered {
    #[serde(flatten)]
    pub user: User,
    pub provider: Provider,
    #[serde(serialize_with = "serialize_rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

words! {
    /// What a user may do.
    Role, "role" {
        /// Takes, buys, pays.
        Customer = "customer",
        /// Runs activities and repairs what went wrong.
        Operator = "operator",
        /// Sees what operators see and changes nothing.
        Viewer = "viewer",
    }
}

impl Role {
    const fn bit(self) -> u8 {
        match self {
            Self::Customer => 1,
            Self::Operator => 2,
            Self::Viewer => 4,
        }
    }
}

/// A set of roles; a list of words in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u8);

impl Roles {
    pub const fn contains(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.iter().copied().filter(move |role| self.contains(*role))
    }

    /// The roles that `words`, joined by commas, name. A word this version does not know gives no right.
    pub(super) fn from_words(words: &str) -> Self {
        Role::ALL.iter().copied().filter(|role| words.split(',').any(|word| word == role.word())).collect()
    }

    /// Role words joined by commas, as the database keeps them.
    pub(super) fn words(self) -> String {
        self.iter().map(Role::word).collect::<Vec<_>>().join(",")
    }
}

impl From<Role> for Roles {
    fn from(role: Role) -> Self {
        Self(role.bit())
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().fold(0, |bits, role| bits | role.bit()))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for Roles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Roles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;

        impl<'de> Visitor<'de> for Words {
            type Value = Roles;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of roles")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<Roles, A::Error> {
                let mut bits = 0;
                while let Some(role) = words.next_element::<Role>()? {
                    bits |= role.bit();
                }
                Ok(Roles(bits))
            }
        }

        deserializer.deserialize_seq(Words)
    }
}

impl utoipa::PartialSchema for Roles {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        <Vec<Role> as utoipa::PartialSchema>::schema()
    }
}

impl ToSchema for Roles {}

/// What a user is called: 1 to 64 characters that can be seen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UserName(String);

/// The text cannot be a user's name.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("a name has 1 to 64 visible characters and neither begins nor ends with a blank")]
pub struct InvalidUserName;

impl UserName {
    pub fn parse(text: &str) -> Result<Self, InvalidUserName> {
        let fits = (1..=64).contains(&text.chars().count());
        if fits && text.trim() == text && !text.chars().any(is_invisible) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidUserName)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserName {
    type Error = InvalidUserName;

    fn try_from(text: String) -> Result<Self, InvalidUserName> {
        Self::parse(&text)
    }
}

/// Control characters, and those that hide or reorder others, so that two names could look the same.
fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_a_set_of_words() {
        let roles = serde_json::from_str::<Roles>(r#"["viewer","customer","viewer"]"#).unwrap();
        assert_eq!(serde_json::to_string(&roles).unwrap(), r#"["customer","viewer"]"#);
        assert_eq!(roles.words(), "customer,viewer");
        assert_eq!(Roles::from_words("customer,viewer,owner"), roles);
        assert_eq!(Roles::from_words(""), Roles::default());
        assert!(roles.contains(Role::Viewer) && !roles.contains(Role::Operator));
        assert!(serde_json::from_str::<Roles>(r#"["root"]"#).is_err());
    }

    #[test]
    fn names_can_be_seen() {
        for good in ["a", "alice", "Ann Marie", "小明", "😀", &"é".repeat(64)] {
            assert!(UserName::parse(good).is_ok(), "{good:?}");
        }
        for bad in ["", " ", " a", "a\n", "a\0b", "a\u{202e}b", "a\u{200b}", &"x".repeat(65)] {
            assert_eq!(UserName::parse(bad), Err(InvalidUserName), "{bad:?}");
        }
    }
}
