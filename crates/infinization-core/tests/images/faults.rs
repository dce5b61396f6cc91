//! Cancelled, killed, hung and out of space.

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
            progress: Some(Teller::new(move |part| {
                progress.send_replace(part);
            })),
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

/// It takes what is written and loses it: only flushing tells.
#[test]
fn f16_storage_that_gives_errors_leaves_nothing_half_made() {
    kit::in_private_network(|| async {
        let images = Images::new();
        let source = images.random("source", 8);
        let disk = AilingDisk::new();
        let [unread, target] = ["unread", "target"].map(|name| path_in(disk.path(), name));
        fs::copy(source.as_path(), unread.as_path()).unwrap();
        disk.forget("unread", 1 << 20);
        disk.fail();

        gave_an_error(make(&target, MIB).await);
        for format in [Qcow2, Raw] {
            gave_an_error(copy((&source, Qcow2), (&target, format)).await);
        }
        assert_eq!(names_in(disk.path()), ["lost+found", "unread"]);
        let copied = images.path("copied");
        for format in [Qcow2, Raw] {
            gave_an_error(copy((&unread, Qcow2), (&copied, format)).await);
        }
        assert_eq!(images.names(), ["source"]);
    });
}

#[track_caller]
fn gave_an_error(outcome: Result<(), ImageError>) {
    let failure = Failure::from(outcome.unwrap_err());
    assert_ne!(failure.code(), ErrorCode::InsufficientSpace, "{failure}");
    assert!(
        failure.to_string().contains("Input/output error"),
        "{failure}"
    );
}

/// Not a test of its own: the process that is killed while it converts.
#[tokio::test]
async fn victim() {
    let Some(orders) = victim::orders() else {
        return;
    };
    let path = |key: &str| HostPath::parse(orders[key].as_str().unwrap()).unwrap();
    let copy = ConvertImage {
        compress: true,
        ..ConvertImage::new((path("source"), Qcow2), (path("target"), Qcow2))
    };
    let (job, mut seen) = watched();
    let killed = async {
        seen.wait_for(|done| *done > 0.0).await.unwrap();
        kill(Pid::this(), Signal::SIGKILL).unwrap();
    };
    let (copied, ()) = tokio::join!(convert(&copy, &job), killed);
    panic!("it lives: {copied:?}");
}

/// Where no manager and no pool sweeps, the next attempt does.
#[tokio::test]
async fn f9_what_a_killed_process_has_half_made_goes_with_the_next_attempt() {
    let images = Images::new();
    let copy = long_copy(&images);
    let orders = json!({ "source": images.path("source"), "target": images.path("target") });
    assert!(victim::run(
        &["--exact", "faults::victim", "--quiet"],
        &orders
    ));
    let left: Vec<_> = images
        .names()
        .into_iter()
        .filter(|name| name != "source")
        .collect();
    assert!(
        matches!(&left[..], [one] if one.starts_with(".target.")),
        "{left:?}"
    );
    // Its qemu-img has outlived it.
    outwait_orphan(&images.path(&left[0]), Duration::from_secs(120)).await;
    // Somebody else makes another one.
    let theirs = ConvertImage::new(
        (images.path("source"), Qcow2),
        (images.path("other"), Qcow2),
    );
    convert(&theirs, &Job::default()).await.unwrap();
    assert!(images.names().contains(&left[0]));
    convert(&copy, &Job::default()).await.unwrap();
    assert_eq!(images.names(), ["other", "source", "target"]);
}
