//! What can go wrong between us and the database, sorted by what it means for the caller.

use std::borrow::Cow;

use sea_orm::{DbErr, RuntimeErr, SqlErr, sqlx};
use thiserror::Error;

use crate::error::{ApiError, Code};
use crate::faults::InjectedFault;
use crate::ids::NodeNumberLost;

/// A failure of the database, or of our use of it.
#[derive(Debug, Error)]
pub enum DbFault {
    /// A statement failed; nothing of its transaction remains.
    #[error("{0}")]
    Statement(#[source] DbErr),
    /// The end of a transaction was sent and nothing tells whether it stands.
    #[error("the outcome of the commit is unknown: {0}")]
    Ambiguous(#[source] DbErr),
    /// No answer within the deadline: the work may still be done, or not.
    #[error("the database did not answer in time")]
    Deadline,
    /// The work handed to the database panicked; its transaction is rolled back.
    #[error("database work panicked: {0}")]
    Panicked(String),
    /// A statement failed and its error was swallowed; the transaction was rolled back.
    #[error("refused to commit after an error")]
    CommitAfterError,
    /// The transaction was handed to a task that outlived the work; rolled back when that task ends.
    #[error("refused to commit a transaction that is still in use")]
    StillInUse,
    /// A row that must exist does not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A row changed between looking for it and locking it; a new transaction sees it as it is.
    #[error("{0} changed meanwhile")]
    Overtaken(&'static str),
    /// The linked SQLite has a bug that can corrupt the file.
    #[error("SQLite {0} can corrupt its write-ahead log; 3.51.3 or newer is needed")]
    SqliteTooOld(String),
    /// Nothing can be written that needs an id of its own; the node number is leased again, or the process stops.
    #[error(transparent)]
    NodeNumberLost(#[from] NodeNumberLost),
    #[error(transparent)]
    Injected(#[from] InjectedFault),
}

/// An error that may be a failure of the database.
pub trait AsDbFault {
    fn db_fault(&self) -> Option<&DbFault>;
}

impl AsDbFault for DbFault {
    fn db_fault(&self) -> Option<&DbFault> {
        Some(self)
    }
}

impl From<DbErr> for DbFault {
    fn from(error: DbErr) -> Self {
        Self::Statement(error)
    }
}

impl From<serde_json::Error> for DbFault {
    fn from(error: serde_json::Error) -> Self {
        Self::Statement(DbErr::Json(error.to_string()))
    }
}

impl DbFault {
    pub(super) fn panicked(panic: &tokio::task::JoinError) -> Self {
        Self::Panicked(panic.to_string())
    }

    /// A fault point that withholds the database's answer.
    pub(super) fn unanswered() -> Self {
        Self::Ambiguous(DbErr::Custom("injected".to_owned()))
    }

    /// What `error` means once a whole transaction was sent: only a refusal of one of its statements tells that nothing of
    /// it stands.
    pub(super) fn once_sent(error: DbErr) -> Self {
        // PostgreSQL: data, integrity, read-only, rollback, syntax or missing objects, a full disk, locks; a statement that
        // took too long. Not 40003, "statement completion unknown".
        const CLASSES: &[&str] = &["22", "23", "25", "40", "42", "53", "55"];
        // SQLite, with the kinds of each: error, busy, locked, constraint.
        const PRIMARY: &[i32] = &[1, 5, 6, 19];
        let refused = code_of(&error).is_some_and(|code| match code.len() {
            5 => code == "57014" || code != "40003" && CLASSES.contains(&&code[..2]),
            _ => code.parse().is_ok_and(|code: i32| PRIMARY.contains(&(code & 0xff))),
        });
        if refused { Self::Statement(error) } else { Self::Ambiguous(error) }
    }

    /// Another transaction stood in the way; the same work may succeed at once in a new one.
    pub fn is_conflict(&self) -> bool {
        // PostgreSQL: serialization failure, deadlock, lock timeout. SQLite: busy, locked, and their kinds. MySQL has
        // its own numbers; the code is only the SQLSTATE there.
        const CODES: &[&str] = &["40001", "40P01", "55P03", "5", "6", "261", "262", "517"];
        if let Self::Overtaken(_) = self {
            return true;
        }
        let Self::Statement(error) = self else { return false };
        answered_with(error, CODES, &[1205, 1213])
    }

    /// Others stood in the way for too long, or time ran out: it may be the work's own fault, or not.
    pub fn is_hold_up(&self) -> bool {
        match self {
            Self::Deadline => true,
            Self::Statement(error) => self.is_conflict() || is_timeout(error),
            _ => self.is_conflict(),
        }
    }

    /// A statement waited in vain for what another transaction holds; SQLite has no such locks.
    pub fn is_lock_timeout(&self) -> bool {
        matches!(self, Self::Statement(error) if answered_with(error, &["55P03"], &[1205]))
    }

    /// The database cannot be reached or used now, whatever it was asked.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Statement(DbErr::ConnectionAcquire(_)) | Self::NodeNumberLost(_) => true,
            Self::Statement(error) | Self::Ambiguous(error) => match runtime_error(error) {
                // A statement that the database itself refused, unless it did so because it is going down or is full.
                Some(sqlx::Error::Database(error)) => error.code().is_some_and(|code| {
                    ["08", "53", "57P"].iter().any(|class| code.len() == 5 && code.starts_with(class))
                        || code == "13"
                }),
                Some(_) => true,
                None => matches!(error, DbErr::Conn(_)),
            },
            _ => false,
        }
    }

    /// A unique key refused a row.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Statement(error)
            if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))))
    }

    /// Whether the transaction may stand although it did not succeed for us.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Ambiguous(_) | Self::Deadline | Self::Panicked(_))
    }
}

/// The pool waited for a connection in vain; why, it does not say.
pub(super) fn is_pool_timeout(error: &DbErr) -> bool {
    matches!(runtime_error(error), Some(sqlx::Error::PoolTimedOut))
}

fn runtime_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

/// The database's own code of what it answered.
fn code_of(error: &DbErr) -> Option<Cow<'_, str>> {
    match runtime_error(error) {
        Some(sqlx::Error::Database(error)) => error.code(),
        _ => None,
    }
}

pub(super) fn is_division_by_zero(error: &DbErr) -> bool {
    code_of(error).is_some_and(|code| code == "22012")
}

/// The server ended a statement that took longer than we allow: PostgreSQL, MariaDB, MySQL.
fn is_timeout(error: &DbErr) -> bool {
    answered_with(error, &["57014"], &[1969, 3024])
}

/// Whether the database answered with one of `codes`, or as MySQL or MariaDB with one of `numbers`.
fn answered_with(error: &DbErr, codes: &[&str], numbers: &[u16]) -> bool {
    let Some(sqlx::Error::Database(error)) = runtime_error(error) else { return false };
    error.code().is_some_and(|code| codes.contains(&code.as_ref()))
        || mysql_number(error.as_ref()).is_some_and(|number| numbers.contains(&number))
}

fn mysql_number(error: &dyn sqlx::error::DatabaseError) -> Option<u16> {
    error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>().map(sqlx::mysql::MySqlDatabaseError::number)
}

impl From<DbFault> for ApiError {
    fn from(fault: DbFault) -> Self {
        match &fault {
            DbFault::Panicked(_)
            | DbFault::CommitAfterError
            | DbFault::StillInUse
            | DbFault::Missing(_)
            | DbFault::SqliteTooOld(_) => {
                tracing::error!(error = %fault, "A request failed for a reason of our own");
                Self::new(Code::InternalError, "The server failed to do this; the log has the cause.")
            }
            DbFault::Ambiguous(_) | DbFault::Deadline => {
                tracing::warn!(error = %fault, "The database did not confirm a change");
                Self::unconfirmed()
            }
            fault if fault.is_conflict() => {
                tracing::warn!(error = %fault, "Others were in the way of a change for too long");
                let detail = "Others are changing the same thing; nothing was changed.";
                Self::new(Code::DependencyUnavailable, detail)
            }
            DbFault::Statement(_)
            | DbFault::Overtaken(_)
            | DbFault::Injected(_)
            | DbFault::NodeNumberLost(_) => {
                tracing::warn!(error = %fault, "The database refused or could not be reached");
                Self::new(Code::DependencyUnavailable, "The database is not available; nothing was changed.")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::error::Error;
    use std::fmt;

    use sea_orm::sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    #[derive(Debug)]
    struct Refused(&'static str);

    impl fmt::Display for Refused {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Refused {}

    impl DatabaseError for Refused {
        fn message(&self) -> &str {
            self.0
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }

        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }
    }

    #[test]
    fn only_a_refusal_tells_that_nothing_stands() {
        for (codes, refused) in [
            (["23505", "40P01", "57014", "25006", "53100", "22012"], true),
            (["57P01", "40003", "58030", "XX000", "08006", "57P03"], false),
            (["1", "5", "517", "787", "2067", "1555"], true),
            (["13", "10", "778", "11", "", "14"], false),
        ] {
            for code in codes {
                let error = sqlx::Error::Database(Box::new(Refused(code)));
                let fault = DbFault::once_sent(DbErr::Query(RuntimeErr::SqlxError(error.into())));
                assert_eq!(fault.is_ambiguous(), !refused, "{code}");
            }
        }
        let cut_off = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(DbFault::once_sent(DbErr::Query(RuntimeErr::SqlxError(cut_off.into()))).is_ambiguous());
    }

    #[test]
    fn an_outage_is_not_what_a_statement_brought_upon_itself() {
        // Code, outage, hold-up.
        let cases = [
            ("57P01", true, false),  // the server shuts down
            ("53100", true, false),  // its disk is full
            ("13", true, false),     // SQLite's disk is full
            ("57014", false, true),  // statement timeout
            ("55P03", false, true),  // lock timeout
            ("40P01", false, true),  // deadlock
            ("5", false, true),      // SQLite is busy
            ("23505", false, false), // a unique key
            ("22021", false, false), // a character it does not take
        ];
        for (code, outage, hold_up) in cases {
            let error = sqlx::Error::Database(Box::new(Refused(code)));
            let fault = DbFault::from(DbErr::Exec(RuntimeErr::SqlxError(error.into())));
            assert_eq!((fault.is_outage(), fault.is_hold_up()), (outage, hold_up), "{code}");
        }
        assert!(DbFault::Deadline.is_hold_up() && !DbFault::Deadline.is_outage());
    }
}
