//! Which errors of the database a retry can mend.

/// The code on the subject's row when the database will never take a statement.
pub const REFUSED: &str = "database_refused";

/// Whether the same statement with the same values is refused again, whoever else does what.
///
/// Only what the SQLSTATE says for certain. Everything else is tried again, and the attempts bound
/// it: a connection, a lock, a timeout, a full disk or a failover passes; a right or a schema that
/// is missing while a new version is rolled out is mended by people; and a row that another one
/// collides with (23503, 23505) or a status that somebody moved on meanwhile is gone at the next look.
pub fn is_final(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    let code = error.code().unwrap_or_default();
    match code.as_ref() {
        // A CHECK of a table; without a name it was raised by a trigger, about the row's state.
        "23514" => error.constraint().is_some(),
        "23502" | "P0001" => true,
        // May come and go with the rights and the rows of others.
        "42501" => false,
        // Cardinality, data, syntax or names, WITH CHECK OPTION, a limit of the program.
        code => ["21", "22", "42", "44", "54"].contains(&code.get(..2).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobError;
    use sqlx::error::{DatabaseError, ErrorKind};
    use std::borrow::Cow;

    #[derive(Debug, thiserror::Error)]
    #[error("SQLSTATE {code}")]
    struct Refusal {
        code: &'static str,
        constraint: Option<&'static str>,
    }

    impl DatabaseError for Refusal {
        fn message(&self) -> &str {
            self.code
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.code.into())
        }

        fn constraint(&self) -> Option<&str> {
            self.constraint
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }

        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }
    }

    fn verdict(code: &'static str, constraint: Option<&'static str>) -> &'static str {
        word(sqlx::Error::Database(Box::new(Refusal { code, constraint })))
    }

    fn word(error: sqlx::Error) -> &'static str {
        match JobError::from(error) {
            JobError::Fatal { code: REFUSED, .. } => "fatal",
            JobError::Transient(_) => "again",
            JobError::Lost => "lost",
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_database_will_never_take_is_fatal_and_what_passes_is_tried_again() {
        let table = [
            // value out of range, too long, bad date, NUL in a text, bad JSON
            ("fatal", &["22003", "22001", "22007", "22021", "22P02", "22P05"][..]),
            ("fatal", &["21000", "23502", "44000", "54000", "P0001"]),
            // syntax, undefined column, table and function, wrong type
            ("fatal", &["42601", "42703", "42P01", "42883", "42804"]),
            // another row, now: foreign key, unique key, exclusion; a right
            ("again", &["23503", "23505", "23P01", "42501"]),
            // serialization, deadlock, lock, statement and idle timeouts
            ("again", &["40001", "40P01", "55P03", "57014", "25P03", "25P04"]),
            // shutdown, crash, starting up, dropped; read-only after a failover; a stale plan
            ("again", &["57P01", "57P02", "57P03", "57P05", "25006", "0A000", "26000"]),
            // disk full, out of memory, too many connections; connections; the server's own faults
            ("again", &["53100", "53200", "53300", "08000", "08003", "08006", "XX000", "58030"]),
            ("again", &["", "9", "é9999"]),
            ("lost", &["GM001"]),
        ];
        for (expected, codes) in table {
            for code in codes {
                assert_eq!(verdict(code, None), expected, "{code}");
            }
        }
    }

    #[test]
    fn a_check_of_a_table_is_fatal_and_one_of_a_trigger_is_not() {
        assert_eq!(verdict("23514", Some("chunks_content_check")), "fatal");
        assert_eq!(verdict("23514", None), "again");
    }

    #[test]
    fn an_error_on_the_way_to_the_database_is_tried_again() {
        for error in [
            sqlx::Error::PoolTimedOut,
            sqlx::Error::PoolClosed,
            sqlx::Error::RowNotFound,
            sqlx::Error::WorkerCrashed,
            sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()),
            sqlx::Error::Protocol("the stream broke off".into()),
        ] {
            assert_eq!(word(error), "again");
        }
    }
}
