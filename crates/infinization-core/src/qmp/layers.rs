//! Overlays under a running machine, and the jobs that make two layers one, in QEMU's own commands.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::client::QmpClient;
use super::commands::decode;
use super::error::QmpError;
use super::jobs::Job;
use crate::types::DiskKey;

/// The names of the dirty bitmaps that incremental backups make begin so.
pub const BITMAP_PREFIX: &str = "infz-";
/// The names of the block nodes and jobs that backups make begin so.
pub const BACKUP_PREFIX: &str = "infz-bk-";

/// A node of the block graph, as far as layers matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerNode {
    /// Its name.
    pub name: String,
    /// The driver (`qcow2`, `raw`).
    pub format: String,
    /// The file it holds, as QEMU was told its path.
    pub file: String,
    /// The disk's size in bytes.
    pub size: u64,
    /// Its dirty bitmaps.
    pub bitmaps: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Told {
    node_name: Option<String>,
    drv: String,
    image: Image,
    #[serde(default)]
    dirty_bitmaps: Vec<Bitmap>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    filename: String,
    virtual_size: u64,
}

#[derive(Deserialize)]
struct Property {
    name: String,
}

#[derive(Deserialize)]
struct Bitmap {
    #[serde(default)]
    name: String,
}

impl QmpClient {
    /// Every qcow2 node.
    pub async fn query_layers(&self) -> Result<Vec<LayerNode>, QmpError> {
        let mut layers = self.query_images().await?;
        layers.retain(|node| node.format == "qcow2");
        Ok(layers)
    }

    /// Every node, of any driver.
    pub async fn query_images(&self) -> Result<Vec<LayerNode>, QmpError> {
        let command = "query-named-block-nodes";
        let answer = self.execute(command, json!({ "flat": true })).await?;
        let nodes: Vec<Told> = decode(command, &answer)?;
        let nodes = nodes.into_iter();
        Ok(nodes
            .filter_map(|node| {
                Some(LayerNode {
                    name: node.node_name?,
                    format: node.drv,
                    file: file_name(&node.image.filename),
                    size: node.image.virtual_size,
                    bitmaps: node.dirty_bitmaps.into_iter().map(|one| one.name).collect(),
                })
            })
            .collect())
    }

    /// Changes the size of the disk a node holds, in bytes.
    pub async fn block_resize(&self, node: &str, size: u64) -> Result<(), QmpError> {
        let arguments = json!({ "node-name": node, "size": size });
        self.execute("block_resize", arguments).await.map(drop)
    }

    /// Opens a node.
    pub async fn blockdev_add(&self, options: Value) -> Result<(), QmpError> {
        self.execute("blockdev-add", options).await.map(drop)
    }

    /// Gives QEMU the key of an image, under the name `id`. Only what is opened while it has the name can use it.
    pub async fn add_secret(&self, id: &str, key: &DiskKey) -> Result<(), QmpError> {
        let arguments = json!({ "qom-type": "secret", "id": id, "data": key.reveal() });
        self.execute("object-add", arguments).await.map(drop)
    }

    /// Removes an object, if there is one.
    pub async fn object_del(&self, id: &str) -> Result<(), QmpError> {
        if !self.objects().await?.iter().any(|object| object == id) {
            return Ok(());
        }
        self.execute("object-del", json!({ "id": id }))
            .await
            .map(drop)
    }

    /// The names of the objects that were added.
    pub async fn objects(&self) -> Result<Vec<String>, QmpError> {
        let arguments = json!({ "path": "/objects" });
        let answer = self.execute("qom-list", arguments).await?;
        let found: Vec<Property> = decode("qom-list", &answer)?;
        Ok(found.into_iter().map(|property| property.name).collect())
    }

    /// Closes a node that nothing uses.
    pub async fn blockdev_del(&self, node: &str) -> Result<(), QmpError> {
        let arguments = json!({ "node-name": node });
        self.execute("blockdev-del", arguments).await.map(drop)
    }

    /// Puts each second node over the first of its pair, all at the same moment, or none.
    pub async fn snapshot_overlays(&self, pairs: &[(String, String)]) -> Result<(), QmpError> {
        let action = |(node, overlay): &(String, String)| {
            json!({
                "type": "blockdev-snapshot",
                "data": { "node": node, "overlay": overlay },
            })
        };
        let actions: Vec<Value> = pairs.iter().map(action).collect();
        let arguments = json!({ "actions": actions });
        self.execute("transaction", arguments).await.map(drop)
    }

    /// Removes a dirty bitmap.
    pub async fn remove_bitmap(&self, node: &str, bitmap: &str) -> Result<(), QmpError> {
        let arguments = json!({ "node": node, "name": bitmap });
        let removed = self.execute("block-dirty-bitmap-remove", arguments);
        removed.await.map(drop)
    }

    /// Copies into `node` what it needs of the layers above `base` (a node and its file), and puts it
    /// on that one, or on nothing.
    pub async fn stream(
        &self,
        node: &str,
        base: Option<(&str, &str)>,
        deadline: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), QmpError> {
        let mut arguments = Map::from_iter([("device".to_owned(), json!(node))]);
        if let Some((base, file)) = base {
            arguments.insert("base-node".to_owned(), json!(base));
            arguments.insert("backing-file".to_owned(), json!(file));
        }
        let job = self.start_job("block-stream", kept(arguments)).await?;
        job.finish(deadline, cancel).await
    }

    /// Copies what the layer `top` holds into `base` (a node and its file), and puts what lies on `top`
    /// on that one. `root` is the uppermost node, and not `top`.
    pub async fn commit_below(
        &self,
        root: &str,
        top: &str,
        base: (&str, &str),
        deadline: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), QmpError> {
        let arguments = Map::from_iter([
            ("device".to_owned(), json!(root)),
            ("top-node".to_owned(), json!(top)),
            ("base-node".to_owned(), json!(base.0)),
            ("backing-file".to_owned(), json!(base.1)),
        ]);
        let job = self.start_job("block-commit", kept(arguments)).await?;
        job.finish(deadline, cancel).await
    }

    /// Starts copying what the active layer `root` holds into `base`; the job is complete when the
    /// device stands on `base`.
    pub async fn commit_active(&self, root: &str, base: &str) -> Result<Job, QmpError> {
        let arguments = Map::from_iter([
            ("device".to_owned(), json!(root)),
            ("base-node".to_owned(), json!(base)),
        ]);
        self.start_job("block-commit", kept(arguments)).await
    }
}

/// Whether QEMU refuses because the node that was meant has another above it, as it has while a backup copies it
/// (`qmp_get_root_bs`, QEMU 7.2).
pub fn says_covered(words: &str) -> bool {
    words == "Need a root block node"
}

/// The job's end stays to be seen until it is dismissed.
fn kept(mut arguments: Map<String, Value>) -> Map<String, Value> {
    arguments.insert("auto-dismiss".to_owned(), json!(false));
    arguments
}

/// The file's name out of QEMU's for an image, which is a `json:{…}` where options had to be kept.
pub fn file_name(told: &str) -> String {
    let options = told
        .strip_prefix("json:")
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(mut node) = options.as_ref() else {
        return told.to_owned();
    };
    // A filter calls what lies below it either.
    let below = |node: &'_ Value| {
        ["file", "image"]
            .into_iter()
            .find(|key| node[key].is_object())
    };
    while let Some(key) = below(node) {
        node = &node[key];
    }
    node["filename"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_under_qemu_s_options() {
        let json = r#"json:{"driver": "qcow2", "backing": null,
            "file": {"driver": "file", "filename": "/d/a.qcow2"}}"#;
        assert_eq!(file_name(json), "/d/a.qcow2");
        let filtered = r#"json:{"driver": "qcow2", "file": {"driver": "blkdebug",
            "image": {"driver": "file", "filename": "/d/b.qcow2"}}}"#;
        assert_eq!(file_name(filtered), "/d/b.qcow2");
        assert_eq!(file_name("/d/a.qcow2"), "/d/a.qcow2");
        assert_eq!(file_name("json:{}"), "");
    }
}
