//! Finds out what became of a VM while nobody watched: after our own restart, or for `reconcile`.
//!
//! An operation that was under way is finished or undone, never both. A process is ours only with
//! proof; what cannot be judged is left as it is and told. A QEMU that is ours but silent is watched
//! all the same. No guest is harmed: QEMU is ended only where a create or start had not yet let the
//! guest run, or where destroying had begun. Of a machine that has become another node's, what it held
//! here is released and its row let be.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::time::timeout;

use super::action::Release;
use super::condition::Health;
use super::context::VmContext;
use super::effects::{connect, keep_trying};
use super::ledger::{Contents, Lived};
use super::live::{Live, LiveView, RunKeys, memory_of};
use super::machine::Machine;
use super::outcome::EndCause;
use super::plan::Operation;
use super::snapshot::files_of;
use super::spec;
use super::status::{FOLLOWED, Status, of_run_state};
use crate::db::{ConfigurationUpdate, DbError, MachineRecord};
use crate::error::{ErrorCode, Failure};
use crate::firewall::ChainNames;
use crate::host::blocking::blocking;
use crate::host::process::{
    Exit, Identity, ProcessHandle, adopt, boot_id, find_by_name, find_by_names,
};
use crate::qemu::{blockdev_argument, name_argument};
use crate::qmp::{EventReceiver, QmpClient, RunState, StatusInfo};
use crate::types::{HostPath, InternalName};

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

pub(super) enum Found {
    Process(ProcessHandle),
    None,
    Unknown(String),
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
            (_, Some(process), Some(lived)) => self.take_back(launching, process, lived).await,
            // Its ledger was damaged.
            (_, Some(process), None) => {
                let lived = self.write_down(&process)?;
                self.take_back(false, process, lived).await
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

    /// The machine's QEMU, if it has one: for verbs that end it, whatever was going on before.
    pub(super) async fn process_to_end(&mut self) -> Result<Option<ProcessHandle>, Failure> {
        let contents = self.context.ledger.contents();
        if self.live.is_some() || is_settled(&contents) {
            return Ok(self.process());
        }
        match self.find_process(&contents).await? {
            Found::Unknown(why) => Err(self.unknown(&why)),
            Found::Process(process) => Ok(Some(process)),
            Found::None => {
                // A ledger that was made anew may not know it.
                self.nobody_has_its_name().await?;
                Ok(None)
            }
        }
    }

    /// No process of this machine's name runs, as far as a ledger knows nothing of one.
    pub(super) async fn nobody_has_its_name(&self) -> Result<(), Failure> {
        match self.context.process_of_its_name().await? {
            None => Ok(()),
            Some(process) => Err(self
                .unknown(&format!("process {} runs under its name", process.pid()))
                .with("pid", process.pid())),
        }
    }

    fn unknown(&self, why: &str) -> Failure {
        let message = format!("it cannot be told whether the VM has a QEMU: {why}");
        Failure::new(ErrorCode::IdentityUnknown, message).of_vm(&self.context.vm_id)
    }

    pub(super) async fn find_process(&self, contents: &Contents) -> Result<Found, Failure> {
        if let Some(lived) = &contents.lived {
            return Ok(match adopt(&lived.process, &lived.name_argument).await {
                Identity::Ours(process) => Found::Process(process),
                Identity::Gone | Identity::NotOurs => Found::None,
                Identity::Unknown(why) => Found::Unknown(why),
            });
        }
        let intended = contents
            .entries
            .iter()
            .any(|entry| entry.undo.release == Release::EndQemu);
        if !intended {
            return Ok(Found::None);
        }
        let spec = match spec::read(&self.context.directory) {
            Ok(Some(spec)) => spec,
            Ok(None) => return Ok(Found::None),
            Err(error) => return Ok(Found::Unknown(error.to_string())),
        };
        // We were killed between the spawn and the ledger. Another state directory may have a machine
        // of the same name, but not with the same disk; since the start that may have got overlays.
        let found = find_by_name(&name_argument(&spec.internal_name)).await?;
        let directory = self.context.directory.clone();
        let layers = blocking(move || files_of(&directory).unwrap_or_default()).await?;
        let quoted = |path: &HostPath| serde_json::Value::from(path.as_str()).to_string();
        let mut disks: Vec<String> = layers.iter().map(quoted).collect();
        disks.extend(spec.disks.first().map(|disk| match disk.path() {
            Some(path) => quoted(path),
            None => blockdev_argument(0, disk),
        }));
        told_of(found, disks).await
    }

    /// The process was found by its name and its disk.
    fn write_down(&self, process: &ProcessHandle) -> Result<Lived, Failure> {
        let context = &self.context;
        let spec = spec::read(&context.directory)?.ok_or_else(|| self.unknown("it has no spec"))?;
        let lived = Lived {
            process: process.id().clone(),
            name_argument: name_argument(&spec.internal_name),
            qmp_socket: spec.paths.qmp_socket.clone(),
            display_port: spec.display.port,
            firewall_default_action: spec.firewall.default_action,
        };
        context.ledger.live(lived.clone())?;
        Ok(lived)
    }

    /// The process lives: an interrupted launch is undone if its guest has not run yet; everything
    /// else goes on as if we had never been away. A monitor that does not answer is tried again
    /// while the process lives, and what depends on its answer waits for it.
    async fn take_back(
        &mut self,
        launching: bool,
        process: ProcessHandle,
        lived: Lived,
    ) -> Result<Recovered, Failure> {
        let reached = reach(&lived.qmp_socket, &process).await;
        if let Reached::Answers { status, .. } = &reached
            && launching
            && status.status == RunState::Prelaunch
        {
            drop(reached);
            let contents = self.context.ledger.contents();
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
            None => self.last_known().await,
        };
        let display_port = self
            .context
            .services
            .display_ports
            .claim(lived.display_port);
        let memory = memory_of(&process).await;
        let view = LiveView {
            process,
            qmp,
            qmp_socket: lived.qmp_socket.to_string(),
            tap: self.context.names.tap.to_string(),
            display_port: lived.display_port,
            health: Health::default(),
            memory,
            missed: AtomicU64::default(),
            disk_keys: RunKeys::default(),
        };
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

    /// The monitor of a taken back QEMU answers at last: now it shows whether an interrupted launch
    /// had come to its end.
    pub(super) async fn finish_launch(&mut self, status: &StatusInfo) -> Result<(), Failure> {
        let contents = self.context.ledger.contents();
        if !contents.operation.is_some_and(Operation::is_launch) {
            return Ok(());
        }
        if status.status == RunState::Prelaunch {
            let process = self.process();
            self.goes_dark(&EndCause::of("host-kill"));
            self.undo(&contents, process).await?;
            return Ok(());
        }
        self.context.ledger.commit()?;
        self.shown = found_status(status);
        self.write_found(&self.shown).await;
        Ok(())
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
            tap_device_name: Some(Some(live.view.tap.clone())),
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

impl VmContext {
    /// A QEMU that runs under this machine's name, whether a ledger knows it or not.
    pub async fn process_of_its_name(&self) -> Result<Option<ProcessHandle>, Failure> {
        let Some(name) = self.internal_name().await? else {
            return Ok(None);
        };
        // The plain form is how others name theirs.
        let mut names = vec![name.clone()];
        if let Ok(name) = InternalName::parse(name.as_str()) {
            names.push(name_argument(&name));
        }
        Ok(find_by_names(names).await?.into_iter().next())
    }

    /// As the row says it; while the database is away, as the spec does.
    async fn internal_name(&self) -> Result<Option<String>, Failure> {
        let database = &self.services.database;
        let error = match database.get_machine_internal_name(&self.vm_id).await {
            Err(error) => error,
            name => return Ok(name?),
        };
        match spec::read(&self.directory) {
            Ok(Some(spec)) => Ok(Some(spec.internal_name.to_string())),
            Ok(None) | Err(_) => Err(error.into()),
        }
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
    let (qmp, events) = keep_trying(socket, process, MONITOR_DEADLINE);
    Reached::Silent { qmp, events }
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

/// The process that has this disk on its command line. `/proc` waits for a process that hangs while
/// it changes its memory map.
async fn told_of(found: Vec<ProcessHandle>, disks: Vec<String>) -> Result<Found, Failure> {
    let looked = blocking(move || {
        let mut found = found.into_iter();
        found.find(|process| {
            let mut disks = disks.iter();
            disks.any(|disk| process.was_told_of(disk))
        })
    });
    match timeout(MONITOR_DEADLINE, looked).await {
        Ok(Ok(ours)) => Ok(ours.map_or(Found::None, Found::Process)),
        Ok(Err(error)) => Err(error.into()),
        Err(_elapsed) => Ok(Found::Unknown("/proc does not answer".to_owned())),
    }
}
