//! What a virtual network shall be: `VirtualNetworkConfig`, with everything chosen that was left open.
//!
//! Invariant: whoever holds a [`VirtualNetwork`] need not check it again: every address is in the subnet and
//! nobody else's, and every name is one word. Neighbour: [`crate::network`] plans with it.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::fields::{Fields, Report, elements, integer_in, parsed, string};
use super::{ConfigError, Parsed, words};
use crate::types::{InvalidValue, Ipv4Subnet, LinkName, MacAddr, checked_string};

words! {
    /// How a network reaches further than its bridge.
    pub enum NetworkMode {
        /// Out under the host's address.
        Nat = "nat",
        /// Out and in under its own addresses.
        Routed = "routed",
        /// Nowhere but to the host.
        Isolated = "isolated",
    }
}

/// What a network is called: also the name of its folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

checked_string!(NetworkName, check_name);

fn check_name(text: &str) -> Result<(), InvalidValue> {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && text.len() <= 32 && text.chars().all(inside) {
        return Ok(());
    }
    Err(InvalidValue::new(
        "must have 1 to 32 letters, digits, '-' and '_', and begin with a letter or digit",
    ))
}

/// A name in the DNS: labels of letters, digits and '-'.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

checked_string!(DnsName, check_dns_name);

fn check_dns_name(text: &str) -> Result<(), InvalidValue> {
    let is_label = |label: &str| {
        let plain = label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        (1..=63).contains(&label.len()) && plain && !label.starts_with('-') && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(is_label) {
        return Ok(());
    }
    Err(InvalidValue::new(
        "must be a DNS name: labels of letters, digits and '-'",
    ))
}

/// A network with everything chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualNetwork {
    /// What it is called.
    pub name: NetworkName,
    /// Its bridge.
    pub bridge: LinkName,
    /// Its addresses; 8 to 29 bits of prefix.
    pub subnet: Ipv4Subnet,
    /// The bridge's own.
    pub gateway: Ipv4Addr,
    /// How far it reaches.
    pub mode: NetworkMode,
    /// Addresses for machines; none for none.
    #[serde(with = "or_false")]
    pub dhcp: Option<Dhcp>,
    /// Names for machines; none for none.
    #[serde(with = "or_false")]
    pub dns: Option<NetworkDns>,
    /// Whether `initialize()` starts it.
    pub autostart: bool,
    /// Whether machines may only use the address they were given.
    pub pin_addresses: bool,
}

/// Addresses for machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dhcp {
    /// The first that is given away.
    pub start: Ipv4Addr,
    /// The last.
    pub end: Ipv4Addr,
    /// Seconds.
    pub lease_time: u32,
    /// Machines with an address of their own.
    pub hosts: Vec<DhcpHost>,
}

/// A machine with an address of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DhcpHost {
    /// Whose.
    pub mac: MacAddr,
    /// Which.
    pub ip: Ipv4Addr,
    /// What it is called, in one label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<DnsName>,
}

/// Names for machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkDns {
    /// Whether the gateway answers.
    pub enabled: bool,
    /// Whom it asks, or the machines where it does not answer.
    pub servers: Vec<Ipv4Addr>,
    /// The machines' domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<DnsName>,
}

/// In JSON, what is switched off is `false`.
mod or_false {
    use serde::de::{DeserializeOwned, Error};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::Value;

    #[expect(clippy::ref_option, reason = "serde hands the field over so")]
    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_bool(false),
        }
    }

    pub(super) fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(false) => Ok(None),
            value => serde_json::from_value(value)
                .map(Some)
                .map_err(D::Error::custom),
        }
    }
}

const LEASE_TIME: u32 = 3600;
/// dnsmasq rounds shorter ones up to two minutes.
const LEASE_TIMES: std::ops::RangeInclusive<i64> = 120..=31_536_000;

impl VirtualNetwork {
    /// Reads `VirtualNetworkConfig`, and chooses what it leaves open. What is no option is refused: a misspelt
    /// mode would be a network that is open.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        let report = Report::default();
        let network = Fields::of("config", value, &report).and_then(|fields| {
            Source {
                fields,
                report: &report,
            }
            .read()
        });
        report.conclude(network)
    }
}

/// An object of options that may be switched off.
enum Part<T> {
    On(T),
    Off,
}

impl<T> Part<T> {
    fn on(self) -> Option<T> {
        match self {
            Self::On(part) => Some(part),
            Self::Off => None,
        }
    }
}

struct Source<'a> {
    fields: Fields<'a>,
    report: &'a Report,
}

impl Source<'_> {
    fn read(&self) -> Option<VirtualNetwork> {
        let fields = &self.fields;
        let name: Option<NetworkName> = fields.required("name", parsed);
        let subnet = fields.required("subnet", subnet);
        let bridge = self.bridge(name.as_ref());
        let mode = fields.optional("mode", parsed).unwrap_or(NetworkMode::Nat);
        let autostart = fields.flag("autostart", true);
        let pin_addresses = fields.flag("pinAddresses", false);
        let dns = self.dns();
        let gateway = subnet.and_then(|subnet| self.gateway(subnet));
        let place = subnet.zip(gateway);
        let dhcp = self.dhcp(place);
        fields.refuse_strangers();
        let (subnet, gateway) = place?;
        if pin_addresses && matches!(dhcp, Some(Part::Off)) {
            self.report
                .refuse("pinAddresses", "needs dhcp, which gives the addresses");
        }
        Some(VirtualNetwork {
            name: name?,
            bridge: bridge?,
            subnet,
            gateway,
            mode,
            dhcp: dhcp?.on(),
            dns: dns?.on(),
            autostart,
            pin_addresses,
        })
    }

    fn bridge(&self, name: Option<&NetworkName>) -> Option<LinkName> {
        if !self.fields.has("bridge") {
            return Some(bridge_of(name?));
        }
        let bridge: LinkName = self.fields.optional("bridge", parsed)?;
        if bridge.as_str().starts_with("vnet-") {
            self.report
                .refuse("bridge", "must not be named like a machine's TAP");
        }
        Some(bridge)
    }

    fn gateway(&self, subnet: Ipv4Subnet) -> Option<Ipv4Addr> {
        if !self.fields.has("gateway") {
            return Some(after(subnet.network()));
        }
        let gateway = self.fields.optional("gateway", address)?;
        let gateway = host_of(subnet, gateway);
        self.report.check("gateway", gateway)
    }

    /// None if it was refused.
    fn dns(&self) -> Option<Part<NetworkDns>> {
        let Part::On(fields) = self.part("dns")? else {
            return Some(Part::Off);
        };
        let dns = NetworkDns {
            enabled: fields.flag("enabled", true),
            servers: self.list("dns.servers", fields.optional("servers", elements), address),
            domain: fields.optional("domain", parsed),
        };
        fields.refuse_strangers();
        Some(Part::On(dns))
    }

    /// None if it was refused, or the subnet was.
    fn dhcp(&self, place: Option<(Ipv4Subnet, Ipv4Addr)>) -> Option<Part<Dhcp>> {
        let Part::On(fields) = self.part("dhcp")? else {
            return Some(Part::Off);
        };
        let given = [
            fields.optional("start", address),
            fields.optional("end", address),
        ];
        let lease_time = fields.optional("leaseTime", integer_in(LEASE_TIMES));
        let hosts = fields.optional("hosts", elements).unwrap_or_default();
        let hosts: Vec<_> = hosts
            .iter()
            .enumerate()
            .filter_map(|(at, host)| self.host(at, host))
            .collect();
        fields.refuse_strangers();
        let (subnet, gateway) = place?;
        self.check_hosts(&hosts, subnet, gateway);
        let (start, end) = self.range(given, subnet, gateway)?;
        Some(Part::On(Dhcp {
            start,
            end,
            lease_time: lease_time.unwrap_or(LEASE_TIME),
            hosts,
        }))
    }

    /// The object under `key`: an empty one if it is absent; none if it was refused.
    fn part(&self, key: &'static str) -> Option<Part<Fields<'_>>> {
        static NOTHING: std::sync::LazyLock<Value> =
            std::sync::LazyLock::new(|| Value::Object(serde_json::Map::new()));
        let given = self.fields.optional(key, Ok);
        match given {
            Some(Value::Bool(false)) => Some(Part::Off),
            given => {
                let object = given.unwrap_or(&NOTHING);
                Fields::member(key, object, self.report).map(Part::On)
            }
        }
    }

    fn host(&self, at: usize, value: &Value) -> Option<DhcpHost> {
        let fields = Fields::element("dhcp.hosts", at, value, self.report)?;
        let mac = fields.required("mac", parsed_by(MacAddr::parse));
        let ip = fields.required("ip", address);
        let name = fields.optional("name", label);
        fields.refuse_strangers();
        Some(DhcpHost {
            mac: mac?,
            ip: ip?,
            name,
        })
    }

    fn check_hosts(&self, hosts: &[DhcpHost], subnet: Ipv4Subnet, gateway: Ipv4Addr) {
        let (mut macs, mut ips, mut names) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (at, host) in hosts.iter().enumerate() {
            let path = |field| format!("dhcp.hosts[{at}].{field}");
            self.once(path("mac"), &mut macs, host.mac);
            self.once(path("ip"), &mut ips, host.ip);
            if let Some(name) = &host.name {
                self.once(path("name"), &mut names, name.as_str().to_ascii_lowercase());
            }
            if host.ip == gateway {
                self.report.refuse(path("ip"), "is the gateway's");
            }
            self.report.check(path("ip"), host_of(subnet, host.ip));
        }
    }

    fn once<T: Hash + Eq>(&self, path: String, seen: &mut HashSet<T>, value: T) {
        if !seen.insert(value) {
            self.report.refuse(path, "is there twice");
        }
    }

    /// The gateway may be in the midst of it: dnsmasq does not give its own address away.
    fn range(
        &self,
        [start, end]: [Option<Ipv4Addr>; 2],
        subnet: Ipv4Subnet,
        gateway: Ipv4Addr,
    ) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let first = after(subnet.network());
        let first = if first == gateway {
            after(first)
        } else {
            first
        };
        let last = Ipv4Addr::from(u32::from(subnet.broadcast()) - 1);
        let start = self
            .report
            .check("dhcp.start", host_of(subnet, start.unwrap_or(first)))?;
        let end = self
            .report
            .check("dhcp.end", host_of(subnet, end.unwrap_or(last)))?;
        if start > end || (start == end && start == gateway) {
            self.report
                .refuse("dhcp.end", "must leave an address from start on");
            return None;
        }
        Some((start, end))
    }

    fn list<T>(
        &self,
        path: &str,
        elements: Option<&[Value]>,
        read: impl Fn(&Value) -> Result<T, InvalidValue>,
    ) -> Vec<T> {
        let elements = elements.unwrap_or_default().iter().enumerate();
        let read = |(at, value)| self.report.check(format!("{path}[{at}]"), read(value));
        elements.filter_map(read).collect()
    }
}

fn subnet(value: &Value) -> Result<Ipv4Subnet, InvalidValue> {
    let subnet = Ipv4Subnet::parse(string(value)?)?;
    if !(8..=29).contains(&subnet.prefix()) {
        return Err(InvalidValue::new("must have a prefix of 8 to 29 bits"));
    }
    let first = subnet.network();
    if first.is_loopback()
        || first.is_multicast()
        || first.octets()[0] == 0
        || first.octets()[0] >= 240
    {
        return Err(InvalidValue::new("must be a network of unicast addresses"));
    }
    Ok(subnet)
}

fn address(value: &Value) -> Result<Ipv4Addr, InvalidValue> {
    let text = string(value)?;
    text.parse()
        .map_err(|_| InvalidValue::new("must be an IPv4 address like 10.20.0.1"))
}

fn label(value: &Value) -> Result<DnsName, InvalidValue> {
    let name = DnsName::parse(string(value)?)?;
    if name.as_str().contains('.') {
        return Err(InvalidValue::new("must be one label, without '.'"));
    }
    if is_keyword(name.as_str()) {
        return Err(InvalidValue::new("is a word or a time of dnsmasq's"));
    }
    Ok(name)
}

/// Whether `dhcp-host` takes it for something else than a name: dnsmasq would give nobody the address, or
/// another lease time (dnsmasq(8)).
fn is_keyword(name: &str) -> bool {
    let is = |word: &str| name.eq_ignore_ascii_case(word);
    let time = name.trim_end_matches(|unit: char| "smhdwSMHDW".contains(unit));
    let is_time = name.len() - time.len() <= 1 && !time.is_empty();
    is("ignore") || is("infinite") || is_time && time.bytes().all(|byte| byte.is_ascii_digit())
}

fn parsed_by<T>(
    parse: impl Fn(&str) -> Result<T, InvalidValue>,
) -> impl Fn(&Value) -> Result<T, InvalidValue> {
    move |value| parse(string(value)?)
}

fn host_of(subnet: Ipv4Subnet, address: Ipv4Addr) -> Result<Ipv4Addr, InvalidValue> {
    if subnet.is_host(address) {
        return Ok(address);
    }
    let why = format!("must be a machine's address in {subnet}");
    Err(InvalidValue::new(why))
}

fn after(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address).saturating_add(1))
}

fn bridge_of(name: &NetworkName) -> LinkName {
    let digest = Sha256::digest(name.as_str().as_bytes());
    let text = format!(
        "infinet-{:02x}{:02x}{:02x}",
        digest[0], digest[1], digest[2]
    );
    LinkName::parse(text).expect("14 letters, digits and '-'")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> VirtualNetwork {
        VirtualNetwork::parse(value).unwrap().config
    }

    #[test]
    fn names_that_dnsmasq_takes_for_something_else_are_told_from_the_rest() {
        for word in ["ignore", "infinite", "5m", "45", "2W"] {
            assert!(is_keyword(word), "{word}");
        }
        for name in ["m", "web5m", "5mm", "ignored", "5-m"] {
            assert!(!is_keyword(name), "{name}");
        }
    }

    #[test]
    fn what_is_left_open_is_chosen() {
        let network = read(&json!({ "name": "lab", "subnet": "10.20.0.0/24" }));
        let chosen = json!({
            "name": "lab", "subnet": "10.20.0.0/24", "gateway": "10.20.0.1", "mode": "nat",
            "bridge": network.bridge, "autostart": true, "pinAddresses": false,
            "dhcp": { "start": "10.20.0.2", "end": "10.20.0.254", "leaseTime": 3600, "hosts": [] },
            "dns": { "enabled": true, "servers": [] },
        });
        assert_eq!(serde_json::to_value(&network).unwrap(), chosen);
        assert!(
            network.bridge.as_str().starts_with("infinet-"),
            "{}",
            network.bridge
        );
        let bare =
            read(&json!({ "name": "x", "subnet": "192.0.2.0/29", "dhcp": false, "dns": false }));
        assert_eq!((&bare.dhcp, &bare.dns), (&None, &None));
        for network in [network, bare] {
            let stored = serde_json::to_value(&network).unwrap();
            assert_eq!(
                serde_json::from_value::<VirtualNetwork>(stored).unwrap(),
                network
            );
        }
    }

    #[test]
    fn b25_b31_b32_every_refusal_names_its_field() {
        let with = |key: &str, value: Value| {
            let mut config = json!({ "name": "lab", "subnet": "10.20.0.0/24" });
            config[key] = value;
            config
        };
        let host = |host: Value| with("dhcp", json!({ "hosts": [host] }));
        let twice = |one: Value, other: Value| with("dhcp", json!({ "hosts": [one, other] }));
        for (config, path) in [
            (json!({ "subnet": "10.0.0.0/24" }), "name"),
            (json!({ "name": "lab" }), "subnet"),
            (with("name", json!("../x")), "name"),
            (with("name", json!("a\nb")), "name"),
            (with("name", json!("x".repeat(33))), "name"),
            (with("subnet", json!("10.20.0.1/24")), "subnet"),
            (with("subnet", json!("10.20.0.0/30")), "subnet"),
            (with("subnet", json!("127.0.0.0/8")), "subnet"),
            (with("subnet", json!("224.0.0.0/8")), "subnet"),
            (with("bridge", json!("sixteen-letters-")), "bridge"),
            (with("bridge", json!("vnet-x")), "bridge"),
            (with("mode", json!("bridged")), "mode"),
            (with("modus", json!("nat")), "modus"),
            (with("gateway", json!("10.20.0.255")), "gateway"),
            (with("gateway", json!("10.21.0.1")), "gateway"),
            (with("gateway", json!("010.20.0.1")), "gateway"),
            (with("dhcp", json!(true)), "dhcp"),
            (with("dhcp", json!({ "start": "10.21.0.5" })), "dhcp.start"),
            (
                with("dhcp", json!({ "start": "10.20.0.9", "end": "10.20.0.8" })),
                "dhcp.end",
            ),
            (
                with("dhcp", json!({ "start": "10.20.0.1", "end": "10.20.0.1" })),
                "dhcp.end",
            ),
            (with("dhcp", json!({ "leaseTime": 60 })), "dhcp.leaseTime"),
            (with("dhcp", json!({ "range": 1 })), "dhcp.range"),
            (host(json!({ "ip": "10.20.0.5" })), "dhcp.hosts[0].mac"),
            (
                host(json!({ "mac": "zz", "ip": "10.20.0.5" })),
                "dhcp.hosts[0].mac",
            ),
            (
                host(json!({ "mac": "52:54:00:00:00:01", "ip": "10.20.0.1" })),
                "dhcp.hosts[0].ip",
            ),
            (
                host(json!({ "mac": "52:54:00:00:00:01", "ip": "10.20.0.5", "name": "a,b" })),
                "dhcp.hosts[0].name",
            ),
            (
                host(json!({ "mac": "52:54:00:00:00:01", "ip": "10.20.0.5", "name": "a.b" })),
                "dhcp.hosts[0].name",
            ),
            (
                host(json!({ "mac": "52:54:00:00:00:01", "ip": "10.20.0.5", "name": "ignore" })),
                "dhcp.hosts[0].name",
            ),
            (
                host(json!({ "mac": "52:54:00:00:00:01", "ip": "10.20.0.5", "name": "5m" })),
                "dhcp.hosts[0].name",
            ),
            (
                twice(
                    json!({ "mac": "52:54:00:00:00:01", "ip": "10.20.0.5" }),
                    json!({ "mac": "52:54:00:00:00:01", "ip": "10.20.0.6" }),
                ),
                "dhcp.hosts[1].mac",
            ),
            (
                twice(
                    json!({ "mac": "52:54:00:00:00:01", "ip": "10.20.0.5" }),
                    json!({ "mac": "52:54:00:00:00:02", "ip": "10.20.0.5" }),
                ),
                "dhcp.hosts[1].ip",
            ),
            (
                with("dns", json!({ "servers": ["9.9.9.9", "dns"] })),
                "dns.servers[1]",
            ),
            (with("dns", json!({ "domain": "a b" })), "dns.domain"),
            (
                with("dns", json!({ "domain": "x\nserver=1.2.3.4" })),
                "dns.domain",
            ),
            (with("autostart", json!("yes")), "autostart"),
        ] {
            let refused = VirtualNetwork::parse(&config).unwrap_err();
            assert_eq!(refused.issues[0].path, path, "{config}");
        }
        let unpinned =
            json!({ "name": "x", "subnet": "10.0.0.0/24", "dhcp": false, "pinAddresses": true });
        assert_eq!(
            VirtualNetwork::parse(&unpinned).unwrap_err().issues[0].path,
            "pinAddresses"
        );
    }
}
