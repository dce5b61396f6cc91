//! A machine as its backups see it.

use async_trait::async_trait;
use infinization_core::backup::Machine;
use infinization_core::qmp::QmpClient;
use infinization_core::types::HostPath;
use tokio::sync::Notify;

use super::drill::{Meanwhile, raw_copy};
use super::*;

/// The machine as its backups see it; who sees it sees what its disks hold.
pub(super) struct Witness {
    pub(super) manager: Manager,
    pub(super) vm: &'static str,
    pub(super) disks: Vec<PathBuf>,
    /// Where the disks are copied to while the guest stands still. Without it, it does not.
    pub(super) aside: Option<PathBuf>,
    /// The copying has begun.
    pub(super) thawed: Notify,
    pub(super) meanwhile: Meanwhile,
}

impl Witness {
    async fn ask(&self, command: &str, arguments: Value) -> Value {
        let answer = self.manager.qmp_execute(self.vm, command, arguments).await;
        serde_json::from_str(answer.unwrap().get()).unwrap()
    }

    /// Of the jobs of the backup, in bytes per second; 0 is without a limit. Whether one was still at work.
    pub(super) async fn speed(&self, speed: u64) -> bool {
        let jobs = self.ask("query-jobs", Value::Null).await;
        let mut set = false;
        for job in jobs.as_array().unwrap() {
            let arguments = json!({ "device": job["id"], "speed": speed });
            if job["id"].as_str().unwrap().starts_with("infz-bk-") && job["status"] == "running" {
                let limit = self
                    .manager
                    .qmp_execute(self.vm, "block-job-set-speed", arguments);
                set |= limit.await.is_ok();
            }
        }
        set
    }
}

#[async_trait]
impl Machine for Witness {
    async fn is_running(&self) -> Option<bool> {
        Some(true)
    }

    fn monitor(&self) -> Option<QmpClient> {
        self.manager.qmp_client(self.vm)
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        if self.meanwhile == Meanwhile::Late {
            take(&self.manager, self.vm, "late").await.unwrap();
        }
        let Some(aside) = &self.aside else {
            return Ok(Some(0));
        };
        self.ask("stop", Value::Null).await;
        for (n, disk) in self.disks.iter().enumerate() {
            let copy = raw_copy(disk, aside);
            std::fs::rename(copy, aside.join(format!("{n}.raw"))).unwrap();
        }
        Ok(Some(1))
    }

    async fn thaw(&self) -> Result<(), String> {
        self.thawed.notify_one();
        if self.aside.is_some() {
            self.ask("cont", Value::Null).await;
        }
        Ok(())
    }

    async fn frozen_layers(&self) -> Result<Vec<HostPath>, String> {
        let layers = self.manager.frozen_layers().await;
        layers.map_err(|failure| failure.to_string())
    }
}

/// A machine that does not run.
pub(super) struct Off;

#[async_trait]
impl Machine for Off {
    async fn is_running(&self) -> Option<bool> {
        Some(false)
    }

    fn monitor(&self) -> Option<QmpClient> {
        None
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        Ok(None)
    }

    async fn thaw(&self) -> Result<(), String> {
        Ok(())
    }
}
