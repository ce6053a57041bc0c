//! Users over HTTP, as operators see them.
#![expect(unused_qualifications, reason = "utoipa::path spells the types of parameters out")]

use actix_web::get;
use actix_web::web::{Data, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{IdentityService, Registered, UserName};
use crate::error::{ApiError, Code};
use crate::http::{ApiResult, List, ListQuery, Page, PathId, Staff};
use crate::ids::UserId;
use crate::money::Currency;
use crate::wallet::{Account, WalletService};

/// Which users to list.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UserFilter {
    /// The whole name; users who sign in differently may share it.
    #[param(value_type = Option<String>, min_length = 1, max_length = 64)]
    name: Option<UserName>,
}

/// A user, and what they have.
#[derive(Serialize, ToSchema)]
pub(crate) struct UserDetail {
    #[serde(flatten)]
    user: Registered,
    balance_minor: i64,
    points: i64,
    currency: Currency,
}

/// Lists users, newest first.
#[utoipa::path(tag = "users", params(Page, UserFilter),
    responses((status = 200, description = "A page of users", body = List<Registered>)))]
#[get("/admin/users")]
pub(crate) async fn list(
    identity: Data<IdentityService>,
    _: Staff,
    query: ListQuery<UserFilter>,
) -> ApiResult<Json<List<Registered>>> {
    let page = query.page;
    let found = identity.users(query.filter.name, page.after().map(UserId), page.rows()).await?;
    Ok(Json(page.list(found, |found| found.user.id.0, |found| found)))
}

/// Shows a user, with their balance and points.
#[utoipa::path(tag = "users", responses((status = 200, description = "The user", body = UserDetail)))]
#[get("/admin/users/{id}")]
pub(crate) async fn get(
    identity: Data<IdentityService>,
    wallets: Data<WalletService>,
    _: Staff,
    id: PathId<UserId>,
) -> ApiResult<Json<UserDetail>> {
    let found = identity.registered(id.0).await?;
    let user = found.ok_or_else(|| ApiError::new(Code::NotFound, "There is no such user"))?;
    let Account { balance_minor, points } = wallets.account(id.0).await?;
    Ok(Json(UserDetail { user, balance_minor, points, currency: wallets.currency() }))
}
