//! `DepartmentNatService`, over the core's `host::nft`.

use std::sync::LazyLock;

use infinization_core::Failure;
use infinization_core::firewall::{Masquerade, Subnet};
use infinization_core::host::nft::Nft;
use infinization_core::types::LinkName;
use napi_derive::napi;

use super::told;
use crate::argument::{Argument, wrong};
use crate::outcome::{Outcome, data, done};

/// One for all instances: what is known of the kernel is the process'.
static NFT: LazyLock<Nft> = LazyLock::new(Nft::new);

/// Masquerading for bridges.
#[napi]
#[derive(Debug, Default)]
pub struct DepartmentNatService {}

#[napi]
impl DepartmentNatService {
    /// Touches nothing.
    #[napi(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    #[napi]
    pub async fn initialize(&self) -> Outcome {
        done(async { Ok(NFT.prepare_nat().await?) }).await
    }

    #[napi]
    pub async fn add_masquerade(&self, subnet: Argument, bridge: Argument) -> Outcome {
        done(async {
            let (subnet, bridge) = (network(subnet)?, name(bridge)?);
            Ok(NFT.masquerade(Masquerade { subnet, bridge }).await?)
        })
        .await
    }

    #[napi]
    pub async fn remove_masquerade(&self, bridge: Argument) -> Outcome {
        done(async { Ok(NFT.stop_masquerading(&name(bridge)?).await?) }).await
    }

    /// False when it cannot be told, which is logged.
    #[napi]
    pub async fn has_masquerade(&self, bridge: Argument) -> Outcome {
        data(async {
            let bridge = name(bridge)?;
            let loaded = NFT.read_nat().await;
            let loaded = loaded.inspect_err(|error| {
                tracing::warn!(%error, "it cannot be told what is masqueraded");
            });
            Ok(loaded.is_ok_and(|loaded| loaded.of(&bridge).next().is_some()))
        })
        .await
    }

    #[napi]
    pub async fn list_masquerade_rules(&self) -> Outcome {
        data(async { Ok(NFT.read_nat().await?.bridges()) }).await
    }
}

fn network(argument: Argument) -> Result<Subnet, Failure> {
    let text = argument.text("subnetCidr")?;
    Subnet::parse(&text).map_err(|why| {
        told(
            &format!("Invalid IPv4 subnet for NAT: {text}"),
            wrong("subnetCidr", &why.to_string()),
        )
    })
}

fn name(argument: Argument) -> Result<LinkName, Failure> {
    let text = argument.text("bridge")?;
    LinkName::parse(text.as_str()).map_err(|why| {
        told(
            &format!("Invalid bridge name for NAT: {text}"),
            wrong("bridge", &why.to_string()),
        )
    })
}
