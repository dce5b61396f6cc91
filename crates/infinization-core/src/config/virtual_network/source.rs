//! Reading `VirtualNetworkConfig`: every field is checked, and what is left open is chosen.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::addresses::{address, after, host_of, subnet};
use super::names::bridge_of;
use super::{NetworkDns, NetworkMode, NetworkName, VirtualNetwork};
use crate::config::fields::{Fields, Report, elements, parsed};
use crate::types::{InvalidValue, Ipv4Subnet, LinkName};

/// An object of options that may be switched off.
pub(super) enum Part<T> {
    On(T),
    Off,
}

impl<T> Part<T> {
    pub(super) fn on(self) -> Option<T> {
        match self {
            Self::On(part) => Some(part),
            Self::Off => None,
        }
    }
}

pub(super) struct Source<'a> {
    pub(super) fields: Fields<'a>,
    pub(super) report: &'a Report,
}

impl Source<'_> {
    pub(super) fn read(&self) -> Option<VirtualNetwork> {
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

    /// The object under `key`: an empty one if it is absent; none if it was refused.
    pub(super) fn part(&self, key: &'static str) -> Option<Part<Fields<'_>>> {
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
