//! What integration tests and benchmarks share: a private network, the guest image, hosts and guests that misbehave.
#![allow(missing_docs, reason = "whoever uses it reads it")]
#![allow(missing_debug_implementations, reason = "nothing of it is printed")]
#![allow(
    clippy::missing_panics_doc,
    clippy::new_without_default,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "measurements are shown, not asserted"
)]

pub mod ailing_disk;
pub mod failing_file;
pub mod faults;
pub mod firewall;
pub mod full;
pub mod guests;
pub mod machine;
pub mod meddler;
pub mod nbd;
pub mod net;
pub mod packets;
pub mod port;
pub mod process;
pub mod qmp;
pub mod small_disk;
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
