//! Following one QEMU of one attached VM, from the attach to its end.
//!
//! Events are handled one after another, each to its end: the row first, then the listeners. What
//! ends the machine is done in the VM's turn, and only for the QEMU it was meant for: after a
//! restart the row has another pid, and a late SHUTDOWN is nobody's.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::cleanup::{held_by, network_of};
use super::handler::{Attachment, Shared};
use super::processes::{identity, pid_of};
use super::reaction::{self, Reaction, is_claimed};
use crate::db::{Database, VmRecord};
use crate::events::{GuestEvent, Source, now_ms};
use crate::host::process::{Identity, ProcessHandle};
use crate::qmp::{
    EventKind, EventReceiver, MonitorEvent, QmpClient, QmpEvent, ShutdownCause, StatusInfo,
};
use crate::types::VmId;
use crate::vm::status::{Status, UNTOUCHABLE};

/// For asking QEMU its state because of an event.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// How long a guest that shut down may take to leave its QEMU.
const EXIT_WAIT: Duration = Duration::from_secs(30);

/// The follower of one QEMU.
pub(super) struct Watch {
    shared: Arc<Shared>,
    vm_id: VmId,
    qmp: QmpClient,
    over: CancellationToken,
    /// Whoever detaches waits for it.
    handling: Arc<Mutex<()>>,
    at_work: Option<OwnedMutexGuard<()>>,
    /// The row's pid when it was attached.
    pid: Option<i32>,
    process: Option<ProcessHandle>,
}

impl Watch {
    pub(super) fn new(
        shared: Arc<Shared>,
        vm_id: VmId,
        qmp: QmpClient,
        attachment: Attachment,
    ) -> Self {
        let Attachment { over, handling } = attachment;
        Self {
            shared,
            vm_id,
            qmp,
            over,
            handling,
            at_work: None,
            pid: None,
            process: None,
        }
    }

    /// Follows until it is ended; `settled` is told when the state of now is written. An end of the
    /// machine that has begun is gone through even if the follower is ended meanwhile.
    pub(super) async fn run(mut self, mut events: EventReceiver, settled: oneshot::Sender<()>) {
        let over = self.over.clone();
        self.begin().await;
        let outcome = AssertUnwindSafe(self.settle(settled)).catch_unwind().await;
        self.handled("attach", &outcome);
        while let Some(Some(event)) = over.run_until_cancelled(events.next()).await {
            self.begin().await;
            let name = name_of(&event);
            let outcome = AssertUnwindSafe(self.notice(event)).catch_unwind().await;
            self.handled(&name, &outcome);
        }
        self.shared.let_go(&self.vm_id, &over);
    }

    async fn settle(&mut self, settled: oneshot::Sender<()>) {
        self.find_process().await;
        let reaction = self
            .asked()
            .await
            .map(|status| reaction::of_status(&status));
        if let Some(Reaction::Becomes(new)) = &reaction {
            self.becomes(new, None, &Value::Null).await;
        }
        let _unheard = settled.send(());
        if reaction == Some(Reaction::Ends) {
            self.shut_down(&Value::Null, false).await;
        }
    }

    /// A defect is told, and does not end the follower.
    fn handled(&mut self, event: &str, outcome: &thread::Result<()>) {
        self.at_work = None;
        if outcome.is_err() {
            let words = "a defect stopped the handling; please report it";
            self.shared.tell_failure(&self.vm_id, event, &words);
        }
    }

    async fn begin(&mut self) {
        self.at_work = Some(Arc::clone(&self.handling).lock_owned().await);
    }

    fn database(&self) -> Arc<dyn Database> {
        Arc::clone(&self.shared.watching.database)
    }

    /// Holds the process, so that its exit is noticed and no other is taken for it.
    async fn find_process(&mut self) {
        let row = self
            .database()
            .find_machine_without_password(&self.vm_id)
            .await;
        let Ok(Some(row)) = row else { return };
        let configuration = row.configuration.as_ref();
        self.pid = pid_of(configuration);
        if let Some(pid) = self.pid
            && let Identity::Ours(process) =
                identity(pid, &row.internal_name, None, configuration).await
        {
            self.process = Some(process);
        }
    }

    /// Behind the same socket there may be another QEMU. While the row names none that lives it is not
    /// up to date, and asked again.
    async fn find_process_anew(&mut self) {
        (self.pid, self.process) = (None, None);
        self.find_process().await;
        if self.process.is_none() {
            self.pid = None;
        }
    }

    async fn notice(&mut self, event: MonitorEvent) {
        if self.pid.is_none() {
            self.find_process().await;
        }
        let vm_id = &self.vm_id;
        match event {
            MonitorEvent::Event(event) => self.on_guest_event(&event).await,
            MonitorEvent::Missed { .. } => self.ask_and_follow(None, &Value::Null).await,
            MonitorEvent::Disconnected { will_reconnect } => {
                let data =
                    json!({ "vmId": vm_id, "timestamp": now_ms(), "transient": will_reconnect });
                if self.is_still_followed(will_reconnect) {
                    self.shared.tell(vm_id, "vm:disconnect", data);
                }
            }
            MonitorEvent::Reconnected { status } => {
                self.find_process_anew().await;
                if self.is_still_followed(true) {
                    self.shared
                        .tell(&self.vm_id, "vm:reconnect", json!({ "vmId": self.vm_id }));
                }
                self.follow(&status, None, &Value::Null).await;
            }
            MonitorEvent::GaveUp => {
                if self.is_still_followed(false) {
                    let data = json!({ "vmId": vm_id, "reason": "qmp_reconnect_failed" });
                    self.shared.tell(vm_id, "vm:stale", data);
                }
            }
        }
    }

    /// Whether nobody has detached it meanwhile; unless it `goes_on`, it is let go of.
    fn is_still_followed(&self, goes_on: bool) -> bool {
        if goes_on {
            return !self.over.is_cancelled();
        }
        self.shared.let_go(&self.vm_id, &self.over)
    }

    async fn on_guest_event(&mut self, event: &QmpEvent) {
        let data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
        let kind = event.kind();
        match reaction::of_event(&kind) {
            Reaction::Ignore => {}
            Reaction::Tell => self.stays(&event.event, &data).await,
            Reaction::Becomes(new) => self.becomes(&new, Some(&event.event), &data).await,
            Reaction::Ask => self.ask_and_follow(Some(&event.event), &data).await,
            Reaction::Ends => {
                let quit = matches!(
                    kind,
                    EventKind::Shutdown {
                        reason: ShutdownCause::HostQmpQuit,
                        ..
                    }
                );
                self.shut_down(&data, quit).await;
            }
        }
    }

    /// A QEMU that hangs holds nobody up: its state is asked for again when it goes on.
    async fn ask_and_follow(&mut self, event: Option<&str>, data: &Value) {
        if let Some(status) = self.asked().await {
            self.follow(&status, event, data).await;
        }
    }

    async fn asked(&self) -> Option<StatusInfo> {
        let status = timeout(STATUS_DEADLINE, self.qmp.query_status());
        match self.over.run_until_cancelled(status).await? {
            Ok(Ok(status)) => return Some(status),
            Ok(Err(error)) => tracing::debug!(vm = %self.vm_id, %error, "no status"),
            Err(_elapsed) => tracing::debug!(vm = %self.vm_id, "no status in time"),
        }
        None
    }

    /// Without an event's name, the one that goes with the new state is told, and only a change.
    async fn follow(&mut self, status: &StatusInfo, event: Option<&str>, data: &Value) {
        match reaction::of_status(status) {
            Reaction::Becomes(new) => self.becomes(&new, event, data).await,
            _ => self.shut_down(data, false).await,
        }
    }

    /// The status stays as it is.
    async fn stays(&self, event: &str, qmp: &Value) {
        if let Some(status) = self.status(event).await {
            self.tell_if_followed(event, &status, &status, qmp);
        }
    }

    async fn becomes(&self, new: &Status, event: Option<&str>, qmp: &Value) {
        let name = event.unwrap_or(match new {
            Status::Running => "RESUME",
            _ => "STOP",
        });
        let Some(previous) = self.status(name).await else {
            return;
        };
        if self.over.is_cancelled() {
            return;
        }
        let Some(now) = self.written(&previous, new, name).await else {
            return;
        };
        if event.is_some() || previous != now {
            self.tell_if_followed(name, &previous, &now, qmp);
        }
    }

    /// Writes a derived status with its guard; what the row says then. `None`: it could not be
    /// written, which was told.
    async fn written(&self, previous: &str, new: &Status, event: &str) -> Option<String> {
        if is_claimed(previous) || previous == new.as_str() {
            return Some(previous.to_owned());
        }
        let database = self.database();
        let written = database.update_machine_status(&self.vm_id, new.as_str(), &UNTOUCHABLE);
        if let Err(error) = written.await {
            self.shared.tell_failure(&self.vm_id, event, &error);
            return None;
        }
        // Somebody may have put a claim there in between.
        self.status(event).await
    }

    /// The row's status. A machine without a row has no listeners; a failure is told.
    async fn status(&self, event: &str) -> Option<String> {
        match self.database().find_machine(&self.vm_id).await {
            Ok(row) => row.map(|row| row.status),
            Err(error) => {
                self.shared.tell_failure(&self.vm_id, event, &error);
                None
            }
        }
    }

    fn tell_if_followed(&self, event: &str, previous: &str, new: &str, qmp: &Value) {
        if !self.over.is_cancelled() {
            self.tell(event, previous, new, qmp);
        }
    }

    fn tell(&self, event: &str, previous: &str, new: &str, qmp: &Value) {
        let guest = GuestEvent {
            event,
            previous,
            new,
            qmp,
            cause: None,
        };
        self.shared.tell_guest(&self.vm_id, guest);
    }

    /// The machine ends. `quit`: whoever ended it gives back what it held.
    async fn shut_down(&mut self, data: &Value, quit: bool) {
        const EVENT: &str = "SHUTDOWN";
        // The end waits for the VM's turn, which whoever attaches or detaches may have.
        self.at_work = None;
        let turn = match self.shared.watching.turns.take(&self.vm_id).await {
            Ok(turn) => turn,
            Err(error) => return self.shared.tell_failure(&self.vm_id, EVENT, &error),
        };
        let row = match self
            .database()
            .find_machine_without_password(&self.vm_id)
            .await
        {
            Ok(Some(row)) => row,
            Ok(None) => {
                self.shared.let_go(&self.vm_id, &self.over);
                return;
            }
            Err(error) => return self.shared.tell_failure(&self.vm_id, EVENT, &error),
        };
        if self.is_of_another_run(&row) {
            tracing::info!(vm = %self.vm_id, "the end of an earlier QEMU is nobody's");
            return;
        }
        if self.shared.is_installing(&self.vm_id) {
            return self.tell(EVENT, &row.status, &row.status, data);
        }
        let Some(now) = self.written(&row.status, &Status::Off, EVENT).await else {
            return;
        };
        self.shared.let_go(&self.vm_id, &self.over);
        self.tell(EVENT, &row.status, &now, data);
        if !quit {
            self.give_back(&row, &now).await;
        }
        turn.end().await;
    }

    fn is_of_another_run(&self, row: &VmRecord) -> bool {
        let recorded = pid_of(row.configuration.as_ref());
        let replaced = recorded.is_some() && self.pid.is_some() && recorded != self.pid;
        self.over.is_cancelled() || replaced
    }

    /// Waits for the process to be gone, never kills it, then gives its network back, unless the row
    /// is another run's by then: whoever starts a VM need not take turns.
    async fn give_back(&self, row: &VmRecord, status: &str) {
        if let Some(process) = &self.process
            && timeout(EXIT_WAIT, process.exited()).await.is_err()
        {
            let words =
                "QEMU is still there 30 s after its guest has shut down; nothing was given back";
            return self.shared.tell_failure(&self.vm_id, "SHUTDOWN", &words);
        }
        let database = self.database();
        match database.find_machine_without_password(&self.vm_id).await {
            Ok(now)
                if now
                    .as_ref()
                    .is_some_and(|now| !is_same_run(row, status, now)) =>
            {
                tracing::info!(vm = %self.vm_id, "it was started again; nothing is given back");
                return;
            }
            Ok(_same_or_gone) => {}
            Err(error) => return self.shared.tell_failure(&self.vm_id, "SHUTDOWN", &error),
        }
        let held = network_of(held_by(&self.vm_id, row.configuration.as_ref(), None));
        let result = self
            .shared
            .host
            .clean_up(database.as_ref(), &self.vm_id, held)
            .await;
        if let Some(alert) = result.alert() {
            let events = &self.shared.watching.events;
            events.publish(
                Source::HealthMonitor,
                "cleanup-alert",
                Some(&self.vm_id),
                alert,
            );
        }
    }
}

fn name_of(event: &MonitorEvent) -> Cow<'static, str> {
    match event {
        MonitorEvent::Event(event) => event.event.clone().into(),
        MonitorEvent::Missed { .. } => "missed".into(),
        MonitorEvent::Disconnected { .. } => "disconnect".into(),
        MonitorEvent::Reconnected { .. } => "reconnect".into(),
        MonitorEvent::GaveUp => "stale".into(),
    }
}

/// Whether `now` is the row of the run that ended as `ended`, with `status` written since.
fn is_same_run(ended: &VmRecord, status: &str, now: &VmRecord) -> bool {
    let pid = |row: &VmRecord| pid_of(row.configuration.as_ref());
    now.status == status && pid(now) == pid(ended)
}
