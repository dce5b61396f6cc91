//! Names of images that say how each of their layers is opened: `json:` of QEMU's options (pure).
//!
//! A file's name is enough where no layer is encrypted. An encrypted one needs its key wherever in a chain it
//! is, which only options can say.

use serde_json::{Value, json};

use super::command::KEY;
use crate::types::HostPath;

/// An encrypted image by itself: what lies below it stays closed.
pub(super) fn alone(image: &HostPath) -> Value {
    over(encrypted(image), Value::Null)
}

/// The same of one whose locks the program is given: it takes none.
pub(super) fn held(image: &HostPath) -> Value {
    let mut node = alone(image);
    node["file"]["locking"] = json!("off");
    node
}

/// Encrypted layers, nearest first. What lies below them is opened as the last one's header says.
pub(super) fn layers(layers: &[HostPath]) -> Value {
    let nodes = layers.iter().rev().map(encrypted);
    nodes
        .reduce(|below, node| over(node, below))
        .unwrap_or_default()
}

/// A whole chain of qcow2 files, nearest first, of which so many are encrypted, on `bottom`. No backing name
/// out of a header is followed.
pub(super) fn chain(files: &[HostPath], encrypted_ones: usize, bottom: Value) -> Value {
    let files = files.iter().enumerate().rev();
    files.fold(bottom, |below, (at, file)| {
        let node = if at < encrypted_ones {
            encrypted(file)
        } else {
            qcow2(file)
        };
        over(node, below)
    })
}

/// For a command line.
pub(super) fn name(node: &Value) -> String {
    format!("json:{node}")
}

fn qcow2(file: &HostPath) -> Value {
    json!({ "driver": "qcow2", "file": { "driver": "file", "filename": file } })
}

fn encrypted(file: &HostPath) -> Value {
    let mut node = qcow2(file);
    node["encrypt"] = json!({ "format": "luks", "key-secret": KEY });
    node
}

fn over(mut node: Value, below: Value) -> Value {
    node["backing"] = below;
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> HostPath {
        HostPath::parse(format!("/b/{name}")).unwrap()
    }

    #[test]
    fn a_chain_is_opened_by_name_and_nothing_below_its_end() {
        let found = chain(&[path("new"), path("old \"x\"")], 1, Value::Null);
        assert_eq!(found["file"]["filename"], "/b/new");
        assert_eq!(found["encrypt"]["key-secret"], KEY);
        assert_eq!(found["backing"]["file"]["filename"], "/b/old \"x\"");
        assert_eq!(found["backing"].get("encrypt"), None);
        assert_eq!(found["backing"]["backing"], Value::Null);
    }

    #[test]
    fn b38_below_the_encrypted_layers_the_header_is_followed() {
        let found = layers(&[path("new"), path("old")]);
        assert_eq!(found["backing"]["encrypt"]["format"], "luks");
        assert_eq!(found["backing"].get("backing"), None);
        assert_eq!(alone(&path("a"))["backing"], Value::Null);
    }

    #[test]
    fn the_longest_chain_fits_on_a_command_line() {
        let links = vec![HostPath::parse(format!("/{}", "x".repeat(250))).unwrap(); 256];
        // The kernel's MAX_ARG_STRLEN.
        assert!(name(&chain(&links, 256, Value::Null)).len() < 128 << 10);
    }
}
