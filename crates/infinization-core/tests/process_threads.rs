//! Where no thread can be made, whatever needs one is refused with a code, and all is well once
//! threads can be made again.
//!
//! The kernel does not hold root to `RLIMIT_NPROC`. So this is about the parts that need no root,
//! which start threads and processes in every way there is in the library.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use infinization_core::db::sqlite::SqliteDatabase;
use infinization_core::host::link::Links;
use infinization_core::host::process::{Exit, find_by_name, spawn};
use infinization_core::host::program::Program;
use infinization_core::host::qemu_img::{ImageFormat, inspect};
use infinization_core::types::HostPath;
use infinization_core::{ErrorCode, Failure};
use infinization_test_kit as kit;
use kit::process::{has_children, in_own_process, name_of, quiet};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const NOBODY: u32 = 65534;

/// Nobody's limit counts all of nobody's processes; with this one there is no room for any.
fn limit_threads(to: Option<u64>) {
    let limit = getrlimit(Resource::Nproc);
    let current = to.or(limit.maximum);
    setrlimit(Resource::Nproc, Rlimit { current, ..limit }).unwrap();
}

/// For the whole process, and for good.
fn become_nobody() {
    nix::unistd::setgroups(&[]).unwrap();
    nix::unistd::setgid(NOBODY.into()).unwrap();
    nix::unistd::setuid(NOBODY.into()).unwrap();
}

#[test]
fn f47_without_threads_all_is_refused_and_goes_on_later() {
    let test = "f47_without_threads_all_is_refused_and_goes_on_later";
    in_own_process(test, || {
        // Its two workers are there before threads run out.
        let runtime = kit::runtime();
        become_nobody();
        runtime.block_on(async {
            limit_threads(Some(1));
            std::thread::Builder::new().spawn(|| {}).unwrap_err();

            let links = Links::new();
            assert_eq!(code(links.list().await), ErrorCode::NetlinkFailed);
            let store = SqliteDatabase::open(Path::new("/nonexistent/store.db")).await;
            let words = store.map(drop).unwrap_err().to_string();
            assert!(words.contains("thread could not be started"), "{words}");
            let program = Program::new("true").run().await;
            assert_eq!(code(program), ErrorCode::SpawnFailed);
            // These go to a thread of the runtime, which it cannot make.
            let scanned = find_by_name(&name_of("f47")).await;
            assert_eq!(code(scanned), ErrorCode::IdentityUnknown);
            let image = HostPath::parse("/usr/bin/env").unwrap();
            let inspected = inspect(&image, ImageFormat::Raw, &[]).await;
            assert_eq!(code(inspected), ErrorCode::CommandFailed);
            let started = spawn(quiet("sleep").args(["1000"])).await;
            assert_eq!(code(started), ErrorCode::SpawnFailed);

            limit_threads(None);
            let process = spawn(quiet("true")).await.unwrap();
            assert_eq!(process.exited().await, Exit::Code(0));
            assert!(!links.list().await.unwrap().is_empty());
            Program::new("true").run().await.unwrap();
            assert_eq!(find_by_name(&name_of("f47")).await.unwrap().len(), 0);
        });
        // What was refused is not done later either.
        drop(runtime);
        assert!(!has_children());
    });
}

fn code<T: std::fmt::Debug>(outcome: Result<T, impl Into<Failure>>) -> ErrorCode {
    let failure: Failure = outcome.map_err(Into::into).unwrap_err();
    failure.code()
}
