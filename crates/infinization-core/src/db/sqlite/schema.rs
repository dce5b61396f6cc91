//! Opening the file and the tables in it. `PRAGMA user_version` counts the migrations that ran;
//! they are only ever appended.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::failure;
use crate::db::DbError;

/// Marks the file as ours in SQLite's header (`infz`).
const APPLICATION_ID: i32 = 0x696e_667a;
/// How long a write waits for another process (an operator's `sqlite3`, a backup) to let go.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const MIGRATIONS: &[&str] = &[
    include_str!("migrations/001_machines.sql"),
    include_str!("migrations/002_secrets.sql"),
];

/// Opens or makes the file with mode 0600 (passwords are in it) and runs what migrations it lacks.
pub(super) fn open(path: &Path) -> Result<Connection, DbError> {
    create_private(path).map_err(|error| failure::unusable(path, &error))?;
    // No URI: a `?` or `file:` in a path is a character, not an option.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let failed = |error| failure::open(path, &error);
    let mut db = Connection::open_with_flags(path, flags).map_err(failed)?;
    db.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    check_ours(path, &db)?;
    // Owner-only before the journal appears, which takes over the file's mode.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|error| failure::unusable(path, &error))?;
    configure(&db).map_err(failed)?;
    migrate(&mut db).map_err(failed)?;
    Ok(db)
}

/// Makes the file if there is none. An existing one is not even opened: closing a descriptor of
/// ours would drop the locks another connection of this process holds on it.
fn create_private(path: &Path) -> io::Result<()> {
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(path)?.is_file() {
                Ok(())
            } else {
                Err(io::Error::other("it is not a regular file"))
            }
        }
        made => made.map(drop),
    }
}

/// Refuses a newer schema and other programs' databases, before anything is written.
fn check_ours(path: &Path, db: &Connection) -> Result<(), DbError> {
    let failed = |error| failure::open(path, &error);
    let version = pragma(db, "user_version").map_err(failed)?;
    let known = MIGRATIONS.len();
    if usize::try_from(version).map_or(true, |version| version > known) {
        let why = format!(
            "a newer release wrote it (schema {version}, this release knows up to {known})"
        );
        return Err(failure::unusable(path, &why));
    }
    let application = pragma(db, "application_id").map_err(failed)?;
    let tables: i64 = db
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    if application != i64::from(APPLICATION_ID) && tables > 0 {
        return Err(failure::unusable(path, &"it is another program's database"));
    }
    Ok(())
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.pragma_update(None, "journal_mode", "WAL")?;
    // With WAL, NORMAL never corrupts; a power cut may only undo the last transactions.
    set_synchronous(db, "NORMAL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    // What is deleted (a password) does not stay readable in free pages.
    db.pragma_update(None, "secure_delete", true)
}

/// Has what `change` commits be on the disk when it returns.
pub(super) fn durably<T>(
    db: &mut Connection,
    change: impl FnOnce(&mut Connection) -> Result<T, DbError>,
) -> Result<T, DbError> {
    set_synchronous(db, "FULL").map_err(failure::write)?;
    let changed = change(db);
    if let Err(error) = set_synchronous(db, "NORMAL") {
        tracing::warn!(%error, "the store goes on with a flush for each change");
    }
    changed
}

fn set_synchronous(db: &Connection, how: &str) -> rusqlite::Result<()> {
    db.pragma_update(None, "synchronous", how)
}

fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = usize::try_from(pragma(&transaction, "user_version")?).unwrap_or(0);
    for (version, migration) in (1_i64..).zip(MIGRATIONS).skip(done) {
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    transaction.commit()
}

fn pragma(db: &Connection, name: &str) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, name, |row| row.get(0))
}
