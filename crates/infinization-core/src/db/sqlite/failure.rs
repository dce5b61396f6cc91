//! SQLite's errors in the contract's codes. SQLite names tables and columns, never values, so its
//! words hold no secrets.

use std::fmt::Display;
use std::path::Path;

use rusqlite::ffi;

use crate::db::DbError;
use crate::error::ErrorCode;
use crate::types::VmId;

/// SQLite cannot open the file or use it as our store.
pub(super) fn open(path: &Path, error: &rusqlite::Error) -> DbError {
    let details = with_sqlite_code(ErrorCode::DbConnectionError, error).details;
    DbError {
        details,
        ..unusable(path, error)
    }
}

/// The file cannot be our store.
pub(super) fn unusable(path: &Path, why: &dyn Display) -> DbError {
    DbError::new(
        ErrorCode::DbConnectionError,
        format!("the store {} cannot be opened: {why}", path.display()),
    )
}

/// A read failed.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
pub(super) fn read(error: rusqlite::Error) -> DbError {
    with_sqlite_code(ErrorCode::QueryFailed, &error)
}

/// A write failed. Every foreign key points at a machine, so breaking one means it is gone.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
pub(super) fn write(error: rusqlite::Error) -> DbError {
    let code = match error.sqlite_error() {
        Some(cause) if cause.extended_code == ffi::SQLITE_CONSTRAINT_FOREIGNKEY => {
            ErrorCode::MachineNotFound
        }
        Some(cause) if cause.code == ffi::ErrorCode::ConstraintViolation => {
            ErrorCode::ConstraintViolation
        }
        _ => ErrorCode::UpdateFailed,
    };
    with_sqlite_code(code, &error)
}

/// There is no row for `id`.
pub(super) fn no_machine(id: &VmId) -> DbError {
    DbError::new(
        ErrorCode::MachineNotFound,
        format!("the store has no machine {id}"),
    )
}

fn with_sqlite_code(code: ErrorCode, error: &rusqlite::Error) -> DbError {
    let mut failure = DbError::new(code, format!("the embedded store failed: {error}"));
    if let Some(cause) = error.sqlite_error() {
        let extended = cause.extended_code.into();
        failure.details.insert("sqliteCode".to_owned(), extended);
    }
    failure
}
