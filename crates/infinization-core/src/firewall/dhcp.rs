//! DHCP passes whatever a VM's rules say, between it and the servers on its link.
//!
//! Neighbour: [`super::guard`], which keeps VMs from being servers.

use std::net::IpAddr;

use super::expr::{Field, Item, Match, NftRule, Origin, Verdict};
use super::guard::{LINK_LOCAL, accept, by_family, is_not_of, protocol, udp_ports};
use super::place;
use super::rule::{Network, Side};

/// The client's port, the server's.
pub(super) const DHCP: (u16, u16) = (68, 67);
pub(super) const DHCPV6: (u16, u16) = (546, 547);

/// To everybody on the link, or to the bridge. Not to any address: port 67 of a host far away would
/// be a way out for a VM that has none. A lease of another server on the link is renewed by
/// broadcast.
pub(super) fn requests(bridge: &[IpAddr]) -> [NftRule; 2] {
    let (v4, v6) = by_family(bridge);
    let request = |comment, family, field, everybody: &str, own: Vec<Item>, (from, to)| {
        let servers = [Item::from(everybody)].into_iter().chain(own);
        let link = [protocol(family), Match::among(field, servers)];
        accept(comment, link).when(udp_ports(from, to))
    };
    let (ip, ip6) = (Field::Ip(Side::Destination), Field::Ip6(Side::Destination));
    [
        request(
            "infinization-dhcp-client-to-server",
            "ip",
            ip,
            "255.255.255.255",
            v4,
            DHCP,
        ),
        request(
            "infinization-dhcpv6-client-to-server",
            "ip6",
            ip6,
            "ff02::1:2",
            v6,
            DHCPV6,
        ),
    ]
}

/// For the hook where the host puts frames on a bridge: marks the answers among them, so that [`answers`] can
/// tell those that were routed here.
pub(super) fn from_the_host() -> [NftRule; 2] {
    [DHCP, DHCPV6].map(|(client, server)| {
        NftRule::new(Verdict::MarkAs(Origin::Host), "infinization-dhcp-from-host")
            .when(udp_ports(server, client))
    })
}

/// Answers of servers on the link, which need not be the bridge's own. A host far away has no answer for the VM,
/// and could reach it by pretending to: what is routed here comes from elsewhere whatever address of the link it
/// bears, and is not to everybody. What the host answers bears the bridge's address, which it takes from nobody else. A
/// bridge without an address routes nothing.
pub(super) fn answers(bridge: &[Network]) -> Vec<NftRule> {
    let mut conditions = on_link(bridge, "ip", Field::Ip(Side::Source));
    if conditions.is_empty() {
        conditions.push(vec![protocol("ip")]);
    } else {
        let everybody = Match::is(Field::Ip(Side::Destination), "255.255.255.255");
        conditions.push(vec![protocol("ip"), everybody]);
    }
    accepted("infinization-dhcp-server-to-client", conditions, DHCP)
}

/// As [`answers`]. Link-local addresses are not routed.
pub(super) fn answers_v6(bridge: &[Network]) -> Vec<NftRule> {
    let from = Field::Ip6(Side::Source);
    let mut conditions = on_link(bridge, "ip6", from);
    if conditions.is_empty() {
        conditions.push(vec![protocol("ip6")]);
    } else {
        let link_local = Item::Prefix(IpAddr::V6(LINK_LOCAL), 10);
        conditions.push(vec![protocol("ip6"), Match::is(from, link_local)]);
    }
    accepted("infinization-dhcpv6-server-to-client", conditions, DHCPV6)
}

fn accepted(
    comment: &'static str,
    conditions: Vec<Vec<Match>>,
    (client, server): (u16, u16),
) -> Vec<NftRule> {
    let answer = |matches| accept(comment, matches).when(udp_ports(server, client));
    conditions.into_iter().map(answer).collect()
}

/// For each of the bridge's networks of one family: what comes from there by a port. Also what comes from its own
/// addresses, which may be the host's.
fn on_link(bridge: &[Network], family: &str, from: Field) -> Vec<Vec<Match>> {
    let (mut networks, mut own): (Vec<Match>, Vec<Item>) = (Vec::new(), Vec::new());
    for network in bridge {
        let comes_from = place::network(Some(*network), Side::Source);
        let Some(comes_from) = comes_from.filter(|it| it.field == from) else {
            continue;
        };
        if !networks.contains(&comes_from) {
            networks.push(comes_from);
        }
        let address = Item::Word(network.address.to_string());
        if !own.contains(&address) {
            own.push(address);
        }
    }
    let by_a_port = |comes_from| vec![protocol(family), comes_from, is_not_of(Origin::Host)];
    let mut all: Vec<_> = networks.into_iter().map(by_a_port).collect();
    if !own.is_empty() {
        all.push(vec![protocol(family), Match::among(from, own)]);
    }
    all
}
