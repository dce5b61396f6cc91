//! Starting processes: what the program gets, what it does not get, and every way to fail.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use infinization_core::host::process::{Exit, ProcessError, RunAs, SpawnStep, spawn};
use infinization_core::{Coded, ErrorCode};
use infinization_test_kit as kit;
use kit::process::{
    descriptors, end, has_children, in_own_process, log_in, quiet, script, started, status, until,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, dumpable_behavior, setrlimit};

const NOBODY: u32 = 65534;

fn nobody() -> RunAs {
    RunAs {
        uid: NOBODY,
        gid: NOBODY,
        groups: vec![NOBODY, 36],
    }
}

#[tokio::test]
async fn descriptors_arrive_under_their_numbers_and_no_other_does() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| OwnedFd::from(File::create(dir.path().join(name)).unwrap());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (a, b, c, d) = (open("a"), open("b"), open("c"), open("d"));
    // Not marked close-on-exec, as a careless addon leaves them, low and high.
    let leaky = rustix::io::dup(&d).unwrap();
    let high = rustix::io::fcntl_dupfd_cloexec(&d, 700).unwrap();
    rustix::io::fcntl_setfd(&high, rustix::io::FdFlags::empty()).unwrap();

    // a and b swap numbers, c keeps its own, d takes the log's.
    let (log, stderr) = log_in(dir.path());
    let (at_a, at_b, at_c, at_log) = (
        a.as_raw_fd(),
        b.as_raw_fd(),
        c.as_raw_fd(),
        stderr.as_raw_fd(),
    );
    let mut spec = quiet("sleep").args(["1000"]);
    spec.stderr = stderr;
    let spec = spec.fd(a, at_b).fd(b, at_a).fd(c, at_c).fd(d, at_log);
    let process = spawn(spec).await.unwrap();

    let expected = [
        (0, "/dev/null".to_owned()),
        (1, "/dev/null".to_owned()),
        (2, log.path().display().to_string()),
        (at_b, path("a")),
        (at_a, path("b")),
        (at_c, path("c")),
        (at_log, path("d")),
    ];
    // The loader opens libraries; asleep, the program is past it.
    until(&process, |status| status["State"].starts_with('S')).await;
    assert_eq!(descriptors(process.pid()), expected.into());
    end(&process).await;
    drop((leaky, high));
}

#[tokio::test]
async fn our_copies_of_the_descriptors_are_closed() {
    let (reader, writer) = std::io::pipe().unwrap();
    let process = spawn(quiet("sleep").args(["1000"]).fd(writer, 3))
        .await
        .unwrap();
    end(&process).await;
    // Only the program had the other end: reading sees its end, and does not wait for ours.
    assert_eq!(std::io::read_to_string(reader).unwrap(), "");
}

#[tokio::test]
async fn the_program_has_a_session_a_directory_and_an_environment_of_its_own() {
    let mut spec = quiet("sleep").args(["1000"]);
    spec.env.push("EXTRA=yes".into());
    let process = started(spec).await;
    let pid = process.pid();

    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(fields[2], pid.to_string(), "process group");
    assert_eq!(fields[3], pid.to_string(), "session");
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(),
        Some("/")
    );
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert_eq!(
        environment,
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\0LC_ALL=C\0EXTRA=yes\0"
    );
    end(&process).await;
}

#[tokio::test]
async fn signals_are_back_to_their_defaults() {
    const SIGPIPE: u64 = 1 << (libc::SIGPIPE - 1);
    let ours = &status(i32::try_from(std::process::id()).unwrap())["SigIgn"];
    let ours = u64::from_str_radix(ours, 16).unwrap();
    assert_ne!(
        ours & SIGPIPE,
        0,
        "Rust programs, like Node, ignore SIGPIPE"
    );

    let process = spawn(quiet("sleep").args(["1000"])).await.unwrap();
    let theirs = status(process.pid());
    for set in ["SigIgn", "SigBlk", "SigCgt"] {
        assert_eq!(theirs[set], "0000000000000000", "{set}");
    }
    end(&process).await;
}

#[tokio::test]
async fn the_user_is_dropped_for_good_and_ours_is_unchanged() {
    let us = i32::try_from(std::process::id()).unwrap();
    let before = status(us);
    let running = futures_util::future::join_all((0..8).map(|_| {
        let spec = quiet("sleep").args(["1000"]).user(Some(nobody()));
        async { spawn(spec).await.unwrap() }
    }))
    .await;
    for process in &running {
        let theirs = status(process.pid());
        assert_eq!(theirs["Uid"], "65534\t65534\t65534\t65534");
        assert_eq!(theirs["Gid"], "65534\t65534\t65534\t65534");
        assert_eq!(theirs["Groups"], "36 65534");
        assert_eq!(theirs["NoNewPrivs"], "1");
        for set in ["CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(theirs[set], "0000000000000000", "{set}");
        }
        end(process).await;
    }
    let after = status(us);
    for field in ["Uid", "Gid", "Groups", "CapEff", "NoNewPrivs"] {
        assert_eq!(before[field], after[field], "{field} of our own process");
    }
    // The child's change of user takes the mark from the memory it shares with us.
    assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::Dumpable);
}

#[tokio::test]
async fn standard_error_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (log, stderr) = log_in(dir.path());
    let mut spec = script("echo 'qemu: it is over' >&2; echo unheard; exit 1");
    spec.stderr = stderr;
    let process = spawn(spec).await.unwrap();
    assert_eq!(process.exited().await, Exit::Code(1));
    assert_eq!(log.tail().unwrap(), "qemu: it is over");
}

#[test]
fn a_program_that_cannot_be_executed_says_why_and_leaves_no_child() {
    in_own_process(
        "a_program_that_cannot_be_executed_says_why_and_leaves_no_child",
        || {
            let dir = tempfile::tempdir().unwrap();
            let file = |name: &str, text: &str, mode| {
                let path = dir.path().join(name);
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                path.display().to_string()
            };
            let table = [
                (
                    "/no/such/qemu".to_owned(),
                    libc::ENOENT,
                    ErrorCode::ProgramNotFound,
                ),
                (
                    file("plain", "x", 0o644),
                    libc::EACCES,
                    ErrorCode::SpawnFailed,
                ),
                (
                    file("empty", "", 0o755),
                    libc::ENOEXEC,
                    ErrorCode::SpawnFailed,
                ),
                (
                    file("orphan", "#!/no/interpreter\n", 0o755),
                    libc::ENOENT,
                    ErrorCode::ProgramNotFound,
                ),
                (
                    dir.path().display().to_string(),
                    libc::EACCES,
                    ErrorCode::SpawnFailed,
                ),
            ];
            kit::runtime().block_on(async {
                for (program, errno, code) in table {
                    let error = spawn(quiet(&program)).await.unwrap_err();
                    assert!(
                        matches!(&error, ProcessError::Spawn { step: SpawnStep::Exec, source, .. }
                            if source.raw_os_error() == Some(errno)),
                        "{program}: {error:?}"
                    );
                    assert_eq!(error.code(), code, "{program}");
                    assert_eq!(error.context()["errno"], errno);
                }
                let error = spawn(quiet("no-such-program-here")).await.unwrap_err();
                assert_eq!(error.code(), ErrorCode::ProgramNotFound);
            });
            assert!(!has_children());
        },
    );
}

#[test]
fn a_step_the_kernel_refuses_is_named() {
    in_own_process("a_step_the_kernel_refuses_is_named", || {
        kit::runtime().block_on(async {
            let no_such_group = Some(RunAs {
                groups: vec![u32::MAX],
                ..nobody()
            });
            let error = spawn(quiet("true").user(no_such_group)).await.unwrap_err();
            assert!(
                matches!(
                    &error,
                    ProcessError::Spawn {
                        step: SpawnStep::Groups,
                        ..
                    }
                ),
                "{error:?}"
            );
            assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::Dumpable);
        });
        assert!(!has_children());
    });
}

#[test]
fn f47_without_free_descriptors_a_start_fails_cleanly() {
    in_own_process("f47_without_free_descriptors_a_start_fails_cleanly", || {
        let low = Rlimit {
            current: Some(64),
            maximum: Some(64),
        };
        setrlimit(Resource::Nofile, low).unwrap();
        kit::runtime().block_on(async {
            // Whatever is opened once, is open before the descriptors run out.
            let process = spawn(quiet("true")).await.unwrap();
            assert_eq!(process.exited().await, Exit::Code(0));
            let mut refused = 0;
            for free in 0..12 {
                let spec = quiet("true").fd(File::open("/dev/null").unwrap(), 40);
                let mut filled = fill_descriptors();
                filled.truncate(filled.len() - free);
                match spawn(spec).await {
                    Ok(process) => assert_eq!(process.exited().await, Exit::Code(0)),
                    Err(error) => {
                        assert_eq!(error.context()["errno"], libc::EMFILE, "{free}: {error:?}");
                        refused += 1;
                    }
                }
            }
            assert!((1..12).contains(&refused), "{refused} of 12 were refused");
        });
        assert!(!has_children());
    });
}

fn fill_descriptors() -> Vec<File> {
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[test]
fn f52_a_dropped_start_leaves_no_process() {
    in_own_process("f52_a_dropped_start_leaves_no_process", || {
        for microseconds in [0, 50, 200, 500, 1000, 3000] {
            let runtime = kit::runtime();
            runtime.block_on(async {
                let start = spawn(quiet("sleep").args(["1000"]));
                let window = Duration::from_micros(microseconds);
                if let Ok(process) = tokio::time::timeout(window, start).await {
                    end(&process.unwrap()).await;
                }
            });
            // Waits for the started work, and drops what nobody asked for.
            drop(runtime);
            assert!(!has_children(), "dropped after {microseconds} µs");
        }
    });
}

#[test]
fn a_large_process_starts_programs_as_a_small_one_does() {
    const TEST: &str = "a_large_process_starts_programs_as_a_small_one_does";
    in_own_process(TEST, || {
        let runtime = kit::runtime();
        let small = runtime.block_on(median_start());
        let mut memory = vec![0_u8; 1 << 30];
        for page in memory.chunks_mut(4096) {
            page[0] = 1;
        }
        let large = runtime.block_on(median_start());
        eprintln!("measured: a start takes {small:?}, with 1 GiB touched {large:?}");
        assert_eq!(memory[1 << 29], 1, "the memory is ours, and unchanged");
        assert!(!has_children());
    });
}

async fn median_start() -> Duration {
    let mut times = Vec::new();
    for _ in 0..21 {
        let began = Instant::now();
        let process = spawn(quiet("true").user(Some(nobody()))).await.unwrap();
        times.push(began.elapsed());
        assert_eq!(process.exited().await, Exit::Code(0));
    }
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
async fn starts_in_parallel_do_not_mix_their_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let starts = (0..32).map(|number| {
        let file = File::create(dir.path().join(number.to_string())).unwrap();
        let spec = script(&format!("echo {number} >&7")).fd(file, 7);
        async { spawn(spec).await.unwrap().exited().await }
    });
    for exit in futures_util::future::join_all(starts).await {
        assert_eq!(exit, Exit::Code(0));
    }
    for number in 0..32 {
        let text = fs::read_to_string(dir.path().join(number.to_string())).unwrap();
        assert_eq!(text, format!("{number}\n"));
    }
}
