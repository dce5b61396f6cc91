//! Effects on this host. Each tool has a module: links over netlink, TAPs by ioctl, `nft`,
//! `qemu-img`, processes, cgroups. They are told what to do by plans and decide nothing.

pub mod accelerator;
pub mod affinity;
pub mod block_driver;
pub(crate) mod blocking;
pub mod bridge;
pub mod cgroup;
pub mod command;
pub mod cpuset;
pub mod dir_lock;
pub mod dir_watch;
pub mod display_port;
pub mod dnsmasq;
mod ethtool;
mod file_lock;
pub mod file_systems;
pub mod line_log;
pub mod link;
pub mod mac;
pub(crate) mod memory;
pub(crate) mod memory_file;
pub mod named_file;
pub mod nbd;
pub mod net_guard;
pub mod nft;
pub mod nft_file;
pub mod numa;
pub mod oom;
pub(crate) mod pid_file;
pub mod process;
pub mod program;
pub mod qemu_img;
mod readable;
pub mod restore_note;
pub mod state_file;
pub mod tap;
pub mod users;
