//! What stands between us and QEMU's monitor breaks, or QEMU dies, right at the command after which nothing can
//! be taken back. Every layer stays readable, every complete backup restores, and the next verb goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kit::machine::{PATIENCE, consistent_status, qemus, send_signal};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::drill::{Drill, Meanwhile};
use super::*;

/// What happens at the chosen command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// QEMU is killed, and has never seen it.
    KilledBefore,
    /// QEMU is killed when it has answered.
    KilledAfter,
    /// QEMU has it, and the connection ends before the answer.
    HungUp,
}

use Fault::{HungUp, KilledAfter, KilledBefore};

/// The monitor's socket is this one's from now on; QEMU's own has another name.
struct Between {
    _task: AbortOnDrop,
    real: PathBuf,
    left: Arc<AtomicUsize>,
}

impl Between {
    /// Acts once, at the `nth` command of this name. Nobody may be connected yet.
    fn stand(host: &Host, socket: &Path, command: &str, nth: usize, fault: Fault) -> Self {
        let real = socket.with_extension("real");
        std::fs::rename(socket, &real).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let left = Arc::new(AtomicUsize::new(nth));
        let relay = Relay {
            host: host.path().to_owned(),
            command: format!("\"execute\":\"{command}\""),
            left: Arc::clone(&left),
            fault,
        };
        let to = real.clone();
        let task = AbortOnDrop(tokio::spawn(async move {
            while let Ok((ours, _address)) = listener.accept().await {
                let Ok(theirs) = UnixStream::connect(&to).await else {
                    continue;
                };
                relay.carry(ours, theirs).await;
            }
        }));
        Self {
            _task: task,
            real,
            left,
        }
    }

    fn has_acted(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        std::fs::remove_file(&self.real).unwrap();
    }
}

struct Relay {
    host: PathBuf,
    command: String,
    left: Arc<AtomicUsize>,
    fault: Fault,
}

impl Relay {
    /// Carries both ways, until one side ends or it is time for the fault.
    async fn carry(&self, ours: UnixStream, theirs: UnixStream) {
        let (from_us, to_us) = ours.into_split();
        let (from_qemu, mut to_qemu) = theirs.into_split();
        let answer = Arc::new(Answer::default());
        let answers = answers(from_qemu, to_us, Arc::clone(&answer));
        let answers = AbortOnDrop(tokio::spawn(answers));
        let (mut asked, mut line) = (BufReader::new(from_us), String::new());
        loop {
            line.clear();
            if asked.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let hit = line.contains(&self.command) && self.counts();
            if hit && self.fault == KilledBefore {
                return self.kill();
            }
            answer.withheld.store(hit, Ordering::Release);
            if to_qemu.write_all(line.as_bytes()).await.is_err() {
                return;
            }
            if hit {
                answer.came.notified().await;
                drop(answers);
                if self.fault == KilledAfter {
                    self.kill();
                }
                return;
            }
        }
    }

    fn counts(&self) -> bool {
        let counted = |left: usize| left.checked_sub(1);
        let (set, fetch) = (Ordering::AcqRel, Ordering::Acquire);
        self.left.fetch_update(set, fetch, counted) == Ok(1)
    }

    fn kill(&self) {
        for pid in qemus(&self.host) {
            send_signal(pid, Signal::SIGKILL);
        }
    }
}

/// The answer to the command.
#[derive(Default)]
struct Answer {
    withheld: AtomicBool,
    came: Notify,
}

/// Carries what QEMU says, but for an answer that is withheld, and what comes after that.
async fn answers(from: OwnedReadHalf, mut to: OwnedWriteHalf, answer: Arc<Answer>) {
    let (mut from, mut line) = (BufReader::new(from), String::new());
    while from.read_line(&mut line).await.unwrap_or(0) > 0 {
        let answers = line.starts_with("{\"return\"") || line.starts_with("{\"error\"");
        if answers && answer.withheld.load(Ordering::Acquire) {
            break;
        }
        if to.write_all(line.as_bytes()).await.is_err() {
            break;
        }
        line.clear();
    }
    answer.came.notify_one();
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn socket(manager: &Manager, vm: &str) -> PathBuf {
    let row = manager.get_vm(vm.into()).await.unwrap();
    PathBuf::from(row["qmpSocketPath"].as_str().unwrap())
}

/// A new manager, that finds somebody between itself and QEMU.
async fn reached_through(
    host: &Host,
    manager: &Manager,
    vm: &str,
    (command, nth, fault): (&str, usize, Fault),
) -> (Manager, Between) {
    let socket = socket(manager, vm).await;
    manager.shutdown().await.unwrap();
    let between = Between::stand(host, &socket, command, nth, fault);
    (host.manager().await, between)
}

/// Waits until the machine runs, or, if its QEMU was killed, starts it again.
pub(crate) async fn goes_on(host: &Host, manager: &Manager, vm: &str) {
    let settled = async {
        loop {
            let status = manager.get_vm_status(vm.into()).await.unwrap();
            let alive = !qemus(host.path()).is_empty();
            match status["status"].as_str().unwrap() {
                "running" if alive && status["qmpStatus"] == "running" => return,
                "off" | "error" if !alive => {
                    start(manager, vm).await;
                }
                _ => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    };
    let settled = tokio::time::timeout(PATIENCE, settled).await;
    assert!(settled.is_ok(), "{vm} never went on");
}

#[test]
fn f16_f22_a_commit_that_loses_its_monitor_or_its_qemu_as_it_completes_loses_no_data() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let mut manager = host.manager().await;
        let vm = "layers-30";
        running(&host, &manager, vm, 2).await;
        let faults = [
            (1, KilledBefore),
            (1, KilledAfter),
            (2, KilledBefore),
            (2, KilledAfter),
            (1, HungUp),
            (2, HungUp),
        ];
        for (round, (nth, fault)) in (1_u8..).zip(faults) {
            let all: Vec<_> = (0..chain::CLUSTERS).map(|at| (at, round)).collect();
            for disk in 0..2 {
                write_live(&manager, vm, disk, &all).await;
            }
            take(&manager, vm, "a").await.unwrap();
            let newest = 0x80 | round;
            for disk in 0..2 {
                write_live(&manager, vm, disk, &[(0, newest)]).await;
                flush(&manager, vm, disk).await;
            }
            let at = ("job-complete", nth, fault);
            let (next, between) = reached_through(&host, &manager, vm, at).await;
            manager = next;
            let _done_or_not = remove(&manager, vm, "a", rebase()).await;
            assert!(between.has_acted(), "round {round}");
            goes_on(&host, &manager, vm).await;
            stop(&manager, vm).await;
            drop(between);

            let now = tree(&manager, vm).await;
            let mut content = vec![round; chain::CLUSTERS];
            content[0] = newest;
            for path in paths(&now["active"]) {
                assert_eq!(patterns(&path), content, "round {round}: {now}");
                qemu_reads(&path, &content);
            }
            start(&manager, vm).await;
            if !shape(&tree(&manager, vm).await).0.is_empty() {
                remove(&manager, vm, "a", rebase()).await.unwrap();
            }
            assert_eq!(consistent_status(&manager, vm).await["status"], "running");
            stop(&manager, vm).await;
            sound(&no_orphans(&host, &[tree(&manager, vm).await]));
            start(&manager, vm).await;
        }
        delete(&manager, vm).await;
        host.is_clean().await;
    });
}

/// A QEMU that was killed may have taken clusters that it has not used yet, but harmed none.
fn undamaged(images: &[PathBuf]) {
    for image in images {
        let mut check = Command::new("qemu-img");
        let output = check.args(["check", "-f", "qcow2"]).arg(image).output();
        let output = output.unwrap();
        let leaks_alone = output.status.code() == Some(3);
        assert!(output.status.success() || leaks_alone, "{output:?}");
    }
}

async fn flush(manager: &Manager, vm: &str, disk: usize) {
    let line = format!("qemu-io -d /machine/peripheral/disk{disk}/virtio-backend \"flush\"");
    let arguments = json!({ "command-line": line });
    let flushed = manager.qmp_execute(vm, "human-monitor-command", arguments);
    flushed.await.unwrap();
}

#[test]
fn f22_a_backup_that_loses_its_monitor_or_its_qemu_leaves_a_chain_that_restores() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let vm = "layers-31";
        let manager = host.manager().await;
        running(&host, &manager, vm, 2).await;
        let mut drill = Drill::of(&host, manager, vm);
        let mut content = vec![0x11; chain::CLUSTERS];
        let all: Vec<_> = (0..chain::CLUSTERS).map(|at| (at, 0x11)).collect();
        write_live(&drill.manager, vm, 1, &all).await;
        let full = drill.back_up(None, false, Meanwhile::Nothing).await;
        let mut links = vec![(full.unwrap(), content.clone())];
        let faults = [
            ("transaction", HungUp),
            ("transaction", KilledAfter),
            ("job-dismiss", HungUp),
            ("job-dismiss", KilledBefore),
            ("blockdev-del", KilledAfter),
            ("block-dirty-bitmap-remove", HungUp),
            ("block-dirty-bitmap-remove", KilledAfter),
        ];
        for (cluster, (command, fault)) in faults.into_iter().enumerate() {
            content[cluster] = 0x22;
            write_live(&drill.manager, vm, 1, &[(cluster, 0x22)]).await;
            flush(&drill.manager, vm, 1).await;
            let at = (command, 1, fault);
            let (next, between) = reached_through(&host, &drill.manager, vm, at).await;
            drill.manager = next;
            let parent = links.last().map(|(link, _)| link);
            let made = drill.back_up(parent, false, Meanwhile::Nothing).await;
            assert!(between.has_acted(), "{command} {fault:?}");
            match made {
                Ok(link) => links.push((link, content.clone())),
                Err(failure) => assert_eq!(failure.code(), ErrorCode::BackupFailed, "{failure:?}"),
            }
            // The last link that was completed is whole, whatever became of this one.
            let (last, held) = links.last().unwrap();
            drill.holds(last, held).await;
            goes_on(&host, &drill.manager, vm).await;
            let parent = links.last().map(|(link, _)| link);
            let next = drill.back_up(parent, false, Meanwhile::Nothing).await;
            links.push((next.unwrap(), content.clone()));
            stop(&drill.manager, vm).await;
            drop(between);
            undamaged(&paths(&tree(&drill.manager, vm).await["active"]));
            start(&drill.manager, vm).await;
        }
        for (link, held) in &links {
            drill.holds(link, held).await;
        }
        delete(&drill.manager, vm).await;
        std::fs::remove_dir_all(host.path().join("backups")).unwrap();
        host.is_clean().await;
    });
}
