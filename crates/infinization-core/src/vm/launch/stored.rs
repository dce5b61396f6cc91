//! What a launch is told by the database: whether the row may be claimed, and the rules.

use crate::config::VmConfig;
use crate::db::{DbError, RuleSplit};
use crate::error::{ErrorCode, Failure};
use crate::host::nft::Moment;
use crate::vm::context::VmContext;
use crate::vm::planner::RowClaim;
use crate::vm::status::{STARTABLE, Status};

/// What a create is told by the database.
pub(super) struct Stored {
    pub(super) row: RowClaim,
    pub(super) rules: ReadRules,
}

/// A machine's rules, as they were read.
pub(in crate::vm) struct ReadRules {
    pub(in crate::vm) split: RuleSplit,
    /// The department's.
    pub(in crate::vm) policy: Option<String>,
    /// Rules that are applied later are newer.
    pub(in crate::vm) as_of: Moment,
}

impl VmContext {
    pub(super) async fn read_for_create(&self, config: &VmConfig) -> Result<Stored, Failure> {
        if self.services.embedded.is_none() && !config.firewall.rules.is_empty() {
            let message =
                "firewallRules are for the embedded store: this machine's are in your own database";
            return Err(Failure::new(ErrorCode::InvalidState, message).of_vm(&self.vm_id));
        }
        let row = self.claim_for_create().await?;
        let rules = self.rules_for_create(config).await?;
        Ok(Stored { row, rules })
    }

    /// The row must be fresh, `off` or `error`.
    async fn claim_for_create(&self) -> Result<RowClaim, Failure> {
        match self.services.database.find_machine(&self.vm_id).await? {
            None if self.services.embedded.is_some() => Ok(RowClaim::Insert),
            None => Err(self.not_found()),
            Some(row) if STARTABLE.contains(&row.status.as_str()) => Ok(RowClaim::Take),
            Some(row) => Err(self.refused("created", &Status::parse(&row.status), &STARTABLE)),
        }
    }

    async fn rules_for_create(&self, config: &VmConfig) -> Result<ReadRules, Failure> {
        if self.services.embedded.is_none() {
            return self.stored_rules().await;
        }
        let as_of = self.services.nft.moment();
        let split = RuleSplit {
            vm_rules: config.firewall.rules.clone(),
            ..RuleSplit::default()
        };
        Ok(ReadRules {
            split,
            policy: None,
            as_of,
        })
    }

    /// The rules in the database, and the department's policy. A row that is gone has none, so that
    /// everything is dropped; any other failure ends the launch: a VM never runs with rules nobody
    /// read.
    pub(super) async fn stored_rules(&self) -> Result<ReadRules, Failure> {
        let (database, vm_id) = (&self.services.database, &self.vm_id);
        let as_of = self.services.nft.moment();
        let rules = present(database.get_firewall_rules_split(vm_id).await)?;
        let policy = present(database.get_department_firewall_policy(vm_id).await)?;
        Ok(ReadRules {
            split: rules.unwrap_or_default(),
            policy: policy.flatten(),
            as_of,
        })
    }
}

/// `None` when there is no row.
fn present<T>(read: Result<T, DbError>) -> Result<Option<T>, DbError> {
    match read {
        Err(error) if error.code == ErrorCode::MachineNotFound => Ok(None),
        read => read.map(Some),
    }
}
