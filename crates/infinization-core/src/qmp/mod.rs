//! Talks to a running QEMU: its monitor (QMP) and the guest agent behind it.
//!
//! | file | holds |
//! | --- | --- |
//! | [`client`](QmpClient) | the clonable handle, its options |
//! | [`socket`](MonitorSocket) | a socket that is connected to later, or anew |
//! | `monitor` | the one task that owns a monitor's socket, and when it reconnects |
//! | `outgoing` | calls on their way, sent by whoever makes them |
//! | `dial`, `calls` | handshake; matching replies to calls |
//! | `event_stream` | bounded fan-out of what the monitor reports |
//! | `commands`, `replies` | typed helpers over `execute`, and what they answer |
//! | `jobs`, `snapshots`, `layers` | background jobs to their end; snapshots and overlays of a running machine |
//! | `copies` | who may have QEMU copy disks for a backup, and the end of what is left of one |
//! | `events` | typed view of the events a VM's life depends on |
//! | `guest_agent/` | the agent inside the guest, over its own socket |
//! | `wire`, `lines` | pure framing and JSON, shared by both protocols |
//!
//! Invariants: whatever the other side sends, memory stays bounded and nothing panics; every call
//! ends by its deadline; no argument value (it may be a password) reaches a log or an error.
//! Neighbours: `vm` decides what events mean; nothing here knows about VMs or processes.

mod calls;
mod client;
mod commands;
mod copies;
mod dial;
mod error;
mod event_stream;
mod events;
mod guest_agent;
mod jobs;
mod layers;
mod lines;
mod monitor;
mod open_enum;
mod outgoing;
mod replies;
mod snapshots;
mod socket;
mod stream;
mod wire;

pub use client::{Link, QmpClient, QmpOptions, Reconnect};
pub use commands::{DisplayProtocol, EjectTarget};
pub use copies::CopyTurn;
pub use error::QmpError;
pub use event_stream::{EventReceiver, MonitorEvent};
pub use events::{BlockIoError, EventKind, QmpEvent, QmpTimestamp, ShutdownCause};
pub use guest_agent::{
    AgentError, AgentOptions, AgentSocket, ExecOutput, FreezeStatus, GuestAgent, ask_to_thaw,
};
pub use jobs::{Job, says_full};
pub use layers::{BACKUP_PREFIX, BITMAP_PREFIX, LayerNode, file_name, says_covered};
pub use replies::{
    BalloonInfo, BlockInfo, CpuInfo, CpuTopology, Greeting, InsertedMedium, IoStatus, QemuVersion,
    RunState, SpiceInfo, StatusInfo, VersionTriple, VncInfo, device_id,
};
pub use snapshots::{BlockNode, NodeImage};
pub use socket::MonitorSocket;
pub use wire::InvalidCommand;
