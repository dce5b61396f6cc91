//! Processes that are killed in the middle.

use std::os::unix::process::ExitStatusExt as _;
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
    let request: Value = serde_json::from_slice(&request).unwrap();
    let never = CancellationToken::new();
    let machine: Arc<dyn Machine> = match request["monitor"].as_str() {
        None => Arc::new(Stopped),
        Some(monitor) => {
            let (monitor, _events) = crate::kit::qmp::connect(Path::new(monitor)).await;
            Running::new(&monitor, Ok(None))
        }
    };
    let done = if request.get("backupId").is_some() {
        let request = RestoreBackup::read(request).unwrap();
        service.restore(request, machine, never).await
    } else {
        let request = CreateBackup::read(request).unwrap();
        service.create(request, machine, never).await
    };
    done.unwrap();
}

/// Whether it was killed, and not done before.
pub(super) fn begin_and_kill(place: &Place, request: &Value, seen: impl Fn() -> bool) -> bool {
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
    let ended = child.wait().unwrap();
    fs::remove_file(place.path("request.json")).unwrap();
    assert!(ended.signal() == Some(9) || ended.success(), "{ended}");
    !ended.success()
}

/// There is no event for a file that another process makes.
fn wait_until(child: &mut Child, seen: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !seen() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "it never came so far");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Waits until nothing that the killed process had started works on the disks.
pub(super) fn outwait_orphans(place: &Place) {
    let until = Instant::now() + Duration::from_secs(60);
    let is_orphan = |(pid, line): &(i32, String)| {
        // Who is about to run another program, or to end, has no command line for a moment, but still the files.
        line.contains("the_one_that_is_killed") || has_open(*pid, place.dir.path())
    };
    while command_lines().iter().any(is_orphan) {
        assert!(Instant::now() < until, "an orphan goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process, but for this one, has a file of the directory open.
fn has_open(pid: i32, dir: &Path) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd"));
    pid != nix::unistd::Pid::this().as_raw()
        && files.is_ok_and(|files| {
            files
                .flatten()
                .any(|file| fs::read_link(file.path()).is_ok_and(|to| to.starts_with(dir)))
        })
}

fn command_lines() -> Vec<(i32, String)> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    pids.map(|pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        (pid, String::from_utf8_lossy(&line).into_owned())
    })
    .collect()
}

pub(super) fn folders(place: &Place) -> Vec<String> {
    names_in(&place.root().join("vm-1"))
}

/// Whether a folder that is not among the `known` has a file of this name.
pub(super) fn has_new(place: &Place, known: &[String], name: &str) -> bool {
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
        for (pid, line) in command_lines() {
            if line.starts_with("qemu-img\0convert") && line.contains(disk) {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                return;
            }
        }
    }
    panic!("qemu-img never ran");
}

/// Killed ever later, and in the end while it renames: whoever comes next finds both disks old or both new.
#[tokio::test]
async fn k3_f22_a_killed_restore_replaces_all_disks_or_none() {
    let place = Place::new();
    let (mut a, mut b) = (place.disk("a.qcow2", 8), place.disk("b.qcow2", 8));
    a.write(0, 6 << 20, 1);
    b.write(0, 6 << 20, 2);
    let full = place.full(&[&a, &b]).await;
    let new = [a.holds.clone(), b.holds.clone()];
    let journal = place.root().join("vm-1").join("restore.json");
    let request = json!({
        "vmId": "vm-1", "backupId": full, "diskPaths": [a.path, b.path], "overwriteExisting": true,
    });
    let (mut kills, mut outcomes) = (0, [0, 0]);
    for round in 0..18_u32 {
        a.write(0, 6 << 20, 3);
        b.write(0, 6 << 20, 4);
        let delay = Duration::from_millis(4) * (round / 2) * (round / 2);
        let killed = begin_and_kill(&place, &request, || {
            let text = fs::read(&journal).unwrap_or_default();
            if round % 2 == 1 {
                return String::from_utf8_lossy(&text).contains("\"committing\":true");
            }
            let begun = !text.is_empty();
            begun.then(|| std::thread::sleep(delay)).is_some()
        });
        kills += u32::from(killed);
        // Any verb that changes the machine's backups clears up first.
        let small = place.disk("small.qcow2", 1);
        place.full(&[&small]).await;
        let is_new = content(&a.path) == new[0];
        let expected = if is_new { &new[1] } else { &b.holds };
        disk::assert_holds(&b.path, "qcow2", expected);
        disk::assert_holds(&a.path, "qcow2", if is_new { &new[0] } else { &a.holds });
        outcomes[usize::from(is_new)] += 1;
        let names = names_in(place.dir.path());
        assert_eq!(
            names,
            ["a.qcow2", "b.qcow2", "backups", "small.qcow2"],
            "round {round}"
        );
        assert!(!journal.exists());
        fs::remove_file(small.path).unwrap();
        if round % 2 == 0 && !killed {
            break;
        }
    }
    assert!(
        kills > 0 && outcomes[0] > 0 && outcomes[1] > 0,
        "{kills} {outcomes:?}"
    );
}

/// What a qcow2 disk holds.
pub(super) fn content(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("content");
    let (image, to) = (disk::text(image), disk::text(&raw));
    disk::run(
        "qemu-img",
        &["convert", "-f", "qcow2", "-O", "raw", image, to],
    );
    let found = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    found
}
