//! Backups, and how the managers of this process lend their machines to them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use infinization_core::backup::{
    self, BackupId, CreateBackup, Keep, Machine, Manifest, RestoreBackup, Told,
};
use infinization_core::config::DiskKeys;
use infinization_core::manager::Manager;
use infinization_core::qmp::QmpClient;
use infinization_core::types::{HostPath, VmId};
use infinization_core::vm::NotedFreeze;
use infinization_core::{ErrorCode, Failure};
use napi::Status;
use napi::bindgen_prelude::{Promise, spawn};
use napi::threadsafe_function::ThreadsafeFunction;
use napi_derive::napi;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Cancellation, CheckProgress, Infinization};
use crate::argument::Argument;
use crate::events::Deliver;
use crate::outcome::{Outcome, done, now, verbatim};

/// `ask(request: string): Promise<string>` of `js/backup.js`; it never throws or rejects.
pub type Ask = ThreadsafeFunction<String, Promise<String>, String, Status, false, true>;

/// How long `isVmRunning` may take. Until it answers a verb has its turn, and a backup one of the few places.
const PROBE: Duration = Duration::from_secs(30);

/// What travels to the listeners, and a mark to know that all before it were told.
enum Parcel {
    Told(Told),
    Mark(oneshot::Sender<()>),
}

/// The native half of `BackupService`.
#[napi]
pub struct BackupService {
    service: Result<backup::BackupService, String>,
    ask: Arc<Ask>,
    parcels: mpsc::UnboundedSender<Parcel>,
}

impl fmt::Debug for BackupService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupService")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// The managers that may have a machine's monitor, as they were when a call began.
#[napi]
#[derive(Debug, Default)]
pub struct MachineOwners(Mutex<Vec<Manager>>);

#[napi]
impl MachineOwners {
    #[napi(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    #[napi]
    pub fn add(&self, owner: &Infinization) {
        self.managers().push(owner.manager());
    }

    fn managers(&self) -> MutexGuard<'_, Vec<Manager>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[napi]
impl BackupService {
    /// Touches nothing. What is wrong with the root is told by the verbs.
    #[napi(constructor)]
    pub fn new(root: String, ask: Ask, deliver: Deliver) -> Self {
        let (parcels, received) = mpsc::unbounded_channel();
        carry(received, deliver);
        let sender = parcels.clone();
        let audience = Arc::new(move |told| {
            // An environment that is going away wants to know nothing.
            let _ended = sender.send(Parcel::Told(told));
        });
        let root = HostPath::parse(root);
        Self {
            service: root
                .map(|root| backup::BackupService::new(root, audience))
                .map_err(|why| why.to_string()),
            ask: Arc::new(ask),
            parcels,
        }
    }

    #[napi]
    pub async fn create_backup(
        &self,
        config: Argument,
        owners: &MachineOwners,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let (owners, cancel) = (owners.managers().clone(), Cancellation::token(cancel));
        let answer = async {
            let request = CreateBackup::read(config.object("config")?)?;
            let machine = self.machine(&request.vm_id, owners);
            self.service()?.create(request, machine, cancel).await
        };
        self.after_telling(answer).await
    }

    #[napi]
    pub async fn restore_backup(
        &self,
        options: Argument,
        owners: &MachineOwners,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let (owners, cancel) = (owners.managers().clone(), Cancellation::token(cancel));
        let answer = async {
            let request = RestoreBackup::read(options.object("options")?)?;
            let machine = self.machine(&request.vm_id, owners);
            self.service()?.restore(request, machine, cancel).await
        };
        self.after_telling(answer).await
    }

    #[napi]
    pub async fn delete_backup(
        &self,
        backup_id: Argument,
        vm_id: Argument,
        owners: &MachineOwners,
    ) -> Outcome {
        let owners = owners.managers().clone();
        done(async {
            let (id, vm_id) = (known_id(backup_id)?, vm(vm_id)?);
            let machine = self.machine(&vm_id, owners);
            self.service()?.delete(vm_id, id, machine).await
        })
        .await
    }

    #[napi]
    pub async fn list_backups(&self, vm_id: Argument) -> Outcome {
        verbatim(async { raw(&self.service()?.list(vm(vm_id)?).await?) }).await
    }

    #[napi]
    pub async fn get_backup_metadata(&self, backup_id: Argument, vm_id: Argument) -> Outcome {
        verbatim(async {
            let id = known_id(backup_id)?;
            let hint = vm_id.optional_text("vmIdHint")?;
            let hint = hint.map(VmId::parse).transpose();
            let hint = hint.map_err(|why| invalid(&format!("vmIdHint {why}")))?;
            raw(&self.service()?.metadata(id, hint).await?)
        })
        .await
    }

    #[napi]
    pub async fn verify_backup(
        &self,
        backup_id: Argument,
        vm_id: Argument,
        cancel: Option<&Cancellation>,
        progress: Option<&CheckProgress>,
    ) -> Outcome {
        let (cancel, tell) = (Cancellation::token(cancel), CheckProgress::tell(progress));
        verbatim(async {
            let (id, vm_id) = (known_id(backup_id)?, vm(vm_id)?);
            raw(&self.service()?.verify(vm_id, id, cancel, tell).await?)
        })
        .await
    }
}

impl BackupService {
    fn service(&self) -> Result<&backup::BackupService, Failure> {
        let service = self.service.as_ref();
        service.map_err(|why| invalid(&format!("backupRootDir {why}")))
    }

    fn machine(&self, vm_id: &VmId, owners: Vec<Manager>) -> Arc<dyn Machine> {
        Arc::new(Asked {
            ask: Arc::clone(&self.ask),
            vm_id: vm_id.clone(),
            owners,
            noted: Mutex::default(),
            was_thawed: AtomicBool::new(false),
        })
    }

    /// Answers when the listeners have been told everything that came before.
    async fn after_telling(&self, answer: impl Future<Output = Result<Value, Failure>>) -> Outcome {
        verbatim(async {
            let answer = answer.await;
            let (mark, told) = oneshot::channel();
            if self.parcels.send(Parcel::Mark(mark)).is_ok() {
                // Dropped with the environment; then nobody listens.
                let _told = told.await;
            }
            raw(&answer?)
        })
        .await
    }
}

/// A machine that JavaScript and the managers know about.
struct Asked {
    ask: Arc<Ask>,
    vm_id: VmId,
    owners: Vec<Manager>,
    /// What says that its guest may be frozen.
    noted: Mutex<Vec<NotedFreeze>>,
    /// Its guest was asked to thaw, and has. Where no agent was reached it was not.
    was_thawed: AtomicBool,
}

/// What `js/backup.js` answers.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    value: Value,
    error: Option<String>,
}

impl Asked {
    fn noted(&self) -> MutexGuard<'_, Vec<NotedFreeze>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, what: &str) -> Result<Value, String> {
        let request = json!({ "ask": what, "vmId": self.vm_id }).to_string();
        let promise = self.ask.call_async_catch(request).await;
        let text = promise.map_err(|error| error.to_string())?.await;
        let text = text.map_err(|error| error.to_string())?;
        let answer: Answer = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        match answer.error {
            Some(error) => Err(error),
            None => Ok(answer.value),
        }
    }
}

#[async_trait]
impl Machine for Asked {
    async fn is_running(&self) -> Option<bool> {
        match in_time(self.ask("isRunning")).await {
            Ok(answer) => answer.as_bool(),
            Err(why) => {
                tracing::warn!(vm_id = %self.vm_id, why, "isVmRunning failed");
                None
            }
        }
    }

    fn monitor(&self) -> Option<QmpClient> {
        let mut monitors = self.owners.iter();
        monitors.find_map(|owner| owner.qmp_client(self.vm_id.as_str()))
    }

    async fn note_freeze(&self) -> Result<(), String> {
        for owner in &self.owners {
            let noted = owner.note_freeze(&self.vm_id).await;
            let noted = noted.map_err(|failure| failure.to_string())?;
            self.noted().extend(noted);
        }
        Ok(())
    }

    async fn forget_freeze(&self) {
        let noted = std::mem::take(&mut *self.noted());
        for note in noted {
            if self.was_thawed.load(SeqCst) {
                note.forget().await;
            } else {
                note.withdraw().await;
            }
        }
    }

    async fn freeze(&self) -> Result<Option<u64>, String> {
        Ok(self.ask("freeze").await?.as_u64())
    }

    async fn thaw(&self) -> Result<(), String> {
        let asked = self.ask("thaw").await?;
        self.was_thawed.store(asked == true, SeqCst);
        Ok(())
    }

    async fn disk_keys(&self) -> Result<DiskKeys, String> {
        let mut keys = DiskKeys::new();
        for owner in &self.owners {
            let known = owner.disk_keys(&self.vm_id).await;
            keys.extend(known.map_err(|failure| failure.to_string())?);
        }
        Ok(keys)
    }

    async fn frozen_layers(&self) -> Result<Vec<HostPath>, String> {
        let mut frozen = Vec::new();
        for owner in &self.owners {
            let layers = owner.frozen_layers().await;
            frozen.extend(layers.map_err(|failure| failure.to_string())?);
        }
        Ok(frozen)
    }
}

async fn in_time(answer: impl Future<Output = Result<Value, String>>) -> Result<Value, String> {
    let late = |_| Err(format!("no answer in {} s", PROBE.as_secs()));
    timeout(PROBE, answer).await.unwrap_or_else(late)
}

/// Carries what is told, one call at a time, until the service or the JavaScript side is gone.
fn carry(mut parcels: mpsc::UnboundedReceiver<Parcel>, deliver: Deliver) {
    spawn(async move {
        while let Some(parcel) = parcels.recv().await {
            let told = match parcel {
                Parcel::Told(told) => told,
                Parcel::Mark(mark) => {
                    let _nobody_waits = mark.send(());
                    continue;
                }
            };
            let (name, data) = match told {
                Told::Progress(progress) => ("progress", json!(progress)),
                Told::Completed(metadata) => ("completed", metadata),
                Told::Restored(result) => ("restored", result),
            };
            let text = json!({ "name": name, "data": data }).to_string();
            if deliver.call_async_catch(text).await.is_err() {
                return;
            }
        }
    });
}

/// Which of a schedule's backups (`BackupMetadata[]`) its retention deletes, in that order.
#[napi]
pub fn expired_backups(backups: Argument, schedule: Argument, keep: u32) -> Outcome {
    now(plan(backups, schedule, |all, ours| {
        backup::expired(all, ours, Keep(keep))
    }))
}

/// What a schedule's next INCREMENTAL backup builds on; null when a FULL one is due.
#[napi]
pub fn next_parent(
    backups: Argument,
    schedule: Argument,
    disks: u32,
    longest_chain: u32,
) -> Outcome {
    now(plan(backups, schedule, |all, ours| {
        backup::next_parent(all, ours, disks as usize, longest_chain as usize)
    }))
}

fn plan<T>(
    backups: Argument,
    schedule: Argument,
    decide: impl FnOnce(&[Manifest], &dyn Fn(&Manifest) -> bool) -> T,
) -> Result<T, Failure> {
    let schedule = schedule.text("scheduleId")?;
    let Value::Array(backups) = backups.array("backups")? else {
        return Err(invalid("backups must be an array"));
    };
    let all = backups.into_iter().map(Manifest::of_metadata);
    let all = all.collect::<Result<Vec<_>, _>>()?;
    let ours = |one: &Manifest| backup::made_by(&schedule, one);
    Ok(decide(&all, &ours))
}

/// An id that is none is of no backup.
fn known_id(id: Argument) -> Result<BackupId, Failure> {
    let id = id.text("backupId")?;
    BackupId::parse(id.clone()).map_err(|_| {
        Failure::new(
            ErrorCode::BackupNotFound,
            format!("there is no backup {id:?}"),
        )
        .with("backupId", id)
    })
}

fn vm(vm_id: Argument) -> Result<VmId, Failure> {
    let text = vm_id.text("vmId")?;
    VmId::parse(text).map_err(|why| invalid(&format!("vmId {why}")))
}

fn invalid(why: &str) -> Failure {
    Failure::new(ErrorCode::BackupInvalidConfig, why)
}

fn raw<T: serde::Serialize>(value: &T) -> Result<Box<RawValue>, Failure> {
    to_raw_value(value)
        .map_err(|error| Failure::new(ErrorCode::Internal, format!("no JSON form: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_never_answers_is_given_up() {
        assert_eq!(in_time(async { Ok(json!(true)) }).await, Ok(json!(true)));
        let silent = in_time(std::future::pending()).await;
        assert_eq!(silent.unwrap_err(), "no answer in 30 s");
    }
}
