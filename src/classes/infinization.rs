//! The public class: machines are here, each other thing it manages in a file below.

mod snapshots;
mod volumes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use infinization_core::manager::{DatabaseChoice, Manager};
use infinization_core::types::VmId;
use infinization_core::{ErrorCode, Failure};
use napi_derive::napi;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Cancellation;
use crate::argument::{Argument, Issue, refusal};
use crate::events::{Deliver, carry};
use crate::js_port::{Ask, JsPort};
use crate::outcome::{Outcome, checked, data, done, now};

/// The native half of the public class: `js/infinization.js` extends it.
#[napi]
#[derive(Debug)]
pub struct Infinization {
    manager: Manager,
    /// What is wrong with the configuration as data; told by `initialize()`.
    refused: Vec<Issue>,
    /// Ends the task that carries events.
    quiet: CancellationToken,
    closed: AtomicBool,
}

#[napi]
impl Infinization {
    /// Takes the plain part of the configuration, the function that receives events, and at most one
    /// way to a database of the user's own: behind his Prisma client, behind his adapter, or behind one whose rows
    /// other engines settle as well.
    #[napi(constructor)]
    pub fn new(
        config: Argument,
        deliver: Deliver,
        prisma: Option<Ask>,
        adapter: Option<Ask>,
        beside: Option<Ask>,
    ) -> Self {
        let (settings, refused) = match config.settings() {
            Ok(settings) => (settings, Vec::new()),
            Err(issues) => (json!({}), issues),
        };
        let manager = Manager::with_database(settings, choice(prisma, adapter, beside));
        let quiet = CancellationToken::new();
        carry(manager.subscribe(), deliver, quiet.clone());
        Self {
            manager,
            refused,
            quiet,
            closed: AtomicBool::new(false),
        }
    }

    #[napi]
    pub async fn initialize(&self) -> Outcome {
        done(async {
            if !self.refused.is_empty() {
                return Err(refusal("config", self.refused.clone()));
            }
            self.manager.initialize().await
        })
        .await
    }

    #[napi]
    pub async fn shutdown(&self) -> Outcome {
        self.closed.store(true, Ordering::Release);
        done(async {
            let ended = self.manager.shutdown().await;
            self.quiet.cancel();
            ended
        })
        .await
    }

    #[napi]
    pub fn is_initialized(&self) -> bool {
        self.manager.is_initialized()
    }

    #[napi(js_name = "planVM")]
    pub async fn plan_vm(&self, config: Argument) -> Outcome {
        data(async { self.manager.plan_vm(config.object("config")?).await }).await
    }

    #[napi]
    pub async fn explain_firewall(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.explain_firewall(vm_id.text("vmId")?).await }).await
    }

    #[napi(js_name = "createVM")]
    pub async fn create_vm(
        &self,
        config: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        data(async {
            // Its only member, `signal`, is what `cancel` was made of.
            options.object("options")?;
            let config = config.object("config")?;
            let vm_id = config["vmId"].as_str().unwrap_or_default();
            let cancel = not_yet_fired(cancel, vm_id)?;
            self.manager.create_vm(config, cancel).await
        })
        .await
    }

    #[napi(js_name = "startVM")]
    pub async fn start_vm(
        &self,
        vm_id: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        data(async {
            let (vm_id, options) = (vm_id.text("vmId")?, options.object("config")?);
            let cancel = not_yet_fired(cancel, &vm_id)?;
            self.manager.start_vm(vm_id, options, cancel).await
        })
        .await
    }

    #[napi(js_name = "stopVM")]
    pub async fn stop_vm(
        &self,
        vm_id: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        data(async {
            let (vm_id, options) = (vm_id.text("vmId")?, options.object("config")?);
            let cancel = not_yet_fired(cancel, &vm_id)?;
            self.manager.stop_vm(vm_id, options, cancel).await
        })
        .await
    }

    #[napi(js_name = "restartVM")]
    pub async fn restart_vm(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.restart_vm(vm_id.text("vmId")?).await }).await
    }

    #[napi(js_name = "suspendVM")]
    pub async fn suspend_vm(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.suspend_vm(vm_id.text("vmId")?).await }).await
    }

    #[napi(js_name = "resumeVM")]
    pub async fn resume_vm(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.resume_vm(vm_id.text("vmId")?).await }).await
    }

    #[napi(js_name = "resetVM")]
    pub async fn reset_vm(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.reset_vm(vm_id.text("vmId")?).await }).await
    }

    #[napi(js_name = "destroyVM")]
    pub async fn destroy_vm(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.destroy_vm(vm_id.text("vmId")?).await }).await
    }

    #[napi(js_name = "getVMStatus")]
    pub async fn get_vm_status(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.get_vm_status(vm_id.text("vmId")?).await }).await
    }

    #[napi(js_name = "getActiveVMs")]
    pub fn get_active_vms(&self) -> Outcome {
        now(Ok(self.manager.get_active_vms()))
    }

    #[napi(js_name = "listVMs")]
    pub async fn list_vms(&self) -> Outcome {
        data(self.manager.list_vms()).await
    }

    #[napi(js_name = "getVM")]
    pub async fn get_vm(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.get_vm(vm_id.text("vmId")?).await }).await
    }

    #[napi(js_name = "deleteVM")]
    pub async fn delete_vm(&self, vm_id: Argument, options: Argument) -> Outcome {
        data(async {
            let (vm_id, options) = (vm_id.text("vmId")?, options.object("options")?);
            self.manager.delete_vm(vm_id, options).await
        })
        .await
    }

    #[napi]
    pub async fn get_journal_range(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.journal_range(vm_id.text("vmId")?).await }).await
    }

    #[napi]
    pub async fn set_firewall_rules(&self, vm_id: Argument, rules: Argument) -> Outcome {
        data(async {
            let (vm_id, rules) = (vm_id.text("vmId")?, rules.array("rules")?);
            self.manager.set_firewall_rules(vm_id, rules).await
        })
        .await
    }

    #[napi]
    pub async fn set_addresses(&self, vm_id: Argument, addresses: Argument) -> Outcome {
        data(async {
            let (vm_id, addresses) = (vm_id.text("vmId")?, addresses.array("addresses")?);
            self.manager.set_addresses(vm_id, addresses).await
        })
        .await
    }

    /// `js/secrets.js` has made text of the key.
    #[napi]
    pub async fn rotate_secrets_key(&self, new_key: Argument) -> Outcome {
        data(async {
            let new_key = new_key.text("newKey")?;
            self.manager.rotate_secrets_key(new_key).await
        })
        .await
    }

    #[napi]
    pub async fn reconcile_startup_state(&self, statuses: Argument) -> Outcome {
        data(async {
            let statuses = statuses.texts("statuses")?;
            self.manager.reconcile_startup_state(statuses).await
        })
        .await
    }

    #[napi(js_name = "attachToRunningVM")]
    pub async fn attach_to_running_vm(&self, vm_id: Argument, qmp_socket: Argument) -> Outcome {
        done(async {
            let (vm_id, socket) = (vm_id.text("vmId")?, qmp_socket.text("qmpSocketPath")?);
            self.manager.attach_to_running_vm(vm_id, socket).await
        })
        .await
    }

    #[napi]
    pub async fn guest_exec(
        &self,
        vm_id: Argument,
        socket: Argument,
        command: Argument,
        args: Argument,
        options: Argument,
    ) -> Outcome {
        data(async {
            let (vm_id, socket) = (vm_id.text("vmId")?, socket.text("guestAgentSocketPath")?);
            let (command, args) = (command.text("command")?, args.texts("args")?);
            let options = options.object("options")?;
            self.manager
                .guest_exec(vm_id, socket, command, args.unwrap_or_default(), options)
                .await
        })
        .await
    }

    #[napi]
    pub async fn eject_cdrom(&self, vm_id: Argument, device: Argument, force: Argument) -> Outcome {
        done(async {
            let (vm_id, device) = (vm_id.text("vmId")?, device.text("device")?);
            let force = force.flag("force")?.unwrap_or(true);
            self.manager.eject_cdrom(vm_id, device, force).await
        })
        .await
    }

    #[napi]
    pub async fn query_block_devices(&self, vm_id: Argument) -> Outcome {
        data(async { self.manager.query_block_devices(vm_id.text("vmId")?).await }).await
    }

    /// Rejects: department overlays are not part of this version.
    #[napi]
    pub async fn ensure_segment(&self, spec: Argument) -> Outcome {
        done(async {
            spec.object("spec")?;
            self.no_overlay("ensureSegment")
        })
        .await
    }

    /// Rejects: department overlays are not part of this version.
    #[napi]
    pub async fn set_peers(&self, dept: Argument, bridge: Argument, peers: Argument) -> Outcome {
        done(async {
            let _names = (dept.text("deptId")?, bridge.text("bridgeName")?);
            peers.array("peers")?;
            self.no_overlay("setPeers")
        })
        .await
    }

    /// Rejects: department overlays are not part of this version.
    #[napi]
    pub async fn destroy_segment(&self, dept: Argument, bridge: Argument) -> Outcome {
        done(async {
            let _names = (dept.text("deptId")?, bridge.text("bridgeName")?);
            self.no_overlay("destroySegment")
        })
        .await
    }
}

/// Succeeds between `initialize()` and `shutdown()`; else throws what a method would reject with.
#[napi]
pub fn require_open(infinization: &Infinization) -> Outcome {
    checked(infinization.open())
}

impl Infinization {
    pub(super) fn manager(&self) -> Manager {
        self.manager.clone()
    }

    fn open(&self) -> Result<(), Failure> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Failure::new(ErrorCode::Closed, "shutdown() was called"));
        }
        if !self.manager.is_initialized() {
            return Err(Failure::new(
                ErrorCode::InvalidState,
                "initialize() has not succeeded",
            ));
        }
        Ok(())
    }

    fn no_overlay(&self, verb: &str) -> Result<(), Failure> {
        self.open()?;
        let message =
            format!("{verb} needs a department overlay, which is not part of this version");
        Err(Failure::new(ErrorCode::InvalidState, message))
    }
}

fn choice(prisma: Option<Ask>, adapter: Option<Ask>, beside: Option<Ask>) -> DatabaseChoice {
    match (prisma, adapter, beside) {
        (Some(ask), ..) => DatabaseChoice::Prisma(Arc::new(JsPort::new(ask))),
        (None, Some(ask), _) => DatabaseChoice::Injected(Arc::new(JsPort::new(ask))),
        (None, None, Some(ask)) => DatabaseChoice::Beside(Arc::new(JsPort::new(ask))),
        (None, None, None) => DatabaseChoice::Embedded,
    }
}

/// A signal that fired before the call means that nothing is begun.
fn not_yet_fired(cancel: CancellationToken, vm_id: &str) -> Result<CancellationToken, Failure> {
    if !cancel.is_cancelled() {
        return Ok(cancel);
    }
    let message = "the signal fired before the call; nothing was begun";
    let failure = Failure::new(ErrorCode::Aborted, message);
    Err(match VmId::parse(vm_id) {
        Ok(vm_id) => failure.of_vm(&vm_id),
        Err(_no_id) => failure,
    })
}
