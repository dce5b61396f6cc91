//! Finds out what became of a VM while nobody watched: after our own restart, or for `reconcile`.
//!
//! An operation that was under way is finished or undone, never both. A process is ours only with
//! proof; what cannot be judged is left as it is and told. No guest is harmed: QEMU is ended only
//! where a create or start had not yet let the guest run, or where destroying had begun.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::action::Release;
use super::bench::Bench;
use super::effects::connect;
use super::ledger::{Contents, Entry, Lived};
use super::live::{Live, LiveView};
use super::machine::Machine;
use super::outcome::EndCause;
use super::plan::Operation;
use super::run::undo_attempt;
use super::spec;
use super::status::{Status, of_run_state};
use crate::config::VmConfig;
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::host::process::{Exit, Identity, ProcessHandle, adopt, boot_id, find_by_name};
use crate::qemu::name_argument;
use crate::qmp::RunState;

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

enum Found {
    Process(ProcessHandle),
    None,
    Unknown(String),
}

impl Machine {
    pub(super) async fn recover(&mut self) -> Result<Recovered, Failure> {
        if self.live.is_some() {
            return Ok(Recovered::Alive);
        }
        let contents = self.context.ledger.contents();
        let spec = spec::read(&self.context.directory)?;
        let process = match self.find_process(&contents, spec.as_ref()).await? {
            Found::Unknown(why) => return Ok(Recovered::Skipped(why)),
            Found::Process(process) => Some(process),
            Found::None => None,
        };
        match (contents.operation, process) {
            (Some(Operation::Destroy), process) => self.finish_destroy(process).await,
            (operation, Some(process)) => {
                let spec = spec.ok_or_else(|| self.no_spec())?;
                self.take_back(operation, &spec, process, contents.lived)
                    .await
            }
            (Some(Operation::Create | Operation::Start), None) => self.undo(&contents, None).await,
            (_, None) => self.bury(contents.lived).await,
        }
    }

    async fn find_process(
        &self,
        contents: &Contents,
        spec: Option<&VmConfig>,
    ) -> Result<Found, Failure> {
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
        let Some(spec) = spec.filter(|_| intended) else {
            return Ok(Found::None);
        };
        // We were killed between the spawn and the ledger. Another state directory may have a machine
        // of the same name, but not with the same disk.
        let found = find_by_name(&name_argument(&spec.internal_name)).await?;
        let disk = spec.disks.first().map_or("", |disk| disk.path.as_str());
        let ours = found.into_iter().find(|process| process.was_told_of(disk));
        Ok(ours.map_or(Found::None, Found::Process))
    }

    /// The process lives: an interrupted launch is finished if its guest runs already, and undone
    /// if it does not; everything else goes on as if we had never been away.
    async fn take_back(
        &mut self,
        operation: Option<Operation>,
        spec: &VmConfig,
        process: ProcessHandle,
        lived: Option<Lived>,
    ) -> Result<Recovered, Failure> {
        let launching = matches!(operation, Some(Operation::Create | Operation::Start));
        let connected = connect(&spec.paths.qmp_socket, &process, MONITOR_DEADLINE).await;
        let status = match &connected {
            Ok((qmp, _)) => qmp.query_status().await.ok(),
            Err(_) => None,
        };
        let not_yet_run = status
            .as_ref()
            .is_none_or(|status| status.status == RunState::Prelaunch);
        if launching && not_yet_run {
            drop(connected);
            return self
                .undo(&self.context.ledger.contents(), Some(process))
                .await;
        }
        let (Ok((qmp, events)), Some(status)) = (connected, status) else {
            return Ok(Recovered::Skipped(
                "QEMU lives but its monitor does not answer".to_owned(),
            ));
        };
        let contents = self.context.ledger.contents();
        let port = lived
            .as_ref()
            .map_or(spec.display.port, |lived| lived.display_port);
        let view = LiveView {
            generation: contents.generation,
            process,
            qmp,
            qmp_socket: spec.paths.qmp_socket.to_string(),
            tap: self.context.names.tap.to_string(),
            display_port: port,
            started_at_ms: lived.map_or_else(now_ms, |lived| lived.started_at_ms),
        };
        let display_port = self.context.services.display_ports.claim(port);
        let live = Live {
            view: view.into(),
            events,
            _display_port: display_port,
            ending: None,
        };
        let new = match status.status {
            _ if status.running => Status::Running,
            // The launch is over: it was suspended and then reset.
            RunState::Prelaunch => Status::Suspended,
            other => of_run_state(other.as_str()),
        };
        self.goes_live(live, new.clone());
        self.context.ledger.commit()?;
        self.write_found_status(&new).await?;
        Ok(Recovered::Alive)
    }

    /// Brings the row up to what was found, but over nobody's claim.
    async fn write_found_status(&self, found: &Status) -> Result<(), Failure> {
        let (database, vm_id) = (&self.context.services.database, &self.context.vm_id);
        if let Some(live) = &self.live {
            let update = crate::db::ConfigurationUpdate {
                qemu_pid: Some(Some(i64::from(live.view.process.pid()))),
                qmp_socket_path: Some(Some(live.view.qmp_socket.clone())),
                tap_device_name: Some(Some(live.view.tap.clone())),
                ..Default::default()
            };
            database.update_machine_configuration(vm_id, update).await?;
        }
        let row = database.find_machine(vm_id).await?;
        let stale = row.is_some_and(|row| Status::parse(&row.status) != *found);
        if stale {
            database
                .update_machine_status(vm_id, found.as_str(), &super::status::UNTOUCHABLE)
                .await?;
        }
        Ok(())
    }

    /// Undoes a create or start that was interrupted.
    async fn undo(
        &mut self,
        contents: &Contents,
        process: Option<ProcessHandle>,
    ) -> Result<Recovered, Failure> {
        self.disown_strangers(contents)?;
        let bench = Bench::of_process(process);
        let context = &self.context;
        let cleanup = undo_attempt(context.effects.as_ref(), &context.ledger, &bench).await;
        self.alert(&cleanup);
        context.end_attempt().await?;
        if contents.operation != Some(Operation::Create) {
            return Ok(Recovered::Off);
        }
        self.forget_if_empty().await;
        Ok(Recovered::Undone)
    }

    /// A file that was about to be made may be another's by now: only one that appeared after the
    /// operation began is ours.
    fn disown_strangers(&self, contents: &Contents) -> Result<(), Failure> {
        let began = UNIX_EPOCH + Duration::from_millis(contents.began_at_ms);
        let mut strangers = Vec::new();
        for entry in contents
            .entries
            .iter()
            .filter(|entry| entry.number >= contents.attempt)
        {
            let Entry {
                held: false,
                number,
                ..
            } = entry
            else {
                continue;
            };
            if let Some(path) = entry.undo.release.file()
                && appeared_before(path.as_path(), began)
            {
                strangers.push(*number);
            }
        }
        Ok(self.context.ledger.forget(&strangers)?)
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
        let stopping = contents.operation == Some(Operation::Stop);
        self.shown = Status::Running;
        match (lived, rebooted) {
            (Some(lived), false) if !stopping => {
                self.died_unseen(lived.process.pid, Exit::Unknown).await;
            }
            (Some(_), true) => self.gone(&EndCause::of("host-reboot")).await,
            _ => self.gone(&EndCause::of("unknown")).await,
        }
        Ok(Recovered::Off)
    }

    async fn finish_destroy(
        &mut self,
        process: Option<ProcessHandle>,
    ) -> Result<Recovered, Failure> {
        if let Some(process) = process {
            process.kill_now().await?;
        }
        let cleanup = self.settle(&EndCause::of("host-kill")).await;
        self.alert(&cleanup);
        self.write_off().await;
        self.destroy(false).await?;
        Ok(Recovered::Off)
    }

    fn no_spec(&self) -> Failure {
        let message = "its QEMU lives but its spec file is missing";
        Failure::new(ErrorCode::StateFile, message).of_vm(&self.context.vm_id)
    }
}

fn appeared_before(path: &Path, moment: std::time::SystemTime) -> bool {
    let Ok(metadata) = path.symlink_metadata() else {
        return false;
    };
    let appeared = metadata
        .created()
        .or_else(|_unsupported| metadata.modified());
    // File times are as coarse as a kernel tick: what appeared in the same one counts as ours.
    appeared.is_ok_and(|appeared| appeared + Duration::from_millis(20) < moment)
}
