//! dnsmasq's own life: its end, its scope, and what outlives our process.

use kit::process::{mount_at, unmount};

use super::*;

#[test]
fn dnsmasq_that_is_killed_comes_back_with_its_leases_and_the_end_of_our_process_is_none_of_its() {
    in_private_network(|| async {
        let lab = Lab::new().await;
        let manager = lab.0.manager().await;
        let config = json!({ "name": "lab", "subnet": "10.20.0.0/24", "bridge": "br-lab", "autostart": false });
        let made = manager.create_network(config.clone()).await.unwrap();
        let pid = pid_of(&made);
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
        kill(pid_of(&taken));
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
fn shutdown_waits_for_what_is_under_way_and_refuses_what_has_not_begun() {
    const NAME: &str =
        "dnsmasq::shutdown_waits_for_what_is_under_way_and_refuses_what_has_not_begun";
    let tools = || Toolbox::of(&["nft", "dnsmasq", "sh", "sleep", "ip", "qemu-img"]);
    kit::process::in_own_process_with(NAME, tools, |tools| {
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
        let pid = pid_of(&made);
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
        let their_scope = scope_of(pid_of(&theirs));
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
