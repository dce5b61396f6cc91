//! A link as the kernel describes it, decoded from its netlink message.

use std::fmt;

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::link::{
    InfoData, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};

/// One network interface, at the moment of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it; never given to another link while this one lives.
    pub index: u32,
    /// Its name. Links of others may have names a [`crate::types::LinkName`] would refuse.
    pub name: String,
    /// Words for people (`ip link set … alias`).
    pub alias: Option<String>,
    /// `tun` (TAPs too), `bridge`, `veth`…; none for a physical device and the loopback.
    pub kind: Option<String>,
    /// The index of the bridge (or bond…) it is a port of.
    pub master: Option<u32>,
    /// Its hardware address; none where the link type has no 6-byte one.
    pub mac: Option<[u8; 6]>,
    /// Largest payload in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Up, and there is a carrier (`IFF_LOWER_UP`).
    pub lower_up: bool,
    /// There is a carrier, whether the link is up or not. A TAP has one while a process has it open.
    pub carrier: bool,
    /// RFC 2863 operational state.
    pub operstate: OperState,
    /// What only TUN/TAP devices have.
    pub tun: Option<TunInfo>,
}

impl Link {
    /// Whether it is a bridge.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }

    /// Whether it is a TAP (a TUN device carries packets, not frames).
    pub fn is_tap(&self) -> bool {
        self.tun.as_ref().is_some_and(|tun| tun.tap)
    }

    pub(super) fn from_message(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            kind: None,
            master: None,
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            lower_up: flags.contains(LinkFlags::LowerUp),
            carrier: false,
            operstate: OperState::Unknown,
            tun: None,
        };
        for attribute in message.attributes {
            link.take(attribute);
        }
        link
    }

    fn take(&mut self, attribute: LinkAttribute) {
        match attribute {
            LinkAttribute::IfName(name) => self.name = name,
            LinkAttribute::IfAlias(alias) => self.alias = Some(alias),
            LinkAttribute::Controller(index) => self.master = Some(index),
            LinkAttribute::Address(octets) => self.mac = octets.try_into().ok(),
            LinkAttribute::Mtu(mtu) => self.mtu = mtu,
            LinkAttribute::Carrier(carrier) => self.carrier = carrier != 0,
            LinkAttribute::OperState(state) => self.operstate = state.into(),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| self.learn(info)),
            _ => {}
        }
    }

    fn learn(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Tun(attributes)) => {
                self.tun = Some(TunInfo::from_attributes(&attributes));
            }
            _ => {}
        }
    }
}

/// What the kernel says of a TUN/TAP device (`IFLA_INFO_DATA`, Linux 4.16).
#[expect(
    clippy::struct_excessive_bools,
    reason = "four independent facts, as the kernel reports them"
)]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunInfo {
    /// A TAP (Ethernet frames) rather than a TUN (IP packets).
    pub tap: bool,
    /// It stays when the last descriptor is closed.
    pub persist: bool,
    /// It takes several descriptors (`IFF_MULTI_QUEUE`), and only openers that ask for that.
    pub multi_queue: bool,
    /// Its descriptors carry a `virtio_net_hdr` before each frame.
    pub vnet_hdr: bool,
    /// The uid that may open it without CAP_NET_ADMIN.
    pub owner: Option<u32>,
    /// The gid that may open it without CAP_NET_ADMIN.
    pub group: Option<u32>,
    /// Descriptors attached now. The kernel tells it of multi-queue devices only; of the others
    /// [`Link::carrier`] says whether there is one.
    pub queues: Option<u32>,
}

// <linux/if_link.h>; netlink-packet-route leaves these attributes undecoded.
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_GROUP: u16 = 2;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_VNET_HDR: u16 = 5;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
const IFLA_TUN_NUM_DISABLED_QUEUES: u16 = 9;

/// `IFF_TAP`, as `IFLA_TUN_TYPE` has it.
const TYPE_TAP: u32 = 2;

impl TunInfo {
    fn from_attributes(attributes: &[InfoTun]) -> Self {
        let mut info = Self::default();
        for attribute in attributes {
            let value = small_number(attribute);
            match attribute.kind() {
                IFLA_TUN_OWNER => info.owner = Some(value),
                IFLA_TUN_GROUP => info.group = Some(value),
                IFLA_TUN_TYPE => info.tap = value == TYPE_TAP,
                IFLA_TUN_VNET_HDR => info.vnet_hdr = value != 0,
                IFLA_TUN_PERSIST => info.persist = value != 0,
                IFLA_TUN_MULTI_QUEUE => info.multi_queue = value != 0,
                IFLA_TUN_NUM_QUEUES | IFLA_TUN_NUM_DISABLED_QUEUES => {
                    *info.queues.get_or_insert(0) += value;
                }
                _ => {}
            }
        }
        info
    }
}

/// The attribute's value: a u8 or u32 in host byte order.
fn small_number(attribute: &impl Nla) -> u32 {
    let mut octets = vec![0; attribute.value_len()];
    attribute.emit_value(&mut octets);
    match *octets {
        [octet] => u32::from(octet),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// RFC 2863 operational state; `Display` gives the words `ip link` uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "RFC 2863 defines them")]
pub enum OperState {
    Unknown,
    NotPresent,
    Down,
    LowerLayerDown,
    Testing,
    Dormant,
    Up,
}

impl From<State> for OperState {
    fn from(state: State) -> Self {
        match state {
            State::NotPresent => Self::NotPresent,
            State::Down => Self::Down,
            State::LowerLayerDown => Self::LowerLayerDown,
            State::Testing => Self::Testing,
            State::Dormant => Self::Dormant,
            State::Up => Self::Up,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for OperState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "UNKNOWN",
            Self::NotPresent => "NOTPRESENT",
            Self::Down => "DOWN",
            Self::LowerLayerDown => "LOWERLAYERDOWN",
            Self::Testing => "TESTING",
            Self::Dormant => "DORMANT",
            Self::Up => "UP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::DefaultNla;
    use rtnetlink::packet_route::link::InfoKind;

    fn attribute(kind: u16, value: &[u8]) -> InfoTun {
        InfoTun::Other(DefaultNla::new(kind, value.to_vec()))
    }

    #[test]
    fn reads_a_multi_queue_tap() {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName("vnet-1".into()),
            LinkAttribute::Carrier(1),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Tun),
                LinkInfo::Data(InfoData::Tun(vec![
                    attribute(IFLA_TUN_TYPE, &[2]),
                    attribute(IFLA_TUN_OWNER, &65534_u32.to_ne_bytes()),
                    attribute(IFLA_TUN_PERSIST, &[1]),
                    attribute(IFLA_TUN_MULTI_QUEUE, &[1]),
                    attribute(IFLA_TUN_NUM_QUEUES, &2_u32.to_ne_bytes()),
                    attribute(IFLA_TUN_NUM_DISABLED_QUEUES, &1_u32.to_ne_bytes()),
                    attribute(99, b"from a newer kernel"),
                ])),
            ]),
        ];
        let link = Link::from_message(message);
        assert!(link.is_tap() && !link.is_bridge());
        assert!(link.up && link.carrier && !link.lower_up);
        let tun = link.tun.unwrap();
        assert!(tun.persist && tun.multi_queue && !tun.vnet_hdr);
        assert_eq!(
            (tun.owner, tun.group, tun.queues),
            (Some(65534), None, Some(3))
        );
    }
}
