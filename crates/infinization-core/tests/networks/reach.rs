//! Who reaches whom: the machines of a network, the host, the world outside, another network.

use super::*;

#[test]
fn a_nat_network_gives_addresses_names_and_a_way_out_and_lets_nobody_in() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let outside = outside();
        let made = manager.create_network(json!({
            "name": "lab", "subnet": "10.20.0.0/24", "bridge": "br-lab",
            "dhcp": { "start": "10.20.0.100", "end": "10.20.0.110", "hosts": [
                { "mac": "52:54:00:20:00:02", "ip": "10.20.0.5", "name": "web" },
            ] },
            "dns": { "servers": [], "domain": "vms.example" },
        }));
        let made = made.await.unwrap();
        assert_eq!(
            (&made["state"], &made["gateway"]),
            (&json!("active"), &json!("10.20.0.1"))
        );
        assert_eq!(manager.list_networks().unwrap(), json!([made]));

        let any = Guest::plug("br-lab", "eth-any", "52:54:00:20:00:01", &[]);
        let given = lease(&any, lab.0.path()).unwrap();
        is_of_the_range(&given);
        let web = Guest::plug("br-lab", "eth-web", "52:54:00:20:00:02", &[]);
        assert_eq!(lease(&web, lab.0.path()).unwrap()["ip"], "10.20.0.5");
        let leases = manager.network_leases("lab").await.unwrap();
        let addresses: Vec<_> = leases
            .as_array()
            .unwrap()
            .iter()
            .map(|it| &it["ip"])
            .collect();
        assert_eq!(addresses, ["10.20.0.5", &given["ip"]]);
        assert_eq!(leases[0]["hostname"], "web");
        assert!(any.succeeds("busybox nslookup web.vms.example 10.20.0.1"));

        assert!(
            any.reaches(OUTSIDE, 8000),
            "it goes out under the host's address"
        );
        any.serves_tcp(9000);
        outside.sh("ip route add 10.20.0.0/24 via 198.51.100.1");
        assert!(
            outside.is_blocked_from(&given["ip"], 9000),
            "nobody comes in"
        );
        assert!(web.reaches(&given["ip"], 9000), "but from the network");

        is_put_back_whole(&manager).await;

        let busy = manager.remove_network("lab").await.unwrap_err();
        assert_eq!(busy.code(), ErrorCode::NetworkInUse);
        assert_eq!(busy.context()["ports"], json!(["eth-any", "eth-web"]));
        for port in ["eth-any", "eth-web", "uplink0"] {
            run(&format!("ip link del {port}"));
        }
        manager.remove_network("lab").await.unwrap();
        manager.remove_network("lab").await.unwrap();
        assert_eq!(
            manager.network("lab").unwrap_err().code(),
            ErrorCode::NetworkNotFound
        );
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn an_isolated_network_reaches_itself_and_nobody_else() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let outside = outside();
        run("sysctl -qw net.ipv4.ip_forward=1");
        outside.sh("ip route add 10.21.0.0/24 via 198.51.100.1");
        let network = |name: &str, subnet: &str, mode: &str| json!({ "name": name, "subnet": subnet, "mode": mode, "bridge": format!("br-{name}") });
        manager
            .create_network(network("quiet", "10.21.0.0/24", "isolated"))
            .await
            .unwrap();
        manager
            .create_network(network("open", "10.22.0.0/24", "routed"))
            .await
            .unwrap();
        let guest = Guest::plug("br-quiet", "eth-a", "52:54:00:21:00:01", &[]);
        let given = lease(&guest, lab.0.path()).unwrap();
        assert_eq!(given.get("router"), None, "{given:?}");
        // One that finds the way by itself.
        guest.sh("ip route add default via 10.21.0.1");
        assert!(guest.is_blocked_from(OUTSIDE, 8000));
        guest.serves_tcp(9000);
        assert!(outside.is_blocked_from(&given["ip"], 9000));
        let open = Guest::plug("br-open", "eth-b", "52:54:00:22:00:01", &[]);
        let routed = lease(&open, lab.0.path()).unwrap();
        open.serves_tcp(9000);
        assert!(
            guest.is_blocked_from(&routed["ip"], 9000),
            "nor another network"
        );
        outside.sh("ip route add 10.22.0.0/24 via 198.51.100.1");
        assert!(
            outside.reaches(&routed["ip"], 9000),
            "a routed one is reached by who knows the way"
        );
        assert!(open.reaches(OUTSIDE, 8000));
        for port in ["eth-a", "eth-b", "uplink0"] {
            run(&format!("ip link del {port}"));
        }
        for name in ["quiet", "open"] {
            manager.remove_network(name).await.unwrap();
        }
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

/// What a client is told that nobody has reserved an address for.
fn is_of_the_range(given: &Given) {
    let last: u8 = given["ip"]
        .strip_prefix("10.20.0.")
        .unwrap()
        .parse()
        .unwrap();
    assert!((100..=110).contains(&last), "{given:?}");
    for (key, value) in [
        ("subnet", "255.255.255.0"),
        ("router", "10.20.0.1"),
        ("dns", "10.20.0.1"),
        ("domain", "vms.example"),
        ("lease", "3600"),
    ] {
        assert_eq!(given.get(key).map(String::as_str), Some(value), "{given:?}");
    }
}

/// Somebody takes all of nftables away.
async fn is_put_back_whole(manager: &Manager) {
    let before = sorted_ruleset();
    let mut events = manager.subscribe();
    run("nft flush ruleset");
    let told = next_event(&mut events, "firewall-repaired").await;
    assert!(
        told.data["missing"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    );
    eventually("everything is put back", async || {
        sorted_ruleset() == before
    })
    .await;
}
