//! Copies of its disks that a QEMU makes for backups: whose turn it is, and the end of what nobody waits for.
//!
//! A monitor has one client, and its client gives one turn at a time. So what copies while nobody has the
//! turn was begun by a process that is gone.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::client::QmpClient;
use super::commands::decode;
use super::error::QmpError;
use super::layers::BACKUP_PREFIX;
use super::replies::RunState;

/// For ending what copies: QEMU waits for what it has sent to either side. One whose target hangs never ends.
const END: Duration = Duration::from_secs(30);

/// A client's turns.
#[derive(Debug, Default)]
pub(super) struct Turns {
    turn: Arc<Mutex<()>>,
    ending: CancellationToken,
}

/// The right to have a QEMU copy its disks, until it is dropped.
#[derive(Debug)]
pub struct CopyTurn {
    qmp: QmpClient,
    ending: CancellationToken,
    _alone: OwnedMutexGuard<()>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Node {
    node_name: Option<String>,
}

impl QmpClient {
    /// Waits for the turn; `None` when the client is being closed.
    pub async fn turn_to_copy(&self) -> Option<CopyTurn> {
        let Turns { turn, ending } = self.turns();
        let taken = Arc::clone(turn).lock_owned();
        let alone = ending.run_until_cancelled(taken).await?;
        Some(self.turn(alone))
    }

    /// Has whoever has the turn end, and waits until he has. Nobody gets it from then on.
    pub async fn end_copying(&self) {
        let Turns { turn, ending } = self.turns();
        ending.cancel();
        drop(turn.lock().await);
    }

    /// Ends what a process that is gone has left copying. While somebody has the turn there is no such thing:
    /// he has seen to it. Whether there was.
    pub async fn end_left_copies(&self) -> Result<bool, QmpError> {
        match Arc::clone(&self.turns().turn).try_lock_owned() {
            Ok(alone) => self.turn(alone).end_copies().await,
            Err(_taken) => Ok(false),
        }
    }

    /// Before the guest writes over what is not copied yet, QEMU copies it; where that fails, so does what the guest
    /// writes, and it stands still. Once nothing is copied any more it may make its request again. Whether it does.
    pub async fn go_on_after_copies(&self) -> Result<bool, QmpError> {
        if self.query_status().await?.status != RunState::IoError {
            return Ok(false);
        }
        self.cont().await.map(|()| true)
    }

    fn turn(&self, alone: OwnedMutexGuard<()>) -> CopyTurn {
        CopyTurn {
            qmp: self.clone(),
            ending: self.turns().ending.clone(),
            _alone: alone,
        }
    }
}

impl CopyTurn {
    /// Fires when the turn is to be given back, as the client is being closed.
    pub fn ending(&self) -> &CancellationToken {
        &self.ending
    }

    /// Ends every job that copies, closes every file that was copied into, and forgets their keys. Whether there
    /// was such a job.
    pub async fn end_copies(&self) -> Result<bool, QmpError> {
        let work = async {
            let any = self.qmp.end_jobs(BACKUP_PREFIX).await?;
            // At once: of many machines that are taken back each turn of their QEMUs counts.
            let (targets, keys) = tokio::try_join!(self.targets(), self.keys())?;
            for node in targets {
                self.qmp.blockdev_del(&node).await?;
            }
            for id in keys {
                self.qmp.execute("object-del", json!({ "id": id })).await?;
            }
            Ok(any)
        };
        let late = QmpError::Timeout {
            what: "the end of a copy".to_owned(),
            deadline: END,
        };
        timeout(END, work).await.unwrap_or(Err(late))
    }

    async fn targets(&self) -> Result<Vec<String>, QmpError> {
        let command = "query-named-block-nodes";
        let answer = self.qmp.execute(command, json!({ "flat": true })).await?;
        let nodes: Vec<Node> = decode(command, &answer)?;
        let names = nodes.into_iter().filter_map(|node| node.node_name);
        Ok(names
            .filter(|name| name.starts_with(BACKUP_PREFIX))
            .collect())
    }

    /// They were needed to open the files, and are there only if whoever did was killed.
    async fn keys(&self) -> Result<Vec<String>, QmpError> {
        let mut objects = self.qmp.objects().await?;
        objects.retain(|object| object.starts_with(BACKUP_PREFIX));
        Ok(objects)
    }
}
