//! What others hold of a VM: asks its task, and shows without asking what the VM is now.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::serve;
use crate::config::{VmConfig, Warning};
use crate::error::{ErrorCode, Failure};
use crate::vm::context::VmContext;
use crate::vm::machine::{Machine, View};
use crate::vm::outcome::{CreateResult, OperationResult};
use crate::vm::reconcile::ReconcileResult;
use crate::vm::recover::Recovered;
use crate::vm::request::{Asked, Reply, Request, Verb};
use crate::vm::snapshot::{Snapshot, SnapshotTree};

/// How many requests may wait for one VM before callers wait to ask.
const INBOX: usize = 64;

/// Asks one VM's task. Clones ask the same task; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct VmHandle {
    context: Arc<VmContext>,
    inbox: mpsc::Sender<Asked>,
    view: watch::Receiver<View>,
}

impl VmHandle {
    /// Starts the task.
    pub fn spawn(context: VmContext) -> Self {
        let context = Arc::new(context);
        let (sender, inbox) = mpsc::channel(INBOX);
        let (view_sender, view) = watch::channel(View {
            live: None,
            last_exit: context.ledger.contents().last_exit,
        });
        let machine = Machine::new(Arc::clone(&context), view_sender);
        tokio::spawn(serve(machine, inbox));
        Self {
            context,
            inbox: sender,
            view,
        }
    }

    /// What the VM's surroundings are.
    pub fn context(&self) -> &VmContext {
        &self.context
    }

    /// What there is of the VM beside its task, which ends all the same.
    pub(in crate::vm) fn surroundings(&self) -> (Arc<VmContext>, watch::Receiver<View>) {
        (Arc::clone(&self.context), self.view.clone())
    }

    /// What the VM is now; never waits.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Whether nobody else has a handle or waits for an answer, beside this handle and `others`.
    pub fn is_last_beside(&self, others: usize) -> bool {
        self.inbox.strong_count() <= 1 + others
    }

    /// Makes the machine.
    pub async fn create(
        &self,
        config: VmConfig,
        warnings: Vec<Warning>,
        cancel: CancellationToken,
    ) -> Result<CreateResult, Failure> {
        self.ask(|reply| Request::Create {
            config: Box::new(config),
            warnings,
            cancel,
            reply,
        })
        .await
    }

    /// Finds out what became of the VM while nobody watched.
    pub async fn recover(&self) -> Result<Recovered, Failure> {
        self.ask(|reply| Request::Recover { reply }).await
    }

    /// Settles a row that was listed with a status between two others.
    pub async fn reconcile(&self, listed: &str) -> Result<ReconcileResult, Failure> {
        let listed = listed.to_owned();
        self.ask(|reply| Request::Reconcile { listed, reply }).await
    }

    /// The pid of the QEMU that the row claims; without one the row is settled, as after a crash.
    pub async fn check(&self) -> Result<Option<i32>, Failure> {
        self.ask(|reply| Request::Check { reply }).await
    }

    /// Gives back what earlier clean-ups could not; answers a `CleanupResult`.
    pub async fn retry_cleanup(&self) -> Result<Value, Failure> {
        self.ask(|reply| Request::RetryCleanup { reply }).await
    }

    /// Loads the firewall of a VM that runs, as the database has it.
    pub async fn reload_firewall(&self) -> Result<(), Failure> {
        self.ask(|reply| Request::ReloadFirewall { reply }).await
    }

    /// Returns when everything asked before is done.
    pub async fn rest(&self) -> Result<(), Failure> {
        self.ask(|reply| Request::Rest { reply }).await
    }

    /// Asks for one of the verbs.
    pub async fn verb(&self, verb: Verb) -> Result<OperationResult, Failure> {
        self.ask(|reply| Request::Verb { verb, reply }).await
    }

    /// The snapshots of the VM's disks. Does not wait for the VM's other operations.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, Failure> {
        self.context.list_snapshots(self.view().live).await
    }

    /// The VM's external snapshots. Does not wait for the VM's other operations.
    pub async fn snapshot_tree(&self) -> Result<SnapshotTree, Failure> {
        self.context.snapshot_tree(self.view().live).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        // A task ends only with its last handle, or by a defect.
        let stopped =
            || Failure::new(ErrorCode::Internal, "the VM's task ended").of_vm(&self.context.vm_id);
        let asked = Asked {
            request: Box::new(request(reply)),
            asker: self.inbox.clone(),
        };
        self.inbox.send(asked).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}
