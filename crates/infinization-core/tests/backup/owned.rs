//! Backups of a manager's running machine, when the process that makes them is killed or shut down.

use infinization_core::manager::Manager;
use infinization_core::vm::NotedFreeze;
use kit::machine::{Host, PATIENCE, delete, never, qemus};
use kit::victim;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixListener;
use tokio::sync::Notify;

use super::*;

/// What happens in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    /// Once QEMU copies, and the guest is thawed, the copy takes for ever.
    Stall,
    /// The same, and this process is killed.
    DieCopying,
    /// This process is killed when the guest is frozen.
    DieFrozen,
}

/// A machine of a manager.
struct Owned {
    manager: Manager,
    vm_id: String,
    then: Then,
    copying: Arc<Notify>,
    noted: Mutex<Option<NotedFreeze>>,
}

impl Owned {
    fn new(manager: &Manager, vm_id: &str, then: Then) -> Arc<Self> {
        Arc::new(Self {
            manager: manager.clone(),
            vm_id: vm_id.to_owned(),
            then,
            copying: Arc::default(),
            noted: Mutex::default(),
        })
    }

    /// Has QEMU's jobs of backups do next to nothing from now on. Whether they still had something to do: on a busy
    /// host this comes too late at times.
    async fn stall(&self) -> bool {
        for id in jobs(&self.manager, &self.vm_id).await {
            let slow = json!({ "device": id, "speed": 1 });
            let asked = self
                .manager
                .qmp_execute(&self.vm_id, "block-job-set-speed", slow);
            if asked.await.is_err() {
                return false;
            }
        }
        true
    }
}

#[async_trait]
impl Machine for Owned {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        self.manager.qmp_client(&self.vm_id)
    }

    async fn note_freeze(&self) -> Result<(), String> {
        let vm_id = VmId::parse(self.vm_id.as_str()).unwrap();
        let noted = self.manager.note_freeze(&vm_id).await;
        *self.noted.lock().unwrap() = noted.map_err(|failure| failure.to_string())?;
        Ok(())
    }

    async fn forget_freeze(&self) {
        let noted = self.noted.lock().unwrap().take();
        if let Some(noted) = noted {
            noted.forget().await;
        }
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        if self.then == Then::DieFrozen {
            die();
        }
        Ok(Some(1))
    }

    async fn thaw(&self) -> Result<(), String> {
        match self.then {
            Then::GoOn | Then::DieFrozen => {}
            Then::Stall => {
                if self.stall().await {
                    self.copying.notify_one();
                }
            }
            Then::DieCopying => {
                if self.stall().await {
                    die();
                }
            }
        }
        Ok(())
    }
}

fn die() {
    nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL).unwrap();
}

async fn told(manager: &Manager, vm_id: &str, command: &str) -> Vec<Value> {
    let answer = manager.qmp_execute(vm_id, command, Value::Null).await;
    serde_json::from_str(answer.unwrap().get()).unwrap()
}

/// The jobs of backups.
async fn jobs(manager: &Manager, vm_id: &str) -> Vec<String> {
    let jobs = told(manager, vm_id, "query-jobs").await;
    let ids = jobs
        .iter()
        .map(|job| job["id"].as_str().unwrap().to_owned());
    ids.filter(|id| id.starts_with("infz-bk-")).collect()
}

/// A running machine with something on its disk.
async fn running(host: &Host, vm_id: &str) -> (Manager, Disk) {
    let manager = host.manager().await;
    let made = manager
        .create_vm(host.machine(vm_id), never())
        .await
        .unwrap();
    let mut disk = Disk {
        path: made["diskPaths"][0].as_str().unwrap().into(),
        format: "qcow2",
        holds: vec![0; 64 << 20],
    };
    write(&manager, vm_id, &mut disk, 64 << 20, 1).await;
    (manager, disk)
}

async fn write(manager: &Manager, vm_id: &str, disk: &mut Disk, length: usize, byte: u8) {
    let line = format!(
        "qemu-io -d /machine/peripheral/disk0/virtio-backend \"write -P {byte} 0 {length}\""
    );
    let line = json!({ "command-line": line });
    let answer = manager.qmp_execute(vm_id, "human-monitor-command", line);
    assert_eq!(answer.await.unwrap().get(), "\"\"");
    disk.model(0, length, byte);
}

fn request_of(vm_id: &str, disk: &Disk, root: &Path) -> Value {
    json!({
        "vmId": vm_id, "type": "FULL", "diskPaths": [disk.path], "diskFormats": ["qcow2"],
        "destinationDir": root.join(vm_id),
    })
}

fn service(root: &Path) -> BackupService {
    BackupService::new(path(root), Arc::new(|_| ()))
}

/// Not a test of its own: the process that kills itself in its backup.
#[test]
fn victim() {
    let Some(orders) = victim::orders() else {
        return;
    };
    kit::runtime().block_on(async {
        let manager = Manager::new(orders["settings"].clone());
        manager.initialize().await.unwrap();
        let text = |key: &str| orders[key].as_str().unwrap();
        let then = match text("then") {
            "die copying" => Then::DieCopying,
            _ => Then::DieFrozen,
        };
        let machine = Owned::new(&manager, text("vm"), then);
        let request = CreateBackup::read(orders["request"].clone()).unwrap();
        let service = service(Path::new(text("root")));
        let made = service.create(request, machine, never()).await;
        // It came too late, and is called again.
        assert_eq!(then, Then::DieCopying, "it lives: {made:?}");
        made.unwrap();
        manager.shutdown().await.unwrap();
    });
}

/// How often a backup may be done before it is disturbed.
const LATE: usize = 20;

/// Has another process make this backup, and die in it.
fn killed(host: &Host, vm: &str, root: &Path, then: &str, request: &Value) {
    let orders = json!({
        "settings": host.settings(), "vm": vm, "root": root, "then": then, "request": request,
    });
    let dies = || victim::run(&["--exact", "owned::victim", "--quiet"], &orders);
    assert!((0..LATE).any(|_| dies()), "it was never in time");
}

/// The files below `root` that a QEMU of the host has open.
fn open_below(host: &Host, root: &Path) -> Vec<PathBuf> {
    let open = qemus(host.path()).into_iter().flat_map(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        descriptors.filter_map(|one| fs::read_link(one.path()).ok())
    });
    open.filter(|file| file.starts_with(root)).collect()
}

#[test]
fn f22_what_a_killed_process_has_qemu_copy_ends_with_the_next() {
    kit::in_private_network(|| async {
        let (host, vm) = (Host::new().await, "backup-killed");
        let root = host.path().join("backups");
        let (manager, disk) = running(&host, vm).await;
        manager.shutdown().await.unwrap();
        drop(manager);
        let request = request_of(vm, &disk, &root);
        killed(&host, vm, &root, "die copying", &request);
        assert_eq!(open_below(&host, &root).len(), 1, "QEMU goes on copying");
        // Whoever lists them first does not hide where the space goes.
        let vm_id = VmId::parse(vm).unwrap();
        let listed = service(&root).list(vm_id.clone()).await.unwrap();
        assert_eq!(listed[0]["status"], "FAILED");
        let folder = root.join(vm).join(listed[0]["id"].as_str().unwrap());
        assert_eq!(names_in(&folder), ["backup.json", "disk-0.qcow2"]);

        let manager = host.manager().await;
        assert_eq!(open_below(&host, &root), Vec::<PathBuf>::new());
        assert_eq!(jobs(&manager, vm).await, Vec::<String>::new());
        // Nothing has to wait for it any more.
        let snapshot = json!({ "name": "a" });
        let taken = manager.create_snapshot(vm.into(), snapshot, never()).await;
        taken.unwrap();
        let machine = Owned::new(&manager, vm, Then::GoOn);
        let request = CreateBackup::read(request).unwrap();
        let made = service(&root).create(request, machine, never()).await;
        assert_eq!(names_in(&folder), ["backup.json"]);
        is_what_it_was(&manager, vm, &root, &id(&made.unwrap()), &disk).await;
        fs::remove_dir_all(&root).unwrap();
        host.is_clean().await;
    });
}

#[test]
fn f39_a_guest_left_frozen_by_a_killed_backup_is_thawed_by_the_next_process() {
    kit::in_private_network(|| async {
        let (host, vm) = (Host::new().await, "backup-frozen");
        let root = host.path().join("backups");
        let agent = host.path().join("agent.sock");
        let manager = host.manager().await;
        let mut machine = host.machine(vm);
        machine["guestAgentSocketPath"] = json!(agent);
        let made = manager.create_vm(machine, never()).await.unwrap();
        let disk = Disk {
            path: made["diskPaths"][0].as_str().unwrap().into(),
            format: "qcow2",
            holds: Vec::new(),
        };
        // Whoever thaws it from now on is heard.
        fs::remove_file(&agent).unwrap();
        let listener = UnixListener::bind(&agent).unwrap();
        let note = host.state_dir().join("vms").join(vm).join("guest-frozen");
        let request = CreateBackup::read(request_of(vm, &disk, &root)).unwrap();
        let machine = Owned::new(&manager, vm, Then::GoOn);
        let made = service(&root).create(request, machine, never()).await;
        made.unwrap();
        assert!(!note.exists(), "it was thawed");
        manager.shutdown().await.unwrap();
        drop(manager);

        killed(
            &host,
            vm,
            &root,
            "die frozen",
            &request_of(vm, &disk, &root),
        );
        assert!(note.exists());
        let thawed = tokio::spawn(until_thawed(listener));
        let manager = host.manager().await;
        tokio::time::timeout(PATIENCE, thawed)
            .await
            .unwrap()
            .unwrap();
        assert!(!note.exists());
        fs::remove_file(&agent).unwrap();
        delete(&manager, vm).await;
        fs::remove_dir_all(&root).unwrap();
        host.is_clean().await;
    });
}

/// Plays an agent that is told to synchronise, and to thaw.
async fn until_thawed(listener: UnixListener) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.unwrap();
    let sync = line.strip_prefix(b"\xff").unwrap_or(&line);
    let sync: Value = serde_json::from_slice(sync).unwrap();
    let answer = json!({ "return": sync["arguments"]["id"] }).to_string();
    let answer = [b"\xff", answer.as_bytes(), b"\n"].concat();
    stream.get_mut().write_all(&answer).await.unwrap();
    line.clear();
    stream.read_until(b'\n', &mut line).await.unwrap();
    let asked: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(asked["execute"], "guest-fsfreeze-thaw");
    stream
        .get_mut()
        .write_all(b"{\"return\": 1}\n")
        .await
        .unwrap();
}

type Making = tokio::task::JoinHandle<Result<Value, Failure>>;

/// Has a backup made that never ends, or else, where that comes too late, the id of one.
async fn stalled(
    manager: &Manager,
    vm: &str,
    root: &Path,
    request: &Value,
) -> Result<Making, String> {
    let machine = Owned::new(manager, vm, Then::Stall);
    let copying = Arc::clone(&machine.copying);
    let (service, request) = (service(root), CreateBackup::read(request.clone()).unwrap());
    let mut making = tokio::spawn(async move { service.create(request, machine, never()).await });
    tokio::select! {
        () = copying.notified() => Ok(making),
        made = &mut making => Err(id(&made.unwrap().unwrap())),
    }
}

#[test]
fn f22_a_shutdown_cancels_the_backup_and_leaves_qemu_nothing_of_it() {
    kit::in_private_network(|| async {
        let (host, vm) = (Host::new().await, "backup-shut-down");
        let root = host.path().join("backups");
        let (manager, mut disk) = running(&host, vm).await;
        let request = request_of(vm, &disk, &root);
        let made = service(&root)
            .create(
                CreateBackup::read(request.clone()).unwrap(),
                Owned::new(&manager, vm, Then::GoOn),
                never(),
            )
            .await;
        let mut full = id(&made.unwrap());
        write(&manager, vm, &mut disk, 32 << 20, 2).await;

        let mut making = stalled(&manager, vm, &root, &request).await;
        for _ in 0..LATE {
            let Err(made) = making else {
                break;
            };
            full = made;
            making = stalled(&manager, vm, &root, &request).await;
        }
        let making = making.unwrap();
        manager.shutdown().await.unwrap();
        assert_eq!(open_below(&host, &root), Vec::<PathBuf>::new());
        let cancelled = refused(making.await.unwrap(), ErrorCode::BackupCancelled);
        let folder = root
            .join(vm)
            .join(cancelled.context()["backupId"].as_str().unwrap());
        assert_eq!(names_in(&folder), ["backup.json"]);

        let manager = host.manager().await;
        let nodes = told(&manager, vm, "query-named-block-nodes").await;
        let bitmaps = nodes
            .iter()
            .filter_map(|node| node["dirty-bitmaps"].as_array());
        let bitmaps: Vec<_> = bitmaps.flatten().map(|bitmap| &bitmap["name"]).collect();
        assert_eq!(
            bitmaps,
            [&json!(format!("infz-{full}-0"))],
            "the parent's stays"
        );
        let mut request = request;
        request["type"] = json!("INCREMENTAL");
        request["parentBackupId"] = json!(full);
        let next = service(&root)
            .create(
                CreateBackup::read(request).unwrap(),
                Owned::new(&manager, vm, Then::GoOn),
                never(),
            )
            .await;
        is_what_it_was(&manager, vm, &root, &id(&next.unwrap()), &disk).await;
        fs::remove_dir_all(&root).unwrap();
        host.is_clean().await;
    });
}

/// The machine goes, and its backup has what was written to its disk.
async fn is_what_it_was(manager: &Manager, vm: &str, root: &Path, backup: &str, disk: &Disk) {
    delete(manager, vm).await;
    let target = root.join("restored.qcow2");
    let request = json!({ "vmId": vm, "backupId": backup, "diskPaths": [target] });
    let request = RestoreBackup::read(request).unwrap();
    let service = service(root);
    let restored = service.restore(request, Arc::new(Stopped), never());
    restored.await.unwrap();
    disk::run(
        "qemu-img",
        &["check", "-q", "-f", "qcow2", disk::text(&target)],
    );
    let halves = [(0, 32), (32, 32)].map(|(at, length)| {
        let byte = disk.holds[at << 20];
        format!("read -q -P {byte} {at}M {length}M")
    });
    for read in &halves {
        let image = disk::text(&target);
        let said = disk::run("qemu-io", &["-r", "-f", "qcow2", "-c", read, image]);
        assert_eq!(said, "");
    }
}
