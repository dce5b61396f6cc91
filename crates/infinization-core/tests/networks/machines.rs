//! Machines that are created on a network, held to the addresses it gave them.

use std::net::Ipv4Addr;

use super::*;

/// The rule of a machine that may use no address.
const UNLEASED: &str = "ip saddr != 0.0.0.0 drop";

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
        refuses_what_is_on_no_network(&manager, &machine).await;
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
fn without_dnsmasq_machines_are_held_to_their_addresses_until_it_can_be_started() {
    const NAME: &str =
        "machines::without_dnsmasq_machines_are_held_to_their_addresses_until_it_can_be_started";
    let tools = || Toolbox::of(&["nft", "dnsmasq", "ip", "qemu-img", "qemu-system-x86_64"]);
    kit::process::in_own_process_with(NAME, tools, |tools| {
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
            kill(pid_of(&made));

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

async fn refuses_what_is_on_no_network(manager: &Manager, machine: &Value) {
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
}

fn answers(address: &str) -> bool {
    let ping = Command::new("ping").args(["-c1", "-W1", address]).output();
    ping.unwrap().status.success()
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
