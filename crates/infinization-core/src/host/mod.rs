//! Effects on this host. Each tool has a module: links over netlink, TAPs by ioctl, `nft`,
//! `qemu-img`, processes, cgroups. They are told what to do by plans and decide nothing.

pub mod accelerator;
pub mod bridge;
pub mod cgroup;
mod ethtool;
pub mod link;
pub mod nft;
pub mod process;
pub mod program;
pub mod qemu_img;
pub mod tap;
