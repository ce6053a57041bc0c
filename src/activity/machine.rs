//! Which moves an activity may make (ACT-3). `=` is already done, an empty cell is refused.
#![doc = ""]
#![doc = include_str!("machine.md")]
//!
//! `start` needs the window to be open (ACT-4), `reopen` needs it not to be over. The tests read this very table.

use thiserror::Error;

use super::model::Window;
use crate::ports::clock::Timestamp;
use crate::words::words;

words! {
    /// Where an activity stands. Takes are accepted in `running` only.
    State, "activity state" {
        Editing = "editing",
        Submitted = "submitted",
        Withdrawn = "withdrawn",
        Approved = "approved",
        Running = "running",
        Refused = "refused",
        Closed = "closed",
    }
}

words! {
    /// What an operator, or the job that follows the clock, asks of an activity.
    Event, "activity event" {
        Submit = "submit",
        Withdraw = "withdraw",
        Approve = "approve",
        Refuse = "refuse",
        Start = "start",
        Close = "close",
        Reopen = "reopen",
    }
}

/// What an event comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Move(State),
    /// The activity is already where the event leads: a repeat.
    AlreadyDone,
}

/// Why an event comes to nothing.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    #[error("the state does not allow it")]
    WrongState,
    #[error("it is before starts_at")]
    TooEarly,
    #[error("ends_at has passed")]
    TooLate,
}

/// What `event` does to an activity in `state` with this `window` at `now`.
pub fn decide(state: State, event: Event, window: Window, now: Timestamp) -> Result<Decision, Refusal> {
    use Decision::{AlreadyDone, Move};
    use Event::{Approve, Close, Refuse, Reopen, Start, Submit, Withdraw};
    use State::{Approved, Closed, Editing, Refused, Running, Submitted, Withdrawn};

    Ok(match (state, event) {
        (Editing | Withdrawn, Submit) => Move(Submitted),
        (Submitted | Refused, Withdraw) => Move(Withdrawn),
        (Submitted, Approve) => Move(Approved),
        (Submitted | Approved, Refuse) => Move(Refused),
        (Approved, Start) if window.is_ahead(now) => return Err(Refusal::TooEarly),
        (Approved, Start) if window.is_over(now) => return Err(Refusal::TooLate),
        (Approved, Start) => Move(Running),
        (Editing | Withdrawn | Approved | Running | Refused, Close) => Move(Closed),
        (Closed, Reopen) if window.is_over(now) => return Err(Refusal::TooLate),
        (Closed, Reopen) => Move(Approved),
        (Submitted, Submit)
        | (Withdrawn, Withdraw)
        | (Approved, Approve | Reopen)
        | (Refused, Refuse)
        | (Running, Start)
        | (Closed, Close) => AlreadyDone,
        (Editing, Withdraw | Approve | Refuse | Start | Reopen)
        | (Submitted, Start | Close | Reopen)
        | (Withdrawn, Approve | Refuse | Start | Reopen)
        | (Approved, Submit | Withdraw)
        | (Running, Submit | Withdraw | Approve | Refuse | Reopen)
        | (Refused, Submit | Approve | Start | Reopen)
        | (Closed, Submit | Withdraw | Approve | Refuse | Start) => return Err(Refusal::WrongState),
    })
}

/// The events that would move such an activity at `now`.
pub fn moves(state: State, window: Window, now: Timestamp) -> impl Iterator<Item = Event> {
    Event::ALL
        .iter()
        .copied()
        .filter(move |&event| matches!(decide(state, event, window, now), Ok(Decision::Move(_))))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use rstest::rstest;

    use super::*;

    const START: Timestamp = Timestamp::UNIX_EPOCH;
    const END: Timestamp = Timestamp::from_timestamp(3600, 0).expect("a date");
    const TICK: TimeDelta = TimeDelta::microseconds(1);

    fn window() -> Window {
        Window::new(START, END).unwrap()
    }

    /// Each row and column of machine.md: `(state, event, cell)`.
    fn table() -> Vec<(State, Event, &'static str)> {
        let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim);
        let mut lines = include_str!("machine.md").lines();
        let events: Vec<Event> =
            cells(lines.next().unwrap()).skip(1).map(|word| word.parse().unwrap()).collect();
        let row = |line| {
            let mut cells = cells(line);
            let state: State = cells.next().unwrap().parse().unwrap();
            events.iter().zip(cells).map(move |(&event, cell)| (state, event, cell)).collect::<Vec<_>>()
        };
        lines.skip(1).flat_map(row).collect()
    }

    #[test]
    fn every_event_does_in_every_state_what_the_table_says() {
        let table = table();
        assert_eq!(table.len(), State::ALL.len() * Event::ALL.len());
        for (state, event, cell) in table {
            let expected = match cell {
                "" => Err(Refusal::WrongState),
                "=" => Ok(Decision::AlreadyDone),
                next => Ok(Decision::Move(next.parse().unwrap())),
            };
            assert_eq!(decide(state, event, window(), START), expected, "{state} {event}");
        }
    }

    #[rstest]
    #[case(State::Approved, Event::Start, START - TICK, Err(Refusal::TooEarly))]
    #[case(State::Approved, Event::Start, START, Ok(Decision::Move(State::Running)))]
    #[case(State::Approved, Event::Start, END, Ok(Decision::Move(State::Running)))]
    #[case(State::Approved, Event::Start, END + TICK, Err(Refusal::TooLate))]
    #[case(State::Running, Event::Start, END + TICK, Ok(Decision::AlreadyDone))]
    #[case(State::Closed, Event::Reopen, START - TICK, Ok(Decision::Move(State::Approved)))]
    #[case(State::Closed, Event::Reopen, END, Ok(Decision::Move(State::Approved)))]
    #[case(State::Closed, Event::Reopen, END + TICK, Err(Refusal::TooLate))]
    #[case(State::Approved, Event::Close, START - TICK, Ok(Decision::Move(State::Closed)))]
    fn the_window_has_its_say(
        #[case] state: State,
        #[case] event: Event,
        #[case] now: Timestamp,
        #[case] expected: Result<Decision, Refusal>,
    ) {
        assert_eq!(decide(state, event, window(), now), expected);
    }

    #[test]
    fn moves_are_what_would_succeed_now() {
        let now = |now| moves(State::Approved, window(), now).collect::<Vec<_>>();
        assert_eq!(now(START - TICK), [Event::Refuse, Event::Close]);
        assert_eq!(now(START), [Event::Refuse, Event::Start, Event::Close]);
    }
}
