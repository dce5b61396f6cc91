//! Whether the kernel's out-of-memory killer ended a process: the evidence, not a guess.
//!
//! Two things prove it. The memory cgroup the process was in has counted a kill since, and no other
//! process was in it ([`MemoryWatch`], cgroup v2 and v1). Or the kernel's log names the pid
//! ([`killed_in_log`]); a process of an inner pid namespace has another number there, so that is
//! asked only in the outermost. A SIGKILL alone proves nothing: an administrator sends the same.

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::host::cgroup::counter;
use crate::host::process::{ProcessId, boot_id};

/// `/proc/self/ns/pid` in the outermost pid namespace (`PROC_PID_INIT_INO`, Linux 3.8).
const OUTERMOST: &str = "pid:[4026531836]";
/// How far the clock of the kernel's log may be off.
const CLOCK_SLACK: Duration = Duration::from_secs(2);
/// One record of `/dev/kmsg` is shorter (`PRINTK_MESSAGE_MAX`).
const RECORD: usize = 8192;

/// A process' memory cgroup, and how many kills it had counted when the process began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryWatch {
    directory: PathBuf,
    file: &'static str,
    before: u64,
}

impl MemoryWatch {
    /// Looks at the cgroup of a living process; `None` where the kernel counts nothing. Blocks.
    pub fn of(pid: i32) -> Option<Self> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let (directory, file) = memory_cgroup(&groups, &mounts)?;
        Self::at(directory, file)
    }

    fn at(directory: PathBuf, file: &'static str) -> Option<Self> {
        let mut watch = Self {
            directory,
            file,
            before: 0,
        };
        watch.before = watch.kills()?;
        Some(watch)
    }

    /// What the cgroup tells of a process that has ended by SIGKILL. Blocks.
    fn evidence(&self) -> Option<String> {
        let now = self.kills()?;
        let others = fs::read_to_string(self.directory.join("cgroup.procs")).ok()?;
        let was_alone = others.trim().is_empty();
        (now > self.before && was_alone).then(|| {
            let file = self.directory.join(self.file);
            format!("{}: oom_kill {} -> {now}", file.display(), self.before)
        })
    }

    fn kills(&self) -> Option<u64> {
        let text = fs::read_to_string(self.directory.join(self.file)).ok()?;
        counter(&text, "oom_kill")
    }
}

/// What proves that the out-of-memory killer ended this process. `scope` is the cgroup v2 scope of
/// its own, which is made anew for every run, if it had one. Blocks.
pub fn evidence(process: &ProcessId, watch: Option<&MemoryWatch>, scope: &Path) -> Option<String> {
    let own = || MemoryWatch {
        directory: scope.to_owned(),
        file: "memory.events",
        before: 0,
    };
    watch
        .and_then(MemoryWatch::evidence)
        .or_else(|| own().evidence())
        .or_else(|| killed_in_log(process))
}

/// The kernel's own words, if its log names the process. Blocks.
fn killed_in_log(process: &ProcessId) -> Option<String> {
    let outermost = fs::read_link("/proc/self/ns/pid").is_ok_and(|ns| ns.as_os_str() == OUTERMOST);
    if !outermost || boot_id().ok()? != process.boot_id {
        return None;
    }
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::from_secs(u64::try_from(now.tv_sec).ok()?);
    // The log's clock stands still while the host sleeps, a process' age does not: early is safe.
    let began = now.saturating_sub(process.age().ok()? + CLOCK_SLACK);
    let mut killed = None;
    for record in kernel_log() {
        killed = kill_of(&record, process.pid, began).or(killed);
    }
    killed
}

/// The records of the kernel's log, oldest first; none where it may not be read.
fn kernel_log() -> impl Iterator<Item = String> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut log = options.open("/dev/kmsg").ok();
    std::iter::from_fn(move || {
        let mut record = vec![0; RECORD];
        loop {
            match log.as_mut()?.read(&mut record) {
                Ok(length) => {
                    return Some(String::from_utf8_lossy(record.get(..length)?).into_owned());
                }
                // Records were overwritten under us; the next read goes on with the oldest there is.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_end) => return None,
            }
        }
    })
}

/// The words of `<6>,<seq>,<µs>,-;[Memory cgroup o|O]ut of memory: Kill(ed) process <pid> (<name>) …`
/// (Linux 2.6.36 on), if they are about this process and no earlier one of its number.
fn kill_of(record: &str, pid: i32, began: Duration) -> Option<String> {
    let (prefix, text) = record.split_once(';')?;
    let words = text.lines().next()?;
    let kill = words.to_ascii_lowercase();
    let (_, victim) = kill.split_once("out of memory: kill")?;
    let (_, victim) = victim.split_once("process ")?;
    let number = victim.split([' ', ',']).next()?;
    let micros: u64 = prefix.split(',').nth(2)?.parse().ok()?;
    let is_it = number.parse() == Ok(pid) && Duration::from_micros(micros) >= began;
    is_it.then(|| format!("kernel log: {words}"))
}

/// Where a process' memory is counted, and in which file.
fn memory_cgroup(groups: &str, mounts: &str) -> Option<(PathBuf, &'static str)> {
    let lines = || {
        groups
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.1))
    };
    let v1 = lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?;
        controllers
            .split(',')
            .any(|one| one == "memory")
            .then_some(path)
    });
    if let Some(path) = v1 {
        let place = mounted(mounts, path, |kind, options| {
            kind == "cgroup" && options.split(',').any(|one| one == "memory")
        });
        return Some((place?, "memory.oom_control"));
    }
    let path = lines().find_map(|line| line.strip_prefix(':'))?;
    let place = mounted(mounts, path, |kind, _| kind == "cgroup2");
    Some((place?, "memory.events"))
}

/// Where the cgroup `path` is seen, by `/proc/self/mountinfo`:
/// `36 35 98:0 <root> <mount point> <options> [optional…] - <type> <source> <super options>`.
fn mounted(mounts: &str, path: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut what = what.split(' ');
        let (kind, options) = (what.next()?, what.nth(1)?);
        if !wanted(kind, options) {
            return None;
        }
        let inside = Path::new(path).strip_prefix(root).ok()?;
        Some(Path::new(point).join(inside))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f14_the_kernel_log_names_the_process_it_killed() {
        let began = Duration::from_secs(100);
        let v4 = "6,1,200000000,-;Killed process 4711 (qemu) total-vm:1kB, anon-rss:1kB";
        let v5 = "3,812,200000000,-;Out of memory: Killed process 4711 (qemu-system-x86) total-vm:4812744kB, anon-rss:1052312kB, file-rss:0kB, shmem-rss:4kB, UID:0 pgtables:2620kB oom_score_adj:0";
        let group = "3,812,200000000,-;Memory cgroup out of memory: Killed process 4711 (qemu-system-x86) total-vm:1kB\n SUBSYSTEM=x\n";
        let old = "3,812,200000000,-;Memory cgroup out of memory: Kill process 4711 (qemu) score 1 or sacrifice child";
        let task =
            "6,811,200000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,task=qemu,pid=4711,uid=0";
        for (record, pid, killed) in [
            (v4, 4711, false),
            (v5, 4711, true),
            (v5, 471, false),
            (v5, 47110, false),
            (group, 4711, true),
            (old, 4711, true),
            (task, 4711, false),
            (
                "3,1,99000000,-;Out of memory: Killed process 4711 (x)",
                4711,
                false,
            ),
            (
                "3,1,200000000,-;x: Out of memory: Killed process",
                4711,
                false,
            ),
            ("garbage", 4711, false),
        ] {
            let words = kill_of(record, pid, began);
            assert_eq!(words.is_some(), killed, "{record}");
        }
        let words = kill_of(group, 4711, began).unwrap();
        assert!(words.ends_with("total-vm:1kB"), "one line: {words}");
    }

    #[test]
    fn finds_where_memory_is_counted() {
        let v1 = "9:name=systemd:/x\n4:memory,hugetlb:/a/b\n0::/c\n";
        let v2 = "0::/infinization.slice/qemu-vm-1.scope\n";
        let one = "30 20 0:25 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let both = "31 20 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                    32 20 0:27 /a /cg/memory rw - cgroup cgroup rw,memory,hugetlb\n\
                    33 20 0:28 / /cg/unified rw - cgroup2 none rw\n";
        let of = |groups, mounts| {
            memory_cgroup(groups, mounts).map(|(path, file)| (path.display().to_string(), file))
        };
        for (groups, mounts, expected) in [
            (v1, both, Some(("/cg/memory/b", "memory.oom_control"))),
            (
                v2,
                both,
                Some((
                    "/cg/unified/infinization.slice/qemu-vm-1.scope",
                    "memory.events",
                )),
            ),
            (
                v2,
                one,
                Some((
                    "/sys/fs/cgroup/infinization.slice/qemu-vm-1.scope",
                    "memory.events",
                )),
            ),
            (v1, one, None),
            ("4:memory:/elsewhere\n", both, None),
            ("0::/../x\n", "1 2 3:4 /y /p rw - cgroup2 c rw\n", None),
            ("", both, None),
        ] {
            let expected = expected.map(|(path, file)| (path.to_owned(), file));
            assert_eq!(of(groups, mounts), expected, "{groups}");
        }
    }

    #[test]
    fn f14_a_kill_counts_only_where_the_process_was_alone() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let v1 = |kills| format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
        write("memory.oom_control", &v1(2));
        write("cgroup.procs", "");
        let watch = MemoryWatch::at(directory.path().to_owned(), "memory.oom_control").unwrap();
        assert_eq!(watch.evidence(), None, "none since");
        write("memory.oom_control", &v1(3));
        let words = watch.evidence().unwrap();
        assert!(
            words.ends_with("memory.oom_control: oom_kill 2 -> 3"),
            "{words}"
        );
        write("cgroup.procs", "17\n");
        assert_eq!(watch.evidence(), None, "another process may have been it");
        assert_eq!(
            MemoryWatch::at(directory.path().to_owned(), "memory.events"),
            None
        );
    }

    #[test]
    fn a_process_that_nobody_killed_has_no_evidence() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let watch = MemoryWatch::of(pid);
        let id = ProcessId {
            pid,
            start_time: 1,
            boot_id: boot_id().unwrap(),
        };
        child.kill().unwrap();
        child.wait().unwrap();
        let scope = Path::new("/sys/fs/cgroup/absent");
        assert_eq!(evidence(&id, watch.as_ref(), scope), None);
    }
}
