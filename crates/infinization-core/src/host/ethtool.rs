//! The transmit checksum offload of a link, by the ioctl behind the `ethtool` program.
//!
//! With it on, the kernel hands frames over whose checksum is still to be filled in. Neighbour:
//! [`super::bridge`].
#![expect(
    unsafe_code,
    reason = "SIOCETHTOOL has no safe wrapper; the one call is in `transfer`"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::types::LinkName;

// <linux/ethtool.h>, <linux/sockios.h>
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;
const SIOCETHTOOL: u32 = 0x8946;

/// Turns the offload off. One that is off already is not touched: some links cannot change it.
///
/// Blocks: the kernel takes its link lock, and may wait for deletions.
pub(super) fn disable_transmit_checksum(name: &LinkName) -> io::Result<()> {
    let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if transfer(&socket, name, ETHTOOL_GTXCSUM, 0)? != 0 {
        transfer(&socket, name, ETHTOOL_STXCSUM, 0)?;
    }
    Ok(())
}

/// The name as `struct ifreq` has it: padded with NULs, of which a [`LinkName`] leaves at least one.
pub(super) fn ifreq_name(name: &LinkName) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    padded[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
    padded
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `struct ifreq` as SIOCETHTOOL reads it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: *mut EthtoolValue,
    unused: [u8; 16],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

nix::ioctl_readwrite_bad!(siocethtool, SIOCETHTOOL, Request);

fn transfer(socket: &OwnedFd, name: &LinkName, command: u32, data: u32) -> io::Result<u32> {
    let mut value = EthtoolValue { command, data };
    let mut request = Request {
        name: ifreq_name(name),
        value: ptr::from_mut(&mut value),
        unused: [0; 16],
    };
    // SAFETY: `request` has the layout and size of `struct ifreq` (asserted above), its name ends
    // with a NUL, and its pointer is to a live `struct ethtool_value`; these commands read and
    // write no more than that.
    unsafe { siocethtool(socket.as_raw_fd(), &raw mut request) }?;
    Ok(value.data)
}
