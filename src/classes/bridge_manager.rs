//! `BridgeManager`, over the core's `host::bridge`.

use infinization_core::Failure;
use infinization_core::host::bridge::{self, Ipv4Cidr};
use infinization_core::types::LinkName;
use napi_derive::napi;

use super::{LINKS, told};
use crate::argument::{Argument, wrong};
use crate::outcome::{Outcome, data, done};

/// The host's bridges.
#[napi]
#[derive(Debug, Default)]
pub struct BridgeManager {}

#[napi]
impl BridgeManager {
    /// Touches nothing.
    #[napi(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    #[napi]
    pub async fn exists(&self, bridge: Argument) -> Outcome {
        data(async { Ok(bridge::exists(&LINKS, &name(bridge)?).await?) }).await
    }

    #[napi]
    pub async fn create(&self, bridge: Argument) -> Outcome {
        done(async { Ok(bridge::create(&LINKS, &name(bridge)?).await?) }).await
    }

    /// Best effort: what fails is logged.
    #[napi]
    pub async fn disable_checksum_offloading(&self, bridge: Argument) -> Outcome {
        done(async {
            if let Err(error) = bridge::disable_checksum_offload(&name(bridge)?).await {
                tracing::warn!(%error, "checksum offload stays on");
            }
            Ok(())
        })
        .await
    }

    #[napi]
    pub async fn destroy(&self, bridge: Argument) -> Outcome {
        done(async { Ok(bridge::destroy(&LINKS, &name(bridge)?).await?) }).await
    }

    #[napi]
    pub async fn add_interface(&self, bridge: Argument, interface: Argument) -> Outcome {
        done(async {
            let (bridge, port) = (name(bridge)?, interface.parsed("interface")?);
            Ok(bridge::add_port(&LINKS, &bridge, &port).await?)
        })
        .await
    }

    #[napi]
    pub async fn remove_interface(&self, bridge: Argument, interface: Argument) -> Outcome {
        done(async {
            let (bridge, port) = (name(bridge)?, interface.parsed("interface")?);
            Ok(bridge::remove_port(&LINKS, &bridge, &port).await?)
        })
        .await
    }

    /// None when they cannot be told.
    #[napi]
    pub async fn list_interfaces(&self, bridge: Argument) -> Outcome {
        data(async {
            let ports = bridge::ports(&LINKS, &name(bridge)?).await;
            Ok(ports.unwrap_or_default())
        })
        .await
    }

    #[napi(js_name = "assignIP")]
    pub async fn assign_ip(&self, bridge: Argument, address: Argument) -> Outcome {
        done(async {
            let (bridge, address) = (name(bridge)?, cidr(address)?);
            Ok(bridge::assign_address(&LINKS, &bridge, address).await?)
        })
        .await
    }

    #[napi(js_name = "removeIP")]
    pub async fn remove_ip(&self, bridge: Argument, address: Argument) -> Outcome {
        done(async {
            let (bridge, address) = (name(bridge)?, cidr(address)?);
            Ok(bridge::remove_address(&LINKS, &bridge, address).await?)
        })
        .await
    }

    /// IPv4 only.
    #[napi(js_name = "getIPs")]
    pub async fn get_ips(&self, bridge: Argument) -> Outcome {
        data(async {
            let found = bridge::addresses(&LINKS, &name(bridge)?).await?;
            let v4 = found.iter().filter(|found| found.address.is_ipv4());
            Ok(v4.map(ToString::to_string).collect::<Vec<_>>())
        })
        .await
    }
}

fn name(argument: Argument) -> Result<LinkName, Failure> {
    let text = argument.text("bridge")?;
    LinkName::parse(text.as_str()).map_err(|why| {
        told(
            &format!("Invalid bridge name: {text}"),
            wrong("bridge", &why.to_string()),
        )
    })
}

fn cidr(argument: Argument) -> Result<Ipv4Cidr, Failure> {
    let text = argument.text("cidr")?;
    Ipv4Cidr::parse(&text).map_err(|why| {
        told(
            &format!("Invalid IPv4/CIDR: {text}"),
            wrong("cidr", &why.to_string()),
        )
    })
}
