//! Value objects. Each is checked once, when it is made; after that its type is the proof.
//!
//! Nothing here touches the host. Neighbours: every other module uses these, they use only `std`.

pub(crate) mod base64;
mod byte_size;
mod disk_key;
mod firewall_rule;
mod host_path;
mod ipv4_subnet;
mod iso_time;
mod link_name;
mod mac_addr;
mod names;
mod pci_address;
mod secret;
mod vm_id;

pub use byte_size::ByteSize;
pub use disk_key::DiskKey;
pub use firewall_rule::{FirewallDefaultAction, FirewallRuleInput};
pub use host_path::HostPath;
pub use ipv4_subnet::Ipv4Subnet;
pub(crate) use iso_time::{clock, iso_date, iso_date_ms};
pub use link_name::LinkName;
pub use mac_addr::MacAddr;
pub use names::VmNames;
pub use pci_address::PciAddress;
pub use secret::Secret;
pub use vm_id::{InternalName, VmId};

/// Why a value was refused: a sentence fragment that follows the field's name
/// ("must be absolute").
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub(crate) String);

impl InvalidValue {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// Implements the text forms every checked string shares: `parse`, `FromStr`, `Display`,
/// `AsRef<str>` and serde as a plain string that is checked again on the way in.
macro_rules! checked_string {
    ($name:ident, $check:path) => {
        impl $name {
            /// Checks `text` and takes it over.
            pub fn parse(text: impl Into<String>) -> Result<Self, crate::types::InvalidValue> {
                let text = text.into();
                $check(&text)?;
                Ok(Self(text))
            }

            /// The text as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::types::InvalidValue;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = crate::types::InvalidValue;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}
pub(crate) use checked_string;
