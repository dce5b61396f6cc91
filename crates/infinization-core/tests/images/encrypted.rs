//! Encrypted images with the real `qemu-img`. Keys are made slow to guess for 10 ms only.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use infinization_core::host::qemu_img::{
    ChangeKey, Encryption, Rebase, Terms, add_key, change_key, check_with_key, commit_layer,
    create_snapshot_with_key, erase_key, freeze_layer, key_opens, keys_in, make_overlay, rebase,
    reclaim, refuse_plain_text_now, resize_with_key, revert_snapshot_with_key,
};
use infinization_core::types::DiskKey;

use super::*;

const PATTERN: &[u8; 16] = b"INFZ-PLAIN-TEXT!";
const QUICK: Option<Duration> = Some(Duration::from_millis(10));

fn key(text: &str) -> DiskKey {
    DiskKey::try_from(text.to_owned()).unwrap()
}

fn quickly(text: &str) -> Encryption {
    Encryption {
        key: key(text),
        iter_time: QUICK,
    }
}

/// A raw disk of 1 MiB that holds nothing but the pattern.
fn plain(images: &Images) -> HostPath {
    let path = images.path("plain.raw");
    fs::write(path.as_path(), PATTERN.repeat(1 << 16)).unwrap();
    path
}

/// The same, encrypted with `old`.
async fn encrypted(images: &Images) -> HostPath {
    let (from, to) = (plain(images), images.path("e.qcow2"));
    let image = ConvertImage {
        encryption: Some(quickly("old")),
        ..ConvertImage::new((from, Raw), (to.clone(), Qcow2))
    };
    convert(&image, &Job::default()).await.unwrap();
    to
}

fn holds_pattern(path: &HostPath) -> bool {
    let bytes = fs::read(path.as_path()).unwrap();
    bytes.windows(PATTERN.len()).any(|at| at == PATTERN)
}

async fn opens(path: &HostPath, with: &str) -> bool {
    match check_with_key(path, Qcow2, Some(&key(with)), &Job::default()).await {
        Ok(found) => {
            assert_eq!(found.corruptions, 0);
            true
        }
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::AuthFailed, "{error}");
            assert!(!error.to_string().contains(with), "{error}");
            false
        }
    }
}

#[tokio::test]
async fn b38_a_verb_needs_the_key_and_the_right_one() {
    let images = Images::new();
    let path = images.path("a.qcow2");
    let image = CreateImage {
        encryption: Some(quickly("s3cret, with = and ü")),
        ..CreateImage::new(path.clone(), ByteSize::mib(8))
    };
    create(&image, &Job::default()).await.unwrap();
    let right = key("s3cret, with = and ü");
    let told = info(&path, Qcow2, Sharing::Refuse).await.unwrap();
    assert!(told.encrypted);
    assert_eq!(told.virtual_size, ByteSize::mib(8));

    let check = |key| check_with_key(&path, Qcow2, key, &JOB);
    let grow = |key| resize_with_key(&path, Qcow2, ByteSize::mib(9), Resize::Grow, key);
    assert_eq!(code(check(None).await), ErrorCode::KeyRequired);
    assert_eq!(code(grow(None).await), ErrorCode::KeyRequired);
    assert_eq!(
        code(create_snapshot(&path, &snap("s")).await),
        ErrorCode::KeyRequired
    );
    assert_eq!(
        code(inspect(&path, Qcow2, &[]).await),
        ErrorCode::KeyRequired
    );
    let wrong = key("s3cret");
    assert_eq!(code(check(Some(&wrong)).await), ErrorCode::AuthFailed);
    assert_eq!(code(grow(Some(&wrong)).await), ErrorCode::AuthFailed);
    check(Some(&right)).await.unwrap();
    grow(Some(&right)).await.unwrap();
    let told = info(&path, Qcow2, Sharing::Refuse).await.unwrap();
    assert_eq!(told.virtual_size, ByteSize::mib(9));

    // Whoever gives a key takes the image for encrypted.
    let other = images.qcow2("b.qcow2");
    let checked = check_with_key(&other, Qcow2, Some(&right), &JOB).await;
    assert_eq!(code(checked), ErrorCode::InvalidFormat);
    for (format, backing) in [(Raw, None), (Qcow2, Some(other.clone()))] {
        let image = CreateImage {
            format,
            backing,
            encryption: Some(quickly("k")),
            ..CreateImage::new(images.path("c"), ByteSize::mib(8))
        };
        let made = create(&image, &Job::default()).await;
        assert_eq!(code(made), ErrorCode::InvalidFormat);
    }
    assert_eq!(images.names(), ["a.qcow2", "b.qcow2"]);
}

static JOB: std::sync::LazyLock<Job> = std::sync::LazyLock::new(Job::default);

#[tokio::test]
async fn what_is_encrypted_stays_so_unless_it_is_said() {
    let images = Images::new();
    let path = encrypted(&images).await;
    assert!(!holds_pattern(&path), "the pattern is in the file");
    let copy = |encryption, target: &str, format, decrypt, compress| ConvertImage {
        encryption,
        decrypt,
        compress,
        ..ConvertImage::new((path.clone(), Qcow2), (images.path(target), format))
    };
    let table = [
        (None, Qcow2, false, false, ErrorCode::KeyRequired),
        (None, Raw, false, false, ErrorCode::KeyRequired),
        (
            Some(quickly("old")),
            Raw,
            false,
            false,
            ErrorCode::PlainTextRefused,
        ),
        (
            Some(quickly("old")),
            Qcow2,
            false,
            true,
            ErrorCode::InvalidFormat,
        ),
        (
            Some(quickly("other")),
            Qcow2,
            false,
            false,
            ErrorCode::AuthFailed,
        ),
        (
            Some(quickly("other")),
            Raw,
            true,
            false,
            ErrorCode::AuthFailed,
        ),
    ];
    for (n, (key, format, decrypt, compress, expected)) in table.into_iter().enumerate() {
        let refused = convert(&copy(key, "x", format, decrypt, compress), &JOB).await;
        assert_eq!(code(refused), expected, "{n}");
    }
    assert_eq!(images.names(), ["e.qcow2", "plain.raw"]);

    convert(
        &copy(Some(quickly("old")), "copy", Qcow2, false, false),
        &JOB,
    )
    .await
    .unwrap();
    let copied = images.path("copy");
    assert!(opens(&copied, "old").await && !holds_pattern(&copied));
    convert(
        &copy(Some(quickly("old")), "back.raw", Raw, true, false),
        &JOB,
    )
    .await
    .unwrap();
    let (back, plain) = (images.path("back.raw"), images.path("plain.raw"));
    assert!(fs::read(back.as_path()).unwrap() == fs::read(plain.as_path()).unwrap());
}

#[tokio::test]
async fn nothing_plain_is_put_on_an_encrypted_image() {
    let images = Images::new();
    let path = encrypted(&images).await;
    let over = images.path("over.qcow2");
    let image = CreateImage::over(over.clone(), path.clone());
    let made = create(&image, &Job::default()).await;
    assert_eq!(code(made), ErrorCode::PlainTextRefused);
    let refused = refuse_plain_text_now(&path, Qcow2, "a backup of it");
    assert_eq!(code(refused), ErrorCode::PlainTextRefused);
    assert_eq!(images.names(), ["e.qcow2", "plain.raw"]);

    // Nor is one taken that somebody else has put there.
    let args = ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"];
    qemu_img(&[&args[..], &[path.as_str(), over.as_str(), "1M"]].concat());
    let refused = inspect(&over, Qcow2, &[]).await;
    assert_eq!(code(refused), ErrorCode::UnsafeBackingFile);
}

fn change(old: &str, new: &str) -> ChangeKey {
    ChangeKey {
        old: key(old),
        new: key(new),
        iter_time: QUICK,
    }
}

#[tokio::test]
async fn b38_the_key_is_changed_and_the_old_one_is_gone() {
    let images = Images::new();
    let path = encrypted(&images).await;
    let before = fs::read(path.as_path()).unwrap();
    let refused = change_key(&path, &change("wrong", "new")).await;
    assert_eq!(code(refused), ErrorCode::AuthFailed);
    assert!(
        fs::read(path.as_path()).unwrap() == before,
        "it was changed"
    );

    change_key(&path, &change("old", "new")).await.unwrap();
    assert!(opens(&path, "new").await);
    assert!(!opens(&path, "old").await);
    change_key(&path, &change("old", "new")).await.unwrap();
    change_key(&path, &change("new", "new")).await.unwrap();
    let refused = change_key(&path, &change("old", "old")).await;
    assert_eq!(code(refused), ErrorCode::AuthFailed);
    let plain = images.qcow2("b.qcow2");
    let refused = change_key(&plain, &change("old", "new")).await;
    assert_eq!(code(refused), ErrorCode::InvalidFormat);
}

#[tokio::test]
async fn f39_a_change_that_was_interrupted_is_finished_by_the_same_call() {
    let images = Images::new();
    let path = encrypted(&images).await;
    // The new key is there, the old one is not erased yet.
    let (old, new) = (images.path("old"), images.path("new"));
    fs::write(old.as_path(), "old").unwrap();
    fs::write(new.as_path(), "new").unwrap();
    let image = format!(
        "driver=qcow2,encrypt.format=luks,encrypt.key-secret=o,file.driver=file,file.filename={path}"
    );
    qemu_img(&[
        "amend",
        "--object",
        &format!("secret,id=o,file={old}"),
        "--object",
        &format!("secret,id=n,file={new}"),
        "-o",
        "encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10",
        "--image-opts",
        &image,
    ]);
    assert!(opens(&path, "old").await && opens(&path, "new").await);
    change_key(&path, &change("old", "new")).await.unwrap();
    assert!(opens(&path, "new").await && !opens(&path, "old").await);
}

/// What every `qemu-img` of ours was told, while `stop` is not set.
fn watch_programs(stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<BTreeSet<Vec<u8>>> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !stop.load(Ordering::Relaxed) {
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let read = |file| fs::read(entry.path().join(file)).unwrap_or_default();
                let command = read("cmdline");
                if command.starts_with(b"qemu-img") {
                    seen.insert([command, read("environ")].concat());
                }
            }
        }
        seen
    })
}

#[tokio::test]
async fn b38_no_key_is_in_an_argv_or_an_environment() {
    let images = Images::new();
    let path = encrypted(&images).await;
    let stop = Arc::new(AtomicBool::new(false));
    let watching = watch_programs(&stop);
    let slowly = ChangeKey {
        iter_time: Some(Duration::from_millis(500)),
        ..change("old", "an-unusual-new-key")
    };
    change_key(&path, &slowly).await.unwrap();
    assert!(opens(&path, "an-unusual-new-key").await);
    stop.store(true, Ordering::Relaxed);
    let seen = watching.join().unwrap();
    let has = |words: &[u8]| {
        seen.iter()
            .any(|told| told.windows(words.len()).any(|at| at == words))
    };
    assert!(
        has(b"amend") && has(path.as_str().as_bytes()),
        "nothing was seen"
    );
    assert!(!has(b"an-unusual-new-key"));
}

/// What the image holds, read by the verb that decrypts.
async fn content(images: &Images, path: &HostPath) -> Vec<u8> {
    let raw = images.path("content.raw");
    let copy = ConvertImage {
        encryption: Some(quickly("old")),
        decrypt: true,
        ..ConvertImage::new((path.clone(), Qcow2), (raw.clone(), Raw))
    };
    convert(&copy, &JOB).await.unwrap();
    let bytes = fs::read(raw.as_path()).unwrap();
    fs::remove_file(raw.as_path()).unwrap();
    bytes
}

/// Has the upper layer of a chain hold `byte` in 64 KiB from `cluster` on; zeros as such, without data.
fn write(images: &Images, chain: &[&HostPath], cluster: usize, byte: u8) {
    let key = images.path("key");
    fs::write(key.as_path(), "old").unwrap();
    let open = |below: serde_json::Value, file: &&HostPath| {
        serde_json::json!({
            "driver": "qcow2", "encrypt": { "format": "luks", "key-secret": "k" },
            "file": { "driver": "file", "filename": file }, "backing": below,
        })
    };
    let image = chain.iter().rev().fold(serde_json::Value::Null, open);
    let what = match byte {
        0 => "-z".to_owned(),
        byte => format!("-P {byte}"),
    };
    let status = std::process::Command::new("qemu-io")
        .arg("--object")
        .arg(format!("secret,id=k,file={key}"))
        .args(["-c", &format!("write {what} {}k 64k", cluster * 64)])
        .arg(format!("json:{image}"))
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
    fs::remove_file(key.as_path()).unwrap();
}

fn cluster(content: &[u8], at: usize) -> &[u8] {
    &content[at << 16..][..1 << 16]
}

#[tokio::test]
async fn b38_an_overlay_is_encrypted_and_what_opens_the_one_opens_the_other() {
    let images = Images::new();
    let base = encrypted(&images).await;
    let over = images.path("over.qcow2");
    make_overlay(&over, &base, MIB).await.unwrap();
    assert!(opens(&over, "old").await && !opens(&over, "new").await);
    assert_eq!(content(&images, &over).await, content(&images, &base).await);
    write(&images, &[&over, &base], 3, 0x41);
    let bytes = fs::read(over.as_path()).unwrap();
    assert!(
        !bytes
            .windows(64)
            .any(|at| at.iter().all(|byte| *byte == 0x41))
    );
    let held = content(&images, &over).await;
    assert!(cluster(&held, 3).iter().all(|byte| *byte == 0x41));
    assert_eq!(&cluster(&held, 4)[..16], PATTERN);
    // What is inside it, and its size.
    let with = key("old");
    create_snapshot_with_key(&over, &snap("s"), Some(&with))
        .await
        .unwrap();
    write(&images, &[&over, &base], 3, 0x42);
    revert_snapshot_with_key(&over, &snap("s"), Some(&with))
        .await
        .unwrap();
    assert_eq!(content(&images, &over).await, held);
    resize_with_key(&over, Qcow2, ByteSize::mib(2), Resize::Grow, Some(&with))
        .await
        .unwrap();
    let grown = content(&images, &over).await;
    assert_eq!(&grown[..1 << 20], held);
    assert!(grown[1 << 20..].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn b38_encrypted_layers_are_committed_and_rebased_and_stay_what_they_were() {
    let images = Images::new();
    let base = encrypted(&images).await;
    let [a, b, c] = ["a.qcow2", "b.qcow2", "c.qcow2"].map(|name| images.path(name));
    make_overlay(&a, &base, MIB).await.unwrap();
    write(&images, &[&a, &base], 1, 1);
    write(&images, &[&a, &base], 2, 1);
    for upper in [&b, &c] {
        make_overlay(upper, &a, MIB).await.unwrap();
    }
    write(&images, &[&b, &a, &base], 2, 2);
    write(&images, &[&c, &a, &base], 5, 3);
    let (of_b, of_c) = (content(&images, &b).await, content(&images, &c).await);
    let with = key("old");
    let terms = |key| Terms { allowed: &[], key };

    let keyless = rebase(&b, Some(&base), Rebase::Safe, &terms(None), &JOB).await;
    assert_eq!(code(keyless), ErrorCode::KeyRequired);
    let wrong = key("wrong");
    let before = images.names();
    let refused = rebase(&b, Some(&base), Rebase::Safe, &terms(Some(&wrong)), &JOB).await;
    assert_eq!(code(refused), ErrorCode::AuthFailed);
    assert_eq!(images.names(), before);
    // What is made beside b leaves alone what others have there, and what a killed process left of it goes.
    let theirs = images.path("b.qcow2.lifted");
    fs::write(theirs.as_path(), "theirs").unwrap();
    let before = images.names();
    let left = images.path(&format!(".b.qcow2.{}.partial", "0a".repeat(16)));
    fs::write(left.as_path(), "left").unwrap();

    // b is taken off a, c is committed into it.
    rebase(&b, Some(&base), Rebase::Safe, &terms(Some(&with)), &JOB)
        .await
        .unwrap();
    assert_eq!(content(&images, &b).await, of_b);
    assert_eq!(content(&images, &c).await, of_c);
    assert_eq!(images.names(), before);
    freeze_layer(&c, Some(&with)).await.unwrap();
    commit_layer(&c, &a, &terms(Some(&with)), &JOB)
        .await
        .unwrap();
    assert_eq!(content(&images, &c).await, of_c);
    assert_eq!(content(&images, &a).await, of_c);
    reclaim(&a, Some(&with)).await.unwrap();
    // And b stands alone in the end.
    rebase(&b, None, Rebase::Safe, &terms(Some(&with)), &JOB)
        .await
        .unwrap();
    fs::remove_file(base.as_path()).unwrap();
    assert_eq!(content(&images, &b).await, of_b);
    assert!(opens(&b, "old").await && !holds_pattern(&b) && !holds_pattern(&a));
}

#[tokio::test]
async fn b38_encrypted_layers_on_a_file_that_is_not_are_taken_apart() {
    let images = Images::new();
    let base = images.path("base.qcow2");
    let plain = ConvertImage::new((plain(&images), Raw), (base.clone(), Qcow2));
    convert(&plain, &JOB).await.unwrap();
    let [a, b] = ["a.qcow2", "b.qcow2"].map(|name| images.path(name));
    let keyfile = images.path("key");
    fs::write(keyfile.as_path(), "old").unwrap();
    let make = || {
        std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2"])
            .args(["-b", base.as_str()])
            .args(["--object", &format!("secret,id=k,file={keyfile}")])
            .args(["-o", "encrypt.format=luks,encrypt.key-secret=k"])
            .args(["-o", "encrypt.iter-time=10", a.as_str()])
            .status()
    };
    // It gives up where it cannot measure how fast the CPU is ("Unable to get accurate CPU usage").
    assert!((0..60).any(|_| make().unwrap().success()));
    write(&images, &[&a], 1, 1);
    make_overlay(&b, &a, MIB).await.unwrap();
    write(&images, &[&b, &a], 2, 2);
    let held = content(&images, &b).await;
    let with = key("old");
    let terms = Terms {
        allowed: &[],
        key: Some(&with),
    };
    rebase(&b, Some(&base), Rebase::Safe, &terms, &JOB)
        .await
        .unwrap();
    fs::remove_file(a.as_path()).unwrap();
    assert!(content(&images, &b).await == held);
    assert!(cluster(&held, 1).iter().all(|byte| *byte == 1) && &held[..16] == PATTERN);
    assert!(opens(&b, "old").await);
}

/// KiB that the two layers have, of which the upper is taken off the lower, on a base of 1024; and the clusters of
/// each that hold a byte.
type Shape = (u64, &'static [(usize, u8)], u64, &'static [(usize, u8)]);

#[tokio::test]
async fn b38_an_encrypted_layer_taken_off_one_of_another_size_holds_what_it_held() {
    let shapes: [Shape; 5] = [
        // Cut, and grown again: what the base holds there is not to come back.
        (512, &[(1, 1)], 1024, &[(14, 2)]),
        (512, &[(1, 1)], 2048, &[(2, 0), (20, 2)]),
        (1024, &[(1, 1), (12, 1)], 512, &[(2, 2)]),
        // Zeros behind the base's end, over what the lower one holds.
        (2048, &[(20, 1), (21, 1)], 2048, &[(20, 0), (3, 0)]),
        (700, &[(1, 1), (9, 1)], 900, &[(9, 0), (11, 2)]),
    ];
    for (lower, of_lower, size, of_upper) in shapes {
        let images = Images::new();
        let base = encrypted(&images).await;
        let [a, b] = ["a.qcow2", "b.qcow2"].map(|name| images.path(name));
        make_overlay(&a, &base, ByteSize::bytes(lower << 10))
            .await
            .unwrap();
        for (cluster, byte) in of_lower {
            write(&images, &[&a, &base], *cluster, *byte);
        }
        make_overlay(&b, &a, ByteSize::bytes(size << 10))
            .await
            .unwrap();
        for (cluster, byte) in of_upper {
            write(&images, &[&b, &a, &base], *cluster, *byte);
        }
        let held = content(&images, &b).await;
        assert_eq!(held.len() as u64, size << 10);
        let with = key("old");
        let terms = Terms {
            allowed: &[],
            key: Some(&with),
        };
        rebase(&b, Some(&base), Rebase::Safe, &terms, &JOB)
            .await
            .unwrap();
        fs::remove_file(a.as_path()).unwrap();
        assert!(content(&images, &b).await == held, "{lower} under {size}");
        assert!(opens(&b, "old").await && !holds_pattern(&b));
    }
}

#[tokio::test]
async fn f39_each_half_of_a_change_of_the_key_may_be_the_last() {
    let images = Images::new();
    let path = encrypted(&images).await;
    let is = async |old: bool, new: bool| {
        for sharing in [Sharing::Refuse, Sharing::Force] {
            assert_eq!(key_opens(&path, &key("old"), sharing).await.unwrap(), old);
            assert_eq!(key_opens(&path, &key("new"), sharing).await.unwrap(), new);
        }
    };
    for _twice in 0..2 {
        add_key(&path, &change("old", "new")).await.unwrap();
        is(true, true).await;
    }
    assert_eq!(keys_in(&path).await.unwrap(), 2);
    // Not without the one that is to stay.
    let refused = erase_key(&path, &change("old", "other")).await;
    assert_eq!(code(refused), ErrorCode::AuthFailed);
    is(true, true).await;
    for _twice in 0..2 {
        erase_key(&path, &change("old", "new")).await.unwrap();
        is(false, true).await;
    }
    add_key(&path, &change("old", "new")).await.unwrap();
    is(false, true).await;
    let refused = add_key(&path, &change("old", "other")).await;
    assert_eq!(code(refused), ErrorCode::AuthFailed);
}
