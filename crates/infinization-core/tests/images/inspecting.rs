//! What an image may claim about itself and others, and what is believed.

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
    let table = [
        (1, "AES", ErrorCode::InvalidFormat),
        (2, "LUKS", ErrorCode::KeyRequired),
    ];
    for (method, name, code) in table {
        forge(&path, 35, &[method]);
        let refused = inspect(&path, Qcow2, &[]).await.unwrap_err();
        assert_eq!(refused.code(), code, "{name}");
        assert!(refused.to_string().contains("encrypt"), "{refused}");
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

/// `qemu-img info`'s own words for what our reader says.
pub(super) fn info_by_qemu(image: &HostPath) -> serde_json::Value {
    let mut command = std::process::Command::new("qemu-img");
    let output = command
        .args(["info", "-f", "qcow2", "--output=json"])
        .arg(image.as_path())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn s9_an_image_is_described_as_qemu_img_describes_it() {
    let images = Images::new();
    let (base, image) = (images.qcow2("base"), images.path("image"));
    let text = |path: &HostPath| path.as_str().to_owned();
    for cluster in ["512", "65536", "2097152"] {
        for compat in ["0.10", "1.1"] {
            let options = format!("cluster_size={cluster},compat={compat}");
            let (over, on) = (text(&image), text(&base));
            qemu_img(&[
                "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &on, "-o", &options, &over,
            ]);
            for n in 0..40 {
                qemu_img(&["snapshot", "-c", &format!("name-{n}"), &over]);
            }
            qemu_img(&["snapshot", "-d", "name-7", &over]);
            if compat == "1.1" {
                for name in ["infz-1", "another"] {
                    qemu_img(&["bitmap", "--add", "-f", "qcow2", &over, name]);
                }
            }
            let expected = info_by_qemu(&image);
            let found = info(&image, Qcow2, Sharing::Refuse).await.unwrap();
            let listed = expected["snapshots"].as_array().unwrap();
            let wanted: Vec<SnapshotInfo> = listed
                .iter()
                .map(|one| serde_json::from_value(one.clone()).unwrap())
                .collect();
            assert_eq!(found.snapshots, wanted, "{options}");
            let specific = &expected["format-specific"]["data"]["bitmaps"];
            let bitmaps: Vec<&str> = specific
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| one["name"].as_str().unwrap())
                .collect();
            assert_eq!(found.bitmaps, bitmaps, "{options}");
            assert_eq!(
                serde_json::json!([
                    found.virtual_size.as_bytes(),
                    found.actual_size.as_bytes(),
                    found.cluster_size.unwrap().as_bytes(),
                    found.backing_file,
                    found.backing_format,
                    found.dirty,
                ]),
                serde_json::json!([
                    expected["virtual-size"],
                    expected["actual-size"],
                    expected["cluster-size"],
                    expected["backing-filename"],
                    expected["backing-filename-format"],
                    expected["dirty-flag"],
                ]),
                "{options}"
            );
            std::fs::remove_file(image.as_path()).unwrap();
        }
    }
}
