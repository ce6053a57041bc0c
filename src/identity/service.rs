//! The front door: logins, new users, logout.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, try_unfold};
use sea_orm::DatabaseConnection;
use secrecy::SecretString;
use thiserror::Error;

use super::events::FirstLogin;
use super::passwords::{NewPassword, PasswordFault, Passwords};
use super::store::{self, Account, NewAccount};
use super::{AccessToken, Caller, IssueError, Provider, Registered, Role, Roles, TokenStore, User, UserName};
use crate::db::{AsDbFault, Database, DbFault, Tx};
use crate::ids::{Ids, NodeNumberLost, UserId};
use crate::messaging::outbox;
use crate::ports::clock::{SharedClock, to_micros};

/// New customers per transaction: few commits, and a server beside us still gets to write in between.
const MINT_CHUNK: usize = 1000;

/// A login that succeeded.
#[derive(Debug, Clone)]
pub struct Session {
    pub token: AccessToken,
    /// Whether this is the user's first login ever.
    pub first_login: bool,
    pub user: User,
}

/// Why nobody was logged in, or nothing was done.
#[derive(Debug, Error)]
pub enum IdentityError {
    #[error("login without a password is switched off (auth.dev_login)")]
    DevLoginDisabled,
    #[error("the name or the password is wrong")]
    WrongCredentials,
    #[error("there is a user of this name already")]
    NameTaken,
    #[error("the user does not exist")]
    UserUnknown,
    #[error("too many logins at once")]
    Busy,
    #[error("{0}")]
    Hashing(String),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    NoId(#[from] NodeNumberLost),
    #[error("cannot write an event: {0}")]
    Event(#[from] serde_json::Error),
    #[error(transparent)]
    Db(#[from] DbFault),
}

impl AsDbFault for IdentityError {
    fn db_fault(&self) -> Option<&DbFault> {
        if let Self::Db(fault) = self { Some(fault) } else { None }
    }
}

impl From<PasswordFault> for IdentityError {
    fn from(fault: PasswordFault) -> Self {
        match fault {
            PasswordFault::Busy => Self::Busy,
            PasswordFault::Broken(_) => Self::Hashing(fault.to_string()),
        }
    }
}

/// Logs users in and out. Clones share everything.
#[derive(Debug, Clone)]
pub struct IdentityService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    db: Database,
    clock: SharedClock,
    ids: Ids,
    tokens: TokenStore,
    passwords: Passwords,
    token_ttl: Duration,
    dev_login: bool,
}

impl IdentityService {
    /// Sessions live for `token_ttl`; with `dev_login` whoever says a name is that user.
    pub fn new(
        db: Database,
        tokens: TokenStore,
        token_ttl: Duration,
        dev_login: bool,
        clock: SharedClock,
        ids: Ids,
    ) -> Self {
        let passwords = Passwords::new();
        Self(Arc::new(Inner { db, clock, ids, tokens, passwords, token_ttl, dev_login }))
    }

    /// Logs in the user `name` with these `roles`, no questions asked, and creates them if need be.
    pub async fn dev_login(&self, name: UserName, roles: Roles) -> Result<Session, IdentityError> {
        if !self.0.dev_login {
            return Err(IdentityError::DevLoginDisabled);
        }
        let mut account = match self.account(Provider::Dev, &name).await? {
            Some(account) => account,
            None => self.create_dev_user(&name, roles).await?,
        };
        if account.user.roles != roles {
            let id = account.user.id;
            self.0.db.transaction(move |tx| async move { store::set_roles(&tx, id, roles).await }).await?;
            account.user.roles = roles;
        }
        self.log_in(Provider::Dev, account).await
    }

    /// Logs in the user `name` if they know their password.
    pub async fn password_login(
        &self,
        name: &UserName,
        password: SecretString,
    ) -> Result<Session, IdentityError> {
        let account = self.account(Provider::Password, name).await?;
        let hash = account.as_ref().and_then(|account| account.password_hash.clone());
        let matches = self.0.passwords.matches(password, hash).await?;
        match account {
            Some(account) if matches => self.log_in(Provider::Password, account).await,
            _ => Err(IdentityError::WrongCredentials),
        }
    }

    /// Adds a user who logs in with a password.
    pub async fn add_user(
        &self,
        name: &UserName,
        roles: Roles,
        password: NewPassword,
    ) -> Result<User, IdentityError> {
        let new = NewAccount {
            password_hash: Some(self.0.passwords.hash(password).await?),
            ..self.new_account(Provider::Password, name.as_str(), roles)?
        };
        let user = User { id: new.id, name: new.name.clone(), roles };
        let insert = self.0.db.transaction(move |tx| {
            let new = new.clone();
            async move { store::insert(&tx, [new]).await }
        });
        match insert.await {
            Ok(()) => Ok(user),
            Err(fault) if fault.is_duplicate() => Err(IdentityError::NameTaken),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Whether anyone can log in with a password.
    pub async fn has_password_users(&self) -> Result<bool, DbFault> {
        self.0.db.read(|connection| async move { store::any_of(&connection, Provider::Password).await }).await
    }

    /// Creates `count` customers and gives a token for each, in portions; each portion's customers are committed.
    ///
    /// Works beside a running server and ends at the first error.
    pub fn mint_customers(
        &self,
        count: usize,
        ttl: Duration,
    ) -> impl Stream<Item = Result<Vec<AccessToken>, IdentityError>> + use<> {
        let service = self.clone();
        try_unfold(count, move |left| {
            let service = service.clone();
            async move {
                let portion = left.min(MINT_CHUNK);
                if portion == 0 {
                    return Ok(None);
                }
                Ok(Some((service.mint(portion, ttl).await?, left - portion)))
            }
        })
    }

    async fn mint(&self, count: usize, ttl: Duration) -> Result<Vec<AccessToken>, IdentityError> {
        let roles = Roles::from(Role::Customer);
        let created_at = to_micros(self.0.clock.now());
        let mut accounts = Vec::with_capacity(count);
        let mut tokens = Vec::with_capacity(count);
        for _ in 0..count {
            let id: UserId = self.0.ids.next()?;
            accounts.push(NewAccount {
                id,
                provider: Provider::Minted,
                subject: id.to_string(),
                name: store::minted_name(id),
                roles,
                password_hash: None,
                created_at,
            });
            tokens.push(self.0.tokens.tokens().issue(id, roles, ttl)?);
        }
        let insert = self.0.db.transaction(move |tx| {
            let accounts = accounts.clone();
            async move { store::insert(&tx, accounts).await }
        });
        insert.await?;
        Ok(tokens)
    }

    /// Ends the caller's session; a repeat changes nothing.
    pub async fn log_out(&self, caller: &Caller) -> Result<(), IdentityError> {
        Ok(self.0.tokens.revoke(caller).await?)
    }

    /// The user `id`.
    pub async fn user(&self, id: UserId) -> Result<User, IdentityError> {
        let find = self.0.db.read(move |connection| async move { store::find_by_id(&connection, id).await });
        let account = find.await.map_err(IdentityError::from)?.ok_or(IdentityError::UserUnknown)?;
        Ok(account.user)
    }

    /// The user `id`, as operators see them.
    pub async fn registered(&self, id: UserId) -> Result<Option<Registered>, DbFault> {
        self.0.db.read(move |connection| async move { store::registered(&connection, id).await }).await
    }

    /// Up to `limit` users older than `before`, newest first; only those called `name`, if one is given.
    pub async fn users(
        &self,
        name: Option<UserName>,
        before: Option<UserId>,
        limit: u64,
    ) -> Result<Vec<Registered>, DbFault> {
        let page = move |connection: DatabaseConnection| async move {
            store::page(&connection, name, before, limit).await
        };
        self.0.db.read(page).await
    }

    async fn account(&self, provider: Provider, name: &UserName) -> Result<Option<Account>, DbFault> {
        let subject = name.as_str().to_owned();
        let find = self
            .0
            .db
            .read(move |connection| async move { store::find(&connection, provider, &subject).await });
        find.await
    }

    /// The unique key decides between twins: both find the one row that stands.
    async fn create_dev_user(&self, name: &UserName, roles: Roles) -> Result<Account, IdentityError> {
        let new = self.new_account(Provider::Dev, name.as_str(), roles)?;
        // A transaction of its own: on MySQL, twins that go on to update the row would deadlock on its key.
        let insert = self.0.db.transaction(move |tx| {
            let new = new.clone();
            async move { store::insert_if_absent(&tx, new).await }
        });
        insert.await?;
        Ok(self.account(Provider::Dev, name).await?.ok_or(DbFault::Missing("a user just created"))?)
    }

    fn new_account(
        &self,
        provider: Provider,
        name: &str,
        roles: Roles,
    ) -> Result<NewAccount, NodeNumberLost> {
        Ok(NewAccount {
            id: self.0.ids.next()?,
            provider,
            subject: name.to_owned(),
            name: name.to_owned(),
            roles,
            password_hash: None,
            created_at: to_micros(self.0.clock.now()),
        })
    }

    async fn log_in(&self, provider: Provider, account: Account) -> Result<Session, IdentityError> {
        let user = account.user;
        let token = self.0.tokens.tokens().issue(user.id, user.roles, self.0.token_ttl)?;
        let first_login = !account.has_logged_in && self.claim_first_login(provider, user.id).await?;
        Ok(Session { token, first_login, user })
    }

    /// Whether this is the user's first login; if so, says so to the world in the same transaction.
    async fn claim_first_login(&self, provider: Provider, user: UserId) -> Result<bool, IdentityError> {
        let service = self.clone();
        let claim = self.0.db.transaction(move |tx| {
            let service = service.clone();
            async move { service.claim_in(&tx, provider, user).await }
        });
        claim.await
    }

    async fn claim_in(&self, tx: &Tx, provider: Provider, user: UserId) -> Result<bool, IdentityError> {
        let now = self.0.clock.now();
        if !store::claim_first_login(tx, user, to_micros(now)).await? {
            return Ok(false);
        }
        let event = FirstLogin { user_id: user, provider: provider.word().into(), logged_in_at: now };
        outbox::append_one(tx, &self.0.ids, now, &event).await?;
        Ok(true)
    }
}
