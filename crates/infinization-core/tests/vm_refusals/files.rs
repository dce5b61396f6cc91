//! Files a machine names besides its disks.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::*;

const FIELDS: [&str; 5] = [
    "uefiFirmware",
    "isoPath",
    "virtioDriversIso",
    "tpmSocketPath",
    "gpuRomfile",
];

/// A card there is none of: what is said of it is not what these tests are about.
const NO_CARD: &str = "0000:ff:1f.7";

/// The ROM directory, where files of every kind may be named by every field.
fn roms(host: &Host) -> PathBuf {
    let roms = host.state_dir().join("roms");
    fs::create_dir_all(&roms).unwrap();
    roms
}

/// A machine that names `path` in every field.
fn naming(host: &Host, path: &Path) -> Value {
    let mut machine = host.machine("file-1");
    for field in FIELDS {
        machine[field] = json!(path);
    }
    machine["gpuPciAddress"] = json!(NO_CARD);
    machine
}

/// The codes of [`FIELDS`], without what is said of the card.
fn of_files(failure: &Failure) -> Vec<(&str, &str)> {
    let fields = fields(failure).into_iter();
    fields
        .filter(|(field, _)| *field != "gpuPciAddress")
        .collect()
}

fn all(code: &str) -> Vec<(&str, &str)> {
    FIELDS.iter().map(|field| (*field, code)).collect()
}

fn write(path: &Path, mode: u32) {
    fs::write(path, "content").unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn b5_what_is_no_such_file_is_refused_by_field() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let roms = roms(&host);
        let place = |name: &str| roms.join(name);
        fs::create_dir(place("directory")).unwrap();
        nix::unistd::mkfifo(&place("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/dev/zero", place("device")).unwrap();
        for (name, code) in [
            ("directory", "INVALID_CONFIG"),
            ("fifo", "INVALID_CONFIG"),
            ("device", "INVALID_CONFIG"),
            ("missing", "RESOURCE_UNAVAILABLE"),
        ] {
            let failure = refused(&host, &manager, naming(&host, &place(name))).await;
            assert_eq!(failure.code().as_str(), code, "{name}: {failure}");
            assert_eq!(failure.code().class().as_str(), "LifecycleError");
            assert_eq!(of_files(&failure), all(code), "{name}");
        }

        let _tpm = UnixListener::bind(place("socket")).unwrap();
        let failure = refused(&host, &manager, naming(&host, &place("socket"))).await;
        let files = FIELDS.iter().filter(|field| **field != "tpmSocketPath");
        let files: Vec<_> = files.map(|field| (*field, "INVALID_CONFIG")).collect();
        assert_eq!(of_files(&failure), files);

        write(&place("file"), 0o644);
        let failure = refused(&host, &manager, naming(&host, &place("file"))).await;
        assert_eq!(of_files(&failure), [("tpmSocketPath", "INVALID_CONFIG")]);
        fs::remove_dir_all(&roms).unwrap();
        host.is_clean().await;
    });
}

#[test]
fn b5_a_start_looks_again() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let iso = host.path().join("drivers.iso");
        fs::write(&iso, [0; 2048]).unwrap();
        let mut machine = host.machine("file-2");
        machine["virtioDriversIso"] = json!(iso);
        manager.create_vm(machine, never()).await.unwrap();
        manager
            .stop_vm("file-2".into(), forced(), never())
            .await
            .unwrap();
        fs::remove_file(&iso).unwrap();
        for (name, code) in [
            ("nothing", "RESOURCE_UNAVAILABLE"),
            ("fifo", "INVALID_CONFIG"),
        ] {
            if name == "fifo" {
                nix::unistd::mkfifo(&iso, nix::sys::stat::Mode::S_IRWXU).unwrap();
            }
            let failure = not_started(&host, &manager, "file-2").await;
            assert_eq!(fields(&failure), [("virtioDriversIso", code)], "{name}");
            assert_eq!(failure.vm_id().unwrap().as_str(), "file-2");
        }
        fs::remove_file(&iso).unwrap();
        fs::write(&iso, [0; 2048]).unwrap();
        start(&manager, "file-2").await.unwrap();
        delete(&manager, "file-2").await;
        fs::remove_file(&iso).unwrap();
        host.is_clean().await;
    });
}

#[test]
fn b5_what_the_user_may_not_open_is_refused_by_field() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let roms = roms(&host);
        for directory in [host.path(), &host.state_dir(), &roms] {
            fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
        }
        let (file, socket) = (roms.join("file"), roms.join("socket"));
        write(&file, 0o600);
        let _tpm = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, Permissions::from_mode(0o755)).unwrap();
        let mut machine = naming(&host, &file);
        machine["tpmSocketPath"] = json!(socket);
        let said = async |machine: &Value| {
            let failure = manager.plan_vm(machine.clone()).await.unwrap_err();
            let said = of_files(&failure).into_iter();
            said.map(|(field, _)| field.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(said(&machine).await, [""; 0], "root reads everything");

        machine["runAsUser"] = json!("nobody");
        let failure = refused(&host, &manager, machine.clone()).await;
        assert_eq!(failure.code(), ErrorCode::InvalidConfig);
        assert_eq!(of_files(&failure), all("INVALID_CONFIG"));
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(said(&machine).await, ["tpmSocketPath"]);
        fs::set_permissions(&socket, Permissions::from_mode(0o722)).unwrap();
        assert_eq!(said(&machine).await, [""; 0]);
        fs::set_permissions(&roms, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(said(&machine).await, FIELDS, "the way there is shut");

        machine["runAsUser"] = json!("no-such-user");
        let failure = refused(&host, &manager, machine).await;
        assert_eq!(fields(&failure), [("runAsUser", "RESOURCE_UNAVAILABLE")]);
        fs::remove_dir_all(&roms).unwrap();
        host.is_clean().await;
    });
}

#[test]
fn b4_links_do_not_lead_out_of_the_allowed_directories() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let (inside, outside) = (host.path().join("real"), host.path().join("outside"));
        for directory in [&inside, &outside] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("disc.iso"), [0; 2048]).unwrap();
        }
        let images = host.path().join("images");
        symlink(&inside, &images).unwrap();
        symlink(outside.join("disc.iso"), inside.join("out.iso")).unwrap();
        symlink(&outside, inside.join("out")).unwrap();
        symlink(inside.join("disc.iso"), inside.join("in.iso")).unwrap();
        let mut settings = host.settings();
        settings["allowedPaths"] = json!([images]);
        let manager = Manager::new(settings);
        manager.initialize().await.unwrap();

        let machine = |iso: &str| {
            let mut machine = host.machine("link-1");
            machine["isoPath"] = json!(images.join(iso));
            machine["virtioDriversIso"] = json!(images.join(iso));
            machine
        };
        for iso in ["out.iso", "out/disc.iso"] {
            let failure = refused(&host, &manager, machine(iso)).await;
            assert_eq!(failure.code(), ErrorCode::InvalidConfig);
            let both = ["isoPath", "virtioDriversIso"].map(|field| (field, "INVALID_CONFIG"));
            assert_eq!(fields(&failure), both, "{iso}");
        }
        for iso in ["in.iso", "disc.iso"] {
            manager.plan_vm(machine(iso)).await.unwrap();
        }

        let guest = kit::guest_dir().join("tiny.qcow2").canonicalize().unwrap();
        symlink(guest, inside.join("out.qcow2")).unwrap();
        let mut cloned = host.machine("link-1");
        cloned["disks"] = json!([{ "sizeGB": 1, "backingFile": images.join("out.qcow2") }]);
        let failure = refused(&host, &manager, cloned).await;
        assert_eq!(failure.code(), ErrorCode::DiskError);
        assert!(failure.has(ErrorCode::StoragePermissionDenied));
        assert_eq!(fields(&failure), [("disks[0].backingFile", "DISK_ERROR")]);
        for directory in [&inside, &outside] {
            fs::remove_dir_all(directory).unwrap();
        }
        fs::remove_file(&images).unwrap();
        host.is_clean().await;
    });
}

#[test]
fn b6_a_rom_s_name_cannot_come_to_mean_another_file() {
    kit::in_private_network(|| async {
        let host = Host::new().await;
        let manager = host.manager().await;
        let roms = roms(&host);
        let vendor = roms.join("vendor");
        fs::create_dir(&vendor).unwrap();
        write(&vendor.join("card.rom"), 0o644);
        write(&host.path().join("evil.rom"), 0o644);
        symlink(host.path().join("evil.rom"), roms.join("out.rom")).unwrap();
        symlink(vendor.join("card.rom"), roms.join("in.rom")).unwrap();
        symlink(&vendor, roms.join("link")).unwrap();
        symlink(".", roms.join("here")).unwrap();
        let said = async |rom: &str| {
            let mut machine = host.machine("rom-1");
            machine["gpuPciAddress"] = json!(NO_CARD);
            machine["gpuRomfile"] = json!(roms.join(rom));
            let failure = refused(&host, &manager, machine).await;
            let said = of_files(&failure).first().map(|said| said.1.to_owned());
            (said, failure.to_string())
        };
        let of_link = "leads through a symbolic link";
        for (rom, why) in [
            ("out.rom", "leads outside"),
            ("in.rom", of_link),
            ("link/card.rom", of_link),
            ("here/vendor/card.rom", of_link),
        ] {
            let (code, words) = said(rom).await;
            assert_eq!(code.as_deref(), Some("INVALID_CONFIG"), "{rom}");
            assert!(words.contains(why), "{words}");
        }

        let rom = "vendor/card.rom";
        assert_eq!(said(rom).await.0, None);
        for mode in [0o775, 0o757] {
            fs::set_permissions(&vendor, Permissions::from_mode(mode)).unwrap();
            assert!(said(rom).await.1.contains("others than root may write"));
        }
        fs::set_permissions(&vendor, Permissions::from_mode(0o755)).unwrap();
        nix::unistd::chown(&roms, Some(nix::unistd::Uid::from_raw(65534)), None).unwrap();
        assert_eq!(said(rom).await.0.as_deref(), Some("INVALID_CONFIG"));
        fs::remove_dir_all(&roms).unwrap();
        fs::remove_file(host.path().join("evil.rom")).unwrap();
        host.is_clean().await;
    });
}
