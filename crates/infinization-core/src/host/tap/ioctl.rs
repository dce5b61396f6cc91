//! The ioctls of `/dev/net/tun` (`<linux/if_tun.h>`). All of them may wait for the kernel's link
//! lock, so they are called from blocking threads.
#![expect(
    unsafe_code,
    reason = "TUN/TAP has no interface but ioctls; each call is wrapped here once"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use super::TapError;
use crate::host::ethtool::ifreq_name;
use crate::types::LinkName;

/// How a descriptor is attached to a TAP.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attach {
    /// Must be what the TAP was made with.
    pub(super) multi_queue: bool,
    /// Only if no link has the name.
    pub(super) exclusive: bool,
}

impl Attach {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "ifr_flags, and every IFF_ constant for it, has 16 bits"
    )]
    fn flags(self) -> u16 {
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if self.multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        if self.exclusive {
            flags |= libc::IFF_TUN_EXCL;
        }
        flags as u16
    }
}

/// `struct ifreq` as TUNSETIFF and TUNGETIFF use it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    unused: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, Request);
nix::ioctl_read_bad!(tungetiff, libc::TUNGETIFF, Request);
nix::ioctl_write_int_bad!(tunsetpersist, libc::TUNSETPERSIST);
nix::ioctl_write_int_bad!(tunsetowner, libc::TUNSETOWNER);

/// Opens a descriptor on the TAP of this name; the TAP is made if there is none.
pub(super) fn attach(name: &LinkName, how: Attach) -> Result<File, TapError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(TapError::refused("opening /dev/net/tun for", name))?;
    set_interface(&file, name, how.flags()).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) if how.exclusive => TapError::AlreadyExists { name: name.clone() },
        Some(libc::EBUSY) => TapError::InUse { name: name.clone() },
        _ => TapError::refused("opening TAP", name)(error),
    })?;
    Ok(file)
}

fn set_interface(file: &File, name: &LinkName, flags: u16) -> io::Result<()> {
    let request = Request {
        name: ifreq_name(name),
        flags,
        unused: [0; 22],
    };
    // SAFETY: `request` has the layout and size of `struct ifreq` (asserted above), is initialised
    // to its last byte and lives until the call returns; its name ends with a NUL.
    unsafe { tunsetiff(file.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Whether the TAP stays when its last descriptor is closed.
pub(super) fn is_persistent(file: &File) -> io::Result<bool> {
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        flags: 0,
        unused: [0; 22],
    };
    // SAFETY: the kernel writes one `struct ifreq`, and `request` has its layout and size.
    unsafe { tungetiff(file.as_raw_fd(), &raw mut request) }?;
    Ok(i32::from(request.flags) & libc::IFF_PERSIST != 0)
}

/// Makes the TAP stay when its last descriptor is closed, or not.
pub(super) fn set_persist(file: &File, persist: bool) -> io::Result<()> {
    // SAFETY: the argument is a number, no memory is passed.
    unsafe { tunsetpersist(file.as_raw_fd(), i32::from(persist)) }?;
    Ok(())
}

/// Lets this uid open the TAP without CAP_NET_ADMIN.
pub(super) fn set_owner(file: &File, uid: u32) -> io::Result<()> {
    // SAFETY: the argument is a number, no memory is passed.
    unsafe { tunsetowner(file.as_raw_fd(), uid.cast_signed()) }?;
    Ok(())
}
