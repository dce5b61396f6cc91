//! Installing the unit that loads the file when the host boots.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{NftFileError, replace};
use crate::firewall::{
    DEFAULT_DENY_FILE, SAVED_FILE, UNIT_NAME, UNIT_WANTED_BY, boot_unit, default_deny,
};
use crate::host::blocking::file_call;
use crate::types::HostPath;

/// Where things are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The unit.
    pub unit: PathBuf,
    /// What it loads first.
    pub default_deny: PathBuf,
    /// What it loads then, if it is there.
    pub saved: PathBuf,
    /// What has it started at boot.
    pub enabled_by: Option<PathBuf>,
}

/// Installs the unit for a firewall that is kept in `dir`; replaces one that is there. Enabling is what
/// `systemctl enable` does, and like it starts nothing.
pub async fn install(
    dir: HostPath,
    units: HostPath,
    enable: bool,
) -> Result<Installed, NftFileError> {
    let failed = NftFileError::of(units.as_path());
    let installed = file_call(move || {
        replace::make_dir(dir.as_path())?;
        replace::make_dir(units.as_path())?;
        let installed = Installed {
            unit: units.as_path().join(UNIT_NAME),
            default_deny: dir.as_path().join(DEFAULT_DENY_FILE),
            saved: dir.as_path().join(SAVED_FILE),
            enabled_by: enable.then(|| wanted_by(units.as_path(), UNIT_WANTED_BY[0])),
        };
        replace::replace(&installed.default_deny, None, default_deny().as_bytes())?;
        replace::replace(&installed.unit, None, boot_unit(&dir).as_bytes())?;
        for wanting in UNIT_WANTED_BY.into_iter().filter(|_| enable) {
            link_to(&installed.unit, &wanted_by(units.as_path(), wanting))?;
        }
        Ok(installed)
    });
    installed.await.map_err(failed)
}

fn wanted_by(units: &Path, wanting: &str) -> PathBuf {
    units.join(format!("{wanting}.wants")).join(UNIT_NAME)
}

fn link_to(unit: &Path, link: &Path) -> io::Result<()> {
    if let Some(dir) = link.parent() {
        replace::make_dir(dir)?;
    }
    if fs::read_link(link).is_ok_and(|target| target == unit) {
        return Ok(());
    }
    match symlink(unit, link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(link)?;
            symlink(unit, link)
        }
        outcome => outcome,
    }
}
