//! Internal snapshots of an image nobody runs on.

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
