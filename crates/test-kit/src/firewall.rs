//! What the firewall tests share: a VM without rules, rules in few words, and what nft lists.

use std::net::IpAddr;
use std::process::Command;

use infinization_core::firewall::{
    Capabilities, Compiled, Conntrack, HostService, Network, VmFirewall, compile,
};
use infinization_core::types::{FirewallDefaultAction, FirewallRuleInput, VmId, VmNames};

/// A VM that nothing is allowed but the infrastructure, filtered without connection state.
pub fn vm(id: &str) -> VmFirewall {
    let vm_id = VmId::parse(id).unwrap();
    let names = VmNames::of(&vm_id);
    VmFirewall {
        vm_id,
        tap: names.tap,
        mac: names.mac,
        known_addresses: Vec::new(),
        bridge_addresses: Vec::new(),
        host_services: HostService::DEFAULT.to_vec(),
        department_rules: Vec::new(),
        vm_rules: Vec::new(),
        default_action: FirewallDefaultAction::Drop,
        conntrack: Conntrack::Stateless,
        reject: false,
    }
}

pub fn compiled(vm: &VmFirewall) -> Compiled {
    compile(vm).unwrap()
}

/// The strongest filtering these capabilities allow.
pub fn strongest(capabilities: Capabilities, vm: VmFirewall) -> VmFirewall {
    VmFirewall {
        conntrack: if capabilities.conntrack {
            Conntrack::Stateful
        } else {
            Conntrack::Stateless
        },
        reject: capabilities.reject,
        ..vm
    }
}

/// `rule("ACCEPT IN tcp 22 from 10.0.0.5")`; the port and the sender are optional.
pub fn rule(words: &str) -> FirewallRuleInput {
    let mut parts = words.split(' ');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let (action, direction, protocol, port) = (next(), next(), next(), next());
    let (_from, source) = (next(), next());
    FirewallRuleInput {
        id: words.into(),
        name: words.into(),
        action,
        direction,
        protocol: Some(protocol),
        dst_port_start: port.parse().ok(),
        src_ip_addr: (!source.is_empty()).then_some(source),
        priority: 500.0,
        ..FirewallRuleInput::default()
    }
}

pub fn rules(words: &[&str]) -> Vec<FirewallRuleInput> {
    words.iter().map(|words| rule(words)).collect()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `network("10.0.0.1/24")`: an address and the network it is in.
pub fn network(text: &str) -> Network {
    let (address, prefix) = text.split_once('/').unwrap();
    Network {
        address: address.parse().unwrap(),
        prefix: prefix.parse().unwrap(),
    }
}

/// Runs a set-up command, which must succeed, and gives its output.
pub fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    let output = command.args(words).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// One chain as nft lists it.
pub fn chain(name: &str) -> String {
    run(&format!("nft list chain bridge infinization {name}"))
}

/// All of nftables as nft lists it.
pub fn ruleset() -> String {
    run("nft list ruleset")
}
