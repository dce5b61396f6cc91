//! The systemd unit that loads the saved firewall when the host boots, before there is a network.
//!
//! It closes every managed port first, then loads what was saved: where that fails, the first is what
//! stays, and the unit has failed. It does so again when `nftables.service` is restarted or reloaded, as that
//! flushes everything, also while nobody of ours runs. It needs nothing but `nft`. Modules are loaded one per call, since
//! `modprobe` takes a second name for a parameter, and a kernel may lack one.

use crate::types::HostPath;

/// The unit's name.
pub const UNIT_NAME: &str = "infinization-nftables.service";
/// Who wants it: every boot, and whoever starts the host's own firewall, which flushes everything.
pub const UNIT_WANTED_BY: [&str; 2] = ["sysinit.target", "nftables.service"];
/// The file it loads first.
pub const DEFAULT_DENY_FILE: &str = "default-deny.nft";
/// The file it loads then.
pub const SAVED_FILE: &str = "infinization.nft";

/// What rules of ours may need. Loaded by name since an early boot has not asked for them yet.
const MODULES: [&str; 5] = [
    "bridge",
    "nf_tables",
    "nf_conntrack_bridge",
    "nft_ct",
    "nft_reject_bridge",
];

/// The unit for a firewall that is kept in `dir`.
pub fn boot_unit(dir: &HostPath) -> String {
    let place = dir.as_str().replace('%', "%%");
    let file = |name: &str| word(&format!("{}/{name}", dir.as_str()));
    let modules = MODULES.map(|name| format!("ExecStartPre=-modprobe -q {name}\n"));
    let (modules, deny, saved) = (modules.concat(), file(DEFAULT_DENY_FILE), file(SAVED_FILE));
    let wanted_by = UNIT_WANTED_BY.join(" ");
    format!(
        "# Loads the firewall of this host's virtual machines. If what was saved cannot be loaded, every
# vnet-* port is closed and this unit has failed. nftables.service flushes everything when it is restarted
# or reloaded: this follows it.
[Unit]
Description=Firewall of infinization's virtual machines
Documentation=https://github.com/infinibay/infinization
DefaultDependencies=no
After=local-fs.target systemd-modules-load.service nftables.service
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service
Before=network-pre.target shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target
ConditionPathExists={place}/{SAVED_FILE}

[Service]
Type=oneshot
RemainAfterExit=yes
{modules}ExecStart=nft -f {deny}
ExecStart=nft -f {saved}
ExecReload=nft -f {deny}
ExecReload=nft -f {saved}

[Install]
WantedBy={wanted_by}
"
    )
}

/// One word of a command line in a unit, whatever is in it.
fn word(text: &str) -> String {
    let mut word = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => word.extend(['\\', character]),
            // Specifiers and variables.
            '%' | '$' => word.extend([character, character]),
            _ => word.push(character),
        }
    }
    word + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p2_every_module_is_loaded_by_itself_and_may_be_missing() {
        let unit = boot_unit(&HostPath::parse("/etc/infinization/nftables").unwrap());
        let lines: Vec<&str> = unit
            .lines()
            .filter(|line| line.contains("modprobe"))
            .collect();
        assert_eq!(lines.len(), MODULES.len());
        for (line, module) in lines.iter().zip(MODULES) {
            assert_eq!(*line, format!("ExecStartPre=-modprobe -q {module}"));
        }
        let first = "ExecStart=nft -f \"/etc/infinization/nftables/default-deny.nft\"\nExecStart=";
        assert!(unit.contains(first), "{unit}");
    }

    #[test]
    fn f28_it_follows_the_hosts_own_firewall() {
        let unit = boot_unit(&HostPath::parse("/fw").unwrap());
        let lines: Vec<&str> = unit.lines().collect();
        for line in [
            "PartOf=nftables.service",
            "ReloadPropagatedFrom=nftables.service",
            "WantedBy=sysinit.target nftables.service",
        ] {
            assert!(lines.contains(&line), "{unit}");
        }
        let all = |kind: &str| -> Vec<&str> {
            let prefix = format!("{kind}=");
            let all = lines.iter().filter_map(|line| line.strip_prefix(&*prefix));
            all.collect()
        };
        assert_eq!(all("ExecReload"), all("ExecStart"));
    }

    #[test]
    fn b26_a_path_stays_one_word() {
        let unit = boot_unit(&HostPath::parse("/a \"b\"/100%/$x\\y").unwrap());
        assert!(
            unit.contains(r#"nft -f "/a \"b\"/100%%/$$x\\y/infinization.nft""#),
            "{unit}"
        );
        assert!(unit.contains("ConditionPathExists=/a \"b\"/100%%/$x\\y/infinization.nft"));
    }

    #[test]
    fn what_is_shipped_is_what_is_installed() {
        let shipped = include_str!("../../../../systemd/infinization-nftables.service");
        let dir = HostPath::parse("/etc/infinization/nftables").unwrap();
        assert_eq!(shipped, boot_unit(&dir));
    }
}
