//! The threads on which everything asynchronous runs: made once, when the addon is first loaded.
//!
//! Where the host gives no thread or descriptor for it, tokio panics, or waits for ever for the threads
//! it did get, and napi-rs panics in a function that must not (fault F47). So threads are counted first,
//! and what cannot be had is said by [`refused`], which `index.js` asks before anybody has a class.

use std::panic::catch_unwind;
use std::sync::{Mutex, OnceLock};
use std::thread;

use infinization_core::{ErrorCode, Failure};
use napi::bindgen_prelude::{Object, create_custom_tokio_runtime};
use napi_derive::napi;
use tokio::runtime::{Builder, Runtime};

/// How many threads at most follow sockets and timers, on however large a host: what takes a while has
/// threads of its own, and each of these keeps memory of what it did.
const MOST_WORKERS: usize = 4;

/// Whether there are threads.
static STARTED: OnceLock<bool> = OnceLock::new();

/// Runs in every environment that loads the addon, before napi-rs looks for a runtime, and not within
/// `dlopen`, whose lock a thread needs that ends.
#[napi(module_exports)]
pub fn start(_exports: Object) -> napi::Result<()> {
    STARTED.get_or_init(|| {
        let runtime = working();
        let started = runtime.is_some();
        // Without any, napi-rs would make one of its own, with threads.
        if let Some(runtime) = runtime.or_else(idle) {
            create_custom_tokio_runtime(runtime);
        }
        started
    });
    Ok(())
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
    let workers = obtainable(cpus.min(MOST_WORKERS));
    // tokio takes no 0, and without a descriptor for its signals it panics.
    (workers > 0)
        .then(|| catch_unwind(|| many(workers)))?
        .ok()?
}

fn many(workers: usize) -> Option<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers).enable_all().build().ok()
}

/// How many threads the host gives now, all at once, up to `most`.
fn obtainable(most: usize) -> usize {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let _closed = gate.lock();
        let waits = || drop(gate.lock());
        let more = |_| thread::Builder::new().spawn_scoped(scope, waits).ok();
        (0..most).map_while(more).count()
    })
}

/// One without threads and descriptors, which nothing is given to.
fn idle() -> Option<Runtime> {
    Builder::new_current_thread().build().ok()
}
