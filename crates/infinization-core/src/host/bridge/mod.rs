//! Bridges: made, destroyed, their ports and addresses.
//!
//! A link that is no bridge is refused before anything is touched. Neighbours: [`super::link`]
//! does the netlink work, [`super::tap`] makes most of the ports.

mod address;
mod error;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::oneshot;

pub use address::{
    InterfaceAddress, Ipv4Cidr, addresses, addresses_beside, all_addresses, assign_address,
    remove_address,
};
pub use error::BridgeError;

use super::ethtool;
use super::link::{LinkError, Links};
use crate::host::blocking::file_call;
use crate::types::{LinkName, MacAddr};

/// Makes a bridge, up and without transmit checksum offload.
///
/// A link of that name is [`BridgeError::AlreadyExists`] and stays as it is. When the call fails
/// half-way or is dropped, the bridge is removed.
pub async fn create(links: &Links, name: &LinkName) -> Result<(), BridgeError> {
    create_with(links, name, None).await
}

/// [`create`], with a hardware address of its own, which it keeps whatever is plugged in; and down, so that
/// nothing passes it before it is guarded.
pub async fn create_down_with_mac(
    links: &Links,
    name: &LinkName,
    mac: MacAddr,
) -> Result<(), BridgeError> {
    create_with(links, name, Some(mac)).await
}

async fn create_with(
    links: &Links,
    name: &LinkName,
    mac: Option<MacAddr>,
) -> Result<(), BridgeError> {
    let (deliver, delivered) = oneshot::channel();
    let (links, new) = (links.clone(), name.clone());
    // A task of its own, so that a caller who goes away cannot stop it between making and undoing.
    tokio::spawn(async move {
        let outcome = make(&links, &new, mac).await;
        let made = outcome.is_ok();
        if deliver.send(outcome).is_err() && made {
            undo(&links, &new).await;
        }
    });
    delivered
        .await
        .unwrap_or_else(|_| Err(BridgeError::Interrupted { name: name.clone() }))
}

async fn make(links: &Links, name: &LinkName, mac: Option<MacAddr>) -> Result<(), BridgeError> {
    let bridge = rtnetlink::LinkBridge::new(name.as_str());
    let bridge = match mac {
        Some(mac) => bridge.address(mac.octets().to_vec()),
        None => bridge.up(),
    };
    let creation = RouteNetlinkMessage::NewLink(bridge.build());
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match links.request(creation, flags).await {
        Err(refusal) if refusal.errno() == Some(Errno::EEXIST) => {
            return Err(BridgeError::AlreadyExists { name: name.clone() });
        }
        outcome => outcome.map_err(|refusal| refusal.of("creating bridge", name))?,
    };
    let configured = disable_checksum_offload(name).await;
    if configured.is_err() {
        undo(links, name).await;
    }
    configured
}

async fn undo(links: &Links, name: &LinkName) {
    if let Err(error) = links.delete(name).await {
        tracing::error!(bridge = %name, %error, "a half-made bridge could not be removed");
    }
}

/// Turns the bridge's transmit checksum offload off, so that frames of servers on this host reach
/// guests with a checksum in them: DHCP clients that read raw frames drop those without.
pub async fn disable_checksum_offload(name: &LinkName) -> Result<(), BridgeError> {
    let bridge = name.clone();
    let call = move || ethtool::disable_transmit_checksum(&bridge);
    file_call(call)
        .await
        .map_err(|source| BridgeError::Offload {
            name: name.clone(),
            source,
        })
}

/// Whether there is a bridge of this name; a link of another kind is none.
pub async fn exists(links: &Links, name: &LinkName) -> Result<bool, BridgeError> {
    let link = links.find(name).await?;
    Ok(link.is_some_and(|link| link.is_bridge()))
}

/// Deletes a bridge; it may be gone already. A link of that name that is no bridge stays.
pub async fn destroy(links: &Links, name: &LinkName) -> Result<(), BridgeError> {
    match links.find_bridge(name).await {
        Ok(bridge) => Ok(links.delete_exactly(name, bridge.index).await?),
        Err(LinkError::BridgeNotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The names of the bridge's ports, by ascending link index.
pub async fn ports(links: &Links, name: &LinkName) -> Result<Vec<String>, BridgeError> {
    let bridge = links.find_bridge(name).await?;
    let all = links.list().await?.into_iter();
    let ports = all.filter(|link| link.master == Some(bridge.index));
    Ok(ports.map(|link| link.name).collect())
}

/// Makes a link a port of the bridge; it may be one already.
pub async fn add_port(
    links: &Links,
    bridge: &LinkName,
    port: &LinkName,
) -> Result<(), BridgeError> {
    Ok(links.set_master(port, bridge).await?)
}

/// Takes a link off the bridge. A link that is no port of it, or gone, is left as it is.
pub async fn remove_port(
    links: &Links,
    bridge: &LinkName,
    port: &LinkName,
) -> Result<(), BridgeError> {
    let (master, link) = (links.find(bridge).await?, links.find(port).await?);
    let (Some(master), Some(link)) = (master, link) else {
        return Ok(());
    };
    if link.master != Some(master.index) {
        return Ok(());
    }
    match links.set_nomaster(port).await {
        Err(LinkError::NotFound { .. }) => Ok(()),
        outcome => Ok(outcome?),
    }
}
