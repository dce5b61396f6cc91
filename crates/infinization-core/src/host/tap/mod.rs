//! TAP devices: made, reopened, and handed over as open descriptors.
//!
//! A TAP is persistent, so it outlives QEMU and our process; QEMU gets descriptors
//! (`-netdev tap,fd=`), so it may run as nobody. Creating never touches a link that exists: the
//! kernel refuses (`IFF_TUN_EXCL`), there is no gap between looking and making. A new TAP becomes
//! persistent last, and only if somebody takes it: until then closing its descriptors removes it.
//!
//! Neighbours: [`super::link`] raises, enslaves and lists TAPs like any link.

mod error;
mod ioctl;
mod leftover;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub use error::TapError;
use ioctl::Attach;
pub use leftover::{Removed, create_anew, is_idle, list, remove_orphans};

use super::link::{Link, Links};
use crate::host;
use crate::types::{InvalidValue, LinkName};

/// TUNSETIFF is quick, but waits for the kernel's link lock, and so for deletions (20 ms each).
const DEADLINE: Duration = Duration::from_secs(10);

/// How many queues (pairs of receive and transmit rings) a TAP has: 1 to 4.
///
/// More than one makes the TAP `multi_queue`, and QEMU fails when its own count disagrees with
/// that in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queues(u32);

impl Queues {
    /// One queue: a TAP that is not `multi_queue`.
    pub const ONE: Self = Self(1);

    /// Takes 1 to 4.
    pub fn new(count: u32) -> Result<Self, InvalidValue> {
        if (1..=4).contains(&count) {
            return Ok(Self(count));
        }
        Err(InvalidValue::new("must be 1 to 4"))
    }

    /// The number of descriptors.
    pub fn count(self) -> u32 {
        self.0
    }

    /// Whether the TAP is `multi_queue`.
    pub fn is_multi(self) -> bool {
        self.0 > 1
    }
}

/// What a new TAP is like.
#[derive(Debug, Clone, Copy)]
pub struct TapOptions {
    /// Its queues.
    pub queues: Queues,
    /// The uid that may open it without CAP_NET_ADMIN; none: only root. A QEMU that is handed the
    /// descriptors needs no owner.
    pub owner: Option<u32>,
}

/// Makes a persistent TAP and gives one descriptor per queue. It is down, and a port of no bridge.
///
/// Its descriptors carry a `virtio_net_hdr` (`IFF_VNET_HDR`), which QEMU finds out by itself. All
/// offloads of a TAP are off until QEMU turns on (TUNSETOFFLOAD) what its guest's driver can do.
/// A link of that name is [`TapError::AlreadyExists`] and stays as it is. When the call fails or
/// is dropped, nothing remains.
pub async fn create(name: &LinkName, options: TapOptions) -> Result<Vec<OwnedFd>, TapError> {
    let new = name.clone();
    let unclaimed = blocking(name, move || Unclaimed::create(&new, options)).await?;
    Ok(unclaimed.claim())
}

/// Opens all queues of a TAP that was made before and that no process has open.
pub async fn open(
    links: &Links,
    name: &LinkName,
    queues: Queues,
) -> Result<Vec<OwnedFd>, TapError> {
    check_free(links.find(name).await?, name, queues)?;
    let existing = name.clone();
    let files = blocking(name, move || open_existing(&existing, queues)).await?;
    check_alone(links.find(name).await?, name, queues)?;
    Ok(files.into_iter().map(OwnedFd::from).collect())
}

/// Deletes a TAP; it may be gone already. A link of that name that is no TAP stays.
pub async fn delete(links: &Links, name: &LinkName) -> Result<(), TapError> {
    match links.find(name).await? {
        None => Ok(()),
        Some(link) if link.is_tap() => Ok(links.delete_exactly(name, link.index).await?),
        Some(link) => Err(not_a_tap(name, link)),
    }
}

/// Descriptors of a new TAP that nobody has taken over yet. Dropped, they take the TAP with them.
struct Unclaimed {
    files: Vec<File>,
    claimed: bool,
}

impl Unclaimed {
    fn create(name: &LinkName, options: TapOptions) -> Result<Self, TapError> {
        let mode = |exclusive| Attach {
            multi_queue: options.queues.is_multi(),
            exclusive,
        };
        let first = ioctl::attach(name, mode(true))?;
        let mut new = Self {
            files: vec![first],
            claimed: false,
        };
        for _ in 1..options.queues.count() {
            new.files.push(ioctl::attach(name, mode(false))?);
        }
        new.configure(name, options.owner)?;
        Ok(new)
    }

    fn configure(&self, name: &LinkName, owner: Option<u32>) -> Result<(), TapError> {
        if let Some(uid) = owner {
            ioctl::set_owner(&self.files[0], uid)
                .map_err(TapError::refused("giving an owner to", name))?;
        }
        ioctl::set_persist(&self.files[0], true)
            .map_err(TapError::refused("making persistent", name))
    }

    fn claim(mut self) -> Vec<OwnedFd> {
        self.claimed = true;
        std::mem::take(&mut self.files)
            .into_iter()
            .map(OwnedFd::from)
            .collect()
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if self.claimed {
            return;
        }
        for file in &self.files {
            // It fails only where the TAP is gone already.
            let _gone = ioctl::set_persist(file, false);
        }
    }
}

fn open_existing(name: &LinkName, queues: Queues) -> Result<Vec<File>, TapError> {
    let mode = Attach {
        multi_queue: queues.is_multi(),
        exclusive: false,
    };
    let mut files = Vec::new();
    for _ in 0..queues.count() {
        let file = ioctl::attach(name, mode)?;
        // TUNSETIFF makes what does not exist: one that is not persistent is our own, by mistake.
        if !ioctl::is_persistent(&file).map_err(TapError::refused("examining", name))? {
            return Err(TapError::NotFound { name: name.clone() });
        }
        files.push(file);
    }
    Ok(files)
}

/// What can be told apart before the TAP is touched; TUNSETIFF says EINVAL to most of it.
fn check_free(link: Option<Link>, name: &LinkName, queues: Queues) -> Result<(), TapError> {
    let link = link.ok_or_else(|| TapError::NotFound { name: name.clone() })?;
    let Some(tun) = link.tun.as_ref().filter(|tun| tun.tap) else {
        return Err(not_a_tap(name, link));
    };
    if tun.multi_queue != queues.is_multi() {
        return Err(TapError::QueueModeDiffers {
            name: name.clone(),
            multi_queue: tun.multi_queue,
        });
    }
    // One that is not persistent exists only because somebody has it open.
    if !tun.persist || tun.queues.is_some_and(|attached| attached > 0) {
        return Err(TapError::InUse { name: name.clone() });
    }
    Ok(())
}

/// The kernel lets any number of processes open a multi-queue TAP: afterwards all must be ours.
fn check_alone(link: Option<Link>, name: &LinkName, queues: Queues) -> Result<(), TapError> {
    let link = link.ok_or_else(|| TapError::NotFound { name: name.clone() })?;
    match link.tun.and_then(|tun| tun.queues) {
        Some(attached) if attached != queues.count() => Err(TapError::InUse { name: name.clone() }),
        _ => Ok(()),
    }
}

fn not_a_tap(name: &LinkName, link: Link) -> TapError {
    TapError::NotATap {
        name: name.clone(),
        kind: link.kind,
    }
}

/// Runs a call that waits in the kernel off the runtime's workers. Its result is dropped, and so
/// undone, when the deadline passes or the caller goes away first.
async fn blocking<T: Send + 'static>(
    name: &LinkName,
    call: impl FnOnce() -> Result<T, TapError> + Send + 'static,
) -> Result<T, TapError> {
    let running = host::blocking::blocking(call);
    let ended = tokio::time::timeout(DEADLINE, running)
        .await
        .map_err(|_elapsed| TapError::Late {
            name: name.clone(),
            deadline: DEADLINE,
        })?;
    ended.map_err(|not_done| TapError::refused("opening", name)(not_done.into()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_one_to_four_queues() {
        for bad in [0, 5, u32::MAX] {
            assert!(Queues::new(bad).is_err(), "{bad} was taken");
        }
        assert!(!Queues::ONE.is_multi());
        assert!(Queues::new(4).unwrap().is_multi());
    }
}
