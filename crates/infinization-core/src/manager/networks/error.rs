//! What goes wrong with a virtual network, each with its code.

use serde_json::{Map, Value};

use crate::config::NetworkName;
use crate::error::{Coded, ErrorCode};
use crate::types::{Ipv4Subnet, LinkName};

/// A network that cannot be made, started or stopped as things are.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetworksError {
    #[error("there is no network {0}")]
    NotFound(NetworkName),
    #[error("there is a network {0} already")]
    AlreadyExists(NetworkName),
    #[error("{subnet} overlaps {other}, which is {whose}")]
    Overlaps {
        subnet: Ipv4Subnet,
        other: Ipv4Subnet,
        whose: String,
    },
    #[error("the bridge {bridge} is the network {network}'s")]
    BridgeTaken {
        bridge: LinkName,
        network: NetworkName,
    },
    #[error("a link {0} exists that is not this network's; it was left alone")]
    NotOurs(LinkName),
    #[error("{} on {bridge}: unplug them first", ports.join(", "))]
    InUse {
        bridge: LinkName,
        ports: Vec<String>,
    },
}

impl Coded for NetworksError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::NetworkNotFound,
            Self::AlreadyExists(_) => ErrorCode::NetworkAlreadyExists,
            Self::Overlaps { .. } => ErrorCode::SubnetOverlaps,
            Self::BridgeTaken { .. } | Self::NotOurs(_) => ErrorCode::BridgeAlreadyExists,
            Self::InUse { .. } => ErrorCode::NetworkInUse,
        }
    }

    fn context(&self) -> Map<String, Value> {
        let fact = |key: &str, value: Value| Map::from_iter([(key.to_owned(), value)]);
        match self {
            Self::NotFound(name) | Self::AlreadyExists(name) => {
                fact("network", name.as_str().into())
            }
            Self::Overlaps { other, .. } => fact("subnet", other.to_string().into()),
            Self::BridgeTaken { bridge, .. } | Self::NotOurs(bridge) => {
                fact("device", bridge.as_str().into())
            }
            Self::InUse { ports, .. } => fact("ports", ports.clone().into()),
        }
    }
}
