//! Waiting until a descriptor can be read. Neighbours: pidfds and netlink sockets, which tokio has no
//! type for.
#![expect(unsafe_code, reason = "tokio wants a promise for a descriptor")]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when there is something to read. Needs a runtime.
pub(super) fn readable(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor is owned through the Arc the AsyncFd holds: it stays open, and the same,
    // until the AsyncFd is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
