//! Reconciliation over HTTP (API.md, Operating).

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, post};

use super::model::{Difference, Reconciliation, ReconciliationError};
use super::service::ReconciliationService;
use crate::error::{ApiError, Code};
use crate::http::{
    ApiResult, IdempotencyKey, List, ListQuery, NoMembers, Operator, OptionalBody, Page, PathId, Staff,
    answered, request_key,
};
use crate::ids::{DifferenceId, ReconciliationId};
use crate::refusals;

refusals!(ApplyRefusals: TransitionNotAllowed);

/// Lists the runs, newest first, each with its first twenty differences and what is proposed about them.
#[utoipa::path(tag = "reconciliation", params(Page),
    responses((status = 200, description = "A page of runs", body = List<Reconciliation>)))]
#[get("/admin/reconciliations")]
pub(crate) async fn list(
    service: Data<ReconciliationService>,
    _: Staff,
    query: ListQuery,
) -> ApiResult<Json<List<Reconciliation>>> {
    let page = query.page;
    let runs = service.list(page.after().map(ReconciliationId), page.rows()).await?;
    Ok(Json(page.list(runs, |row| row.id.0, |row| row)))
}

/// Lists the differences that a run found and kept: of each comparison the first hundred.
#[utoipa::path(tag = "reconciliation", params(Page),
    responses((status = 200, description = "A page of differences", body = List<Difference>)))]
#[get("/admin/reconciliations/{id}/differences")]
pub(crate) async fn differences(
    service: Data<ReconciliationService>,
    _: Staff,
    id: PathId<ReconciliationId>,
    query: ListQuery,
) -> ApiResult<Json<List<Difference>>> {
    let page = query.page;
    let found = service.differences(id.0, page.after().map(DifferenceId), page.rows()).await?;
    Ok(Json(page.list(found, |row| row.id.0, |row| row)))
}

/// Compares everything now and answers the differences. Nothing is changed.
#[utoipa::path(tag = "reconciliation", params(IdempotencyKey), request_body = Option<NoMembers>,
    responses((status = 201, description = "The run, with its differences", body = Reconciliation)))]
#[post("/admin/reconciliations")]
pub(crate) async fn run(
    service: Data<ReconciliationService>,
    req: HttpRequest,
    operator: Operator,
    key: IdempotencyKey,
    body: OptionalBody<NoMembers>,
) -> ApiResult<HttpResponse> {
    let user = operator.0.user;
    let key = request_key(user, &req, &key, body.fingerprint);
    Ok(answered(StatusCode::CREATED, service.run_for(user, key).await?))
}

/// Does what a difference proposes. It looks again first: what is gone by itself is left alone.
#[utoipa::path(tag = "reconciliation", params(IdempotencyKey), request_body = Option<NoMembers>,
    responses((status = 200, description = "The difference, settled", body = Difference), ApplyRefusals))]
#[post("/admin/differences/{id}/apply")]
pub(crate) async fn apply(
    service: Data<ReconciliationService>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<DifferenceId>,
    key: IdempotencyKey,
    body: OptionalBody<NoMembers>,
) -> ApiResult<HttpResponse> {
    let user = operator.0.user;
    let key = request_key(user, &req, &key, body.fingerprint);
    Ok(answered(StatusCode::OK, service.apply(id.0, Some(user), key).await?))
}

impl From<ReconciliationError> for ApiError {
    fn from(error: ReconciliationError) -> Self {
        let text = error.to_string();
        match error {
            ReconciliationError::NotFound => Self::new(Code::NotFound, text),
            ReconciliationError::Settled(_) => Self::new(Code::TransitionNotAllowed, text),
            ReconciliationError::Outside(_) => Self::new(Code::DependencyUnavailable, text),
            ReconciliationError::Key(refusal) => refusal.into(),
            ReconciliationError::Db(fault) => fault.into(),
        }
    }
}
