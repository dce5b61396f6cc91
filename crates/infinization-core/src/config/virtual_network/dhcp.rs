//! Reading which addresses machines are given.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::Ipv4Addr;

use serde_json::Value;

use super::addresses::{address, after, host_of};
use super::names::label;
use super::source::{Part, Source};
use super::{Dhcp, DhcpHost};
use crate::config::fields::{Fields, elements, integer_in, string};
use crate::types::{InvalidValue, Ipv4Subnet, MacAddr};

const LEASE_TIME: u32 = 3600;
/// dnsmasq rounds shorter ones up to two minutes.
const LEASE_TIMES: std::ops::RangeInclusive<i64> = 120..=31_536_000;

impl Source<'_> {
    /// None if it was refused, or the subnet was.
    pub(super) fn dhcp(&self, place: Option<(Ipv4Subnet, Ipv4Addr)>) -> Option<Part<Dhcp>> {
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
}

fn parsed_by<T>(
    parse: impl Fn(&str) -> Result<T, InvalidValue>,
) -> impl Fn(&Value) -> Result<T, InvalidValue> {
    move |value| parse(string(value)?)
}
