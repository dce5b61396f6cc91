//! `EventHandler`: which VMs are attached, and what all their followers share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::cleanup::Host;
use super::turns::Turns;
use super::watch::Watch;
use crate::config::EventHandlerOptions;
use crate::db::Database;
use crate::events::{EventBus, GuestEvent, Source};
use crate::qmp::{Link, QmpClient, QmpError};
use crate::types::VmId;
use crate::vm::Installing;

/// Not a listener's: a VM is followed no more.
const DETACHED: &str = "detached";

/// What `EventHandler` and `HealthMonitor` stand on.
#[derive(Debug, Clone)]
pub struct Watching {
    /// The user's.
    pub database: Arc<dyn Database>,
    /// The lock per VM.
    pub turns: Turns,
    /// Tells listeners.
    pub events: EventBus,
}

/// Follows the QEMUs of attached VMs, until they end or are detached, or the last clone is dropped:
/// a monitor has one connection, which whoever comes next needs. Clones share it.
#[derive(Debug, Clone)]
pub struct EventHandler {
    shared: Arc<Shared>,
    _ends_followers: Arc<DropGuard>,
}

/// What the followers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) watching: Watching,
    pub(super) host: Host,
    options: EventHandlerOptions,
    attached: Mutex<HashMap<VmId, Attachment>>,
    /// Ends all followers.
    dropped: CancellationToken,
    installing: Installing,
}

/// The hold on one follower, which belongs to one QEMU.
#[derive(Debug, Clone, Default)]
pub(super) struct Attachment {
    /// Ends the follower.
    pub(super) over: CancellationToken,
    /// Held by the follower while it handles an event, up to the end of the machine.
    pub(super) handling: Arc<tokio::sync::Mutex<()>>,
}

impl Attachment {
    /// Resolves when the event under way of a cancelled follower is handled.
    async fn ended(self) {
        drop(self.handling.lock().await);
    }
}

impl EventHandler {
    /// Attached to nothing yet.
    pub fn new(watching: Watching, options: EventHandlerOptions) -> Self {
        let shared = Shared {
            watching,
            host: Host::new(),
            options,
            attached: Mutex::default(),
            dropped: CancellationToken::new(),
            installing: Installing::default(),
        };
        Self {
            _ends_followers: Arc::new(shared.dropped.clone().drop_guard()),
            shared: Arc::new(shared),
        }
    }

    /// Follows the VM's QEMU behind `qmp`, and no earlier one. Returns when its state of now is
    /// written. A monitor that is not connected is refused.
    pub async fn attach(&self, vm_id: &VmId, qmp: QmpClient) -> Result<(), QmpError> {
        if qmp.link() == Link::Closed {
            let why = "a VM is attached by a connected monitor";
            return Err(QmpError::NotConnected { why });
        }
        let events = qmp.subscribe();
        let attachment = Attachment {
            over: self.shared.dropped.child_token(),
            ..Attachment::default()
        };
        let before = self.shared.replace(vm_id, Some(attachment.clone()));
        if let Some(before) = before {
            before.ended().await;
        }
        let (settled, now_settled) = oneshot::channel();
        let watch = Watch::new(Arc::clone(&self.shared), vm_id.clone(), qmp, attachment);
        tokio::spawn(watch.run(events, settled));
        // An error means that the follower was ended first, by a detach.
        let _over = now_settled.await;
        Ok(())
    }

    /// Follows the VM no more: when it returns, nothing is written or told of it, except by an end of
    /// the machine that had begun. Fine when it is not attached.
    pub async fn detach(&self, vm_id: &VmId) {
        let attachment = self.shared.replace(vm_id, None);
        if let Some(attachment) = attachment {
            attachment.ended().await;
            self.shared.tell_detached(vm_id);
        }
    }

    /// The attached VMs.
    pub fn attached_vms(&self) -> Vec<String> {
        let mut vms: Vec<String> = self
            .shared
            .attached()
            .keys()
            .map(ToString::to_string)
            .collect();
        vms.sort();
        vms
    }

    /// Whether the VM is attached.
    pub fn is_attached(&self, vm_id: &VmId) -> bool {
        self.shared.attached().contains_key(vm_id)
    }

    /// From now on a SHUTDOWN of this VM is told, and nothing else.
    pub fn mark_installing(&self, vm_id: &VmId) {
        self.shared.installing.insert(vm_id);
    }

    /// A SHUTDOWN of this VM is its end again.
    pub fn clear_installing(&self, vm_id: &VmId) {
        self.shared.installing.remove(vm_id);
    }

    /// Whether the VM is being installed.
    pub fn is_installing(&self, vm_id: &VmId) -> bool {
        self.shared.is_installing(vm_id)
    }
}

impl Shared {
    pub(super) fn is_installing(&self, vm_id: &VmId) -> bool {
        self.installing.contains(vm_id)
    }

    /// What was there is cancelled under the lock: its end must not let go of what is there now.
    fn replace(&self, vm_id: &VmId, with: Option<Attachment>) -> Option<Attachment> {
        let mut attached = self.attached();
        let before = match with {
            Some(attachment) => attached.insert(vm_id.clone(), attachment),
            None => attached.remove(vm_id),
        }?;
        before.over.cancel();
        Some(before)
    }

    /// The QEMU whose follower `over` ends is followed no more; a later one stays attached. Whether it
    /// was followed until now.
    pub(super) fn let_go(&self, vm_id: &VmId, over: &CancellationToken) -> bool {
        let mut attached = self.attached();
        // Whoever attaches or detaches cancels what was there before, under the same lock.
        let followed = !over.is_cancelled();
        over.cancel();
        if followed {
            attached.remove(vm_id);
            drop(attached);
            self.tell_detached(vm_id);
        }
        followed
    }

    /// For who carries the events: what is told of the VM before this, and not yet heard, is of the
    /// follower that was.
    fn tell_detached(&self, vm_id: &VmId) {
        let events = &self.watching.events;
        events.publish(Source::EventHandler, DETACHED, Some(vm_id), Value::Null);
    }

    pub(super) fn tell_guest(&self, vm_id: &VmId, guest: GuestEvent<'_>) {
        if self.options.enable_logging {
            let GuestEvent {
                event,
                previous,
                new,
                ..
            } = guest;
            tracing::info!(vm = %vm_id, event, previous, new, "QEMU's event");
        }
        if self.options.emit_custom_events {
            self.watching.events.publish_guest(vm_id, guest);
        }
    }

    pub(super) fn tell(&self, vm_id: &VmId, kind: &str, data: Value) {
        if self.options.emit_custom_events {
            let events = &self.watching.events;
            events.publish(Source::EventHandler, kind, Some(vm_id), data);
        }
    }

    /// Something that an event asked for could not be done.
    pub(super) fn tell_failure(&self, vm_id: &VmId, event: &str, error: &dyn std::fmt::Display) {
        tracing::error!(vm = %vm_id, event, %error, "an event could not be handled");
        let data = json!({ "vmId": vm_id, "event": event, "error": error.to_string() });
        let events = &self.watching.events;
        events.publish(Source::EventHandler, "error", Some(vm_id), data);
    }

    fn attached(&self) -> MutexGuard<'_, HashMap<VmId, Attachment>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
