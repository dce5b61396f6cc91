//! A guest that writes to a real file system while its machine is backed up and snapshotted: freezing and
//! thawing by the real `qemu-ga`, and what the images then hold, as e2fsprogs see them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod agent;
mod backups;
mod ext4;
mod guest;
mod kills;
mod snapshots;
mod walk;

use std::path::Path;
use std::process::Command;

use infinization_test_kit as kit;

/// What a program says that must succeed.
#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
