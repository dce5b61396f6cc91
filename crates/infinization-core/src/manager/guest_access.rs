//! Reaching into a running VM: its monitor, its CD-ROMs, its guest agent. None of it waits for the
//! VM's other operations.

use std::path::Path;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::firewall::spec;
use super::{Manager, Open, not_found, parse_id};
use crate::config::GuestExecOptions;
use crate::error::{ErrorCode, Failure};
use crate::qmp::{self, AgentOptions, EjectTarget, ExecOutput, GuestAgent, Link, QmpClient};
use crate::types::{HostPath, VmId};
use crate::vm::{LiveView, Recovered, VmHandle};

impl Manager {
    /// The VM's monitor, while its QEMU is ours; it may be reconnecting.
    pub fn monitor(&self, vm_id: &str) -> Option<QmpClient> {
        let vm_id = VmId::parse(vm_id).ok()?;
        let open = self.open().ok()?;
        let live = open.vms().get(&vm_id)?.view().live?;
        is_attached(&live).then(|| live.qmp.clone())
    }

    /// The VM's monitor, while it is connected.
    pub fn qmp_client(&self, vm_id: &str) -> Option<QmpClient> {
        self.monitor(vm_id).filter(QmpClient::is_connected)
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

    /// `attachToRunningVM`: takes a running QEMU of ours back; at once when it is ours already. Its
    /// events are told from now on. A monitor that is not the VM's own is somebody else's QEMU.
    pub async fn attach_to_running_vm(
        &self,
        vm_id: String,
        qmp_socket_path: String,
    ) -> Result<(), Failure> {
        let open = self.open()?;
        let vm_id = parse_id(&vm_id)?;
        let handle = open.known(&vm_id).await?;
        if handle.view().live.is_some_and(|live| is_attached(&live)) {
            open.services.marks.unheard.remove(&vm_id);
            return Ok(());
        }
        let refused = |why: &str| {
            let message =
                format!("VM {vm_id} has no running QEMU of ours behind {qmp_socket_path}");
            let failure = Failure::new(ErrorCode::QmpError, message).of_vm(&vm_id);
            failure.with("found", why)
        };
        if !is_own_socket(&open, &handle, &qmp_socket_path)? {
            return Err(refused("the monitor of another machine, or of none"));
        }
        match handle.recover().await? {
            Recovered::Alive if self.is_attached(vm_id.as_str()) => {
                open.services.marks.unheard.remove(&vm_id);
                Ok(())
            }
            Recovered::Alive => Err(refused("a QEMU whose monitor does not answer")),
            found => Err(refused(&format!("{found:?}"))),
        }
    }

    /// Whether the VM's QEMU is ours now. A connection that broke and is being made again is one.
    pub fn is_attached(&self, vm_id: &str) -> bool {
        self.monitor(vm_id).is_some()
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
                device["device"] =
                    json!(qmp::device_id(device["qdev"].as_str().unwrap_or_default()));
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
        let options = GuestExecOptions::parse(&options)?.warned("guestExec", &vm_id);
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

/// Whether the monitor's connection is there or will be made again.
pub(super) fn is_attached(live: &LiveView) -> bool {
    live.qmp.link() != Link::Closed
}

/// Whether `path` leads to the VM's monitor. A VM that has never run here has none to compare with.
fn is_own_socket(open: &Open, handle: &VmHandle, path: &str) -> Result<bool, Failure> {
    let own = match handle.view().live {
        Some(live) => Some(live.qmp_socket.clone()),
        None => spec(&open.services.config, &handle.context().vm_id)?
            .map(|spec| spec.paths.qmp_socket.to_string()),
    };
    Ok(own.is_none_or(|own| own == path || is_same_file(&own, path)))
}

/// `/var/run` is `/run` on most hosts.
fn is_same_file(one: &str, other: &str) -> bool {
    let resolved = |path: &str| std::fs::canonicalize(path).ok();
    resolved(one).is_some_and(|one| Some(one) == resolved(other))
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
        "stdout": ExecOutput::text(&output.stdout),
        "stderr": ExecOutput::text(&output.stderr),
        // None of a program that a signal ended.
        "exitCode": output.exit_code.unwrap_or(-1),
    }))
}
