//! The clone, and what the child does between it and `execve`.
//!
//! The child borrows our memory (`CLONE_VM`) and the calling thread sleeps until it has executed
//! its program or ended (`CLONE_VFORK`); our other threads run on. So the child may neither
//! allocate nor lock nor panic: it makes raw system calls on data that was laid out beforehand, and
//! writes the step that failed into memory we read afterwards.
//!
//! - It runs on a stack of its own with a guard page, with every signal blocked, and puts all
//!   signals back to their defaults before it unblocks them: a handler of ours never runs in it.
//! - It changes user by raw system calls. The C library's wrappers would change all *our* threads.
//! - Changing user marks the shared memory as not dumpable, which keeps other processes of that
//!   user from tracing the child while it still sees our memory. We put our own mark back after the
//!   child has left, and let only one such child at a time exist.
//! - No parent-death signal: the VM outlives us.
#![expect(
    unsafe_code,
    reason = "clone onto a private stack and raw system calls have no safe wrapper"
)]

use std::convert::Infallible;
use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};

use super::descriptors::DescriptorPlan;
use super::pidfd;
use super::spawn::RunAs;

const FLAGS: c_int = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
/// Much more than the child's few frames need, also without optimisation.
const STACK: usize = 128 * 1024;
/// The kernel's `sigset_t` is 64 bits on every architecture we build for.
const SIGNAL_SET: usize = 8;
const LAST_SIGNAL: c_int = 64;

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of its Display say it")]
pub enum SpawnStep {
    OpenNull,
    Stack,
    Clone,
    Session,
    Privileges,
    Descriptors,
    Directory,
    Groups,
    Group,
    User,
    Exec,
}

impl fmt::Display for SpawnStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenNull => "opening /dev/null",
            Self::Stack => "making its stack",
            Self::Clone => "making the process",
            Self::Session => "making its session",
            Self::Privileges => "giving up privileges",
            Self::Descriptors => "handing over descriptors",
            Self::Directory => "changing to /",
            Self::Groups => "changing its supplementary groups",
            Self::Group => "changing its group",
            Self::User => "changing its user",
            Self::Exec => "executing it",
        })
    }
}

/// What the new process is made of. `argv[0]` is the program's path.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) argv: Vec<CString>,
    pub(super) envp: Vec<CString>,
    pub(super) descriptors: DescriptorPlan,
    pub(super) user: Option<RunAs>,
}

/// A child that runs its program.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// The step, and why, as our side and as the child's side can say it.
type Failed = (SpawnStep, io::Error);
type ChildFailed = (SpawnStep, c_int);

/// Starts the program. Returns when it is executed, or when that failed and the child is reaped.
/// Blocks the calling thread meanwhile.
pub(super) fn vfork_exec(image: &mut Image) -> Result<Child, Failed> {
    let argv = pointers(&image.argv);
    let envp = pointers(&image.envp);
    let mut errand = Errand {
        argv: &argv,
        envp: &envp,
        descriptors: &mut image.descriptors,
        user: image.user.as_ref(),
        failed: None,
    };
    let _ours = errand.user.map(|_| OwnMemoryMark::keep());
    let child = clone_onto_stack(&mut errand)?;
    match errand.failed {
        None => Ok(child),
        Some((step, errno)) => {
            pidfd::reap(child.pidfd.as_fd());
            Err((step, io::Error::from_raw_os_error(errno)))
        }
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let strings = strings.iter().map(|string| string.as_ptr());
    strings.chain([ptr::null()]).collect()
}

fn clone_onto_stack(errand: &mut Errand<'_>) -> Result<Child, Failed> {
    let stack = Stack::new().map_err(|error| (SpawnStep::Stack, error))?;
    let mut pidfd: RawFd = -1;
    let blocked = AllSignalsBlocked::now();
    // SAFETY: the stack is fresh and outlives the child's use of it, as does the errand: CLONE_VFORK
    // makes this call return only after the child has left our memory. Nobody else reads or writes
    // the errand meanwhile, and the child makes system calls only.
    let pid = unsafe {
        libc::clone(
            run_errand,
            stack.top(),
            FLAGS,
            ptr::from_mut(errand).cast(),
            &raw mut pidfd,
        )
    };
    let error = io::Error::last_os_error();
    drop(blocked);
    if pid < 0 {
        return Err((SpawnStep::Clone, error));
    }
    // SAFETY: CLONE_PIDFD has stored a new descriptor there, which is ours alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid, pidfd })
}

/// What the child is to do, and where it notes what it could not.
struct Errand<'a> {
    argv: &'a [*const c_char],
    envp: &'a [*const c_char],
    descriptors: &'a mut DescriptorPlan,
    user: Option<&'a RunAs>,
    failed: Option<ChildFailed>,
}

extern "C" fn run_errand(errand: *mut c_void) -> c_int {
    // SAFETY: it is the errand given to clone; our thread sleeps and does not touch it.
    let errand = unsafe { &mut *errand.cast::<Errand<'_>>() };
    let Err(failed) = errand.run();
    errand.failed = Some(failed);
    // SAFETY: ends the child alone, and runs none of our exit handlers.
    unsafe { libc::_exit(127) }
}

impl Errand<'_> {
    fn run(&mut self) -> Result<Infallible, ChildFailed> {
        default_signals();
        call(SpawnStep::Session, libc::SYS_setsid, [0; 5])?;
        give_up_privileges()?;
        self.hand_over_descriptors()?;
        let root = c"/".as_ptr() as c_long;
        call(SpawnStep::Directory, libc::SYS_chdir, [root, 0, 0, 0, 0])?;
        if let Some(user) = self.user {
            change_user(user)?;
        }
        unblock_signals();
        let path = self.argv.first().copied().unwrap_or(ptr::null()) as c_long;
        let (argv, envp) = (self.argv.as_ptr() as c_long, self.envp.as_ptr() as c_long);
        call(SpawnStep::Exec, libc::SYS_execve, [path, argv, envp, 0, 0])?;
        // execve returns only to say that it failed, which `call` has turned into an error.
        Err((SpawnStep::Exec, libc::ENOEXEC))
    }

    fn hand_over_descriptors(&mut self) -> Result<(), ChildFailed> {
        let step = SpawnStep::Descriptors;
        let (copy, floor) = (libc::F_DUPFD_CLOEXEC.into(), self.descriptors.floor.into());
        for (source, _) in &mut self.descriptors.moves {
            let above = [c_long::from(*source), copy, floor, 0, 0];
            let copied = call(step, libc::SYS_fcntl, above)?;
            *source = c_int::try_from(copied).unwrap_or(-1);
        }
        for (source, target) in &self.descriptors.moves {
            let to = [c_long::from(*source), c_long::from(*target), 0, 0, 0];
            call(step, libc::SYS_dup3, to)?;
        }
        for (first, last) in &self.descriptors.closed {
            let range = [c_long::from(*first), c_long::from(*last), 0, 0, 0];
            call(step, libc::SYS_close_range, range)?;
        }
        Ok(())
    }
}

/// No set-user-id file or file capability gives privileges back, and none is passed on.
fn give_up_privileges() -> Result<(), ChildFailed> {
    let no_new = [libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0];
    let no_ambient = [
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL,
        0,
        0,
        0,
    ];
    for arguments in [no_new, no_ambient] {
        call(
            SpawnStep::Privileges,
            libc::SYS_prctl,
            arguments.map(c_long::from),
        )?;
    }
    Ok(())
}

/// Groups first: without the user's privileges they could not be changed any more.
fn change_user(user: &RunAs) -> Result<(), ChildFailed> {
    let count = c_long::try_from(user.groups.len()).unwrap_or(c_long::MAX);
    let groups = user.groups.as_ptr() as c_long;
    call(
        SpawnStep::Groups,
        libc::SYS_setgroups,
        [count, groups, 0, 0, 0],
    )?;
    let gid = c_long::from(user.gid);
    call(SpawnStep::Group, libc::SYS_setresgid, [gid, gid, gid, 0, 0])?;
    let uid = c_long::from(user.uid);
    call(SpawnStep::User, libc::SYS_setresuid, [uid, uid, uid, 0, 0])?;
    Ok(())
}

/// One raw system call. `errno` belongs to our sleeping thread, whose memory the child uses.
fn call(step: SpawnStep, number: c_long, args: [c_long; 5]) -> Result<c_long, ChildFailed> {
    // SAFETY: the callers pass what each call expects; pointers among it stay valid throughout.
    match unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) } {
        -1 => Err((step, io::Error::last_os_error().raw_os_error().unwrap_or(0))),
        result => Ok(result),
    }
}

/// Handlers go by themselves at `execve`; ignored signals (Node ignores SIGPIPE) would stay ignored.
fn default_signals() {
    // The kernel's sigaction: handler, flags, restorer, mask. SIG_DFL and "none" are zeroes.
    let default = [0_u64; 4];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the structure is read only. SIGKILL and SIGSTOP are refused, and need no reset.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<c_void>(),
                SIGNAL_SET,
            )
        };
    }
}

fn unblock_signals() {
    set_mask(0);
}

/// Sets the calling thread's signal mask and returns the old one. The C library's own function
/// would leave its two internal signals out.
fn set_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: both sets are 8 bytes long and live until the call returns; it cannot fail.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut old,
            SIGNAL_SET,
        )
    };
    old
}

struct AllSignalsBlocked(u64);

impl AllSignalsBlocked {
    fn now() -> Self {
        Self(set_mask(u64::MAX))
    }
}

impl Drop for AllSignalsBlocked {
    fn drop(&mut self) {
        set_mask(self.0);
    }
}

/// Puts our memory's "dumpable" mark back, which a child that changes user takes away from it.
struct OwnMemoryMark {
    was_dumpable: bool,
    _one_at_a_time: MutexGuard<'static, ()>,
}

static CHANGING_USER: Mutex<()> = Mutex::new(());

impl OwnMemoryMark {
    fn keep() -> Self {
        let one_at_a_time = CHANGING_USER.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            was_dumpable: dumpable_behavior() == Ok(DumpableBehavior::Dumpable),
            _one_at_a_time: one_at_a_time,
        }
    }
}

impl Drop for OwnMemoryMark {
    fn drop(&mut self) {
        if self.was_dumpable {
            // It can only fail for a mark that does not exist.
            let _set = set_dumpable_behavior(DumpableBehavior::Dumpable);
        }
    }
}

/// A stack with a guard page at its low end: an overflow ends the child, and writes nowhere.
struct Stack(*mut c_void);

impl Stack {
    const GUARD: usize = 64 * 1024;

    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let low = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::GUARD + STACK,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        if low == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self(low);
        // SAFETY: the range is the upper part of the mapping made above.
        match unsafe {
            libc::mprotect(
                low.add(Self::GUARD),
                STACK,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        } {
            0 => Ok(stack),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Stacks grow downwards; the end of the mapping is aligned as every ABI wants it.
    fn top(&self) -> *mut c_void {
        // SAFETY: one past the mapping's last byte is still a valid address to compute.
        unsafe { self.0.add(Self::GUARD + STACK) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody runs on it any more.
        unsafe { libc::munmap(self.0, Self::GUARD + STACK) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked_here() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    }

    #[test]
    fn the_calling_threads_mask_is_put_back() {
        const NEVER_BLOCKED: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);
        let before = blocked_here();
        let blocked = AllSignalsBlocked::now();
        assert_eq!(blocked_here(), !NEVER_BLOCKED);
        drop(blocked);
        assert_eq!(blocked_here(), before);
    }
}
