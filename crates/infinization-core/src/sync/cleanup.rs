//! Giving back what a QEMU that is gone held on the host: the port of its TAP is closed, the TAP taken
//! off its bridge, sockets and pidfile are removed. TAP and firewall chain stay for the next start, and
//! disks are never touched. The row's pid and socket are cleared last, and only if nothing is left:
//! they are what a retry goes by.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::db::{Database, MachineConfiguration};
use crate::error::Failure;
use crate::events::now_ms;
use crate::host::blocking::file_call;
use crate::host::link::Links;
use crate::host::nft::Nft;
use crate::host::process::is_alive;
use crate::types::{LinkName, VmId, VmNames};

/// The pauses after a failed attempt: three attempts in all.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// From this many failures on an alert is an `error`.
const SEVERE: usize = 3;

/// `CleanupResult`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CleanupResult {
    /// The machine.
    pub vm_id: String,
    /// How many things were to be given back.
    pub total_resources: usize,
    /// How many were.
    pub successful_cleanups: usize,
    /// How many were not.
    pub failed_cleanups: usize,
    /// Thing by thing.
    pub resources: Vec<CleanupResourceState>,
    /// When, in milliseconds since the Unix epoch.
    pub timestamp: u64,
}

/// One thing that was to be given back.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CleanupResourceState {
    /// A word of `CleanupResourceType`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The device, the path, or the machine's id.
    pub identifier: String,
    /// `SUCCESS` or `FAILED`.
    pub status: &'static str,
    /// At most 3.
    pub attempts: u32,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When it was tried last, in milliseconds since the Unix epoch.
    pub last_attempt_at: u64,
}

/// What one machine may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Held {
    /// The port in the firewall's dispatch.
    Port(LinkName),
    /// The TAP's place on its bridge.
    Tap(LinkName),
    Socket(PathBuf),
    PidFile(PathBuf),
}

/// The connections to the host that a clean-up goes through.
#[derive(Debug)]
pub(super) struct Host {
    links: Links,
    nft: Nft,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            links: Links::new(),
            nft: Nft::new(),
        }
    }

    /// Gives everything back, all at once, then clears the row.
    pub(super) async fn clean_up(
        &self,
        database: &dyn Database,
        vm_id: &VmId,
        held: Vec<Held>,
    ) -> CleanupResult {
        let given_back = held.iter().map(|held| self.give_back(vm_id, held));
        let mut resources = join_all(given_back).await;
        if resources.iter().all(CleanupResourceState::is_success) {
            let clear = || async {
                let cleared = database.clear_volatile_machine_configuration(vm_id).await;
                cleared.map_err(Failure::from)
            };
            resources.push(tried("DB_CONFIGURATION", vm_id.to_string(), clear).await);
        }
        CleanupResult::of(vm_id, resources)
    }

    async fn give_back(&self, vm_id: &VmId, held: &Held) -> CleanupResourceState {
        match held {
            Held::Port(tap) => {
                let close = || async { Ok(self.nft.detach(tap).await?) };
                tried("FIREWALL_CHAIN", vm_id.to_string(), close).await
            }
            Held::Tap(tap) => {
                tried("TAP_DEVICE", tap.to_string(), || self.take_off_bridge(tap)).await
            }
            Held::Socket(path) => {
                let remove = || removed(path.clone(), is_socket);
                tried("QMP_SOCKET", path.display().to_string(), remove).await
            }
            Held::PidFile(path) => {
                let remove = || removed(path.clone(), is_stale);
                tried("PIDFILE", path.display().to_string(), remove).await
            }
        }
    }

    async fn take_off_bridge(&self, tap: &LinkName) -> Result<(), Failure> {
        if self.links.find(tap).await?.is_none() {
            return Ok(());
        }
        self.links.set_nomaster(tap).await?;
        Ok(self.links.set_down(tap).await?)
    }
}

/// What the row says of the run that is over. A name that no link can have is nothing to give back.
pub(super) fn held_by(
    vm_id: &VmId,
    configuration: Option<&MachineConfiguration>,
    pid_file: Option<PathBuf>,
) -> Vec<Held> {
    let named = configuration.and_then(|it| it.tap_device_name.clone());
    let named = named.and_then(|name| LinkName::parse(name).ok());
    let tap = named.clone().unwrap_or_else(|| VmNames::of(vm_id).tap);
    let mut held = vec![Held::Port(tap)];
    held.extend(named.map(Held::Tap));
    let sockets = configuration.into_iter().flat_map(|it| {
        [
            it.qmp_socket_path.clone(),
            it.guest_agent_socket_path.clone(),
            it.infini_service_socket_path.clone(),
        ]
    });
    let sockets = sockets.flatten().map(PathBuf::from);
    held.extend(sockets.filter(|path| path.is_absolute()).map(Held::Socket));
    held.extend(pid_file.map(Held::PidFile));
    held
}

/// What a guest that shut down by itself gives back: its network.
pub(super) fn network_of(held: Vec<Held>) -> Vec<Held> {
    let of_network = |held: &Held| matches!(held, Held::Port(_) | Held::Tap(_));
    held.into_iter().filter(of_network).collect()
}

async fn tried<F: Future<Output = Result<(), Failure>>>(
    kind: &'static str,
    identifier: String,
    give_back: impl Fn() -> F,
) -> CleanupResourceState {
    let mut pauses = PAUSES.into_iter();
    let mut attempts = 1;
    let mut outcome = give_back().await;
    while outcome.is_err()
        && let Some(pause) = pauses.next()
    {
        sleep(pause).await;
        attempts += 1;
        outcome = give_back().await;
    }
    CleanupResourceState {
        kind,
        identifier,
        status: if outcome.is_ok() { "SUCCESS" } else { "FAILED" },
        attempts,
        last_error: outcome.err().map(|failure| failure.to_string()),
        last_attempt_at: now_ms(),
    }
}

/// Removes a file of ours, if `is_ours` says that it is one.
async fn removed(
    path: PathBuf,
    is_ours: fn(&std::path::Path) -> io::Result<bool>,
) -> Result<(), Failure> {
    let shown = path.display().to_string();
    let gone = file_call(move || match is_ours(&path) {
        Ok(true) => std::fs::remove_file(&path),
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    });
    match gone.await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::new(
            crate::error::ErrorCode::HostFile,
            format!("{shown} could not be removed: {error}"),
        )),
        _ => Ok(()),
    }
}

fn is_socket(path: &std::path::Path) -> io::Result<bool> {
    Ok(std::fs::symlink_metadata(path)?.file_type().is_socket())
}

/// A pidfile of a process that runs is left alone: it is a later one's.
fn is_stale(path: &std::path::Path) -> io::Result<bool> {
    let pid = std::fs::read_to_string(path)?.trim().parse().ok();
    Ok(!pid.is_some_and(is_alive))
}

impl CleanupResourceState {
    fn is_success(&self) -> bool {
        self.last_error.is_none()
    }
}

impl CleanupResult {
    fn of(vm_id: &VmId, resources: Vec<CleanupResourceState>) -> Self {
        let successful = resources.iter().filter(|one| one.is_success()).count();
        Self {
            vm_id: vm_id.to_string(),
            total_resources: resources.len(),
            successful_cleanups: successful,
            failed_cleanups: resources.len() - successful,
            resources,
            timestamp: now_ms(),
        }
    }

    /// `CleanupAlertEvent`, if anything is left.
    pub(super) fn alert(&self) -> Option<Value> {
        let failed = |one: &&CleanupResourceState| !one.is_success();
        let failed: Vec<_> = self.resources.iter().filter(failed).collect();
        (!failed.is_empty()).then(|| {
            json!({
                "vmId": self.vm_id,
                "failedResources": failed,
                "timestamp": now_ms(),
                "severity": if failed.len() >= SEVERE { "error" } else { "warning" },
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_is_held() {
        let vm_id = VmId::parse("vm-1").unwrap();
        let configuration = MachineConfiguration {
            tap_device_name: Some("vnet-1".into()),
            qmp_socket_path: Some("/run/vm-1.sock".into()),
            guest_agent_socket_path: Some("relative.sock".into()),
            ..MachineConfiguration::default()
        };
        let tap = LinkName::parse("vnet-1").unwrap();
        let network = vec![Held::Port(tap.clone()), Held::Tap(tap)];
        let mut all = network.clone();
        all.push(Held::Socket("/run/vm-1.sock".into()));
        all.push(Held::PidFile("/run/vm-1.pid".into()));
        let pid_file = Some(PathBuf::from("/run/vm-1.pid"));
        let held = held_by(&vm_id, Some(&configuration), pid_file);
        assert_eq!(held, all);
        assert_eq!(network_of(held), network);
        // Without a row's word the port is closed by the name it would have.
        let port = Held::Port(VmNames::of(&vm_id).tap);
        assert_eq!(held_by(&vm_id, None, None), [port]);
    }

    #[test]
    fn three_failures_are_an_error() {
        let vm_id = VmId::parse("vm-1").unwrap();
        let state = |error: Option<&str>| CleanupResourceState {
            kind: "PIDFILE",
            identifier: "/run/vm-1.pid".into(),
            status: "FAILED",
            attempts: 3,
            last_error: error.map(str::to_owned),
            last_attempt_at: 7,
        };
        for (failures, severity) in [(0, None), (1, Some("warning")), (3, Some("error"))] {
            let failed = (0..failures).map(|_| state(Some("busy")));
            let resources = failed.chain([state(None)]).collect();
            let alert = CleanupResult::of(&vm_id, resources).alert();
            let told = alert.as_ref().map(|alert| &alert["severity"]);
            assert_eq!(told.and_then(Value::as_str), severity);
        }
    }
}
