//! `QMPClient`, over the core's `qmp`.

use std::fmt;
use std::sync::Arc;

use infinization_core::config::QmpClientOptions;
use infinization_core::manager::Manager;
use infinization_core::qmp::{Link, MonitorSocket, QmpClient as Monitor, QmpError};
use infinization_core::types::HostPath;
use infinization_core::{ErrorCode, Failure};
use napi_derive::napi;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::refused::Refused;
use super::{Infinization, warned};
use crate::answers::{Settle, answer};
use crate::argument::{Argument, wrong};
use crate::events::Deliver;
use crate::monitor_events::carry;
use crate::outcome::{Outcome, done, now, verbatim};

/// A monitor, once `js/qmp-client.js` has made it an `EventEmitter`.
#[napi(js_name = "QMPClient")]
pub struct QmpClient {
    line: Line,
    deliver: Arc<Deliver>,
    settle: Arc<Settle>,
}

/// Whose connection it is.
enum Line {
    /// The user's, who connects and disconnects it.
    Own(Result<Arc<MonitorSocket>, Refused>),
    /// The library's, of one of its VMs: what `getQMPClient()` returns. It is one run's: after the
    /// machine has ended it stays closed, and the next run has another.
    Shared {
        /// None when the machine had ended before it was asked for.
        monitor: Option<Monitor>,
        manager: Manager,
        vm_id: String,
    },
}

impl fmt::Debug for QmpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QmpClient").finish_non_exhaustive()
    }
}

impl QmpClient {
    /// The connection there is, or was last.
    pub(super) fn monitor(&self) -> Result<Monitor, Failure> {
        match &self.line {
            Line::Own(socket) => Ok(socket.as_ref()?.connection()?),
            Line::Shared { monitor, .. } => Ok(monitor.clone().ok_or(ENDED)?),
        }
    }

    /// The VM it is the library's connection to.
    pub(super) fn shared_vm(&self) -> Option<&str> {
        match &self.line {
            Line::Own(_) => None,
            Line::Shared { vm_id, .. } => Some(vm_id),
        }
    }

    async fn call(&self, command: &str, arguments: Value) -> Result<Box<RawValue>, Failure> {
        Ok(self.monitor()?.execute(command, arguments).await?)
    }

    fn submit(&self, number: u32, command: Argument, arguments: Argument) -> Result<(), Failure> {
        let settle = Arc::clone(&self.settle);
        let answered = move |reply: Result<_, QmpError>| {
            answer(&settle, number, reply.map_err(Failure::from));
        };
        let (command, arguments) = (command.text("command")?, arguments.object("args")?);
        Ok(self.monitor()?.submit(&command, arguments, answered)?)
    }

    async fn ask(&self, command: &str) -> Outcome {
        verbatim(self.call(command, json!({}))).await
    }

    async fn tell(&self, command: &str, arguments: Value) -> Outcome {
        done(async { self.call(command, arguments).await.map(drop) }).await
    }

    fn link(&self) -> Link {
        self.monitor()
            .map_or(Link::Closed, |monitor| monitor.link())
    }
}

const ENDED: QmpError = QmpError::NotConnected {
    why: "the machine has ended",
};

fn socket(path: Argument, options: Argument) -> Result<Arc<MonitorSocket>, Failure> {
    let path = HostPath::parse(path.text("socketPath")?)
        .map_err(|why| wrong("socketPath", &why.to_string()))?;
    let options = warned(
        "QMPClient",
        QmpClientOptions::parse(&options.object("options")?)?,
    );
    Ok(Arc::new(MonitorSocket::new(
        path.as_path().to_owned(),
        (&options).into(),
    )))
}

#[napi]
impl QmpClient {
    /// With `owner`, the monitor of its VM of this id; else the monitor behind the socket of this
    /// path. The functions receive events and settle calls. Touches nothing and does not fail.
    #[napi(constructor)]
    pub fn new(
        target: Argument,
        options: Argument,
        owner: Option<&Infinization>,
        deliver: Deliver,
        settle: Settle,
    ) -> Self {
        let deliver = Arc::new(deliver);
        let line = match owner {
            None => Line::Own(socket(target, options).map_err(Refused::from)),
            Some(owner) => {
                let manager = owner.manager();
                let vm_id = target.text("vmId").unwrap_or_default();
                let monitor = manager.monitor(&vm_id);
                if let Some(monitor) = &monitor {
                    carry(monitor.subscribe(), Arc::clone(&deliver));
                }
                Line::Shared {
                    monitor,
                    manager,
                    vm_id,
                }
            }
        };
        Self {
            line,
            deliver,
            settle: Arc::new(settle),
        }
    }

    #[napi]
    pub async fn connect(&self) -> Outcome {
        done(async {
            match &self.line {
                Line::Own(socket) => {
                    if let Some(events) = socket.as_ref()?.connect().await? {
                        carry(events, Arc::clone(&self.deliver));
                    }
                    Ok(())
                }
                Line::Shared { .. } if self.is_connected() => Ok(()),
                Line::Shared { .. } => Err(ENDED.into()),
            }
        })
        .await
    }

    /// For good. The library's own connection is not the caller's to close.
    #[napi]
    pub async fn disconnect(&self) -> Outcome {
        done(async {
            match &self.line {
                Line::Own(socket) => {
                    socket.as_ref()?.disconnect().await;
                    Ok(())
                }
                Line::Shared { .. } => Err(Failure::new(
                    ErrorCode::InvalidState,
                    "the library uses this connection too, so only the library closes it",
                )),
            }
        })
        .await
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
        let monitor = self.monitor().ok();
        let greeting = monitor.as_ref().and_then(Monitor::greeting);
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

    /// A VM's CD-ROM by the id that `queryBlockDevices` tells, or a classic name.
    #[napi]
    pub async fn eject(&self, device: Argument, force: Argument) -> Outcome {
        done(async {
            let (device, force) = (device.text("device")?, force.flag("force")?);
            match &self.line {
                Line::Own(_) => {
                    let mut arguments = json!({ "device": device });
                    if let Some(force) = force {
                        arguments["force"] = force.into();
                    }
                    self.call("eject", arguments).await.map(drop)
                }
                Line::Shared { manager, vm_id, .. } => {
                    let force = force.unwrap_or_default();
                    manager.eject_cdrom(vm_id.clone(), device, force).await
                }
            }
        })
        .await
    }

    /// Ends QEMU at once, without asking the guest. That the connection ends with it is no failure.
    #[napi]
    pub async fn quit(&self, options: Argument) -> Outcome {
        done(async {
            let Quit { ignore_errors } = options
                .shaped::<Option<Quit>>("options")?
                .unwrap_or_default();
            let connected = self.is_connected();
            match self.call("quit", json!({})).await {
                Ok(_) => Ok(()),
                Err(_) if ignore_errors => Ok(()),
                Err(error) if connected && error.code() == ErrorCode::QmpDisconnected => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await
    }
}

/// `quit`'s options.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Quit {
    ignore_errors: bool,
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
    if let Err(refused) = client.submit(number, command, arguments) {
        answer(&client.settle, number, Err(refused));
    }
}
