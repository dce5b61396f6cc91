use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;
use std::time::Duration;

use super::command::KEY;
use crate::types::DiskKey;

/// How a new image is encrypted: LUKS1 inside qcow2, AES-256-XTS, which is QEMU's own choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// What opens it.
    pub key: DiskKey,
    /// How long the host is kept busy to make a passphrase of the key, now and whenever it is opened: what
    /// makes guessing slow. Default: QEMU's, 2 s.
    pub iter_time: Option<Duration>,
}

impl Encryption {
    /// With `key`, as QEMU does by default.
    pub fn with(key: DiskKey) -> Self {
        Self {
            key,
            iter_time: None,
        }
    }

    /// For `-o`.
    pub(super) fn options(&self) -> Vec<String> {
        let luks = format!("encrypt.format=luks,encrypt.key-secret={KEY}");
        std::iter::once(luks)
            .chain(iter_time(self.iter_time))
            .collect()
    }
}

/// A pipe that holds the key and ends there; whoever reads it first has it, and nothing is left. `owner`
/// may open it by its number. A key is smaller than any pipe, so writing does not wait.
pub fn pipe_of(key: &DiskKey, owner: Option<(u32, u32)>) -> io::Result<OwnedFd> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(key.reveal().as_bytes())?;
    if let Some((uid, gid)) = owner {
        fchown(&reader, Some(uid), Some(gid))?;
    }
    Ok(reader.into())
}

/// The option of [`Encryption::iter_time`].
pub(super) fn iter_time(time: Option<Duration>) -> Option<String> {
    time.map(|time| format!("encrypt.iter-time={}", time.as_millis().max(1)))
}
