//! The command line of one VM, in QEMU's own words.
//!
//! [`QemuCommand::new`] is a pure function of what the VM shall be ([`VmConfig`]) and what was
//! acquired for this run ([`Acquired`]): equal inputs give equal bytes. Written for QEMU ≥ 6.2
//! (`-device` in JSON form), run against 7.2.
//!
//! Invariant: no caller's string can add or change a sub-option. Host paths and names that QEMU
//! must see travel as JSON strings where QEMU reads JSON, and with doubled commas where it does not.
//! Sockets, TAPs and the keys of disks travel as descriptors, passwords over the monitor.
//!
//! QEMU starts stopped (`-S`): firewall and pinning are in place before the guest's first
//! instruction, and whoever started it sends `cont`. It stays in the foreground, because its
//! sandbox forbids it to fork and to change user.

mod acquired;
mod args;
mod audio;
mod balloon;
mod blockdev;
mod chardev;
mod command;
mod cpu;
mod disk;
mod display;
mod firmware;
mod machine;
mod memory;
mod netdev;
mod network_disk;
mod pci;
#[cfg(test)]
mod reader;
mod secret;
mod tpm;
mod usb;
mod vfio;

pub use acquired::{
    Accelerator, Acquired, ChannelListeners, DisplayEndpoint, EncryptedDisk, FirmwareFiles,
    SerialConsole,
};
pub use blockdev::{blockdev_argument, overlay_options};
pub use command::QemuCommand;
pub use machine::name_argument;
pub use secret::key_of;

#[cfg(test)]
mod properties;
