//! A new image, or an overlay on another one: an empty qcow2 is written by us ([`super::empty`]), any other by
//! `qemu-img create`.

use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

use super::command::{Measuring, QemuImg};
use super::empty::EmptyImage;
use super::in_use::{self, Access};
use super::inspect::{inspect_now, refuse_plain_text_now};
use super::job::{blocking, supervised};
use super::partial::Partial;
use super::{Encryption, ImageError, ImageFormat, Job, lock};
use crate::types::{ByteSize, HostPath};

/// What of the disk is given its space when the image is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preallocation {
    /// Nothing: the file grows as the guest writes.
    #[default]
    Off,
    /// The tables that find the data (qcow2).
    Metadata,
    /// Everything, by `fallocate`.
    Falloc,
    /// Everything, by writing zeros.
    Full,
}

impl Preallocation {
    /// The name QEMU knows it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// An image to make.
#[derive(Debug, Clone)]
pub struct CreateImage {
    /// Where it will be; nothing may be there yet.
    pub path: HostPath,
    /// The disk's size. Without one an overlay is as large as its backing file.
    pub size: Option<ByteSize>,
    /// Default: qcow2.
    pub format: ImageFormat,
    /// Default: off.
    pub preallocation: Preallocation,
    /// A power of two from 512 bytes to 2 MiB (qcow2). QEMU's default is 64 KiB.
    pub cluster_size: Option<ByteSize>,
    /// The qcow2 image that holds what the new one does not. Only for qcow2.
    pub backing: Option<HostPath>,
    /// Encrypts what it will hold. Only for qcow2, and not with a backing file.
    pub encryption: Option<Encryption>,
    /// Who may use it: the user and group QEMU runs as. Default: us. The mode is always 0600.
    pub owner: Option<(u32, u32)>,
    /// Where the backing chain must be, if it is confined.
    pub allowed: Vec<HostPath>,
}

impl CreateImage {
    /// A growing qcow2 image of `size`.
    pub fn new(path: HostPath, size: ByteSize) -> Self {
        Self {
            path,
            size: Some(size),
            format: ImageFormat::Qcow2,
            preallocation: Preallocation::Off,
            cluster_size: None,
            backing: None,
            encryption: None,
            owner: None,
            allowed: Vec::new(),
        }
    }

    /// A qcow2 image that starts out with the content and size of `backing`.
    pub fn over(path: HostPath, backing: HostPath) -> Self {
        Self {
            size: None,
            backing: Some(backing),
            ..Self::new(path, ByteSize::bytes(0))
        }
    }

    /// Refuses what qemu-img would, before it runs.
    fn check(&self) -> Result<(), ImageError> {
        let refuse = |why: &str| Err(ImageError::format(&self.path, why));
        let qcow2 = self.format == ImageFormat::Qcow2;
        if self.backing.is_some() && !qcow2 {
            return refuse("can only have a backing file as qcow2");
        }
        if self.backing.is_some() && self.preallocation != Preallocation::Off {
            return refuse("cannot be preallocated, as it has a backing file");
        }
        if self.encryption.is_some() && (!qcow2 || self.backing.is_some()) {
            return refuse("can only be encrypted as qcow2 without a backing file");
        }
        if self.cluster_size.is_some() && !qcow2 {
            return refuse("can only have a cluster size as qcow2");
        }
        if self.preallocation == Preallocation::Metadata && !qcow2 {
            return refuse("has no metadata to preallocate, not being qcow2");
        }
        self.check_sizes()
    }

    /// Whether an empty file with a header is all there is to it.
    fn is_plain(&self) -> bool {
        self.format == ImageFormat::Qcow2
            && self.preallocation == Preallocation::Off
            && self
                .cluster_size
                .is_none_or(|size| size == EmptyImage::CLUSTER_SIZE)
            && self.encryption.is_none()
    }

    fn check_sizes(&self) -> Result<(), ImageError> {
        if let Some(cluster) = self.cluster_size.map(ByteSize::as_bytes)
            && !(cluster.is_power_of_two() && (512..=2 << 20).contains(&cluster))
        {
            let why = "needs clusters of a power of two from 512 bytes to 2 MiB";
            return Err(ImageError::size(&self.path, why));
        }
        match self.size {
            None if self.backing.is_some() => Ok(()),
            None => Err(ImageError::size(&self.path, "is missing")),
            Some(size) => check_size(&self.path, self.format, size, self.cluster_size),
        }
    }

    /// The `-o` list.
    fn options(&self) -> Vec<String> {
        let cluster = self
            .cluster_size
            .map(|size| format!("cluster_size={}", size.as_bytes()));
        let preallocation = (self.preallocation != Preallocation::Off)
            .then(|| format!("preallocation={}", self.preallocation.as_str()));
        let encryption = self.encryption.iter().flat_map(Encryption::options);
        cluster
            .into_iter()
            .chain(preallocation)
            .chain(encryption)
            .collect()
    }
}

/// Refuses sizes that no image, or no qcow2 with such clusters, can have.
pub(super) fn check_size(
    path: &HostPath,
    format: ImageFormat,
    size: ByteSize,
    cluster: Option<ByteSize>,
) -> Result<(), ImageError> {
    /// QEMU's largest level 1 table, each entry of which finds one cluster of 8-byte entries.
    const MOST_L1_ENTRIES: u128 = 32 << 17;
    let bytes = u128::from(size.as_bytes());
    if bytes == 0 {
        return Err(ImageError::size(path, "must not be 0"));
    }
    let cluster = u128::from(cluster.map_or(64 << 10, ByteSize::as_bytes));
    let most = match format {
        ImageFormat::Qcow2 => MOST_L1_ENTRIES * cluster * cluster / 8,
        _ => u128::from(u64::MAX >> 1),
    };
    if bytes > most.min(u128::from(u64::MAX >> 1)) {
        return Err(ImageError::size(
            path,
            format!("is more than {format} can hold"),
        ));
    }
    Ok(())
}

/// Makes the image. Nothing is ever overwritten (`IMAGE_ALREADY_EXISTS`), and nothing is left if it
/// fails or is cancelled.
///
/// `qemu-img` reports no progress here, however much it preallocates.
pub async fn create(image: &CreateImage, job: &Job) -> Result<(), ImageError> {
    image.check()?;
    let (path, image) = (&image.path, image.clone());
    supervised(job, path, move |job| make(image, job)).await
}

async fn make(mut image: CreateImage, job: Job) -> Result<(), ImageError> {
    let _unchanged = match &image.backing {
        Some(backing) => {
            let (asked, path) = (image.clone(), backing.clone());
            let vetted = lock::shared(backing, move || vet_backing(&asked, &path));
            let (unchanged, size) = job.unless_cancelled(&image.path, vetted).await??;
            image.size = image.size.or(size);
            // The backing file's clusters may be larger, and with them its disk.
            image.check_sizes()?;
            Some(unchanged)
        }
        None => None,
    };
    let path = image.path.clone();
    if let Some(size) = image.size.filter(|_| image.is_plain()) {
        return blocking(&path, move || write_plain(&image, size, &job)).await;
    }
    let mut measuring = Measuring::default();
    loop {
        let target = path.clone();
        let partial = blocking(&path, move || Partial::beside(&target)).await?;
        let filled = fill(&image, &partial, &job).await;
        if measuring.is_over(&filled).await {
            filled?;
            return blocking(&path, move || partial.publish(image.owner)).await;
        }
    }
}

/// Without a program. Blocks.
fn write_plain(image: &CreateImage, size: ByteSize, job: &Job) -> Result<(), ImageError> {
    let partial = Partial::beside(&image.path)?;
    // QEMU's unit, to which `qemu-img` rounds up as well.
    let size = ByteSize::bytes(size.as_bytes().next_multiple_of(512));
    write_empty(&partial, size, image.backing.as_ref(), None)?;
    if job.cancel.is_cancelled() {
        let path = image.path.clone();
        return Err(ImageError::Cancelled { path });
    }
    partial.publish(image.owner)
}

/// Has the file be an empty qcow2, encrypted if there is a LUKS header for it. Blocks.
pub(super) fn write_empty(
    partial: &Partial,
    size: ByteSize,
    backing: Option<&HostPath>,
    luks: Option<&[u8]>,
) -> Result<(), ImageError> {
    let (path, file) = (partial.target(), partial.file());
    let room = luks.map(|luks| luks.len() as u64);
    let image = EmptyImage::new(path, size.as_bytes(), backing, room)?;
    file.write_all_at(&image.bytes, 0)
        .and_then(|()| file.set_len(image.length))
        .and_then(|()| luks.map_or(Ok(()), |luks| file.write_all_at(luks, image.luks_at)))
        .map_err(|error| ImageError::io(path, error))
}

/// Says how large the backing file's disk is. Blocks.
fn vet_backing(image: &CreateImage, backing: &HostPath) -> Result<Option<ByteSize>, ImageError> {
    in_use::refuse_now(backing, Access::Read)?;
    // The new image would hold in plain text what is written to it.
    refuse_plain_text_now(backing, ImageFormat::Qcow2, "what lies on it")?;
    let found = inspect_now(backing, ImageFormat::Qcow2, &image.allowed)?;
    match (image.size, found.virtual_size) {
        (Some(size), Some(backing)) if size < backing => Err(ImageError::size(
            &image.path,
            format!("must not be less than its backing file's {backing}"),
        )),
        (_, size) => Ok(size),
    }
}

async fn fill(image: &CreateImage, partial: &Partial, job: &Job) -> Result<(), ImageError> {
    let mut command = QemuImg::new("create", &image.path).args(["-q", "-f", image.format.as_str()]);
    if let Some(encryption) = &image.encryption {
        command = command.with_key(&encryption.key);
    }
    let options = image.options();
    if !options.is_empty() {
        command = command.args(["-o".to_owned(), options.join(",")]);
    }
    if let Some(backing) = &image.backing {
        command = command
            .args(["-F", ImageFormat::Qcow2.as_str()])
            .path_option("-b", backing);
    }
    let size = image.size.map(|size| size.as_bytes().to_string());
    command
        .files([partial.path()])
        .args(size)
        .run_once(job)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Coded as _, ErrorCode};

    #[tokio::test]
    async fn a_size_that_is_taken_over_must_fit_as_well() {
        let made = tempfile::tempdir().unwrap();
        let dir = made.path().to_str().unwrap();
        let path = |name: &str| HostPath::parse(format!("{dir}/{name}")).unwrap();
        let base = CreateImage {
            cluster_size: Some(ByteSize::bytes(2 << 20)),
            ..CreateImage::new(path("base"), ByteSize::bytes(3 << 50))
        };
        create(&base, &Job::default()).await.unwrap();
        for cluster_size in [None, Some(ByteSize::bytes(512))] {
            let over = CreateImage {
                cluster_size,
                ..CreateImage::over(path("over"), base.path.clone())
            };
            let refused = create(&over, &Job::default()).await.unwrap_err();
            assert_eq!(refused.code(), ErrorCode::InvalidSize, "{refused}");
        }
        let fits = CreateImage {
            cluster_size: base.cluster_size,
            ..CreateImage::over(path("over"), base.path.clone())
        };
        create(&fits, &Job::default()).await.unwrap();
    }
}
