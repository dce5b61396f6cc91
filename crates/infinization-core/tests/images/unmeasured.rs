//! New encrypted images where QEMU cannot measure, for a while, how slow their keys can be made.

use std::os::unix::fs::PermissionsExt as _;

use infinization_core::host::qemu_img::{
    Clusters, Encryption, Parent, Source, check_with_key, difference, export, make_target,
};
use infinization_core::types::DiskKey;

use super::*;
use kit::process::{Toolbox, Tools, in_own_process_with};

/// Who the images are for.
const OWNER: (u32, u32) = (4242, 4343);

fn encryption() -> Encryption {
    Encryption {
        key: DiskKey::try_from("k".to_owned()).unwrap(),
        iter_time: Some(Duration::from_millis(10)),
    }
}

fn tools() -> Toolbox {
    Toolbox::of(&["qemu-img", "rm"])
}

/// From now on `qemu-img` fails the next `times` times that it is to encrypt a new image, as it does where the clock of
/// used CPU time stands still: the file that it was given is gone then.
fn cannot_measure(tools: &Tools, images: &Images, times: u32) {
    let left = images.path(".left");
    fs::write(left.as_path(), format!("{times}\n")).unwrap();
    let script = format!(
        "read left <{left}\n\
         case \"$left $*\" in 0*) ;; *encrypt.format=luks*)\n\
         echo $((left - 1)) >{left}\n\
         for file; do case $file in *.partial | */new*) rm -- \"$file\" ;; esac; done\n\
         echo 'qemu-img: new: Unable to get accurate CPU usage' >&2\n\
         exit 1 ;;\n\
         esac\n\
         exec $real \"$@\""
    );
    tools.wrap("qemu-img", &script);
}

/// The image is whole, and for nobody but `owner`.
async fn is_for(path: &HostPath, owner: (u32, u32)) {
    let file = fs::metadata(path.as_path()).unwrap();
    assert_eq!((file.uid(), file.gid()), owner, "{path}");
    assert_eq!(file.permissions().mode() & 0o777, 0o600, "{path}");
    let key = encryption().key;
    let found = check_with_key(path, Qcow2, Some(&key), &Job::default()).await;
    assert_eq!(found.unwrap().corruptions, 0, "{path}");
}

#[test]
fn a_new_image_is_for_its_owner_alone_however_often_it_was_begun() {
    let test = "unmeasured::a_new_image_is_for_its_owner_alone_however_often_it_was_begun";
    in_own_process_with(test, tools, |tools| {
        kit::runtime().block_on(async {
            let images = Images::new();
            let [made, copied] = ["made", "copied"].map(|name| images.path(name));
            let image = CreateImage {
                encryption: Some(encryption()),
                owner: Some(OWNER),
                ..CreateImage::new(made.clone(), MIB)
            };
            cannot_measure(&tools, &images, 3);
            create(&image, &Job::default()).await.unwrap();
            is_for(&made, OWNER).await;

            tools.unwrap("qemu-img");
            images.qcow2("plain");
            cannot_measure(&tools, &images, 3);
            let image = ConvertImage {
                encryption: Some(encryption()),
                owner: Some(OWNER),
                ..ConvertImage::new((images.path("plain"), Qcow2), (copied.clone(), Qcow2))
            };
            convert(&image, &Job::default()).await.unwrap();
            is_for(&copied, OWNER).await;
            assert_eq!(images.names(), [".left", "copied", "made", "plain"]);
        });
    });
}

#[test]
fn copies_for_a_backup_are_for_us_alone_however_often_they_were_begun() {
    let test = "unmeasured::copies_for_a_backup_are_for_us_alone_however_often_they_were_begun";
    in_own_process_with(test, tools, |tools| {
        kit::runtime().block_on(async {
            let images = Images::new();
            let us = fs::metadata(images.path(".").as_path()).unwrap();
            let us = (us.uid(), us.gid());
            let [disk, empty, full, increment] =
                ["disk", "new-empty", "new-full", "new-increment"].map(|name| images.path(name));
            let (encryption, job) = (encryption(), Job::default());
            let image = CreateImage {
                encryption: Some(encryption.clone()),
                ..CreateImage::new(disk.clone(), MIB)
            };
            create(&image, &job).await.unwrap();
            let source = Source {
                path: disk,
                format: Qcow2,
                encryption: Some(encryption.clone()),
            };

            cannot_measure(&tools, &images, 2);
            let made = make_target(&empty, MIB, Clusters::Plain, None, Some(&encryption));
            made.await.unwrap();
            is_for(&empty, us).await;
            tools.unwrap("qemu-img");

            cannot_measure(&tools, &images, 2);
            let copied = export(&source, &full, Clusters::Plain, &job);
            copied.await.unwrap();
            is_for(&full, us).await;
            tools.unwrap("qemu-img");

            cannot_measure(&tools, &images, 2);
            let parent = Parent {
                name: full.to_string(),
                path: full,
            };
            let scratch = images.path("scratch");
            let compared = difference(
                &source,
                &parent,
                &increment,
                &scratch,
                Clusters::Plain,
                &job,
            );
            compared.await.unwrap();
            is_for(&increment, us).await;
        });
    });
}
