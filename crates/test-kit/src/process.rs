//! What the process tests share: processes of their own, and what `/proc` says about others.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use infinization_core::host::process::{
    ProcessHandle, ProcessId, Signal, SpawnSpec, StderrLog, boot_id, spawn,
};

/// Longer than anything takes on a busy machine; reaching it is a failure.
pub const SOON: Duration = Duration::from_secs(60);

const ROLE: &str = "INFINIZATION_TEST_ROLE";

/// Runs `body` in a process of its own: this test binary again, asked for this one test. There it
/// may change what belongs to the whole process, and count its children.
pub fn in_own_process(test: &str, body: impl FnOnce()) {
    if plays(test) {
        return body();
    }
    passes(test, &mut own_process(test));
}

/// As [`in_own_process`], with nothing in `PATH` but the toolbox, which `body` may rummage in.
pub fn in_own_process_with(
    test: &str,
    toolbox: impl FnOnce() -> Toolbox,
    body: impl FnOnce(Tools),
) {
    if plays(test) {
        return body(Tools::of_this_process());
    }
    let toolbox = toolbox();
    passes(test, own_process(test).env("PATH", toolbox.0.path()));
}

fn passes(test: &str, process: &mut Command) {
    let output = process.output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{test}: {}\n{words}",
        output.status
    );
    assert!(
        words.contains("1 passed"),
        "no test is called {test}\n{words}"
    );
    for line in words.lines().filter(|line| line.starts_with("measured")) {
        println!("{line}");
    }
}

/// Whether this process is the one [`own_process`] started for `test`.
pub fn plays(test: &str) -> bool {
    std::env::var(ROLE).is_ok_and(|role| role == test)
}

/// This test binary again, to play its part of `test`.
pub fn own_process(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, test)
        .stdin(Stdio::null());
    command
}

/// A directory of programs.
#[derive(Debug)]
pub struct Toolbox(tempfile::TempDir);

impl Toolbox {
    /// With these of the host's programs in it.
    pub fn of(programs: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = std::env::var_os("PATH").unwrap();
        for program in programs {
            let mut places = std::env::split_paths(&path).map(|place| place.join(program));
            let real = places.find(|place| place.exists());
            let real = real.unwrap_or_else(|| panic!("{program} is not installed"));
            std::os::unix::fs::symlink(real, directory.path().join(program)).unwrap();
        }
        Self(directory)
    }
}

/// The toolbox, seen by the process that has it for a `PATH`.
#[derive(Debug, Clone)]
pub struct Tools(PathBuf);

impl Tools {
    fn of_this_process() -> Self {
        Self(std::env::var_os("PATH").unwrap().into())
    }

    /// From now on the program is not installed.
    pub fn take_away(&self, program: &str) {
        fs::rename(self.0.join(program), self.hidden(program)).unwrap();
    }

    /// It is installed again.
    pub fn put_back(&self, program: &str) {
        fs::rename(self.hidden(program), self.0.join(program)).unwrap();
    }

    /// From now on this shell script is the program, which it knows as `$real`.
    pub fn wrap(&self, program: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        self.take_away(program);
        let (path, real) = (self.0.join(program), self.hidden(program));
        let script = format!("#!/bin/sh\nreal={}\n{script}\n", real.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The program is itself again.
    pub fn unwrap(&self, program: &str) {
        fs::remove_file(self.0.join(program)).unwrap();
        self.put_back(program);
    }

    fn hidden(&self, program: &str) -> PathBuf {
        self.0.join(format!(".{program}"))
    }
}

/// Whether this process has children at all, reaped ones aside. Takes none of their statuses.
pub fn has_children() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::All, look).is_ok()
}

/// An open log in `dir`.
pub fn log_in(dir: &Path) -> (StderrLog, OwnedFd) {
    let log = StderrLog::at(dir.join("stderr.log"));
    let file = log.open().unwrap();
    (log, file)
}

/// A program whose words go nowhere.
pub fn quiet(program: &str) -> SpawnSpec {
    SpawnSpec::new(program, fs::File::create("/dev/null").unwrap())
}

/// A shell script whose words go nowhere.
pub fn script(text: &str) -> SpawnSpec {
    quiet("sh").args(["-c", text])
}

/// The lines of `/proc/<pid>/status`.
pub fn status(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Which file each descriptor of a process is.
pub fn descriptors(pid: i32) -> BTreeMap<i32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let number = entry.file_name().to_str().unwrap().parse().unwrap();
            let file = fs::read_link(entry.path()).unwrap();
            (number, file.display().to_string())
        })
        .collect()
}

/// A process that does not outlive its test, also when that fails.
#[derive(Debug)]
pub struct Started(ProcessHandle);

impl std::ops::Deref for Started {
    type Target = ProcessHandle;

    fn deref(&self) -> &ProcessHandle {
        &self.0
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.0.signal(Signal::KILL).unwrap();
    }
}

/// Starts a process and waits until `/proc` shows it as the program it is.
pub async fn started(spec: SpawnSpec) -> Started {
    let process = Started(spawn(spec).await.unwrap());
    let cmdline = format!("/proc/{}/cmdline", process.pid());
    eventually(|| !fs::read(&cmdline).unwrap().is_empty()).await;
    process
}

/// Waits until `/proc/<pid>/status` says so.
pub async fn until(process: &ProcessHandle, so: impl Fn(&BTreeMap<String, String>) -> bool) {
    eventually(|| so(&status(process.pid()))).await;
}

/// Waits for what the kernel announces to nobody.
pub async fn eventually(so: impl Fn() -> bool) {
    let waited = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SOON, waited).await.unwrap();
}

/// Ends a process the test started.
pub async fn end(process: &ProcessHandle) {
    process.kill_now().await.unwrap();
}

/// What follows `-name` on the command line of the VM called `vm`.
pub fn name_of(vm: &str) -> String {
    format!("guest={vm},debug-threads=on")
}

/// A look-alike of a VM's QEMU that is not our child, and its parent, which ends with the test.
#[derive(Debug)]
pub struct ForeignQemu {
    parent: std::process::Child,
    /// The look-alike's number.
    pub pid: i32,
}

impl ForeignQemu {
    /// Starts a program that looks like the QEMU of `vm` and runs `script`. Its parent then does
    /// `then`: `wait` reaps it, `exec sleep` never does.
    pub fn start(vm: &str, script: &str, then: &str) -> Self {
        use std::io::{BufRead as _, BufReader};
        let parent = r#"bash -c 'exec -a /usr/bin/qemu-system-fake sh -c "$1" -name "$2"' - "$1" "$2" &
            echo $!
            eval "$3""#;
        let mut parent = Command::new("bash")
            .args(["-c", parent, "-", script, &name_of(vm), then])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = parent.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        Self { parent, pid }
    }

    /// Waits until the parent has become another program.
    pub async fn parent_is(&self, program: &str) {
        let comm = format!("/proc/{}/comm", self.parent.id());
        eventually(|| fs::read_to_string(&comm).unwrap().trim() == program).await;
    }
}

impl Drop for ForeignQemu {
    fn drop(&mut self) {
        self.parent.kill().unwrap();
        self.parent.wait().unwrap();
    }
}

/// Reads the identity of a running process the way the library writes it.
pub fn identity_of(pid: i32) -> ProcessId {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    ProcessId {
        pid,
        start_time: fields[19].parse().unwrap(),
        boot_id: boot_id().unwrap(),
    }
}

/// Whether the kernel tells how a process ended that is not our child (6.15 and later).
pub fn kernel_remembers_exits() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

/// Runs `test` on a thread whose mounts are its own, as are those of the threads it starts.
pub fn in_private_mounts(test: impl FnOnce() + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    let outcome = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .expect("private mounts need root (CAP_SYS_ADMIN): run the tests as root");
        let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(none, "/", none, private, none).unwrap();
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Mounts a file system of this type, in [`in_private_mounts`].
pub fn mount_at(dir: &Path, kind: &str, options: Option<&str>) {
    nix::mount::mount(
        Some(kind),
        dir,
        Some(kind),
        nix::mount::MsFlags::empty(),
        options,
    )
    .unwrap();
}

/// Takes it away again.
pub fn unmount(dir: &Path) {
    nix::mount::umount2(dir, nix::mount::MntFlags::MNT_DETACH).unwrap();
}
