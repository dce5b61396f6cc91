//! Freezing the guest's file systems while its disks are snapshotted.
//!
//! A guest that stays frozen hangs. So freezing is bounded, thawing always follows, and a file in
//! the VM's state directory says from before the freeze until after the thaw whom to thaw: a process
//! that was killed in between is followed up by the next one.

use std::path::PathBuf;
use std::time::Duration;

use super::super::context::VmContext;
use super::super::spec;
use crate::config::{SnapshotOptions, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::host::blocking::{blocking, file_call};
use crate::host::state_file::{self, Durability};
use crate::qmp::{AgentError, AgentOptions, GuestAgent, QmpClient, ask_to_thaw};
use crate::types::HostPath;

/// The note's file name: it holds the path of the agent's socket.
const FILE: &str = "guest-frozen";
/// How long each attempt to thaw may take, however long freezing may.
const THAW: Duration = Duration::from_secs(10);
/// How long a guest that was left frozen is tried, at recovery.
const FOLLOW_UP: Duration = Duration::from_secs(5);

/// A guest whose file systems are frozen.
#[derive(Debug)]
pub(super) struct Frozen {
    agent: GuestAgent,
    note: PathBuf,
}

/// Freezes the guest's file systems. A guest that does not do it in time is thawed again.
pub(super) async fn freeze(
    context: &VmContext,
    qmp: &QmpClient,
    config: &VmConfig,
    options: &SnapshotOptions,
) -> Result<Frozen, Failure> {
    let socket = config.channels.guest_agent.as_ref().ok_or_else(|| {
        let message = "the VM has no guest agent channel, so its file systems cannot be frozen";
        Failure::new(ErrorCode::InvalidState, message)
    })?;
    if !qmp.query_status().await?.running {
        let message = "the guest does not run, so its agent cannot freeze its file systems";
        return Err(Failure::new(ErrorCode::InvalidState, message));
    }
    let terms = AgentOptions {
        connect_timeout: options.freeze_timeout,
        command_timeout: THAW,
    };
    let agent = GuestAgent::connect(socket.as_path(), terms).await?;
    let note = note(context, socket).await?;
    let frozen = Frozen { agent, note };
    match frozen.agent.fs_freeze(options.freeze_timeout).await {
        Ok(_how_many) => Ok(frozen),
        Err(error) => {
            // It was asked to thaw; whether it has, only this answer tells.
            let _told = frozen.thaw().await;
            Err(error.into())
        }
    }
}

impl Frozen {
    /// Thaws the guest. One that does not thaw in three attempts is asked again at the next recovery.
    pub(super) async fn thaw(self) -> Result<(), Failure> {
        let thawed = ask_to_thaw(|| self.agent.fs_thaw()).await;
        self.agent.close().await;
        match thawed {
            Ok(_how_many) => {
                forget(self.note).await;
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "a guest's file systems may still be frozen");
                let message = "the guest's file systems may still be frozen; nothing was kept";
                Err(Failure::caused_by(ErrorCode::QmpError, message, error))
            }
        }
    }
}

/// The note of a guest that others freeze, for a backup of its disks.
#[derive(Debug)]
pub struct NotedFreeze {
    path: PathBuf,
    /// There was none: nobody has failed to thaw the guest before.
    is_first: bool,
}

impl NotedFreeze {
    /// The guest was thawed.
    pub async fn forget(self) {
        forget(self.path).await;
    }

    /// The guest was neither frozen nor thawed. Whoever noted it before may have left it frozen.
    pub async fn withdraw(self) {
        if self.is_first {
            self.forget().await;
        }
    }
}

impl VmContext {
    /// Notes that the guest may be frozen from now on, for the next recovery; nothing where the VM has no
    /// guest agent's channel to thaw it through.
    pub async fn note_freeze(&self) -> Result<Option<NotedFreeze>, Failure> {
        let directory = self.directory.clone();
        let config = blocking(move || spec::read(&directory)).await??;
        match config.and_then(|config| config.channels.guest_agent) {
            Some(socket) => {
                let path = self.directory.join(FILE);
                let is_first = noted(path).await.is_none();
                let path = note(self, &socket).await?;
                Ok(Some(NotedFreeze { path, is_first }))
            }
            None => Ok(None),
        }
    }
}

/// Thaws the guest that a killed process has left frozen, if it still runs.
pub(super) async fn thaw_left_frozen(context: &VmContext, runs: bool) {
    let note = context.directory.join(FILE);
    let Some(socket) = noted(note.clone()).await else {
        return;
    };
    if runs && let Err(error) = thaw(&socket).await {
        tracing::warn!(vm = %context.vm_id, %error, "a guest was left frozen, and still may be");
        return;
    }
    forget(note).await;
}

async fn thaw(socket: &HostPath) -> Result<(), AgentError> {
    let terms = AgentOptions {
        connect_timeout: FOLLOW_UP,
        command_timeout: FOLLOW_UP,
    };
    let agent = GuestAgent::connect(socket.as_path(), terms).await?;
    let thawed = agent.fs_thaw().await;
    agent.close().await;
    thawed.map(drop)
}

async fn note(context: &VmContext, socket: &HostPath) -> Result<PathBuf, Failure> {
    let path = context.directory.join(FILE);
    let (file, socket) = (path.clone(), socket.clone());
    let write =
        move || state_file::write(&file, socket.as_str().as_bytes(), Durability::ProcessCrash);
    blocking(write).await??;
    Ok(path)
}

/// A note that cannot be read leads to nobody.
async fn noted(path: PathBuf) -> Option<HostPath> {
    let body = blocking(move || state_file::read(&path))
        .await
        .ok()?
        .ok()??;
    HostPath::parse(String::from_utf8(body).ok()?).ok()
}

async fn forget(note: PathBuf) {
    match file_call(move || std::fs::remove_file(note)).await {
        // Two have frozen and thawed it.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "the note of a frozen guest could not be removed");
        }
        _ => {}
    }
}
