//! Finds out what became of a VM while nobody watched: after our own restart, or for `reconcile`.
//!
//! An operation that was under way is finished or undone, never both. A process is ours only with
//! proof ([`process`]); what cannot be judged is left as it is and told. A QEMU that is ours but silent is watched
//! all the same. No guest is harmed: QEMU is ended only where a create or start had not yet let the
//! guest run, or where destroying had begun. Of a machine that has become another node's, what it held
//! here is released and its row let be; its guest is not let run.

mod process;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

pub(super) use process::Found;
use tokio::time::timeout;

use super::action::Release;
use super::effects::{connect, keep_trying};
use super::ledger::{Contents, Lived};
use super::live::{Live, LiveView};
use super::machine::Machine;
use super::outcome::EndCause;
use super::plan::Operation;
use super::spec;
use super::status::{FOLLOWED, OURS, Status, of_run_state};
use crate::db::{ConfigurationUpdate, DbError, MachineRecord};
use crate::error::Failure;
use crate::firewall::ChainNames;
use crate::host::process::{Exit, ProcessHandle, boot_id};
use crate::qmp::{EventReceiver, QmpClient, QmpError, RunState, StatusInfo};
use crate::types::HostPath;

/// For a monitor that may hang while everything else waits to be looked at.
const MONITOR_DEADLINE: Duration = Duration::from_secs(5);

/// What became of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    /// There was nothing of it on this host.
    Nothing,
    /// Its QEMU lives and is ours again.
    Alive,
    /// Its QEMU is gone and what it left was released.
    Off,
    /// An interrupted create was undone: nothing of the machine is left.
    Undone,
    /// It could not be judged, for this reason, and was left as it is.
    Skipped(String),
}

impl Machine {
    /// A machine that is being installed may be without a QEMU between two steps: then there is nothing
    /// to be found out or given back.
    pub(super) async fn recover(&mut self) -> Result<Recovered, Failure> {
        if self.live.is_none() && (self.is_between_steps() || self.may_be_between_steps().await?) {
            let why = "it is without a QEMU as a step of its installation";
            return Ok(Recovered::Skipped(why.to_owned()));
        }
        self.take_stock().await
    }

    /// Whether it is being installed and an earlier process of ours has left it without a QEMU, and in
    /// no operation.
    async fn may_be_between_steps(&self) -> Result<bool, Failure> {
        let contents = self.context.ledger.contents();
        if !self.is_being_installed() || contents.lived.is_none() || contents.operation.is_some() {
            return Ok(false);
        }
        let found = self.find_process(&contents).await?;
        Ok(matches!(found, Found::None))
    }

    async fn take_stock(&mut self) -> Result<Recovered, Failure> {
        if self.live.is_some() {
            return Ok(Recovered::Alive);
        }
        let contents = self.context.ledger.contents();
        let found = self.find_out(&contents).await;
        self.tell_found(&contents, &found);
        found
    }

    async fn find_out(&mut self, contents: &Contents) -> Result<Recovered, Failure> {
        let process = match self.find_process(contents).await? {
            Found::Unknown(why) => return Ok(Recovered::Skipped(why)),
            Found::Process(process) => Some(process),
            Found::None => None,
        };
        if !is_settled(contents) {
            self.context.look_whose_row().await;
        }
        let launching = self.is_undecided(contents, process.is_none()).await?;
        match (contents.operation, process, contents.lived.clone()) {
            (
                Some(operation @ (Operation::Destroy | Operation::Delete | Operation::DeleteData)),
                process,
                _,
            ) => {
                let razed = self.raze(operation, process).await?;
                razed.complete(&self.context.vm_id)?;
                Ok(Recovered::Off)
            }
            // Its guest never ran: that comes long after the ledger has the process.
            (_, process, None) if launching => self.undo(contents, process).await,
            (_, None, Some(_)) if launching => self.undo(contents, None).await,
            (_, Some(process), Some(lived)) => self.take_back(process, lived).await,
            // Its ledger was damaged.
            (_, Some(process), None) => {
                let lived = self.write_down(&process)?;
                self.take_back(process, lived).await
            }
            (_, None, lived) => self.bury(lived).await,
        }
    }

    /// A verb must know whether there is a QEMU: nothing is released under one that may live.
    pub(super) async fn look_again(&mut self) -> Result<(), Failure> {
        if self.live.is_some() || is_settled(&self.context.ledger.contents()) {
            return Ok(());
        }
        match self.take_stock().await? {
            Recovered::Skipped(why) => Err(self.unknown(&why)),
            _ => Ok(()),
        }
    }

    /// The process lives: an interrupted launch is undone if its guest has not run yet, and finished if it
    /// was about to; everything else goes on as if we had never been away. A monitor that does not answer
    /// is tried again while the process lives, and what depends on its answer waits for it.
    async fn take_back(
        &mut self,
        process: ProcessHandle,
        lived: Lived,
    ) -> Result<Recovered, Failure> {
        let contents = self.context.ledger.contents();
        let launching = contents.operation.is_some_and(Operation::is_launch);
        let reached = reach(&lived.qmp_socket, &process).await;
        let reached = match reached {
            Reached::Answers {
                qmp,
                events,
                status,
            } => match self.run_if_due(&contents, &qmp, status).await {
                Ok(status) => Reached::Answers {
                    qmp,
                    events,
                    status,
                },
                Err(error) => {
                    let vm = &self.context.vm_id;
                    tracing::warn!(%vm, %error, "a launch could not be finished yet");
                    // The next connection says when it can be asked again.
                    qmp.close().await;
                    Reached::silent(&lived.qmp_socket, &process)
                }
            },
            silent @ Reached::Silent { .. } => silent,
        };
        if let Reached::Answers { status, .. } = &reached
            && launching
            && !contents.guest_may_run
            && status.status == RunState::Prelaunch
        {
            drop(reached);
            return self.undo(&contents, Some(process)).await;
        }
        let (qmp, events, status) = match reached {
            Reached::Answers {
                qmp,
                events,
                status,
            } => (qmp, events, Some(status)),
            Reached::Silent { qmp, events } => (qmp, events, None),
        };
        let shown = match &status {
            Some(status) => found_status(status),
            None if launching => Status::Starting,
            None => self.last_known().await,
        };
        let display_port = self
            .context
            .services
            .display_ports
            .claim(lived.display_port);
        let tap = self.context.names.tap.clone();
        let spec = spec::read(&self.context.directory).ok().flatten();
        let bridge = spec.map(|spec| spec.network.bridge);
        let port = lived.display_port;
        let view = LiveView::of(process, qmp, &lived.qmp_socket, (tap, bridge), port).await;
        let live = Live {
            view: view.into(),
            events,
            _display_port: display_port,
            ending: None,
        };
        self.goes_live(live, shown.clone());
        self.examine(status.as_ref()).await;
        let context = &self.context;
        let chains = ChainNames::of(&context.vm_id);
        context.services.nft.adopt_vm(&chains, &context.names.tap);
        if status.is_some() || !launching {
            self.context.ledger.commit()?;
            self.write_found(&shown).await;
        }
        Ok(Recovered::Alive)
    }

    /// What the row says of a QEMU that lives, or lived until now.
    async fn last_known(&self) -> Status {
        let row = self.context.status().await.ok();
        let row = row.filter(Status::expects_process);
        row.unwrap_or(Status::Running)
    }

    /// The monitor of a taken back QEMU answers: now it shows whether an interrupted launch had come to its
    /// end, if that is still open. Answers its state then.
    pub(super) async fn finish_launch(
        &mut self,
        status: StatusInfo,
    ) -> Result<StatusInfo, Failure> {
        let contents = self.context.ledger.contents();
        let live = self.live.as_ref();
        let Some(live) = live.filter(|_| contents.operation.is_some_and(Operation::is_launch))
        else {
            return Ok(status);
        };
        let status = self.run_if_due(&contents, &live.view.qmp, status).await?;
        if status.status == RunState::Prelaunch && !contents.guest_may_run {
            let process = self.process();
            self.goes_dark(&EndCause::of("host-kill"));
            self.undo(&contents, process).await?;
            return Ok(status);
        }
        self.context.ledger.commit()?;
        self.shown = found_status(&status);
        self.write_found(&self.shown).await;
        Ok(status)
    }

    /// A launch that was cut short at its last word to QEMU: all that a guest needs to run was done, and it may
    /// have run, so it is not undone. It is said now if it was not, and if the guest may run here.
    async fn run_if_due(
        &self,
        contents: &Contents,
        qmp: &QmpClient,
        status: StatusInfo,
    ) -> Result<StatusInfo, Failure> {
        let launching = contents.operation.is_some_and(Operation::is_launch);
        if !launching || !contents.guest_may_run || status.status != RunState::Prelaunch {
            return Ok(status);
        }
        if let Some(why) = self.must_not_run().await? {
            let vm = &self.context.vm_id;
            tracing::warn!(%vm, why, "the guest of an interrupted launch stays paused");
            return Ok(status);
        }
        let late = QmpError::Timeout {
            what: "the last word of a launch".to_owned(),
            deadline: MONITOR_DEADLINE,
        };
        let said = timeout(MONITOR_DEADLINE, let_run(qmp)).await;
        Ok(said.unwrap_or(Err(late))?)
    }

    /// Why the guest of an interrupted launch must not be let run, if so. The machine may have moved, and run
    /// on another node, or somebody may be at work on its disks; without an answer that is not known.
    async fn must_not_run(&self) -> Result<Option<String>, DbError> {
        if self.context.is_elsewhere().await? {
            self.context.elsewhere.store(true, Relaxed);
            return Ok(Some("the machine is another node's".to_owned()));
        }
        Ok(match self.context.row_status().await? {
            None => Some("the machine has no row".to_owned()),
            Some(row) => row.is_claim().then(|| format!("its row says {row}")),
        })
    }

    /// QEMU goes on copying for a backup whose process is gone, into files that nobody wants.
    pub(super) async fn end_left_copies(&mut self) {
        let live = self.live.as_ref();
        let Some(live) = live.filter(|live| live.view.qmp.is_connected()) else {
            return;
        };
        let qmp = live.view.qmp.clone();
        let ended = async {
            // What it may have stopped the guest for is over, too.
            Ok::<_, QmpError>(
                qmp.end_left_copies().await?
                    && self.context.owns_row().await
                    && qmp.go_on_after_copies().await?,
            )
        };
        let told = match ended.await {
            Ok(false) => Ok(()),
            // The row's error is that of the process that died: nobody else takes it back.
            Ok(true) => self.shows(Status::Running, "RESUME", &OURS).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = told {
            let vm = &self.context.vm_id;
            tracing::warn!(%vm, %error, "what a dead process's backup copies was not ended");
        }
    }

    /// Brings the row up to what was found, but over nobody's claim.
    async fn write_found(&self, found: &Status) {
        if !self.context.owns_row().await {
            return;
        }
        let written = self.try_write_found(found).await;
        self.context.status_was_written(found.as_str(), written);
    }

    /// Writes what the row shows of the QEMU that lives.
    pub(super) async fn write_run(&self) -> Result<(), DbError> {
        let Some(live) = &self.live else {
            return Ok(());
        };
        let update = ConfigurationUpdate {
            qemu_pid: Some(Some(i64::from(live.view.process.pid()))),
            qmp_socket_path: Some(Some(live.view.qmp_socket.clone())),
            tap_device_name: Some(Some(live.view.tap.to_string())),
            ..Default::default()
        };
        let (database, vm_id) = (&self.context.services.database, &self.context.vm_id);
        database.update_machine_configuration(vm_id, update).await
    }

    async fn try_write_found(&self, found: &Status) -> Result<(), DbError> {
        let (database, vm_id) = (&self.context.services.database, &self.context.vm_id);
        self.write_run().await?;
        // A row that cannot be read is written all the same, as soon as that is possible.
        let row = database.find_machine(vm_id).await;
        let differs = |row: &MachineRecord| Status::parse(&row.status) != *found;
        if row.map_or(true, |row| row.as_ref().is_some_and(differs)) {
            database
                .write_status_over(vm_id, found.as_str(), &FOLLOWED)
                .await?;
            self.context.journal.status(found.as_str());
        }
        Ok(())
    }

    /// The process is gone: a stop is finished, and anything else was an end nobody saw.
    async fn bury(&mut self, lived: Option<Lived>) -> Result<Recovered, Failure> {
        let contents = self.context.ledger.contents();
        if lived.is_none() && contents.operation.is_none() {
            return Ok(Recovered::Nothing);
        }
        let rebooted = lived
            .as_ref()
            .is_some_and(|lived| boot_id().is_ok_and(|boot| boot != lived.process.boot_id));
        if !self.context.owns_row().await {
            // What became of the machine, the other node tells.
            let cleanup = self.settle(&EndCause::of("unknown")).await;
            self.alert(&cleanup);
            return Ok(Recovered::Off);
        }
        let stopping = contents.operation == Some(Operation::Stop);
        self.shown = match self.context.status().await {
            Ok(row) => row,
            Err(_unread) => Status::Running,
        };
        if let Some(cause) = &contents.postponed {
            self.gone(cause).await;
            return Ok(Recovered::Off);
        }
        match (lived, rebooted) {
            (Some(lived), false) if !stopping => {
                let cause = self.cause_of(Exit::Unknown, Some(lived.process.clone()));
                let cause = cause.await;
                self.died_unseen(Some(lived.process.pid), cause).await;
            }
            (Some(_), true) => self.gone(&EndCause::of("host-reboot")).await,
            _ => self.gone(&EndCause::of("unknown")).await,
        }
        Ok(Recovered::Off)
    }
}

/// What came of asking a monitor.
enum Reached {
    Answers {
        qmp: QmpClient,
        events: EventReceiver,
        status: StatusInfo,
    },
    /// It is tried again while the process lives.
    Silent {
        qmp: QmpClient,
        events: EventReceiver,
    },
}

impl Reached {
    fn silent(socket: &HostPath, process: &ProcessHandle) -> Self {
        let (qmp, events) = keep_trying(socket, process, MONITOR_DEADLINE);
        Self::Silent { qmp, events }
    }
}

/// A refusal is an answer: the guest stands still until somebody resumes it.
async fn let_run(qmp: &QmpClient) -> Result<StatusInfo, QmpError> {
    match qmp.cont().await {
        Err(error @ QmpError::Command { .. }) => {
            tracing::warn!(%error, "the guest of an interrupted launch stays paused");
        }
        said => said?,
    }
    qmp.query_status().await
}

async fn reach(socket: &HostPath, process: &ProcessHandle) -> Reached {
    let asked = async {
        let (qmp, events) = connect(socket, process, MONITOR_DEADLINE).await.ok()?;
        let status = timeout(MONITOR_DEADLINE, qmp.query_status()).await.ok()?;
        Some((status.ok()?, qmp, events))
    };
    if let Some((status, qmp, events)) = asked.await {
        return Reached::Answers {
            qmp,
            events,
            status,
        };
    }
    Reached::silent(socket, process)
}

/// What the row of a QEMU in this state should say.
pub fn found_status(status: &StatusInfo) -> Status {
    match status.status {
        _ if status.running => Status::Running,
        // The launch is over: it was suspended and then reset.
        RunState::Prelaunch => Status::Suspended,
        _ => of_run_state(status.status.as_str()),
    }
}

/// Whether the ledger knows that there is no QEMU.
fn is_settled(contents: &Contents) -> bool {
    let mut entries = contents.entries.iter();
    contents.lived.is_none()
        && contents.operation.is_none()
        && entries.all(|entry| entry.undo.release != Release::EndQemu)
}
