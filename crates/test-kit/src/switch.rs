//! A database that can be switched off: the real store behind it, and a list of the writes that
//! reached it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use infinization_core::ErrorCode;
use infinization_core::db::{
    ConfigurationUpdate, Database, DbError, MachineRecord, RuleSplit, RunningVm, Transition,
    VmRecord,
};
use infinization_core::types::{FirewallRuleInput, InternalName, VmId};
use infinization_core::vm::DatabaseWrapper;
use tokio::sync::watch;
use tokio::time::timeout;

/// As long as a database that hangs is waited for: longer than any caller waits for a write.
const DEADLINE: Duration = Duration::from_secs(4);

/// How the database is.
#[derive(Debug, Clone)]
pub enum Mode {
    Up,
    /// Nobody answers, and that shows at once.
    Down,
    /// Nobody answers until the mode changes, or for so long that the way to it gives up.
    Hangs,
    /// It answers, but not before so long.
    Slow(Duration),
    /// It answers so many requests, and is down then.
    DownAfter(usize),
    /// It does what it is asked, and its answers are lost.
    Deaf,
    /// It answers every write with this.
    Refuses(DbError),
    /// As [`Mode::Refuses`], the writes of one machine only.
    RefusesOf(String, DbError),
}

/// Switches it.
#[derive(Debug)]
pub struct Switch {
    mode: watch::Sender<Mode>,
    /// The writes that were made, as (machine, what).
    made: Mutex<Vec<(String, String)>>,
    asked: std::sync::atomic::AtomicUsize,
}

impl Switch {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            mode: watch::Sender::new(Mode::Up),
            made: Mutex::default(),
            asked: 0.into(),
        })
    }

    pub fn turn(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub fn is_down(&self) -> bool {
        matches!(*self.mode.borrow(), Mode::Down)
    }

    /// The writes of a machine that were made, oldest first.
    pub fn made(&self, vm_id: &str) -> Vec<String> {
        let made = self.made.lock().unwrap();
        let of_vm = made.iter().filter(|(id, _)| id == vm_id);
        of_vm.map(|(_, what)| what.clone()).collect()
    }

    /// Forgets the writes there were.
    pub fn forget(&self) {
        self.made.lock().unwrap().clear();
    }

    /// Returns when nobody has asked anything for a while.
    pub async fn rests(&self) {
        let mut asked = usize::MAX;
        while self.asked() != asked {
            asked = self.asked();
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    /// How many requests there were, answered or not.
    pub fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub fn wrapper(self: &Arc<Self>) -> DatabaseWrapper {
        let switch = Arc::clone(self);
        Arc::new(move |inner| switch.before(inner))
    }

    pub fn before(self: &Arc<Self>, inner: Arc<dyn Database>) -> Arc<dyn Database> {
        let switch = Arc::clone(self);
        Arc::new(Switched { switch, inner })
    }

    async fn passes(&self) -> Result<(), DbError> {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let mut mode = self.mode.subscribe();
        let pause = match *self.mode.borrow() {
            Mode::Slow(pause) => pause,
            _ => Duration::ZERO,
        };
        tokio::time::sleep(pause).await;
        let answers = mode.wait_for(|mode| !matches!(mode, Mode::Hangs));
        if timeout(DEADLINE, answers).await.is_err() {
            return Err(away());
        }
        let mut down = false;
        self.mode.send_if_modified(|mode| {
            match mode {
                Mode::DownAfter(0) => *mode = Mode::Down,
                Mode::DownAfter(left) => *left -= 1,
                _ => {}
            }
            down = matches!(mode, Mode::Down);
            false
        });
        if down { Err(away()) } else { Ok(()) }
    }

    fn refusal(&self, vm_id: &VmId) -> Option<DbError> {
        match &*self.mode.borrow() {
            Mode::Refuses(error) => Some(error.clone()),
            Mode::RefusesOf(id, error) if id == vm_id.as_str() => Some(error.clone()),
            _ => None,
        }
    }

    async fn write<T>(
        &self,
        vm_id: &VmId,
        what: String,
        work: impl Future<Output = Result<T, DbError>>,
    ) -> Result<T, DbError> {
        self.passes().await?;
        if let Some(refusal) = self.refusal(vm_id) {
            return Err(refusal);
        }
        let done = work.await?;
        self.made.lock().unwrap().push((vm_id.to_string(), what));
        if matches!(*self.mode.borrow(), Mode::Deaf) {
            return Err(away());
        }
        Ok(done)
    }

    async fn read<T>(&self, work: impl Future<Output = Result<T, DbError>>) -> Result<T, DbError> {
        self.passes().await?;
        work.await
    }
}

pub fn away() -> DbError {
    DbError::new(ErrorCode::DbConnectionError, "nobody answers")
}

#[derive(Debug)]
struct Switched {
    switch: Arc<Switch>,
    inner: Arc<dyn Database>,
}

#[async_trait]
impl Database for Switched {
    async fn find_machine(&self, id: &VmId) -> Result<Option<MachineRecord>, DbError> {
        self.switch.read(self.inner.find_machine(id)).await
    }

    async fn find_machine_by_internal_name(
        &self,
        name: &InternalName,
    ) -> Result<Option<RunningVm>, DbError> {
        let work = self.inner.find_machine_by_internal_name(name);
        self.switch.read(work).await
    }

    async fn find_machine_with_config(&self, id: &VmId) -> Result<Option<VmRecord>, DbError> {
        let work = self.inner.find_machine_with_config(id);
        self.switch.read(work).await
    }

    async fn find_machine_without_password(&self, id: &VmId) -> Result<Option<VmRecord>, DbError> {
        let work = self.inner.find_machine_without_password(id);
        self.switch.read(work).await
    }

    async fn find_running_vms(&self) -> Result<Vec<RunningVm>, DbError> {
        self.switch.read(self.inner.find_running_vms()).await
    }

    async fn find_machines_by_statuses(
        &self,
        statuses: &[&str],
    ) -> Result<Vec<RunningVm>, DbError> {
        let work = self.inner.find_machines_by_statuses(statuses);
        self.switch.read(work).await
    }

    async fn find_machines_unchanged_since(
        &self,
        statuses: &[&str],
        since: u64,
    ) -> Result<Vec<RunningVm>, DbError> {
        let work = self.inner.find_machines_unchanged_since(statuses, since);
        self.switch.read(work).await
    }

    async fn update_machine_status(
        &self,
        id: &VmId,
        status: &str,
        only_if_not_in: &[&str],
    ) -> Result<(), DbError> {
        let work = self.inner.update_machine_status(id, status, only_if_not_in);
        self.switch.write(id, status.to_owned(), work).await
    }

    async fn write_status_over(
        &self,
        id: &VmId,
        status: &str,
        over: &[&str],
    ) -> Result<(), DbError> {
        let work = self.inner.write_status_over(id, status, over);
        self.switch.write(id, status.to_owned(), work).await
    }

    async fn update_machine_configuration(
        &self,
        id: &VmId,
        update: ConfigurationUpdate,
    ) -> Result<(), DbError> {
        let work = self.inner.update_machine_configuration(id, update);
        self.switch
            .write(id, "configuration".to_owned(), work)
            .await
    }

    async fn transition_vm_status(
        &self,
        id: &VmId,
        expected: &str,
        new: &str,
        version: i64,
    ) -> Result<Transition, DbError> {
        let work = self.inner.transition_vm_status(id, expected, new, version);
        self.switch
            .write(id, format!("{expected}->{new}"), work)
            .await
    }

    async fn clear_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        let work = self.inner.clear_machine_configuration(id);
        self.switch.write(id, "clear".to_owned(), work).await
    }

    async fn clear_volatile_machine_configuration(&self, id: &VmId) -> Result<(), DbError> {
        let work = self.inner.clear_volatile_machine_configuration(id);
        self.switch
            .write(id, "clear volatile".to_owned(), work)
            .await
    }

    async fn get_machine_internal_name(&self, id: &VmId) -> Result<Option<String>, DbError> {
        self.switch
            .read(self.inner.get_machine_internal_name(id))
            .await
    }

    async fn get_machine_disk_path(&self, id: &VmId) -> Result<Option<String>, DbError> {
        self.switch.read(self.inner.get_machine_disk_path(id)).await
    }

    async fn get_firewall_rules(&self, id: &VmId) -> Result<Vec<FirewallRuleInput>, DbError> {
        self.switch.read(self.inner.get_firewall_rules(id)).await
    }

    async fn get_firewall_rules_split(&self, id: &VmId) -> Result<RuleSplit, DbError> {
        self.switch
            .read(self.inner.get_firewall_rules_split(id))
            .await
    }

    async fn get_department_firewall_policy(&self, id: &VmId) -> Result<Option<String>, DbError> {
        let work = self.inner.get_department_firewall_policy(id);
        self.switch.read(work).await
    }

    async fn get_firewall_rule_set_id(&self, id: &VmId) -> Result<Option<String>, DbError> {
        self.switch
            .read(self.inner.get_firewall_rule_set_id(id))
            .await
    }
}
