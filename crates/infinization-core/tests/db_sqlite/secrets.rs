//! Passwords and keys of disks in the embedded store, with a `secretsKey` and without.

use infinization_core::config::DiskKeys;
use infinization_core::db::sqlite::KeyChange;
use infinization_core::secrets::SecretsKey;
use infinization_core::types::{DiskKey, HostPath};

use super::*;

const PASSWORD: &str = "hunter2-and-more";

fn key(byte: u8) -> Option<SecretsKey> {
    SecretsKey::from_bytes(&[byte; 32])
}

async fn open(path: &Path, byte: Option<u8>) -> Result<Arc<SqliteDatabase>, DbError> {
    SqliteDatabase::open_with_key(path, byte.and_then(key)).await
}

async fn set_password(db: &SqliteDatabase, id: &str) {
    let update = ConfigurationUpdate {
        graphic_password: Some(Some(Secret::new(PASSWORD))),
        ..ConfigurationUpdate::default()
    };
    let set = db.update_machine_configuration(&vm(id), update).await;
    set.unwrap();
}

async fn password(db: &SqliteDatabase) -> Result<Option<String>, DbError> {
    let found = db.find_machine_with_config(&vm("vm-1")).await?.unwrap();
    let password = found.configuration.unwrap().graphic_password;
    Ok(password.map(|password| password.reveal().to_owned()))
}

fn keys(path: &str, text: &str) -> DiskKeys {
    let key = DiskKey::try_from(text.to_owned()).unwrap();
    DiskKeys::from([(HostPath::parse(path).unwrap(), key)])
}

/// Whether a text is anywhere in the store's files.
fn is_readable(dir: &Path, text: &str) -> bool {
    let files = fs::read_dir(dir).unwrap().flatten();
    files.into_iter().any(|file| {
        let bytes = fs::read(file.path()).unwrap();
        bytes.windows(text.len()).any(|at| at == text.as_bytes())
    })
}

#[tokio::test]
async fn with_a_key_no_secret_is_readable_in_the_file() {
    let store = Store::with_machine().await;
    set_password(&store.db, "vm-1").await;
    let disk = keys("/d/a.qcow2", "the-disk's-key");
    store
        .db
        .keep_disk_keys(&vm("vm-1"), disk.clone())
        .await
        .unwrap();
    assert!(is_readable(store.dir.path(), PASSWORD));
    let none = store.db.disk_keys(&vm("vm-1")).await.unwrap();
    assert!(none.is_empty(), "without a key, none is kept");
    let Store { dir, db } = store;
    drop(db);

    // What was stored before is encrypted as the store is opened.
    let db = open(&dir.path().join("x.db"), Some(1)).await.unwrap();
    assert!(!is_readable(dir.path(), PASSWORD));
    assert_eq!(password(&db).await.unwrap().as_deref(), Some(PASSWORD));
    set_password(&db, "vm-1").await;
    db.keep_disk_keys(&vm("vm-1"), disk.clone()).await.unwrap();
    db.keep_disk_keys(&vm("vm-1"), keys("/d/b.qcow2", "another"))
        .await
        .unwrap();
    assert!(!is_readable(dir.path(), PASSWORD));
    assert!(!is_readable(dir.path(), "the-disk's-key"));
    let kept = db.disk_keys(&vm("vm-1")).await.unwrap();
    assert_eq!(kept.len(), 2);
    let first = kept.into_values().next().unwrap().unwrap();
    assert_eq!(Some(&first), disk.values().next());

    let none = ConfigurationUpdate {
        graphic_password: Some(None),
        ..ConfigurationUpdate::default()
    };
    db.update_machine_configuration(&vm("vm-1"), none)
        .await
        .unwrap();
    assert_eq!(password(&db).await.unwrap(), None);
    db.delete_machine(&vm("vm-1")).await.unwrap();
    let rows = Connection::open(dir.path().join("x.db")).unwrap();
    let count: i64 = rows
        .query_row("SELECT count(*) FROM secret", [], |row| row.get(0))
        .unwrap();
    assert_eq!(count, 0);
}

#[tokio::test]
async fn b38_a_change_of_a_disk_s_key_is_noted_with_what_it_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("x.db"), Some(1)).await.unwrap();
    let id = vm("vm-1");
    db.insert_machine(machine("vm-1")).await.unwrap();
    let [old, new] = ["a \"strange\" old one", "the new one"];
    let change = |new: Option<&str>, left: &[&str]| {
        let key = |text: &str| DiskKey::try_from(text.to_owned()).unwrap();
        KeyChange {
            files: keys("/d/a.qcow2", old).into_keys().collect(),
            key: new.map(key),
            left: left.iter().map(|text| key(text)).collect(),
        }
    };
    db.keep_disk_keys(&id, keys("/d/a.qcow2", old))
        .await
        .unwrap();
    let steps = [
        (change(None, &[new]), old, vec![new]),
        (
            change(Some(new), &[old, "another"]),
            new,
            vec![old, "another"],
        ),
        (change(None, &[]), new, vec![]),
    ];
    for (step, stored, left) in steps {
        db.note_disk_keys(&id, step).await.unwrap();
        let found = db.disk_keys(&id).await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            found.into_values().next().unwrap().unwrap().reveal(),
            stored
        );
        let found = db.left_disk_keys(&id).await.unwrap().into_values();
        let found: Vec<_> = found.flatten().collect();
        let found: Vec<_> = found.iter().map(DiskKey::reveal).collect();
        assert_eq!(found, left);
        assert!(!is_readable(dir.path(), old) && !is_readable(dir.path(), new));
    }
    // A start with another key than the one that is stored.
    db.note_disk_keys(&id, change(None, &[old])).await.unwrap();
    db.keep_disk_keys(&id, keys("/d/a.qcow2", old))
        .await
        .unwrap();
    let found = db.left_disk_keys(&id).await.unwrap().into_values();
    let found: Vec<_> = found.flatten().collect();
    assert!(found.iter().map(DiskKey::reveal).eq([old, new]));
    db.forget_disk_keys(&id, change(None, &[]).files)
        .await
        .unwrap();
    assert!(db.left_disk_keys(&id).await.unwrap().is_empty());
    assert!(db.disk_keys(&id).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_key_that_is_missing_or_wrong_is_told_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let db = open(&path, Some(1)).await.unwrap();
    for id in ["vm-1", "vm-2"] {
        db.insert_machine(machine(id)).await.unwrap();
        set_password(&db, id).await;
    }
    drop(db);
    for byte in [None, Some(2)] {
        let refused = open(&path, byte).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::DbSecretUnreadable);
        assert!(!format!("{refused:?}").contains(PASSWORD));
    }

    // One that was changed is an error of its machine alone.
    let sql = "UPDATE secret SET sealed = replace(sealed, substr(sealed, -3), 'AA=') WHERE machine_id = 'vm-1'";
    Connection::open(&path).unwrap().execute(sql, []).unwrap();
    let db = open(&path, Some(1)).await.unwrap();
    let refused = password(&db).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::DbSecretUnreadable);
    assert_eq!(refused.details["machine"], "vm-1");
    assert_eq!(refused.details["secret"], "graphic_password");
    assert!(db.get_machine(&vm("vm-1")).await.unwrap().is_some());
    assert!(db.find_machine_with_config(&vm("vm-2")).await.is_ok());
    assert!(db.find_machine(&vm("vm-1")).await.unwrap().is_some());
    set_password(&db, "vm-1").await;
    assert_eq!(password(&db).await.unwrap().as_deref(), Some(PASSWORD));
}

/// A reader keeps the journal from being emptied, which fails nothing, and is made up for.
#[tokio::test]
async fn the_journal_is_emptied_of_plain_secrets_as_soon_as_it_can_be() {
    let store = Store::with_machine().await;
    set_password(&store.db, "vm-1").await;
    let path = store.path();
    let mut reader = Connection::open(&path).unwrap();
    let read = reader.transaction().unwrap();
    read.query_row("SELECT count(*) FROM machine", [], |_row| Ok(()))
        .unwrap();
    assert_eq!(store.db.rotate_key(key(1).unwrap()).await.unwrap(), 1);
    assert_eq!(
        password(&store.db).await.unwrap().as_deref(),
        Some(PASSWORD)
    );
    assert!(is_readable(store.dir.path(), PASSWORD), "in the journal");
    drop(read);
    let again = open(&path, Some(1)).await.unwrap();
    assert!(!is_readable(store.dir.path(), PASSWORD));
    assert_eq!(password(&again).await.unwrap().as_deref(), Some(PASSWORD));
}

#[tokio::test]
async fn another_key_takes_over_all_secrets_or_none() {
    let store = Store::with_machine().await;
    set_password(&store.db, "vm-1").await;
    let (first, second) = (key(1).unwrap(), key(2).unwrap());
    assert_eq!(store.db.rotate_key(first).await.unwrap(), 1);
    assert!(!is_readable(store.dir.path(), PASSWORD));
    store
        .db
        .keep_disk_keys(&vm("vm-1"), keys("/d/a.qcow2", "k"))
        .await
        .unwrap();
    assert_eq!(store.db.rotate_key(second.clone()).await.unwrap(), 2);
    assert_eq!(
        password(&store.db).await.unwrap().as_deref(),
        Some(PASSWORD)
    );
    let path = store.path();
    let db = open(&path, Some(2)).await.unwrap();
    assert_eq!(db.disk_keys(&vm("vm-1")).await.unwrap().len(), 1);
    assert!(open(&path, Some(1)).await.is_err());

    store.sql("UPDATE secret SET sealed = 'x:y:z' WHERE name = 'graphic_password'");
    let refused = db.rotate_key(key(3).unwrap()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::DbSecretUnreadable);
    let kept = db.disk_keys(&vm("vm-1")).await.unwrap();
    assert!(kept.values().all(Result::is_ok), "the old key holds");
}
