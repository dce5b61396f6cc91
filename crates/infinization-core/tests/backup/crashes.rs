//! Processes that are killed in the middle.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// What the process that is killed is told: the directory to work in.
const TOLD: &str = "INFINIZATION_BACKUP_TO_BE_KILLED";

/// Not a test of its own: the process that [`f22_a_killed_process_leaves_the_previous_link`] kills.
#[tokio::test]
async fn the_one_that_is_killed() {
    let Some(dir) = std::env::var_os(TOLD) else {
        return;
    };
    let dir = PathBuf::from(dir);
    let service = BackupService::new(path(&dir.join("backups")), Arc::new(|_| ()));
    let request = fs::read(dir.join("request.json")).unwrap();
    let request = CreateBackup::read(serde_json::from_slice(&request).unwrap()).unwrap();
    let made = service
        .create(request, Arc::new(Stopped), CancellationToken::new())
        .await;
    made.unwrap();
}

fn begin_and_kill(place: &Place, request: &Value, seen: impl Fn() -> bool) {
    fs::write(place.path("request.json"), request.to_string()).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "crashes::the_one_that_is_killed",
            "--test-threads=1",
        ])
        .env(TOLD, place.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until(&mut child, seen);
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_file(place.path("request.json")).unwrap();
}

/// There is no event for a file that another process makes.
fn wait_until(child: &mut Child, seen: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !seen() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "it never came so far");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn folders(place: &Place) -> Vec<String> {
    names_in(&place.root().join("vm-1"))
}

/// Whether a folder that is not among the `known` has a file of this name.
fn has_new(place: &Place, known: &[String], name: &str) -> bool {
    let machine = place.root().join("vm-1");
    let mut new = folders(place).into_iter();
    new.any(|folder| !known.contains(&folder) && machine.join(folder).join(name).exists())
}

#[tokio::test]
async fn f22_a_killed_process_leaves_the_previous_link() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 32);
    disk.write(0, 24 << 20, 1);
    let full = place.full(&[&disk]).await;
    let held = disk.holds.clone();
    disk.write(0, 16 << 20, 2);
    let mut request = place.request("INCREMENTAL", &[&disk]);
    request["parentBackupId"] = json!(full);
    for seen in ["backup.json", "disk-0.qcow2"] {
        let known = folders(&place);
        begin_and_kill(&place, &request, || has_new(&place, &known, seen));
        // Whoever comes next finds nothing in progress, and the link before as it was.
        for one in place.list().await {
            let status = one["status"].as_str().unwrap();
            assert!(["COMPLETED", "FAILED"].contains(&status), "{one}");
        }
        place.comes_back(&full, &held).await;
    }
    let next = place.incremental(&[&disk], &full).await;
    place.comes_back(&next, &disk.holds).await;
    disk.is_intact();
    for one in place.list().await {
        if one["status"] == json!("FAILED") {
            assert_eq!(place.files(one["id"].as_str().unwrap()), ["backup.json"]);
        }
    }
}

#[tokio::test]
async fn f19_a_killed_qemu_img_fails_the_backup_and_leaves_no_data() {
    let place = Place::new();
    let mut disk = place.disk("a.qcow2", 32);
    disk.write(0, 32 << 20, 1);
    let full = place.full(&[&disk]).await;
    let killer = std::thread::spawn({
        let disk = disk::text(&disk.path).to_owned();
        move || kill_qemu_img(&disk)
    });
    let made = place.create(place.request("FULL", &[&disk])).await;
    killer.join().unwrap();
    let failure = refused(made, ErrorCode::BackupFailed);
    let failed = failure.context()["backupId"].as_str().unwrap();
    assert_eq!(place.files(failed), ["backup.json"]);
    let message = place.metadata(failed).await.unwrap()["errorMessage"].clone();
    assert!(message.is_string(), "{message}");
    disk.is_intact();
    place.comes_back(&full, &disk.holds).await;
}

/// Kills the `qemu-img convert` that works on `disk`, by its own id.
fn kill_qemu_img(disk: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.starts_with("qemu-img\0convert") && line.contains(disk) {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                return;
            }
        }
    }
    panic!("qemu-img never ran");
}
