//! Which files an image lies on, for whoever is about to change or remove one of them. Nothing is judged:
//! what may be opened says [`super::inspect()`].

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::header::Qcow2Header;
use super::inspect::{LONGEST_CHAIN, MAGIC, file_name, open, read_header};
use super::job::blocking;
use super::{ImageError, ImageFormat};
use crate::types::HostPath;

/// A chain that was another one at each of so many looks is a mistake or an attack.
const MOST_LOOKS: usize = 256;

/// The real files below an image, nearest first, whether or not they may be opened. What is no qcow2 lies
/// on nothing, and nothing is known to lie below a file that is gone. What cannot be read, or names what is no
/// plain file, is an error: it may lie on anything.
///
/// The chain may change meanwhile, by whoever puts what lies on a file onto others and then removes it.
pub async fn files_below(path: &HostPath) -> Result<Vec<HostPath>, ImageError> {
    let image = path.clone();
    blocking(path, move || files_below_now(&image)).await
}

fn files_below_now(image: &HostPath) -> Result<Vec<HostPath>, ImageError> {
    let mut before = None;
    for _ in 0..MOST_LOOKS {
        let look = look_below(image)?;
        // A file that is gone may have been there when its name was read: the name is read again.
        if !look.broken || before.as_ref() == Some(&look) {
            return Ok(look.files);
        }
        before = Some(look);
    }
    let why = "its backing files do not stop changing";
    Err(ImageError::unsafe_backing(image, why))
}

/// A chain as it was followed once.
#[derive(Default, PartialEq, Eq)]
struct Look {
    files: Vec<HostPath>,
    /// It ends at a file that is gone.
    broken: bool,
}

fn look_below(image: &HostPath) -> Result<Look, ImageError> {
    let mut look = Look::default();
    // As QEMU, by the names that were given: what a symbolic link points at may lie beside other files.
    let mut named = image.as_path().to_owned();
    let mut at = real_file(image, &named)?;
    while let Some(real) = at {
        let claim = match header_if_any(&real) {
            Err(ImageError::NotFound { .. }) => break,
            header => header?.and_then(|header| header.backing),
        };
        let Some(claim) = claim else { return Ok(look) };
        if look.files.len() == LONGEST_CHAIN {
            let why = "its backing files lead in a circle";
            return Err(ImageError::unsafe_backing(image, why));
        }
        named = file_name(image, &named, &claim)?;
        at = real_file(image, &named)?;
        look.files.extend(at.clone());
        if at.is_some() && claim.format.as_deref() == Some(ImageFormat::Raw.as_str()) {
            return Ok(look);
        }
    }
    look.broken = true;
    Ok(look)
}

/// Without symbolic links; nothing for a file that is gone.
fn real_file(image: &HostPath, file: &Path) -> Result<Option<HostPath>, ImageError> {
    let real = match file.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::io(image, error)),
    };
    let path = HostPath::parse(real.to_string_lossy());
    let unfit = |why| ImageError::unsafe_backing(image, format!("{} {why}", real.display()));
    path.map(Some).map_err(unfit)
}

fn header_if_any(path: &HostPath) -> Result<Option<Qcow2Header>, ImageError> {
    let (file, length) = open(path)?;
    let mut magic = [0; MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == MAGIC => read_header(path, &file, length).map(Some),
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(ImageError::io(path, error)),
    }
}
