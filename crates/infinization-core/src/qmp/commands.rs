//! Typed helpers over [`QmpClient::execute`], named after their commands.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;

use super::client::QmpClient;
use super::error::QmpError;
use super::replies::{BalloonInfo, BlockInfo, CpuInfo, SpiceInfo, StatusInfo, VncInfo};
use crate::types::Secret;

/// The display server a password is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum DisplayProtocol {
    Vnc,
    Spice,
}

/// The drive whose medium is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EjectTarget<'a> {
    /// By the guest device's id; the only way for drives made with `-blockdev`.
    Id(&'a str),
    /// By the classic `-drive` name.
    Device(&'a str),
}

impl QmpClient {
    /// What the machine is doing.
    pub async fn query_status(&self) -> Result<StatusInfo, QmpError> {
        self.query("query-status").await
    }

    /// The vCPUs and their host threads.
    pub async fn query_cpus_fast(&self) -> Result<Vec<CpuInfo>, QmpError> {
        self.query("query-cpus-fast").await
    }

    /// The drives. [`QmpClient::query_block_raw`] has every detail.
    pub async fn query_block(&self) -> Result<Vec<BlockInfo>, QmpError> {
        self.query("query-block").await
    }

    /// The drives as QEMU describes them: a JSON array.
    pub async fn query_block_raw(&self) -> Result<Box<RawValue>, QmpError> {
        self.execute("query-block", ()).await
    }

    /// The VNC server.
    pub async fn query_vnc(&self) -> Result<VncInfo, QmpError> {
        self.query("query-vnc").await
    }

    /// The SPICE server.
    pub async fn query_spice(&self) -> Result<SpiceInfo, QmpError> {
        self.query("query-spice").await
    }

    /// The balloon. A machine without one answers with an error of class `DeviceNotActive`.
    pub async fn query_balloon(&self) -> Result<BalloonInfo, QmpError> {
        self.query("query-balloon").await
    }

    /// Sets a display's password; clients that are connected stay.
    pub async fn set_password(
        &self,
        protocol: DisplayProtocol,
        password: &Secret,
    ) -> Result<(), QmpError> {
        let arguments = json!({
            "protocol": protocol,
            "password": password.reveal(),
            "connected": "keep",
        });
        self.order("set_password", arguments).await
    }

    /// Runs the vCPUs.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.order("cont", ()).await
    }

    /// Stops the vCPUs.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.order("stop", ()).await
    }

    /// Presses the ACPI power button. A guest that is still booting loses it.
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.order("system_powerdown", ()).await
    }

    /// Presses the reset button.
    pub async fn system_reset(&self) -> Result<(), QmpError> {
        self.order("system_reset", ()).await
    }

    /// Wakes the guest from S3. QEMU refuses when it does not sleep.
    pub async fn system_wakeup(&self) -> Result<(), QmpError> {
        self.order("system_wakeup", ()).await
    }

    /// Ends QEMU. The connection may break before its answer arrives; that is success too.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.order("quit", ()).await {
            Err(QmpError::Disconnected { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Takes a medium out; `force` even if the guest has locked the tray.
    pub async fn eject(&self, target: EjectTarget<'_>, force: bool) -> Result<(), QmpError> {
        let arguments = match target {
            EjectTarget::Id(id) => json!({ "id": id, "force": force }),
            EjectTarget::Device(device) => json!({ "device": device, "force": force }),
        };
        self.order("eject", arguments).await
    }

    /// Asks the guest to give back memory until it has `bytes`. It does so in its own time.
    pub async fn balloon(&self, bytes: u64) -> Result<(), QmpError> {
        self.order("balloon", json!({ "value": bytes })).await
    }

    async fn query<T: DeserializeOwned>(&self, command: &str) -> Result<T, QmpError> {
        decode(command, &self.execute(command, ()).await?)
    }

    async fn order(&self, command: &str, arguments: impl Serialize) -> Result<(), QmpError> {
        self.execute(command, arguments).await.map(drop)
    }
}

/// Reads an answer; one of another shape is the other side's fault.
pub(super) fn decode<T: DeserializeOwned>(command: &str, answer: &RawValue) -> Result<T, QmpError> {
    serde_json::from_str(answer.get()).map_err(|_| QmpError::Protocol {
        why: format!("the answer to {command} has an unexpected shape"),
    })
}
