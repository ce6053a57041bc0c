//! Commands that look at the database or change it, beside the server, and what they print.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::CommandFactory;
use futures_util::stream::{Stream, TryStreamExt};
use secrecy::ExposeSecret;

use super::{Cli, Failure};
use crate::idempotency::Answered;
use crate::identity::{AccessToken, IdentityError, IdentityService, NewPassword, Roles, UserName};
use crate::jobs::{JobService, JobView, LastRun, RunState};
use crate::messaging::dead_letter::{DeadLetter, DeadLetterError, DeadLetters, LetterFilter, LetterState};
use crate::reconciliation::{DifferenceState, ReconciliationService};

/// Runs a job and prints what it did.
pub(super) async fn run_job(
    jobs: &JobService,
    name: &str,
    params: Option<serde_json::Value>,
    patience: Duration,
) -> Result<(), Failure> {
    let run = jobs.perform(name, params, patience).await?;
    if run.state != RunState::Done {
        return Err(Failure::Run(Box::new(run)));
    }
    let took = took(run.duration_ms.unwrap_or_default());
    let did = run.summary.as_deref().unwrap_or("nothing to do");
    Ok(writeln!(std::io::stdout(), "Job {name} is done after {took}: {did}")?)
}

fn took(ms: i64) -> String {
    match ms {
        ..1 => "less than 1ms".to_owned(),
        ms => format!("{:?}", Duration::from_millis(ms.unsigned_abs())),
    }
}

/// A line for each dead letter.
pub(super) async fn list_letters(
    letters: &DeadLetters,
    filter: LetterFilter,
    state: Option<LetterState>,
) -> Result<(), Failure> {
    let mut out = BufWriter::new(std::io::stdout());
    writeln!(
        out,
        "{:19}  {:20}  {:9}  {:>7}  {:24}  {:28}  ERROR",
        "ID", "GIVEN UP", "STATE", "REPLAYS", "GROUP", "TYPE"
    )?;
    let mut before = None;
    loop {
        let page = letters.list(filter.clone(), state, before, 100).await.map_err(DeadLetterError::from)?;
        let Some(last) = page.last() else { return Ok(out.flush()?) };
        before = Some(last.id);
        for letter in &page {
            let DeadLetter { id, state, replays, group, .. } = letter;
            let died = letter.died_at.to_rfc3339_opts(SecondsFormat::Secs, true);
            let event_type = letter.event_type.as_deref().unwrap_or("-");
            // What others sent does not steer the terminal.
            let error = letter.error.replace(char::is_control, " ");
            let (id, state) = (id.to_string(), state.word());
            writeln!(
                out,
                "{id:19}  {died:20}  {state:9}  {replays:>7}  {group:24}  {event_type:28}  {error}"
            )?;
        }
    }
}

/// A line for each job.
pub(super) fn list_jobs(jobs: &[JobView], out: &mut impl Write) -> std::io::Result<()> {
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
    let never = || "-".to_owned();
    let wide = |column: fn(&JobView) -> usize| jobs.iter().map(column).max().unwrap_or_default();
    let (names, schedules) = (wide(|job| job.name.len()), wide(|job| job.schedule.len()));
    writeln!(
        out,
        "{:names$}  {:schedules$}  {:20}  {:20}  OUTCOME",
        "JOB", "SCHEDULE", "NEXT RUN", "LAST RUN"
    )?;
    for job in jobs {
        let next = if job.paused { "paused".to_owned() } else { job.next_run_at.map_or_else(never, time) };
        let last = job.last_run.as_ref();
        let started = last.map_or_else(never, |run| time(run.started_at));
        let outcome = match last {
            _ if job.running => "running".to_owned(),
            Some(LastRun { outcome, error: Some(error), .. }) => format!("{outcome}: {error}"),
            Some(LastRun { outcome, .. }) => outcome.to_string(),
            None => never(),
        };
        let (name, schedule) = (&job.name, &job.schedule);
        writeln!(out, "{name:names$}  {schedule:schedules$}  {next:20}  {started:20}  {outcome}")?;
    }
    Ok(())
}

/// Writes the completion script; the generator itself would panic if that fails.
pub(super) fn complete(shell: clap_complete::Shell, out: &mut impl Write) -> std::io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tombola", &mut script);
    out.write_all(&script)?;
    out.flush()
}

pub(super) async fn reconcile(service: &ReconciliationService, apply: bool) -> Result<(), Failure> {
    let run = service.run().await?;
    // Of very many, only the first are kept.
    let mut open = usize::try_from(run.found).unwrap_or(0).saturating_sub(run.differences.len());
    let mut out = std::io::stdout();
    for difference in run.differences {
        writeln!(out, "{}: {} Proposed: {}.", difference.comparison, difference.detail, difference.action)?;
        if apply {
            let Answered::Fresh(settled) = service.apply(difference.id, None, None).await? else { continue };
            writeln!(out, "  {}", settled.outcome.unwrap_or_default())?;
            open += usize::from(settled.state == DifferenceState::Open);
        } else {
            open += 1;
        }
    }
    if let Some(failed) = run.failed {
        return Err(Failure::NotCompared(failed));
    }
    if open > 0 {
        return Err(Failure::Differences(open));
    }
    Ok(writeln!(
        out,
        "{}",
        if run.found == 0 { "Everything agrees." } else { "Every difference is settled." }
    )?)
}

pub(super) async fn add_user(
    identity: &IdentityService,
    name: UserName,
    roles: Roles,
    password: Option<NewPassword>,
) -> Result<(), Failure> {
    let (password, generated) = match password {
        Some(password) => (password, None),
        None => {
            let (password, text) = NewPassword::generate();
            (password, Some(text))
        }
    };
    let user = identity.add_user(&name, roles, password).await?;
    let mut out = std::io::stdout();
    writeln!(out, "Added {} (id {}).", user.name, user.id)?;
    if let Some(password) = generated {
        writeln!(out, "Password, shown only now: {}", password.expose_secret())?;
    }
    Ok(())
}

/// The first line of standard input; never an argument, which every user of the machine could read.
pub(super) fn read_password() -> Result<NewPassword, Failure> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(NewPassword::parse(line.trim_end_matches(['\r', '\n']).into())?)
}

pub(super) async fn write_tokens(
    tokens: impl Stream<Item = Result<Vec<AccessToken>, IdentityError>>,
    file: &Path,
) -> Result<(), Failure> {
    let failed = |source| Failure::File { file: file.to_owned(), source };
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut out = BufWriter::new(options.open(file).map_err(failed)?);
    let mut tokens = pin!(tokens);
    while let Some(portion) = tokens.try_next().await? {
        for token in portion {
            writeln!(out, "{}", token.token).map_err(failed)?;
        }
    }
    out.flush().map_err(failed)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_completion_script_that_cannot_be_written_is_an_error() {
        let mut script = Vec::new();
        complete(clap_complete::Shell::Bash, &mut script).unwrap();
        assert!(String::from_utf8(script).unwrap().contains("tombola"));
        assert!(complete(clap_complete::Shell::Bash, &mut [0; 8].as_mut_slice()).is_err());
    }

    #[rstest]
    #[case(0, "less than 1ms")]
    #[case(1, "1ms")]
    #[case(1500, "1.5s")]
    fn a_run_took_some_time(#[case] ms: i64, #[case] told: &str) {
        assert_eq!(took(ms), told);
    }
}
