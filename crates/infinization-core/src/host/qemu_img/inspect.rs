//! Looks at an image before QEMU does: is it a file, is it what it is said to be, and which other
//! files would be opened with it.
//!
//! An image may name others in its header, and whoever made the image chose them. So a chain is
//! followed here first: plain file names only (never `json:` or `nbd:`), the format recorded and
//! qcow2 (a raw one would show any host file as the disk's content), inside the allowed
//! directories, and not in a circle.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::header::{
    BackingClaim, HeaderError, LONGEST_HEADER, Qcow2Header, USUAL_HEADER, may_be_longer,
};
use super::in_use::{self, Access};
use super::job::blocking;
use super::{ImageError, ImageFormat, vmdk};
use crate::types::{ByteSize, DiskKey, HostPath};

/// More links than this are a mistake or an attack; QEMU opens them all at once.
pub(super) const LONGEST_CHAIN: usize = 256;
/// What a qcow2 begins with.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The bits of a level 1 entry that are an offset.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What was found out about an image that may be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The disk's size as a guest sees it; only qcow2 and raw are read by us.
    pub virtual_size: Option<ByteSize>,
    /// The files that will be opened with it, nearest first, without symbolic links.
    pub backing_chain: Vec<HostPath>,
    /// How many are encrypted: the image itself is the first, and those right below it follow.
    pub encrypted: usize,
}

impl Inspection {
    /// The files that a key is needed for, nearest first; `image` is the one that was inspected.
    pub fn encrypted_layers(&self, image: &HostPath) -> Vec<HostPath> {
        let all = std::iter::once(image).chain(&self.backing_chain);
        all.take(self.encrypted).cloned().collect()
    }
}

/// Says whether a machine may run on the image, of which `format` is what the caller knows, not
/// what the file claims. Raw images are only checked to be files.
///
/// Refused: what is no file or block device (`INVALID_FORMAT`), corrupt, truncated or not closed
/// cleanly (`IMAGE_CORRUPT`), encrypted (`KEY_REQUIRED`), a backing chain that leads elsewhere (`UNSAFE_BACKING_FILE`), and a path outside `allowed` unless
/// that is empty (`PERMISSION_DENIED`).
pub async fn inspect(
    path: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
) -> Result<Inspection, ImageError> {
    let (image, allowed) = (path.clone(), allowed.to_vec());
    blocking(path, move || inspect_now(&image, format, &allowed)).await
}

/// [`inspect`] of an image that is not opened now, and so may be encrypted.
pub async fn inspect_closed(
    path: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
) -> Result<Inspection, ImageError> {
    let (image, allowed) = (path.clone(), allowed.to_vec());
    blocking(path, move || inspect_closed_now(&image, format, &allowed)).await
}

/// [`inspect_closed`] for whoever is on a thread that may block.
pub(super) fn inspect_closed_now(
    image: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
) -> Result<Inspection, ImageError> {
    let look = look_at(image, format)?;
    look.refuse_damaged(image)?;
    inspection(image, format, &look, allowed)
}

/// [`inspect`] for whoever is on a thread that may block.
pub fn inspect_now(
    image: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
) -> Result<Inspection, ImageError> {
    inspect_with_key_now(image, format, allowed, None)
}

/// [`inspect_now`] for whoever may have the image's key: it must have one exactly if it is encrypted
/// (`INVALID_FORMAT`). Whether it is the right one only QEMU finds out.
pub fn inspect_with_key_now(
    image: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
    key: Option<&DiskKey>,
) -> Result<Inspection, ImageError> {
    let look = look_at(image, format)?;
    fits_key(image, &look, key)?;
    look.refuse_damaged(image)?;
    inspection(image, format, &look, allowed)
}

fn inspection(
    image: &HostPath,
    format: ImageFormat,
    look: &Look,
    allowed: &[HostPath],
) -> Result<Inspection, ImageError> {
    let (backing_chain, encrypted) = follow(image, look.header.as_ref(), allowed)?;
    Ok(Inspection {
        virtual_size: look.virtual_size(format),
        backing_chain,
        encrypted,
    })
}

/// For verbs that read or change the image and open its chain, and may have been given its key: everything
/// [`inspect`] refuses, except damage that the verb itself is there to find or that reading does not touch.
pub(super) async fn vet_with_key(
    path: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
    key: Option<&DiskKey>,
) -> Result<Inspection, ImageError> {
    let (image, allowed, key) = (path.clone(), allowed.to_vec(), key.cloned());
    blocking(path, move || {
        vet_now(&image, format, &allowed, key.as_ref())
    })
    .await
}

/// The same, once it is found that nobody forbids `access`, for whoever is on a thread that may block.
pub(super) fn vet_unused_now(
    image: &HostPath,
    format: ImageFormat,
    access: Access,
    allowed: &[HostPath],
    key: Option<&DiskKey>,
) -> Result<Inspection, ImageError> {
    in_use::refuse_now(image, access)?;
    vet_now(image, format, allowed, key)
}

/// [`vet_with_key`] for whoever is on a thread that may block.
pub(super) fn vet_now(
    image: &HostPath,
    format: ImageFormat,
    allowed: &[HostPath],
    key: Option<&DiskKey>,
) -> Result<Inspection, ImageError> {
    let look = look_at(image, format)?;
    fits_key(image, &look, key)?;
    inspection(image, format, &look, allowed)
}

/// For verbs that open the image alone. Blocks.
pub(super) fn vet_alone_now(image: &HostPath, format: ImageFormat) -> Result<(), ImageError> {
    look_at(image, format).map(drop)
}

/// Whether a key is needed to read the image. Only qcow2 has any encryption here.
pub async fn is_encrypted(path: &HostPath, format: ImageFormat) -> Result<bool, ImageError> {
    let image = path.clone();
    blocking(path, move || is_encrypted_now(&image, format)).await
}

/// [`is_encrypted`] for whoever is on a thread that may block.
pub fn is_encrypted_now(path: &HostPath, format: ImageFormat) -> Result<bool, ImageError> {
    let qcow2 = format == ImageFormat::Qcow2;
    Ok(qcow2 && header_of(path)?.encrypted())
}

/// Refuses to have what an encrypted image holds written to `what`, which is not encrypted.
pub fn refuse_plain_text_now(
    path: &HostPath,
    format: ImageFormat,
    what: &'static str,
) -> Result<(), ImageError> {
    if is_encrypted_now(path, format)? {
        let path = path.clone();
        return Err(ImageError::PlainText { path, what });
    }
    Ok(())
}

/// A qcow2's header. Blocks.
pub(super) fn header_of(path: &HostPath) -> Result<Qcow2Header, ImageError> {
    let (file, length) = open(path)?;
    read_header(path, &file, length)
}

/// An open image and, of a qcow2, its header.
struct Look {
    file: File,
    length: u64,
    header: Option<Qcow2Header>,
}

impl Look {
    fn refuse_damaged(&self, image: &HostPath) -> Result<(), ImageError> {
        let Some(header) = &self.header else {
            return Ok(());
        };
        refuse_marked(image, header)?;
        refuse_dirty(image, header)?;
        refuse_lost_tables(image, header, self)
    }

    fn virtual_size(&self, format: ImageFormat) -> Option<ByteSize> {
        match (&self.header, format) {
            (Some(header), _) => Some(ByteSize::bytes(header.virtual_size)),
            (None, ImageFormat::Raw) => Some(ByteSize::bytes(self.length)),
            (None, _) => None,
        }
    }
}

fn look_at(path: &HostPath, format: ImageFormat) -> Result<Look, ImageError> {
    let (file, length) = open(path)?;
    let header = match format {
        ImageFormat::Qcow2 => Some(read_header(path, &file, length)?),
        ImageFormat::Vmdk => {
            vmdk::refuse_foreign_files(path, &file, length)?;
            None
        }
        ImageFormat::Raw | ImageFormat::Vdi | ImageFormat::Vhdx => None,
    };
    Ok(Look {
        file,
        length,
        header,
    })
}

/// Opens what is a file, or a block device below `/dev`. Its kind is known before it is opened:
/// opening a FIFO would wait, and opening some devices does something. Also gives its length.
pub(super) fn open(path: &HostPath) -> Result<(File, u64), ImageError> {
    let io = |source| ImageError::io(path, source);
    let kind = fs::metadata(path.as_path()).map_err(io)?.file_type();
    let device = kind.is_block_device() && path.as_path().starts_with("/dev");
    if !kind.is_file() && !device {
        return Err(ImageError::format(path, "is not a file, so it is no image"));
    }
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path.as_path())
        .map_err(io)?;
    let length = file.seek(SeekFrom::End(0)).map_err(io)?;
    Ok((file, length))
}

pub(super) fn read_header(
    path: &HostPath,
    file: &File,
    length: u64,
) -> Result<Qcow2Header, ImageError> {
    parse_header(path, &header_bytes(path, file)?, length)
}

/// The first cluster, which a header and its extensions are in, or what there is of it.
pub(super) fn header_bytes(path: &HostPath, mut file: &File) -> Result<Vec<u8>, ImageError> {
    let io = |source| ImageError::io(path, source);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    file.take(USUAL_HEADER)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if may_be_longer(&bytes) {
        let rest = LONGEST_HEADER - USUAL_HEADER;
        file.take(rest).read_to_end(&mut bytes).map_err(io)?;
    }
    Ok(bytes)
}

/// The header in the first bytes of a file of `length` bytes.
pub(super) fn parse_header(
    path: &HostPath,
    bytes: &[u8],
    length: u64,
) -> Result<Qcow2Header, ImageError> {
    let header = Qcow2Header::parse(bytes).map_err(|error| match error {
        HeaderError::NotQcow2 => ImageError::format(path, "is not a qcow2 image"),
        HeaderError::UnknownFeature => ImageError::format(path, "needs an unknown qcow2 feature"),
        HeaderError::Broken(how) => ImageError::corrupt(path, how),
    })?;
    if header.external_data_file() {
        return Err(ImageError::unsafe_backing(path, "an external data file"));
    }
    if header.fits(length) {
        Ok(header)
    } else {
        Err(ImageError::corrupt(path, "is truncated"))
    }
}

fn refuse_marked(path: &HostPath, header: &Qcow2Header) -> Result<(), ImageError> {
    if header.marked_corrupt() {
        return Err(ImageError::corrupt(path, "is marked as corrupt"));
    }
    Ok(())
}

/// A key that is not needed is refused, too: whoever gives one takes the image for encrypted.
fn fits_key(path: &HostPath, look: &Look, key: Option<&DiskKey>) -> Result<(), ImageError> {
    let header = look.header.as_ref().filter(|header| header.encrypted());
    match (header, key) {
        (None, Some(_)) => Err(ImageError::format(path, "is not encrypted, but has a key")),
        (Some(header), _) if !header.luks() => Err(not_luks(path)),
        (Some(_), None) => Err(ImageError::KeyRequired { path: path.clone() }),
        (None, None) | (Some(_), Some(_)) => Ok(()),
    }
}

fn not_luks(path: &HostPath) -> ImageError {
    ImageError::format(
        path,
        "has an encryption that QEMU does not run machines on any more",
    )
}

fn refuse_dirty(path: &HostPath, header: &Qcow2Header) -> Result<(), ImageError> {
    if header.dirty() {
        Err(ImageError::corrupt(
            path,
            "was not closed cleanly: `qemu-img check -r all` repairs it",
        ))
    } else {
        Ok(())
    }
}

/// A level 2 table is on disk before the level 1 table points at it, so one that is not in the file
/// was cut off. The level 2 tables' own pointers prove nothing: after a power cut they may be ahead
/// of data the guest never flushed. Lost data alone is for [`super::check()`] to find.
fn refuse_lost_tables(
    path: &HostPath,
    header: &Qcow2Header,
    look: &Look,
) -> Result<(), ImageError> {
    let mut table = vec![0; header.l1_entries as usize * 8];
    look.file
        .read_exact_at(&mut table, header.l1_offset)
        .map_err(|source| ImageError::io(path, source))?;
    let (entries, _) = table.as_chunks();
    let lost = entries
        .iter()
        .map(|entry| u64::from_be_bytes(*entry) & L1_OFFSET)
        .any(|offset| offset != 0 && offset + header.cluster_size > look.length);
    if lost {
        Err(ImageError::corrupt(path, "is truncated"))
    } else {
        Ok(())
    }
}

/// The files behind the image, each of which may be opened, and how many of all are encrypted.
fn follow(
    image: &HostPath,
    header: Option<&Qcow2Header>,
    allowed: &[HostPath],
) -> Result<(Vec<HostPath>, usize), ImageError> {
    let allowed = canonical_roots(allowed);
    let mut seen = HashSet::from([confined(image, image.as_path(), &allowed)?]);
    let mut chain = Vec::new();
    let mut overlay = image.as_path().to_owned();
    let mut claim = header.and_then(|header| header.backing.clone());
    let mut above = header.is_some_and(Qcow2Header::encrypted);
    let mut encrypted = usize::from(above);
    while let Some(backing) = claim {
        overlay = named_by(image, &overlay, &backing)?;
        let real = confined(image, &overlay, &allowed)?;
        if !seen.insert(real.clone()) || chain.len() == LONGEST_CHAIN {
            return Err(ImageError::unsafe_backing(
                image,
                "its backing files lead in a circle",
            ));
        }
        let found = link(&real, above).map_err(|why| ImageError::unsafe_backing(image, why));
        let (real, header) = found?;
        chain.push(real);
        above = header.encrypted();
        encrypted += usize::from(above);
        claim = header.backing;
    }
    Ok((chain, encrypted))
}

/// The path QEMU would open: relative names start at the overlay's directory.
fn named_by(image: &HostPath, overlay: &Path, claim: &BackingClaim) -> Result<PathBuf, ImageError> {
    let named = file_name(image, overlay, claim)?;
    let BackingClaim { name, format } = claim;
    if format.as_deref() != Some(ImageFormat::Qcow2.as_str()) {
        let format = format.as_deref().unwrap_or("none");
        let why = format!("{name:?} must be recorded as qcow2, not {format}");
        return Err(ImageError::unsafe_backing(image, why));
    }
    Ok(named)
}

/// A relative name starts at the overlay's directory.
pub(super) fn file_name(
    image: &HostPath,
    overlay: &Path,
    claim: &BackingClaim,
) -> Result<PathBuf, ImageError> {
    let name = &claim.name;
    let first_part = name.split('/').next().unwrap_or_default();
    if first_part.contains(':') {
        return Err(ImageError::unsafe_backing(
            image,
            format!("{name:?} is no plain file name"),
        ));
    }
    Ok(overlay.parent().unwrap_or(Path::new("/")).join(name))
}

/// One backing file, opened and read as the qcow2 it must be. It is encrypted only if what lies on it is.
fn link(real: &Path, above: bool) -> Result<(HostPath, Qcow2Header), String> {
    let text = real.to_str().ok_or("its path is not text")?;
    let path = HostPath::parse(text).map_err(|why| format!("{text:?} {why}"))?;
    let header = look_at(&path, ImageFormat::Qcow2)
        .and_then(|look| {
            let header = look
                .header
                .ok_or_else(|| ImageError::format(&path, "has no header"))?;
            refuse_marked(&path, &header)?;
            if header.encrypted() && !above {
                let what = "what lies on it";
                return Err(ImageError::PlainText {
                    path: path.clone(),
                    what,
                });
            }
            if header.encrypted() && !header.luks() {
                return Err(not_luks(&path));
            }
            Ok(header)
        })
        .map_err(|error| error.to_string())?;
    Ok((path, header))
}

/// The file's real path, if it is inside one of `allowed` or nothing is confined.
///
/// A device stays as it was named: what its symbolic links in `/dev` point at is the host's choice.
fn confined(image: &HostPath, file: &Path, allowed: &[PathBuf]) -> Result<PathBuf, ImageError> {
    let real = if file.starts_with("/dev") {
        Ok(file.to_owned())
    } else {
        file.canonicalize()
    };
    let of_image = file == image.as_path();
    let real = real.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound if !of_image => {
            ImageError::unsafe_backing(image, format!("{} does not exist", file.display()))
        }
        _ => ImageError::io(image, source),
    })?;
    if allowed.is_empty() || allowed.iter().any(|root| real.starts_with(root)) {
        return Ok(real);
    }
    Err(if of_image {
        ImageError::OutsideAllowed {
            path: image.clone(),
        }
    } else {
        ImageError::unsafe_backing(
            image,
            format!("{} is outside the allowed directories", real.display()),
        )
    })
}

/// A root that does not exist allows nothing, and keeps the list from being empty.
fn canonical_roots(allowed: &[HostPath]) -> Vec<PathBuf> {
    let real = |root: &HostPath| {
        let root = root.as_path();
        root.canonicalize().unwrap_or_else(|_| root.to_owned())
    };
    allowed.iter().map(real).collect()
}
