//! The outbox and the dead letters over HTTP (API.md, Operating).
#![expect(unused_qualifications, reason = "utoipa::path spells the types of parameters out")]

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json};
use actix_web::{HttpRequest, HttpResponse, delete, get, post};
use serde::Deserialize;
use utoipa::IntoParams;

use super::dead_letter::{
    self, DeadLetter, DeadLetterError, DeadLetters, LetterFilter, LetterState, WholeDeadLetter,
};
use super::jobs::DEAD_LETTER_REPLAY;
use super::outbox_rows::{OutboxRow, OutboxRows, OutboxState};
use crate::error::{ApiError, Code, FieldError};
use crate::http::{
    ApiResult, IdempotencyKey, JsonBody, List, ListQuery, NoMembers, Operator, OptionalBody, Page, PathId,
    Reason, Staff, Validate, answered, request_key,
};
use crate::ids::{BatchId, DeadLetterId};
use crate::jobs::{JobService, Request, Run, Trigger};
use crate::refusals;

refusals!(ReplayRefusals: TransitionNotAllowed, DeadLetterUnreadable, ConsumerGroupUnknown);
refusals!(DiscardRefusals: TransitionNotAllowed);

/// Which outbox rows to list.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OutboxFilter {
    state: Option<OutboxState>,
}

/// Which dead letters to list.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListFilter {
    /// The consumer group.
    #[serde(default, deserialize_with = "dead_letter::term")]
    #[param(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    group: Option<String>,
    /// The event type.
    #[serde(default, rename = "type", deserialize_with = "dead_letter::term")]
    #[param(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    event_type: Option<String>,
    /// Left out: those that are waiting or replaying.
    state: Option<LetterState>,
}

impl Validate for LetterFilter {
    fn validate(&self, _: &mut Vec<FieldError>) {}
}

/// Lists what was committed to be published, newest first: one row for all events of a transaction.
#[utoipa::path(tag = "messaging", params(Page, OutboxFilter),
    responses((status = 200, description = "A page of rows", body = List<OutboxRow>)))]
#[get("/admin/outbox")]
pub(crate) async fn outbox(
    rows: Data<OutboxRows>,
    _: Staff,
    query: ListQuery<OutboxFilter>,
) -> ApiResult<Json<List<OutboxRow>>> {
    let before = query.page.after().map(BatchId);
    let found = rows.list(query.filter.state, before, query.page.rows()).await?;
    Ok(Json(query.page.list(found, |row| row.id.0, |row| row)))
}

/// Lists dead letters, the latest first: messages that a consumer group could not apply.
#[utoipa::path(tag = "messaging", params(Page, ListFilter),
    responses((status = 200, description = "A page of dead letters", body = List<DeadLetter>)))]
#[get("/admin/dead-letters")]
pub(crate) async fn list(
    letters: Data<DeadLetters>,
    _: Staff,
    query: ListQuery<ListFilter>,
) -> ApiResult<Json<List<DeadLetter>>> {
    let ListFilter { group, event_type, state } = query.filter;
    let before = query.page.after().map(DeadLetterId);
    let filter = LetterFilter { group, event_type };
    let found = letters.list(filter, state, before, query.page.rows()).await?;
    Ok(Json(query.page.list(found, |letter| letter.id.0, |letter| letter)))
}

/// Shows a dead letter with the message as it came.
#[utoipa::path(tag = "messaging",
    responses((status = 200, description = "The dead letter", body = WholeDeadLetter)))]
#[get("/admin/dead-letters/{id}")]
pub(crate) async fn show(
    letters: Data<DeadLetters>,
    _: Staff,
    id: PathId<DeadLetterId>,
) -> ApiResult<Json<WholeDeadLetter>> {
    Ok(Json(letters.get(id.0).await?))
}

/// Tries a dead letter again, as often as a new message; its event keeps its id, so it is applied once at most.
///
/// The dead letter is `applied` afterwards, or `waiting` again.
#[utoipa::path(tag = "messaging", params(IdempotencyKey), request_body = Option<NoMembers>,
    responses((status = 202, description = "The dead letter, replaying", body = DeadLetter), ReplayRefusals))]
#[post("/admin/dead-letters/{id}/replay")]
pub(crate) async fn replay(
    letters: Data<DeadLetters>,
    req: HttpRequest,
    operator: Operator,
    id: PathId<DeadLetterId>,
    key: IdempotencyKey,
    body: OptionalBody<NoMembers>,
) -> ApiResult<HttpResponse> {
    let key = request_key(operator.0.user, &req, &key, body.fingerprint);
    Ok(answered(StatusCode::ACCEPTED, letters.replay(id.0, key).await?))
}

/// Asks for a run that replays every dead letter that waits and matches.
///
/// The run is one of the job `dead_letter_replay`: see `/admin/jobs/dead_letter_replay/runs/{id}`.
#[utoipa::path(tag = "messaging", params(IdempotencyKey), request_body(content = LetterFilter),
    responses((status = 202, description = "The run that is asked for", body = Run)))]
#[post("/admin/dead-letters/replays")]
pub(crate) async fn replay_all(
    all: Data<JobService>,
    req: HttpRequest,
    operator: Operator,
    key: IdempotencyKey,
    body: OptionalBody<LetterFilter>,
) -> ApiResult<HttpResponse> {
    let user = operator.0.user;
    let key = request_key(user, &req, &key, body.fingerprint);
    let request = Request { trigger: Trigger::Operator, by: Some(user), params: Some(body.value.params()) };
    Ok(answered(StatusCode::ACCEPTED, all.request(DEAD_LETTER_REPLAY, request, key).await?))
}

/// Decides that a dead letter is not to be applied. It is kept for a while, with the reason.
#[utoipa::path(tag = "messaging", request_body = Reason,
    responses((status = 200, description = "The dead letter, discarded", body = DeadLetter), DiscardRefusals))]
#[delete("/admin/dead-letters/{id}")]
pub(crate) async fn discard(
    letters: Data<DeadLetters>,
    operator: Operator,
    id: PathId<DeadLetterId>,
    body: JsonBody<Reason>,
) -> ApiResult<Json<DeadLetter>> {
    Ok(Json(letters.discard(id.0, body.value.reason, operator.0.user).await?))
}

impl From<DeadLetterError> for ApiError {
    fn from(error: DeadLetterError) -> Self {
        let detail = error.to_string();
        match error {
            DeadLetterError::NotFound => Self::new(Code::NotFound, detail),
            DeadLetterError::Moved(_) | DeadLetterError::Twin(_) => {
                Self::new(Code::TransitionNotAllowed, detail)
            }
            DeadLetterError::Unreadable(_) => Self::new(Code::DeadLetterUnreadable, detail),
            DeadLetterError::UnknownGroup(_) => Self::new(Code::ConsumerGroupUnknown, detail),
            DeadLetterError::Key(refusal) => refusal.into(),
            DeadLetterError::Db(fault) => fault.into(),
        }
    }
}
