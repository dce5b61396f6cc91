//! What holds for every VM whatever its rules say: it cannot pretend to be somebody else, and it
//! gets the few services without which a network does not work.
//!
//! Invariant: these rules come before the user's. Every allowance towards the host has a reply
//! rule of its own, so none depends on connection tracking. What a guest may never *send* (DHCP
//! server answers, router advertisements, the bridge's own addresses) is dropped at the sender's
//! port: postrouting does not know where a frame came in.

use std::net::{IpAddr, Ipv6Addr};

use crate::types::MacAddr;

use super::compile::{Conntrack, VmFirewall};
use super::dhcp::{self, DHCP, DHCPV6};
use super::expr::{Field, IP4_MORE_FRAGMENTS, Item, Match, NftRule, Origin, Verdict};
use super::rule::{Side, States, Transport};

const DNS: u16 = 53;
pub(super) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// The rules for what the VM sends.
pub(super) fn from_vm(vm: &VmFirewall) -> Vec<NftRule> {
    let mut rules = Vec::from(own_mac(vm.mac));
    rules.extend([hidden_transport(), fragmented_discovery()]);
    if vm.conntrack == Conntrack::Stateless {
        rules.push(NftRule::new(
            Verdict::MarkAs(Origin::Guest),
            "infinization-guest",
        ));
    }
    rules.extend(own_addresses(&vm.known_addresses));
    let bridge = addresses(vm);
    rules.extend(impersonation(&bridge));
    rules.extend(foreign_requests(vm.mac));
    rules.extend(rogue_services());
    rules.push(accept("infinization-arp", [protocol("arp")]));
    rules.push(icmpv6(NEIGHBOUR_DISCOVERY_OUT));
    rules.extend(dhcp::requests(&bridge));
    rules.extend(services(vm).map(Service::request));
    rules
}

/// The rules for what is sent to the VM.
pub(super) fn to_vm(vm: &VmFirewall) -> Vec<NftRule> {
    let mut rules = vec![
        hidden_transport(),
        accept("infinization-arp", [protocol("arp")]),
        icmpv6(NEIGHBOUR_DISCOVERY_IN),
    ];
    rules.extend(dhcp::answers(&vm.bridge_addresses));
    rules.extend(dhcp::answers_v6(&vm.bridge_addresses));
    rules.extend(services(vm).map(|service| service.reply(vm.conntrack)));
    rules
}

/// A VM speaks with its own MAC.
fn own_mac(mac: MacAddr) -> [NftRule; 2] {
    let mac = mac.to_string();
    let ether = Match::is_not(Field::EtherSource, mac.as_str());
    let arp = Match::is_not(Field::ArpSenderEther, mac.as_str());
    [spoofed([ether]), spoofed([protocol("arp"), arp])]
}

/// IPv6's extension headers, by number: hop-by-hop, routing, fragment, authentication, destination
/// options, mobility, HIP, Shim6.
const EXTENSIONS: [u16; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// A first fragment that ends before the transport header begins has no ports to be judged by, and
/// the later ones, which have them, look like any fragment. Nobody needs such (RFC 7112).
fn hidden_transport() -> NftRule {
    let next = Match::among(Field::FragmentNext, EXTENSIONS.map(Item::Number));
    drop("infinization-evasion", [protocol("ip6"), next])
}

/// Neighbour discovery in fragments hides what it claims from these rules; hosts must ignore it
/// (RFC 6980), and not all do.
fn fragmented_discovery() -> NftRule {
    let messages = icmpv6_type([
        "nd-router-solicit",
        "nd-router-advert",
        "nd-neighbor-solicit",
        "nd-neighbor-advert",
        "nd-redirect",
    ]);
    let more = Match::is(Field::FragmentMore, Item::Number(1));
    drop("infinization-evasion", messages).when([more])
}

/// A VM whose addresses are known uses no other, in the families they are known of.
fn own_addresses(known: &[IpAddr]) -> Vec<NftRule> {
    let (mut v4, mut v6) = by_family(known);
    let mut rules = Vec::new();
    if !v4.is_empty() {
        // An unset source is how DHCP and address probes start.
        let unset = Item::from("0.0.0.0");
        if !v4.contains(&unset) {
            v4.push(unset);
        }
        let ip = Match::not_among(Field::Ip(Side::Source), v4.clone());
        let arp = Match::not_among(Field::ArpSenderIp, v4);
        rules.push(spoofed([protocol("ip"), ip]));
        rules.push(spoofed([protocol("arp"), arp]));
    }
    if !v6.is_empty() {
        let is_link_local = |it: &Ipv6Addr| it.is_unicast_link_local();
        let own: Vec<Ipv6Addr> = known.iter().filter_map(as_v6).collect();
        // The guest chooses its link-local address itself, unless one is named.
        let chooses = !own.iter().any(is_link_local);
        let unset = Item::from("::");
        if !v6.contains(&unset) {
            v6.push(unset);
        }
        if chooses {
            v6.push(Item::Prefix(IpAddr::V6(LINK_LOCAL), 64));
        }
        let ip6 = Match::not_among(Field::Ip6(Side::Source), v6);
        rules.push(spoofed([protocol("ip6"), ip6]));
        rules.extend(own_neighbour_messages(&own, chooses));
    }
    rules
}

/// It says of no other address that it has it, nor asks whether somebody has one that it is about to take.
fn own_neighbour_messages(own: &[Ipv6Addr], chooses_link_local: bool) -> [NftRule; 2] {
    let mut foreign: Vec<Match> = own
        .iter()
        .filter(|address| !address.is_unspecified())
        .map(|address| Match::is_not(Field::NdTarget, nd_target(*address).as_str()))
        .collect();
    if chooses_link_local {
        let network = format!("{:#018x}", u128::from(LINK_LOCAL) >> 64);
        foreign.push(Match::is_not(Field::NdTargetNetwork, network.as_str()));
    }
    let unset = Match::is(Field::Ip6(Side::Source), "::");
    let [_, l4proto, solicit] = icmpv6_type(["nd-neighbor-solicit"]);
    [
        spoofed(icmpv6_type(["nd-neighbor-advert"])).when(foreign.clone()),
        spoofed([protocol("ip6"), unset, l4proto, solicit]).when(foreign),
    ]
}

fn as_v6(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    }
}

/// As the bytes of a neighbour message.
fn nd_target(address: Ipv6Addr) -> String {
    format!("{:#034x}", u128::from(address))
}

/// A VM never speaks as the bridge: its address is what the service replies are trusted by.
fn impersonation(bridge: &[IpAddr]) -> Vec<NftRule> {
    let (v4, v6) = by_family(bridge);
    let mut rules = Vec::new();
    if !v4.is_empty() {
        let claims = Match::among(Field::Ip(Side::Source), v4.clone());
        rules.push(spoofed([protocol("ip"), claims]));
        let claims = Match::among(Field::ArpSenderIp, v4);
        rules.push(spoofed([protocol("arp"), claims]));
    }
    if !v6.is_empty() {
        let claims = Match::among(Field::Ip6(Side::Source), v6);
        rules.push(spoofed([protocol("ip6"), claims]));
    }
    for address in bridge {
        if let IpAddr::V6(address) = address {
            let target = nd_target(*address);
            let claims = icmpv6_type(["nd-neighbor-advert"]);
            let bridge = Match::is(Field::NdTarget, target.as_str());
            rules.push(spoofed(claims).when([bridge]));
        }
    }
    rules
}

/// A request for another's hardware address would take its lease from it, or get it one that holds it to an
/// address it has not: what asks is known to a server by what it says alone. In fragments it would be hidden
/// from these rules.
fn foreign_requests(mac: MacAddr) -> [NftRule; 2] {
    let (_, server) = DHCP;
    let to_server = || {
        let port = Field::Port(Transport::Udp, Side::Destination);
        [
            protocol("ip"),
            Match::is(Field::L4Proto, "udp"),
            Match::is(port, Item::Number(server)),
        ]
    };
    let client = mac.octets().map(|octet| format!("{octet:02x}")).concat();
    let foreign = Match::is_not(Field::DhcpClient, format!("0x{client}").as_str());
    let more = Match::is(Field::Ip4FragmentMore, Item::Number(IP4_MORE_FRAGMENTS));
    [
        spoofed(to_server()).when([foreign]),
        drop("infinization-evasion", to_server()).when([more]),
    ]
}

/// A guest is neither a DHCP server nor a router for its neighbours.
fn rogue_services() -> [NftRule; 3] {
    let answers = |(client, server)| drop("infinization-rogue-dhcp", udp_ports(server, client));
    let routers = icmpv6_type(["nd-router-advert", "nd-redirect"]);
    [
        answers(DHCP),
        answers(DHCPV6),
        drop("infinization-rogue-router", routers),
    ]
}

/// Finding neighbours and routers, and telling a snooping bridge which groups are listened to.
const NEIGHBOUR_DISCOVERY_OUT: [&str; 6] = [
    "nd-neighbor-solicit",
    "nd-neighbor-advert",
    "nd-router-solicit",
    "mld-listener-report",
    "mld-listener-done",
    "mld2-listener-report",
];
const NEIGHBOUR_DISCOVERY_IN: [&str; 4] = [
    "nd-neighbor-solicit",
    "nd-neighbor-advert",
    "nd-router-advert",
    "mld-listener-query",
];

fn icmpv6<const N: usize>(types: [&str; N]) -> NftRule {
    accept("infinization-neighbour-discovery", icmpv6_type(types))
}

/// The host's services of one family and transport.
struct Service {
    protocol: &'static str,
    address: fn(Side) -> Field,
    addresses: Vec<Item>,
    transport: Transport,
    ports: Vec<Item>,
}

impl Service {
    fn request(self) -> NftRule {
        let matches = self.matches(Side::Destination);
        accept("infinization-host-service", matches)
    }

    /// The bridge's address alone proves nothing: what is masqueraded on its way here (by others' rules, or as it
    /// pretends to be another department's) comes from that address too, and from any port.
    fn reply(self, conntrack: Conntrack) -> NftRule {
        let mut matches = self.matches(Side::Source);
        match (conntrack, self.transport) {
            (Conntrack::Stateful, _) => matches.push(is_reply()),
            (Conntrack::Stateless, Transport::Tcp) => matches.extend([no_guest(), opens_nothing()]),
            (Conntrack::Stateless, Transport::Udp) => matches.push(no_guest()),
        }
        accept("infinization-host-service-reply", matches)
    }

    /// `side` is where the host is.
    fn matches(&self, side: Side) -> Vec<Match> {
        vec![
            protocol(self.protocol),
            Match::among((self.address)(side), self.addresses.iter().cloned()),
            Match::is(Field::L4Proto, self.transport.as_str()),
            Match::among(
                Field::Port(self.transport, side),
                self.ports.iter().cloned(),
            ),
        ]
    }
}

/// Its name, its address field, and the host's addresses in it.
type Family = (&'static str, fn(Side) -> Field, Vec<Item>);

fn services(vm: &VmFirewall) -> impl Iterator<Item = Service> {
    let (v4, v6) = by_family(&addresses(vm));
    let ip: Family = ("ip", Field::Ip, v4);
    let ip6: Family = ("ip6", Field::Ip6, v6);
    let reachable = [ip, ip6].into_iter().filter(|(.., list)| !list.is_empty());
    reachable.flat_map(|(protocol, address, addresses)| {
        [Transport::Udp, Transport::Tcp].map(|transport| Service {
            protocol,
            address,
            addresses: addresses.clone(),
            transport,
            ports: service_ports(vm, transport),
        })
    })
}

fn service_ports(vm: &VmFirewall, transport: Transport) -> Vec<Item> {
    let configured = vm.host_services.iter();
    let configured = configured.filter(|service| service.protocol == transport);
    let mut ports: Vec<u16> = configured.map(|service| service.port).collect();
    ports.push(DNS);
    ports.sort_unstable();
    ports.dedup();
    ports.into_iter().map(Item::Number).collect()
}

/// Packets that no managed VM has sent.
fn no_guest() -> Match {
    is_not_of(Origin::Guest)
}

/// Packets that do not come from there.
pub(super) fn is_not_of(origin: Origin) -> Match {
    Match::is(Field::Mark(origin), "0x00000000")
}

/// Packets of a connection that the VM has opened, or errors about one.
pub(super) fn is_reply() -> Match {
    let words = States::REPLIES.words().into_iter().map(Item::from);
    Match::among(Field::CtState, words)
}

/// TCP segments that cannot open a connection: anything but SYN without ACK.
pub(super) fn opens_nothing() -> Match {
    Match::is_not(Field::TcpSynAck, "syn")
}

pub(super) fn protocol(word: &str) -> Match {
    Match::is(Field::Protocol, word)
}

fn icmpv6_type<const N: usize>(types: [&str; N]) -> [Match; 3] {
    [
        protocol("ip6"),
        Match::is(Field::L4Proto, "ipv6-icmp"),
        Match::among(Field::Icmpv6Type, types.map(Item::from)),
    ]
}

pub(super) fn udp_ports(from: u16, to: u16) -> [Match; 3] {
    let port = |side| Field::Port(Transport::Udp, side);
    [
        Match::is(Field::L4Proto, "udp"),
        Match::is(port(Side::Source), Item::Number(from)),
        Match::is(port(Side::Destination), Item::Number(to)),
    ]
}

/// The host's own on the bridge.
fn addresses(vm: &VmFirewall) -> Vec<IpAddr> {
    vm.bridge_addresses.iter().map(|it| it.address).collect()
}

pub(super) fn by_family(addresses: &[IpAddr]) -> (Vec<Item>, Vec<Item>) {
    let item = |address: &IpAddr| Item::Word(address.to_string());
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        let list = if address.is_ipv4() { &mut v4 } else { &mut v6 };
        let item = item(address);
        // nft refuses a set that names an element twice.
        if !list.contains(&item) {
            list.push(item);
        }
    }
    (v4, v6)
}

fn spoofed(matches: impl IntoIterator<Item = Match>) -> NftRule {
    drop("infinization-anti-spoofing", matches)
}

pub(super) fn accept(comment: &'static str, matches: impl IntoIterator<Item = Match>) -> NftRule {
    NftRule::new(Verdict::Accept, comment).when(matches)
}

fn drop(comment: &'static str, matches: impl IntoIterator<Item = Match>) -> NftRule {
    NftRule::new(Verdict::Drop, comment).when(matches)
}
