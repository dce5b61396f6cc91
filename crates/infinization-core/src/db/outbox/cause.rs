//! Why a database did not do what it was asked, as far as that decides what becomes of a write. Pure.
//!
//! The codes are the contract's (`error.rs`), what stands behind one of them is in its details:
//! `prismaCode` of a Prisma client, `sqliteCode` of the embedded store.

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
    if let Some(code) = error.details.get("prismaCode").and_then(Value::as_str) {
        return among(&code, &PRISMA_UNREACHABLE, &PRISMA_TROUBLE);
    }
    if let Some(code) = error.details.get("sqliteCode").and_then(Value::as_i64) {
        // The primary code is the low byte of an extended one.
        return among(&(code & 0xff), &SQLITE_UNREACHABLE, &SQLITE_TROUBLE);
    }
    Cause::Doubtful
}

fn among<T: PartialEq>(code: &T, unreachable: &[T], trouble: &[T]) -> Cause {
    if unreachable.contains(code) {
        Cause::Unreachable
    } else if trouble.contains(code) {
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
        let table: [(ErrorCode, Value, Cause); 22] = [
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
