//! Reaching into a running VM: its monitor, its CD-ROMs, its guest agent. None of it waits for the
//! VM's other operations.

use std::path::Path;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Manager, not_found, parse_id};
use crate::config::GuestExecOptions;
use crate::error::{ErrorCode, Failure};
use crate::qmp::{AgentOptions, EjectTarget, EventReceiver, GuestAgent, QmpClient};
use crate::types::{HostPath, VmId};
use crate::vm::Recovered;

impl Manager {
    /// The VM's monitor, while its QEMU is ours and connected.
    pub fn qmp_client(&self, vm_id: &str) -> Option<QmpClient> {
        let vm_id = VmId::parse(vm_id).ok()?;
        let open = self.open().ok()?;
        let live = open.vms().get(&vm_id)?.view().live?;
        live.qmp.is_connected().then(|| live.qmp.clone())
    }

    /// What the VM's monitor reports from now on.
    pub fn qmp_events(&self, vm_id: &str) -> Option<EventReceiver> {
        self.qmp_client(vm_id).map(|client| client.subscribe())
    }

    /// Runs a monitor command. `arguments` is a JSON object or null.
    pub async fn qmp_execute(
        &self,
        vm_id: &str,
        command: &str,
        arguments: Value,
    ) -> Result<Box<RawValue>, Failure> {
        let client = self.attached(vm_id)?;
        let answer = match arguments {
            Value::Null => client.execute(command, ()).await,
            arguments => client.execute(command, arguments).await,
        };
        Ok(answer?)
    }

    /// `attachToRunningVM`: takes a running QEMU of ours back; a no-op when it is ours already.
    pub async fn attach_to_running_vm(
        &self,
        vm_id: String,
        qmp_socket_path: String,
    ) -> Result<(), Failure> {
        let open = self.open()?;
        let vm_id = parse_id(&vm_id)?;
        let handle = open.known(&vm_id).await?;
        match handle.recover().await? {
            Recovered::Alive => Ok(()),
            found => {
                let message =
                    format!("VM {vm_id} has no running QEMU of ours behind {qmp_socket_path}");
                Err(Failure::new(ErrorCode::QmpError, message)
                    .of_vm(&vm_id)
                    .with("found", format!("{found:?}")))
            }
        }
    }

    /// Whether the VM's QEMU is ours now.
    pub fn is_attached(&self, vm_id: &str) -> bool {
        self.qmp_client(vm_id).is_some()
    }

    /// `queryBlockDevices`: QEMU's list, with `device` filled with our device id where QEMU has no
    /// name, so that `ejectCdrom` can be given it.
    pub async fn query_block_devices(&self, vm_id: String) -> Result<Value, Failure> {
        let client = self.attached(&vm_id)?;
        let raw = client.query_block_raw().await?;
        let mut devices: Value = serde_json::from_str(raw.get()).map_err(|error| {
            Failure::new(
                ErrorCode::QmpProtocol,
                format!("query-block answered what cannot be read: {error}"),
            )
        })?;
        for device in devices.as_array_mut().into_iter().flatten() {
            let unnamed = device["device"].as_str().is_none_or(str::is_empty);
            if unnamed {
                device["device"] = json!(device_id(device["qdev"].as_str().unwrap_or_default()));
            }
        }
        Ok(devices)
    }

    /// `ejectCdrom`: by our device id (`cdrom0`), or by a classic name.
    pub async fn eject_cdrom(
        &self,
        vm_id: String,
        device: String,
        force: bool,
    ) -> Result<(), Failure> {
        let client = self.attached(&vm_id)?;
        let known = client.query_block().await?;
        let named = known
            .iter()
            .any(|block| !device.is_empty() && block.device == device);
        let target = if named {
            EjectTarget::Device(&device)
        } else {
            EjectTarget::Id(&device)
        };
        Ok(client.eject(target, force).await?)
    }

    /// `guestExec`, over a short-lived connection of its own to the guest agent.
    pub async fn guest_exec(
        &self,
        vm_id: String,
        socket_path: String,
        command: String,
        args: Vec<String>,
        options: Value,
    ) -> Result<Value, Failure> {
        self.open()?;
        let vm_id = parse_id(&vm_id)?;
        let socket = HostPath::parse(socket_path).map_err(|error| {
            Failure::new(
                ErrorCode::InvalidConfig,
                format!("guestAgentSocketPath {error}"),
            )
        })?;
        let options = GuestExecOptions::parse(&options)?.config;
        let output = exec(socket.as_path(), &command, &args, options.timeout).await;
        output.map_err(|failure| failure.of_vm(&vm_id))
    }

    fn attached(&self, vm_id: &str) -> Result<QmpClient, Failure> {
        self.open()?;
        let id = parse_id(vm_id)?;
        self.qmp_client(vm_id)
            .ok_or_else(|| not_found(&id).with("attached", false))
    }
}

async fn exec(
    socket: &Path,
    command: &str,
    args: &[String],
    timeout: Duration,
) -> Result<Value, Failure> {
    let agent = GuestAgent::connect(socket, AgentOptions::default()).await?;
    let output = agent.exec(command, args, timeout).await;
    agent.close().await;
    let output = output?;
    Ok(json!({
        "stdout": String::from_utf8_lossy(&output.stdout),
        "stderr": String::from_utf8_lossy(&output.stderr),
        "exitCode": output.exit_code,
    }))
}

/// `query-block` names a device by its QOM path: `/machine/peripheral/disk0` or, for a virtio disk,
/// `/machine/peripheral/disk0/virtio-backend`.
fn device_id(qdev: &str) -> &str {
    let inside = qdev.strip_prefix("/machine/peripheral/").unwrap_or(qdev);
    inside.split('/').next().unwrap_or(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_the_first_word_below_the_peripherals() {
        let table = [
            ("/machine/peripheral/disk0", "disk0"),
            ("/machine/peripheral/disk0/virtio-backend", "disk0"),
            ("disk1", "disk1"),
            ("", ""),
        ];
        for (qdev, id) in table {
            assert_eq!(device_id(qdev), id, "{qdev}");
        }
    }
}
