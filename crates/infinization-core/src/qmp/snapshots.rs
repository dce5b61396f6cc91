//! Internal snapshots of a running machine, in QEMU's own commands, and what must be known of the
//! machine to take one back.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::client::QmpClient;
use super::commands::decode;
use super::error::QmpError;

/// Memory may have to go to a slow disk. While QEMU writes it, it answers nothing.
const MEMORY_DEADLINE: Duration = Duration::from_secs(60 * 60);

/// A node of the block graph (`query-named-block-nodes`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockNode {
    /// Its name.
    pub node_name: Option<String>,
    /// The driver (`qcow2`, `raw`, `file`).
    pub drv: String,
    /// What it holds.
    pub image: NodeImage,
}

/// The image of a [`BlockNode`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct NodeImage {
    /// Its internal snapshots as QEMU describes them (`SnapshotInfo`), which is also how `qemu-img`
    /// does; oldest first.
    #[serde(default)]
    pub snapshots: Vec<Value>,
}

impl QmpClient {
    /// Every named node, without what is behind each.
    pub async fn query_named_block_nodes(&self) -> Result<Vec<BlockNode>, QmpError> {
        self.answer_to("query-named-block-nodes", json!({ "flat": true }))
            .await
    }

    /// Makes a snapshot of each node, all at the same moment, or none.
    pub async fn snapshot_disks(&self, nodes: &[String], name: &str) -> Result<(), QmpError> {
        let actions: Vec<Value> = nodes
            .iter()
            .map(|node| {
                json!({
                    "type": "blockdev-snapshot-internal-sync",
                    "data": { "device": node, "name": name },
                })
            })
            .collect();
        let arguments = json!({ "actions": actions });
        self.execute("transaction", arguments).await.map(drop)
    }

    /// Makes a snapshot of the nodes and of the machine's memory, which goes into the first one. The
    /// guest stands still meanwhile.
    pub async fn snapshot_save(&self, nodes: &[String], name: &str) -> Result<(), QmpError> {
        let mut arguments = devices(nodes, name);
        arguments.insert("vmstate".to_owned(), json!(nodes.first()));
        self.run_job("snapshot-save", arguments, MEMORY_DEADLINE)
            .await
    }

    /// Puts the nodes and the machine's memory, found in `vmstate`, back. A guest that ran goes on
    /// from there; when it fails, the guest stands still.
    pub async fn snapshot_load(
        &self,
        nodes: &[String],
        vmstate: &str,
        name: &str,
    ) -> Result<(), QmpError> {
        let mut arguments = devices(nodes, name);
        arguments.insert("vmstate".to_owned(), json!(vmstate));
        self.run_job("snapshot-load", arguments, MEMORY_DEADLINE)
            .await
    }

    /// Deletes the snapshot from every node that has it.
    pub async fn snapshot_delete(&self, nodes: &[String], name: &str) -> Result<(), QmpError> {
        self.run_job("snapshot-delete", devices(nodes, name), MEMORY_DEADLINE)
            .await
    }

    /// What the machine is made of, as far as saved memory depends on it: one word per device, the
    /// CPUs and the memory; sorted.
    pub async fn hardware(&self) -> Result<Vec<String>, QmpError> {
        let path = json!({ "path": "/machine/peripheral" });
        let devices: Vec<QomChild> = self.answer_to("qom-list", path).await?;
        let memory: MemorySize = self
            .answer_to("query-memory-size-summary", json!({}))
            .await?;
        let cpus = self.query_cpus_fast().await?.len();
        let mut words: Vec<String> = devices.iter().filter_map(QomChild::word).collect();
        words.push(format!("cpus={cpus}"));
        words.push(format!("memory={}", memory.base + memory.plugged));
        words.sort();
        Ok(words)
    }

    async fn answer_to<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        decode(command, &self.execute(command, arguments).await?)
    }
}

fn devices(nodes: &[String], name: &str) -> Map<String, Value> {
    Map::from_iter([
        ("tag".to_owned(), json!(name)),
        ("devices".to_owned(), json!(nodes)),
    ])
}

/// A property of a QOM object.
#[derive(Deserialize)]
struct QomChild {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl QomChild {
    /// `disk0=virtio-blk-pci`; nothing for what is no device.
    fn word(&self) -> Option<String> {
        let kind = self.kind.strip_prefix("child<")?.strip_suffix('>')?;
        Some(format!("{}={kind}", self.name))
    }
}

#[derive(Deserialize)]
struct MemorySize {
    #[serde(rename = "base-memory")]
    base: u64,
    #[serde(rename = "plugged-memory", default)]
    plugged: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_count_as_hardware() {
        let table = [
            (
                "disk0",
                "child<virtio-blk-pci>",
                Some("disk0=virtio-blk-pci"),
            ),
            ("type", "string", None),
            ("rtc-time", "struct tm", None),
        ];
        for (name, kind, word) in table {
            let child = QomChild {
                name: name.to_owned(),
                kind: kind.to_owned(),
            };
            assert_eq!(child.word().as_deref(), word, "{name}");
        }
    }

    #[test]
    fn a_node_without_snapshots_has_none() {
        let told = r#"{"drv":"file","node-name":"anonymous","image":{"virtual-size":1}}"#;
        let node: BlockNode = serde_json::from_str(told).unwrap();
        assert!(node.image.snapshots.is_empty());
    }
}
