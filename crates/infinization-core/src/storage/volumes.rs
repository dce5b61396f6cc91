//! Making, cloning, resizing and deleting volumes.

use std::fs;
use std::io;

use super::pools::{failed, run};
use super::progress::told;
use super::{Audience, PoolError, Pools, Unknown, Uses, Volume};
use crate::config::{
    CloneOptions, DiskFormat, PoolName, VolumeConvertOptions, VolumeName, VolumeOptions,
    VolumePreallocation, VolumeResizeOptions,
};
use crate::error::Failure;
use crate::host::qemu_img::{
    ConvertImage, CreateImage, Encryption, ImageError, ImageFormat, Job, Preallocation, Resize,
    allocated, convert, create, ensure_unused, layer, resize_with_key,
};
use crate::types::{ByteSize, HostPath};

impl Pools {
    /// The volumes of a pool, by name. Other files, and what is no image, are no volumes.
    pub async fn volumes(&self, pool: &PoolName, uses: &Uses) -> Result<Vec<Volume>, PoolError> {
        let directory = self.directory(pool).await?;
        let mut volumes = Vec::new();
        for (path, name) in files_in(&directory).await? {
            match describe(&path, &name, uses).await {
                Ok(volume) => volumes.push(volume),
                Err(error) => tracing::debug!(%error, "is no volume"),
            }
        }
        Ok(volumes)
    }

    /// Every file that may be a volume of any pool, and the pools that could not be looked at.
    pub async fn all_files(&self) -> Result<(Vec<HostPath>, Vec<Unknown>), PoolError> {
        let (mut all, mut unknown) = (Vec::new(), Vec::new());
        for path in self.directories().await? {
            match files_in(&path).await {
                Ok(files) => all.extend(files.into_iter().map(|(path, _)| path)),
                Err(error) => {
                    let why = Failure::from(error).to_string();
                    unknown.push(Unknown { path, why });
                }
            }
        }
        Ok((all, unknown))
    }

    /// Makes an empty volume.
    pub async fn create(
        &self,
        pool: &PoolName,
        options: &VolumeOptions,
        owner: Option<(u32, u32)>,
        job: &Job,
    ) -> Result<Volume, PoolError> {
        let path = self.free_path(pool, &options.name).await?;
        let image = CreateImage {
            format: image_format(options.name.format()),
            preallocation: preallocation(options.preallocation),
            encryption: options.key.clone().map(Encryption::with),
            owner,
            allowed: self.allowed().to_vec(),
            ..CreateImage::new(path.clone(), options.capacity)
        };
        create(&image, job).await?;
        describe(&path, &options.name, &Uses::default()).await
    }

    /// Makes a copy of a volume, or an overlay on it. A machine's disk may change at any time, so nothing is
    /// put on one.
    pub async fn clone_volume(
        &self,
        pool: &PoolName,
        options: &CloneOptions,
        uses: &Uses,
        owner: Option<(u32, u32)>,
        job: &Job,
        audience: &Audience,
    ) -> Result<Volume, PoolError> {
        if !options.linked {
            let copy = VolumeConvertOptions {
                source: options.source.clone(),
                name: options.name.clone(),
                compress: false,
                key: options.key.clone(),
                decrypt: options.decrypt,
            };
            return self.convert(pool, &copy, owner, job, audience).await;
        }
        let source = self.path_of(pool, &options.source).await?;
        let path = self.free_path(pool, &options.name).await?;
        refuse_keyed_link(&path, options)?;
        uses.refuse_used(&source)?;
        if options.source.format() != DiskFormat::Qcow2 {
            let why = "is raw, which nothing can be linked to".to_owned();
            return Err(ImageError::Format { path: source, why }.into());
        }
        let image = CreateImage {
            format: image_format(options.name.format()),
            owner,
            allowed: self.allowed().to_vec(),
            ..CreateImage::over(path.clone(), source)
        };
        create(&image, job).await?;
        describe(&path, &options.name, uses).await
    }

    /// Makes a whole copy of a volume and of all it lies on, in the format its name says. Nobody has the copy yet.
    pub async fn convert(
        &self,
        pool: &PoolName,
        options: &VolumeConvertOptions,
        owner: Option<(u32, u32)>,
        job: &Job,
        audience: &Audience,
    ) -> Result<Volume, PoolError> {
        let nobody = Uses::default();
        let source = self.path_of(pool, &options.source).await?;
        let path = self.free_path(pool, &options.name).await?;
        let total = describe(&source, &options.source, &nobody).await?.capacity;
        let from = (source, image_format(options.source.format()));
        let to = (path.clone(), image_format(options.name.format()));
        let image = ConvertImage {
            compress: options.compress,
            encryption: options.key.clone().map(Encryption::with),
            decrypt: options.decrypt,
            owner,
            allowed: self.allowed().to_vec(),
            ..ConvertImage::new(from, to)
        };
        let copied = told(audience, total, job, async |job| convert(&image, job).await);
        Box::pin(copied).await?;
        describe(&path, &options.name, &nobody).await
    }

    /// Changes the size of a volume that no machine runs on and nothing lies on.
    pub async fn resize_volume(
        &self,
        pool: &PoolName,
        name: &VolumeName,
        options: &VolumeResizeOptions,
        uses: &Uses,
    ) -> Result<Volume, PoolError> {
        let path = self.path_of(pool, name).await?;
        uses.refuse_overlaid(&path)?;
        let direction = if options.shrink {
            Resize::GrowOrShrink
        } else {
            Resize::Grow
        };
        let format = image_format(name.format());
        let key = options.key.as_ref();
        resize_with_key(&path, format, options.capacity, direction, key).await?;
        describe(&path, name, uses).await
    }

    /// Deletes a volume that nobody needs.
    pub async fn delete_volume(
        &self,
        pool: &PoolName,
        name: &VolumeName,
        uses: &Uses,
    ) -> Result<(), PoolError> {
        let path = self.path_of(pool, name).await?;
        uses.refuse_needed(&path)?;
        ensure_unused(&path).await?;
        run(&path.clone(), move || {
            fs::remove_file(path.as_path()).map_err(|error| failed(&path, error))
        })
        .await
    }

    /// What is known of a volume.
    pub async fn volume(
        &self,
        pool: &PoolName,
        name: &VolumeName,
        uses: &Uses,
    ) -> Result<Volume, PoolError> {
        let path = self.path_of(pool, name).await?;
        describe(&path, name, uses).await
    }

    /// Where a volume is, which must be there and be a plain file.
    pub async fn path_of(&self, pool: &PoolName, name: &VolumeName) -> Result<HostPath, PoolError> {
        let path = self.free_path(pool, name).await?;
        run(&path.clone(), move || {
            let missing = || ImageError::NotFound { path: path.clone() };
            match fs::symlink_metadata(path.as_path()) {
                Ok(found) if found.is_file() => Ok(path),
                Ok(_) => Err(PoolError::Directory {
                    path,
                    why: "is no plain file, so it is no volume",
                }),
                Err(_) => Err(missing().into()),
            }
        })
        .await
    }

    /// Where a volume of this name would be.
    pub(super) async fn free_path(
        &self,
        pool: &PoolName,
        name: &VolumeName,
    ) -> Result<HostPath, PoolError> {
        let directory = self.directory(pool).await?;
        directory
            .join(name.as_str())
            .map_err(|_invalid| PoolError::Directory {
                path: directory,
                why: "has too long a path",
            })
    }
}

/// An overlay is not encrypted, whatever its source is.
fn refuse_keyed_link(path: &HostPath, options: &CloneOptions) -> Result<(), PoolError> {
    if options.key.is_none() && !options.decrypt {
        return Ok(());
    }
    let why = "is a linked clone, which is never encrypted".to_owned();
    let path = path.clone();
    Err(ImageError::Format { path, why }.into())
}

/// Plain files whose names say that they are volumes, by name.
async fn files_in(directory: &HostPath) -> Result<Vec<(HostPath, VolumeName)>, PoolError> {
    let directory = directory.clone();
    run(&directory.clone(), move || {
        let entries = fs::read_dir(directory.as_path());
        let entries = entries.and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|error| failed(&directory, error))?;
        let plain = entries
            .into_iter()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        let names = plain.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<VolumeName> = names
            .filter_map(|name| VolumeName::try_from(name).ok())
            .collect();
        names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        let at = |name: VolumeName| Some((directory.join(name.as_str()).ok()?, name));
        Ok(names.into_iter().filter_map(at).collect())
    })
    .await
}

async fn describe(path: &HostPath, name: &VolumeName, uses: &Uses) -> Result<Volume, PoolError> {
    let (capacity, backing, encrypted) = match name.format() {
        DiskFormat::Qcow2 => {
            let found = layer(path).await?;
            (found.virtual_size, found.backing, found.encrypted)
        }
        DiskFormat::Raw => (length(path).await?, None, false),
    };
    Ok(Volume {
        name: name.as_str().to_owned(),
        path: path.clone(),
        format: name.format(),
        capacity,
        allocation: allocated(path).await?,
        backing,
        encrypted,
        used_by: uses.users(path),
        overlays: uses.overlays(path),
    })
}

async fn length(path: &HostPath) -> Result<ByteSize, PoolError> {
    let path = path.clone();
    run(&path.clone(), move || {
        let file = fs::metadata(path.as_path()).map_err(|error| failed(&path, error))?;
        Ok(ByteSize::bytes(file.len()))
    })
    .await
}

pub(super) fn image_format(format: DiskFormat) -> ImageFormat {
    match format {
        DiskFormat::Qcow2 => ImageFormat::Qcow2,
        DiskFormat::Raw => ImageFormat::Raw,
    }
}

fn preallocation(asked: VolumePreallocation) -> Preallocation {
    match asked {
        VolumePreallocation::Off => Preallocation::Off,
        VolumePreallocation::Metadata => Preallocation::Metadata,
        VolumePreallocation::Falloc => Preallocation::Falloc,
        VolumePreallocation::Full => Preallocation::Full,
    }
}
