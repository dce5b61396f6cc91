use infinization_core::manager::Manager;
use napi_derive::napi;
use serde_json::{Value, json};

use super::Infinization;
use crate::js_value::Argument;
use crate::outcome::{Outcome, done, verbatim};

/// A VM's monitor, shared with the library: what `getQMPClient()` returns, once
/// `js/infinization.js` has made it an `EventEmitter`. Nobody can close it but the library.
#[napi(js_name = "QMPClient")]
#[derive(Debug)]
pub struct QmpClient {
    manager: Manager,
    vm_id: String,
}

impl QmpClient {
    async fn ask(&self, command: &str) -> Outcome {
        verbatim(self.manager.qmp_execute(&self.vm_id, command, json!({}))).await
    }

    async fn tell(&self, command: &str, arguments: Value) -> Outcome {
        done(async {
            let reply = self
                .manager
                .qmp_execute(&self.vm_id, command, arguments)
                .await;
            reply.map(drop)
        })
        .await
    }
}

#[napi]
impl QmpClient {
    /// The monitor of one of `owner`'s VMs.
    #[napi(constructor)]
    pub fn new(owner: &Infinization, vm_id: String) -> Self {
        Self {
            manager: owner.manager(),
            vm_id,
        }
    }

    #[napi]
    pub fn is_connected(&self) -> bool {
        self.manager.is_attached(&self.vm_id)
    }

    /// Sends any command; the reply is QEMU's own JSON.
    #[napi]
    pub async fn execute(&self, command: Argument, arguments: Argument) -> Outcome {
        verbatim(async {
            let (command, arguments) = (command.text("command")?, arguments.object("args")?);
            self.manager
                .qmp_execute(&self.vm_id, &command, arguments)
                .await
        })
        .await
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

    #[napi]
    pub async fn eject(&self, device: Argument, force: Argument) -> Outcome {
        let read = || Ok((device.text("device")?, force.flag("force")?));
        match read() {
            Ok((device, None)) => self.tell("eject", json!({ "device": device })).await,
            Ok((device, Some(force))) => {
                let arguments = json!({ "device": device, "force": force });
                self.tell("eject", arguments).await
            }
            Err(refused) => done(async { Err(refused) }).await,
        }
    }

    /// Ends QEMU at once, without asking the guest.
    #[napi]
    pub async fn quit(&self) -> Outcome {
        self.tell("quit", json!({})).await
    }
}
