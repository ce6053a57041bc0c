//! Users in the database. A user is found by the provider that vouches for them and its name for them.

use entities::users;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect,
};

use super::model::{Provider, Registered};
use super::{Roles, User, UserName};
use crate::db::{DbFault, bulk};
use crate::ids::UserId;
use crate::ports::clock::from_micros;

/// What the names of minted users begin with; their id follows.
const MINTED_NAME: &str = "Customer ";

/// What the minted user `id` is called.
pub(super) fn minted_name(id: UserId) -> String {
    format!("{MINTED_NAME}{id}")
}

/// A user and how they sign in.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) user: User,
    pub(super) password_hash: Option<String>,
    pub(super) has_logged_in: bool,
}

/// A user to be.
#[derive(Debug, Clone)]
pub(super) struct NewAccount {
    pub(super) id: UserId,
    pub(super) provider: Provider,
    pub(super) subject: String,
    pub(super) name: String,
    pub(super) roles: Roles,
    pub(super) password_hash: Option<String>,
    pub(super) created_at: i64,
}

impl From<users::Model> for User {
    fn from(row: users::Model) -> Self {
        Self { id: UserId(row.id), roles: Roles::from_words(&row.roles), name: row.name }
    }
}

impl From<users::Model> for Account {
    fn from(mut row: users::Model) -> Self {
        let password_hash = row.password_hash.take();
        Self { has_logged_in: row.first_login_at.is_some(), user: row.into(), password_hash }
    }
}

impl TryFrom<users::Model> for Registered {
    type Error = DbFault;

    fn try_from(row: users::Model) -> Result<Self, DbFault> {
        let (provider, created_at) = (row.provider.parse()?, from_micros(row.created_at));
        Ok(Self { user: row.into(), provider, created_at })
    }
}

impl From<NewAccount> for users::ActiveModel {
    fn from(new: NewAccount) -> Self {
        Self {
            id: Set(new.id.0),
            provider: Set(new.provider.word().to_owned()),
            subject: Set(new.subject),
            name: Set(new.name),
            roles: Set(new.roles.words()),
            password_hash: Set(new.password_hash),
            first_login_at: Set(None),
            created_at: Set(new.created_at),
        }
    }
}

/// Whether `provider` vouches for anybody.
pub(super) async fn any_of(connection: &impl ConnectionTrait, provider: Provider) -> Result<bool, DbFault> {
    let one = users::Entity::find().filter(users::Column::Provider.eq(provider.word())).one(connection);
    Ok(one.await?.is_some())
}

/// The user whom `provider` calls `subject`.
pub(super) async fn find(
    connection: &impl ConnectionTrait,
    provider: Provider,
    subject: &str,
) -> Result<Option<Account>, DbFault> {
    let row = users::Entity::find()
        .filter(users::Column::Provider.eq(provider.word()))
        .filter(users::Column::Subject.eq(subject))
        .one(connection)
        .await?;
    Ok(row.map(Account::from))
}

/// Whether there is such a user.
pub async fn exists(connection: &impl ConnectionTrait, id: UserId) -> Result<bool, DbFault> {
    Ok(users::Entity::find_by_id(id.0).one(connection).await?.is_some())
}

/// `rows` that `user` has; `None` if these are none because there is no such user.
pub async fn rows_of<T>(
    connection: &impl ConnectionTrait,
    user: UserId,
    rows: Vec<T>,
) -> Result<Option<Vec<T>>, DbFault> {
    Ok((!rows.is_empty() || exists(connection, user).await?).then_some(rows))
}

pub(super) async fn find_by_id(
    connection: &impl ConnectionTrait,
    id: UserId,
) -> Result<Option<Account>, DbFault> {
    Ok(users::Entity::find_by_id(id.0).one(connection).await?.map(Account::from))
}

/// The user `id`, as operators see them.
pub(super) async fn registered(
    connection: &impl ConnectionTrait,
    id: UserId,
) -> Result<Option<Registered>, DbFault> {
    users::Entity::find_by_id(id.0).one(connection).await?.map(Registered::try_from).transpose()
}

/// Up to `limit` users older than `before`, newest first; only those called `name`, if one is given.
pub(super) async fn page(
    connection: &impl ConnectionTrait,
    name: Option<UserName>,
    before: Option<UserId>,
    limit: u64,
) -> Result<Vec<Registered>, DbFault> {
    let mut query = users::Entity::find().order_by_desc(users::Column::Id).limit(limit);
    if let Some(name) = name {
        // By what their provider knows them by, because that is indexed.
        let known = |provider: Provider, subject: &str| {
            Condition::all()
                .add(users::Column::Provider.eq(provider.word()))
                .add(users::Column::Subject.eq(subject))
        };
        let signed_up = [Provider::Dev, Provider::Password].map(|provider| known(provider, name.as_str()));
        let minted = name.as_str().strip_prefix(MINTED_NAME).map(|id| known(Provider::Minted, id));
        query = query.filter(signed_up.into_iter().chain(minted).fold(Condition::any(), Condition::add));
    }
    if let Some(before) = before {
        query = query.filter(users::Column::Id.lt(before.0));
    }
    query.all(connection).await?.into_iter().map(Registered::try_from).collect()
}

/// Writes all of `accounts`; one that exists fails them all.
pub(super) async fn insert(
    connection: &impl ConnectionTrait,
    accounts: impl IntoIterator<Item = NewAccount>,
) -> Result<(), DbFault> {
    let rows = accounts.into_iter().map(users::ActiveModel::from);
    users::Entity::insert_many(rows).exec_without_returning(connection).await?;
    Ok(())
}

/// Writes `account` unless its provider knows another by this subject.
pub(super) async fn insert_if_absent(
    connection: &impl ConnectionTrait,
    account: NewAccount,
) -> Result<(), DbFault> {
    const INSERT: &str =
        "INTO users (id, provider, subject, name, roles, created_at) VALUES (?, ?, ?, ?, ?, ?)";
    let backend = connection.get_database_backend();
    let values = [
        account.id.0.into(),
        account.provider.word().into(),
        account.subject.into(),
        account.name.into(),
        account.roles.words().into(),
        account.created_at.into(),
    ];
    let insert = bulk::statement(backend, &bulk::insert_if_absent(backend, INSERT), values);
    connection.execute_raw(insert).await?;
    Ok(())
}

pub(super) async fn set_roles(
    connection: &impl ConnectionTrait,
    id: UserId,
    roles: Roles,
) -> Result<(), DbFault> {
    users::Entity::update_many()
        .col_expr(users::Column::Roles, Expr::value(roles.words()))
        .filter(users::Column::Id.eq(id.0))
        .exec(connection)
        .await?;
    Ok(())
}

/// Records a login at `now`; true exactly for the user's first.
pub(super) async fn claim_first_login(
    connection: &impl ConnectionTrait,
    id: UserId,
    now: i64,
) -> Result<bool, DbFault> {
    let claimed = users::Entity::update_many()
        .col_expr(users::Column::FirstLoginAt, Expr::value(now))
        .filter(users::Column::Id.eq(id.0))
        .filter(users::Column::FirstLoginAt.is_null())
        .exec(connection)
        .await?;
    Ok(claimed.rows_affected == 1)
}
