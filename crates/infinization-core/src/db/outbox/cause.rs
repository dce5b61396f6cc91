//! Why a database did not do what it was asked, as far as that decides what becomes of a write. Pure.
//!
//! The codes are the contract's (`error.rs`), what stands behind one of them is in its details:
//! `errorCode` of a database (PostgreSQL's SQLSTATE), `prismaCode` of a Prisma client, `sqliteCode` of
//! the embedded store.

use serde_json::Value;

use crate::db::DbError;
use crate::error::ErrorCode;

/// What a failure says of the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nobody answers: whoever else asks would wait in vain too.
    Unreachable,
    /// It answers, and may take the write another time: a deadlock, a full disk.
    Trouble,
    /// It answers and does not say why it refuses. It is asked again, but not for ever.
    Doubtful,
    /// It will never take this write.
    ForGood,
}

/// A Prisma client's codes for a server that cannot be reached or has no connection to give
/// (<https://www.prisma.io/docs/orm/reference/error-reference>).
const PRISMA_UNREACHABLE: [&str; 10] = [
    "P1000", "P1001", "P1002", "P1008", "P1010", "P1011", "P1017", "P2024", "P2028", "P2037",
];
/// A deadlock or a write conflict.
const PRISMA_TROUBLE: [&str; 1] = ["P2034"];
/// What is wrong with the write itself, or with the schema it meets.
const PRISMA_FOR_GOOD: [&str; 28] = [
    "P1012", "P2000", "P2001", "P2002", "P2003", "P2004", "P2005", "P2006", "P2007", "P2008",
    "P2009", "P2011", "P2012", "P2013", "P2014", "P2015", "P2016", "P2017", "P2018", "P2019",
    "P2020", "P2021", "P2022", "P2023", "P2025", "P2026", "P2029", "P2033",
];
/// SQLSTATEs: a read-only server (a standby after a failover), a lock that was not to be had, a
/// cancelled statement; and the classes of want of resources (a full disk) and of system errors.
const STATES_OF_TROUBLE: [&str; 3] = ["25006", "55P03", "57014"];
const CLASSES_OF_TROUBLE: [&str; 2] = ["53", "58"];
/// SQLite's primary result codes: BUSY, LOCKED, CANTOPEN, PROTOCOL.
const SQLITE_UNREACHABLE: [i64; 4] = [5, 6, 14, 15];
/// NOMEM, READONLY, INTERRUPT, IOERR, FULL.
const SQLITE_TROUBLE: [i64; 5] = [7, 8, 9, 10, 13];

impl Cause {
    pub(super) fn of(error: &DbError) -> Self {
        match error.code {
            ErrorCode::DbConnectionError => Self::Unreachable,
            // Only a transition finds another status, and it will find it again.
            _ if error.details.contains_key("currentStatus") => Self::ForGood,
            ErrorCode::UpdateFailed | ErrorCode::QueryFailed => behind(error),
            ErrorCode::Internal => Self::Doubtful,
            _ => Self::ForGood,
        }
    }

    /// Whether another attempt may succeed.
    pub(super) fn may_pass(self) -> bool {
        self != Self::ForGood
    }
}

fn behind(error: &DbError) -> Cause {
    let text = |name| error.details.get(name).and_then(Value::as_str);
    // The database's own word is closer to the matter than its client's.
    if text("errorCode").is_some_and(is_state_of_trouble) {
        return Cause::Trouble;
    }
    if let Some(code) = text("prismaCode") {
        return of_prisma(code);
    }
    if let Some(code) = error.details.get("sqliteCode").and_then(Value::as_i64) {
        // The primary code is the low byte of an extended one.
        return of_sqlite(code & 0xff);
    }
    Cause::Doubtful
}

fn is_state_of_trouble(state: &str) -> bool {
    let of_class = |class: &&str| state.starts_with(*class);
    let is_one = STATES_OF_TROUBLE.contains(&state) || CLASSES_OF_TROUBLE.iter().any(of_class);
    state.len() == 5 && is_one
}

fn of_prisma(code: &str) -> Cause {
    if PRISMA_UNREACHABLE.contains(&code) {
        Cause::Unreachable
    } else if PRISMA_TROUBLE.contains(&code) {
        Cause::Trouble
    } else if PRISMA_FOR_GOOD.contains(&code) {
        Cause::ForGood
    } else {
        Cause::Doubtful
    }
}

fn of_sqlite(code: i64) -> Cause {
    if SQLITE_UNREACHABLE.contains(&code) {
        Cause::Unreachable
    } else if SQLITE_TROUBLE.contains(&code) {
        Cause::Trouble
    } else {
        Cause::ForGood
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        use Cause::{Doubtful, ForGood, Trouble, Unreachable};
        use ErrorCode as Code;
        let table: [(ErrorCode, Value, Cause); 31] = [
            (Code::DbConnectionError, json!({}), Unreachable),
            (Code::UpdateFailed, json!({}), Doubtful),
            (Code::QueryFailed, json!({}), Doubtful),
            (Code::Internal, json!({}), Doubtful),
            (Code::InvalidInput, json!({}), ForGood),
            (Code::ConstraintViolation, json!({}), ForGood),
            (Code::MachineNotFound, json!({}), ForGood),
            (Code::VersionConflict, json!({}), ForGood),
            (
                Code::UpdateFailed,
                json!({ "currentStatus": "off" }),
                ForGood,
            ),
            (
                Code::UpdateFailed,
                json!({ "prismaCode": "P2034" }),
                Trouble,
            ),
            (
                Code::UpdateFailed,
                json!({ "prismaCode": "P1001" }),
                Unreachable,
            ),
            (
                Code::QueryFailed,
                json!({ "prismaCode": "P1017" }),
                Unreachable,
            ),
            (
                Code::UpdateFailed,
                json!({ "prismaCode": "P2024" }),
                Unreachable,
            ),
            // The schema does not fit, a value is too long, a column must not be null.
            (
                Code::UpdateFailed,
                json!({ "prismaCode": "P1012" }),
                ForGood,
            ),
            (
                Code::UpdateFailed,
                json!({ "prismaCode": "P2000" }),
                ForGood,
            ),
            (
                Code::UpdateFailed,
                json!({ "prismaCode": "P2022" }),
                ForGood,
            ),
            (
                Code::ConstraintViolation,
                json!({ "prismaCode": "P2002" }),
                ForGood,
            ),
            // A code that Prisma has not had yet, and one of the server behind a client's.
            (
                Code::UpdateFailed,
                json!({ "prismaCode": "P2999" }),
                Doubtful,
            ),
            (
                Code::UpdateFailed,
                json!({ "prismaCode": "P2010", "errorCode": "53100" }),
                Trouble,
            ),
            (
                Code::UpdateFailed,
                json!({ "errorCode": "42501" }),
                Doubtful,
            ),
            (Code::UpdateFailed, json!({ "errorCode": "25006" }), Trouble),
            (Code::UpdateFailed, json!({ "errorCode": "53100" }), Trouble),
            (Code::UpdateFailed, json!({ "errorCode": "53200" }), Trouble),
            (Code::UpdateFailed, json!({ "errorCode": "55P03" }), Trouble),
            (Code::UpdateFailed, json!({ "errorCode": "57014" }), Trouble),
            (Code::UpdateFailed, json!({ "errorCode": "58030" }), Trouble),
            (Code::UpdateFailed, json!({ "sqliteCode": 5 }), Unreachable),
            // BUSY_SNAPSHOT and IOERR_WRITE are extended codes.
            (
                Code::UpdateFailed,
                json!({ "sqliteCode": 517 }),
                Unreachable,
            ),
            (Code::UpdateFailed, json!({ "sqliteCode": 778 }), Trouble),
            (Code::UpdateFailed, json!({ "sqliteCode": 13 }), Trouble),
            (Code::UpdateFailed, json!({ "sqliteCode": 1 }), ForGood),
        ];
        for (code, details, cause) in table {
            let mut error = DbError::new(code, "no");
            error.details = details.as_object().cloned().unwrap_or_default();
            assert_eq!(Cause::of(&error), cause, "{code:?} {details}");
        }
    }
}
