//! A QEMU of the user's own, which no machine of ours owns: what `QemuProcess` does with a command line of his.
//!
//! It is detached by us, in a session of its own, and outlives this process. It is ready when its monitor greets. No signal is
//! sent to a number: what was started is held by its pidfd, and what an earlier program has started is taken up only
//! if its pidfile and its arguments say that it is the one meant.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | [`QemuProcess`]: start, stop, kill |
//! | `ready` | waiting until a QEMU that was started answers |
//! | `traces` | what a QEMU leaves in the file system, before and after its run |
//! | `words` | what it says on its standard error |
//!
//! Neighbours: [`crate::vm`] runs the QEMUs of machines; [`crate::host::process`] knows what a process is.

mod ready;
mod traces;
mod words;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::config::{QemuLaunch, QemuTraits};
use crate::error::{ErrorCode, Failure};
use crate::host::process::{Identity, ProcessHandle, QemuMarks, SpawnSpec, identify, spawn};
use crate::types::VmId;

use words::Words;

/// How a QEMU is ended.
#[derive(Debug, Clone, Copy)]
enum By {
    Term { grace: Duration },
    Kill,
}

/// At most one QEMU at a time.
#[derive(Debug)]
pub struct QemuProcess {
    vm_id: VmId,
    process: Mutex<Option<ProcessHandle>>,
    /// Who starts or stops it goes alone.
    turn: tokio::sync::Mutex<()>,
}

impl QemuProcess {
    /// Of the machine of this id, which errors are about. Nothing runs yet.
    pub fn new(vm_id: VmId) -> Self {
        Self {
            vm_id,
            process: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Starts it, and returns when its monitor greets; without a monitor, when it has lived for a second. After a failure
    /// nothing of it is left.
    pub async fn start(&self, launch: QemuLaunch, traits: &QemuTraits) -> Result<(), Failure> {
        let _alone = self.turn.lock().await;
        let started = self.start_alone(launch.detached(), traits).await;
        started.map_err(|failure| failure.of_vm(&self.vm_id))
    }

    /// SIGTERM, which QEMU ends by at once and its guest hears nothing of; after `grace` SIGKILL. Nothing is done when
    /// none runs. A start that is under way comes first.
    pub async fn stop(&self, traits: &QemuTraits, grace: Duration) -> Result<(), Failure> {
        let _alone = self.turn.lock().await;
        self.end(traits, By::Term { grace }).await
    }

    /// SIGKILL, for a QEMU that is proven to be the one with the token. Nothing is done when none runs. It waits for
    /// nobody: a start or stop that is under way comes to its end by it.
    pub async fn force_kill(&self, traits: &QemuTraits) -> Result<(), Failure> {
        if traits.token.is_none() {
            let failure = unproven("there is no identity token to know it by");
            return Err(failure.of_vm(&self.vm_id));
        }
        self.end(traits, By::Kill).await
    }

    async fn end(&self, traits: &QemuTraits, by: By) -> Result<(), Failure> {
        let ended = async {
            let Some(process) = self.proven(traits).await? else {
                return Ok(());
            };
            match by {
                By::Term { grace } => process.terminate(grace).await?,
                By::Kill => process.kill_now().await?,
            };
            traces::remove(process.pid(), traits).await;
            Ok(())
        };
        ended
            .await
            .map_err(|failure: Failure| failure.of_vm(&self.vm_id))
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        self.living().is_some()
    }

    /// Its number, while it runs.
    pub fn pid(&self) -> Option<i32> {
        Some(self.living()?.pid())
    }

    fn living(&self) -> Option<ProcessHandle> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.clone().filter(ProcessHandle::is_alive)
    }

    fn hold(&self, process: &ProcessHandle) {
        let mut held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        *held = Some(process.clone());
    }

    async fn start_alone(&self, launch: QemuLaunch, traits: &QemuTraits) -> Result<(), Failure> {
        self.refuse(&launch, traits)?;
        traces::make_way(traits).await?;
        let greeting = ready::Greeting::of(traits.qmp_socket.as_ref())?;
        let (program, args) = launch.program();
        let words = Words::of(&args)?;
        let process = spawn(SpawnSpec::new(program, words.writer()?).args(args)).await?;
        self.hold(&process);
        let ready = match greeting.wait(&process, &words).await {
            Ok(()) => self.still_runs(&process, &words, traits).await,
            failed => failed,
        };
        if ready.is_err() {
            process.kill_now().await?;
            traces::remove(process.pid(), traits).await;
        }
        ready
    }

    /// What the command line and this process alone can tell.
    fn refuse(&self, launch: &QemuLaunch, traits: &QemuTraits) -> Result<(), Failure> {
        if let Some(pid) = self.pid() {
            let message = format!("its QEMU runs already, as process {pid}");
            return Err(Failure::new(ErrorCode::InvalidState, message));
        }
        let token = traits.token.as_deref();
        if token.is_some_and(|token| !QemuMarks::any_of(token).are_on(&launch.cmdline())) {
            let why = "its program is not called qemu…, or neither its -name nor -pidfile nor -qmp is the identity token";
            return Err(unproven(why));
        }
        Ok(())
    }

    async fn still_runs(
        &self,
        process: &ProcessHandle,
        words: &Words,
        traits: &QemuTraits,
    ) -> Result<(), Failure> {
        match self.proven(traits).await? {
            Some(_) => Ok(()),
            None => Err(words.failure(process.exited().await)),
        }
    }

    /// The process, if one runs and is the one meant; that of an earlier program, if its pidfile and the token say so.
    async fn proven(&self, traits: &QemuTraits) -> Result<Option<ProcessHandle>, Failure> {
        let held = self.living();
        let Some(token) = &traits.token else {
            return Ok(held);
        };
        let pid = match &held {
            Some(process) => Some(process.pid()),
            None => traces::pid(traits).await,
        };
        let Some(pid) = pid else { return Ok(None) };
        match identify(pid, QemuMarks::any_of(token)).await {
            // Ours to reap: the handle of the start stays.
            Identity::Ours(_same) if held.is_some() => Ok(held),
            Identity::Ours(found) => {
                self.hold(&found);
                Ok(Some(found))
            }
            Identity::Gone => Ok(None),
            Identity::NotOurs if held.is_none() => Ok(None),
            Identity::NotOurs => Err(unproven("its arguments do not have the identity token")),
            Identity::Unknown(why) => Err(unproven(&why)),
        }
    }
}

fn unproven(why: &str) -> Failure {
    let message = format!("the process cannot be proven to be this machine's QEMU: {why}");
    Failure::new(ErrorCode::IdentityUnknown, message)
}
