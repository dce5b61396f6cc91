//! A Prisma client's errors in the contract's codes.
//!
//! Which one it is decides the code it carries (`P2025`), never its English; the one exception is a
//! query that a client does not know how to make, which has no code.

use serde_json::{Map, Value, json};

use crate::db::DbError;
use crate::db::port::PortError;
use crate::error::ErrorCode;

/// What is told of an error's own facts.
const FACTS: [&str; 4] = ["modelName", "target", "table", "column"];
/// What a driver calls a database it cannot reach, where the client has not translated it.
const UNREACHABLE: [&str; 7] = [
    "AuthenticationFailed",
    "ConnectionClosed",
    "DatabaseDoesNotExist",
    "DatabaseNotReachable",
    "SocketTimeout",
    "TlsConnectionError",
    "TooManyConnections",
];

/// A read failed.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
pub(super) fn read(error: PortError) -> DbError {
    told(&error, ErrorCode::QueryFailed)
}

/// A write failed.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
pub(super) fn write(error: PortError) -> DbError {
    told(&error, ErrorCode::UpdateFailed)
}

/// The database gave up one of two transactions that were in each other's way; it may be tried again.
pub(super) fn is_write_conflict(error: &PortError) -> bool {
    let code = error.code.as_deref().unwrap_or_default();
    ["P2034", "TransactionWriteConflict", "40001", "40P01"].contains(&code)
}

/// The fields, tables and calls that `error` says are not there; empty when it says nothing of the kind.
pub(super) fn missing(error: &PortError) -> Vec<String> {
    match error.code.as_deref() {
        _ if error.name == PortError::MISSING => texts(&error.details["missing"]),
        Some("P2021" | "TableDoesNotExist") => one(&error.details["table"], error),
        Some("P2022" | "ColumnNotFound") => one(&error.details["column"], error),
        _ if error.name == "PrismaClientValidationError" => {
            unknown_name(&error.message).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// `SCHEMA_MISMATCH`, with what is missing.
pub(super) fn mismatch(missing: &[String]) -> DbError {
    let list = missing.join(", ");
    let message = format!("the database or its client lacks {list}");
    with(
        DbError::new(ErrorCode::SchemaMismatch, message),
        "missing",
        json!(missing),
    )
}

fn told(error: &PortError, otherwise: ErrorCode) -> DbError {
    let missing = missing(error);
    if !missing.is_empty() {
        return mismatch(&missing);
    }
    let code = code_of(error, otherwise);
    let mut words = format!("the database failed: {}", error.message);
    let mut details = facts(&error.details);
    let theirs = if is_write_conflict(error) {
        Some("P2034")
    } else {
        error.code.as_deref()
    };
    if let Some(code) = theirs {
        words = format!("{words} ({code})");
        let name = if is_prisma_code(code) {
            "prismaCode"
        } else {
            "errorCode"
        };
        details.insert(name.to_owned(), json!(code));
    }
    DbError {
        details,
        ..DbError::new(code, words)
    }
}

fn code_of(error: &PortError, otherwise: ErrorCode) -> ErrorCode {
    match error.code.as_deref() {
        _ if is_unreachable(error) => ErrorCode::DbConnectionError,
        Some("P2002" | "UniqueConstraintViolation") => ErrorCode::ConstraintViolation,
        // Every foreign key that is written points at a machine, so breaking one means it is gone.
        Some("P2025" | "P2003" | "ForeignKeyConstraintViolation") => ErrorCode::MachineNotFound,
        _ => otherwise,
    }
}

/// `P1…` is about reaching the database; of the others, these are about getting a connection or
/// keeping it long enough.
fn is_unreachable(error: &PortError) -> bool {
    let code = error.code.as_deref().unwrap_or_default();
    error.is_connection_failure()
        || error.name == "PrismaClientInitializationError"
        || (is_prisma_code(code) && code.starts_with("P1"))
        || ["P2024", "P2028", "P2037"].contains(&code)
        || UNREACHABLE.contains(&code)
        || is_lost_connection(code)
}

/// PostgreSQL's own classes: connection exceptions, shutting down, too many connections.
fn is_lost_connection(state: &str) -> bool {
    state.len() == 5 && (state.starts_with("08") || state.starts_with("57P") || state == "53300")
}

fn is_prisma_code(code: &str) -> bool {
    code.len() == 5
        && code.starts_with('P')
        && code[1..].bytes().all(|digit| digit.is_ascii_digit())
}

/// ``Unknown field `version` for select statement on model `Machine`.`` and
/// ``Unknown argument `nodeId`.``: `Machine.version`, `nodeId`.
fn unknown_name(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("Unknown ")?;
    let kind = rest.split(' ').next()?;
    if !["field", "argument", "arg"].contains(&kind) {
        return None;
    }
    let field = quoted(rest)?;
    let model = rest
        .split_once("on model ")
        .and_then(|(_, rest)| quoted(rest));
    Some(match model {
        Some(model) => format!("{model}.{field}"),
        None => field.to_owned(),
    })
}

fn quoted(text: &str) -> Option<&str> {
    text.split('`').nth(1)
}

/// The name the error's facts have, or its whole sentence.
fn one(name: &Value, error: &PortError) -> Vec<String> {
    vec![name.as_str().unwrap_or(&error.message).to_owned()]
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

fn facts(details: &Value) -> Map<String, Value> {
    FACTS
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), details.get(name)?.clone())))
        .collect()
}

fn with(mut error: DbError, name: &str, fact: Value) -> DbError {
    error.details.insert(name.to_owned(), fact);
    error
}
