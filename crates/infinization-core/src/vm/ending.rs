//! Why a VM's QEMU ended: what it said itself, what its guest had told before, and what the kernel
//! has counted. Told once, in the journal, the ledger and `getVMStatus`.

use super::condition::Ailment;
use super::journal::{Actor, Kind, Note};
use super::live::Ending;
use super::machine::Machine;
use super::outcome::EndCause;
use crate::events::now_ms;
use crate::host::blocking::{blocking, file_call};
use crate::host::oom;
use crate::host::process::{Exit, ProcessId, StderrLog};

const SIGKILL: i32 = 9;

impl Machine {
    /// QEMU's own reason, with what its guest told of a panic.
    pub(super) fn said(&self, ending: &Ending) -> EndCause {
        let panic = match self.ailment() {
            Some(Ailment::GuestPanicked { info }) => info,
            _ => None,
        };
        EndCause {
            panic,
            ..EndCause::of(&ending.reason)
        }
    }

    /// It exited well and said nothing: an expired watchdog may do that (`action=poweroff`).
    pub(super) fn unsaid(&self) -> EndCause {
        match self.ailment() {
            Some(Ailment::Watchdog { action }) if action == "poweroff" => EndCause {
                evidence: Some("QEMU's event WATCHDOG: poweroff".to_owned()),
                ..EndCause::of("watchdog")
            },
            _ => EndCause::of("unknown"),
        }
    }

    /// Why a process that said nothing is gone.
    pub(super) async fn cause_of(&self, exit: Exit, process: Option<ProcessId>) -> EndCause {
        let killed = matches!(exit, Exit::Signal(SIGKILL) | Exit::Unknown);
        let evidence = match process {
            Some(process) if killed => self.out_of_memory(process).await,
            _ => None,
        };
        let (reason, signal, exit_code) = match exit {
            Exit::Signal(signal) => ("signal", Some(signal), None),
            Exit::Code(code) => ("exit-code", None, Some(code)),
            Exit::Unknown => ("unknown", None, None),
        };
        let reason = match evidence {
            Some(_) => "oom-killed",
            None => reason,
        };
        EndCause {
            signal,
            exit_code,
            evidence,
            stderr: self.last_words().await,
            ..EndCause::of(reason)
        }
    }

    /// Tells the end of a QEMU, if there was one.
    pub(super) fn tell_end(&self, cause: &EndCause) {
        let lived = self.context.ledger.contents().lived.is_some();
        if lived || self.live.is_some() {
            let note = Note::of(Kind::Exit).by(Actor::Process);
            self.context
                .journal
                .note(note.detail(cause.to_map().into()));
        }
    }

    fn ailment(&self) -> Option<Ailment> {
        self.live.as_ref()?.view.health.of_guest()
    }

    async fn out_of_memory(&self, process: ProcessId) -> Option<String> {
        let scope = self.context.services.cgroups.scope_of(&self.context.vm_id);
        let watch = self.live.as_ref().and_then(|live| live.view.memory.clone());
        let looked = blocking(move || oom::evidence(&process, watch.as_ref(), &scope));
        looked.await.ok().flatten()
    }

    async fn last_words(&self) -> Option<String> {
        let log = StderrLog::at(self.context.directory.join(super::QEMU_LOG));
        let words = file_call(move || log.tail()).await;
        words.ok().filter(|words| !words.is_empty())
    }
}

impl EndCause {
    /// As noticed now, unless it was before.
    pub(super) fn noticed_now(&self) -> Self {
        Self {
            ended_at: self.ended_at.or_else(|| Some(now_ms())),
            ..self.clone()
        }
    }
}
