//! What integration tests share: a private network, the guest image, a scratch directory.
#![allow(dead_code, reason = "each test binary uses a part of the kit")]
#![allow(unreachable_pub, reason = "the kit is a module of every test binary")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod ailing_disk;
pub mod failing_file;
pub mod small_disk;

pub mod faults;
pub mod full;
pub mod machine;
pub mod meddler;
pub mod switch;
pub mod tpm;
pub mod victim;

use std::future::Future;
use std::path::PathBuf;

/// Runs an async test in network and mount namespaces of its own, so that the host's links,
/// bridges and rulesets are neither seen nor touched. Needs root, and says so.
///
/// Namespaces belong to threads: the runtime is built on a thread that has already left the host's
/// network, and the threads it starts inherit that.
pub fn in_private_network<F>(test: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    use nix::sched::{CloneFlags, unshare};
    let outcome = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("a private network needs root (CAP_SYS_ADMIN): run the tests as root");
        runtime().block_on(test());
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A multi-threaded runtime made on the calling thread, in its namespaces.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built")
}

/// The folder with the tiny guest (`tiny.qcow2`, `vmlinuz`, `initrd.gz`), built by
/// `npm run setup`. `INFINIZATION_GUEST_DIR` names another one.
pub fn guest_dir() -> PathBuf {
    let dir = std::env::var_os("INFINIZATION_GUEST_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.guest")),
        PathBuf::from,
    );
    assert!(
        dir.join("tiny.qcow2").exists(),
        "no guest image in {}: run `npm run setup` first",
        dir.display()
    );
    dir
}
