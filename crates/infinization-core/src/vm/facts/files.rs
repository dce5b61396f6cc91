//! The files a configuration names besides its disks: each must be there, be of its kind, be open to
//! QEMU's user, and really be where such a file may be.
//!
//! The parser has confined the names as text; here the file behind the symbolic links is confined.
//!
//! QEMU opens these files itself, later and by name, so a link that is changed in between could still
//! lead it elsewhere. For ISOs that shows the guest another disc. A ROM runs with the card's access to
//! the host's memory, so its name must mean the same file at any time: no symbolic link below the ROM
//! directory, and every directory from there to the file is root's (or our own) and writable by
//! nobody else. A descriptor would do that too, but `romfile` is opened with open(2) past QEMU's
//! `/dev/fdset` (QEMU 7.2, `hw/core/loader.c`), and reopening one through `/proc` gains nothing over
//! a directory that nobody can change.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::about;
use crate::config::{Issue, NbdLocation, NbdServer, NetworkLocation, PathRules, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::host::named_file::{self, Unfit, Wanted};
use crate::host::process::RunAs;
use crate::types::HostPath;

/// Write permission for the group and for others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A file as it was named.
struct Named {
    field: String,
    path: HostPath,
    wanted: Wanted,
    place: Place,
}

/// Where such a file may be.
#[derive(Clone, Copy)]
enum Place {
    Anywhere,
    /// Inside `allowedPaths`.
    Allowed,
    /// Inside the ROM directory.
    Roms,
}

/// What is wrong with the named files as `user` sees them.
pub(super) fn issues(
    config: &VmConfig,
    rules: &PathRules,
    user: Option<&RunAs>,
) -> Result<Vec<Issue>, Failure> {
    let named = named(config);
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let files: Vec<(&Path, Wanted)> = named
        .iter()
        .map(|file| (file.path.as_path(), file.wanted))
        .collect();
    let looked = named_file::look(&files, user).map_err(|error| {
        let message = format!("the files could not be looked at as runAsUser: {error}");
        about("runAsUser", Failure::new(ErrorCode::HostFile, message))
    })?;
    let rules = Confines::of(rules);
    let issues = named.iter().zip(looked).filter_map(|(file, look)| {
        match look {
            Err(unfit) => Err(file.unfit(&unfit)),
            Ok(real) => file.check_place(&real, &rules),
        }
        .err()
    });
    Ok(issues.collect())
}

fn named(config: &VmConfig) -> Vec<Named> {
    let code = config.firmware.as_ref().map(|firmware| &firmware.code);
    let romfile = config.gpu.as_ref().and_then(|gpu| gpu.romfile.as_ref());
    let (iso, drivers) = (config.installer_iso.as_ref(), config.drivers_iso.as_ref());
    let tpm = config.tpm_socket.as_ref();
    let table = [
        ("uefiFirmware", code, Wanted::File, Place::Anywhere),
        ("isoPath", iso, Wanted::File, Place::Allowed),
        ("virtioDriversIso", drivers, Wanted::File, Place::Allowed),
        ("tpmSocketPath", tpm, Wanted::Socket, Place::Anywhere),
        ("gpuRomfile", romfile, Wanted::File, Place::Roms),
    ];
    let given = table
        .into_iter()
        .filter_map(|(field, path, wanted, place)| {
            Some(Named {
                field: field.to_owned(),
                path: path?.clone(),
                wanted,
                place,
            })
        });
    given.chain(of_locations(config)).collect()
}

/// What locations on the network name on this host.
fn of_locations(config: &VmConfig) -> impl Iterator<Item = Named> {
    let disks = config.disks.iter().enumerate();
    disks.flat_map(|(index, disk)| {
        let of = |field, path: Option<HostPath>, wanted, place| {
            let field = format!("disks[{index}].location.{field}");
            path.map(|path| Named {
                field,
                path,
                wanted,
                place,
            })
        };
        let (socket, authority, conf) = match disk.location.network() {
            None => (None, None, None),
            Some(NetworkLocation::Nbd(nbd)) => (socket_of(nbd), authority_of(nbd), None),
            Some(NetworkLocation::Rbd(rbd)) => (None, None, rbd.conf.clone()),
        };
        let own = |conf: &HostPath| conf.as_path().starts_with("/etc/ceph");
        let conf_place = if conf.as_ref().is_some_and(own) {
            Place::Anywhere
        } else {
            Place::Allowed
        };
        [
            of("path", socket, Wanted::Socket, Place::Allowed),
            of("tls.credentials", authority, Wanted::File, Place::Anywhere),
            of("conf", conf, Wanted::File, conf_place),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
    })
}

fn socket_of(nbd: &NbdLocation) -> Option<HostPath> {
    match &nbd.server {
        NbdServer::Unix(path) => Some(path.clone()),
        NbdServer::Inet(_) => None,
    }
}

/// The one file that every client needs.
fn authority_of(nbd: &NbdLocation) -> Option<HostPath> {
    let credentials = &nbd.tls.as_ref()?.credentials;
    credentials.join("ca-cert.pem").ok()
}

/// The rules as they were written, and with the directories as they really are. One that is not
/// there allows nothing.
struct Confines<'a> {
    named: &'a PathRules,
    real: PathRules,
}

impl<'a> Confines<'a> {
    fn of(named: &'a PathRules) -> Self {
        Self {
            named,
            real: resolved(named),
        }
    }
}

fn resolved(rules: &PathRules) -> PathRules {
    let real = |directory: &HostPath| {
        let real = directory.as_path().canonicalize().ok();
        let real = real.and_then(|real| HostPath::parse(real.to_str()?).ok());
        real.unwrap_or_else(|| directory.clone())
    };
    PathRules {
        allowed: rules
            .allowed
            .as_ref()
            .map(|allowed| allowed.iter().map(real).collect()),
        rom_dir: real(&rules.rom_dir),
    }
}

impl Named {
    fn unfit(&self, unfit: &Unfit) -> Issue {
        let message = format!("names {}, which {unfit}", self.path);
        match unfit {
            Unfit::Missing => Issue::unavailable(self.field.as_str(), message),
            _ => Issue::invalid(self.field.as_str(), message),
        }
    }

    fn check_place(&self, real: &Path, rules: &Confines<'_>) -> Result<(), Issue> {
        let why = match self.place {
            Place::Anywhere => None,
            Place::Allowed => {
                (!rules.real.allows(real)).then(|| "leads outside allowedPaths".to_owned())
            }
            Place::Roms => unsafe_rom(&self.path, real, rules),
        };
        why.map_or(Ok(()), |why| {
            let message = format!("names {}, which {why}", self.path);
            Err(Issue::invalid(self.field.as_str(), message))
        })
    }
}

/// Why the ROM's name may come to mean another file than `real`.
fn unsafe_rom(named: &HostPath, real: &Path, rules: &Confines<'_>) -> Option<String> {
    let rom_dir = rules.real.rom_dir.as_path();
    if !rules.real.allows_rom(real) {
        return Some(format!("leads outside {}", rules.named.rom_dir));
    }
    let below = named.as_path().strip_prefix(&rules.named.rom_dir);
    if below.map(|below| rom_dir.join(below)).as_deref() != Ok(real) {
        return Some("leads through a symbolic link".to_owned());
    }
    let directories = real.ancestors().skip(1);
    let mut ours = directories.take_while(|directory| directory.starts_with(rom_dir));
    let shared = ours.find(|directory| !only_ours(directory))?;
    let shared = shared.display();
    Some(format!("is in {shared}, where others than root may write"))
}

fn only_ours(directory: &Path) -> bool {
    let us = nix::unistd::geteuid().as_raw();
    fs::metadata(directory)
        .is_ok_and(|found| [0, us].contains(&found.uid()) && found.mode() & WRITABLE_BY_OTHERS == 0)
}
