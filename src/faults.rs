//! Named places where a test makes the server die, panic, wait or fail (RELIABILITY B1). Compiled to nothing without
//! the `faults` feature.
//!
//! `TOMBOLA_FAULTS="before_fence=kill@3,after_commit=sleep:2000"`: at the third pass of `before_fence` the process
//! dies as by `kill -9`; each pass of `after_commit` waits two seconds. Actions: `kill`, `panic`, `sleep:MS`, `error`.

/// A fault point was told to fail.
#[derive(Debug, thiserror::Error)]
#[error("fault injected at {0}")]
pub struct InjectedFault(pub &'static str);

/// Passes the fault point `name`.
#[cfg(not(feature = "faults"))]
#[expect(clippy::unused_async, reason = "the other build waits here")]
#[inline(always)]
pub async fn point(_name: &'static str) -> Result<(), InjectedFault> {
    Ok(())
}

/// Passes the fault point `name`, doing there what `TOMBOLA_FAULTS` says.
#[cfg(feature = "faults")]
pub async fn point(name: &'static str) -> Result<(), InjectedFault> {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    let Some(rule) = armed::RULES.get(name) else { return Ok(()) };
    let pass = rule.passes.fetch_add(1, Ordering::Relaxed) + 1;
    if rule.at_pass.is_some_and(|at| at != pass) {
        return Ok(());
    }
    match rule.action {
        armed::Action::Kill => {
            // The shell's own `kill`: the program is not everywhere.
            let _ = std::process::Command::new("sh").args(["-c", "kill -9 $PPID"]).status();
            std::process::abort()
        }
        armed::Action::Panic => panic!("fault injected at {name}"),
        armed::Action::Error => Err(InjectedFault(name)),
        armed::Action::Sleep(time) => {
            tokio::time::sleep(Duration::from_millis(time)).await;
            Ok(())
        }
    }
}

#[cfg(feature = "faults")]
mod armed {
    use std::collections::HashMap;
    use std::sync::LazyLock;
    use std::sync::atomic::AtomicU64;

    pub(super) enum Action {
        Kill,
        Panic,
        Error,
        Sleep(u64),
    }

    pub(super) struct Rule {
        pub(super) action: Action,
        pub(super) at_pass: Option<u64>,
        pub(super) passes: AtomicU64,
    }

    pub(super) static RULES: LazyLock<HashMap<String, Rule>> = LazyLock::new(|| {
        let text = std::env::var("TOMBOLA_FAULTS").unwrap_or_default();
        text.split(',').filter(|part| !part.is_empty()).map(rule).collect()
    });

    fn rule(text: &str) -> (String, Rule) {
        let malformed = || -> ! { panic!("TOMBOLA_FAULTS: cannot read {text:?}") };
        let Some((name, action)) = text.split_once('=') else { malformed() };
        let (action, at_pass) = match action.split_once('@') {
            Some((action, pass)) => (action, Some(pass.parse().unwrap_or_else(|_| malformed()))),
            None => (action, None),
        };
        let action = match action.split_once(':') {
            None if action == "kill" => Action::Kill,
            None if action == "panic" => Action::Panic,
            None if action == "error" => Action::Error,
            Some(("sleep", ms)) => Action::Sleep(ms.parse().unwrap_or_else(|_| malformed())),
            _ => malformed(),
        };
        (name.to_owned(), Rule { action, at_pass, passes: AtomicU64::new(0) })
    }
}
