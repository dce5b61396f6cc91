//! The loop that owns one VM. Others ask it through the [`handle`].
//!
//! Requests of one VM are served one at a time and in order. Between them the task follows the
//! monitor and the process; an exit goes before an event, an event before a request, so that no
//! verb acts on a guest that is gone. While a verb runs, only a forced stop reaches it.

mod handle;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

pub use handle::VmHandle;

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::journal::{Actor, Phase};
use super::ledger::Contents;
use super::machine::Machine;
use super::outcome::{EndCause, OperationResult};
use super::request::{Asked, Reply, Request, Verb};
use super::status::STARTABLE;
use super::stop::Interrupt;
use crate::config::StopOptions;
use crate::error::{ErrorClass, ErrorCode, Failure};
use crate::host::process::Exit;
use crate::qmp::MonitorEvent;

/// A machine is at rest nearly always, so what its work needs is not kept in the task: each is boxed.
async fn serve(mut machine: Machine, mut inbox: mpsc::Receiver<Asked>) {
    let mut waiting = VecDeque::new();
    loop {
        // An exit goes before a waiting request, too.
        if let Some(exit) = machine.exited().now_or_never() {
            Box::pin(machine.notice_exit(exit)).await;
        }
        let asked = if let Some(asked) = waiting.pop_front() {
            asked
        } else {
            tokio::select! {
                biased;
                exit = machine.exited() => {
                    Box::pin(machine.notice_exit(exit)).await;
                    continue;
                }
                event = machine.next_event() => {
                    Box::pin(machine.notice(event)).await;
                    continue;
                }
                asked = inbox.recv() => match asked {
                    Some(asked) => asked,
                    None => return,
                },
            }
        };
        serve_one(&mut machine, asked, &mut inbox, &mut waiting).await;
    }
}

/// Serves one request to its end; what arrives meanwhile waits, and a forced stop is let through.
async fn serve_one(
    machine: &mut Machine,
    asked: Asked,
    inbox: &mut mpsc::Receiver<Asked>,
    waiting: &mut VecDeque<Asked>,
) {
    let closing = machine.context.services.closing.clone();
    let interrupt = Interrupt::new(asked.request.patience(), closing);
    if waiting.iter().any(|asked| asked.request.is_forced_stop()) {
        interrupt.force();
    }
    let mut work = Box::pin(answer(machine, asked, &interrupt));
    let mut open = true;
    loop {
        tokio::select! {
            () = &mut work => return,
            asked = inbox.recv(), if open => match asked {
                Some(asked) => {
                    if asked.request.is_forced_stop() {
                        interrupt.force();
                    }
                    waiting.push_back(asked);
                }
                None => open = false,
            },
        }
    }
}

async fn answer(machine: &mut Machine, asked: Asked, interrupt: &Interrupt) {
    let Asked { request, asker } = asked;
    machine.end_postponed_for(&request).await;
    match *request {
        Request::Create {
            config,
            warnings,
            cancel,
            reply,
        } => {
            let asked = ("create", json!({ "internalName": config.internal_name }));
            let work = async |machine: &mut Machine| {
                machine.is_open()?;
                machine.create(*config, &warnings, &cancel).await
            };
            let created = told(
                machine,
                asked,
                work,
                |created| json!({ "pid": created.pid, "displayPort": created.display_port }),
            );
            send(created.await, reply, asker);
        }
        Request::Verb { verb, reply } => {
            if matches!(verb, Verb::Destroy) && machine.is_nothing() {
                machine.context.journal.be_silent();
            }
            let asked = verb.told();
            let work = async |machine: &mut Machine| machine.perform(verb, interrupt).await;
            let done = told(machine, asked, work, OperationResult::told);
            send(done.await, reply, asker);
        }
        Request::Recover { reply } => {
            let found = within(machine, (Actor::Recovery, "recover"), async |machine| {
                let recovered = machine.recover().await;
                machine.try_to_settle_snapshots().await;
                machine.end_left_copies().await;
                recovered
            });
            send(found.await, reply, asker);
        }
        Request::Reconcile { listed, reply } => {
            let settled = within(machine, (Actor::Reconcile, "reconcile"), async |machine| {
                machine.reconcile(&listed).await
            });
            send(settled.await, reply, asker);
        }
        Request::Check { reply } => {
            let checked = within(machine, (Actor::Health, "check"), Machine::check);
            send(checked.await, reply, asker);
        }
        Request::RetryCleanup { reply } => {
            let asked = (Actor::Api, "retryCleanup");
            let released = within(machine, asked, Machine::retry_cleanup);
            send(released.await, reply, asker);
        }
        Request::ReloadFirewall { reply } => {
            let asked = (Actor::Health, "reloadFirewall");
            let loaded = within(machine, asked, Machine::reload_firewall);
            send(loaded.await, reply, asker);
        }
        Request::Rest { reply } => send(Ok(()), reply, asker),
    }
}

/// Does `work` for a verb that the journal tells from its beginning to its end.
async fn told<T>(
    machine: &mut Machine,
    (operation, asked): (&'static str, Value),
    work: impl AsyncFnOnce(&mut Machine) -> Result<T, Failure>,
    answer: impl FnOnce(&T) -> Value,
) -> Result<T, Failure> {
    let context = Arc::clone(&machine.context);
    let journal = &context.journal;
    journal.enter(Actor::Api, operation);
    journal.operation(Phase::Begun, asked);
    journal.written().await;
    let outcome = guarded(Box::pin(work(machine))).await;
    journal.ended(&outcome, answer);
    journal.written().await;
    journal.leave();
    outcome
}

/// Does `work` that nobody asked for: the journal tells what comes of it.
async fn within<T>(
    machine: &mut Machine,
    (actor, operation): (Actor, &'static str),
    work: impl AsyncFnOnce(&mut Machine) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let context = Arc::clone(&machine.context);
    context.journal.enter(actor, operation);
    let opened = async {
        machine.is_open()?;
        work(machine).await
    };
    let outcome = guarded(opened).await;
    context.journal.leave();
    outcome
}

/// Whoever asked may have stopped listening: the work was done all the same.
fn send<T>(answer: Result<T, Failure>, reply: Reply<T>, asker: mpsc::Sender<Asked>) {
    // Before the answer: whoever hears it may look at once whether the task is idle.
    drop(asker);
    let _unheard = reply.send(answer);
}

/// A defect in a verb becomes an answer; the task and its VM go on.
async fn guarded<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .unwrap_or_else(|_panic| {
            Err(Failure::new(
                ErrorCode::Internal,
                "a defect stopped the operation; please report it",
            ))
        })
}

impl Machine {
    /// [`Machine::on_exit`]; a defect in it does not end the task.
    async fn notice_exit(&mut self, exit: Exit) {
        if AssertUnwindSafe(self.on_exit(exit))
            .catch_unwind()
            .await
            .is_err()
        {
            // Its exit would be noticed again and again.
            self.goes_dark(&EndCause::of("unknown"));
        }
    }

    async fn notice(&mut self, event: MonitorEvent) {
        let noticed = AssertUnwindSafe(self.on_event(event)).catch_unwind().await;
        if noticed.is_err() {
            tracing::error!(vm = %self.context.vm_id, "a defect stopped the handling of an event");
        }
    }

    async fn perform(
        &mut self,
        verb: Verb,
        interrupt: &Interrupt,
    ) -> Result<OperationResult, Failure> {
        let (code, sentence) = verb.failed();
        let about_images = verb.is_about_images();
        let performed = self.perform_known(verb, interrupt).await;
        performed.map_err(|failure| {
            let foreign = match failure.code().class() {
                ErrorClass::Lifecycle => false,
                ErrorClass::Storage => !about_images,
                _ => true,
            };
            let failure = if foreign {
                let message = format!("{sentence}: {failure}");
                Failure::caused_by(code, message, failure)
            } else {
                failure
            };
            failure.of_vm(&self.context.vm_id)
        })
    }

    /// Whether there is nothing of the machine on this host.
    fn is_nothing(&self) -> bool {
        self.live.is_none() && self.context.ledger.contents() == Contents::default()
    }

    /// What still waits when the manager is shut down is not begun.
    fn is_open(&self) -> Result<(), Failure> {
        if self.context.services.closing.is_cancelled() {
            let message = "the instance was shut down";
            return Err(Failure::new(ErrorCode::Closed, message).of_vm(&self.context.vm_id));
        }
        Ok(())
    }

    /// Performs a verb on a VM of which it is known whether it has a QEMU.
    async fn perform_known(
        &mut self,
        verb: Verb,
        interrupt: &Interrupt,
    ) -> Result<OperationResult, Failure> {
        self.is_open()?;
        if matches!(verb, Verb::Destroy | Verb::Delete { .. }) {
            // The disks may outlive the machine; the note of what is to be done to them will not.
            self.try_to_settle_snapshots().await;
        } else {
            self.look_again().await?;
        }
        if verb.needs_disks() {
            let abort = verb.abort();
            let given = verb.disk_keys();
            let settle =
                async |abort: &CancellationToken| self.settle_snapshots(&given, abort).await;
            if let Err(failure) = interrupt.or_abort(&abort, settle).await {
                self.is_open()?;
                return Err(failure);
            }
            if verb.is_about_images() && self.live.is_none() {
                self.settle_restores().await?;
            }
        }
        match verb {
            Verb::Start { options, cancel } => self.start(&options, &cancel, interrupt).await,
            Verb::Stop { options, .. } => {
                // A guest that stands still is let go on, so that it can shut down.
                if options.graceful {
                    interrupt.unless_forced(self.settle_pivots()).await?;
                }
                self.stop(&options, interrupt).await
            }
            Verb::Restart => self.restart(interrupt).await,
            Verb::Suspend => interrupt.unless_forced(self.suspend()).await,
            Verb::Resume => {
                let work = async {
                    self.settle_pivots().await?;
                    self.resume().await
                };
                interrupt.unless_forced(work).await
            }
            Verb::Reset => interrupt.unless_forced(self.reset()).await,
            Verb::Destroy => self.destroy().await,
            Verb::Delete { with_data } => self.delete(with_data).await,
            Verb::SetFirewallRules(rules) => self.set_firewall_rules(rules).await,
            Verb::SetAddresses(addresses) => self.set_addresses(addresses).await,
            Verb::CreateSnapshot {
                name,
                options,
                cancel,
            } => {
                let work = self.create_snapshot(&name, &options, &cancel);
                interrupt.unless_forced(work).await
            }
            Verb::RevertSnapshot { name, options } => {
                self.revert_snapshot(&name, &options, interrupt).await
            }
            Verb::DeleteSnapshot {
                name,
                options,
                cancel,
            } => {
                let work = async |abort: &CancellationToken| {
                    self.delete_snapshot(&name, options, abort).await
                };
                interrupt.or_abort(&cancel, work).await
            }
            Verb::ResizeDisk { path, size, shrink } => {
                let work = self.resize_disk(&path, size, shrink);
                interrupt.unless_forced(work).await
            }
            Verb::ChangeDiskKey(change) => {
                let work = self.change_disk_key(&change);
                interrupt.unless_forced(work).await
            }
            Verb::CommitSnapshot { name, cancel } => {
                let work =
                    async |abort: &CancellationToken| self.commit_snapshot(&name, abort).await;
                interrupt.or_abort(&cancel, work).await
            }
        }
    }

    /// Stop, then start at once. A half that fails is told in the answer; a refusal is an error.
    async fn restart(&mut self, interrupt: &Interrupt) -> Result<OperationResult, Failure> {
        let vm_id = self.context.vm_id.clone();
        let status = self.context.status().await?;
        // The stop would leave the claim in the row, and the start would be refused.
        if status.is_claim() {
            return Err(self.context.refused("restarted", &status, &STARTABLE));
        }
        let options = self.restart_options().await?;
        if let Err(failure) = self.stop(&StopOptions::default(), interrupt).await {
            return Ok(OperationResult::failed(
                &vm_id,
                "VM could not be stopped",
                failure.to_string(),
            ));
        }
        let never = CancellationToken::new();
        match self.start(&options, &never, interrupt).await {
            Ok(_) => Ok(OperationResult::done(&vm_id, "VM restarted")),
            Err(failure) => Ok(OperationResult::failed(
                &vm_id,
                "VM was stopped but could not be started",
                failure.to_string(),
            )),
        }
    }
}
