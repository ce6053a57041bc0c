//! Jobs over HTTP (API.md, Operating).

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, get, patch, post};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::job::Trigger;
use super::model::{JobView, JobsError, Request, Run};
use super::service::JobService;
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, Operator, OptionalBody, Page, PathId, PathName,
    Staff, Validate, answered, request_key,
};
use crate::ids::JobRunId;

/// What to change about a job.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobEdit {
    paused: bool,
}

/// A run to ask for.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRun {
    /// What the job takes; left out or null: what a run by schedule gets.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    params: Option<Value>,
}

impl Validate for JobEdit {
    fn validate(&self, _: &mut Vec<FieldError>) {}
}

impl Validate for NewRun {
    fn validate(&self, _: &mut Vec<FieldError>) {}
}

/// Lists the jobs, by name.
#[utoipa::path(tag = "jobs", params(Page),
    responses((status = 200, description = "A page of jobs", body = List<JobView>)))]
#[get("/admin/jobs")]
pub(crate) async fn list(
    jobs: Data<JobService>,
    _: Staff,
    query: ListQuery,
) -> ApiResult<Json<List<JobView>>> {
    let numbered = (1..).zip(jobs.list().await?);
    let behind = numbered.filter(|(number, _)| query.page.after().is_none_or(|after| *number > after));
    let rows = behind.take(usize::try_from(query.page.rows()).unwrap_or(usize::MAX)).collect();
    Ok(Json(query.page.list(rows, |(number, _)| *number, |(_, job)| job)))
}

/// Pauses a job, or lets it run again. A paused job runs only when it is asked to.
#[utoipa::path(tag = "jobs", request_body = JobEdit,
    responses((status = 200, description = "The job as it stands now", body = JobView)))]
#[patch("/admin/jobs/{name}")]
pub(crate) async fn edit(
    jobs: Data<JobService>,
    _: Operator,
    name: PathName,
    body: JsonBody<JobEdit>,
) -> ApiResult<Json<JobView>> {
    Ok(Json(jobs.set_paused(&name.0, body.value.paused).await?))
}

/// Asks for a run now, by the node whose turn it is.
#[utoipa::path(tag = "jobs", params(IdempotencyKey), request_body(content = NewRun),
    responses((status = 202, description = "The run that is asked for", body = Run)))]
#[post("/admin/jobs/{name}/runs")]
pub(crate) async fn start(
    jobs: Data<JobService>,
    req: HttpRequest,
    operator: Operator,
    name: PathName,
    key: IdempotencyKey,
    body: OptionalBody<NewRun>,
) -> ApiResult<HttpResponse> {
    let user = operator.0.user;
    let key = request_key(user, &req, &key, body.fingerprint);
    let request = Request { trigger: Trigger::Operator, by: Some(user), params: body.value.params };
    Ok(answered(StatusCode::ACCEPTED, jobs.request(&name.0, request, key).await?))
}

/// Lists the runs of a job that are asked for, under way or remembered, newest first.
///
/// Remembered is a run that was asked for, did something, took longer than two seconds or failed otherwise than the one
/// before it.
#[utoipa::path(tag = "jobs", params(Page),
    responses((status = 200, description = "A page of runs", body = List<Run>)))]
#[get("/admin/jobs/{name}/runs")]
pub(crate) async fn history(
    jobs: Data<JobService>,
    _: Staff,
    name: PathName,
    query: ListQuery,
) -> ApiResult<Json<List<Run>>> {
    let before = query.page.after().map(JobRunId);
    let runs = jobs.runs(&name.0, before, query.page.rows()).await?;
    Ok(Json(query.page.list(runs, |row| row.id.0, |row| row)))
}

/// Shows a run of a job.
#[utoipa::path(tag = "jobs", responses((status = 200, description = "The run", body = Run)))]
#[get("/admin/jobs/{name}/runs/{id}")]
pub(crate) async fn show(
    jobs: Data<JobService>,
    _: Staff,
    name: PathName,
    id: PathId<JobRunId>,
) -> ApiResult<Json<Run>> {
    Ok(Json(jobs.run(&name.0, id.0).await?))
}

impl From<JobsError> for ApiError {
    fn from(error: JobsError) -> Self {
        match error {
            JobsError::NoSuchJob { .. } | JobsError::NoSuchRun => {
                Self::new(Code::NotFound, error.to_string())
            }
            JobsError::Params(invalid) => Self::invalid_all(vec![invalid.0]),
            JobsError::Key(refusal) => refusal.into(),
            JobsError::Busy { .. } => Self::new(Code::Overloaded, error.to_string()),
            JobsError::Fault(fault) => fault.into(),
        }
    }
}
