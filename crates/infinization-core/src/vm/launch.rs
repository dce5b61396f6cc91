//! `createVM` and `startVM`: refuse or plan, execute, go live.

mod failure;
mod stored;

pub(super) use stored::ReadRules;

use failure::{launch_failure, step_of, was_taken};
use serde_json::json;
use stored::Stored;
use tokio_util::sync::CancellationToken;

use super::action::{Action, Release};
use super::bench::Bench;
use super::boot;
use super::cleanup::Cleanup;
use super::context::VmContext;
use super::disk_keys::{keys_of, with_keys};
use super::facts::{Gathered, Reserved};
use super::live::{Live, LiveView, RunKeys};
use super::machine::Machine;
use super::outcome::{CreateResult, OperationResult};
use super::plan::{Operation, Plan};
use super::planner::{Facts, RowClaim, plan_create, plan_start};
use super::run::{Run, Undone};
use super::spec;
use super::status::{STARTABLE, Status};
use super::stop::Interrupt;
use crate::config::{StartOptions, VmConfig, Warning};
use crate::db::VmRecord;
use crate::error::{ErrorCode, Failure};
use crate::events::now_ms;
use crate::host::state_file::StateFileError;
use crate::qemu::Accelerator;
use crate::types::VmNames;

/// How often another display port is tried when somebody else took it between probe and bind.
const PORT_ATTEMPTS: u16 = 5;

/// A launch that succeeded.
struct Launched {
    pid: i32,
    display_port: u16,
    accelerator: Accelerator,
    warnings: Vec<String>,
}

/// What a launch is for, with what only that needs.
struct Launch<'a> {
    operation: Operation,
    /// What this run is made of.
    config: VmConfig,
    /// What later runs are made of: without the options of this one.
    spec: VmConfig,
    row: RowClaim,
    rules: ReadRules,
    cancel: &'a CancellationToken,
}

impl Launch<'_> {
    fn plan(&self, names: &VmNames, facts: &Facts) -> Result<Plan, Failure> {
        let plan = match self.operation {
            Operation::Create => plan_create(&self.config, names, facts),
            _ => plan_start(&self.config, names, facts),
        };
        plan.map_err(|error| Failure::new(ErrorCode::InvalidConfig, error.to_string()))
    }
}

impl Machine {
    /// Makes the machine and starts its guest.
    pub(super) async fn create(
        &mut self,
        config: VmConfig,
        warnings: &[Warning],
        cancel: &CancellationToken,
    ) -> Result<CreateResult, Failure> {
        self.look_again().await?;
        if self.live.is_some() {
            return Err(self.context.refused("created", &self.shown, &STARTABLE));
        }
        let Stored { row, rules } = self
            .context
            .read_for_create(&config)
            .await
            .map_err(|failure| self.create_failure(failure))?;
        let result = self.context.to_be_created(&config, warnings);
        let launch = Launch {
            operation: Operation::Create,
            spec: config.clone(),
            config,
            row,
            rules,
            cancel,
        };
        let launched = match self.launch(launch).await {
            Ok(launched) => launched,
            Err(failure) => {
                self.forget_if_empty().await;
                return Err(self.create_failure(failure));
            }
        };
        self.context.crud(
            "create",
            json!({ "pid": launched.pid, "tapDevice": result.tap_device }),
        );
        let mut result = CreateResult {
            display_port: launched.display_port,
            pid: launched.pid,
            accelerator: accelerator_word(launched.accelerator),
            ..result
        };
        result.warnings.extend(launched.warnings);
        Ok(result)
    }

    /// Starts the guest of an existing machine.
    pub(super) async fn start(
        &mut self,
        options: &StartOptions,
        cancel: &CancellationToken,
        interrupt: &Interrupt,
    ) -> Result<OperationResult, Failure> {
        let vm_id = self.context.vm_id.clone();
        let record = self.record().await?;
        let mut status = Status::parse(&record.status);
        if self.live.is_some() && status.denies_process() {
            self.write_shown(&["off", "starting"]).await?;
            status = self.shown.clone();
        }
        if self.live.is_some() && status == Status::Running {
            return Ok(OperationResult::done(&vm_id, "VM is already running"));
        }
        let (record, status) = self.resolve_dead_claim(record).await?;
        if self.live.is_some() || !STARTABLE.contains(&status.as_str()) {
            return Err(self.context.refused("started", &status, &STARTABLE));
        }
        let config = spec::for_start(&self.context, &record)?;
        self.context.settle_restores(&config).await?;
        let keys = self.context.keys_for(&config, &options.disk_keys).await?;
        let this_run = with_keys(spec::with_options(config.clone(), options), &keys);
        let used = this_run.clone();
        let witness = boot::witness(&config, options)?;
        let rules = self.context.stored_rules().await?;
        self.context.journal.found_status(&record.status);
        let row = RowClaim::Transition {
            from: record.status.clone(),
            version: record.version,
        };
        let abort = cancel.child_token();
        let launch = Launch {
            operation: Operation::Start,
            config: this_run,
            spec: config,
            row,
            rules,
            cancel: &abort,
        };
        let launched = interrupt
            .abort_if_forced(&abort, Box::pin(self.launch(launch)))
            .await
            .map_err(|failure| {
                let otherwise = (ErrorCode::StartFailed, "the VM could not be started");
                launch_failure(self, failure, otherwise)
            })?;
        let mut warnings = launched.warnings;
        warnings.extend(self.context.keep_keys(&used).await);
        let data = json!({ "pid": launched.pid, "tapDevice": self.context.names.tap });
        self.context.crud("power_on", data);
        if let Some(agent) = witness {
            self.wait_for_boot(&agent, options.boot_timeout, interrupt)
                .await?;
        }
        Ok(OperationResult::done(&vm_id, "VM started").warned(warnings))
    }

    pub(super) async fn record(&self) -> Result<VmRecord, Failure> {
        let record = self
            .context
            .services
            .database
            .find_machine_with_config(&self.context.vm_id)
            .await?;
        record.ok_or_else(|| self.context.not_found())
    }

    /// An old claim of a QEMU that is gone is dropped, and the start goes on.
    async fn resolve_dead_claim(
        &mut self,
        record: VmRecord,
    ) -> Result<(VmRecord, Status), Failure> {
        let status = Status::parse(&record.status);
        let dead = self.live.is_none() && matches!(status, Status::Running | Status::Starting);
        if !dead {
            return Ok((record, status));
        }
        self.drop_dead_claim().await?;
        let record = self.record().await?;
        let status = Status::parse(&record.status);
        Ok((record, status))
    }

    /// Plans and executes, with another display port when somebody was faster.
    async fn launch(&mut self, mut launch: Launch<'_>) -> Result<Launched, Failure> {
        let wanted = launch.config.display.port;
        let mut first_port = wanted;
        for _ in 1..PORT_ATTEMPTS {
            let (failure, port) = match self.launch_once(&launch, first_port).await {
                Err((failure, port)) if was_taken(&failure) => (failure, port),
                outcome => return outcome.map_err(|(failure, _)| failure),
            };
            tracing::info!(vm = %self.context.vm_id, %failure, "trying the next display port");
            if launch.operation == Operation::Start {
                // The attempt wrote the port it lost.
                self.context.row_keeps_port(wanted).await;
            }
            launch.row = self.claim_again(launch.row).await?;
            first_port = port.saturating_add(1);
        }
        let last = self.launch_once(&launch, first_port).await;
        if last.is_err() && launch.operation == Operation::Start {
            self.context.row_keeps_port(wanted).await;
        }
        last.map_err(|(failure, _)| failure)
    }

    /// The last attempt gave the row back, and counted its version up.
    async fn claim_again(&self, claim: RowClaim) -> Result<RowClaim, Failure> {
        let RowClaim::Transition { .. } = claim else {
            return Ok(claim);
        };
        let record = self.record().await?;
        if !STARTABLE.contains(&record.status.as_str()) {
            let status = Status::parse(&record.status);
            return Err(self.context.refused("started", &status, &STARTABLE));
        }
        Ok(RowClaim::Transition {
            from: record.status,
            version: record.version,
        })
    }

    async fn launch_once(
        &mut self,
        launch: &Launch<'_>,
        first_port: u16,
    ) -> Result<Launched, (Failure, u16)> {
        let early = |failure: Failure| (failure, first_port);
        let gathered = self
            .context
            .gather(
                &launch.config,
                &launch.rules,
                launch.row.clone(),
                first_port,
            )
            .await
            .map_err(early)?;
        let (
            facts,
            Reserved {
                display_port,
                mac: _until_the_launch_is_over,
                network_disks: _as_long,
                warnings,
            },
        ) = (gathered.facts, gathered.reserved);
        let port = facts.display_port;
        let context = &self.context;
        let plan = launch.plan(&context.names, &facts).map_err(early)?;
        let bench = Bench::new(launch.config.clone(), launch.spec.clone(), port);
        context.make_directory().await.map_err(early)?;
        context.forget_previous_spec().await.map_err(early)?;
        context
            .ledger
            .begin(launch.operation, now_ms())
            .map_err(|error| early(error.into()))?;
        let run = Run::new(context.desk(&bench), launch.cancel);
        let outcome = run.execute(&plan).await;
        self.settle_attempt(&outcome).await;
        outcome.map_err(|undone| (undone.failure, port))?;

        let (Some(process), Some((qmp, events))) = (bench.process(), bench.take_monitor()) else {
            let message = "the plan made no process or no monitor";
            return Err(early(Failure::new(ErrorCode::Internal, message)));
        };
        let pid = process.pid();
        let paths = &launch.config.paths;
        let bridge = Some(launch.config.network.bridge.clone());
        let tap = context.names.tap.clone();
        let view = LiveView::of(process, qmp, &paths.qmp_socket, (tap, bridge), port).await;
        let view = view.with_keys(RunKeys::new(keys_of(&launch.config)));
        let live = Live {
            view: view.into(),
            events,
            _display_port: Some(display_port),
            ending: None,
        };
        self.goes_live(live, Status::Running);
        let network = &launch.config.network;
        self.context
            .look_at_addresses(network, &facts.firewall)
            .await;
        Ok(Launched {
            pid,
            display_port: port,
            accelerator: facts.accelerator,
            warnings,
        })
    }

    /// The attempt is over: the ledger has what it made, or what could not be undone.
    async fn settle_attempt(&self, outcome: &Result<(), Undone>) {
        let context = &self.context;
        let settled = match outcome {
            Ok(()) => context.ledger.commit(),
            Err(undone) if step_of(&undone.failure).is_some_and(Action::is_claim) => {
                context.ledger.commit()
            }
            Err(undone) => {
                self.alert(&undone.cleanup);
                context.end_attempt(&undone.cleanup).await
            }
        };
        if let Err(error) = settled {
            // What was done is done; whoever reads the old ledger finds the same out by looking.
            tracing::warn!(vm = %context.vm_id, %error, "the ledger could not be written");
        }
    }

    /// A failed create leaves no state directory behind, unless something could not be undone.
    pub(super) async fn forget_if_empty(&self) {
        if self.context.ledger.contents().entries.is_empty()
            && let Err(error) = self.context.remove_directory().await
        {
            tracing::warn!(vm = %self.context.vm_id, %error, "the state directory stays");
        }
    }

    fn create_failure(&self, failure: Failure) -> Failure {
        let otherwise = (ErrorCode::CreateFailed, "the VM could not be created");
        launch_failure(self, failure, otherwise)
    }
}

impl VmContext {
    /// What is known of a result before the launch.
    fn to_be_created(&self, config: &VmConfig, warnings: &[Warning]) -> CreateResult {
        let disks = config.disks.iter();
        let warnings = warnings.iter();
        CreateResult {
            success: true,
            vm_id: self.vm_id.clone(),
            tap_device: self.names.tap.to_string(),
            qmp_socket_path: config.paths.qmp_socket.to_string(),
            display_port: 0,
            pid: 0,
            disk_paths: disks.map(|disk| disk.location.to_string()).collect(),
            pid_file_path: config.paths.pid_file.to_string(),
            accelerator: "",
            warnings: warnings
                .map(|w| format!("{} {}", w.path, w.message))
                .collect(),
        }
    }

    /// What `create` would do with this configuration, and what the caller should know of it.
    pub async fn plan_create(&self, config: &VmConfig) -> Result<(Plan, Vec<String>), Failure> {
        let Stored { row, rules } = self.read_for_create(config).await?;
        let port = config.display.port;
        let Gathered { facts, reserved } = self.gather(config, &rules, row, port).await?;
        let plan = plan_create(config, &self.names, &facts)
            .map_err(|error| Failure::new(ErrorCode::InvalidConfig, error.to_string()))?;
        Ok((plan, reserved.warnings))
    }

    /// Nothing of an undone launch is remembered as a run, unless its QEMU could not be ended. One that
    /// is not undone yet stays to be undone.
    pub(super) async fn end_attempt(&self, cleanup: &Cleanup) -> Result<(), StateFileError> {
        let entries = self.ledger.contents().entries;
        if entries
            .iter()
            .all(|entry| entry.undo.release != Release::EndQemu)
        {
            self.ledger.died()?;
            self.clear_run().await;
        }
        if cleanup.is_complete() {
            self.ledger.commit()?;
        }
        Ok(())
    }
}

fn accelerator_word(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    }
}
