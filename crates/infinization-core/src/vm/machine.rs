//! One VM as its task sees it: what it is now, and what happens when its QEMU goes.
//!
//! The verbs are in the sibling modules (`launch`, `stop`, `guest`, `destroy`); they all run inside
//! the VM's task, one at a time, so nothing here is locked.

mod follow;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::bench::Bench;
use super::cleanup::Cleanup;
use super::context::VmContext;
use super::live::{Ending, Live, LiveView};
use super::outcome::EndCause;
use super::plan::Lifetime;
use super::request::Request;
use super::run::{Order, release_up_to};
use super::services::Arrival;
use super::status::{FOLLOWED, Status};
use crate::events::{Source, now_ms};
use crate::host::process::Exit;
use crate::qmp::{EventKind, MonitorEvent, QmpEvent};

/// How far the end of a monitor's stream and the end of its process may be apart.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What others may know of a VM without asking its task.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Its QEMU, if it has one.
    pub live: Option<Arc<LiveView>>,
    /// Why the last one ended.
    pub last_exit: Option<EndCause>,
}

/// One VM.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) context: Arc<VmContext>,
    pub(super) live: Option<Live>,
    /// The status listeners were last told of.
    pub(super) shown: Status,
    /// Whether the row's `error` is what this process wrote of its living guest, and nobody else's.
    pub(super) owns_error: bool,
    /// What the last QEMU said at its end, when that was a step of an installation.
    postponed: Option<Ending>,
    pub(super) view: watch::Sender<View>,
    /// What taking stock found last.
    pub(super) found: Option<Value>,
}

impl Machine {
    pub(super) fn new(context: Arc<VmContext>, view: watch::Sender<View>) -> Self {
        Self {
            context,
            live: None,
            shown: Status::Off,
            owns_error: false,
            postponed: None,
            view,
            found: None,
        }
    }

    /// The VM has a QEMU from here on.
    pub(super) fn goes_live(&mut self, live: Live, shown: Status) {
        self.postponed = None;
        self.context
            .services
            .marks
            .unheard
            .remove(&self.context.vm_id);
        self.view
            .send_modify(|view| view.live = Some(Arc::clone(&live.view)));
        self.live = Some(live);
        self.shown = shown;
        self.owns_error = false;
        let arrived = Arrival::Live(self.context.vm_id.clone());
        // Without a manager there is nobody to look.
        let _unheard = self.context.services.arrivals.send(arrived);
    }

    /// The VM's QEMU is gone; its cause is kept for `getVMStatus`.
    pub(super) fn goes_dark(&mut self, cause: &EndCause) -> Option<Live> {
        self.view.send_modify(|view| {
            view.live = None;
            view.last_exit = Some(cause.clone());
        });
        self.live.take()
    }

    /// Resolves when QEMU exits; never while there is none.
    pub(super) fn exited(&self) -> impl Future<Output = Exit> + use<> {
        let process = self.process();
        async move {
            match process {
                Some(process) => process.exited().await,
                None => std::future::pending().await,
            }
        }
    }

    /// The next thing the monitor reports; never while there is no QEMU.
    pub(super) async fn next_event(&mut self) -> MonitorEvent {
        let Some(live) = &mut self.live else {
            return std::future::pending().await;
        };
        match live.events.next().await {
            Some(event) => {
                live.view.missed.store(live.events.missed(), Relaxed);
                event
            }
            // The connection is closed for good: the exit tells the rest.
            None => std::future::pending().await,
        }
    }

    /// QEMU went by itself: by its guest's wish, by somebody's signal, or by a crash.
    pub(super) async fn on_exit(&mut self, exit: Exit) {
        self.take_in_ending().await;
        let ending = self.live.as_ref().and_then(|live| live.ending.clone());
        match (ending, exit) {
            (Some(ending), _) if self.is_being_installed() => self.postpone(ending).await,
            (Some(ending), _) => self.ended(&ending).await,
            // It ended of its own accord, before it could say why.
            (None, Exit::Code(0)) => self.gone(&self.unsaid()).await,
            (None, _) => self.crashed(exit).await,
        }
    }

    /// QEMU has ended as a step of an installation. The row, and what the run held, stay until the
    /// installation is over or a verb needs them.
    async fn postpone(&mut self, ending: Ending) {
        self.context
            .guest_event("SHUTDOWN", &self.shown, &self.shown, &ending.data);
        let cause = self.said(&ending).noticed_now();
        if let Err(error) = self.context.ledger.postpone(&cause) {
            tracing::warn!(vm = %self.context.vm_id, %error, "the ledger could not be written");
        }
        if let Some(live) = self.goes_dark(&cause) {
            live.view.qmp.close().await;
        }
        self.postponed = Some(ending);
    }

    pub(super) fn is_being_installed(&self) -> bool {
        let marks = &self.context.services.marks;
        marks.installing.contains(&self.context.vm_id)
    }

    /// Whether it is without a QEMU only until the next step of its installation: then there is
    /// nothing to be found out or given back.
    pub(super) fn is_between_steps(&self) -> bool {
        self.postponed.is_some()
    }

    /// Goes through with an end that was postponed, if `request` may: what somebody wants of the
    /// machine always, what is only looked after when the installation is over.
    pub(super) async fn end_postponed_for(&mut self, request: &Request) {
        let may = match request {
            Request::Create { .. } | Request::Verb { .. } => true,
            Request::Rest { .. } => false,
            _ => !self.is_being_installed(),
        };
        if may {
            self.end_postponed().await;
        }
    }

    async fn end_postponed(&mut self) {
        if let Some(ending) = self.postponed.take() {
            self.ended(&ending).await;
        }
    }

    /// QEMU said goodbye (SHUTDOWN) and exited.
    async fn ended(&mut self, ending: &Ending) {
        let cause = self.said(ending);
        let cleanup = self.settle(&cause).await;
        self.write_off().await;
        self.tell_off(&ending.data);
        self.alert(&cleanup);
    }

    /// QEMU exited without a word.
    async fn crashed(&mut self, exit: Exit) {
        if let Some(process) = self.process() {
            let cause = self.cause_of(exit, Some(process.id().clone())).await;
            self.died_unseen(Some(process.pid()), cause).await;
        }
    }

    /// QEMU is gone and nobody asked for it. The row first, then the clean-up, then the listeners.
    pub(super) async fn died_unseen(&mut self, pid: Option<i32>, cause: EndCause) {
        let cause = cause.noticed_now();
        let last_known = self.shown.clone();
        let detected_at = now_ms();
        self.write_off().await;
        let cleanup = self.settle(&cause).await;
        let data = json!({
            "vmId": self.context.vm_id,
            "pid": pid,
            "lastKnownStatus": last_known.as_str(),
            "detectedAt": detected_at,
            "cleanupPerformed": cleanup.is_complete(),
            "cleanupResult": cleanup.to_json(&self.context.vm_id),
            "cause": cause,
        });
        self.shown = Status::Off;
        self.context.crud("crash", Value::Null);
        let (events, vm_id) = (&self.context.services.events, &self.context.vm_id);
        events.publish(Source::HealthMonitor, "crash", Some(vm_id), data);
        self.alert(&cleanup);
    }

    /// QEMU is gone for a reason that is no crash.
    pub(super) async fn gone(&mut self, cause: &EndCause) {
        let cleanup = self.settle(cause).await;
        self.write_off().await;
        self.tell_off(&Value::Null);
        self.alert(&cleanup);
    }

    /// Releases what the run held, after its process is gone.
    pub(super) async fn settle(&mut self, cause: &EndCause) -> Cleanup {
        self.settle_up_to(cause, Lifetime::Run).await
    }

    /// Releases what was held for at most `until`, after the process is gone.
    pub(super) async fn settle_up_to(&mut self, cause: &EndCause, until: Lifetime) -> Cleanup {
        let cause = &cause.noticed_now();
        self.tell_end(cause);
        let live = self.goes_dark(cause);
        if let Some(live) = &live {
            live.view.qmp.close().await;
        }
        let context = &self.context;
        let bench = Bench::of_process(live.map(|live| live.view.process.clone()));
        let cleanup = release_up_to(context.desk(&bench), until, Order::AtOnce).await;
        // A destroy is not over yet: it ends with the ledger itself.
        let over = |()| match until {
            Lifetime::Attempt | Lifetime::Run => context.ledger.commit(),
            Lifetime::Machine | Lifetime::Data => Ok(()),
        };
        let written = context.ledger.ended(cause).and_then(over);
        if let Err(error) = written {
            tracing::warn!(vm = %context.vm_id, %error, "the ledger could not be written");
        }
        if cleanup.is_complete() {
            context.clear_run().await;
        }
        cleanup
    }

    /// Writes `off`, but over nobody's claim.
    pub(super) async fn write_off(&self) {
        self.context.write_status("off", &FOLLOWED).await;
        // Somebody's claim stays; without an answer it is what it should be.
        let told = self.told_instead_of(Status::Off).await;
        self.context.journal.status(told.as_str());
    }

    /// Tells listeners that the guest is off, once.
    pub(super) fn tell_off(&mut self, data: &Value) {
        let cause = self.view.borrow().last_exit.clone();
        self.context
            .guest_off("SHUTDOWN", &self.shown, data, cause.as_ref());
        self.shown = Status::Off;
    }

    /// Tells what a clean-up has left, if anything.
    pub(super) fn alert(&self, cleanup: &Cleanup) {
        let (events, vm_id) = (&self.context.services.events, &self.context.vm_id);
        if let Some(data) = cleanup.to_alert(vm_id) {
            events.publish(Source::HealthMonitor, "cleanup-alert", Some(vm_id), data);
        }
    }

    /// Reads the last words of a QEMU that has exited, up to the end of its monitor's stream.
    pub(super) async fn take_in_ending(&mut self) {
        let _in_time = timeout(LAST_WORDS, async {
            while let Some(live) = &mut self.live {
                match live.events.next().await {
                    Some(MonitorEvent::Event(event)) => self.on_last_event(&event),
                    Some(MonitorEvent::Missed { .. } | MonitorEvent::Reconnected { .. }) => {}
                    Some(MonitorEvent::Disconnected { .. } | MonitorEvent::GaveUp) | None => return,
                }
            }
        })
        .await;
    }

    fn on_last_event(&mut self, event: &QmpEvent) {
        let Some(live) = &mut self.live else { return };
        note_ending(live, event);
        self.heed(event);
        if matches!(event.kind(), EventKind::Powerdown | EventKind::Reset { .. }) {
            let data = serde_json::from_str(event.data.get()).unwrap_or_default();
            self.context
                .guest_event(&event.event, &self.shown, &self.shown, &data);
        }
    }
}

/// Keeps what a SHUTDOWN event says until the process has exited.
pub(super) fn note_ending(live: &mut Live, event: &QmpEvent) {
    if let EventKind::Shutdown { reason, .. } = event.kind() {
        let data = serde_json::from_str(event.data.get()).unwrap_or_default();
        live.ending = Some(Ending {
            reason: reason.as_str().to_owned(),
            data,
        });
    }
}
