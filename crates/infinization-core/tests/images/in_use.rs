//! A real QEMU that holds the image.

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

#[tokio::test]
async fn k3_a_claimed_image_is_opened_by_nobody() {
    let images = Images::new();
    let image = images.qcow2("a");
    let claim = claim_now(&image).unwrap();
    let (opened, _said) = qemu_io(&image, "write 0 64k");
    assert!(!opened);
    let second = claim_now(&image).unwrap_err();
    assert_eq!(second.code(), ErrorCode::ImageInUse);
    assert_eq!(second.context()["holder"]["pid"], std::process::id());
    drop(claim);
    assert!(qemu_io(&image, "write 0 64k").0);
    let qemu = Qemu::holding(&image);
    let refused = claim_now(&image).unwrap_err();
    assert_eq!(refused.context()["holder"]["pid"], qemu.0.id());
}
