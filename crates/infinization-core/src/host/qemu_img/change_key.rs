//! Changes the key of an encrypted image.
//!
//! LUKS has eight places for keys. The new one is put into a free place, has opened the image, and is on
//! the disk before the old one is erased: whatever ends us, one of the two opens the image, and the same
//! call finishes what was begun.

use std::time::Duration;

use super::command::{OTHER_KEY, QemuImg};
use super::encryption::iter_time;
use super::in_use::Access;
use super::job::{blocking, to_its_end};
use super::layer::{flush, luks_header_now};
use super::{ImageError, ImageFormat, Job, Sharing, inspect, lock};
use crate::types::{DiskKey, HostPath};

/// A change of an image's key.
#[derive(Debug, Clone)]
pub struct ChangeKey {
    /// The key there is.
    pub old: DiskKey,
    /// The key there will be.
    pub new: DiskKey,
    /// As [`super::Encryption::iter_time`].
    pub iter_time: Option<Duration>,
}

/// Changes the key. `AUTH_FAILED` if neither the old nor the new one opens the image; if only the new one
/// does, it has been changed already.
pub async fn change_key(path: &HostPath, change: &ChangeKey) -> Result<(), ImageError> {
    alone(path, change, &[Half::Add, Half::Erase]).await
}

/// The first half: both keys open the image, unless the old one has been erased already.
pub async fn add_key(path: &HostPath, change: &ChangeKey) -> Result<(), ImageError> {
    alone(path, change, &[Half::Add]).await
}

/// The second half: the new key alone opens the image.
pub async fn erase_key(path: &HostPath, change: &ChangeKey) -> Result<(), ImageError> {
    alone(path, change, &[Half::Erase]).await
}

#[derive(Debug, Clone, Copy)]
enum Half {
    Add,
    Erase,
}

/// Whether `key` opens the image. Nothing but its first tables is read; with [`Sharing::Force`] a machine may
/// run on it.
pub async fn key_opens(
    path: &HostPath,
    key: &DiskKey,
    sharing: Sharing,
) -> Result<bool, ImageError> {
    let command = QemuImg::new("map", path).args(["--output=json", "--max-length=512"]);
    let command = match sharing {
        Sharing::Refuse => command,
        Sharing::Force => command.args(["-U"]),
    };
    let looked = command
        .on_image_as(ImageFormat::Qcow2, Some(key))
        .run_as(&Job::short())
        .await;
    match looked {
        Ok(_) => Ok(true),
        Err(ImageError::AuthFailed { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many of an image's places have a key, whichever those are; a machine may run on it.
pub async fn keys_in(path: &HostPath) -> Result<usize, ImageError> {
    let image = path.clone();
    blocking(path, move || {
        let luks = luks_header_now(&image)?;
        Ok(luks.map_or(0, |luks| places_taken(&luks)))
    })
    .await
}

/// Of a LUKS header of version 1, the only one that QEMU has.
fn places_taken(luks: &[u8]) -> usize {
    const PLACES: std::ops::Range<usize> = 208..208 + 8 * PLACE;
    const PLACE: usize = 48;
    const TAKEN: [u8; 4] = 0x00ac_71f3_u32.to_be_bytes();
    let places = luks.get(PLACES).unwrap_or_default().chunks(PLACE);
    places.filter(|place| place.starts_with(&TAKEN)).count()
}

/// Does what is asked while nobody else has the image.
async fn alone(
    path: &HostPath,
    change: &ChangeKey,
    halves: &'static [Half],
) -> Result<(), ImageError> {
    let (image, change) = (path.clone(), change.clone());
    to_its_end(path, async move {
        let (path, key) = (image.clone(), change.old.clone());
        let vet = move || {
            let qcow2 = ImageFormat::Qcow2;
            inspect::vet_unused_now(&path, qcow2, Access::Write, &[], Some(&key))
        };
        let (_alone, _found) = lock::exclusive(&image, vet).await?;
        for half in halves {
            match half {
                Half::Add => add_new(&image, &change).await?,
                Half::Erase => erase_old(&image, &change).await?,
            }
        }
        Ok(())
    })
    .await
}

async fn add_new(image: &HostPath, change: &ChangeKey) -> Result<(), ImageError> {
    let old_opens = opens(image, &change.old).await?;
    if change.old == change.new {
        return if old_opens { Ok(()) } else { Err(wrong(image)) };
    }
    match (old_opens, opens(image, &change.new).await?) {
        (false, false) => return Err(wrong(image)),
        (_, true) => {}
        (true, false) => add(image, change).await?,
    }
    flush(image).await?;
    if opens(image, &change.new).await? {
        Ok(())
    } else {
        Err(wrong(image))
    }
}

/// Only what the new key opens loses the old one.
async fn erase_old(image: &HostPath, change: &ChangeKey) -> Result<(), ImageError> {
    if change.old == change.new || !opens(image, &change.old).await? {
        return Ok(());
    }
    if !opens(image, &change.new).await? {
        return Err(wrong(image));
    }
    erase(image, change).await?;
    flush(image).await
}

async fn opens(image: &HostPath, key: &DiskKey) -> Result<bool, ImageError> {
    key_opens(image, key, Sharing::Refuse).await
}

fn wrong(image: &HostPath) -> ImageError {
    ImageError::AuthFailed {
        path: image.clone(),
    }
}

/// Puts the new key into a free place.
async fn add(image: &HostPath, change: &ChangeKey) -> Result<(), ImageError> {
    let options = [format!(
        "encrypt.state=active,encrypt.new-secret={OTHER_KEY}"
    )];
    let options: Vec<_> = options
        .into_iter()
        .chain(iter_time(change.iter_time))
        .collect();
    amend(image, &options)
        .with_other_key(&change.new)
        .on_image_as(ImageFormat::Qcow2, Some(&change.old))
        .run_as(&Job::short())
        .await
        .map(drop)
}

/// Erases the old key, with the new one at hand: it is not the last.
async fn erase(image: &HostPath, change: &ChangeKey) -> Result<(), ImageError> {
    let options = format!("encrypt.state=inactive,encrypt.old-secret={OTHER_KEY}");
    amend(image, &[options])
        .with_other_key(&change.old)
        .on_image_as(ImageFormat::Qcow2, Some(&change.new))
        .run_as(&Job::short())
        .await
        .map(drop)
}

fn amend<'a>(image: &'a HostPath, options: &[String]) -> QemuImg<'a> {
    QemuImg::new("amend", image).args(["-q".to_owned(), "-o".to_owned(), options.join(",")])
}
