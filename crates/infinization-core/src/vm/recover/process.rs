//! Which process is the machine's QEMU, with proof.

use tokio::time::timeout;

use super::{MONITOR_DEADLINE, is_settled};
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::blocking;
use crate::host::process::{Identity, ProcessHandle, adopt, find_by_name, find_by_names};
use crate::qemu::{blockdev_argument, name_argument};
use crate::types::{HostPath, InternalName};
use crate::vm::action::Release;
use crate::vm::context::VmContext;
use crate::vm::ledger::{Contents, Lived};
use crate::vm::machine::Machine;
use crate::vm::snapshot::files_of;
use crate::vm::spec;

/// What became of the process a ledger tells of.
pub(in crate::vm) enum Found {
    /// It lives, and is ours.
    Process(ProcessHandle),
    /// There is none.
    None,
    /// It cannot be told, for this reason.
    Unknown(String),
}

impl Machine {
    /// The machine's QEMU, if it has one: for verbs that end it, whatever was going on before.
    pub(in crate::vm) async fn process_to_end(&mut self) -> Result<Option<ProcessHandle>, Failure> {
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
    pub(in crate::vm) async fn nobody_has_its_name(&self) -> Result<(), Failure> {
        match self.context.process_of_its_name().await? {
            None => Ok(()),
            Some(process) => Err(self
                .unknown(&format!("process {} runs under its name", process.pid()))
                .with("pid", process.pid())),
        }
    }

    pub(super) fn unknown(&self, why: &str) -> Failure {
        let message = format!("it cannot be told whether the VM has a QEMU: {why}");
        Failure::new(ErrorCode::IdentityUnknown, message).of_vm(&self.context.vm_id)
    }

    pub(in crate::vm) async fn find_process(&self, contents: &Contents) -> Result<Found, Failure> {
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
    pub(super) fn write_down(&self, process: &ProcessHandle) -> Result<Lived, Failure> {
        let context = &self.context;
        let spec = spec::read(&context.directory)?.ok_or_else(|| self.unknown("it has no spec"))?;
        let lived = Lived {
            process: process.id().clone(),
            name_argument: name_argument(&spec.internal_name),
            qmp_socket: spec.paths.qmp_socket.clone(),
            display_port: spec.display.port,
            firewall_default_action: spec.firewall.default_action,
            seat: None,
            guarded: Vec::new(),
        };
        context.ledger.live(lived.clone())?;
        Ok(lived)
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
