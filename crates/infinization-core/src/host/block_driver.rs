//! Whether the QEMU of this host has a block driver.
//!
//! Distributions put some drivers into packages of their own, as modules that QEMU loads when they are first
//! named. Its lists name them whether or not they are installed, so the driver itself is tried, with options that
//! end before it reaches for anything.

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use std::{env, fs, io};

use super::program::{Program, ProgramError};
use crate::qemu::QemuCommand;

const DEADLINE: Duration = Duration::from_secs(20);
/// A cluster whose configuration cannot be there: the driver says so, and does nothing else.
const NO_CLUSTER: &str =
    r#"{"driver":"rbd","node-name":"try","pool":"try","image":"try","conf":"/dev/null/none"}"#;
/// What QEMU says of a driver that it does not have, or whose module it cannot load (7.2).
const ABSENT: &str = "Unknown driver";

/// The QEMU that had the driver. What it has not may be installed at any time, and is asked again.
static HAS_RBD: LazyLock<Mutex<Option<Binary>>> = LazyLock::new(Mutex::default);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Binary {
    path: PathBuf,
    length: u64,
    modified: SystemTime,
}

/// Whether disks of a Ceph cluster can be had.
pub async fn has_rbd() -> Result<bool, ProgramError> {
    let binary = super::blocking::file_call(binary).await.ok();
    let known = || HAS_RBD.lock().unwrap_or_else(PoisonError::into_inner);
    if binary.is_some() && *known() == binary {
        return Ok(true);
    }
    let tried = Program::new(QemuCommand::BINARY)
        .args(["-M", "none", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-S", "-blockdev", NO_CLUSTER])
        .deadline(Some(DEADLINE))
        .run()
        .await?;
    let absent = tried.stderr_tail().contains(ABSENT);
    if !absent {
        *known() = binary;
    }
    Ok(!absent)
}

fn binary() -> io::Result<Binary> {
    let paths = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&paths).map(|place| place.join(QemuCommand::BINARY));
    let path = places.find(|place| place.is_file());
    let path = path.ok_or(io::ErrorKind::NotFound)?;
    let found = fs::metadata(&path)?;
    Ok(Binary {
        length: found.len(),
        modified: found.modified()?,
        path,
    })
}
