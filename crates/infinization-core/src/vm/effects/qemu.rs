//! Starting QEMU, reaching its monitor, and what is told it before its guest runs.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::files::{file_failure, prepare_log};
use super::{HostEffects, blocking, config, missing, monitor, run_as};
use crate::config::{DisplayProtocol, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::host::affinity;
use crate::host::cgroup::Placement;
use crate::host::process::{self, Exit, ProcessHandle, SpawnSpec, StderrLog, ended_while_starting};
use crate::host::qemu_img;
use crate::qemu::name_argument;
use crate::qmp::{self, QmpClient, QmpError, QmpOptions, Reconnect};
use crate::types::HostPath;
use crate::vm::action::{Slot, Spawn};
use crate::vm::bench::Bench;
use crate::vm::ledger::Lived;
use crate::vm::{QEMU_LOG, SERIAL_LOG};

/// For connecting to a QEMU that was just started: loading its modules and files takes a moment.
const MONITOR_DEADLINE: Duration = Duration::from_secs(30);

impl HostEffects {
    /// Starts QEMU, and writes its identity down before anything else can happen.
    pub(super) async fn spawn(&self, spawn: &Spawn, bench: &Bench) -> Result<(), Failure> {
        let config = config(bench)?;
        let user = run_as(bench).await?;
        if config.channels.serial_console.is_some() {
            let owner = user.as_ref().map(|user| (user.uid, user.gid));
            let log = self.directory.join(SERIAL_LOG);
            blocking(log, move |log| prepare_log(&log, owner)).await?;
        }
        let log = StderrLog::at(self.directory.join(QEMU_LOG));
        let stderr = log
            .open()
            .map_err(|error| file_failure("opened", log.path(), &error))?;
        let user_ids = user.as_ref().map(|user| (user.uid, user.gid));
        let mut descriptors = bench.take_descriptors();
        let mut what = SpawnSpec::new(&spawn.binary, stderr)
            .args(&spawn.args)
            .user(user);
        offer_keys(&config, spawn, user_ids, &mut descriptors)?;
        for (slot, number) in &spawn.descriptors {
            let descriptor = descriptors.remove(slot).ok_or_else(|| {
                Failure::new(ErrorCode::Internal, format!("no descriptor for {slot:?}"))
            })?;
            what = what.fd(descriptor, *number);
        }
        let process = process::spawn(what).await?;
        bench.put_process(process.clone());
        let lived = Lived {
            process: process.id().clone(),
            name_argument: name_argument(&config.internal_name),
            qmp_socket: config.paths.qmp_socket.clone(),
            display_port: bench.display_port(),
            firewall_default_action: config.firewall.default_action,
            seat: None,
            guarded: Vec::new(),
        };
        if let Err(error) = self.ledger.live(lived) {
            // Nobody could find it again: it must not stay.
            let _ended = process.kill_now().await;
            return Err(error.into());
        }
        if let Placement::Unavailable(why) = self
            .services
            .cgroups
            .place(process.pid(), &self.vm_id)
            .await
        {
            tracing::debug!(vm = %self.vm_id, why, "QEMU stays in our cgroup");
        }
        Ok(())
    }

    pub(super) async fn connect_monitor(
        &self,
        path: &HostPath,
        bench: &Bench,
    ) -> Result<(), Failure> {
        let process = bench.process().ok_or_else(|| missing("process"))?;
        let connect = connect(path, &process, MONITOR_DEADLINE);
        let connected = tokio::select! {
            biased;
            exit = process.exited() => Err(self.ended_while_starting(exit)),
            connected = connect => match connected {
                Ok(connected) => Ok(connected),
                // A broken connection is how an exit shows first: its reason is the better answer.
                Err(error) => match tokio::time::timeout(Duration::from_secs(1), process.exited()).await {
                    Ok(exit) => Err(self.ended_while_starting(exit)),
                    Err(_still_there) => Err(error.into()),
                },
            },
        };
        let (client, events) = connected?;
        bench.put_monitor(client, events);
        Ok(())
    }

    fn ended_while_starting(&self, exit: Exit) -> Failure {
        let log = StderrLog::at(self.directory.join(QEMU_LOG));
        // Its arguments hold no secret.
        ended_while_starting(&log.tail().unwrap_or_default(), exit, &[])
    }
}

/// Pipes that hold the keys of the disks. QEMU opens what it was given by its number, so whom it runs as
/// must own the pipe.
fn offer_keys(
    config: &VmConfig,
    spawn: &Spawn,
    user: Option<(u32, u32)>,
    descriptors: &mut BTreeMap<Slot, OwnedFd>,
) -> Result<(), Failure> {
    for (slot, _) in &spawn.descriptors {
        let Slot::DiskKey(disk) = slot else { continue };
        let key = config.disks.get(usize::from(*disk));
        let key = key.and_then(|disk| disk.key.as_ref());
        let key = key.ok_or_else(|| missing("disk key"))?;
        let pipe = qemu_img::pipe_of(key, user).map_err(|error| {
            let message = format!("a pipe for a disk's key could not be made: {error}");
            Failure::new(ErrorCode::HostFile, message)
        })?;
        descriptors.insert(*slot, pipe);
    }
    Ok(())
}

/// Connects to a monitor whose process may end meanwhile; afterwards reconnects while it lives.
pub(in crate::vm) async fn connect(
    path: &HostPath,
    process: &ProcessHandle,
    deadline: Duration,
) -> Result<(QmpClient, qmp::EventReceiver), QmpError> {
    QmpClient::connect(path.as_path(), while_alive(process, deadline)).await
}

/// A monitor that did not answer: it is tried again while its process lives.
pub(in crate::vm) fn keep_trying(
    path: &HostPath,
    process: &ProcessHandle,
    deadline: Duration,
) -> (QmpClient, qmp::EventReceiver) {
    QmpClient::reach(path.as_path(), &while_alive(process, deadline))
}

fn while_alive(process: &ProcessHandle, connect_timeout: Duration) -> QmpOptions {
    let gone = CancellationToken::new();
    let reconnect = Reconnect::WhileAlive { gone: gone.clone() };
    let exited = process.exited();
    tokio::spawn(async move {
        exited.await;
        gone.cancel();
    });
    QmpOptions {
        connect_timeout,
        reconnect,
        ..QmpOptions::default()
    }
}

pub(super) async fn set_password(protocol: DisplayProtocol, bench: &Bench) -> Result<(), Failure> {
    let password = bench
        .password()
        .ok_or_else(|| missing("display password"))?;
    let protocol = match protocol {
        DisplayProtocol::Spice => qmp::DisplayProtocol::Spice,
        DisplayProtocol::Vnc => qmp::DisplayProtocol::Vnc,
    };
    Ok(monitor(bench)?.set_password(protocol, &password).await?)
}

/// vCPU n's thread is bound to the n-th CPU, starting over when there are more vCPUs than CPUs.
pub(super) async fn pin_vcpus(cpus: &[u32], bench: &Bench) -> Result<(), Failure> {
    let vcpus = monitor(bench)?.query_cpus_fast().await?;
    for (vcpu, cpu) in vcpus.iter().zip(cpus.iter().cycle()) {
        affinity::pin_thread(vcpu.thread_id, *cpu)?;
    }
    Ok(())
}
