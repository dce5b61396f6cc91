//! The firewall in a file, with the real kernel: written, loaded, torn, killed while writing, and what the
//! boot unit does with it.
#![allow(clippy::unwrap_used, reason = "a test's set-up fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use infinization_core::Coded;
use infinization_core::error::ErrorCode;
use infinization_core::firewall::{ChainNames, VmFirewall};
use infinization_core::host::nft::Nft;
use infinization_core::host::nft_file::{Keeper, NftFileOptions, NftFiles, install};
use infinization_core::types::{FirewallDefaultAction, HostPath, VmId};
use infinization_test_kit::{self as kit, firewall, guests};

use firewall::{address, compiled, network, rule, rules, ruleset, run, strongest, vm};
use guests::{Guest, bridge};
use kit::in_private_network;

fn files(dir: &Path, nft: &Nft) -> NftFiles {
    let dir = HostPath::parse(dir.to_str().unwrap()).unwrap();
    NftFiles::new(NftFileOptions::new(dir), nft.clone())
}

/// Of everything a rule may say.
async fn load_everything(nft: &Nft) {
    let mut odd = rule("ACCEPT IN tcp 8080");
    odd.name = String::from(r"a 'b' {c}; flush ruleset # ü $x \ %n");
    odd.src_ip_addr = Some("10.0.0.0".to_owned());
    odd.src_ip_mask = Some("8".to_owned());
    odd.dst_port_end = Some(8090.0);
    let full = VmFirewall {
        bridge_addresses: vec![network("10.0.0.1/24"), network("fd00::1/64")],
        known_addresses: vec![address("10.0.0.5"), address("fd00::5")],
        vm_rules: [
            rules(&["ACCEPT INOUT all", "DROP OUT icmp", "REJECT OUT udp 53"]),
            vec![odd],
        ]
        .concat(),
        ..vm("nf-full")
    };
    let full = strongest(nft.capabilities().await.unwrap(), full);
    nft.ensure_vm(&compiled(&full)).await.unwrap();
    nft.ensure_vm(&compiled(&vm("nf-empty"))).await.unwrap();
}

#[test]
fn p1_loading_it_once_or_twice_or_over_another_gives_the_table_that_was_written() {
    in_private_network(|| async {
        let (nft, dir) = (Nft::new(), tempfile::tempdir().unwrap());
        let files = files(&dir.path().join("a/b"), &nft);
        load_everything(&nft).await;
        let before = ruleset();
        files.write().await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&files.path()), mode(files.dir().as_path())),
            (0o644, 0o755)
        );
        let deny = files.dir().as_path().join("default-deny.nft");
        assert!(deny.exists(), "a unit that was installed by hand needs it");

        run("nft flush ruleset");
        let rules = files.load().await.unwrap();
        assert!(rules > 20, "{rules}");
        assert_eq!(ruleset(), before);
        files.load().await.unwrap();
        assert_eq!(ruleset(), before, "a second time");
        nft.ensure_vm(&compiled(&vm("nf-third"))).await.unwrap();
        run(&format!("nft -f {}", files.path().display()));
        assert_eq!(ruleset(), before, "over another, by nft alone");
        // The earlier library's file is the bare listing.
        let listing = run("nft list table bridge infinization");
        fs::write(files.path(), listing).unwrap();
        files.load().await.unwrap();
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn what_cannot_be_loaded_changes_nothing_and_leaves_no_port_open() {
    in_private_network(|| async {
        let (nft, dir) = (Nft::new(), tempfile::tempdir().unwrap());
        let files = files(dir.path(), &nft);
        assert_eq!(
            files.write().await.unwrap_err().code(),
            ErrorCode::TableNotFound
        );
        load_everything(&nft).await;
        files.write().await.unwrap();
        let (whole, before) = (fs::read_to_string(files.path()).unwrap(), ruleset());
        let broken = whole.replacen("accept", "acccept", 1);
        let torn = whole[..whole.len() / 2].to_owned();
        let foreign = format!("{whole}table ip other {{\n}}\n");
        for text in [broken, torn, foreign, String::new()] {
            fs::write(files.path(), &text).unwrap();
            files.load().await.unwrap_err();
            assert_eq!(ruleset(), before, "{text:.60}");
        }
        fs::remove_file(files.path()).unwrap();
        assert_eq!(files.load().await.unwrap_err().code(), ErrorCode::HostFile);
        run("nft flush ruleset");
        files.load().await.unwrap_err();
        assert!(
            ruleset().contains("iifname \"vnet-*\" drop"),
            "{}",
            ruleset()
        );
    });
}

#[test]
fn the_backup_is_the_one_before_and_takes_its_place() {
    in_private_network(|| async {
        let (nft, dir) = (Nft::new(), tempfile::tempdir().unwrap());
        let files = files(dir.path(), &nft);
        nft.ensure_vm(&compiled(&vm("nf-one"))).await.unwrap();
        files.write().await.unwrap();
        files.write().await.unwrap();
        assert!(!files.status().await.unwrap().backup, "nothing has changed");
        let first = ruleset();
        nft.ensure_vm(&compiled(&vm("nf-two"))).await.unwrap();
        files.write().await.unwrap();
        let status = files.status().await.unwrap();
        assert!(status.backup && status.table && status.written.is_some());
        files.roll_back().await.unwrap();
        assert_eq!(ruleset(), first);
        run("nft flush ruleset");
        files.load().await.unwrap();
        assert_eq!(ruleset(), first, "it is the file now");
        assert!(files.remove().await.unwrap());
        assert!(!files.remove().await.unwrap());
    });
}

/// Does what the unit says, as systemd would at boot.
fn boot(unit: &Path) -> bool {
    executes(unit, "ExecStart")
}

/// Each command by itself, until one fails that may not.
fn executes(unit: &Path, which: &str) -> bool {
    let text = fs::read_to_string(unit).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let commands = lines.filter(|(key, _)| key.starts_with(which));
    for (_, command) in commands {
        let (may_fail, command) = match command.strip_prefix('-') {
            Some(command) => (true, command),
            None => (false, command),
        };
        let words: Vec<_> = command
            .split(' ')
            .map(|word| word.trim_matches('"'))
            .collect();
        let status = Command::new(words[0])
            .args(&words[1..])
            .stderr(Stdio::null())
            .status();
        if !may_fail && !status.is_ok_and(|status| status.success()) {
            return false;
        }
    }
    true
}

#[test]
fn p2_the_boot_unit_restores_and_where_it_cannot_every_managed_port_is_closed() {
    in_private_network(|| async {
        let (nft, dir) = (Nft::new(), tempfile::tempdir().unwrap());
        let path = |name: &str| HostPath::parse(dir.path().join(name).to_str().unwrap()).unwrap();
        let files = files(path("nft").as_path(), &nft);
        let installed = install(path("nft"), path("units"), true).await.unwrap();
        assert_eq!(
            install(path("nft"), path("units"), true).await.unwrap(),
            installed
        );
        let enabled = fs::read_link(installed.enabled_by.as_ref().unwrap()).unwrap();
        assert_eq!(enabled, installed.unit);
        let follows = path("units/nftables.service.wants");
        let follows = fs::read_link(follows.as_path().join("infinization-nftables.service"));
        assert_eq!(follows.unwrap(), installed.unit);
        assert_eq!(installed.saved, files.path());

        bridge("br-boot", &["10.9.0.1/24"]);
        let open = VmFirewall {
            default_action: FirewallDefaultAction::Accept,
            ..vm("nf-open")
        };
        let guest = Guest::plug(
            "br-boot",
            open.tap.as_str(),
            &open.mac.to_string(),
            &["10.9.0.2/24"],
        );
        let other = Guest::plug(
            "br-boot",
            "vnet-other",
            "52:54:00:00:00:09",
            &["10.9.0.3/24"],
        );
        guests::serve_tcp(9000);
        assert!(other.reaches("10.9.0.1", 9000), "nothing is filtered yet");
        nft.ensure_vm(&compiled(&open)).await.unwrap();
        files.write().await.unwrap();
        let before = ruleset();

        run("nft flush ruleset");
        assert!(boot(&installed.unit));
        assert_eq!(ruleset(), before);
        assert!(
            guest.reaches("10.9.0.1", 9000),
            "its own rules are in force"
        );
        assert!(other.is_blocked_from("10.9.0.1", 9000), "it has none");

        // The host's own firewall is reloaded, while nobody of ours runs; and once more for nothing.
        run("nft flush ruleset");
        for _again in 0..2 {
            assert!(executes(&installed.unit, "ExecReload"));
            assert_eq!(ruleset(), before);
        }

        let whole = fs::read_to_string(files.path()).unwrap();
        for broken in [
            &whole[..whole.len() - 40],
            &whole.replacen("accept", "acccept", 1),
        ] {
            run("nft flush ruleset");
            fs::write(files.path(), broken).unwrap();
            assert!(!boot(&installed.unit), "the unit has failed");
            assert!(guest.is_blocked_from("10.9.0.1", 9000));
            assert!(other.is_blocked_from("10.9.0.1", 9000));
        }
    });
}

#[test]
fn p3_writers_that_write_at_once_lose_nothing() {
    in_private_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        let writer = |name: &'static str| {
            let nft = Nft::new();
            let files = files(dir.path(), &nft);
            tokio::spawn(async move {
                for number in 0..12 {
                    let vm = vm(&format!("nf-{name}-{number}"));
                    nft.ensure_vm(&compiled(&vm)).await.unwrap();
                    files.write().await.unwrap();
                }
            })
        };
        let writers = [writer("a"), writer("b"), writer("c")];
        for writer in writers {
            writer.await.unwrap();
        }
        let before = ruleset();
        let text = fs::read_to_string(dir.path().join("infinization.nft")).unwrap();
        for name in ["a", "b", "c"] {
            for number in 0..12 {
                let id = VmId::parse(format!("nf-{name}-{number}")).unwrap();
                assert!(text.contains(&format!("chain {} {{", ChainNames::of(&id).vm)));
            }
        }
        run("nft flush ruleset");
        files(dir.path(), &Nft::new()).load().await.unwrap();
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn what_is_committed_is_written_behind_and_the_end_waits_for_it() {
    in_private_network(|| async {
        let (nft, dir) = (Nft::new(), tempfile::tempdir().unwrap());
        let keeper = Keeper::start(
            files(dir.path(), &nft),
            Box::new(|error| panic!("it could not be written: {error}")),
        );
        let path = dir.path().join("infinization.nft");
        let vms: Vec<_> = (0..10)
            .map(|number| vm(&format!("nf-kept-{number}")))
            .collect();
        for vm in &vms {
            nft.ensure_vm(&compiled(vm)).await.unwrap();
        }
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        let chain = |at: usize| ChainNames::of(&vms[at].vm_id);
        while !fs::read_to_string(&path).is_ok_and(|text| text.contains(&chain(9).vm)) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "it is never written"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        nft.remove_vm(&chain(3)).await.unwrap();
        keeper.close().await;
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&chain(3).vm) && text.contains(&chain(4).vm));
    });
}

const KILLED_DIR: &str = "INFINIZATION_TEST_KILLED_DIR";

/// Started again by the next test, which kills it.
#[test]
fn writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(KILLED_DIR) else {
        return;
    };
    in_private_network(move || async move {
        let nft = Nft::new();
        let files = files(Path::new(&dir), &nft);
        for number in 0.. {
            let vm = vm(&format!("nf-killed-{}", number % 40));
            nft.ensure_vm(&compiled(&vm)).await.unwrap();
            files.write().await.unwrap();
        }
    });
}

#[test]
fn p3_a_writer_that_is_killed_leaves_a_file_that_loads_and_no_lock() {
    in_private_network(|| async {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), &Nft::new());
        for round in 0..6u64 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "writes_until_it_is_killed"])
                .env(KILLED_DIR, dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            while !files.path().exists() {
                assert!(std::time::Instant::now() < deadline, "it never writes");
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_millis(90 + 37 * round));
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(files.load().await.unwrap() > 0);
        }
        // The lock is free, and what the killed have left is in nobody's way.
        files.write().await.unwrap();
        let entries = fs::read_dir(dir.path()).unwrap();
        let left: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        let allowed = [
            ".lock",
            "default-deny.nft",
            "infinization.nft",
            "infinization.nft.bak",
        ];
        let allowed: BTreeSet<_> = allowed.map(Into::into).into();
        assert!(left.is_subset(&allowed), "{left:?}");
    });
}
