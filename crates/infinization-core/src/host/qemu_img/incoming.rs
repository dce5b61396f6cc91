//! An image whose bytes come from elsewhere, piece by piece.
//!
//! They go to a temporary file ([`super::partial`]), and get the image's name only when they are all on disk
//! and are what they were said to be: whoever made them may have put anything into them, and a name in a
//! header is a file of this host to QEMU. So an image that names another is refused whichever file that is, and
//! before anybody opens it.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::inspect::{header_of, inspect_now};
use super::job::blocking;
use super::partial::Partial;
use super::{ImageError, ImageFormat, Job, check};
use crate::types::{ByteSize, HostPath};

/// Zeros of this length and alignment are left out of the file.
const HOLE: usize = 64 << 10;
const SECTOR: u64 = 512;
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// What is to come.
#[derive(Debug, Clone)]
pub struct IncomingImage {
    /// Where the image will be; nothing may be there yet.
    pub path: HostPath,
    /// What it is: qcow2 or raw.
    pub format: ImageFormat,
    /// How many bytes there are, if that is known.
    pub size: Option<ByteSize>,
    /// Their SHA-256, in lower-case hexadecimal.
    pub sha256: Option<String>,
    /// Who may use the image. Default: us. The mode is always 0600.
    pub owner: Option<(u32, u32)>,
}

/// An image that is coming. Dropped before it is finished, nothing of it stays.
#[derive(Debug)]
pub struct Incoming {
    image: IncomingImage,
    partial: Partial,
    hasher: Sha256,
    written: u64,
}

impl Incoming {
    /// Makes the temporary file.
    pub async fn begin(image: IncomingImage) -> Result<Self, ImageError> {
        let path = image.path.clone();
        blocking(&path, move || {
            Ok(Self {
                partial: Partial::beside(&image.path)?,
                image,
                hasher: Sha256::new(),
                written: 0,
            })
        })
        .await
    }

    /// Writes the next piece, and gives itself back. What fails, or is not waited for, is over.
    pub async fn write(mut self, piece: Vec<u8>) -> Result<Self, ImageError> {
        let path = self.image.path.clone();
        blocking(&path, move || {
            self.write_now(&piece)?;
            Ok(self)
        })
        .await
    }

    fn write_now(&mut self, piece: &[u8]) -> Result<(), ImageError> {
        let path = &self.image.path;
        let after = self.written + piece.len() as u64;
        if let Some(size) = self.image.size.filter(|size| after > size.as_bytes()) {
            let why = format!("is more than the {size} that were announced");
            return Err(ImageError::size(path, why));
        }
        write_sparse(self.partial.file(), self.written, piece)
            .map_err(|source| ImageError::io(path, source))?;
        self.hasher.update(piece);
        self.written = after;
        Ok(())
    }

    /// How many bytes have come.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// All have come: makes the image, if they are what they should be.
    pub async fn finish(self, job: &Job) -> Result<(), ImageError> {
        let path = self.image.path.clone();
        let looked = blocking(&path, move || {
            self.look()?;
            Ok(self)
        });
        let Self { image, partial, .. } = looked.await?;
        if image.format == ImageFormat::Qcow2 {
            let sound = sound(&partial.place()?, job).await;
            sound.map_err(|error| error.named(&path))?;
        }
        if job.cancel.is_cancelled() {
            return Err(ImageError::Cancelled { path });
        }
        blocking(&path, move || partial.publish(image.owner)).await
    }

    fn look(&self) -> Result<(), ImageError> {
        let path = self.partial.target();
        let io = |source| ImageError::io(path, source);
        self.look_at_bytes()?;
        // A hole at the end is not there yet.
        self.partial.file().set_len(self.written).map_err(io)?;
        match self.image.format {
            ImageFormat::Qcow2 => {
                let looked = look_at_qcow2(&self.partial.place()?);
                looked.map_err(|error| error.named(path))
            }
            _ => look_at_raw(path, self.partial.path(), self.written),
        }
    }

    fn look_at_bytes(&self) -> Result<(), ImageError> {
        let (path, written) = (&self.image.path, self.written);
        if written == 0 {
            return Err(ImageError::size(path, "must not be 0"));
        }
        if let Some(size) = self.image.size.filter(|size| size.as_bytes() != written) {
            let why = format!(
                "is {written} bytes, not the {} that were announced",
                size.as_bytes()
            );
            return Err(ImageError::size(path, why));
        }
        let found = hexadecimal(&self.hasher.clone().finalize());
        if self.image.sha256.as_ref().is_some_and(|sum| *sum != found) {
            let path = path.clone();
            return Err(ImageError::Checksum { path, found });
        }
        Ok(())
    }
}

fn look_at_qcow2(at: &HostPath) -> Result<(), ImageError> {
    let header = header_of(at)?;
    // Whether there is a key for it nobody can tell, and a check of its tables would need that.
    if header.encrypted() {
        return Err(ImageError::format(at, "is encrypted"));
    }
    if let Some(backing) = header.backing {
        let why = format!("{:?}, and it is to be whole", backing.name);
        return Err(ImageError::unsafe_backing(at, why));
    }
    inspect_now(at, ImageFormat::Qcow2, &[]).map(drop)
}

/// Whoever is told that a disk is raw never reads its header. But it was not meant to be one.
fn look_at_raw(path: &HostPath, at: &Path, written: u64) -> Result<(), ImageError> {
    if !written.is_multiple_of(SECTOR) {
        return Err(ImageError::size(path, "is no multiple of 512 bytes"));
    }
    let mut head = [0; QCOW2_MAGIC.len()];
    let read = File::open(at).and_then(|file| file.read_exact_at(&mut head, 0));
    read.map_err(|source| ImageError::io(path, source))?;
    if head == QCOW2_MAGIC {
        return Err(ImageError::format(
            path,
            "begins as a qcow2 image, and is to be raw",
        ));
    }
    Ok(())
}

/// Every table of the image agrees with the others. Lost space alone does no harm.
async fn sound(at: &HostPath, job: &Job) -> Result<(), ImageError> {
    let found = check(at, ImageFormat::Qcow2, job).await?;
    if found.corruptions > 0 || found.errors > 0 {
        return Err(ImageError::corrupt(
            at,
            "has tables that contradict each other",
        ));
    }
    Ok(())
}

/// Writes all but the zeros.
fn write_sparse(file: &File, mut at: u64, mut piece: &[u8]) -> io::Result<()> {
    while !piece.is_empty() {
        let to_boundary = HOLE - usize::try_from(at % HOLE as u64).unwrap_or_default();
        let (block, rest) = piece.split_at(to_boundary.min(piece.len()));
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, at)?;
        }
        at += block.len() as u64;
        piece = rest;
    }
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
