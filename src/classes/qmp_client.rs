use std::fmt;
use std::sync::Arc;

use infinization_core::Failure;
use infinization_core::manager::Manager;
use infinization_core::qmp::{Link, QmpClient as Monitor, QmpError};
use napi_derive::napi;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Infinization;
use crate::answers::{Settle, answer};
use crate::argument::Argument;
use crate::events::Deliver;
use crate::monitor_events::carry;
use crate::outcome::{Outcome, done, now, verbatim};

/// A VM's monitor, shared with the library: what `getQMPClient()` returns, once `js/qmp-client.js` has
/// made it an `EventEmitter`. Nobody can close it but the library. It is one run's: after the machine
/// has ended it stays closed, and the next run has another.
#[napi(js_name = "QMPClient")]
pub struct QmpClient {
    /// None when the machine had ended before it was asked for.
    monitor: Option<Monitor>,
    manager: Manager,
    vm_id: String,
    settle: Arc<Settle>,
}

impl fmt::Debug for QmpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QmpClient")
            .field("vm_id", &self.vm_id)
            .finish_non_exhaustive()
    }
}

async fn call(
    monitor: Option<&Monitor>,
    command: &str,
    arguments: Value,
) -> Result<Box<RawValue>, Failure> {
    let closed = || QmpError::Disconnected {
        what: command.to_owned(),
    };
    let monitor = monitor.ok_or_else(closed)?;
    Ok(monitor.execute(command, arguments).await?)
}

impl QmpClient {
    async fn call(&self, command: &str, arguments: Value) -> Result<Box<RawValue>, Failure> {
        call(self.monitor.as_ref(), command, arguments).await
    }

    async fn ask(&self, command: &str) -> Outcome {
        verbatim(self.call(command, json!({}))).await
    }

    async fn tell(&self, command: &str, arguments: Value) -> Outcome {
        done(async { self.call(command, arguments).await.map(drop) }).await
    }

    fn link(&self) -> Link {
        self.monitor.as_ref().map_or(Link::Closed, Monitor::link)
    }
}

#[napi]
impl QmpClient {
    /// The monitor of one of `owner`'s VMs, the function that receives its events, and the one that
    /// settles calls.
    #[napi(constructor)]
    pub fn new(owner: &Infinization, vm_id: String, deliver: Deliver, settle: Settle) -> Self {
        let manager = owner.manager();
        let monitor = manager.monitor(&vm_id);
        if let Some(monitor) = &monitor {
            carry(monitor.subscribe(), deliver);
        }
        Self {
            monitor,
            manager,
            vm_id,
            settle: Arc::new(settle),
        }
    }

    #[napi]
    pub fn is_connected(&self) -> bool {
        self.link() == Link::Connected
    }

    #[napi]
    pub fn is_reconnecting(&self) -> bool {
        self.link() == Link::Reconnecting
    }

    /// What QEMU said of itself, or null.
    #[napi]
    pub fn get_greeting(&self) -> Outcome {
        let greeting = self.monitor.as_ref().and_then(Monitor::greeting);
        now(Ok(greeting.map(|greeting| json!({ "QMP": greeting }))))
    }

    #[napi]
    pub async fn query_status(&self) -> Outcome {
        self.ask("query-status").await
    }

    #[napi]
    pub async fn query_cpus(&self) -> Outcome {
        self.ask("query-cpus-fast").await
    }

    #[napi]
    pub async fn query_block(&self) -> Outcome {
        self.ask("query-block").await
    }

    #[napi]
    pub async fn query_balloon(&self) -> Outcome {
        self.ask("query-balloon").await
    }

    #[napi]
    pub async fn powerdown(&self) -> Outcome {
        self.tell("system_powerdown", json!({})).await
    }

    #[napi]
    pub async fn reset(&self) -> Outcome {
        self.tell("system_reset", json!({})).await
    }

    #[napi]
    pub async fn stop(&self) -> Outcome {
        self.tell("stop", json!({})).await
    }

    #[napi]
    pub async fn cont(&self) -> Outcome {
        self.tell("cont", json!({})).await
    }

    /// Asks the guest to give or take memory until it has `bytes`.
    #[napi]
    pub async fn balloon(&self, bytes: Argument) -> Outcome {
        match bytes.value("bytes") {
            Ok(bytes) => self.tell("balloon", json!({ "value": bytes })).await,
            Err(refused) => done(async { Err(refused) }).await,
        }
    }

    /// By the id that `queryBlockDevices` tells, or a classic name.
    #[napi]
    pub async fn eject(&self, device: Argument, force: Argument) -> Outcome {
        done(async {
            let (device, force) = (device.text("device")?, force.flag("force")?);
            let force = force.unwrap_or_default();
            self.manager
                .eject_cdrom(self.vm_id.clone(), device, force)
                .await
        })
        .await
    }

    /// Ends QEMU at once, without asking the guest.
    #[napi]
    pub async fn quit(&self) -> Outcome {
        self.tell("quit", json!({})).await
    }
}

/// Sends any command; the reply, QEMU's own JSON, settles the call of this number. No method: that
/// is `execute`, in `js/qmp-client.js`, which keeps the promises.
#[napi]
pub fn submit_monitor_call(
    client: &QmpClient,
    number: u32,
    command: Argument,
    arguments: Argument,
) {
    let monitor = client.monitor.clone();
    answer(Arc::clone(&client.settle), number, async move {
        let (command, arguments) = (command.text("command")?, arguments.object("args")?);
        call(monitor.as_ref(), &command, arguments).await
    });
}
