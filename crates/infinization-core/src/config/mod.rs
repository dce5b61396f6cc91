//! What a VM shall be: read once from what the user gave, and believed from then on.
//!
//! Three doors lead to a [`VmConfig`]: [`VmConfig::parse`] for `createVM`, [`VmConfig::from_stored`]
//! for a row of the user's database, and serde for the spec file beside the VM. The first two name
//! every refused field at once ([`ConfigError`]); nothing given is silently replaced.
//!
//! Invariant: pure. No clock, no file, no host; what the host contributes comes in through
//! [`Context`]. Neighbours: [`crate::qemu`] turns a [`VmConfig`] into a command line, the `vm` layer
//! acquires what it names.

mod address;
mod clients;
mod context;
mod cpu;
mod create;
mod disk;
mod display;
mod draft;
mod fields;
mod firmware;
mod guest_os;
mod issues;
mod journal;
mod location;
mod machine;
mod manager;
mod network;
mod options;
mod own_qemu;
mod persistence;
mod placement;
mod resolve;
mod rules;
mod snapshot;
mod storage;
mod stored;
mod virtual_network;
mod vm;

#[cfg(test)]
mod tests;

pub use address::BindAddress;
pub use clients::{
    CommandOptions, CpusetPaths, EventHandlerOptions, GuestAgentClientOptions,
    HealthMonitorOptions, QmpClientOptions,
};
pub use context::{Context, LONGEST_SOCKET_PATH, PathRules};
pub use cpu::{CpuConfig, CpuModel, PinningStrategy};
pub use disk::{CacheMode, DiskBus, DiskConfig, DiskDefaults, DiskFormat};
pub use display::{DisplayConfig, DisplayProtocol};
pub use firmware::FirmwareConfig;
pub use guest_os::{GuestOs, Preset};
pub use issues::{ConfigError, Issue, Parsed, Warning};
pub use journal::{JournalBound, JournalKind, JournalOptions};
pub use location::{
    DiskLocation, ExportName, NbdLocation, NbdServer, NbdTls, NetworkLocation, RbdLocation,
    RbdName, RbdUser, ServerAddress, ServerHost,
};
pub use machine::{AcceleratorChoice, GuestUuid, MachineType, RunAsUser};
pub use manager::{
    BridgeConntrackMode, Environment, HostFacts, HostService, ManagerConfig, Transport,
};
pub use network::{MachineAddresses, NetworkConfig, NetworkModel};
pub use options::{
    ChangeDiskKeyOptions, DeleteOptions, DiskKeys, GuestExecOptions, StartOptions, StopOptions,
    disk_keys,
};
pub use own_qemu::{QemuLaunch, QemuTraits, stop_grace};
pub use persistence::{BootUnitOptions, PersistenceOptions};
pub use placement::{HostNode, NoPlacement, Placement, Wanted, beside, place, spread};
pub use rules::parse_rules;
pub use snapshot::{
    Dependents, RevertOptions, SnapshotDeleteOptions, SnapshotKind, SnapshotOptions,
};
pub use storage::{
    CloneOptions, PoolName, PoolOptions, UploadOptions, VolumeConvertOptions, VolumeName,
    VolumeOptions, VolumePreallocation, VolumeResizeOptions, parse_no_options,
};
pub use stored::StoredColumns;
pub use virtual_network::{
    Dhcp, DhcpHost, DnsName, NetworkDns, NetworkMode, NetworkName, VirtualNetwork,
};
pub use vm::{ChannelsConfig, FirewallConfig, GpuConfig, MemoryConfig, VmConfig, VmPaths};

/// Gives an enum whose variants are words of the public API its reader, its word, and the serde form
/// that is the same word.
macro_rules! words {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word the public API uses, which is QEMU's own where QEMU has one.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// Reads the word; there are no synonyms and no defaults.
            pub fn parse(text: &str) -> Result<Self, crate::types::InvalidValue> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(crate::types::InvalidValue::new(
                        concat!("must be one of", $(" ", $word),+),
                    )),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = crate::types::InvalidValue;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::parse(&text)
            }
        }
    };
}
pub(crate) use words;
