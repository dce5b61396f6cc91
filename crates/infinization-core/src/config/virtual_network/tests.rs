use serde_json::json;

use super::*;

fn read(value: &Value) -> VirtualNetwork {
    VirtualNetwork::parse(value).unwrap().config
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
    let bare = read(&json!({ "name": "x", "subnet": "192.0.2.0/29", "dhcp": false, "dns": false }));
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

#[test]
fn changes_are_a_merge_patch_and_checked_as_a_whole() {
    let lab = read(&json!({
        "name": "lab", "subnet": "10.20.0.0/24", "bridge": "br-lab",
        "dhcp": { "start": "10.20.0.10", "end": "10.20.0.99" },
        "dns": { "servers": ["9.9.9.9"], "domain": "vms.example" },
    }));
    let changed = |changes: Value| lab.changed(&changes);
    assert_eq!(changed(json!({})).unwrap(), lab);
    let same = serde_json::to_value(&lab).unwrap();
    assert_eq!(changed(same).unwrap(), lab);

    let hosts = json!([{ "mac": "52:54:00:00:00:05", "ip": "10.20.0.5" }]);
    let more = json!({ "dhcp": { "hosts": hosts, "end": null }, "dns": { "domain": null }, "mode": "isolated" });
    let more = changed(more).unwrap();
    let dhcp = more.dhcp.clone().unwrap();
    assert_eq!((dhcp.start.octets()[3], dhcp.end.octets()[3]), (10, 254));
    assert_eq!((dhcp.hosts.len(), more.mode), (1, NetworkMode::Isolated));
    let dns = more.dns.clone().unwrap();
    assert_eq!((dns.domain, dns.servers.len()), (None, 1));

    let off = changed(json!({ "dhcp": false, "dns": false })).unwrap();
    assert_eq!((&off.dhcp, &off.dns), (&None, &None));
    let on = off.changed(&json!({ "dhcp": {}, "dns": { "enabled": false } }));
    let on = on.unwrap();
    assert_eq!(on.dhcp.unwrap().start.octets()[3], 2);
    assert!(!on.dns.unwrap().enabled);

    let moved = json!({ "subnet": "10.30.0.0/24", "gateway": null, "dhcp": { "start": null, "end": null } });
    assert_eq!(changed(moved).unwrap().gateway.octets(), [10, 30, 0, 1]);
    for (changes, path) in [
        (json!({ "name": "other" }), "name"),
        (json!({ "name": null }), "name"),
        (json!({ "bridge": "br-other" }), "bridge"),
        (json!({ "bridge": null }), "bridge"),
        (json!({ "subnet": "10.30.0.0/24" }), "gateway"),
        (json!({ "dhcp": { "leaseTime": 1 } }), "dhcp.leaseTime"),
        (json!({ "dhcp": { "range": 1 } }), "dhcp.range"),
        (json!({ "modus": "nat" }), "modus"),
        (
            json!({ "dhcp": false, "pinAddresses": true }),
            "pinAddresses",
        ),
        (json!([]), "config"),
    ] {
        let refused = changed(changes.clone()).unwrap_err();
        assert_eq!(refused.issues[0].path, path, "{changes}");
    }
}
