//! The bench: what one operation's steps make for each other and must not be written down.
//!
//! Descriptors, the process handle, the monitor connection and the display password live here, and
//! nowhere in a plan or a ledger. Dropping the bench closes what nobody took.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::action::Slot;
use crate::config::VmConfig;
use crate::host::process::ProcessHandle;
use crate::qmp::{EventReceiver, QmpClient};
use crate::types::Secret;

/// What the steps of one operation share. Every method takes the lock for a moment only.
#[derive(Debug, Default)]
pub struct Bench {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    config: Option<VmConfig>,
    spec: Option<VmConfig>,
    descriptors: BTreeMap<Slot, OwnedFd>,
    process: Option<ProcessHandle>,
    monitor: Option<(QmpClient, EventReceiver)>,
    display_port: u16,
}

impl Bench {
    /// A bench for a run of a machine with `config`; `spec` is what later runs are made of.
    pub fn new(config: VmConfig, spec: VmConfig, display_port: u16) -> Self {
        let inner = Inner {
            config: Some(config),
            spec: Some(spec),
            display_port,
            ..Inner::default()
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// A bench for releasing what `process` left, or for ending it.
    pub fn of_process(process: Option<ProcessHandle>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                process,
                ..Inner::default()
            }),
        }
    }

    /// The machine's configuration; `None` when only releasing.
    pub fn config(&self) -> Option<VmConfig> {
        self.lock().config.clone()
    }

    /// The configuration to be kept; `None` when only releasing.
    pub fn spec(&self) -> Option<VmConfig> {
        self.lock().spec.clone()
    }

    /// The display's password.
    pub fn password(&self) -> Option<Secret> {
        self.lock().config.as_ref()?.display.password.clone()
    }

    /// The display's port.
    pub fn display_port(&self) -> u16 {
        self.lock().display_port
    }

    /// Lays a descriptor down.
    pub fn put_descriptor(&self, slot: Slot, descriptor: OwnedFd) {
        self.lock().descriptors.insert(slot, descriptor);
    }

    /// Takes all descriptors, so that ours are closed once QEMU has its copies.
    pub fn take_descriptors(&self) -> BTreeMap<Slot, OwnedFd> {
        std::mem::take(&mut self.lock().descriptors)
    }

    /// Lays the process down.
    pub fn put_process(&self, process: ProcessHandle) {
        self.lock().process = Some(process);
    }

    /// The process.
    pub fn process(&self) -> Option<ProcessHandle> {
        self.lock().process.clone()
    }

    /// Lays the monitor connection down.
    pub fn put_monitor(&self, client: QmpClient, events: EventReceiver) {
        self.lock().monitor = Some((client, events));
    }

    /// The monitor's client.
    pub fn monitor(&self) -> Option<QmpClient> {
        self.lock()
            .monitor
            .as_ref()
            .map(|(client, _)| client.clone())
    }

    /// Takes the monitor with the events it has received so far.
    pub fn take_monitor(&self) -> Option<(QmpClient, EventReceiver)> {
        self.lock().monitor.take()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
