//! Disk images with the real `qemu-img`, and with a real QEMU holding them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use infinization_core::host::qemu_img::{
    ConvertImage, CreateImage, ImageError, ImageFormat, Job, Preallocation, Resize, Sharing,
    SnapshotName, check, convert, create, create_snapshot, delete_snapshot, ensure_unused, info,
    inspect, list_snapshots, resize, revert_snapshot, snapshot_exists, sweep_partials,
};
use infinization_core::types::{ByteSize, HostPath};
use infinization_core::{Coded, ErrorCode};
use kit::small_disk::SmallDisk;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::watch;

use ImageFormat::{Qcow2, Raw, Vdi, Vhdx, Vmdk};

const MIB: ByteSize = ByteSize::mib(1);

/// A directory of images.
struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> HostPath {
        path_in(self.0.path(), name)
    }

    /// A qcow2 of 8 MiB made behind the library's back.
    fn qcow2(&self, name: &str) -> HostPath {
        let path = self.path(name);
        qemu_img(&["create", "-q", "-f", "qcow2", path.as_str(), "8M"]);
        path
    }

    /// The same with random content in its first `mib`.
    fn random(&self, name: &str, mib: u64) -> HostPath {
        let (raw, path) = (self.path("random.raw"), self.path(name));
        let mut random = File::open("/dev/urandom").unwrap();
        let mut file = File::create(raw.as_path()).unwrap();
        std::io::copy(&mut std::io::Read::take(&mut random, mib << 20), &mut file).unwrap();
        let (from, to) = (raw.as_str(), path.as_str());
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", from, to]);
        fs::remove_file(raw.as_path()).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        names_in(self.0.path())
    }
}

fn path_in(dir: &Path, name: &str) -> HostPath {
    HostPath::parse(dir.join(name).to_str().unwrap()).unwrap()
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn qemu_img(args: &[&str]) {
    let status = Command::new("qemu-img").args(args).status().unwrap();
    assert!(status.success(), "qemu-img {args:?}");
}

/// Writes `byte` to the guest's disk at `offset`.
fn write_guest(path: &HostPath, byte: u8, offset: &str, length: &str) {
    let (ok, said) = qemu_io(path, &format!("write -q -P {byte} {offset} {length}"));
    assert!(ok, "{said}");
}

/// Whether the guest's disk holds `byte` there.
fn guest_has(path: &HostPath, byte: u8, offset: &str, length: &str) -> bool {
    let (ok, said) = qemu_io(path, &format!("read -q -P {byte} {offset} {length}"));
    let differs = said.contains("Pattern verification failed");
    assert!(ok || differs, "{said}");
    !differs
}

fn qemu_io(path: &HostPath, command: &str) -> (bool, String) {
    let output = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", command, path.as_str()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), said)
}

/// Changes bytes of the file itself.
fn forge(path: &HostPath, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path.as_path()).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

fn code<T: std::fmt::Debug>(outcome: Result<T, ImageError>) -> ErrorCode {
    outcome.unwrap_err().code()
}

fn snap(name: &str) -> SnapshotName {
    SnapshotName::parse(name).unwrap()
}

async fn make(path: &HostPath, size: ByteSize) -> Result<(), ImageError> {
    create(&CreateImage::new(path.clone(), size), &Job::default()).await
}

async fn copy(
    from: (&HostPath, ImageFormat),
    to: (&HostPath, ImageFormat),
) -> Result<(), ImageError> {
    let plain = ConvertImage::new((from.0.clone(), from.1), (to.0.clone(), to.1));
    convert(&plain, &Job::default()).await
}

mod creating {
    use super::*;

    #[tokio::test]
    async fn every_format_comes_out_as_itself_and_for_its_owner_only() {
        let images = Images::new();
        for format in ImageFormat::ALL {
            let path = images.path(format.as_str());
            let image = CreateImage {
                format,
                ..CreateImage::new(path.clone(), ByteSize::mib(8))
            };
            create(&image, &Job::default()).await.unwrap();
            let made = info(&path, format, Sharing::Refuse).await.unwrap();
            assert_eq!(made.virtual_size, ByteSize::mib(8), "{format}");
            let file = fs::metadata(path.as_path()).unwrap();
            assert_eq!(file.mode() & 0o777, 0o600, "{format}");
        }
        assert_eq!(images.names(), ["qcow2", "raw", "vdi", "vhdx", "vmdk"]);
    }

    #[tokio::test]
    async fn options_reach_the_image() {
        let images = Images::new();
        let path = images.path("a.qcow2");
        let image = CreateImage {
            preallocation: Preallocation::Full,
            cluster_size: Some(ByteSize::bytes(4096)),
            owner: Some((65534, 65533)),
            ..CreateImage::new(path.clone(), ByteSize::mib(8))
        };
        create(&image, &Job::default()).await.unwrap();
        let made = info(&path, Qcow2, Sharing::Refuse).await.unwrap();
        assert_eq!(made.cluster_size, Some(ByteSize::bytes(4096)));
        assert!(
            made.actual_size >= ByteSize::mib(8),
            "{:?}",
            made.actual_size
        );
        let file = fs::metadata(path.as_path()).unwrap();
        assert_eq!((file.uid(), file.gid()), (65534, 65533));
    }

    #[tokio::test]
    async fn b3_names_that_look_like_something_else_are_only_names() {
        let images = Images::new();
        for name in [
            "-f",
            "nbd:x",
            "json:{}",
            "a b;id",
            "ä$(id)",
            "#block1",
            "Permission denied",
        ] {
            let path = images.path(name);
            make(&path, MIB).await.unwrap();
            create_snapshot(&path, &snap("s")).await.unwrap();
            let found = list_snapshots(&path, Sharing::Refuse).await.unwrap();
            assert_eq!(found.len(), 1, "{name}");
            let overlay = images.path(&format!("{name}.over"));
            let over = CreateImage::over(overlay.clone(), path);
            create(&over, &Job::default()).await.unwrap();
            let copied = images.path(&format!("{name}.copy"));
            copy((&overlay, Qcow2), (&copied, Qcow2)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn s4_nothing_is_ever_overwritten() {
        let images = Images::new();
        let path = images.path("a.qcow2");
        fs::write(path.as_path(), "precious").unwrap();
        assert_eq!(code(make(&path, MIB).await), ErrorCode::ImageAlreadyExists);
        let source = images.qcow2("source");
        let copied = copy((&source, Qcow2), (&path, Raw)).await;
        assert_eq!(code(copied), ErrorCode::ImageAlreadyExists);
        assert_eq!(fs::read(path.as_path()).unwrap(), b"precious");

        let dangling = images.path("dangling");
        symlink("nowhere", dangling.as_path()).unwrap();
        assert_eq!(
            code(make(&dangling, MIB).await),
            ErrorCode::ImageAlreadyExists
        );
        assert_eq!(images.names(), ["a.qcow2", "dangling", "source"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn s4_of_ten_at_once_exactly_one_wins() {
        let images = Images::new();
        let path = images.path("a.qcow2");
        let attempts: Vec<_> = (1..=10)
            .map(|mib| {
                let path = path.clone();
                tokio::spawn(async move { make(&path, ByteSize::mib(mib)).await.map(|()| mib) })
            })
            .collect();
        let mut won = Vec::new();
        for attempt in attempts {
            match attempt.await.unwrap() {
                Ok(mib) => won.push(ByteSize::mib(mib)),
                Err(error) => assert_eq!(error.code(), ErrorCode::ImageAlreadyExists, "{error}"),
            }
        }
        let made = info(&path, Qcow2, Sharing::Refuse).await.unwrap();
        assert_eq!(won, [made.virtual_size]);
        assert_eq!(images.names(), ["a.qcow2"]);
    }

    #[tokio::test]
    async fn b10_sizes_that_no_image_can_have_are_refused_before_anything_is_made() {
        let images = Images::new();
        let plain = CreateImage::new(images.path("a"), MIB);
        let sized = |size| CreateImage {
            size: Some(size),
            ..plain.clone()
        };
        let clustered = |size| CreateImage {
            cluster_size: Some(ByteSize::bytes(size)),
            ..plain.clone()
        };
        let refused = [
            CreateImage {
                size: None,
                ..plain.clone()
            },
            sized(ByteSize::bytes(0)),
            sized(ByteSize::bytes(1 << 63)),
            sized(ByteSize::bytes(u64::MAX)),
            CreateImage {
                format: Raw,
                ..sized(ByteSize::bytes(1 << 63))
            },
            CreateImage {
                size: Some(ByteSize::mib(200 << 10)),
                ..clustered(512)
            },
            clustered(0),
            clustered(300),
            clustered(256),
            clustered(4 << 20),
        ];
        for image in refused {
            let outcome = create(&image, &Job::default()).await;
            assert_eq!(code(outcome), ErrorCode::InvalidSize, "{image:?}");
        }
        assert!(images.names().is_empty());
    }

    #[tokio::test]
    async fn options_that_contradict_the_format_are_refused() {
        let images = Images::new();
        let base = images.qcow2("base");
        let plain = CreateImage::new(images.path("a"), MIB);
        let refused = [
            CreateImage {
                format: Raw,
                backing: Some(base.clone()),
                ..plain.clone()
            },
            CreateImage {
                preallocation: Preallocation::Full,
                ..CreateImage::over(plain.path.clone(), base)
            },
            CreateImage {
                format: Vdi,
                cluster_size: Some(MIB),
                ..plain.clone()
            },
            CreateImage {
                format: Raw,
                preallocation: Preallocation::Metadata,
                ..plain
            },
        ];
        for image in refused {
            let outcome = create(&image, &Job::default()).await;
            assert_eq!(code(outcome), ErrorCode::InvalidFormat, "{image:?}");
        }
        assert_eq!(images.names(), ["base"]);
    }

    #[tokio::test]
    async fn a_directory_that_is_missing_is_named_as_such() {
        let images = Images::new();
        let error = make(&images.path("nowhere/a.qcow2"), MIB)
            .await
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::ImageNotFound);
        assert!(error.to_string().starts_with("the directory of"), "{error}");
    }

    #[tokio::test]
    async fn an_overlay_shows_its_backing_file_and_keeps_its_own_writes() {
        let images = Images::new();
        let base = images.qcow2("base");
        write_guest(&base, 7, "0", "64k");
        let top = images.path("top");
        create(
            &CreateImage::over(top.clone(), base.clone()),
            &Job::default(),
        )
        .await
        .unwrap();
        write_guest(&top, 9, "64k", "64k");
        assert!(guest_has(&top, 7, "0", "64k") && guest_has(&base, 0, "64k", "64k"));

        let found = inspect(&top, Qcow2, &[]).await.unwrap();
        assert_eq!(found.backing_chain, std::slice::from_ref(&base));
        assert_eq!(found.virtual_size, Some(ByteSize::mib(8)));
        let told = info(&top, Qcow2, Sharing::Refuse).await.unwrap();
        assert_eq!(told.backing_file.as_deref(), Some(base.as_str()));
        assert_eq!(told.backing_format.as_deref(), Some("qcow2"));

        let small = CreateImage {
            size: Some(MIB),
            ..CreateImage::over(images.path("small"), base)
        };
        let refused = create(&small, &Job::default()).await;
        assert_eq!(code(refused), ErrorCode::InvalidSize);
    }

    #[tokio::test]
    async fn s6_a_backing_file_must_exist_and_be_qcow2() {
        let images = Images::new();
        let over = |backing| CreateImage::over(images.path("top"), backing);
        let missing = create(&over(images.path("missing")), &Job::default()).await;
        assert_eq!(code(missing), ErrorCode::ImageNotFound);
        let raw = images.path("raw");
        fs::write(raw.as_path(), vec![0; 1 << 20]).unwrap();
        let refused = create(&over(raw), &Job::default()).await;
        assert_eq!(code(refused), ErrorCode::InvalidFormat);
        assert_eq!(images.names(), ["raw"]);
    }
}

mod inspecting {
    use super::*;

    #[tokio::test]
    async fn a_sound_image_passes() {
        let images = Images::new();
        let image = images.random("a.qcow2", 2);
        let found = inspect(&image, Qcow2, &[path_in(images.0.path(), "")])
            .await
            .unwrap();
        assert_eq!(found.virtual_size, Some(ByteSize::mib(2)));
        assert!(found.backing_chain.is_empty());
        for (format, name) in [(Vdi, "vdi"), (Vhdx, "vhdx"), (Vmdk, "vmdk"), (Raw, "raw")] {
            let path = images.path(name);
            copy((&image, Qcow2), (&path, format)).await.unwrap();
            inspect(&path, format, &[]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn b5_what_is_no_file_is_no_image() {
        let images = Images::new();
        let (directory, fifo, device) = (images.path("d"), images.path("f"), images.path("n"));
        fs::create_dir(directory.as_path()).unwrap();
        nix::unistd::mkfifo(fifo.as_path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/dev/null", device.as_path()).unwrap();
        for path in [directory, fifo, device] {
            for format in [Qcow2, Raw] {
                let refused = inspect(&path, format, &[]).await;
                assert_eq!(code(refused), ErrorCode::InvalidFormat, "{path}");
                let refused = info(&path, format, Sharing::Refuse).await;
                assert_eq!(code(refused), ErrorCode::InvalidFormat, "{path}");
            }
        }
        let missing = inspect(&images.path("missing"), Raw, &[]).await;
        assert_eq!(code(missing), ErrorCode::ImageNotFound);
    }

    #[tokio::test]
    async fn b7_a_backing_file_that_leads_elsewhere_is_refused_by_every_verb() {
        let images = Images::new();
        let secret = images.path("secret");
        fs::write(secret.as_path(), "root:x").unwrap();
        let hostile = [
            (secret.as_str(), "raw"),
            ("/etc/shadow", "raw"),
            ("/etc/shadow", "qcow2"),
            ("/dev/sda", "raw"),
            ("missing", "qcow2"),
            ("nbd://127.0.0.1:1/x", "raw"),
            ("json:{\"driver\":\"null-co\"}", "qcow2"),
            ("fat:/etc", "raw"),
        ];
        for (backing, format) in hostile {
            let image = images.qcow2("a");
            qemu_img(&[
                "rebase",
                "-u",
                "-f",
                "qcow2",
                "-b",
                backing,
                "-F",
                format,
                image.as_str(),
            ]);
            let unsafe_backing = ErrorCode::UnsafeBackingFile;
            assert_eq!(
                code(inspect(&image, Qcow2, &[]).await),
                unsafe_backing,
                "{backing}"
            );
            let copied = copy((&image, Qcow2), (&images.path("b"), Raw)).await;
            assert_eq!(code(copied), unsafe_backing, "{backing}");
            let resized = resize(&image, Qcow2, ByteSize::mib(9), Resize::Grow).await;
            assert_eq!(code(resized), unsafe_backing, "{backing}");
            assert_eq!(
                code(check(&image, Qcow2, &Job::default()).await),
                unsafe_backing
            );
            assert_eq!(
                code(create_snapshot(&image, &snap("s")).await),
                unsafe_backing
            );
            let over = CreateImage::over(images.path("top"), image.clone());
            assert_eq!(code(create(&over, &Job::default()).await), unsafe_backing);
            let told = info(&image, Qcow2, Sharing::Refuse).await.unwrap();
            assert!(
                told.backing_file.is_some(),
                "the info verb opens the image alone"
            );
        }
        assert_eq!(images.names(), ["a", "secret"]);
    }

    #[tokio::test]
    async fn b7_a_format_that_is_not_recorded_would_be_probed_so_it_is_refused() {
        let images = Images::new();
        let (base, top) = (images.qcow2("base"), images.path("top"));
        create(&CreateImage::over(top.clone(), base), &Job::default())
            .await
            .unwrap();
        // The extension that records it becomes one that nobody knows.
        let bytes = fs::read(top.as_path()).unwrap();
        let magic = 0xe279_2aca_u32.to_be_bytes();
        let at = bytes.windows(4).position(|window| window == magic).unwrap();
        forge(&top, at as u64, b"????");
        assert_eq!(
            code(inspect(&top, Qcow2, &[]).await),
            ErrorCode::UnsafeBackingFile
        );
    }

    #[tokio::test]
    async fn b7_an_external_data_file_is_refused() {
        let images = Images::new();
        let (image, data) = (images.path("a"), images.path("data"));
        let option = format!("data_file={data}");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &option,
            image.as_str(),
            "1M",
        ]);
        for refused in [
            inspect(&image, Qcow2, &[]).await.map(drop),
            info(&image, Qcow2, Sharing::Refuse).await.map(drop),
        ] {
            assert_eq!(code(refused), ErrorCode::UnsafeBackingFile);
        }
    }

    #[tokio::test]
    async fn b7_a_chain_in_a_circle_ends() {
        let images = Images::new();
        let (a, b) = (images.qcow2("a"), images.qcow2("b"));
        for (image, backing) in [(&a, "b"), (&b, "a")] {
            qemu_img(&[
                "rebase",
                "-u",
                "-f",
                "qcow2",
                "-b",
                backing,
                "-F",
                "qcow2",
                image.as_str(),
            ]);
        }
        assert_eq!(
            code(inspect(&a, Qcow2, &[]).await),
            ErrorCode::UnsafeBackingFile
        );
    }

    #[tokio::test]
    async fn b4_nothing_outside_the_allowed_directories_is_opened() {
        let images = Images::new();
        for dir in ["in", "out"] {
            fs::create_dir(images.path(dir).as_path()).unwrap();
        }
        let allowed = [images.path("in"), images.path("not-there")];
        let (outside, inside) = (images.qcow2("out/a"), images.qcow2("in/base"));
        let refused = inspect(&outside, Qcow2, &allowed).await;
        assert_eq!(code(refused), ErrorCode::StoragePermissionDenied);

        let link = images.path("in/link");
        symlink(outside.as_path(), link.as_path()).unwrap();
        let refused = inspect(&link, Qcow2, &allowed).await;
        assert_eq!(code(refused), ErrorCode::StoragePermissionDenied);

        let top = images.path("in/top");
        for (backing, fits) in [("base", true), ("../out/a", false), ("link", false)] {
            let argv = [
                "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing,
            ];
            qemu_img(&[&argv[..], &[top.as_str(), "8M"]].concat());
            let outcome = inspect(&top, Qcow2, &allowed).await;
            assert_eq!(outcome.is_ok(), fits, "{backing}: {outcome:?}");
            assert!(inspect(&top, Qcow2, &[]).await.is_ok(), "{backing}");
        }
        let over = CreateImage {
            allowed: allowed.to_vec(),
            ..CreateImage::over(images.path("in/x"), outside)
        };
        let refused = create(&over, &Job::default()).await;
        assert_eq!(code(refused), ErrorCode::StoragePermissionDenied);
        let from = inspect(&inside, Qcow2, &allowed[1..]).await;
        assert_eq!(
            code(from),
            ErrorCode::StoragePermissionDenied,
            "a missing root allows nothing"
        );
    }

    #[tokio::test]
    async fn b8_a_raw_disk_with_a_forged_header_stays_raw() {
        let images = Images::new();
        let (image, forged, out) = (images.qcow2("a"), images.path("raw"), images.path("out"));
        qemu_img(&[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-b",
            "/etc/shadow",
            "-F",
            "raw",
            image.as_str(),
        ]);
        fs::rename(image.as_path(), forged.as_path()).unwrap();
        let length = fs::metadata(forged.as_path()).unwrap().len();
        let told = info(&forged, Raw, Sharing::Refuse).await.unwrap();
        assert_eq!(told.virtual_size.as_bytes(), length.next_multiple_of(512));
        assert_eq!(told.backing_file, None);
        copy((&forged, Raw), (&out, Raw)).await.unwrap();
        let (before, after) = (fs::read(forged.as_path()), fs::read(out.as_path()));
        assert_eq!(
            before.unwrap()[..],
            after.unwrap()[..usize::try_from(length).unwrap()]
        );
    }

    #[tokio::test]
    async fn b9_damaged_images_are_refused_before_a_machine_starts() {
        let images = Images::new();
        let sound = images.random("sound", 4);
        let length = fs::metadata(sound.as_path()).unwrap().len();
        let forged: [(&str, ErrorCode, u64, &[u8]); 5] = [
            ("marked corrupt", ErrorCode::ImageCorrupt, 79, &[2]),
            ("dirty", ErrorCode::ImageCorrupt, 79, &[1]),
            ("no magic", ErrorCode::InvalidFormat, 0, &[0; 4]),
            ("unknown feature", ErrorCode::InvalidFormat, 75, &[1]),
            ("impossible size", ErrorCode::ImageCorrupt, 24, &[0x7f; 8]),
        ];
        for (what, expected, offset, bytes) in forged {
            let path = images.path(what);
            fs::copy(sound.as_path(), path.as_path()).unwrap();
            forge(&path, offset, bytes);
            assert_eq!(code(inspect(&path, Qcow2, &[]).await), expected, "{what}");
        }
        for length in [100, 0x1_8000, 0x3_0000] {
            let path = images.path(&format!("cut to {length}"));
            fs::copy(sound.as_path(), path.as_path()).unwrap();
            cut(&path, length);
            let refused = inspect(&path, Qcow2, &[]).await;
            assert_eq!(code(refused), ErrorCode::ImageCorrupt, "{length}");
        }
        let path = images.path("data cut");
        fs::copy(sound.as_path(), path.as_path()).unwrap();
        cut(&path, length / 2);
        // Lost data alone is found by QEMU's own check, which reads every table.
        let deep = check(&path, Qcow2, &Job::default()).await.unwrap();
        assert!(deep.corruptions > 0, "{deep:?}");
    }

    fn cut(path: &HostPath, length: u64) {
        let file = File::options().write(true).open(path.as_path()).unwrap();
        file.set_len(length).unwrap();
    }

    #[tokio::test]
    async fn b9_an_encrypted_image_is_refused_without_its_secret() {
        let images = Images::new();
        let path = images.qcow2("a");
        for (method, name) in [(1, "AES"), (2, "LUKS")] {
            forge(&path, 35, &[method]);
            let refused = inspect(&path, Qcow2, &[]).await.unwrap_err();
            assert_eq!(refused.code(), ErrorCode::InvalidFormat, "{name}");
            assert!(refused.to_string().contains("encrypted"), "{refused}");
        }
        forge(&path, 35, &[1]);
        let told = info(&path, Qcow2, Sharing::Refuse).await.unwrap();
        assert!(told.encrypted);
    }

    #[tokio::test]
    async fn b7_a_vmdk_that_brings_other_files_is_refused() {
        let images = Images::new();
        let (secret, text, child) = (images.path("secret"), images.path("text"), images.path("c"));
        fs::write(secret.as_path(), vec![b's'; 512]).unwrap();
        let list = format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
             createType=\"monolithicFlat\"\nRW 1 FLAT \"{secret}\" 0\n"
        );
        fs::write(text.as_path(), list).unwrap();
        let base = images.path("base");
        qemu_img(&["create", "-q", "-f", "vmdk", base.as_str(), "1M"]);
        let argv = [
            "create",
            "-q",
            "-f",
            "vmdk",
            "-b",
            base.as_str(),
            "-F",
            "vmdk",
        ];
        qemu_img(&[&argv[..], &[child.as_str()]].concat());
        for image in [text, child] {
            let refused = copy((&image, Vmdk), (&images.path("out"), Raw)).await;
            assert_eq!(code(refused), ErrorCode::UnsafeBackingFile, "{image}");
        }
        copy((&base, Vmdk), (&images.path("good"), Raw))
            .await
            .unwrap();

        let stream = images.path("stream");
        let argv = [
            "convert",
            "-f",
            "vmdk",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
        ];
        qemu_img(&[&argv[..], &[base.as_str(), stream.as_str()]].concat());
        inspect(&stream, Vmdk, &[]).await.unwrap();
    }
}

mod changing {
    use super::*;

    #[tokio::test]
    async fn disks_grow() {
        let images = Images::new();
        for format in [Qcow2, Raw] {
            let path = images.path(format.as_str());
            let image = CreateImage {
                format,
                ..CreateImage::new(path.clone(), MIB)
            };
            create(&image, &Job::default()).await.unwrap();
            for size in [ByteSize::mib(9), ByteSize::mib(9)] {
                resize(&path, format, size, Resize::Grow).await.unwrap();
                let now = info(&path, format, Sharing::Refuse).await.unwrap();
                assert_eq!(now.virtual_size, size);
            }
        }
    }

    #[tokio::test]
    async fn b11_shrinking_needs_consent() {
        let images = Images::new();
        for format in [Qcow2, Raw] {
            let path = images.path(format.as_str());
            let image = CreateImage {
                format,
                ..CreateImage::new(path.clone(), ByteSize::mib(8))
            };
            create(&image, &Job::default()).await.unwrap();
            let refused = resize(&path, format, MIB, Resize::Grow).await;
            assert_eq!(code(refused), ErrorCode::DataLossRefused);
            let size = || async {
                info(&path, format, Sharing::Refuse)
                    .await
                    .unwrap()
                    .virtual_size
            };
            assert_eq!(size().await, ByteSize::mib(8));
            resize(&path, format, MIB, Resize::GrowOrShrink)
                .await
                .unwrap();
            assert_eq!(size().await, MIB);
        }
    }

    #[tokio::test]
    async fn b10_impossible_sizes_and_formats_change_nothing() {
        let images = Images::new();
        let path = images.qcow2("a");
        let before = fs::read(path.as_path()).unwrap();
        for size in [0, 1 << 62, 1 << 63, u64::MAX] {
            let refused = resize(&path, Qcow2, ByteSize::bytes(size), Resize::GrowOrShrink).await;
            assert_eq!(code(refused), ErrorCode::InvalidSize, "{size}");
        }
        assert_eq!(fs::read(path.as_path()).unwrap(), before);

        let vmdk = images.path("vmdk");
        copy((&path, Qcow2), (&vmdk, Vmdk)).await.unwrap();
        let refused = resize(&vmdk, Vmdk, ByteSize::mib(9), Resize::Grow).await;
        assert_eq!(code(refused), ErrorCode::InvalidFormat);
        let refused = resize(&images.path("missing"), Raw, MIB, Resize::Grow).await;
        assert_eq!(code(refused), ErrorCode::ImageNotFound);
    }

    #[tokio::test]
    async fn a_copy_is_whole_and_says_how_far_it_is() {
        let images = Images::new();
        let base = images.random("base", 4);
        let top = images.path("top");
        create(&CreateImage::over(top.clone(), base), &Job::default())
            .await
            .unwrap();
        write_guest(&top, 9, "1M", "64k");
        let (progress, seen) = watch::channel(0.0);
        let image = ConvertImage {
            compress: true,
            ..ConvertImage::new((top.clone(), Qcow2), (images.path("copy"), Qcow2))
        };
        convert(
            &image,
            &Job {
                progress: Some(progress),
                ..Job::default()
            },
        )
        .await
        .unwrap();
        assert!((*seen.borrow() - 1.0).abs() < 1e-9, "{}", *seen.borrow());
        let told = info(&image.target, Qcow2, Sharing::Refuse).await.unwrap();
        assert_eq!(told.backing_file, None);
        qemu_img(&[
            "compare",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            top.as_str(),
            image.target.as_str(),
        ]);
    }

    #[tokio::test]
    async fn a_copy_can_be_of_a_snapshot() {
        let images = Images::new();
        let image = images.qcow2("a");
        write_guest(&image, 1, "0", "64k");
        create_snapshot(&image, &snap("then")).await.unwrap();
        write_guest(&image, 2, "0", "64k");
        let target = images.path("b");
        let plain = ConvertImage::new((image, Qcow2), (target.clone(), Qcow2));
        let then = ConvertImage {
            snapshot: Some(snap("then")),
            ..plain.clone()
        };
        convert(&then, &Job::default()).await.unwrap();
        assert!(guest_has(&target, 1, "0", "64k"));

        let unknown = ConvertImage {
            snapshot: Some(snap("x")),
            target: images.path("c"),
            ..plain
        };
        let refused = convert(&unknown, &Job::default()).await;
        assert_eq!(code(refused), ErrorCode::SnapshotNotFound);
        assert_eq!(images.names(), ["a", "b"]);
    }

    #[tokio::test]
    async fn copies_that_make_no_sense_are_refused() {
        let images = Images::new();
        let image = images.qcow2("a");
        let plain = ConvertImage::new((image.clone(), Qcow2), (images.path("b"), Raw));
        let refused = [
            ConvertImage {
                compress: true,
                ..plain.clone()
            },
            ConvertImage {
                source_format: Raw,
                snapshot: Some(snap("s")),
                ..plain
            },
        ];
        for image in refused {
            assert_eq!(
                code(convert(&image, &Job::default()).await),
                ErrorCode::InvalidFormat
            );
        }
        let missing = copy((&images.path("x"), Raw), (&images.path("b"), Raw)).await;
        assert_eq!(code(missing), ErrorCode::ImageNotFound);
        assert_eq!(images.names(), ["a"]);
    }

    #[tokio::test]
    async fn damage_is_a_result_of_check() {
        let images = Images::new();
        let image = images.random("a", 4);
        let sound = check(&image, Qcow2, &Job::default()).await.unwrap();
        assert_eq!((sound.corruptions, sound.leaks, sound.errors), (0, 0, 0));
        assert_eq!((sound.total_clusters, sound.allocated_clusters), (64, 64));

        let leaky = images.path("leaky");
        fs::copy(image.as_path(), leaky.as_path()).unwrap();
        let file = File::options().write(true).open(leaky.as_path()).unwrap();
        file.set_len(128 << 16).unwrap();
        // The refcounts of clusters nothing uses (16 bits each, in the block at 0x20000).
        forge(&leaky, 0x2_0000 + 2 * 100, &[0, 1, 0, 1]);
        let found = check(&leaky, Qcow2, &Job::default()).await.unwrap();
        assert!(found.leaks > 0 && found.corruptions == 0, "{found:?}");

        forge(&image, 0x2_0000 + 2 * 10, &[0; 8]);
        let found = check(&image, Qcow2, &Job::default()).await.unwrap();
        assert!(found.corruptions > 0, "{found:?}");

        let raw = images.path("raw");
        fs::write(raw.as_path(), vec![0; 4096]).unwrap();
        let refused = check(&raw, Raw, &Job::default()).await;
        assert_eq!(code(refused), ErrorCode::InvalidFormat);
    }
}

mod snapshots {
    use super::*;

    #[tokio::test]
    async fn a_disk_goes_back_to_its_snapshot() {
        let images = Images::new();
        let image = images.qcow2("a");
        write_guest(&image, 1, "0", "64k");
        create_snapshot(&image, &snap("before-update"))
            .await
            .unwrap();
        write_guest(&image, 2, "0", "64k");
        create_snapshot(&image, &snap("after")).await.unwrap();

        let listed = list_snapshots(&image, Sharing::Refuse).await.unwrap();
        let names: Vec<_> = listed
            .iter()
            .map(|s| (s.id.as_str(), s.name.as_str()))
            .collect();
        assert_eq!(names, [("1", "before-update"), ("2", "after")]);
        assert_eq!(listed[0].vm_state_size, ByteSize::bytes(0));
        assert_eq!(listed[0].vm_clock, "00:00:00.000");
        assert!(listed[0].date.starts_with("20") && listed[0].date.ends_with('Z'));

        revert_snapshot(&image, &snap("before-update"))
            .await
            .unwrap();
        assert!(guest_has(&image, 1, "0", "64k"));
        assert!(
            snapshot_exists(&image, &snap("after"), Sharing::Refuse)
                .await
                .unwrap()
        );
        delete_snapshot(&image, &snap("after")).await.unwrap();
        assert!(
            !snapshot_exists(&image, &snap("after"), Sharing::Refuse)
                .await
                .unwrap()
        );
    }

    #[tokio::test]
    async fn b17_what_is_unknown_is_said_to_be() {
        let images = Images::new();
        let (image, name) = (images.qcow2("a"), snap("nope"));
        let reverted = revert_snapshot(&image, &name).await;
        assert_eq!(code(reverted), ErrorCode::SnapshotNotFound);
        delete_snapshot(&image, &name).await.unwrap();

        let missing = images.path("missing");
        assert!(
            !snapshot_exists(&missing, &name, Sharing::Refuse)
                .await
                .unwrap()
        );
        let gone = ErrorCode::ImageNotFound;
        assert_eq!(code(create_snapshot(&missing, &name).await), gone);
        assert_eq!(code(revert_snapshot(&missing, &name).await), gone);
        assert_eq!(code(delete_snapshot(&missing, &name).await), gone);
        assert_eq!(code(list_snapshots(&missing, Sharing::Refuse).await), gone);

        let raw = images.path("raw");
        fs::write(raw.as_path(), vec![0; 4096]).unwrap();
        assert_eq!(
            code(create_snapshot(&raw, &name).await),
            ErrorCode::InvalidFormat
        );
        let error = snapshot_exists(&raw, &name, Sharing::Refuse).await;
        assert_eq!(code(error), ErrorCode::InvalidFormat);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn s3_s10_of_ten_at_once_by_two_names_exactly_one_makes_the_snapshot() {
        let images = Images::new();
        let (image, alias) = (images.qcow2("a"), images.path("alias"));
        symlink(image.as_path(), alias.as_path()).unwrap();
        let attempts: Vec<_> = (0..10)
            .map(|n| {
                let path = if n % 2 == 0 {
                    image.clone()
                } else {
                    alias.clone()
                };
                tokio::spawn(async move { create_snapshot(&path, &snap("s")).await })
            })
            .collect();
        let mut made = 0;
        for attempt in attempts {
            match attempt.await.unwrap() {
                Ok(()) => made += 1,
                Err(error) => assert_eq!(error.code(), ErrorCode::SnapshotAlreadyExists, "{error}"),
            }
        }
        assert_eq!(made, 1);
        assert_eq!(
            list_snapshots(&image, Sharing::Refuse).await.unwrap().len(),
            1
        );
    }
}

/// A QEMU that holds an image, without a guest running in it.
struct Qemu(Child);

impl Qemu {
    fn holding(image: &HostPath) -> Self {
        let drive = format!("file={image},format=qcow2,if=none,id=d0");
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-S",
                "-nodefaults",
                "-display",
                "none",
                "-qmp",
                "stdio",
            ])
            .args(["-drive", &drive, "-device", "virtio-blk-pci,drive=d0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let hello = b"{\"execute\":\"qmp_capabilities\"}\n";
        qemu.stdin.as_mut().unwrap().write_all(hello).unwrap();
        let mut lines = BufReader::new(qemu.stdout.as_mut().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("\"return\"")),
            "QEMU did not start"
        );
        Self(qemu)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

mod in_use {
    use super::*;

    #[tokio::test]
    async fn f20_f21_every_verb_refuses_a_running_machines_disk_and_names_the_holder() {
        let images = Images::new();
        let (image, name) = (images.qcow2("a"), snap("s"));
        let qemu = Qemu::holding(&image);
        let fresh = images.path("b");
        let over = CreateImage::over(fresh.clone(), image.clone());
        let refused = [
            ("start", ensure_unused(&image).await),
            ("info", info(&image, Qcow2, Sharing::Refuse).await.map(drop)),
            (
                "check",
                check(&image, Qcow2, &Job::default()).await.map(drop),
            ),
            (
                "resize",
                resize(&image, Qcow2, ByteSize::mib(9), Resize::Grow).await,
            ),
            ("shrink", resize(&image, Qcow2, MIB, Resize::Grow).await),
            ("convert", copy((&image, Qcow2), (&fresh, Raw)).await),
            ("overlay", create(&over, &Job::default()).await),
            ("snapshot", create_snapshot(&image, &name).await),
            ("revert", revert_snapshot(&image, &name).await),
            ("delete", delete_snapshot(&image, &name).await),
            (
                "list",
                list_snapshots(&image, Sharing::Refuse).await.map(drop),
            ),
            (
                "exists",
                snapshot_exists(&image, &name, Sharing::Refuse)
                    .await
                    .map(drop),
            ),
        ];
        for (verb, outcome) in refused {
            let error = outcome.unwrap_err();
            assert_eq!(error.code(), ErrorCode::ImageInUse, "{verb}: {error}");
            assert_eq!(error.context()["holder"]["pid"], qemu.0.id(), "{verb}");
            assert!(error.to_string().contains("qemu-system"), "{verb}: {error}");
        }
        assert_eq!(images.names(), ["a"]);

        assert!(info(&image, Qcow2, Sharing::Force).await.is_ok());
        assert!(
            !snapshot_exists(&image, &name, Sharing::Force)
                .await
                .unwrap()
        );
        drop(qemu);
        ensure_unused(&image).await.unwrap();
        create_snapshot(&image, &name).await.unwrap();
    }

    #[tokio::test]
    async fn a_running_machines_backing_file_may_be_read_but_not_changed() {
        let images = Images::new();
        let (base, top) = (images.qcow2("base"), images.path("top"));
        create(
            &CreateImage::over(top.clone(), base.clone()),
            &Job::default(),
        )
        .await
        .unwrap();
        let _qemu = Qemu::holding(&top);
        let grown = resize(&base, Qcow2, ByteSize::mib(9), Resize::Grow).await;
        assert_eq!(code(grown), ErrorCode::ImageInUse);
        assert_eq!(
            code(create_snapshot(&base, &snap("s")).await),
            ErrorCode::ImageInUse
        );

        let second = CreateImage::over(images.path("second"), base.clone());
        create(&second, &Job::default()).await.unwrap();
        copy((&base, Qcow2), (&images.path("copy"), Qcow2))
            .await
            .unwrap();
    }
}

mod faults {
    use super::*;

    /// A copy that takes a while: compressing what cannot be compressed.
    fn long_copy(images: &Images) -> ConvertImage {
        let source = images.random("source", 160);
        ConvertImage {
            compress: true,
            ..ConvertImage::new((source, Qcow2), (images.path("target"), Qcow2))
        }
    }

    /// A job whose progress can be awaited.
    fn watched() -> (Job, watch::Receiver<f64>) {
        let (progress, seen) = watch::channel(0.0);
        (
            Job {
                progress: Some(progress),
                ..Job::default()
            },
            seen,
        )
    }

    /// Lets the copy get going, does something to it, and waits for its end.
    async fn disturbed(
        copy: impl Future<Output = Result<(), ImageError>>,
        mut seen: watch::Receiver<f64>,
        disturb: impl FnOnce(),
    ) -> Result<(), ImageError> {
        let mut copy = std::pin::pin!(copy);
        tokio::select! {
            outcome = &mut copy => return outcome,
            under_way = seen.wait_for(|done| *done > 0.0) => drop(under_way.unwrap()),
        }
        disturb();
        copy.await
    }

    /// The `qemu-img` that works in `images`.
    fn worker_in(images: &Images) -> Option<Pid> {
        let dir = images.0.path().to_str().unwrap();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .find(|pid: &i32| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let words = String::from_utf8_lossy(&words);
                words.starts_with("qemu-img") && words.contains(dir)
            })
            .map(Pid::from_raw)
    }

    /// Nothing but the source is there, unchanged.
    async fn only_the_source_is_left(images: &Images, before: (u64, i64)) {
        assert_eq!(images.names(), ["source"]);
        assert_eq!(stamp(images), before);
        let sound = check(&images.path("source"), Qcow2, &Job::default())
            .await
            .unwrap();
        assert_eq!((sound.corruptions, sound.leaks), (0, 0));
    }

    fn stamp(images: &Images) -> (u64, i64) {
        let source = fs::metadata(images.path("source").as_path()).unwrap();
        (source.len(), source.mtime_nsec())
    }

    #[tokio::test]
    async fn f19_a_cancelled_copy_leaves_nothing() {
        let images = Images::new();
        let image = long_copy(&images);
        let before = stamp(&images);
        let (job, seen) = watched();
        let outcome = disturbed(convert(&image, &job), seen, || job.cancel.cancel()).await;
        assert_eq!(code(outcome), ErrorCode::StorageAborted);
        assert_eq!(worker_in(&images), None);
        only_the_source_is_left(&images, before).await;
    }

    #[tokio::test]
    async fn f19_a_copy_nobody_waits_for_ends_and_leaves_nothing() {
        let images = Images::new();
        let image = long_copy(&images);
        let before = stamp(&images);
        let (job, mut seen) = watched();
        tokio::select! {
            outcome = convert(&image, &job) => panic!("too fast: {outcome:?}"),
            under_way = seen.wait_for(|done| *done > 0.0) => drop(under_way.unwrap()),
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while images.names().len() > 1 || worker_in(&images).is_some() {
            assert!(
                Instant::now() < deadline,
                "left behind: {:?}",
                images.names()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        only_the_source_is_left(&images, before).await;
    }

    #[tokio::test]
    async fn f19_a_killed_copy_leaves_nothing() {
        let images = Images::new();
        let image = long_copy(&images);
        let before = stamp(&images);
        let (job, seen) = watched();
        let outcome = disturbed(convert(&image, &job), seen, || {
            kill(worker_in(&images).unwrap(), Signal::SIGKILL).unwrap();
        });
        let outcome = outcome.await;
        assert_eq!(code(outcome), ErrorCode::CommandFailed);
        only_the_source_is_left(&images, before).await;
    }

    #[tokio::test]
    async fn f19_a_hung_copy_ends_at_its_deadline() {
        let images = Images::new();
        let image = long_copy(&images);
        let before = stamp(&images);
        let (job, seen) = watched();
        let job = Job {
            deadline: Some(Duration::from_secs(4)),
            ..job
        };
        let outcome = disturbed(convert(&image, &job), seen, || {
            kill(worker_in(&images).unwrap(), Signal::SIGSTOP).unwrap();
        });
        let outcome = outcome.await;
        assert_eq!(code(outcome), ErrorCode::StorageTimeout);
        assert_eq!(worker_in(&images), None);
        only_the_source_is_left(&images, before).await;
    }

    #[tokio::test]
    async fn f19_a_resize_nobody_waits_for_is_carried_to_its_end() {
        let images = Images::new();
        let path = images.qcow2("a");
        let mut begun = Box::pin(resize(&path, Qcow2, ByteSize::mib(64), Resize::Grow));
        assert!(futures_util::poll!(begun.as_mut()).is_pending());
        drop(begun);
        let deadline = Instant::now() + Duration::from_secs(60);
        let size = || async {
            info(&path, Qcow2, Sharing::Force)
                .await
                .unwrap()
                .virtual_size
        };
        while size().await != ByteSize::mib(64) {
            assert!(Instant::now() < deadline, "the resize was given up");
        }
        let sound = check(&path, Qcow2, &Job::default()).await.unwrap();
        assert_eq!((sound.corruptions, sound.leaks), (0, 0));
    }

    #[tokio::test]
    async fn f9_what_a_killed_process_left_half_made_is_swept() {
        let images = Images::new();
        let (left, busy) = (partial_name("a", 'a'), partial_name("b", 'b'));
        for name in [left.as_str(), busy.as_str(), ".mine.partial", "c.qcow2"] {
            images.qcow2(name);
        }
        let _working = Qemu::holding(&images.path(&busy));
        let dir = path_in(images.0.path(), "");
        let swept = sweep_partials(&dir).await.unwrap();
        assert_eq!(swept.len(), 1);
        assert_eq!(images.names(), [&*busy, ".mine.partial", "c.qcow2"]);
        let nowhere = sweep_partials(&images.path("nowhere")).await;
        assert_eq!(code(nowhere), ErrorCode::ImageNotFound);
    }

    fn partial_name(file: &str, digit: char) -> String {
        format!(".{file}.{}.partial", digit.to_string().repeat(32))
    }

    #[tokio::test]
    async fn f52_what_is_cancelled_before_it_starts_makes_nothing() {
        let images = Images::new();
        let source = images.qcow2("source");
        let job = Job::default();
        job.cancel.cancel();
        let made = create(&CreateImage::new(images.path("a"), MIB), &job).await;
        assert_eq!(code(made), ErrorCode::StorageAborted);
        let plain = ConvertImage::new((source, Qcow2), (images.path("b"), Raw));
        assert_eq!(code(convert(&plain, &job).await), ErrorCode::StorageAborted);
        assert_eq!(images.names(), ["source"]);
    }

    #[test]
    fn f15_a_full_disk_is_said_to_be_full_and_nothing_is_left() {
        kit::in_private_network(|| async {
            let images = Images::new();
            let source = images.random("source", 8);
            let disk = SmallDisk::new(4096);
            let target = path_in(disk.path(), "No such file or directory");
            for preallocation in [Preallocation::Falloc, Preallocation::Full] {
                for format in [Qcow2, Raw] {
                    let image = CreateImage {
                        preallocation,
                        format,
                        ..CreateImage::new(target.clone(), ByteSize::mib(64))
                    };
                    let full = create(&image, &Job::default()).await;
                    assert_eq!(code(full), ErrorCode::InsufficientSpace, "{image:?}");
                    assert!(names_in(disk.path()).is_empty());
                }
            }
            let full = copy((&source, Qcow2), (&target, Qcow2)).await;
            assert_eq!(code(full), ErrorCode::InsufficientSpace);
            assert!(names_in(disk.path()).is_empty());

            disk.fill();
            let full = make(&target, MIB).await;
            assert_eq!(code(full), ErrorCode::InsufficientSpace);
            assert_eq!(names_in(disk.path()), ["ballast"]);
        });
    }
}
