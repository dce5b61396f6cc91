//! What is asked of a network: refused without a trace, done under its machines, or undone.

use infinization_core::host::link::{LinkEvent, LinkWatch, Links};
use infinization_core::types::LinkName;

use super::*;

async fn refused(manager: &Manager, config: Value) -> infinization_core::Failure {
    manager.create_network(config).await.unwrap_err()
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let lab_net = json!({ "name": "lab", "subnet": "10.20.0.0/24", "bridge": "br-lab" });
        let with = |key: &str, value: &str| {
            let mut config =
                json!({ "name": "other", "subnet": "10.30.0.0/24", "bridge": "br-other" });
            config[key] = json!(value);
            config
        };
        // Somebody takes the port dnsmasq needs, on every address.
        let taken = std::net::UdpSocket::bind("0.0.0.0:67").unwrap();
        let error = refused(&manager, with("mode", "nat")).await;
        assert_eq!(error.code(), ErrorCode::DhcpStartFailed, "{error}");
        let stderr = error.context()["stderr"].as_str();
        assert!(
            stderr.is_some_and(|said| said.contains("in use")),
            "{stderr:?}"
        );
        drop(taken);
        lab.is_clean().await;

        manager.create_network(lab_net.clone()).await.unwrap();
        let before = ruleset();
        for (config, code) in [
            (lab_net, ErrorCode::NetworkAlreadyExists),
            (with("subnet", "10.20.0.128/25"), ErrorCode::SubnetOverlaps),
            (with("subnet", "10.0.0.0/8"), ErrorCode::SubnetOverlaps),
            // The host's own bridge is 10.177.200.1/16.
            (with("subnet", "10.177.4.0/24"), ErrorCode::SubnetOverlaps),
            (with("bridge", "br-lab"), ErrorCode::BridgeAlreadyExists),
            (with("bridge", "testbr0"), ErrorCode::BridgeAlreadyExists),
            (with("bridge", "lo"), ErrorCode::BridgeAlreadyExists),
            (with("mode", "open"), ErrorCode::InvalidConfig),
            (with("name", "../x"), ErrorCode::InvalidConfig),
        ] {
            let error = refused(&manager, config.clone()).await;
            assert_eq!(error.code(), code, "{config}: {error}");
        }
        assert_eq!(ruleset(), before);
        assert_eq!(fs::read_dir(lab.dir()).unwrap().count(), 1);
        assert_eq!(lab.0.links().await, ["br-lab"]);

        // The bridge is replaced by somebody else's: neither used nor removed.
        manager.stop_network("lab").await.unwrap();
        run("ip link add br-lab type bridge");
        let error = manager.start_network("lab").await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::BridgeAlreadyExists);
        assert_eq!(manager.network("lab").unwrap()["state"], "failed");
        manager.remove_network("lab").await.unwrap();
        assert_eq!(lab.0.links().await, ["br-lab"]);
        run("ip link del br-lab");
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

/// Puts a port on the bridge as soon as there is one, as machines' TAPs do.
async fn joins_as_soon_as_it_is_there(mut watch: LinkWatch, links: Links) {
    let [bridge, port] = ["br-lab", "eth-any"].map(|name| LinkName::parse(name).unwrap());
    loop {
        if let LinkEvent::Changed(link) = watch.next().await.unwrap()
            && link.name == bridge.as_str()
        {
            return links.set_master(&port, &bridge).await.unwrap();
        }
    }
}

#[test]
fn a_network_that_machines_have_joined_is_looked_after_though_its_start_has_failed() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let config = json!({ "name": "lab", "subnet": "10.20.0.0/24", "bridge": "br-lab" });
        manager.create_network(config).await.unwrap();
        let any = Guest::plug("br-lab", "eth-any", "52:54:00:20:00:01", &[]);
        run("ip link set eth-any nomaster");
        manager.stop_network("lab").await.unwrap();

        let taken = std::net::UdpSocket::bind("0.0.0.0:67").unwrap();
        let links = lab.0.links.clone();
        let watch = links.watch().unwrap();
        let joined = tokio::spawn(joins_as_soon_as_it_is_there(watch, links));
        let error = manager.start_network("lab").await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::DhcpStartFailed, "{error}");
        joined.await.unwrap();
        assert_eq!(manager.network("lab").unwrap()["state"], "failed");
        assert!(ruleset().contains("masquerade") && ruleset().contains("infinization_net_"));
        drop(taken);
        eventually("it is served", async || {
            manager.network("lab").unwrap()["state"] == "active"
        })
        .await;
        assert!(lease(&any, lab.0.path()).is_some());
        run("ip link del eth-any");
        manager.remove_network("lab").await.unwrap();
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn a_network_that_machines_have_joined_is_made_whole_whatever_its_making_failed_at() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        run("ip link add anybr0 type bridge");
        let any = Guest::plug("anybr0", "eth-any", "52:54:00:20:00:01", &[]);
        // A chain of its name that is no base chain is in the way of masquerading, which comes before dnsmasq.
        run("nft add table ip infinibay_nat");
        run("nft add chain ip infinibay_nat postrouting");
        let links = lab.0.links.clone();
        let watch = links.watch().unwrap();
        let joined = tokio::spawn(joins_as_soon_as_it_is_there(watch, links));
        let config = json!({ "name": "lab", "subnet": "10.20.0.0/24", "bridge": "br-lab" });
        let error = refused(&manager, config).await;
        assert_eq!(error.code(), ErrorCode::NftCommandFailed, "{error}");
        let stays = "the network lab stays: eth-any on br-lab";
        assert!(error.to_string().contains(stays), "{error}");
        joined.await.unwrap();
        assert_eq!(manager.network("lab").unwrap()["state"], "failed");
        run("nft delete chain ip infinibay_nat postrouting");
        eventually("it is whole", async || {
            manager.network("lab").unwrap()["state"] == "active"
        })
        .await;
        assert!(ruleset().contains("masquerade") && ruleset().contains("infinization_net_"));
        assert!(lease(&any, lab.0.path()).is_some());
        run("ip link del eth-any");
        run("ip link del anybr0");
        manager.remove_network("lab").await.unwrap();
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn leases_that_cannot_be_watched_are_told() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let config = json!({ "name": "lab", "subnet": "10.20.0.0/24", "bridge": "br-lab", "pinAddresses": true });
        manager.create_network(config).await.unwrap();
        let mut events = manager.subscribe();
        let (dir, away) = (lab.dir().join("lab"), lab.0.path().join("away"));
        fs::rename(&dir, &away).unwrap();
        let _whatever_else_fails = manager.start_network("lab").await;
        let told = next_event(&mut events, "error").await;
        let message = told.data["message"].as_str().unwrap();
        assert!(message.contains("network lab are not watched"), "{message}");
        fs::rename(&away, &dir).unwrap();
        eventually("it is served", async || {
            manager.network("lab").unwrap()["state"] == "active"
        })
        .await;
        manager.remove_network("lab").await.unwrap();
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn a_network_is_changed_under_its_machines_and_loses_no_lease() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let outside = outside();
        let made = manager.create_network(json!({
            "name": "lab", "subnet": "10.20.0.0/24", "bridge": "br-lab", "mode": "nat",
            "dhcp": { "start": "10.20.0.100", "end": "10.20.0.110" },
        }));
        let made = made.await.unwrap();
        let any = Guest::plug("br-lab", "eth-any", "52:54:00:20:00:01", &[]);
        let first = lease(&any, lab.0.path()).unwrap();
        assert!(any.reaches(OUTSIDE, 8000));
        let mut events = manager.subscribe();

        leaves_dnsmasq_alone(&manager, &made).await;
        let hosts = json!([{ "mac": "52:54:00:20:00:02", "ip": "10.20.0.5", "name": "web" }]);
        let changes = json!({
            "dhcp": { "start": "10.20.0.50", "leaseTime": 600, "hosts": hosts },
            "dns": { "domain": "vms.example" }, "pinAddresses": true,
        });
        let changed = manager.update_network("lab", changes).await.unwrap();
        assert_eq!(
            changed["dhcp"]["end"], "10.20.0.110",
            "what is not named stays"
        );
        assert_eq!(
            (&changed["state"], &changed["restarts"]),
            (&json!("active"), &json!(0))
        );
        assert_ne!(changed["pid"], made["pid"]);
        assert_eq!(dnsmasqs(lab.0.path()).len(), 1);
        let leases = manager.network_leases("lab").await.unwrap();
        assert_eq!(leases[0]["ip"], first["ip"], "the lease is kept");
        assert_eq!(lease(&any, lab.0.path()).unwrap()["ip"], first["ip"]);
        let web = Guest::plug("br-lab", "eth-web", "52:54:00:20:00:02", &[]);
        is_served_as_changed(&lease(&web, lab.0.path()).unwrap());
        changes_the_reach_of(&any, &manager).await;

        // Who looks after dnsmasq now looks after the one that runs now.
        let now = manager.network("lab").unwrap();
        kill(pid_of(&now));
        let told = next_event(&mut events, "network-failed").await;
        assert_eq!(told.data["network"], "lab");
        let back = next_event(&mut events, "network-restarted").await;
        assert_eq!(
            back.data["restarts"], 1,
            "and no change was taken for an end"
        );

        let refused = manager
            .update_network("lab", json!({ "gateway": "10.20.0.2" }))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), ErrorCode::NetworkInUse);
        assert_eq!(refused.context()["ports"], json!(["eth-any", "eth-web"]));
        // The next process finds it as it was changed.
        manager.shutdown().await.unwrap();
        let next = lab.0.manager().await;
        let found = next.network("lab").unwrap();
        assert_eq!(
            (&found["dhcp"], &found["pid"]),
            (&changed["dhcp"], &back.data["pid"])
        );

        for port in ["eth-any", "eth-web"] {
            run(&format!("ip link del {port}"));
        }
        moves_when_nobody_is_on_it(&lab, &next).await;
        run("ip link del uplink0");
        drop(outside);
        next.remove_network("lab").await.unwrap();
        lab.is_clean().await;
        next.shutdown().await.unwrap();
    });
}

/// To another subnet.
async fn moves_when_nobody_is_on_it(lab: &Lab, manager: &Manager) {
    let elsewhere = json!({
        "subnet": "10.40.0.0/24", "gateway": null, "dhcp": { "start": null, "end": null, "hosts": null },
    });
    let moved = manager.update_network("lab", elsewhere).await.unwrap();
    assert_eq!(
        (&moved["gateway"], &moved["state"]),
        (&json!("10.40.0.1"), &json!("active"))
    );
    assert_eq!(manager.network_leases("lab").await.unwrap(), json!([]));
    let any = Guest::plug("br-lab", "eth-any", "52:54:00:20:00:01", &[]);
    assert!(lease(&any, lab.0.path()).unwrap()["ip"].starts_with("10.40.0."));
    assert!(any.reaches(OUTSIDE, 8000));
    run("ip link del eth-any");
}

#[test]
fn a_change_that_fails_leaves_the_network_as_it_was() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let config = |name: &str, subnet: &str| json!({ "name": name, "subnet": subnet, "bridge": format!("br-{name}"), "dns": false });
        manager
            .create_network(config("other", "10.30.0.0/24"))
            .await
            .unwrap();
        let made = manager
            .create_network(config("lab", "10.20.0.0/24"))
            .await
            .unwrap();
        let record = lab.dir().join("lab/network.json");
        let (before, rules) = (fs::read(&record).unwrap(), sorted_ruleset());
        let any = Guest::plug("br-lab", "eth-any", "52:54:00:20:00:01", &[]);
        let first = lease(&any, lab.0.path()).unwrap();
        run("ip link del eth-any");

        fails_where_the_port_is_taken(&manager).await;
        refuses_what_cannot_be(&manager).await;

        let mut now = manager.network("lab").unwrap();
        now["pid"] = made["pid"].clone();
        assert_eq!(now, made);
        assert_eq!(fs::read(&record).unwrap(), before);
        assert_eq!(sorted_ruleset(), rules);
        let any = Guest::plug("br-lab", "eth-any", "52:54:00:20:00:01", &[]);
        assert_eq!(lease(&any, lab.0.path()).unwrap()["ip"], first["ip"]);
        run("ip link del eth-any");

        is_changed_for_its_next_start(&manager).await;
        for name in ["lab", "other"] {
            manager.remove_network(name).await.unwrap();
        }
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

/// Somebody has the port that the new dnsmasq would need.
async fn fails_where_the_port_is_taken(manager: &Manager) {
    let taken = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
    for changes in [
        json!({ "mode": "isolated", "dns": {} }),
        json!({ "subnet": "10.40.0.0/24", "gateway": null, "dhcp": { "start": null, "end": null }, "dns": {} }),
    ] {
        let failed = manager
            .update_network("lab", changes.clone())
            .await
            .unwrap_err();
        assert_eq!(
            failed.code(),
            ErrorCode::DhcpStartFailed,
            "{changes}: {failed}"
        );
    }
    drop(taken);
}

async fn refuses_what_cannot_be(manager: &Manager) {
    let moved = |subnet: &str| json!({ "subnet": subnet, "gateway": null, "dhcp": { "start": null, "end": null } });
    for (changes, code) in [
        (moved("10.30.0.0/25"), ErrorCode::SubnetOverlaps),
        (moved("10.177.4.0/24"), ErrorCode::SubnetOverlaps),
        (
            json!({ "subnet": "10.40.0.0/24" }),
            ErrorCode::InvalidConfig,
        ),
        (json!({ "bridge": "br-x" }), ErrorCode::InvalidConfig),
        (
            json!({ "dhcp": { "leaseTime": 5 } }),
            ErrorCode::InvalidConfig,
        ),
    ] {
        let refused = manager
            .update_network("lab", changes.clone())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), code, "{changes}: {refused}");
    }
    let missing = manager.update_network("none", json!({})).await.unwrap_err();
    assert_eq!(missing.code(), ErrorCode::NetworkNotFound);
}

/// One that is not up; and a wider subnet may have its own old addresses.
async fn is_changed_for_its_next_start(manager: &Manager) {
    manager
        .update_network("lab", json!({ "subnet": "10.20.0.0/23" }))
        .await
        .unwrap();
    manager.stop_network("lab").await.unwrap();
    let off = manager
        .update_network("lab", json!({ "mode": "isolated" }))
        .await
        .unwrap();
    assert_eq!(
        (&off["state"], &off["mode"]),
        (&json!("inactive"), &json!("isolated"))
    );
    assert_eq!(
        manager.start_network("lab").await.unwrap()["state"],
        "active"
    );
}

/// A change that dnsmasq need not be told of.
async fn leaves_dnsmasq_alone(manager: &Manager, made: &Value) {
    let same = manager
        .update_network("lab", json!({ "autostart": false }))
        .await
        .unwrap();
    assert_eq!(
        (&same["pid"], &same["autostart"]),
        (&made["pid"], &json!(false))
    );
}

/// Under a machine that is on it.
async fn changes_the_reach_of(any: &Guest, manager: &Manager) {
    manager
        .update_network("lab", json!({ "mode": "isolated" }))
        .await
        .unwrap();
    assert!(any.is_blocked_from(OUTSIDE, 8000));
    assert!(!ruleset().contains("masquerade"));
    manager
        .update_network("lab", json!({ "mode": "nat" }))
        .await
        .unwrap();
    assert!(any.reaches(OUTSIDE, 8000));
}

fn is_served_as_changed(given: &Given) {
    assert_eq!(
        (&given["ip"], &given["lease"], &given["domain"]),
        (
            &"10.20.0.5".to_owned(),
            &"600".to_owned(),
            &"vms.example".to_owned()
        )
    );
}
