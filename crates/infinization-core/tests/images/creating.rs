//! New images and overlays: whole or not at all, and never in the place of another file.

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

/// What `qemu-img info` says of it, but for its name and its place on the host's disk.
fn described(image: &HostPath) -> serde_json::Value {
    let mut told = inspecting::info_by_qemu(image);
    for own in ["filename", "actual-size", "children"] {
        told.as_object_mut().unwrap().remove(own);
    }
    told
}

/// The plain ones are written without `qemu-img`, and are what it would have made, whatever they lie on.
#[tokio::test]
async fn a_plain_image_is_as_qemu_img_makes_it() {
    let images = Images::new();
    let base = images.qcow2("base");
    let (ours, theirs) = (images.path("ours"), images.path("theirs"));
    let on_base = ["-F", "qcow2", "-b", base.as_str()];
    for backing in [None, Some(&base)] {
        let below: &[&str] = backing.map_or(&[], |_| &on_base);
        // Around the sizes where the level 1 table takes an entry and a cluster more, and the largest.
        for size in [8 << 20, (8 << 20) + 1, 512 << 20, (4 << 40) + 512, 2 << 50] {
            let image = CreateImage {
                size: Some(ByteSize::bytes(size)),
                backing: backing.cloned(),
                ..CreateImage::new(ours.clone(), MIB)
            };
            create(&image, &Job::default()).await.unwrap();
            let bytes = size.to_string();
            let names = [theirs.as_str(), &bytes];
            qemu_img(&[&["create", "-q", "-f", "qcow2"], below, &names].concat());
            assert_eq!(described(&ours), described(&theirs), "{size}");

            let last = (size.next_multiple_of(512) - 512).to_string();
            write_guest(&ours, 7, &last, "512");
            assert!(guest_has(&ours, 7, &last, "512") && guest_has(&ours, 0, "0", "512"));
            let found = check(&ours, Qcow2, &Job::default()).await.unwrap();
            assert_eq!((found.errors, found.leaks, found.corruptions), (0, 0, 0));
            for made in [&ours, &theirs] {
                fs::remove_file(made.as_path()).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn an_overlay_is_as_large_as_what_it_lies_on() {
    let images = Images::new();
    let base = images.path("base");
    make(&base, ByteSize::mib(24)).await.unwrap();
    let over = images.path("over");
    create(&CreateImage::over(over.clone(), base), &Job::default())
        .await
        .unwrap();
    let made = info(&over, Qcow2, Sharing::Refuse).await.unwrap();
    assert_eq!(made.virtual_size, ByteSize::mib(24));
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
