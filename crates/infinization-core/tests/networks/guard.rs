//! The guard table names the bridges that are ours, and those alone.

use super::*;

/// The rules that name this bridge.
fn guarded(bridge: &str) -> Vec<String> {
    let rules = ruleset();
    let of_it = rules.lines().filter(|line| line.contains(bridge));
    of_it.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_link_that_took_the_bridge_s_name_is_never_guarded_nor_masqueraded() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        for (name, subnet) in [("lab", "10.20.0.0/24"), ("other", "10.30.0.0/24")] {
            let bridge = format!("br-{name}");
            let config = json!({ "name": name, "subnet": subnet, "bridge": bridge, "mode": "nat" });
            manager.create_network(config).await.unwrap();
        }
        manager.stop_network("lab").await.unwrap();
        // A department's bridge of this name, which goes out, too.
        run("ip link add br-lab type bridge");
        run(
            "nft add rule ip infinibay_nat postrouting ip saddr 10.99.0.0/24 oifname != br-lab masquerade comment dept-br-lab",
        );
        let theirs = guarded("br-lab");
        assert_eq!(theirs.len(), 1, "{theirs:?}");
        let refused = manager.start_network("lab").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::BridgeAlreadyExists);
        // Whatever else has the guard loaded anew.
        manager.stop_network("other").await.unwrap();
        manager.start_network("other").await.unwrap();
        run("nft add table inet foreign");
        run("nft delete table inet foreign");
        assert_eq!(guarded("br-lab"), theirs);
        manager.stop_network("lab").await.unwrap();
        assert_eq!(guarded("br-lab"), theirs);
        manager.shutdown().await.unwrap();

        let next = lab.0.manager().await;
        assert_eq!(next.network("lab").unwrap()["state"], "failed");
        assert_eq!(next.network("other").unwrap()["state"], "active");
        assert_eq!(guarded("br-lab"), theirs, "nor by the next process");

        // One that runs is replaced: nothing of it stays for the other.
        run("ip link del br-other");
        run("ip link add br-other type bridge");
        let refused = next.start_network("other").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::BridgeAlreadyExists);
        assert_eq!(guarded("br-other"), Vec::<String>::new());
        assert_eq!(dnsmasqs(lab.0.path()), Vec::<i32>::new());
        for name in ["lab", "other"] {
            next.remove_network(name).await.unwrap();
        }
        assert_eq!(guarded("br-lab"), theirs);
        assert_eq!(lab.0.links().await, ["br-lab", "br-other"]);
        run("nft flush chain ip infinibay_nat postrouting");
        for bridge in ["br-lab", "br-other"] {
            run(&format!("ip link del {bridge}"));
        }
        lab.is_clean().await;
        next.shutdown().await.unwrap();
    });
}

#[test]
fn networks_that_come_and_go_at_once_are_each_guarded() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        for (name, subnet) in [("one", "10.31.0.0/24"), ("two", "10.32.0.0/24")] {
            let config = json!({
                "name": name, "subnet": subnet, "bridge": format!("br-{name}"),
                "mode": "isolated", "dhcp": false, "dns": false,
            });
            manager.create_network(config).await.unwrap();
        }
        for _ in 0..5 {
            let (one, two) = tokio::join!(manager.stop_network("one"), manager.stop_network("two"));
            one.and(two).unwrap();
            assert!(!ruleset().contains("br-one") && !ruleset().contains("br-two"));
            let (one, two) =
                tokio::join!(manager.start_network("one"), manager.start_network("two"));
            one.and(two).unwrap();
            assert!(ruleset().contains("br-one") && ruleset().contains("br-two"));
        }
        for name in ["one", "two"] {
            manager.remove_network(name).await.unwrap();
        }
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}
