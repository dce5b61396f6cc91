//! Guests that a backup stops, since what they write over could not be copied before.

use infinization_core::ErrorCode;
use infinization_core::backup::{BackupService, CreateBackup, Machine};
use infinization_core::qmp::QmpClient;
use infinization_core::types::HostPath;
use kit::small_disk::{SmallDisk, fill};
use kit::victim;

use super::*;

/// What happens once the guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The copying goes on, and fails.
    GoOn,
    /// This process is killed while QEMU copies.
    Die,
    /// It is killed as QEMU gives up.
    DieLate,
}

/// The machine as its backups see it. Once they have begun their disk is full, and they copy nothing more until the
/// guest has met that, too.
#[derive(Clone)]
struct Copied {
    manager: Manager,
    vm: String,
    /// On a small disk.
    target: PathBuf,
    then: Then,
}

impl Copied {
    async fn ask(&self, command: &str, arguments: Value) -> Value {
        let answer = self.manager.qmp_execute(&self.vm, command, arguments).await;
        serde_json::from_str(answer.unwrap().get()).unwrap()
    }

    /// Waits until QEMU answers so.
    async fn until(&self, command: &str, is_so: fn(&Value) -> bool) {
        let settled = async {
            while !is_so(&self.ask(command, Value::Null).await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.unwrap();
    }

    /// Of the copying, in bytes per second; 0 is without a limit. Whether it is not over yet.
    async fn speed(&self, speed: u64) -> bool {
        let jobs = self.ask("query-jobs", Value::Null).await;
        let Some(job) = jobs.get(0) else { return false };
        let limit = json!({ "device": job["id"], "speed": speed });
        let asked = self
            .manager
            .qmp_execute(&self.vm, "block-job-set-speed", limit);
        asked.await.is_ok()
    }

    /// Waits until the guest stands still, and has happen what is to come then.
    async fn goes_on(self) {
        self.until("query-status", |status| status["status"] == "io-error")
            .await;
        if self.then == Then::Die {
            die();
        }
        self.speed(0).await;
        if self.then == Then::DieLate {
            die();
        }
    }
}

#[async_trait]
impl Machine for Copied {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        self.manager.qmp_client(&self.vm)
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        Ok(Some(0))
    }

    async fn thaw(&self) -> Result<(), String> {
        // On a busy host this comes too late at times.
        if self.speed(1).await {
            fill(&self.target);
            // Later than a thaw may last.
            tokio::spawn(self.clone().goes_on());
        }
        Ok(())
    }
}

fn die() {
    nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL).unwrap();
}

/// A machine whose guest writes over and over what it once wrote to its second disk.
async fn writing(host: &Host, manager: &Manager, vm: &str) -> (Value, Value) {
    let mut machine = host.tiny_guest(vm);
    let disks = machine["disks"].as_array_mut().unwrap();
    disks.push(json!({ "sizeGB": 1 }));
    let created = manager.create_vm(machine.clone(), never()).await.unwrap();
    host.console_says(vm, "INFZ-READY", 1).await;
    let fill = "dd if=/dev/urandom of=/dev/vdb bs=1M count=24 conv=fsync";
    went_well(&does(manager, &machine, fill).await.unwrap().unwrap());
    let all_the_time = "(n=0; while dd if=/dev/urandom of=/dev/vdb bs=1M count=24 conv=fsync; do \
         n=$((n+1)); echo $n >/tmp/n; done) >/dev/null 2>&1 & true";
    let writing = does(manager, &machine, all_the_time).await;
    went_well(&writing.unwrap().unwrap());
    (machine, created["diskPaths"][1].clone())
}

async fn writes_on(manager: &Manager, machine: &Value) {
    let more = "n=$(cat /tmp/n); while [ \"$n\" = \"$(cat /tmp/n)\" ]; do sleep 1; done";
    went_well(&does(manager, machine, more).await.unwrap().unwrap());
}

/// A compressed full backup, whose size nobody can know beforehand.
fn request_of(vm: &str, disk: &Value, root: &Path) -> Value {
    json!({
        "vmId": vm, "type": "FULL", "compression": "QCOW2", "diskPaths": [disk],
        "destinationDir": root.join(vm),
    })
}

async fn back_up(machine: Copied, request: Value) -> Result<Value, Failure> {
    let root = HostPath::parse(machine.target.to_str().unwrap()).unwrap();
    let service = BackupService::new(root, Arc::new(|_told| ()));
    let request = CreateBackup::read(request).unwrap();
    let made = service.create(request, Arc::new(machine), never());
    tokio::time::timeout(PATIENCE * 2, made).await.unwrap()
}

#[test]
fn f15_a_backup_that_stopped_the_guest_lets_it_go_on() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let vm = "eio-3";
        let (machine, disk) = writing(&host, &manager, vm).await;
        let mut events = manager.subscribe();
        let mut tries = 0..20;
        let (_target, failed) = loop {
            tries.next().expect("a backup that fails");
            let target = SmallDisk::new(48 << 10);
            let copied = Copied {
                manager: manager.clone(),
                vm: vm.to_owned(),
                target: target.path().to_owned(),
                then: Then::GoOn,
            };
            let made = back_up(copied, request_of(vm, &disk, target.path())).await;
            if let Err(failed) = made {
                break (target, failed);
            }
        };
        assert_eq!(failed.code(), ErrorCode::BackupNoSpace, "{failed}");

        assert_eq!(next_condition(&mut events).await["kind"], "io-error");
        assert_eq!(next_condition(&mut events).await, Value::Null);
        went_on(&manager, vm).await;
        writes_on(&manager, &machine).await;
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// Not a test of its own: the process that is killed while its backup has the guest stand still.
#[test]
fn victim() {
    let Some(orders) = victim::orders() else {
        return;
    };
    kit::runtime().block_on(async {
        let manager = Manager::new(orders["settings"].clone());
        manager.initialize().await.unwrap();
        let text = |key: &str| orders[key].as_str().unwrap().to_owned();
        let copied = Copied {
            manager,
            vm: text("vm"),
            target: text("target").into(),
            then: match text("then").as_str() {
                "die" => Then::Die,
                _ => Then::DieLate,
            },
        };
        let manager = copied.manager.clone();
        // It came too late, and is called again.
        let made = back_up(copied, orders["request"].clone()).await;
        let gave_up = |failed: Failure| failed.code() == ErrorCode::BackupNoSpace;
        assert!(made.map_or_else(gave_up, |_made| true));
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn f15_f22_a_guest_that_a_killed_process_s_backup_has_stopped_goes_on_with_the_next() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let vm = "eio-4";
        let mut manager = host.manager().await;
        let (machine, disk) = writing(&host, &manager, vm).await;
        let qemu = qemus(host.path());
        for then in ["die", "die late"] {
            manager.shutdown().await.unwrap();
            drop(manager);
            let mut places = (0..20).map(|_| SmallDisk::new(48 << 10));
            let stopped = places.find(|target| {
                let orders = json!({
                    "settings": host.settings(), "vm": vm, "target": target.path(), "then": then,
                    "request": request_of(vm, &disk, target.path()),
                });
                victim::run(&["--exact", "backups::victim", "--quiet"], &orders)
            });
            let _target = stopped.expect("it was never in time");

            manager = host.manager().await;
            went_on(&manager, vm).await;
            writes_on(&manager, &machine).await;
            assert_eq!(qemus(host.path()), qemu, "{then}: it is not ended");
            let jobs = manager.qmp_execute(vm, "query-jobs", Value::Null).await;
            assert_eq!(jobs.unwrap().get(), "[]", "{then}");
            assert_eq!(
                manager.get_vm(vm.into()).await.unwrap()["status"],
                "running"
            );
        }
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// Waits until the guest goes on: that is told, too, and kept a moment later.
async fn went_on(manager: &Manager, vm: &str) {
    let settled = async {
        loop {
            let status = manager.get_vm_status(vm.into()).await.unwrap();
            if status["status"] == "running" && status["condition"].is_null() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    goes_on(manager, vm).await;
}
