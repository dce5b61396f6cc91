//! What the main job costs over the bare QEMU: medians, programs per operation, crash latency, and
//! whether a long run leaves anything. `npm run bench` runs it in a network of its own.
//!
//! "Bare" is the spawn of the very argv that `createVM` uses, to its `query-status` reply.
//! One JSON object per line goes to standard output: `{"name", "value", "unit", "goal"}`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the figures are what this program is for"
)]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use infinization_core::host::link::Links;
use infinization_core::host::process::{SpawnSpec, StderrLog, spawn};
use infinization_core::host::program::programs_started;
use infinization_core::host::qemu_img::{self, CreateImage, Job};
use infinization_core::host::tap::{self, Queues, TapOptions};
use infinization_core::manager::Manager;
use infinization_core::qmp::{QmpClient, QmpOptions};
use infinization_core::types::{ByteSize, HostPath, VmId, VmNames};
use infinization_test_kit as kit;
use kit::machine::{Host, never, next_event, qemus};
use serde_json::{Value, json};

const ROUNDS: usize = 21;
const CRASHES: usize = 100;

fn main() {
    let cycles = std::env::var("INFINIZATION_BENCH_CYCLES")
        .ok()
        .and_then(|text| text.parse().ok());
    kit::in_private_network(move || async move {
        let host = Host::new().await;
        let manager = host.manager().await;
        let bare = bare(&host, &manager).await;
        verbs(&host, &manager, bare).await;
        crowd(&host, &manager).await;
        crashes(&host, &manager).await;
        long_run(&host, &manager, cycles.unwrap_or(1000)).await;
        manager.shutdown().await.unwrap();
    });
}

fn figure(name: &str, value: f64, unit: &str, goal: &str) {
    let value = (value * 100.0).round() / 100.0;
    println!(
        "{}",
        json!({ "name": name, "value": value, "unit": unit, "goal": goal })
    );
}

/// A set of times.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into some hundred times"
        )]
        let index = ((sorted.len() - 1) as f64 * share).round() as usize;
        sorted[index].as_secs_f64() * 1000.0
    }

    fn median(&self) -> f64 {
        self.at(0.5)
    }
}

/// How long a call takes and how many programs it starts.
async fn measure<T>(times: &mut Times, programs: &mut u64, work: impl Future<Output = T>) -> T {
    let (began, started) = (Instant::now(), programs_started());
    let answer = work.await;
    times.0.push(began.elapsed());
    *programs = (*programs).max(programs_started() - started);
    answer
}

async fn bare(host: &Host, manager: &Manager) -> f64 {
    let plan = manager.plan_vm(host.machine("bare-1")).await.unwrap();
    let steps = plan["stages"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|stage| stage.as_array().unwrap());
    let step = steps
        .clone()
        .find(|step| step["action"] == "spawnQemu")
        .unwrap()
        .clone();
    for directory in ["disks", "run", "pids", "vms/bare-1"] {
        std::fs::create_dir_all(host.state_dir().join(directory)).unwrap();
    }
    let disk = HostPath::parse(
        host.state_dir()
            .join("disks/bare-1.qcow2")
            .to_str()
            .unwrap(),
    )
    .unwrap();
    let image = CreateImage::new(disk.clone(), ByteSize::mib(1024));
    qemu_img::create(&image, &Job::default()).await.unwrap();
    let name = VmNames::of(&VmId::parse("bare-1").unwrap()).tap;
    let links = Links::new();
    let options = TapOptions {
        queues: Queues::ONE,
        owner: None,
    };
    drop(tap::create(&name, options).await.unwrap());
    links.set_master(&name, &host.bridge).await.unwrap();
    links.set_up(&name).await.unwrap();

    let (mut times, mut programs) = (Times::default(), 0);
    for _ in 0..ROUNDS {
        let socket = host.path().join("bare.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut queues = tap::open(&links, &name, Queues::ONE).await.unwrap();
        let log = StderrLog::at(host.path().join("bare.log")).open().unwrap();
        let args = step["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|arg| arg.as_str().unwrap());
        let what = SpawnSpec::new(step["binary"].as_str().unwrap(), log)
            .args(args)
            .fd(listener, number(&step, "monitor"))
            .fd(queues.remove(0), number(&step, "tap"));
        let process = measure(&mut times, &mut programs, async {
            let process = spawn(what).await.unwrap();
            let (qmp, _events) = QmpClient::connect(&socket, QmpOptions::default())
                .await
                .unwrap();
            qmp.query_status().await.unwrap();
            process
        })
        .await;
        process.kill_now().await.unwrap();
        std::fs::remove_file(&socket).unwrap();
    }
    tap::delete(&links, &name).await.unwrap();
    for left in [disk.as_path(), &host.path().join("bare.log")] {
        std::fs::remove_file(left).unwrap();
    }
    std::fs::remove_dir(host.state_dir().join("vms/bare-1")).unwrap();
    figure("bare spawn to query-status", times.median(), "ms", "");
    times.median()
}

/// The number under which QEMU gets a descriptor of this kind.
fn number(step: &Value, kind: &str) -> i32 {
    let descriptors = step["descriptors"].as_array().unwrap();
    let found = descriptors
        .iter()
        .find(|pair| pair[0] == kind || pair[0].get(kind).is_some());
    i32::try_from(found.unwrap()[1].as_i64().unwrap()).unwrap()
}

async fn verbs(host: &Host, manager: &Manager, bare: f64) {
    let [
        mut create,
        mut start,
        mut stop,
        mut destroy,
        mut status,
        mut suspend,
        mut resume,
    ] = std::array::from_fn(|_| Times::default());
    let mut programs = [0; 7];
    let forced = || json!({ "graceful": false, "force": true });
    for _ in 0..ROUNDS {
        let id = || "bench-1".to_owned();
        let config = host.machine("bench-1");
        measure(
            &mut create,
            &mut programs[0],
            manager.create_vm(config, never()),
        )
        .await
        .unwrap();
        measure(&mut status, &mut programs[4], manager.get_vm_status(id()))
            .await
            .unwrap();
        measure(&mut suspend, &mut programs[5], manager.suspend_vm(id()))
            .await
            .unwrap();
        measure(&mut resume, &mut programs[6], manager.resume_vm(id()))
            .await
            .unwrap();
        measure(
            &mut stop,
            &mut programs[2],
            manager.stop_vm(id(), forced(), never()),
        )
        .await
        .unwrap();
        measure(
            &mut start,
            &mut programs[1],
            manager.start_vm(id(), Value::Null, never()),
        )
        .await
        .unwrap();
        measure(&mut destroy, &mut programs[3], manager.destroy_vm(id()))
            .await
            .unwrap();
        manager
            .delete_vm(id(), json!({ "deleteDisks": true }))
            .await
            .unwrap();
    }
    figure("createVM", create.median(), "ms", "");
    figure(
        "createVM over the bare spawn",
        create.median() - bare,
        "ms",
        "≤ 25",
    );
    figure("startVM", start.median(), "ms", "");
    figure(
        "startVM over the bare spawn",
        start.median() - bare,
        "ms",
        "≤ 25",
    );
    figure("stopVM, forced", stop.median(), "ms", "≤ 15");
    figure("destroyVM, running", destroy.median(), "ms", "≤ 40");
    figure("getVMStatus", status.median(), "ms", "");
    figure("suspendVM", suspend.median(), "ms", "");
    figure("resumeVM", resume.median(), "ms", "");
    let goals = ["≤ 3", "≤ 2", "≤ 1", "≤ 1", "0", "0", "0"];
    let names = [
        "createVM",
        "startVM",
        "stopVM",
        "destroyVM",
        "getVMStatus",
        "suspendVM",
        "resumeVM",
    ];
    for ((name, count), goal) in names.iter().zip(programs).zip(goals) {
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        figure(&format!("programs run by {name}"), count as f64, "", goal);
    }
}

/// Eight creates at once.
async fn crowd(host: &Host, manager: &Manager) {
    let began = Instant::now();
    let creates = (0..8).map(|number| {
        let (manager, config) = (manager.clone(), host.machine(&format!("crowd-{number}")));
        tokio::spawn(async move { manager.create_vm(config, never()).await })
    });
    let mut failures = 0.0;
    for create in creates.collect::<Vec<_>>() {
        if let Err(error) = create.await.unwrap() {
            eprintln!("{error}: {:?}", error.context());
            failures += 1.0;
        }
    }
    figure("8 creates at once: failures", failures, "", "0");
    figure(
        "8 creates at once: all done",
        began.elapsed().as_secs_f64() * 1000.0,
        "ms",
        "",
    );
    for number in 0..8 {
        let delete = json!({ "deleteDisks": true });
        manager
            .delete_vm(format!("crowd-{number}"), delete)
            .await
            .unwrap();
    }
}

/// From SIGKILL to the `crash` event, which comes after the row and the clean-up.
async fn crashes(host: &Host, manager: &Manager) {
    manager
        .create_vm(host.machine("crash-1"), never())
        .await
        .unwrap();
    let mut times = Times::default();
    for round in 0..CRASHES {
        if round > 0 {
            manager
                .start_vm("crash-1".into(), Value::Null, never())
                .await
                .unwrap();
        }
        let mut events = manager.subscribe();
        let pid = nix::unistd::Pid::from_raw(qemus(host.path())[0]);
        let began = Instant::now();
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
        next_event(&mut events, "crash").await;
        times.0.push(began.elapsed());
    }
    manager
        .delete_vm("crash-1".into(), json!({ "deleteDisks": true }))
        .await
        .unwrap();
    figure("SIGKILL to crash event, median", times.median(), "ms", "");
    figure("SIGKILL to crash event, p99", times.at(0.99), "ms", "≤ 50");
}

/// What a run of many lives leaves in this process and on the host.
#[derive(Debug)]
struct Left {
    descriptors: usize,
    links: usize,
    chains: usize,
    files: usize,
    memory_kib: u64,
}

impl Left {
    async fn now(host: &Host) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            links: host.links().await.len(),
            chains: kit::machine::vm_chains().await.len(),
            files: host.files().len(),
            memory_kib: line.split_whitespace().nth(1).unwrap().parse().unwrap(),
        }
    }
}

async fn long_run(host: &Host, manager: &Manager, cycles: usize) {
    cycle(host, manager).await;
    let before = Left::now(host).await;
    for _ in 0..cycles {
        cycle(host, manager).await;
    }
    let after = Left::now(host).await;
    let name = |what: &str| format!("{cycles} lives: {what}");
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let more = |after: usize, before: usize| after as f64 - before as f64;
    figure(
        &name("descriptors more"),
        more(after.descriptors, before.descriptors),
        "",
        "0",
    );
    figure(
        &name("links more"),
        more(after.links, before.links),
        "",
        "0",
    );
    figure(
        &name("chains more"),
        more(after.chains, before.chains),
        "",
        "0",
    );
    figure(
        &name("files more"),
        more(after.files, before.files),
        "",
        "0",
    );
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let grown = (after.memory_kib as f64 - before.memory_kib as f64) / 1024.0;
    figure(&name("RSS more"), grown, "MiB", "≈ 0");
}

async fn cycle(host: &Host, manager: &Manager) {
    let id = || "life-1".to_owned();
    let forced = json!({ "graceful": false, "force": true });
    manager
        .create_vm(host.machine("life-1"), never())
        .await
        .unwrap();
    manager.stop_vm(id(), forced, never()).await.unwrap();
    manager.start_vm(id(), Value::Null, never()).await.unwrap();
    manager.destroy_vm(id()).await.unwrap();
    manager
        .delete_vm(id(), json!({ "deleteDisks": true }))
        .await
        .unwrap();
}
