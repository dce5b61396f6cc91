//! Runs QEMU/KVM virtual machines directly: disks, TAP devices, a fail-closed firewall, a
//! sandboxed QEMU process, QMP, and the state that ties them together.
//!
//! The crate has never heard of Node. Dependencies point one way (`tests/layers.rs` checks it):
//!
//! | layer | modules |
//! | --- | --- |
//! | 4 manager | `manager`, `monitor`, `sync` |
//! | 3 vm | `vm` |
//! | 3 backup | [`backup`] |
//! | 3 storage | [`storage`] |
//! | 3 own_qemu | [`own_qemu`] |
//! | 2 effects | [`host`], [`qmp`], [`db`], `events` |
//! | 1 pure | [`config`], [`qemu`], [`firewall`], [`network`], [`secrets`] |
//! | 0 words | [`types`], [`error`] |

pub mod backup;
pub mod config;
pub mod db;
pub mod error;
pub mod events;
pub mod firewall;
pub mod host;
pub mod manager;
pub mod monitor;
pub mod network;
pub mod own_qemu;
pub mod qemu;
pub mod qmp;
pub mod secrets;
pub mod storage;
pub mod sync;
pub mod types;
pub mod vm;

pub use error::{Coded, ErrorClass, ErrorCode, Failure};
