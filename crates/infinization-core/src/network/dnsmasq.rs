//! dnsmasq's configuration file, in the words of dnsmasq(8).

use std::net::Ipv4Addr;

use crate::config::{Dhcp, DhcpHost, NetworkDns, NetworkMode, VirtualNetwork};

/// More leases than any host has machines for: dnsmasq keeps each in memory.
const MOST_LEASES: u32 = 65_536;

/// The file. `user` is whom dnsmasq runs as once it has its sockets.
pub fn dnsmasq_conf(network: &VirtualNetwork, user: &str) -> String {
    let mut lines = vec![
        format!(
            "# The virtual network {}. Written anew at each start.",
            network.name
        ),
        format!("interface={}", network.bridge),
        "except-interface=lo".to_owned(),
        // Follows the bridge, where bind-interfaces would need it to be there.
        "bind-dynamic".to_owned(),
        format!("user={user}"),
        "no-hosts".to_owned(),
    ];
    lines.extend(dns(network));
    if let Some(dhcp) = &network.dhcp {
        lines.extend(self::dhcp(network, dhcp));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn dns(network: &VirtualNetwork) -> Vec<String> {
    let mut lines = Vec::new();
    match &network.dns {
        Some(dns) if dns.enabled => lines.extend(answering(network, dns)),
        _ => lines.push("port=0".to_owned()),
    }
    if let Some(domain) = network.dns.as_ref().and_then(|dns| dns.domain.as_ref()) {
        lines.push(format!("domain={domain}"));
        lines.push("expand-hosts".to_owned());
        // Its names are nobody else's to answer.
        lines.push(format!("local=/{domain}/"));
    }
    lines
}

fn answering(network: &VirtualNetwork, dns: &NetworkDns) -> Vec<String> {
    // Names without a domain, and private addresses, are no business of the outside.
    let mut lines = vec!["domain-needed".to_owned(), "bogus-priv".to_owned()];
    if !dns.servers.is_empty() || network.mode == NetworkMode::Isolated {
        lines.push("no-resolv".to_owned());
    }
    lines.extend(dns.servers.iter().map(|server| format!("server={server}")));
    lines
}

fn dhcp(network: &VirtualNetwork, dhcp: &Dhcp) -> Vec<String> {
    let Dhcp {
        start,
        end,
        lease_time,
        ..
    } = dhcp;
    let mask = network.subnet.netmask();
    let pool = u32::from(*end) - u32::from(*start) + 1;
    let hosts = u32::try_from(dhcp.hosts.len()).unwrap_or(MOST_LEASES);
    let mut lines = vec![
        format!("dhcp-range={start},{end},{mask},{lease_time}"),
        format!(
            "dhcp-lease-max={}",
            pool.saturating_add(hosts).min(MOST_LEASES)
        ),
        "dhcp-authoritative".to_owned(),
        "dhcp-rapid-commit".to_owned(),
        // Whose lease it is, the hardware address alone says: a guest chooses its identifier, and could choose
        // another's.
        "dhcp-ignore-clid".to_owned(),
        // Clients that read raw options would take names for them.
        "dhcp-no-override".to_owned(),
        // A machine of this name would lead browsers through itself (CERT VU#598349).
        "dhcp-name-match=set:impostor,wpad".to_owned(),
        "dhcp-ignore-names=tag:impostor".to_owned(),
    ];
    if network.mode == NetworkMode::Isolated {
        lines.push("dhcp-option=option:router".to_owned());
    } else {
        lines.push(format!("dhcp-option=option:router,{}", network.gateway));
    }
    lines.push(servers(network));
    lines.extend(dhcp.hosts.iter().map(host));
    lines
}

/// What machines are told to ask: the gateway, else those that were named, else nobody.
fn servers(network: &VirtualNetwork) -> String {
    let servers: Vec<Ipv4Addr> = match &network.dns {
        Some(dns) if dns.enabled => vec![network.gateway],
        Some(dns) => dns.servers.clone(),
        None => Vec::new(),
    };
    let servers = servers.iter().map(|server| format!(",{server}"));
    format!(
        "dhcp-option=option:dns-server{}",
        servers.collect::<String>()
    )
}

fn host(host: &DhcpHost) -> String {
    let name = host.name.iter().map(|name| format!(",{name}"));
    format!(
        "dhcp-host={},{}{}",
        host.mac,
        host.ip,
        name.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn conf(mut config: Value) -> Vec<String> {
        config["name"] = json!("lab");
        config["subnet"] = json!("10.20.0.0/24");
        let network = VirtualNetwork::parse(&config).unwrap().config;
        let conf = dnsmasq_conf(&network, "dnsmasq");
        assert!(conf.ends_with('\n'));
        conf.lines().map(str::to_owned).collect()
    }

    fn has(conf: &[String], line: &str) -> bool {
        conf.iter().any(|it| it == line)
    }

    #[test]
    fn only_the_bridge_is_served() {
        let conf = conf(json!({ "bridge": "br-lab" }));
        for line in [
            "interface=br-lab",
            "except-interface=lo",
            "bind-dynamic",
            "user=dnsmasq",
            "no-hosts",
        ] {
            assert!(has(&conf, line), "{line}");
        }
        assert!(has(
            &conf,
            "dhcp-range=10.20.0.2,10.20.0.254,255.255.255.0,3600"
        ));
        assert!(has(&conf, "dhcp-ignore-clid"));
        assert!(has(&conf, "dhcp-option=option:router,10.20.0.1"));
        assert!(has(&conf, "dhcp-option=option:dns-server,10.20.0.1"));
        assert!(!has(&conf, "no-resolv") && !has(&conf, "port=0"));
    }

    #[test]
    fn an_isolated_network_announces_no_router_and_asks_nobody() {
        let conf = conf(json!({ "mode": "isolated" }));
        assert!(has(&conf, "dhcp-option=option:router") && has(&conf, "no-resolv"));
        assert!(!conf.iter().any(|line| line.starts_with("server=")));
    }

    #[test]
    fn names_servers_and_hosts_are_as_asked() {
        let conf = conf(json!({
            "dhcp": { "start": "10.20.0.10", "end": "10.20.0.19", "leaseTime": 120, "hosts": [
                { "mac": "52:54:00:00:00:05", "ip": "10.20.0.5", "name": "web" },
                { "mac": "52:54:00:00:00:06", "ip": "10.20.0.6" },
            ] },
            "dns": { "servers": ["9.9.9.9", "1.1.1.1"], "domain": "vms.example" },
        }));
        for line in [
            "dhcp-range=10.20.0.10,10.20.0.19,255.255.255.0,120",
            "dhcp-lease-max=12",
            "dhcp-host=52:54:00:00:00:05,10.20.0.5,web",
            "dhcp-host=52:54:00:00:00:06,10.20.0.6",
            "no-resolv",
            "server=9.9.9.9",
            "server=1.1.1.1",
            "domain=vms.example",
            "local=/vms.example/",
        ] {
            assert!(has(&conf, line), "{line}: {conf:?}");
        }
    }

    #[test]
    fn what_is_off_is_off() {
        let no_dns = conf(json!({ "dns": false }));
        assert!(has(&no_dns, "port=0") && has(&no_dns, "dhcp-option=option:dns-server"));
        let theirs = conf(json!({ "dns": { "enabled": false, "servers": ["9.9.9.9"] } }));
        assert!(has(&theirs, "port=0") && has(&theirs, "dhcp-option=option:dns-server,9.9.9.9"));
        let no_dhcp = conf(json!({ "dhcp": false }));
        assert!(
            !no_dhcp.iter().any(|line| line.starts_with("dhcp-")),
            "{no_dhcp:?}"
        );
    }
}
