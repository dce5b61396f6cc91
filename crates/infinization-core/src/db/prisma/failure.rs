//! A Prisma client's errors in the contract's codes.
//!
//! Which one it is decides the code it carries (`P2025`), never its English; the exceptions are a
//! query that a client does not know how to make, and a connection that is cut, which have no code.

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

/// What the driver of PostgreSQL says of a connection that is cut, in errors without a code.
const CUT: [&str; 6] = [
    "Cannot use a pool after calling end on the pool",
    "Client has encountered a connection error and is not queryable",
    "Client was closed and is not queryable",
    "Connection terminated",
    "Connection terminated unexpectedly",
    "timeout exceeded when trying to connect",
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
    let conflicts = ["P2034", "TransactionWriteConflict", "40001", "40P01"];
    codes(error).any(|code| conflicts.contains(&code))
}

/// The client's code, and the database's own behind it.
fn codes(error: &PortError) -> impl Iterator<Item = &str> {
    error.code.as_deref().into_iter().chain(state(error))
}

/// The SQLSTATE behind a client's error: of the driver, or as the query engine of Prisma 6 prints an
/// error that it has no code for.
fn state(error: &PortError) -> Option<&str> {
    let of_driver = driver(error)["originalCode"].as_str();
    let printed = || {
        let (_, rest) = error.message.split_once("PostgresError { code: \"")?;
        rest.split('"').next()
    };
    of_driver.or_else(printed)
}

/// What the driver told the client.
fn driver(error: &PortError) -> &Value {
    &error.details["driverAdapterError"]["cause"]
}

/// The fields, tables and calls that `error` says are not there; empty when it says nothing of the kind.
pub(super) fn missing(error: &PortError) -> Vec<String> {
    match error.code.as_deref() {
        _ if error.name == PortError::MISSING => texts(&error.details["missing"]),
        Some("P2021" | "TableDoesNotExist") => one("table", error),
        Some("P2022" | "ColumnNotFound") => one("column", error),
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
    if let Some(state) = state(error) {
        details.insert("errorCode".to_owned(), json!(state));
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
        || (error.code.is_none() && CUT.contains(&error.message.as_str()))
        || codes(error).any(is_lost_connection)
        || error.name == "PrismaClientInitializationError"
        || (is_prisma_code(code) && code.starts_with("P1"))
        || ["P2024", "P2028", "P2037"].contains(&code)
        || UNREACHABLE.contains(&code)
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

/// The name of the table or column that the error's facts have, or the whole sentence: the database's
/// own, if it is there.
fn one(kind: &str, error: &PortError) -> Vec<String> {
    let driver = driver(error);
    let named = error.details[kind].as_str().or(driver[kind].as_str());
    let sentence = driver["originalMessage"].as_str();
    let name = named.or_else(|| sentence.map(|sentence| subject(sentence).unwrap_or(sentence)));
    vec![name.unwrap_or(&error.message).to_owned()]
}

/// `column Machine.version does not exist`: `Machine.version`.
fn subject(sentence: &str) -> Option<&str> {
    let (subject, _) = sentence.split_once(" does not exist")?;
    let name = subject.rsplit(' ').next()?;
    Some(name.trim_matches('"'))
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
