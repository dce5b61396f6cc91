//! The `secret` table: what must not be readable by whoever gets the file.
//!
//! With a key every secret is here, encrypted, and what was stored before is moved here as the store is
//! opened. Without one a password is a column like others, in a file for its owner alone, and keys of
//! disks are not kept. A secret that cannot be read is an error for whoever asks for it; a store none of
//! whose secrets can be read has been given the wrong key, and is not opened.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, TransactionBehavior, params};
use serde_json::json;

use super::failure;
use super::schema::durably;
use crate::config::DiskKeys;
use crate::db::DbError;
use crate::error::{ErrorCode, Failure};
use crate::secrets::SecretsKey;
use crate::types::{DiskKey, HostPath, Secret, VmId};

/// The name of the display's password.
pub(super) const PASSWORD: &str = "graphic_password";
/// What the names of disks' keys begin with.
const DISK_KEY: &str = "disk_key:";
/// The same of the keys that a change may have left in a disk: a JSON array.
const LEFT_KEYS: &str = "left_disk_keys:";

/// What a store has of keys, by the disks' paths: each, or why it cannot be read.
pub type StoredKeys = BTreeMap<HostPath, Result<DiskKey, DbError>>;

/// How far a change of a disk's key has come, in all files of the disk.
#[derive(Debug, Clone)]
pub struct KeyChange {
    /// The disk's files.
    pub files: Vec<HostPath>,
    /// What opens them from now on, unless that is as it was.
    pub key: Option<DiskKey>,
    /// Which others may open them: they are to be erased.
    pub left: Vec<DiskKey>,
}

/// The key there is. It changes only on the thread that owns the connection.
#[derive(Debug)]
pub(super) struct Vault {
    key: Mutex<Option<SecretsKey>>,
}

impl Vault {
    pub(super) fn new(key: Option<SecretsKey>) -> Self {
        Self {
            key: Mutex::new(key),
        }
    }

    pub(super) fn has_key(&self) -> bool {
        self.key().is_some()
    }

    fn key(&self) -> MutexGuard<'_, Option<SecretsKey>> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, sealed: &Sealed) -> Result<Secret, DbError> {
        let key = self.key();
        let opened = key.as_ref().and_then(|key| key.open(&sealed.text).ok());
        opened.ok_or_else(|| unreadable(sealed, key.is_some()))
    }

    /// Refuses a key that reads nothing, and moves here what is not encrypted yet.
    pub(super) fn prepare(&self, db: &mut Connection) -> Result<(), DbError> {
        let all = sealed(db, None)?;
        let failed = all.iter().map(|one| self.open(one).err());
        let failed: Vec<DbError> = failed.flatten().collect();
        match failed.first() {
            Some(error) if failed.len() == all.len() => return Err(error.clone()),
            Some(error) => tracing::warn!(%error, count = failed.len(), "secrets cannot be read"),
            None => {}
        }
        if let Some(key) = self.key().as_ref() {
            seal_plain(db, key)?;
            empty_journal(db);
        }
        Ok(())
    }

    /// A machine's secret of this name.
    pub(super) fn find(
        &self,
        db: &Connection,
        id: &str,
        name: &str,
    ) -> Result<Option<Secret>, DbError> {
        let all = sealed(db, Some(id))?;
        let found = all.iter().find(|one| one.name == name);
        found.map(|one| self.open(one)).transpose()
    }

    /// Puts the secret in place of the one there is, or removes it. Only with a key.
    pub(super) fn put(
        &self,
        db: &Connection,
        id: &str,
        name: &str,
        secret: Option<&Secret>,
    ) -> Result<(), DbError> {
        match (self.key().as_ref(), secret) {
            (Some(key), Some(secret)) => write(db, id, name, &seal(key, secret)?),
            _ => remove(db, id, name),
        }
    }

    pub(super) fn disk_keys(&self, db: &Connection, id: &VmId) -> Result<StoredKeys, DbError> {
        let mut keys = BTreeMap::new();
        for one in sealed(db, Some(id.as_str()))? {
            let Some(path) = one.name.strip_prefix(DISK_KEY) else {
                continue;
            };
            let Ok(path) = HostPath::parse(path) else {
                continue;
            };
            let key = self.open(&one).and_then(|secret| {
                let key = DiskKey::try_from(secret.reveal().to_owned());
                key.map_err(|_unfit| unreadable(&one, true))
            });
            keys.insert(path, key);
        }
        Ok(keys)
    }

    /// Keeps the keys, beside those of other disks; they are on the disk when it returns, since the images
    /// that only they open may be, too. Of a disk that a change was cut short of, the key that another takes the
    /// place of may open it as well, and is noted with those. Nothing without a key of our own.
    pub(super) fn keep_disk_keys(
        &self,
        db: &mut Connection,
        id: &VmId,
        keys: &DiskKeys,
    ) -> Result<(), DbError> {
        if !self.has_key() {
            return Ok(());
        }
        durably(db, |db| {
            let change = begin(db)?;
            let known = self.disk_keys(&change, id)?;
            let mut left = self.left_disk_keys(&change, id)?;
            for (path, key) in keys {
                let replaced = known.get(path).and_then(|known| known.as_ref().ok());
                let replaced = replaced.filter(|known| *known != key);
                if let (Some(replaced), Some(left)) = (replaced, left.get_mut(path))
                    && !left.contains(replaced)
                {
                    left.push(replaced.clone());
                    self.put(&change, id.as_str(), &left_in(path), Some(&listed(left)))?;
                }
                let secret = Secret::new(key.reveal());
                self.put(&change, id.as_str(), &name_of(path), Some(&secret))?;
            }
            change.commit().map_err(failure::write)
        })
    }

    /// The keys besides that of [`Self::disk_keys`] which may open a machine's disks, by their paths.
    pub(super) fn left_disk_keys(
        &self,
        db: &Connection,
        id: &VmId,
    ) -> Result<BTreeMap<HostPath, Vec<DiskKey>>, DbError> {
        let mut left = BTreeMap::new();
        for one in sealed(db, Some(id.as_str()))? {
            let path = one.name.strip_prefix(LEFT_KEYS).map(HostPath::parse);
            let Some(Ok(path)) = path else {
                continue;
            };
            let secret = self.open(&one)?;
            let keys = serde_json::from_str(secret.reveal());
            left.insert(path, keys.map_err(|_words| unreadable(&one, true))?);
        }
        Ok(left)
    }

    /// Notes how far a change of a disk's key has come, all of it at once and on the disk when it returns.
    /// Nothing without a key of our own.
    pub(super) fn note_disk_keys(
        &self,
        db: &mut Connection,
        id: &VmId,
        change: &KeyChange,
    ) -> Result<(), DbError> {
        if !self.has_key() {
            return Ok(());
        }
        let left = (!change.left.is_empty()).then(|| listed(&change.left));
        durably(db, |db| {
            let noted = begin(db)?;
            for path in &change.files {
                if let Some(key) = &change.key {
                    let secret = Secret::new(key.reveal());
                    self.put(&noted, id.as_str(), &name_of(path), Some(&secret))?;
                }
                self.put(&noted, id.as_str(), &left_in(path), left.as_ref())?;
            }
            noted.commit().map_err(failure::write)
        })
    }

    /// Encrypts everything with another key, or nothing. Answers how many secrets there are. Once it is
    /// committed nothing fails it any more: the new key is the one that reads.
    pub(super) fn rotate(&self, db: &mut Connection, new: SecretsKey) -> Result<usize, DbError> {
        let count = durably(db, |db| self.seal_anew(db, &new))?;
        *self.key() = Some(new);
        empty_journal(db);
        Ok(count)
    }

    fn seal_anew(&self, db: &mut Connection, new: &SecretsKey) -> Result<usize, DbError> {
        let all = sealed(db, None)?;
        let change = begin(db)?;
        for one in &all {
            let secret = self.open(one)?;
            write(&change, &one.machine, &one.name, &seal(new, &secret)?)?;
        }
        move_plain(&change, new)?;
        let count = sealed(&change, None)?.len();
        change.commit().map_err(failure::write)?;
        Ok(count)
    }
}

/// The name of a disk's key.
fn name_of(disk: &HostPath) -> String {
    format!("{DISK_KEY}{disk}")
}

fn left_in(disk: &HostPath) -> String {
    format!("{LEFT_KEYS}{disk}")
}

fn listed(keys: &[DiskKey]) -> Secret {
    let texts: Vec<_> = keys.iter().map(DiskKey::reveal).collect();
    Secret::new(json!(texts).to_string())
}

pub(super) fn forget_disk_keys(
    db: &mut Connection,
    id: &VmId,
    disks: &[HostPath],
) -> Result<(), DbError> {
    let change = begin(db)?;
    for disk in disks {
        for name in [name_of(disk), left_in(disk)] {
            remove(&change, id.as_str(), &name)?;
        }
    }
    change.commit().map_err(failure::write)
}

/// A row.
struct Sealed {
    machine: String,
    name: String,
    text: String,
}

/// The rows of one machine, or of all.
fn sealed(db: &Connection, id: Option<&str>) -> Result<Vec<Sealed>, DbError> {
    let sql = "SELECT machine_id, name, sealed FROM secret WHERE ?1 IS NULL OR machine_id = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Sealed {
            machine: row.get(0)?,
            name: row.get(1)?,
            text: row.get(2)?,
        })
    };
    db.prepare_cached(sql)
        .and_then(|mut statement| statement.query_map([id], read)?.collect())
        .map_err(failure::read)
}

/// Moves passwords out of their column.
fn seal_plain(db: &mut Connection, key: &SecretsKey) -> Result<(), DbError> {
    let change = begin(db)?;
    if !move_plain(&change, key)? {
        return Ok(());
    }
    change.commit().map_err(failure::write)
}

/// Says whether there was any.
fn move_plain(db: &Connection, key: &SecretsKey) -> Result<bool, DbError> {
    let plain = plain_passwords(db)?;
    for (machine, secret) in &plain {
        write(db, machine, PASSWORD, &seal(key, secret)?)?;
    }
    let sql = "UPDATE machine_configuration SET graphic_password = NULL \
         WHERE graphic_password IS NOT NULL";
    db.execute(sql, []).map_err(failure::write)?;
    Ok(!plain.is_empty())
}

/// The write-ahead journal holds pages as they were, and so perhaps secrets nobody encrypted. One that
/// cannot be emptied now is as the store is opened the next time: a kill may have come between, too.
fn empty_journal(db: &Connection) {
    let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
    let why = match db.query_row(sql, [], |row| row.get("busy")) {
        Ok(false) => return,
        Ok(true) => "another process reads the store".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(%why, "SQLite's journal was not emptied: it may hold secrets as they were");
}

fn plain_passwords(db: &Connection) -> Result<Vec<(String, Secret)>, DbError> {
    let sql = "SELECT machine_id, graphic_password FROM machine_configuration \
         WHERE graphic_password IS NOT NULL";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, Secret::new(row.get::<_, String>(1)?)));
    db.prepare(sql)
        .and_then(|mut statement| statement.query_map([], read)?.collect())
        .map_err(failure::read)
}

fn begin(db: &mut Connection) -> Result<rusqlite::Transaction<'_>, DbError> {
    db.transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failure::write)
}

fn write(db: &Connection, machine: &str, name: &str, sealed: &str) -> Result<(), DbError> {
    let sql = "INSERT INTO secret (machine_id, name, sealed) VALUES (?1, ?2, ?3) \
         ON CONFLICT (machine_id, name) DO UPDATE SET sealed = excluded.sealed";
    db.execute(sql, params![machine, name, sealed])
        .map(drop)
        .map_err(failure::write)
}

fn remove(db: &Connection, machine: &str, name: &str) -> Result<(), DbError> {
    let sql = "DELETE FROM secret WHERE machine_id = ?1 AND name = ?2";
    db.execute(sql, params![machine, name])
        .map(drop)
        .map_err(failure::write)
}

fn seal(key: &SecretsKey, secret: &Secret) -> Result<String, DbError> {
    key.seal(secret)
        .map_err(|error| DbError::new(ErrorCode::UpdateFailed, Failure::from(error).to_string()))
}

/// Says which secret it is, and whether there is a key at all.
fn unreadable(sealed: &Sealed, has_key: bool) -> DbError {
    let why = if has_key {
        "it was encrypted with another secretsKey, or was changed since"
    } else {
        "it is encrypted, and no secretsKey is given"
    };
    let message = format!(
        "the secret {} of machine {} cannot be read: {why}",
        sealed.name, sealed.machine
    );
    let mut error = DbError::new(ErrorCode::DbSecretUnreadable, message);
    let facts = [("machine", &sealed.machine), ("secret", &sealed.name)];
    let facts = facts.map(|(key, value)| (key.to_owned(), value.as_str().into()));
    error.details.extend(facts);
    error
}
