//! Stands in for `infinization_core::manager` until that is merged; then this file goes.
//!
//! Same API, plausible answers, no host: enough to build and try the JavaScript side for real.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use infinization_core::types::VmId;
use infinization_core::{ErrorCode, Failure};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// Who an event is about, as `js/events.js` routes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Manager,
    EventHandler,
    HealthMonitor,
    Crud,
}

/// One fact on its way out.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) vm_id: Option<String>,
    pub(crate) source: Source,
    pub(crate) kind: String,
    pub(crate) timestamp_ms: u64,
    pub(crate) data: Value,
}

/// See the file's comment.
#[derive(Debug, Clone)]
pub(crate) struct Manager(Arc<State>);

#[derive(Debug)]
struct State {
    config: Value,
    open: AtomicBool,
    closed: AtomicBool,
    monitoring: AtomicBool,
    seq: AtomicU64,
    vms: Mutex<BTreeMap<String, &'static str>>,
    installing: Mutex<BTreeSet<String>>,
    events: broadcast::Sender<Arc<Event>>,
}

impl Manager {
    pub(crate) fn new(config: Value) -> Self {
        Self(Arc::new(State {
            config,
            open: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            monitoring: AtomicBool::new(false),
            seq: AtomicU64::new(1),
            vms: Mutex::default(),
            installing: Mutex::default(),
            events: broadcast::channel(4096).0,
        }))
    }

    pub(crate) async fn initialize(&self) -> Result<(), Failure> {
        if self.0.closed.load(Ordering::Acquire) {
            return self.ready();
        }
        if !self.0.config.is_object() {
            return Err(Failure::new(
                ErrorCode::InvalidConfig,
                "config must be an object",
            ));
        }
        if self.0.open.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let none: [&str; 0] = [];
        let reconciled = json!({
            "promotedToRunning": none, "resetToOff": none, "resetToError": none, "skipped": none,
            "timestamp": now(),
        });
        self.emit(
            None,
            Source::HealthMonitor,
            "reconcile-complete",
            reconciled,
        );
        if self.0.config["autoStartHealthMonitor"] != json!(false) {
            self.start_health_monitor().await?;
        }
        Ok(())
    }

    pub(crate) async fn shutdown(&self) -> Result<(), Failure> {
        self.0.closed.store(true, Ordering::Release);
        self.0.open.store(false, Ordering::Release);
        self.0.monitoring.store(false, Ordering::Release);
        Ok(())
    }

    pub(crate) fn is_initialized(&self) -> bool {
        self.0.open.load(Ordering::Acquire)
    }

    pub(crate) async fn plan_vm(&self, config: Value) -> Result<Value, Failure> {
        self.ready()?;
        let id = id_of(&config)?;
        Ok(json!({ "vmId": id, "command": "qemu-system-x86_64", "args": ["-name", id] }))
    }

    pub(crate) async fn create_vm(
        &self,
        config: Value,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        self.ready()?;
        let id = id_of(&config)?;
        work(&id, &config, &cancel).await?;
        self.vms().insert(id.clone(), "running");
        let resources = json!({ "pid": 4242, "tapDevice": "vnet-stub" });
        self.emit(Some(&id), Source::Crud, "create", resources);
        Ok(json!({
            "vmId": id, "success": true, "tapDevice": "vnet-stub", "qmpSocketPath": "/run/stub.sock",
            "displayPort": 5900, "pid": 4242, "diskPaths": ["/stub.qcow2"], "pidFilePath": "/run/stub.pid",
        }))
    }

    pub(crate) async fn start_vm(
        &self,
        id: String,
        options: Value,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        self.known(&id)?;
        work(&id, &options, &cancel).await?;
        self.becomes(&id, "RESUME", "running", "power_on")
    }

    pub(crate) async fn stop_vm(
        &self,
        id: String,
        options: Value,
        cancel: CancellationToken,
    ) -> Result<Value, Failure> {
        self.known(&id)?;
        work(&id, &options, &cancel).await?;
        let mut result = self.becomes(&id, "SHUTDOWN", "off", "power_off")?;
        result["forced"] = json!(options["graceful"] == json!(false));
        Ok(result)
    }

    pub(crate) async fn restart_vm(&self, id: String) -> Result<Value, Failure> {
        self.known(&id)?;
        Ok(operation(&id, "restarted"))
    }

    pub(crate) async fn suspend_vm(&self, id: String) -> Result<Value, Failure> {
        self.known(&id)?;
        self.becomes(&id, "STOP", "suspended", "suspend")
    }

    pub(crate) async fn resume_vm(&self, id: String) -> Result<Value, Failure> {
        self.known(&id)?;
        self.becomes(&id, "RESUME", "running", "resume")
    }

    pub(crate) async fn reset_vm(&self, id: String) -> Result<Value, Failure> {
        self.known(&id)?;
        self.becomes(&id, "RESET", "running", "update")
    }

    pub(crate) async fn destroy_vm(&self, id: String) -> Result<Value, Failure> {
        self.ready()?;
        self.vms().remove(&id);
        Ok(operation(&id, "destroyed"))
    }

    pub(crate) async fn get_vm_status(&self, id: String) -> Result<Value, Failure> {
        let status = self.known(&id)?;
        Ok(json!({
            "vmId": id, "status": status, "qmpStatus": null, "pid": null, "uptime": null,
            "processAlive": status != "off", "consistent": true, "tapDevice": null, "qmpSocketPath": null,
        }))
    }

    pub(crate) fn get_active_vms(&self) -> Vec<String> {
        let vms = self.vms();
        vms.iter()
            .filter(|vm| *vm.1 != "off")
            .map(|vm| vm.0.clone())
            .collect()
    }

    pub(crate) async fn list_vms(&self) -> Result<Value, Failure> {
        self.ready()?;
        let vms = self.vms();
        Ok(vms
            .iter()
            .map(|(id, status)| json!({ "id": id, "status": status }))
            .collect())
    }

    pub(crate) async fn get_vm(&self, id: String) -> Result<Value, Failure> {
        let status = self.known(&id)?;
        Ok(json!({ "id": id, "status": status }))
    }

    pub(crate) async fn delete_vm(&self, id: String, _options: Value) -> Result<Value, Failure> {
        self.destroy_vm(id).await
    }

    pub(crate) async fn set_firewall_rules(
        &self,
        id: String,
        rules: Value,
    ) -> Result<Value, Failure> {
        self.known(&id)?;
        let count = rules.as_array().map_or(0, Vec::len);
        Ok(
            json!({ "totalRules": count, "appliedRules": count, "failedRules": 0, "chainName": "vm_stub", "failures": [] }),
        )
    }

    pub(crate) async fn reconcile_startup_state(
        &self,
        _statuses: Option<Vec<String>>,
    ) -> Result<Value, Failure> {
        self.ready()?;
        let none: [&str; 0] = [];
        Ok(json!({
            "totalChecked": 0, "promotedToRunning": none, "resetToOff": none, "resetToError": none,
            "skipped": none, "timestamp": now(), "results": none,
        }))
    }

    pub(crate) async fn attach_to_running_vm(
        &self,
        id: String,
        _socket: String,
    ) -> Result<(), Failure> {
        self.known(&id).map(drop)
    }

    pub(crate) async fn guest_exec(
        &self,
        id: String,
        _socket: String,
        command: String,
        args: Vec<String>,
        _options: Value,
    ) -> Result<Value, Failure> {
        self.known(&id)?;
        Ok(
            json!({ "stdout": format!("{command} {}", args.join(" ")), "stderr": "", "exitCode": 0 }),
        )
    }

    pub(crate) async fn eject_cdrom(
        &self,
        id: String,
        _device: String,
        _force: bool,
    ) -> Result<(), Failure> {
        self.known(&id).map(drop)
    }

    pub(crate) async fn query_block_devices(&self, id: String) -> Result<Box<RawValue>, Failure> {
        self.qmp_execute(&id, "query-block", json!({})).await
    }

    pub(crate) async fn qmp_execute(
        &self,
        id: &str,
        command: &str,
        arguments: Value,
    ) -> Result<Box<RawValue>, Failure> {
        self.known(id)?;
        let reply = match command {
            "query-block" => {
                json!([{ "device": "ide1-cd0", "removable": true, "locked": false, "type": "unknown" }])
            }
            "query-status" => json!({ "running": true, "singlestep": false, "status": "running" }),
            _ => json!({ "execute": command, "arguments": arguments }),
        };
        to_raw_value(&reply)
            .map_err(|error| Failure::new(ErrorCode::QmpProtocol, error.to_string()))
    }

    pub(crate) fn is_attached(&self, id: &str) -> bool {
        self.vms().get(id).is_some_and(|status| *status != "off")
    }

    pub(crate) fn attached_vms(&self) -> Vec<String> {
        self.get_active_vms()
    }

    pub(crate) fn set_install_in_progress(&self, id: &str, installing: bool) {
        let mut marked = self
            .0
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if installing {
            marked.insert(id.to_owned());
        } else {
            marked.remove(id);
        }
    }

    pub(crate) fn is_install_in_progress(&self, id: &str) -> bool {
        self.0
            .installing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(id)
    }

    pub(crate) async fn start_health_monitor(&self) -> Result<(), Failure> {
        self.ready()?;
        self.0.monitoring.store(true, Ordering::Release);
        self.check_all_vms().await.map(drop)
    }

    pub(crate) async fn stop_health_monitor(&self) -> Result<(), Failure> {
        self.0.monitoring.store(false, Ordering::Release);
        Ok(())
    }

    pub(crate) fn is_monitoring(&self) -> bool {
        self.0.monitoring.load(Ordering::Acquire)
    }

    pub(crate) async fn check_all_vms(&self) -> Result<Value, Failure> {
        self.ready()?;
        let alive = self.get_active_vms().len();
        let summary = json!({
            "totalChecked": alive, "alive": alive, "crashed": 0, "errors": 0, "orphansDetected": 0,
            "orphansCleaned": 0, "timestamp": now(), "results": [],
        });
        self.emit(
            None,
            Source::HealthMonitor,
            "check-complete",
            summary.clone(),
        );
        Ok(summary)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.events.subscribe()
    }

    fn becomes(
        &self,
        id: &str,
        event: &str,
        status: &'static str,
        action: &str,
    ) -> Result<Value, Failure> {
        let before = self.known(id)?;
        self.vms().insert(id.to_owned(), status);
        let payload = json!({
            "vmId": id, "event": event, "previousStatus": before, "newStatus": status, "timestamp": now(),
        });
        let specific = format!("vm:{}", event.to_lowercase());
        for kind in [specific.as_str(), &format!("vm:{status}"), "vm:event"] {
            self.emit(Some(id), Source::EventHandler, kind, payload.clone());
        }
        self.emit(Some(id), Source::Crud, action, Value::Null);
        Ok(operation(id, status))
    }

    fn emit(&self, vm_id: Option<&str>, source: Source, kind: &str, data: Value) {
        let event = Event {
            seq: self.0.seq.fetch_add(1, Ordering::Relaxed),
            vm_id: vm_id.map(ToOwned::to_owned),
            source,
            kind: kind.to_owned(),
            timestamp_ms: now(),
            data,
        };
        // Nobody listening is no failure.
        drop(self.0.events.send(Arc::new(event)));
    }

    fn ready(&self) -> Result<(), Failure> {
        if self.0.closed.load(Ordering::Acquire) {
            return Err(Failure::new(ErrorCode::Closed, "shutdown() was called"));
        }
        if !self.is_initialized() {
            return Err(Failure::new(
                ErrorCode::InvalidState,
                "initialize() has not succeeded",
            ));
        }
        Ok(())
    }

    fn known(&self, id: &str) -> Result<&'static str, Failure> {
        self.ready()?;
        let vm_id = checked_id(id)?;
        let missing = || Failure::new(ErrorCode::VmNotFound, format!("machine {id} not found"));
        self.vms()
            .get(id)
            .copied()
            .ok_or_else(|| missing().of_vm(&vm_id))
    }

    fn vms(&self) -> MutexGuard<'_, BTreeMap<String, &'static str>> {
        self.0.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes as long as `stubMs` says, unless it is cancelled.
async fn work(id: &str, options: &Value, cancel: &CancellationToken) -> Result<(), Failure> {
    let duration = Duration::from_millis(options["stubMs"].as_u64().unwrap_or(1));
    let vm_id = checked_id(id)?;
    tokio::select! {
        () = cancel.cancelled() => Err(Failure::new(ErrorCode::Aborted, "aborted; everything was undone").of_vm(&vm_id)),
        () = tokio::time::sleep(duration) => Ok(()),
    }
}

fn operation(id: &str, message: &str) -> Value {
    json!({ "success": true, "message": message, "vmId": id, "timestamp": now() })
}

fn id_of(config: &Value) -> Result<String, Failure> {
    let id = config["vmId"].as_str().unwrap_or_default();
    checked_id(id).map(|id| id.to_string())
}

fn checked_id(id: &str) -> Result<VmId, Failure> {
    VmId::parse(id).map_err(|error| {
        let issues = json!([{ "path": "vmId", "message": error.to_string() }]);
        Failure::new(ErrorCode::InvalidConfig, format!("vmId {error}")).with("issues", issues)
    })
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
