//! Performs one action on the real host and database. Decides nothing.
//!
//! One match arm per action, each a call into the module that knows the tool. What an action makes
//! for later steps goes onto the bench.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `qemu` | starting QEMU, reaching its monitor, what is told it before its guest runs |
//! | `rows` | the database |
//! | `files` | files and sockets |

mod files;
mod qemu;
mod rows;

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use self::files::{copy_new, file_failure, listen, remove_file, unfinished, write_pid_file};
pub(super) use self::qemu::{connect, keep_trying};
use self::qemu::{pin_vcpus, set_password};
use self::rows::configuration;
use super::action::{Action, Release, Slot};
use super::bench::Bench;
use super::ledger::Ledger;
use super::run::Effects;
use super::services::Services;
use super::spec;
use super::status::FOLLOWED;
use crate::config::{DiskConfig, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::firewall::ChainNames;
use crate::host;
use crate::host::cgroup;
use crate::host::process::RunAs;
use crate::host::qemu_img::{self, CreateImage, Encryption, ImageFormat, Job};
use crate::host::tap::{self, Queues, TapOptions};
use crate::host::users;
use crate::qmp::QmpClient;
use crate::types::{DiskKey, VmId, VmNames};

/// The real host, as one VM's actions see it.
#[derive(Debug)]
pub struct HostEffects {
    vm_id: VmId,
    names: VmNames,
    directory: PathBuf,
    ledger: Arc<Ledger>,
    port: Arc<Mutex<()>>,
    services: Arc<Services>,
}

impl HostEffects {
    /// For one VM; `port` is held while its TAP joins its bridge or leaves it.
    pub fn new(
        vm_id: VmId,
        names: VmNames,
        directory: PathBuf,
        ledger: Arc<Ledger>,
        port: Arc<Mutex<()>>,
        services: Arc<Services>,
    ) -> Self {
        Self {
            vm_id,
            names,
            directory,
            ledger,
            port,
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
            Action::KeepDiskKeys { .. } => self.keep_disk_keys(bench).await,
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
                let _turn = self.port.lock().await;
                self.services.links.set_master(tap, bridge).await?;
                Ok(self.services.links.set_up(tap).await?)
            }
            Action::LoadFirewall { rules, as_of } => {
                let nft = &self.services.nft;
                let place = nft.line_up(&rules.ruleset.names);
                place.reached().await;
                Ok(nft.ensure_vm(&nft.with_newest_rules(rules, *as_of)).await?)
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
            Action::Transition { from, to, version } => Ok(self.claim(from, to, *version).await?),
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
            Release::DeleteTap { tap } => {
                let _turn = self.port.lock().await;
                Ok(tap::delete(&self.services.links, tap).await?)
            }
            Release::DetachTap { tap } => self.detach_tap(tap).await,
            Release::DetachFirewall => {
                let place = self.services.nft.line_up(&ChainNames::of(&self.vm_id));
                place.reached().await;
                Ok(self.services.nft.detach(tap).await?)
            }
            Release::RemoveFirewall => {
                let chains = ChainNames::of(&self.vm_id);
                let place = self.services.nft.line_up(&chains);
                place.reached().await;
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
            Release::ForgetDiskKeys { paths } => self.forget_disk_keys(paths).await,
            Release::DeleteRow => match &self.services.embedded {
                Some(store) => {
                    store.delete_machine(&self.vm_id).await?;
                    self.services.outbox.forget(&self.vm_id);
                    Ok(())
                }
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
                    .write_status_over(&self.vm_id, status, &FOLLOWED)
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
        // One on the network is never made.
        let Some(path) = disk.path() else {
            return Ok(());
        };
        let image = CreateImage {
            path: path.clone(),
            size: if disk.backing_file.is_some() {
                None
            } else {
                disk.size
            },
            format: image_format(disk),
            backing: disk.backing_file.clone(),
            encryption: key_of(disk, bench)?.map(Encryption::with),
            owner: run_as(bench).await?.map(|user| (user.uid, user.gid)),
            allowed: self
                .services
                .config
                .path_rules
                .allowed
                .clone()
                .unwrap_or_default(),
            ..CreateImage::over(path.clone(), path.clone())
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
        let _turn = self.port.lock().await;
        let links = &self.services.links;
        if links.find(tap).await?.is_none() {
            return Ok(());
        }
        links.set_nomaster(tap).await?;
        Ok(links.set_down(tap).await?)
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

/// The key a disk has in the configuration; in a plan it has none.
fn key_of(disk: &DiskConfig, bench: &Bench) -> Result<Option<DiskKey>, Failure> {
    let disks = config(bench)?.disks;
    let found = disks.into_iter().find(|known| known.path() == disk.path());
    Ok(found.and_then(|disk| disk.key))
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

/// Runs what may wait for a disk away from the tasks that must not.
async fn blocking<A: Send + 'static, T: Send + 'static>(
    argument: A,
    work: impl FnOnce(A) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    host::blocking::blocking(move || work(argument)).await?
}
