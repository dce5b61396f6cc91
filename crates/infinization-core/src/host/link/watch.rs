//! Changes of links and of their addresses, as the kernel announces them (multicast groups `RTNLGRP_LINK`,
//! `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`).

use std::fmt;
use std::io;
use std::pin::Pin;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::connection::{Messages, without_sender};
use super::error::{LinkError, Refusal};
use super::record::Link;

/// One change of the host's links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// The link is new or has changed, and is now so.
    Changed(Link),
    /// The link was deleted (or moved to another namespace); this is how it was last.
    Gone(Link),
    /// The link with this index was given an address, or lost one; or what the kernel knows of one changed.
    Addresses(u32),
    /// Announcements were lost. Whoever keeps state must ask anew.
    Missed,
}

impl LinkEvent {
    /// Whether it may be about the link of this name.
    pub fn concerns(&self, name: &str) -> bool {
        match self {
            Self::Changed(link) | Self::Gone(link) => link.name == name,
            Self::Addresses(_) => false,
            Self::Missed => true,
        }
    }

    fn from_message(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Self> {
        use RouteNetlinkMessage::{DelAddress, DelLink, NewAddress, NewLink};
        match message.payload {
            NetlinkPayload::InnerMessage(NewLink(link)) if !is_of_a_port(&link) => {
                Some(Self::Changed(Link::from_message(link)))
            }
            NetlinkPayload::InnerMessage(DelLink(link)) if !is_of_a_port(&link) => {
                Some(Self::Gone(Link::from_message(link)))
            }
            NetlinkPayload::InnerMessage(NewAddress(address) | DelAddress(address)) => {
                Some(Self::Addresses(address.header.index))
            }
            NetlinkPayload::Overrun(_) => Some(Self::Missed),
            _ => None,
        }
    }
}

/// A bridge announces its ports in the same group, and one that leaves as deleted: the link itself stays.
fn is_of_a_port(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Bridge
}

/// What is subscribed to.
const GROUPS: [MulticastGroup; 3] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
];

/// A subscription to link changes. It has no task: it reads its socket while [`LinkWatch::next`]
/// is awaited, and dropping it ends the subscription.
pub struct LinkWatch {
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    messages: Messages,
}

impl fmt::Debug for LinkWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkWatch").finish_non_exhaustive()
    }
}

impl LinkWatch {
    pub(super) fn open() -> Result<Self, LinkError> {
        Self::subscribe().map_err(|error| LinkError::Watch {
            source: Refusal::Unopened(error),
        })
    }

    fn subscribe() -> io::Result<Self> {
        let (connection, _handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        Ok(Self {
            connection: Box::pin(connection),
            messages: Box::pin(messages.map(without_sender)),
        })
    }

    /// The next change. Nothing is lost when the returned future is dropped.
    pub async fn next(&mut self) -> Result<LinkEvent, LinkError> {
        loop {
            tokio::select! {
                biased;
                Some(message) = self.messages.next() => {
                    if let Some(event) = LinkEvent::from_message(message) {
                        return Ok(event);
                    }
                }
                () = &mut self.connection => {
                    *self = Self::open()?;
                    return Ok(LinkEvent::Missed);
                }
            }
        }
    }
}
