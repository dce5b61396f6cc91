//! The file: its mode, its schema, and what it survives.

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_file_and_its_journal_are_for_the_owner_only() {
    let store = Store::with_machine().await;
    for suffix in ["", "-wal", "-shm"] {
        let path = store.dir.path().join(format!("x.db{suffix}"));
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let wide = store.dir.path().join("wide.db");
    fs::write(&wide, "").unwrap();
    fs::set_permissions(&wide, fs::Permissions::from_mode(0o644)).unwrap();
    let _open = SqliteDatabase::open(&wide).await.unwrap();
    assert_eq!(mode(&wide), 0o600);
}

#[tokio::test]
async fn the_last_handle_closes_the_file_and_another_finds_everything() {
    let store = Store::with_machine().await;
    let (path, wal) = (store.path(), store.dir.path().join("x.db-wal"));
    let Store { dir: _dir, db } = store;
    assert!(wal.exists());
    drop(db);
    let deadline = Instant::now() + Duration::from_secs(60);
    while wal.exists() {
        assert!(Instant::now() < deadline, "the connection was not closed");
        tokio::task::yield_now().await;
    }
    let again = SqliteDatabase::open(&path).await.unwrap();
    assert_eq!(again.list_machines().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_newer_or_foreign_file_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let foreign = [
        "CREATE TABLE theirs (x)",
        "PRAGMA user_version = 99; PRAGMA application_id = 0x696e667a",
        "PRAGMA user_version = -1",
    ];
    for sql in foreign {
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let before = (fs::read(&path).unwrap(), mode(&path));
        let refused = SqliteDatabase::open(&path).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::DbConnectionError, "{sql}");
        assert_eq!(
            (fs::read(&path).unwrap(), mode(&path)),
            before,
            "{sql}: touched"
        );
        fs::remove_file(&path).unwrap();
    }
    fs::write(
        &path,
        "this is no database, though long enough to be taken for one",
    )
    .unwrap();
    assert_eq!(
        code(SqliteDatabase::open(&path).await),
        ErrorCode::DbConnectionError
    );
    assert_eq!(
        code(SqliteDatabase::open(dir.path()).await),
        ErrorCode::DbConnectionError
    );
    let nowhere = dir.path().join("nowhere/x.db");
    assert_eq!(
        code(SqliteDatabase::open(&nowhere).await),
        ErrorCode::DbConnectionError
    );
    assert!(!nowhere.exists());
}

#[tokio::test]
async fn two_processes_share_the_file() {
    let store = Store::with_machine().await;
    let second = SqliteDatabase::open(&store.path()).await.unwrap();
    let id = vm("vm-1");
    second
        .transition_vm_status(&id, "off", "starting", 1)
        .await
        .unwrap();
    let stale = store
        .db
        .transition_vm_status(&id, "off", "starting", 1)
        .await;
    assert_eq!(code(stale), ErrorCode::VersionConflict);
}

const WRITER: &str = "INFINIZATION_TEST_WRITER";

/// The other half of [`f18_kill_9_between_writes_loses_nothing_that_was_confirmed`]: writes and
/// confirms for ever when that test starts it, and does nothing otherwise.
#[tokio::test]
async fn writer_that_gets_killed() {
    let Some(path) = std::env::var_os(WRITER) else {
        return;
    };
    let db = SqliteDatabase::open(Path::new(&path)).await.unwrap();
    for version in 1.. {
        let step = db
            .transition_vm_status(&vm("vm-1"), "off", "off", version)
            .await;
        println!("\nconfirmed {}", step.unwrap().new_version);
    }
}

#[tokio::test]
async fn f18_kill_9_between_writes_loses_nothing_that_was_confirmed() {
    let store = Store::with_machine().await;
    for _ in 0..3 {
        store.sql("UPDATE machine SET version = 1");
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "file::writer_that_gets_killed", "--nocapture"])
            .env(WRITER, store.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let confirmed =
            lines.filter_map(|line| line.unwrap().strip_prefix("confirmed ")?.parse().ok());
        let last: i64 = confirmed.take(50).last().unwrap();
        writer.kill().unwrap();
        writer.wait().unwrap();

        let after = SqliteDatabase::open(&store.path()).await.unwrap();
        let found = after
            .find_machine_with_config(&vm("vm-1"))
            .await
            .unwrap()
            .unwrap();
        assert!(found.version >= last, "{} < {last}", found.version);
        let sound: String = Connection::open(store.path())
            .unwrap()
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sound, "ok");
    }
}

#[test]
fn f18_a_full_disk_refuses_writes_and_keeps_the_old_state() {
    kit::in_private_network(|| async {
        let disk = SmallDisk::new(512);
        let db = SqliteDatabase::open(&disk.path().join("x.db"))
            .await
            .unwrap();
        let id = vm("vm-1");
        db.insert_machine(machine("vm-1")).await.unwrap();
        disk.fill();

        let many = |_| rule("", 1.0);
        let refused = db
            .set_firewall_rules(&id, (0..2000).map(many).collect())
            .await
            .unwrap_err();
        assert_eq!(refused.code, ErrorCode::UpdateFailed, "{refused}");
        assert_eq!(db.find_machine(&id).await.unwrap().unwrap().status, "off");
        assert!(db.get_firewall_rules(&id).await.unwrap().is_empty());

        disk.relieve();
        db.update_machine_status(&id, "starting", &[])
            .await
            .unwrap();
        assert_eq!(
            db.find_machine(&id).await.unwrap().unwrap().status,
            "starting"
        );
    });
}
