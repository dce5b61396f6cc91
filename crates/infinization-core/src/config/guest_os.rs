//! Which family of systems a guest's `os` names, and what that presets.

use super::{CacheMode, DiskBus, DisplayProtocol, NetworkModel};

/// A family of guests that wants the same devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestOs {
    /// Windows since 2000.
    Windows,
    /// Linux of any distribution.
    Linux,
    /// What has no virtio drivers: DOS, Windows 9x, the BSDs, macOS.
    Legacy,
    /// Anything else.
    Other,
}

/// The devices a family of guests gets where the user names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Disk controller.
    pub bus: DiskBus,
    /// Cache mode.
    pub cache: CacheMode,
    /// Network card.
    pub network_model: NetworkModel,
    /// Queue pairs; advice only.
    pub queues: u8,
    /// Console; advice only, the user always names one.
    pub protocol: DisplayProtocol,
}

impl GuestOs {
    /// The family's devices.
    pub const fn preset(self) -> Preset {
        let (bus, cache, network_model, queues, protocol) = match self {
            Self::Windows => (
                DiskBus::Virtio,
                CacheMode::None,
                NetworkModel::VirtioNetPci,
                4,
                DisplayProtocol::Spice,
            ),
            Self::Legacy => (
                DiskBus::Ide,
                CacheMode::Writethrough,
                NetworkModel::E1000,
                1,
                DisplayProtocol::Vnc,
            ),
            Self::Linux | Self::Other => (
                DiskBus::Virtio,
                CacheMode::Writeback,
                NetworkModel::VirtioNetPci,
                2,
                DisplayProtocol::Spice,
            ),
        };
        Preset {
            bus,
            cache,
            network_model,
            queues,
            protocol,
        }
    }

    /// Understands a free text such as `windows11`, `Ubuntu 22.04` or `pop!_os`.
    ///
    /// Whole words count, a version may be glued to one (`debian12`), and the old Windows are asked
    /// for before the new, so that "Windows 98" is not one of the latter.
    pub fn detect(os: &str) -> Self {
        let words = Words::of(os);
        match () {
            () if words.old_windows() || words.any(LEGACY) => Self::Legacy,
            () if words.windows() => Self::Windows,
            () if words.any(LINUX) || words.names_linux() => Self::Linux,
            () => Self::Other,
        }
    }
}

const LEGACY: &[&str] = &[
    "dos",
    "msdos",
    "freedos",
    "pcdos",
    "drdos",
    "freebsd",
    "openbsd",
    "netbsd",
    "dragonfly",
    "dragonflybsd",
    "macos",
    "darwin",
    "osx",
];

const LINUX: &[&str] = &[
    "linux",
    "ubuntu",
    "kubuntu",
    "xubuntu",
    "lubuntu",
    "debian",
    "fedora",
    "centos",
    "rhel",
    "redhat",
    "rocky",
    "alma",
    "arch",
    "manjaro",
    "opensuse",
    "suse",
    "sles",
    "gentoo",
    "slackware",
    "mint",
    "popos",
    "elementary",
    "kali",
    "parrot",
    "nixos",
    "void",
    "alpine",
];

const OLD_WINDOWS: &[&str] = &["1", "2", "3", "31", "311", "95", "98", "98se", "me"];

/// The lower-case words of a text, each cut into letters and the version glued to them.
struct Words(Vec<(String, String)>);

impl Words {
    fn of(text: &str) -> Self {
        // "Pop!_OS" is the one name whose punctuation is inside a word.
        let text = text
            .to_lowercase()
            .replace("pop!_os", "popos")
            .replace("pop_os", "popos")
            .replace("pop!os", "popos");
        let words = text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(|word| {
                let letters = word
                    .find(|c: char| c.is_ascii_digit())
                    .unwrap_or(word.len());
                let (stem, version) = word.split_at(letters);
                (stem.to_owned(), version.to_owned())
            })
            .collect();
        Self(words)
    }

    fn any(&self, known: &[&str]) -> bool {
        self.0
            .iter()
            .any(|(stem, _)| known.contains(&stem.as_str()))
    }

    /// `archlinux`, `linuxmint`.
    fn names_linux(&self) -> bool {
        let glued = |stem: &str| stem.ends_with("linux") || stem.starts_with("linux");
        self.0.iter().any(|(stem, _)| glued(stem))
    }

    /// What follows each "win" or "windows": glued to it, or the next word.
    fn windows_versions(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .enumerate()
            .filter_map(|(at, (stem, version))| {
                let rest = stem
                    .strip_prefix("windows")
                    .or_else(|| stem.strip_prefix("win"))?;
                let glued = format!("{rest}{version}");
                if !glued.is_empty() {
                    return Some(glued);
                }
                let next = self
                    .0
                    .get(at + 1)
                    .map(|(stem, version)| format!("{stem}{version}"));
                next.or_else(|| Some(String::new()))
            })
    }

    fn old_windows(&self) -> bool {
        self.windows_versions()
            .any(|version| OLD_WINDOWS.contains(&version.as_str()))
    }

    fn windows(&self) -> bool {
        let named = self.0.iter().any(|(stem, _)| stem == "windows");
        named
            || self.windows_versions().any(|version| {
                version.starts_with(|c: char| c.is_ascii_digit())
                    || ["xp", "vista", "server", "nt"]
                        .iter()
                        .any(|name| version.starts_with(name))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detects_by_words() {
        let table = [
            (
                GuestOs::Windows,
                "windows Windows10 windows-11 win11 WinXP win2k19 winserver2022 windowsvista|Windows Server 2022|win 7|Microsoft Windows",
            ),
            (
                GuestOs::Legacy,
                "win95 win98 winme win3.1 windows98 MS-DOS freedos FreeBSD-14 openbsd7 macos osx|Windows 98|windows 3.11|Windows ME|mac osx",
            ),
            (
                GuestOs::Linux,
                "ubuntu ubuntu-22.04 ubuntu2204 Debian12 fedora rhel9 archlinux almalinux9 linuxmint21 pop_os pop!_os arch kali alpine3.19|Arch Linux|Oracle Linux 9",
            ),
            (
                GuestOs::Other,
                "haiku solaris search research winter window|Search OS|",
            ),
        ];
        for (expected, texts) in table {
            let (short, long) = texts.split_once('|').unwrap();
            let mut all: Vec<&str> = short.split(' ').collect();
            all.extend(long.split('|'));
            for text in all {
                assert_eq!(GuestOs::detect(text), expected, "{text:?}");
            }
        }
    }
}
