//! Resize, convert, check.

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
            progress: Some(Teller::new(move |part| {
                progress.send_replace(part);
            })),
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
