//! A resize whose `qemu-img` hangs or is killed.

use std::os::fd::OwnedFd;

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::*;
use kit::process::{Toolbox, Tools, eventually, in_own_process_with};

const GROWN: ByteSize = ByteSize::mib(64 * 1024);

/// From now on `qemu-img resize` writes its pid down and stops, before it has done anything.
fn stop_resizes(tools: &Tools, images: &Images) {
    let pid = images.path("pid");
    let stop =
        format!("case $1 in resize) echo $$ >{pid}; kill -STOP $$ ;; esac\nexec $real \"$@\"");
    tools.wrap("qemu-img", &stop);
}

/// The resize that has stopped: it, and no process that has its number later.
async fn stopped_resize(images: &Images) -> OwnedFd {
    let file = images.path("pid");
    let pid = || {
        fs::read_to_string(file.as_path())
            .ok()?
            .trim()
            .parse::<i32>()
            .ok()
    };
    let is_stopped = || {
        let stat = pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
        stat.is_some_and(|stat| stat.contains(") T "))
    };
    eventually(is_stopped).await;
    let stopped = rustix::process::Pid::from_raw(pid().unwrap()).unwrap();
    fs::remove_file(file.as_path()).unwrap();
    pidfd_open(stopped, PidfdFlags::empty()).unwrap()
}

async fn size(path: &HostPath) -> ByteSize {
    let seen = info(path, Qcow2, Sharing::Force).await.unwrap();
    seen.virtual_size
}

async fn is_sound(path: &HostPath) {
    let sound = check(path, Qcow2, &Job::default()).await.unwrap();
    assert_eq!((sound.errors, sound.corruptions), (0, 0));
}

fn tools() -> Toolbox {
    Toolbox::of(&["qemu-img"])
}

/// An image, and its resize under way in a task.
fn resizing(images: &Images) -> (HostPath, tokio::task::JoinHandle<Result<(), ImageError>>) {
    let path = images.path("a");
    let grown = path.clone();
    let resize = async move { resize(&grown, Qcow2, GROWN, Resize::Grow).await };
    (path, tokio::spawn(resize))
}

#[test]
fn f19_a_resize_killed_at_any_moment_leaves_a_sound_image() {
    let test = "resizing::f19_a_resize_killed_at_any_moment_leaves_a_sound_image";
    in_own_process_with(test, tools, |tools| {
        kit::runtime().block_on(async {
            let images = Images::new();
            let blank = images.qcow2("blank");
            stop_resizes(&tools, &images);
            let mut killed = 0;
            for microseconds in [
                0, 1000, 3000, 5000, 7000, 9000, 12_000, 16_000, 24_000, 100_000,
            ] {
                fs::copy(blank.as_path(), images.path("a").as_path()).unwrap();
                let (path, resizing) = resizing(&images);
                let stopped = stopped_resize(&images).await;
                if microseconds > 0 {
                    pidfd_send_signal(&stopped, Signal::CONT).unwrap();
                    tokio::time::sleep(Duration::from_micros(microseconds)).await;
                }
                // It may have ended by then.
                let _gone = pidfd_send_signal(&stopped, Signal::KILL);
                match resizing.await.unwrap() {
                    Ok(()) => assert_eq!(size(&path).await, GROWN),
                    Err(error) => {
                        assert_eq!(error.code(), ErrorCode::CommandFailed);
                        killed += 1;
                    }
                }
                is_sound(&path).await;
                assert!([ByteSize::mib(8), GROWN].contains(&size(&path).await));
                assert_eq!(images.names(), ["a", "blank"]);
            }
            assert!(killed > 0);

            // The image is not locked by the one that is gone.
            tools.unwrap("qemu-img");
            let path = images.path("a");
            let larger = ByteSize::mib(128 * 1024);
            resize(&path, Qcow2, larger, Resize::Grow).await.unwrap();
            assert_eq!(size(&path).await, larger);
        });
    });
}

#[test]
fn f19_a_resize_that_hangs_ends_at_its_deadline() {
    let test = "resizing::f19_a_resize_that_hangs_ends_at_its_deadline";
    in_own_process_with(test, tools, |tools| {
        // One thread, whose clock can be set.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            let images = Images::new();
            images.qcow2("a");
            stop_resizes(&tools, &images);
            let (path, resizing) = resizing(&images);
            let stopped = stopped_resize(&images).await;
            // With nothing else to do, the clock goes on to whatever is due next.
            tokio::time::pause();
            let error = resizing.await.unwrap().unwrap_err();
            tokio::time::resume();
            assert_eq!(error.code(), ErrorCode::StorageTimeout, "{error:?}");
            let gone = pidfd_send_signal(&stopped, Signal::CONT);
            assert_eq!(gone, Err(rustix::io::Errno::SRCH));
            assert_eq!(size(&path).await, ByteSize::mib(8));
            is_sound(&path).await;

            tools.unwrap("qemu-img");
            resize(&path, Qcow2, GROWN, Resize::Grow).await.unwrap();
            assert_eq!(size(&path).await, GROWN);
            assert_eq!(images.names(), ["a"]);
        });
    });
}
