//! Notifications over HTTP.

use actix_web::web::{Data, Json};
use actix_web::{get, post};

use super::model::{Notification, NotificationError};
use super::service::NotificationService;
use crate::error::{ApiError, Code};
use crate::http::{ApiResult, List, ListQuery, NoMembers, OptionalBody, Page, PathId};
use crate::identity::Caller;
use crate::ids::NotificationId;

/// What the caller was told, newest first.
#[utoipa::path(tag = "notifications", params(Page),
    responses((status = 200, description = "A page of notifications", body = List<Notification>)))]
#[get("/me/notifications")]
pub(crate) async fn my_notifications(
    notifications: Data<NotificationService>,
    caller: Caller,
    query: ListQuery,
) -> ApiResult<Json<List<Notification>>> {
    let page = query.page;
    let before = page.after().map(NotificationId);
    let found = notifications.of_user(caller.user, before, page.rows()).await?;
    Ok(Json(page.list(found, |told| told.id.0, |told| told)))
}

/// Says that the caller has read a notification; said again, it stays as it is.
#[utoipa::path(tag = "notifications", request_body = Option<NoMembers>,
    responses((status = 200, description = "The notification, read", body = Notification)))]
#[post("/me/notifications/{id}/read")]
pub(crate) async fn read(
    notifications: Data<NotificationService>,
    caller: Caller,
    id: PathId<NotificationId>,
    _: OptionalBody<NoMembers>,
) -> ApiResult<Json<Notification>> {
    Ok(Json(notifications.read(caller.user, id.0).await?))
}

impl From<NotificationError> for ApiError {
    fn from(error: NotificationError) -> Self {
        match error {
            NotificationError::NotFound => Self::new(Code::NotFound, error.to_string()),
            NotificationError::Db(fault) => fault.into(),
        }
    }
}
