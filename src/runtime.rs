//! The threads on which everything asynchronous runs: made once, when the addon is first loaded.
//!
//! Where the host gives no thread or descriptor for it, tokio panics, or waits for ever for the threads
//! it did get, and napi-rs panics in a function that must not (fault F47). So threads are counted first,
//! and what cannot be had is said by [`refused`], which `index.js` asks before anybody has a class.

use std::sync::{Mutex, OnceLock, mpsc};
use std::thread::{self, Builder as Thread};
use std::time::Duration;

use infinization_core::{ErrorCode, Failure};
use napi::bindgen_prelude::{Object, create_custom_tokio_runtime};
use napi_derive::napi;
use tokio::runtime::{Builder, Runtime};

/// How many threads at most follow sockets and timers, on however large a host: what takes a while has
/// threads of its own, and each of these keeps memory of what it did.
const MOST_WORKERS: usize = 4;

/// The thread that asks for the others, and one of those that were counted: the kernel may count it a little longer.
const SPARE: usize = 2;
/// For a few threads to begin, on however busy a host.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether there are threads.
static STARTED: OnceLock<bool> = OnceLock::new();

/// Runs in every environment that loads the addon, before napi-rs looks for a runtime, and not within
/// `dlopen`, whose lock a thread needs that ends.
#[napi(module_exports)]
pub fn start(_exports: Object) {
    STARTED.get_or_init(|| {
        let runtime = working();
        let started = runtime.is_some();
        // Without any, napi-rs would make one of its own, with threads.
        if let Some(runtime) = runtime.or_else(idle) {
            create_custom_tokio_runtime(runtime);
        }
        started
    });
}

/// Why nothing can be done in this process, if so.
pub(crate) fn refused() -> Option<Failure> {
    let started = STARTED.get().copied().unwrap_or_default();
    (!started).then(|| {
        let why = "the host gives this process no threads or descriptors to work with";
        Failure::new(ErrorCode::SpawnFailed, why)
    })
}

/// One with as many threads as there are CPUs for, or as the host gives.
fn working() -> Option<Runtime> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let workers = obtainable(cpus.min(MOST_WORKERS) + SPARE).saturating_sub(SPARE);
    if workers == 0 {
        return None;
    }
    let (built, runtime) = mpsc::channel();
    let build = move || drop(built.send(many(workers)));
    // A thread that somebody else has taken meanwhile leaves that one waiting, and not this.
    Thread::new().spawn(build).ok()?;
    runtime.recv_timeout(PATIENCE).ok()?
}

fn many(workers: usize) -> Option<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers).enable_all().build().ok()
}

/// How many threads the host gives now, all at once, up to `most`.
fn obtainable(most: usize) -> usize {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let closed = gate.lock();
        let waits = || drop(gate.lock());
        let more = |_| Thread::new().spawn_scoped(scope, waits).ok();
        let threads: Vec<_> = (0..most).map_while(more).collect();
        drop(closed);
        let ended = threads.into_iter().filter_map(|thread| thread.join().ok());
        ended.count()
    })
}

/// One without threads and descriptors, which nothing is given to.
fn idle() -> Option<Runtime> {
    Builder::new_current_thread().build().ok()
}
