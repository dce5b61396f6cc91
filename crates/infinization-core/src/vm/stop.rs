//! `stopVM`: the guest shuts down, or QEMU is ended; "stopped" is said only when it is gone.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::action::Release;
use super::bench::Bench;
use super::cleanup::Cleanup;
use super::machine::Machine;
use super::outcome::{EndCause, OperationResult};
use super::plan::Operation;
use super::run::try_release;
use super::status::Status;
use crate::config::StopOptions;
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::host::process::ProcessHandle;
use crate::qmp::{QmpError, RunState};

/// A guest in its first seconds loses the power button; it is pressed again this often.
const PRESS_AGAIN: Duration = Duration::from_secs(3);
/// How long QEMU may take to end after SIGTERM before SIGKILL.
pub(super) const TERM_GRACE: Duration = Duration::from_secs(5);
/// A monitor that takes longer than this hangs.
const HANG: Duration = Duration::from_millis(500);
/// How long after its monitor a QEMU may take to end.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// Ends a verb's waiting early.
#[derive(Debug)]
pub(super) struct Interrupt {
    force: Notify,
    /// The caller no longer wants the guest to be waited for: the VM goes on.
    cancel: CancellationToken,
    /// The manager is being shut down: the VM goes on.
    closing: CancellationToken,
}

impl Interrupt {
    pub(super) fn new(cancel: CancellationToken, closing: CancellationToken) -> Self {
        Self {
            force: Notify::new(),
            cancel,
            closing,
        }
    }

    /// The guest is waited for no longer.
    pub(super) fn force(&self) {
        self.force.notify_one();
    }

    /// Resolves when the verb is to wait no longer.
    pub(super) async fn came(&self) -> Waited {
        tokio::select! {
            biased;
            () = self.force.notified() => Waited::Forced,
            () = self.cancel.cancelled() => Waited::Aborted,
            () = self.closing.cancelled() => Waited::Closing,
        }
    }

    /// Does `work`, and once a forced stop waits behind it, only if it does not hang.
    pub(super) async fn unless_forced<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = self.force.notified() => {}
        }
        let done = timeout(HANG, work).await;
        // What comes after the work is to hear of it too.
        self.force();
        done.unwrap_or_else(|_elapsed| {
            let message = "QEMU did not answer before a forced stop";
            Err(Failure::new(ErrorCode::Aborted, message))
        })
    }

    /// Does `work`, which ends soon when its token fires: because `cancel` does, the manager is being shut
    /// down, or a forced stop waits behind it.
    pub(super) async fn or_abort<T>(
        &self,
        cancel: &CancellationToken,
        work: impl AsyncFnOnce(&CancellationToken) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let abort = cancel.child_token();
        let mut work = Box::pin(work(&abort));
        let waited = tokio::select! {
            biased;
            done = &mut work => return done,
            waited = self.came() => waited,
        };
        abort.cancel();
        if matches!(waited, Waited::Forced) {
            self.force();
            return self.unless_forced(work).await;
        }
        work.await
    }

    /// Does `work` to its end; once a forced stop waits behind it and it hangs, aborts it by `abort`.
    pub(super) async fn abort_if_forced<T>(
        &self,
        abort: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = self.force.notified() => {}
        }
        // What comes after the work is to hear of it too.
        self.force();
        match timeout(HANG, &mut work).await {
            Ok(done) => done,
            Err(_elapsed) => {
                abort.cancel();
                work.await
            }
        }
    }
}

/// How waiting for the guest ended.
#[derive(Debug)]
pub(super) enum Waited {
    Gone,
    Forced,
    Aborted,
    Closing,
    Expired,
}

impl Machine {
    /// Stops the VM. An error leaves it as it was.
    pub(super) async fn stop(
        &mut self,
        options: &StopOptions,
        interrupt: &Interrupt,
    ) -> Result<OperationResult, Failure> {
        // A VM that runs can be stopped whatever the database says, or when it says nothing.
        let Some(process) = self.process() else {
            let status = self.context.row_status().await?;
            let status = status.ok_or_else(|| self.context.not_found())?;
            return self.stop_without_process(&status).await;
        };
        let ledger = Arc::clone(&self.context.ledger);
        // A launch that is not decided yet stays to be decided, should the stop fail.
        let decided = !ledger
            .contents()
            .operation
            .is_some_and(Operation::is_launch);
        if decided {
            ledger.begin_release(Operation::Stop, now_ms());
        }
        let outcome = self.end(&process, options, interrupt).await;
        let forced = match outcome {
            Ok(forced) => forced,
            Err(failure) => {
                if decided && let Err(error) = ledger.commit() {
                    tracing::warn!(vm = %self.context.vm_id, %error, "the ledger could not be written");
                }
                return Err(failure.of_vm(&self.context.vm_id));
            }
        };
        let cleanup = self.finish_stop(forced).await;
        self.context.crud("power_off", json!({ "forced": forced }));
        self.alert(&cleanup);
        Ok(OperationResult::done(&self.context.vm_id, "VM stopped").forced(forced))
    }

    pub(super) fn process(&self) -> Option<ProcessHandle> {
        self.live.as_ref().map(|live| live.view.process.clone())
    }

    async fn stop_without_process(&mut self, status: &Status) -> Result<OperationResult, Failure> {
        if *status != Status::Off {
            self.drop_dead_claim().await?;
            self.shown = Status::Off;
        }
        Ok(OperationResult::done(&self.context.vm_id, "VM is already off").forced(false))
    }

    /// Ends QEMU as `options` allow; answers whether force was needed.
    async fn end(
        &mut self,
        process: &ProcessHandle,
        options: &StopOptions,
        interrupt: &Interrupt,
    ) -> Result<bool, Failure> {
        if !options.graceful && !options.force {
            return Err(Failure::new(
                ErrorCode::StopFailed,
                "a stop that is neither graceful nor forced cannot stop anything",
            ));
        }
        if options.graceful {
            match self.shut_down(process, options.timeout, interrupt).await {
                Ok(Waited::Gone) => return Ok(false),
                Ok(Waited::Forced) => {}
                Ok(Waited::Aborted) => return Err(aborted()),
                Ok(Waited::Closing) => return Err(closing()),
                Ok(Waited::Expired) if options.force => {}
                Ok(Waited::Expired) => return Err(did_not_shut_down(options.timeout)),
                Err(_monitor) if options.force => {}
                Err(failure) => return Err(failure),
            }
        }
        // The kernel takes longer for the ruleset than QEMU for its end: both at once. A guest that
        // is being ended has no use for its network.
        let (ended, ()) = tokio::join!(process.terminate(TERM_GRACE), self.close_port());
        ended.map_err(|error| {
            Failure::caused_by(ErrorCode::StopFailed, "QEMU could not be ended", error)
        })?;
        Ok(true)
    }

    /// Takes the VM off the network. What does not go now goes with the rest of the run.
    async fn close_port(&self) {
        let context = &self.context;
        if let Some(live) = &self.live {
            live.view.leaving.store(true, SeqCst);
        }
        let bench = Bench::of_process(None);
        let of_network = |release: &Release| {
            matches!(release, Release::DetachTap { .. } | Release::DetachFirewall)
        };
        try_release(context.desk(&bench), of_network).await;
    }

    /// Presses the power button until the guest is gone or not waited for any more. An error means
    /// that the monitor did not take the request even once.
    async fn shut_down(
        &mut self,
        process: &ProcessHandle,
        timeout: Duration,
        interrupt: &Interrupt,
    ) -> Result<Waited, Failure> {
        let mut over = pin!(over(process, timeout, interrupt));
        tokio::select! {
            biased;
            waited = &mut over => return Ok(waited),
            pressed = self.press_first() => if let Err(error) = pressed {
                return gone_or_deaf(process, error).await;
            },
        }
        loop {
            let again = Instant::now() + PRESS_AGAIN;
            loop {
                tokio::select! {
                    biased;
                    waited = &mut over => return Ok(waited),
                    event = self.next_event() => self.on_event(event).await,
                    () = sleep_until(again) => break,
                }
            }
            tokio::select! {
                biased;
                waited = &mut over => return Ok(waited),
                () = self.press_again() => {}
            }
        }
    }

    /// A stopped guest cannot hear the button: it runs again first. One that QEMU stopped since a disk failed makes the
    /// request again, and is stopped once more where it still fails.
    async fn press_first(&self) -> Result<(), QmpError> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let qmp = &live.view.qmp;
        match qmp.query_status().await?.status {
            RunState::Suspended => qmp.system_wakeup().await?,
            RunState::Paused | RunState::IoError => qmp.cont().await?,
            _ => {}
        }
        qmp.system_powerdown().await
    }

    /// A guest that is on its way down, or a monitor that is being found again, needs no pressing.
    async fn press_again(&self) {
        let Some(live) = self.live.as_ref().filter(|live| live.ending.is_none()) else {
            return;
        };
        if let Err(error) = live.view.qmp.system_powerdown().await {
            tracing::debug!(vm = %self.context.vm_id, %error, "the button was not pressed again");
        }
    }

    /// Releases the run, writes `off`, then tells it.
    async fn finish_stop(&mut self, forced: bool) -> Cleanup {
        self.take_in_ending().await;
        let ending = self.live.as_ref().and_then(|live| live.ending.clone());
        let exit = self.exited().now_or_never();
        let cause = match (&ending, forced, exit) {
            (Some(ending), _, _) => self.said(ending),
            (None, true, _) => EndCause::of("host-kill"),
            (None, false, Some(exit)) => {
                let process = self.process().map(|process| process.id().clone());
                self.cause_of(exit, process).await
            }
            (None, false, None) => EndCause::of("unknown"),
        };
        let cleanup = self.settle(&cause).await;
        self.write_off().await;
        match ending {
            Some(ending) => self.tell_off(&ending.data),
            None => self.tell_off(&Value::Null),
        }
        cleanup
    }
}

/// Resolves when the guest is gone or not to be waited for any more.
async fn over(process: &ProcessHandle, timeout: Duration, interrupt: &Interrupt) -> Waited {
    tokio::select! {
        biased;
        _exit = process.exited() => Waited::Gone,
        waited = interrupt.came() => waited,
        () = sleep(timeout) => Waited::Expired,
    }
}

/// A monitor that breaks off is how an exit shows first.
async fn gone_or_deaf(process: &ProcessHandle, error: QmpError) -> Result<Waited, Failure> {
    match timeout(EXIT_GRACE, process.exited()).await {
        Ok(_exit) => Ok(Waited::Gone),
        Err(_still_there) => Err(Failure::caused_by(
            ErrorCode::StopFailed,
            "the monitor did not take the shutdown request",
            error,
        )),
    }
}

fn closing() -> Failure {
    let message =
        "the instance was shut down; the guest was asked to shut down and may still do so";
    Failure::new(ErrorCode::Closed, message)
}

fn aborted() -> Failure {
    let message = "the stop was aborted; the guest was asked to shut down and may still do so";
    Failure::new(ErrorCode::Aborted, message)
}

fn did_not_shut_down(timeout: Duration) -> Failure {
    let message = format!(
        "the guest did not shut down within {} ms",
        timeout.as_millis()
    );
    Failure::new(ErrorCode::Timeout, message)
}
