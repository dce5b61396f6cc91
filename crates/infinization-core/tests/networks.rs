//! Virtual networks with a real dnsmasq and real clients, in private network namespaces.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

#[path = "kit/firewall.rs"]
mod firewall;
#[path = "kit/guests.rs"]
mod guests;
mod kit;
mod process_kit;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use infinization_core::error::ErrorCode;
use infinization_core::manager::Manager;
use serde_json::{Value, json};

use firewall::{ruleset, run};
use guests::Guest;
use kit::in_private_network;
use kit::machine::{Host, PATIENCE, delete, forced, never, next_event};
use kit::switch::{Mode, Switch};
use process_kit::{Toolbox, mount_at, unmount};

/// What a client was given.
type Given = BTreeMap<String, String>;

/// Asks for an address on the guest's `eth0` as a machine would, and configures it. None if nobody answers.
fn lease(guest: &Guest, scratch: &Path) -> Option<Given> {
    let script = scratch.join("udhcpc.sh");
    fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] && env\nexit 0\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    guest.sh("ip link set lo up");
    guest.sh("ip link set eth0 up");
    let script = script.display().to_string();
    let output = guest.within(move || {
        let options = [
            "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "12", "-T", "1", "-s", &script,
        ];
        Command::new("busybox").args(options).output().unwrap()
    });
    fs::remove_file(scratch.join("udhcpc.sh")).unwrap();
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.lines().filter_map(|line| line.split_once('='));
    let given: Given = words
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    guest.sh("ip addr flush dev eth0");
    guest.sh(&format!(
        "ip addr add {}/{} dev eth0",
        given["ip"], given["mask"]
    ));
    if let Some(router) = given.get("router") {
        guest.sh(&format!("ip route replace default via {router}"));
    }
    Some(given)
}

/// The world outside, which knows no way back into a network.
fn outside() -> Guest {
    let outside = Guest::apart("uplink0", "52:54:00:ff:ff:01");
    run("ip addr add 198.51.100.1/24 dev uplink0");
    outside.configure(&["198.51.100.2/24"]);
    outside.serves_tcp(8000);
    outside
}

const OUTSIDE: &str = "198.51.100.2";

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn dnsmasqs(directory: &Path) -> Vec<i32> {
    let needle = format!("--conf-file={}", directory.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&needle)
        })
        .collect()
}

fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
}

/// Whatever a test leaves, also one that fails.
struct Lab(Host);

impl Lab {
    async fn new() -> Self {
        Self(Host::new().await)
    }

    fn dir(&self) -> PathBuf {
        self.0.state_dir().join("networks")
    }

    async fn is_clean(&self) {
        assert_eq!(dnsmasqs(self.0.path()), Vec::<i32>::new());
        assert_eq!(self.0.links().await, Vec::<String>::new());
        let left: Vec<_> = fs::read_dir(self.dir()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let rules = ruleset();
        assert!(!rules.contains("infinization_net_"), "{rules}");
        assert!(!rules.contains("masquerade"), "{rules}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        dnsmasqs(self.0.path()).into_iter().for_each(kill);
    }
}

/// The rule of a machine that may use no address.
const UNLEASED: &str = "ip saddr != 0.0.0.0 drop";

async fn refused(manager: &Manager, config: Value) -> infinization_core::Failure {
    manager.create_network(config).await.unwrap_err()
}

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

        // A listing of others' is not its business, one of its own is put back.
        let before = ruleset();
        let mut events = manager.subscribe();
        run("nft flush ruleset");
        let told = next_event(&mut events, "firewall-repaired").await;
        assert!(
            told.data["missing"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
        );
        eventually("everything is put back", async || {
            let now = ruleset();
            let sorted = |text: &str| {
                let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
                lines.sort();
                lines
            };
            sorted(&now) == sorted(&before)
        })
        .await;

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

#[test]
fn dnsmasq_that_is_killed_comes_back_with_its_leases_and_the_end_of_our_process_is_none_of_its() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let config = json!({ "name": "lab", "subnet": "10.20.0.0/24", "bridge": "br-lab", "autostart": false });
        let made = manager.create_network(config.clone()).await.unwrap();
        let pid = i32::try_from(made["pid"].as_i64().unwrap()).unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(!status.contains("\nUid:\t0\t"), "it is not root: {status}");
        let guest = Guest::plug("br-lab", "eth-a", "52:54:00:20:00:01", &[]);
        let first = lease(&guest, lab.0.path()).unwrap();

        let mut events = manager.subscribe();
        kill(pid);
        assert_eq!(
            next_event(&mut events, "network-failed").await.data["network"],
            "lab"
        );
        let back = next_event(&mut events, "network-restarted").await;
        assert_eq!(back.data["restarts"], 1);
        let now = manager.network("lab").unwrap();
        assert_eq!(
            (&now["state"], &now["restarts"], &now["pid"]),
            (&json!("active"), &json!(1), &back.data["pid"])
        );
        assert_eq!(
            manager.network_leases("lab").await.unwrap()[0]["ip"],
            first["ip"]
        );
        assert_eq!(lease(&guest, lab.0.path()).unwrap()["ip"], first["ip"]);

        // Our process goes; the network stays, and is looked after by the next.
        manager.shutdown().await.unwrap();
        drop(manager);
        assert_eq!(
            lease(&guest, lab.0.path()).unwrap()["ip"],
            first["ip"],
            "nobody manages it"
        );
        let next = lab.0.manager().await;
        let taken = next.network("lab").unwrap();
        assert_eq!(
            (&taken["state"], &taken["pid"]),
            (&json!("active"), &now["pid"]),
            "the same dnsmasq"
        );
        let mut events = next.subscribe();
        kill(i32::try_from(taken["pid"].as_i64().unwrap()).unwrap());
        next_event(&mut events, "network-restarted").await;

        run("ip link del eth-a");
        let stopped = next.stop_network("lab").await.unwrap();
        assert_eq!(stopped["state"], "inactive");
        assert_eq!(lab.0.links().await, Vec::<String>::new());
        assert_eq!(dnsmasqs(lab.0.path()), Vec::<i32>::new());
        next.shutdown().await.unwrap();
        let third = lab.0.manager().await;
        assert_eq!(
            third.network("lab").unwrap()["state"],
            "inactive",
            "autostart is off"
        );
        assert_eq!(third.start_network("lab").await.unwrap()["state"], "active");
        assert_eq!(
            third.network_leases("lab").await.unwrap()[0]["ip"],
            first["ip"]
        );
        third.remove_network("lab").await.unwrap();
        lab.is_clean().await;
        third.shutdown().await.unwrap();
    });
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

        // What dnsmasq is not told leaves it alone.
        let same = manager
            .update_network("lab", json!({ "autostart": false }))
            .await
            .unwrap();
        assert_eq!(
            (&same["pid"], &same["autostart"]),
            (&made["pid"], &json!(false))
        );

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
        let given = lease(&web, lab.0.path()).unwrap();
        assert_eq!(
            (&given["ip"], &given["lease"], &given["domain"]),
            (
                &"10.20.0.5".to_owned(),
                &"600".to_owned(),
                &"vms.example".to_owned()
            )
        );

        // Its reach changes under the machines.
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

        // Who looks after dnsmasq now looks after the one that runs now.
        let now = manager.network("lab").unwrap();
        kill(i32::try_from(now["pid"].as_i64().unwrap()).unwrap());
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
        let (before, rules) = (fs::read(&record).unwrap(), ruleset());
        let any = Guest::plug("br-lab", "eth-any", "52:54:00:20:00:01", &[]);
        let first = lease(&any, lab.0.path()).unwrap();
        run("ip link del eth-any");

        // Somebody takes the port that the new dnsmasq would need.
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

        let mut now = manager.network("lab").unwrap();
        now["pid"] = made["pid"].clone();
        assert_eq!(now, made);
        assert_eq!(fs::read(&record).unwrap(), before);
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&ruleset()), sorted(&rules));
        let any = Guest::plug("br-lab", "eth-any", "52:54:00:20:00:01", &[]);
        assert_eq!(lease(&any, lab.0.path()).unwrap()["ip"], first["ip"]);
        run("ip link del eth-any");

        // One that is not up is changed for its next start; a wider subnet may have its own old addresses.
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
        for name in ["lab", "other"] {
            manager.remove_network(name).await.unwrap();
        }
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

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
fn shutdown_waits_for_what_is_under_way_and_refuses_what_has_not_begun() {
    const NAME: &str = "shutdown_waits_for_what_is_under_way_and_refuses_what_has_not_begun";
    let tools = || Toolbox::of(&["nft", "dnsmasq", "sh", "sleep", "ip", "qemu-img"]);
    process_kit::in_own_process_with(NAME, tools, |tools| {
        tools.wrap("dnsmasq", "sleep 2\nexec $real \"$@\"");
        in_private_network(|| async {
            let lab = Lab::new().await;
            let manager = lab.0.manager().await;
            let create = |name: &str, subnet: &str| {
                let config =
                    json!({ "name": name, "subnet": subnet, "bridge": format!("br-{name}") });
                let manager = manager.clone();
                tokio::spawn(async move { manager.create_network(config).await })
            };
            let under_way = create("lab", "10.20.0.0/24");
            eventually("it is being made", async || {
                lab.0.links().await.contains(&"br-lab".to_owned())
            })
            .await;
            let waits = create("late", "10.30.0.0/24");
            tokio::task::yield_now().await;
            manager.shutdown().await.unwrap();
            assert_eq!(dnsmasqs(lab.0.path()).len(), 1, "it was finished");
            assert_eq!(under_way.await.unwrap().unwrap()["state"], "active");
            let late = waits.await.unwrap().unwrap_err();
            assert_eq!(late.code(), ErrorCode::Closed);
            assert_eq!(lab.0.links().await, ["br-lab"]);
            let next = lab.0.manager().await;
            assert_eq!(
                next.list_networks().unwrap().as_array().map(Vec::len),
                Some(1)
            );
            next.remove_network("lab").await.unwrap();
            lab.is_clean().await;
            next.shutdown().await.unwrap();
        });
    });
}

/// A cgroup v2 tree of its own where the host's would be, for threads that see it.
struct Tree {
    root: tempfile::TempDir,
    base: PathBuf,
}

impl Tree {
    fn mount() -> Self {
        run("mount --make-rprivate /");
        let root = tempfile::tempdir().unwrap();
        mount_at(root.path(), "cgroup2", None);
        let base = root
            .path()
            .join(format!("infinization-net-{}", std::process::id()));
        fs::create_dir(&base).unwrap();
        run(&format!("mount --bind {} /sys/fs/cgroup", base.display()));
        Self { root, base }
    }

    /// As a process that was killed before it placed it would leave it.
    fn expel(&self, pid: i32) {
        fs::write(self.root.path().join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn scopes(&self) -> Vec<String> {
        let slice = fs::read_dir(self.base.join("infinization.slice")).unwrap();
        let names = slice
            .flatten()
            .map(|entry| entry.file_name().into_string().unwrap());
        let mut scopes: Vec<_> = names.filter(|name| name.contains(".scope")).collect();
        scopes.sort();
        scopes
    }

    fn unmount(self) {
        run("umount /sys/fs/cgroup");
        fs::remove_dir(self.base.join("infinization.slice")).unwrap();
        fs::remove_dir(&self.base).unwrap();
        unmount(self.root.path());
    }
}

fn scope_of(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let v2 = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap();
    v2.rsplit('/').next().unwrap().to_owned()
}

#[test]
fn dnsmasq_is_in_a_scope_that_is_no_other_network_s_also_after_it_was_found_again() {
    in_private_network(|| async {
        let tree = Tree::mount();
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let lab_net = |subnet: &str, bridge: &str| json!({ "name": "lab", "subnet": subnet, "bridge": bridge });
        let made = manager
            .create_network(lab_net("10.20.0.0/24", "br-lab"))
            .await
            .unwrap();
        let pid = i32::try_from(made["pid"].as_i64().unwrap()).unwrap();
        let scope = scope_of(pid);
        assert!(scope.starts_with("dnsmasq-lab-"), "{scope}");

        // Another state directory's network of the same name.
        let mut settings = lab.0.settings();
        settings["stateDir"] = json!(lab.0.path().join("other"));
        let other = Manager::new(settings);
        other.initialize().await.unwrap();
        let theirs = other
            .create_network(lab_net("10.30.0.0/24", "br-lab2"))
            .await
            .unwrap();
        let their_scope = scope_of(i32::try_from(theirs["pid"].as_i64().unwrap()).unwrap());
        assert_ne!(their_scope, scope);
        other.remove_network("lab").await.unwrap();
        other.shutdown().await.unwrap();
        assert_eq!(tree.scopes(), std::slice::from_ref(&scope));

        manager.shutdown().await.unwrap();
        tree.expel(pid);
        assert_ne!(scope_of(pid), scope);
        let next = lab.0.manager().await;
        assert_eq!(next.network("lab").unwrap()["pid"], pid, "the same dnsmasq");
        assert_eq!(scope_of(pid), scope);
        next.remove_network("lab").await.unwrap();
        assert_eq!(tree.scopes(), Vec::<String>::new());
        fs::remove_dir(lab.0.path().join("other").join("networks")).unwrap();
        lab.is_clean().await;
        next.shutdown().await.unwrap();
        tree.unmount();
    });
}

#[test]
fn a_real_machine_gets_its_lease_and_may_use_no_other_address() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let network = json!({
            "name": "vms", "subnet": "10.20.0.0/24", "pinAddresses": true,
            "dhcp": { "start": "10.20.0.100" },
        });
        let made = manager.create_network(network).await.unwrap();
        let id = "net-lease";
        let mut machine = lab.0.tiny_guest(id);
        machine["network"] = json!("vms");
        machine["firewallDefaultAction"] = json!("accept");
        for (key, value) in [
            ("network", json!("none")),
            ("network", json!(7)),
            ("bridge", json!("testbr0")),
        ] {
            let mut wrong = machine.clone();
            wrong[key] = value;
            if key == "network" {
                wrong["bridge"] = json!(null);
            }
            let refused = manager.create_vm(wrong, never()).await.unwrap_err();
            assert_eq!(
                refused.context()["issues"][0]["path"],
                "network",
                "{refused}"
            );
        }
        machine["bridge"] = json!(null);
        manager.create_vm(machine, never()).await.unwrap();
        assert!(ruleset().contains(UNLEASED), "it has not asked yet");
        lab.0.console_says(id, "INFZ-DHCP eth0 10.20.0.", 1).await;
        let leases = manager.network_leases("vms").await.unwrap();
        assert_eq!(leases.as_array().map(Vec::len), Some(1), "{leases}");
        let address = leases[0]["ip"].as_str().unwrap().to_owned();
        let pinned = format!("ip saddr != {{ 0.0.0.0, {address} }} drop");
        eventually("its address is pinned", async || {
            ruleset().contains(&pinned)
        })
        .await;
        let answers = |address: &str| {
            let ping = Command::new("ping").args(["-c1", "-W1", address]).output();
            ping.unwrap().status.success()
        };
        eventually("it answers at its address", async || answers(&address)).await;
        // It has given itself another one, too: that says nothing.
        let own = Host::address_of(id).to_string();
        let bridge = made["bridge"].as_str().unwrap();
        run(&format!("ip route add {own}/32 dev {bridge}"));
        assert!(!answers(&own), "{own} is not the network's");

        // With its lease it keeps what it has, whatever it is to have next.
        let mut both = ["10.20.0.8", &address].map(|it| it.parse::<Ipv4Addr>().unwrap());
        both.sort();
        let hosts = json!([{ "mac": leases[0]["mac"], "ip": "10.20.0.8" }]);
        let static_host = json!({ "dhcp": { "hosts": hosts } });
        manager.update_network("vms", static_host).await.unwrap();
        let pinned = format!("ip saddr != {{ 0.0.0.0, {}, {} }} drop", both[0], both[1]);
        eventually("both are pinned", async || ruleset().contains(&pinned)).await;
        assert!(answers(&address), "its lease has not ended");
        manager.stop_vm(id.into(), forced(), never()).await.unwrap();
        manager
            .start_vm(id.into(), json!({}), never())
            .await
            .unwrap();
        assert!(
            ruleset().contains(&pinned),
            "from the start, as the lease is known"
        );
        let pinned = "ip saddr != { 0.0.0.0, 10.20.0.8 } drop";
        eventually("its lease has gone", async || ruleset().contains(pinned)).await;
        manager.stop_vm(id.into(), forced(), never()).await.unwrap();
        delete(&manager, id).await;
        manager.remove_network("vms").await.unwrap();
        lab.is_clean().await;
        manager.shutdown().await.unwrap();
    });
}

#[test]
fn a_machine_without_a_lease_has_no_address_whichever_process_looks() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let (id, mac) = ("net-unleased", "52:54:00:20:00:0e");
        let network = json!({ "name": "held", "subnet": "10.20.0.0/24", "pinAddresses": true });
        manager.create_network(network).await.unwrap();
        let mut machine = lab.0.machine(id);
        machine["network"] = json!("held");
        machine["bridge"] = json!(null);
        machine["macAddress"] = json!(mac);
        manager.create_vm(machine, never()).await.unwrap();
        let link_local = "ip6 saddr != { ::, fe80::/64 } drop";
        assert!(ruleset().contains(UNLEASED) && ruleset().contains(link_local));
        let leases = lab.dir().join("held").join("dnsmasq.leases");
        let lease = format!("0 {mac} 10.20.0.66 * *\n");
        fs::write(&leases, lease).unwrap();
        let leased = "ip saddr != { 0.0.0.0, 10.20.0.66 } drop";
        eventually("its lease counts", async || ruleset().contains(leased)).await;

        // It ends while nobody looks.
        manager.shutdown().await.unwrap();
        drop(manager);
        fs::write(&leases, "").unwrap();
        let next = lab.0.manager().await;
        eventually("its lease has ended", async || ruleset().contains(UNLEASED)).await;

        // An address it is given counts beside, and is kept.
        let given = next.set_addresses(id.into(), json!(["10.20.0.77", "fd00::7"]));
        given.await.unwrap();
        let both = [
            "ip saddr != { 0.0.0.0, 10.20.0.77 } drop",
            "ip6 saddr != { ::, fd00::7, fe80::/64 } drop",
        ];
        assert!(both.iter().all(|rule| ruleset().contains(rule)));
        for wrong in [
            json!(["10.20.0.300"]),
            json!("10.20.0.7"),
            json!(["ff02::1"]),
        ] {
            let refused = next.set_addresses(id.into(), wrong).await.unwrap_err();
            assert_eq!(refused.code(), ErrorCode::InvalidConfig);
        }
        next.stop_vm(id.into(), forced(), never()).await.unwrap();
        let run = next.start_vm(id.into(), json!({}), never()).await;
        run.unwrap();
        assert!(both.iter().all(|rule| ruleset().contains(rule)));

        // Where nobody is held to a lease, it is held to what it was given, and without that free.
        let free = json!({ "pinAddresses": false });
        next.update_network("held", free).await.unwrap();
        let given = "ip6 saddr != { ::, fd00::7, fe80::/64 } drop";
        assert!(ruleset().contains(given));
        next.set_addresses(id.into(), json!([])).await.unwrap();
        assert!(!ruleset().contains("saddr != { "));
        assert!(!ruleset().contains(UNLEASED));
        next.stop_vm(id.into(), forced(), never()).await.unwrap();
        delete(&next, id).await;
        next.remove_network("held").await.unwrap();
        lab.is_clean().await;
        next.shutdown().await.unwrap();
    });
}

#[test]
fn without_dnsmasq_machines_are_held_to_their_addresses_until_it_can_be_started() {
    const NAME: &str =
        "without_dnsmasq_machines_are_held_to_their_addresses_until_it_can_be_started";
    let tools = || Toolbox::of(&["nft", "dnsmasq", "ip", "qemu-img", "qemu-system-x86_64"]);
    process_kit::in_own_process_with(NAME, tools, |tools| {
        in_private_network(|| async move {
            let lab = Lab::new().await;
            let manager = lab.0.manager().await;
            let (id, mac) = ("net-dark", "52:54:00:20:00:0d");
            let network = json!({
                "name": "dark", "subnet": "10.20.0.0/24", "pinAddresses": true,
                "dhcp": { "hosts": [{ "mac": mac, "ip": "10.20.0.5" }] },
            });
            let made = manager.create_network(network).await.unwrap();
            let mut machine = lab.0.machine(id);
            machine["network"] = json!("dark");
            machine["bridge"] = json!(null);
            machine["macAddress"] = json!(mac);
            manager.create_vm(machine, never()).await.unwrap();
            let pinned = "ip saddr != { 0.0.0.0, 10.20.0.5 } drop";
            assert!(ruleset().contains(pinned));
            manager.stop_vm(id.into(), forced(), never()).await.unwrap();
            manager.shutdown().await.unwrap();
            drop(manager);
            tools.take_away("dnsmasq");
            kill(i32::try_from(made["pid"].as_i64().unwrap()).unwrap());

            let next = lab.0.manager().await;
            let mut events = next.subscribe();
            let dark = next.network("dark").unwrap();
            assert_eq!((&dark["state"], dark.get("pid")), (&json!("failed"), None));
            let run = next.start_vm(id.into(), json!({}), never()).await;
            run.unwrap();
            assert!(ruleset().contains(pinned), "whether or not it is served");

            // Nor does one more failure keep it from being tried.
            next.start_network("dark").await.unwrap_err();
            next_event(&mut events, "network-failed").await;
            tools.put_back("dnsmasq");
            next_event(&mut events, "network-restarted").await;
            let back = next.network("dark").unwrap();
            assert_eq!(
                (&back["state"], &back["restarts"]),
                (&json!("active"), &json!(0))
            );
            assert_eq!(dnsmasqs(lab.0.path()).len(), 1);
            next.stop_vm(id.into(), forced(), never()).await.unwrap();
            delete(&next, id).await;
            next.remove_network("dark").await.unwrap();
            lab.is_clean().await;
            next.shutdown().await.unwrap();
        });
    });
}

#[test]
fn p4_chains_of_no_machine_are_told_and_left_alone() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let id = "net-kept";
        manager.create_vm(lab.0.machine(id), never()).await.unwrap();
        let nft = infinization_core::host::nft::Nft::new();
        let nobody = firewall::vm("net-nobody");
        nft.ensure_vm(&firewall::compiled(&nobody)).await.unwrap();
        assert_eq!(manager.firewall().orphaned_chains().await.unwrap().len(), 1);
        manager.shutdown().await.unwrap();
        drop(manager);

        let next = Manager::new(lab.0.settings());
        let mut events = next.subscribe();
        next.initialize().await.unwrap();
        let told = next_event(&mut events, "firewall-orphans").await;
        let chain = infinization_core::firewall::ChainNames::of(&nobody.vm_id).vm;
        assert_eq!(told.data["chains"], json!([chain]));
        assert!(ruleset().contains(&chain));
        next.firewall()
            .remove_by_name(&chain)
            .unwrap()
            .await
            .unwrap();
        assert_eq!(
            next.firewall().orphaned_chains().await.unwrap(),
            Vec::<String>::new()
        );
        next.stop_vm(id.into(), forced(), never()).await.unwrap();
        delete(&next, id).await;
        next.shutdown().await.unwrap();
    });
}

#[test]
fn p4_chains_of_no_machine_are_told_once_whenever_the_database_goes() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        lab.0.manager().await.shutdown().await.unwrap();
        let nobody = firewall::compiled(&firewall::vm("net-nobody"));
        let nft = infinization_core::host::nft::Nft::new();
        nft.ensure_vm(&nobody).await.unwrap();
        for answers in 0.. {
            let switch = Switch::new();
            switch.turn(Mode::DownAfter(answers));
            let settings = lab.0.settings();
            let manager = Manager::with_wrappers(settings, None, Some(switch.wrapper()));
            let (mut events, mut all) = (manager.subscribe(), manager.subscribe());
            manager.initialize().await.unwrap();
            let went = switch.is_down();
            switch.turn(Mode::Up);
            if went {
                next_event(&mut events, "database-restored").await;
                next_event(&mut events, "reconcile-complete").await;
                switch.rests().await;
            }
            let told = std::iter::from_fn(|| all.try_recv().ok());
            let told = told.filter(|event| event.kind == "firewall-orphans");
            assert_eq!(told.count(), 1, "away after {answers} answers");
            manager.shutdown().await.unwrap();
            if !went {
                assert!(answers > 1, "it is asked for rows and for chains' machines");
                return;
            }
        }
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
