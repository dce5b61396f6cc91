//! Performs one action on the real host and database. Decides nothing.
//!
//! One match arm per action, each a call into the module that knows the tool. What an action makes
//! for later steps goes onto the bench.

use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::action::{Action, Release, RowValues, Slot, Spawn};
use super::bench::Bench;
use super::ledger::{Ledger, Lived};
use super::run::Effects;
use super::services::Services;
use super::status::{MARKERS, UNTOUCHABLE};
use super::{QEMU_LOG, SERIAL_LOG, spec};
use crate::config::{DiskConfig, DisplayProtocol, VmConfig};
use crate::db::sqlite::NewMachine;
use crate::db::{ConfigurationUpdate, CpuPinning};
use crate::error::{ErrorCode, Failure};
use crate::firewall::ChainNames;
use crate::host::cgroup::{self, Placement};
use crate::host::process::{self, ProcessHandle, RunAs, SpawnSpec, StderrLog};
use crate::host::qemu_img::{self, CreateImage, ImageFormat, Job};
use crate::host::tap::{self, Queues, TapOptions};
use crate::host::users;
use crate::host::{self, affinity};
use crate::qemu::name_argument;
use crate::qmp::{self, QmpClient, QmpError, QmpOptions, Reconnect};
use crate::types::{HostPath, VmId, VmNames};

/// For connecting to a QEMU that was just started: loading its modules and files takes a moment.
const MONITOR_DEADLINE: Duration = Duration::from_secs(30);

/// The real host, as one VM's actions see it.
#[derive(Debug)]
pub struct HostEffects {
    vm_id: VmId,
    names: VmNames,
    directory: PathBuf,
    ledger: Arc<Ledger>,
    services: Arc<Services>,
}

impl HostEffects {
    async fn write_status(&self, status: &str) -> Result<(), Failure> {
        let database = &self.services.database;
        Ok(database
            .update_machine_status(&self.vm_id, status, &MARKERS)
            .await?)
    }

    /// For one VM.
    pub fn new(
        vm_id: VmId,
        names: VmNames,
        directory: PathBuf,
        ledger: Arc<Ledger>,
        services: Arc<Services>,
    ) -> Self {
        Self {
            vm_id,
            names,
            directory,
            ledger,
            services,
        }
    }
}

#[async_trait]
impl Effects for HostEffects {
    async fn perform(
        &self,
        action: &Action,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        match action {
            Action::MakeDirectory { path } => {
                blocking(path.clone(), |path| {
                    std::fs::create_dir_all(&path)
                        .map_err(|error| file_failure("made", &path, &error))
                })
                .await
            }
            Action::CreateDisk(disk) => self.create_disk(disk, bench, cancel).await,
            Action::CopyFirmwareVars { template, path } => {
                let owner = run_as(bench).await?.map(|user| (user.uid, user.gid));
                copy_new(template.clone(), path.clone(), owner).await
            }
            Action::CreateTap {
                replace, queues, ..
            } => self.create_tap(*replace, *queues, bench).await,
            Action::OpenTap { queues, .. } => {
                let queues = queue_count(*queues)?;
                put_queues(
                    bench,
                    tap::open(&self.services.links, &self.names.tap, queues).await?,
                );
                Ok(())
            }
            Action::OpenVhost { queues } => open_vhost(*queues, bench),
            Action::AttachTap { tap, bridge } => {
                self.services.links.set_master(tap, bridge).await?;
                Ok(self.services.links.set_up(tap).await?)
            }
            Action::LoadFirewall { rules } => {
                Ok(self.services.nft.ensure_vm(rules).await.map(drop)?)
            }
            Action::Listen { slot, path } => {
                let owner = run_as(bench).await?.map(|user| (user.uid, user.gid));
                let listener = blocking(path.clone(), move |path| listen(&path, owner)).await?;
                bench.put_descriptor(*slot, listener);
                Ok(())
            }
            Action::SpawnQemu(spawn) => self.spawn(spawn, bench).await,
            Action::WritePidFile { path } => write_pid_file(path, bench).await,
            Action::ConnectMonitor { path } => tokio::select! {
                biased;
                connected = self.connect_monitor(path, bench) => connected,
                () = cancel.cancelled() => {
                    Err(Failure::new(ErrorCode::Aborted, "the operation was aborted"))
                }
            },
            Action::SetDisplayPassword { protocol } => set_password(*protocol, bench).await,
            Action::PinVcpus { cpus } => pin_vcpus(cpus, bench).await,
            Action::Continue => {
                self.ledger.guest_may_run()?;
                Ok(monitor(bench)?.cont().await?)
            }
            Action::InsertRow => self.insert_row(bench).await,
            Action::TakeRow => self.take_row(bench).await,
            Action::WriteStatus { status } => self.write_status(status).await,
            Action::Transition { from, to, version } => {
                let database = &self.services.database;
                database
                    .transition_vm_status(&self.vm_id, from, to, *version)
                    .await?;
                Ok(())
            }
            Action::WriteConfiguration(values) => {
                let mut update = configuration(values);
                update.qemu_pid = Some(bench.process().map(|process| i64::from(process.pid())));
                update.graphic_password = bench.password().map(Some);
                Ok(self
                    .services
                    .database
                    .update_machine_configuration(&self.vm_id, update)
                    .await?)
            }
            Action::WriteSpec { keep_previous } => {
                let keep_previous = *keep_previous;
                let directory = self.directory.clone();
                let spec = bench.spec().ok_or_else(|| missing("spec"))?;
                blocking((), move |()| {
                    Ok(spec::write(&directory, &spec, keep_previous)?)
                })
                .await
            }
        }
    }

    async fn release(&self, release: &Release, bench: &Bench) -> Result<(), Failure> {
        let tap = &self.names.tap;
        match release {
            Release::RemovePidFile { path } => {
                blocking(path.clone(), |path| {
                    remove_file(&unfinished(&path))?;
                    remove_file(path.as_path())
                })
                .await
            }
            Release::RemoveFile { path } | Release::RemoveSocket { path, .. } => {
                blocking(path.clone(), |path| remove_file(path.as_path())).await
            }
            Release::DeleteTap { tap } => Ok(tap::delete(&self.services.links, tap).await?),
            Release::DetachTap { tap } => self.detach_tap(tap).await,
            Release::DetachFirewall => Ok(self.services.nft.detach(tap).await?),
            Release::RemoveFirewall => {
                let chains = ChainNames::of(&self.vm_id);
                Ok(self.services.nft.remove_vm(&chains).await?)
            }
            Release::EndQemu => match bench.process() {
                Some(process) => Ok(process.kill_now().await.map(drop)?),
                None => Ok(()),
            },
            Release::RemoveCgroup => {
                let scope = self.services.cgroups.scope_of(&self.vm_id);
                Ok(cgroup::remove(&scope).await?)
            }
            Release::DeleteRow => match &self.services.embedded {
                Some(store) => Ok(store.delete_machine(&self.vm_id).await.map(drop)?),
                None => Ok(()),
            },
            Release::RestoreSpec => {
                let directory = self.directory.clone();
                blocking((), move |()| {
                    spec::restore(&directory)
                        .map_err(|error| file_failure("restored", &directory, &error))
                })
                .await
            }
            Release::RestoreStatus { status } => {
                let database = &self.services.database;
                Ok(database
                    .update_machine_status(&self.vm_id, status, &UNTOUCHABLE)
                    .await?)
            }
        }
    }
}

impl HostEffects {
    async fn create_disk(
        &self,
        disk: &DiskConfig,
        bench: &Bench,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let image = CreateImage {
            path: disk.path.clone(),
            size: if disk.backing_file.is_some() {
                None
            } else {
                disk.size
            },
            format: image_format(disk),
            backing: disk.backing_file.clone(),
            owner: run_as(bench).await?.map(|user| (user.uid, user.gid)),
            allowed: self
                .services
                .config
                .path_rules
                .allowed
                .clone()
                .unwrap_or_default(),
            ..CreateImage::over(disk.path.clone(), disk.path.clone())
        };
        let job = Job {
            cancel: cancel.clone(),
            ..Job::default()
        };
        Ok(qemu_img::create(&image, &job).await?)
    }

    async fn create_tap(&self, replace: bool, queues: u8, bench: &Bench) -> Result<(), Failure> {
        if replace {
            tap::delete(&self.services.links, &self.names.tap).await?;
        }
        let owner = run_as(bench).await?.map(|user| user.uid);
        let options = TapOptions {
            queues: queue_count(queues)?,
            owner,
        };
        put_queues(bench, tap::create(&self.names.tap, options).await?);
        Ok(())
    }

    async fn detach_tap(&self, tap: &crate::types::LinkName) -> Result<(), Failure> {
        let links = &self.services.links;
        if links.find(tap).await?.is_none() {
            return Ok(());
        }
        links.set_nomaster(tap).await?;
        Ok(links.set_down(tap).await?)
    }

    /// Starts QEMU, and writes its identity down before anything else can happen.
    async fn spawn(&self, spawn: &Spawn, bench: &Bench) -> Result<(), Failure> {
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
        let mut descriptors = bench.take_descriptors();
        let mut what = SpawnSpec::new(&spawn.binary, stderr)
            .args(&spawn.args)
            .user(user);
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

    async fn connect_monitor(&self, path: &HostPath, bench: &Bench) -> Result<(), Failure> {
        let process = bench.process().ok_or_else(|| missing("process"))?;
        let connect = connect(path, &process, MONITOR_DEADLINE);
        let connected = tokio::select! {
            biased;
            exit = process.exited() => Err(self.ended_while_starting(&format!("{exit:?}"))),
            connected = connect => match connected {
                Ok(connected) => Ok(connected),
                // A broken connection is how an exit shows first: its reason is the better answer.
                Err(error) => match tokio::time::timeout(Duration::from_secs(1), process.exited()).await {
                    Ok(exit) => Err(self.ended_while_starting(&format!("{exit:?}"))),
                    Err(_still_there) => Err(error.into()),
                },
            },
        };
        let (client, events) = connected?;
        bench.put_monitor(client, events);
        Ok(())
    }

    fn ended_while_starting(&self, exit: &str) -> Failure {
        let stderr = StderrLog::at(self.directory.join(QEMU_LOG))
            .tail()
            .unwrap_or_default();
        // The second is what the SPICE library says instead.
        let taken = ["Address already in use", "binding socket to"];
        let code = if taken.iter().any(|words| stderr.contains(words)) {
            ErrorCode::AddressInUse
        } else {
            ErrorCode::QemuStartFailed
        };
        let last = stderr.lines().last().unwrap_or("without a word").to_owned();
        Failure::new(code, format!("QEMU ended while starting: {last}"))
            .with("stderr", stderr)
            .with("exit", exit)
    }

    async fn insert_row(&self, bench: &Bench) -> Result<(), Failure> {
        let store = self.services.embedded.as_ref();
        let store = store.ok_or_else(|| missing("embedded store"))?;
        Ok(store.insert_machine(new_machine(config(bench)?)).await?)
    }

    async fn take_row(&self, bench: &Bench) -> Result<(), Failure> {
        let Some(store) = &self.services.embedded else {
            return self.write_status("starting").await;
        };
        let machine = new_machine(config(bench)?);
        if store.replace_machine(machine).await? {
            return Ok(());
        }
        let message = "the machine's status changed before it could be made";
        Err(Failure::new(ErrorCode::InvalidState, message).of_vm(&self.vm_id))
    }
}

/// A row of the embedded store.
fn new_machine(config: VmConfig) -> NewMachine {
    #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52 MiB")]
    let gib = |mib: u64| mib as f64 / 1024.0;
    let disk = config.disks.first().and_then(|disk| disk.size);
    NewMachine {
        id: config.id,
        internal_name: config.internal_name,
        name: config.name,
        os: config.os,
        cpu_cores: config.cpu.cores,
        ram_gb: gib(config.memory.size.as_mib()),
        disk_size_gb: disk.map_or(0.0, |size| gib(size.as_mib())),
        gpu_pci_address: config.gpu.map(|gpu| gpu.address.to_string()),
        status: "starting",
        firewall_rules: config.firewall.rules,
    }
}

/// Connects to a monitor whose process may end meanwhile; afterwards reconnects while it lives.
pub(super) async fn connect(
    path: &HostPath,
    process: &ProcessHandle,
    deadline: Duration,
) -> Result<(QmpClient, qmp::EventReceiver), QmpError> {
    QmpClient::connect(path.as_path(), while_alive(process, deadline)).await
}

/// A monitor that did not answer: it is tried again while its process lives.
pub(super) fn keep_trying(
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

async fn run_as(bench: &Bench) -> Result<Option<RunAs>, Failure> {
    match config(bench)?.run_as_user {
        Some(user) => blocking(user, |user| Ok(users::resolve(&user)?))
            .await
            .map(Some),
        None => Ok(None),
    }
}

fn config(bench: &Bench) -> Result<VmConfig, Failure> {
    bench.config().ok_or_else(|| missing("configuration"))
}

fn monitor(bench: &Bench) -> Result<QmpClient, Failure> {
    bench.monitor().ok_or_else(|| missing("monitor"))
}

fn missing(what: &str) -> Failure {
    Failure::new(
        ErrorCode::Internal,
        format!("the plan has no {what} at this step"),
    )
}

fn queue_count(queues: u8) -> Result<Queues, Failure> {
    Queues::new(u32::from(queues))
        .map_err(|error| Failure::new(ErrorCode::InvalidConfig, format!("networkQueues {error}")))
}

fn put_queues(bench: &Bench, queues: Vec<OwnedFd>) {
    for (number, queue) in (0..).zip(queues) {
        bench.put_descriptor(Slot::Tap(number), queue);
    }
}

fn open_vhost(queues: u8, bench: &Bench) -> Result<(), Failure> {
    for queue in 0..queues {
        let path = Path::new("/dev/vhost-net");
        let device = OpenOptions::new().read(true).write(true).open(path);
        let device = device.map_err(|error| file_failure("opened", path, &error))?;
        bench.put_descriptor(Slot::Vhost(queue), device.into());
    }
    Ok(())
}

pub(super) fn image_format(disk: &DiskConfig) -> ImageFormat {
    match disk.format {
        crate::config::DiskFormat::Qcow2 => ImageFormat::Qcow2,
        crate::config::DiskFormat::Raw => ImageFormat::Raw,
    }
}

async fn set_password(protocol: DisplayProtocol, bench: &Bench) -> Result<(), Failure> {
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
async fn pin_vcpus(cpus: &[u32], bench: &Bench) -> Result<(), Failure> {
    let vcpus = monitor(bench)?.query_cpus_fast().await?;
    for (vcpu, cpu) in vcpus.iter().zip(cpus.iter().cycle()) {
        affinity::pin_thread(vcpu.thread_id, *cpu)?;
    }
    Ok(())
}

fn configuration(values: &RowValues) -> ConfigurationUpdate {
    let values = values.clone();
    ConfigurationUpdate {
        tap_device_name: Some(values.tap_device_name),
        qmp_socket_path: Some(values.qmp_socket_path),
        guest_agent_socket_path: Some(values.guest_agent_socket_path),
        infini_service_socket_path: Some(values.infini_service_socket_path),
        graphic_protocol: Some(values.graphic_protocol),
        graphic_port: Some(values.graphic_port.map(i64::from)),
        graphic_host: Some(values.graphic_host),
        assigned_gpu_bus: Some(values.assigned_gpu_bus),
        bridge: Some(values.bridge),
        machine_type: Some(values.machine_type),
        cpu_model: Some(values.cpu_model),
        disk_bus: Some(values.disk_bus),
        disk_cache_mode: Some(values.disk_cache_mode),
        network_model: Some(values.network_model),
        network_queues: Some(values.network_queues.map(i64::from)),
        memory_balloon: Some(values.memory_balloon),
        disk_paths: Some(values.disk_paths),
        uefi_firmware: Some(values.uefi_firmware),
        hugepages: Some(values.hugepages),
        cpu_pinning: Some(values.cpu_pinning.map(|cores| CpuPinning { cores })),
        enable_numa_ctl_pinning: Some(values.enable_numa_ctl_pinning),
        cpu_pinning_strategy: Some(values.cpu_pinning_strategy),
        tpm_socket_path: Some(values.tpm_socket_path),
        virtio_drivers_iso: Some(values.virtio_drivers_iso),
        enable_audio: Some(values.enable_audio),
        enable_usb_tablet: Some(values.enable_usb_tablet),
        ..ConfigurationUpdate::default()
    }
}

/// A pidfile while it is being written.
fn unfinished(path: &HostPath) -> PathBuf {
    path.as_path().with_extension("pid.new")
}

async fn write_pid_file(path: &HostPath, bench: &Bench) -> Result<(), Failure> {
    let pid = bench.process().ok_or_else(|| missing("process"))?.pid();
    blocking(path.clone(), move |path| {
        // Whoever reads pidfiles finds a whole one or none.
        let whole = unfinished(&path);
        let written = std::fs::write(&whole, format!("{pid}\n"));
        written
            .and_then(|()| std::fs::rename(&whole, &path))
            .map_err(|error| {
                // On a full disk the file was made and stayed empty.
                let _absent = std::fs::remove_file(&whole);
                file_failure("written", path.as_path(), &error)
            })
    })
    .await
}

/// Copies a file to a name that is not taken.
async fn copy_new(from: HostPath, to: HostPath, owner: Option<(u32, u32)>) -> Result<(), Failure> {
    blocking(to, move |to| {
        let failed = |error: io::Error| file_failure("copied", to.as_path(), &error);
        let mut source = std::fs::File::open(from.as_path()).map_err(failed)?;
        let new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&to);
        let mut target = new.map_err(failed)?;
        let copied = io::copy(&mut source, &mut target)
            .and_then(|_| target.sync_all())
            .and_then(|()| give_to(to.as_path(), owner));
        copied.map_err(|error| {
            let _removed = std::fs::remove_file(&to);
            failed(error)
        })
    })
    .await
}

/// Binds a socket of mode 0600 (0660 for another user's QEMU). A socket file nobody listens on any
/// more is replaced; one that is in use, or anything else of that name, is left alone.
fn listen(path: &HostPath, owner: Option<(u32, u32)>) -> Result<OwnedFd, Failure> {
    let failed = |error: &io::Error| {
        let code = match error.kind() {
            io::ErrorKind::AddrInUse => ErrorCode::AddressInUse,
            _ => ErrorCode::HostFile,
        };
        Failure::new(code, format!("socket {path} could not be bound: {error}"))
            .with("path", path.as_str())
    };
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            std::fs::remove_file(path).and_then(|()| UnixListener::bind(path))
        }
        bound => bound,
    };
    let listener = bound.map_err(|error| failed(&error))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .and_then(|()| give_to(path.as_path(), owner))
        .map_err(|error| {
            let _removed = std::fs::remove_file(path);
            failed(&error)
        })?;
    Ok(listener.into())
}

fn is_stale(path: &HostPath) -> bool {
    matches!(UnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

fn prepare_log(path: &Path, owner: Option<(u32, u32)>) -> Result<(), Failure> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map(drop)
        .and_then(|()| give_to(path, owner))
        .map_err(|error| file_failure("opened", path, &error))
}

fn give_to(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match owner {
        Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_failure("removed", path, &error))
        }
        _ => Ok(()),
    }
}

fn file_failure(done: &str, path: impl AsRef<Path>, error: &io::Error) -> Failure {
    let path = path.as_ref().display().to_string();
    let code = match error.kind() {
        io::ErrorKind::StorageFull => ErrorCode::InsufficientSpace,
        _ => ErrorCode::HostFile,
    };
    Failure::new(code, format!("{path} could not be {done}: {error}")).with("path", path)
}

/// Runs what may wait for a disk away from the tasks that must not.
async fn blocking<A: Send + 'static, T: Send + 'static>(
    argument: A,
    work: impl FnOnce(A) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    host::blocking::blocking(move || work(argument)).await?
}
