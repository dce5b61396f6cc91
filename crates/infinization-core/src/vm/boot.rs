//! `startVM({ waitForBoot: true })`: the guest has booted when its agent answers.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::machine::Machine;
use crate::config::{StartOptions, VmConfig};
use crate::error::{ErrorCode, Failure};
use crate::qmp::{AgentOptions, GuestAgent};
use crate::types::HostPath;

/// How long one attempt waits for an answer. The agent announces itself to nobody: it is asked until
/// it answers.
const ONE_ATTEMPT: Duration = Duration::from_secs(1);

/// Whose answer means that the guest has booted; refused when nobody could give one.
pub(super) fn witness(
    config: &VmConfig,
    options: &StartOptions,
) -> Result<Option<HostPath>, Failure> {
    if !options.wait_for_boot {
        return Ok(None);
    }
    let agent = config.channels.guest_agent.clone();
    agent.map(Some).ok_or_else(|| {
        let message = "waitForBoot needs a machine with guestAgentSocketPath: only the guest's agent can say that it has booted";
        Failure::new(ErrorCode::InvalidConfig, message)
    })
}

impl Machine {
    /// Returns when the guest's agent answers. Whatever ends the wait, the VM goes on.
    pub(super) async fn wait_for_boot(
        &self,
        agent: &HostPath,
        patience: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        let vm_id = &self.context.vm_id;
        tokio::select! {
            biased;
            _exit = self.exited() => {
                Err(Failure::new(ErrorCode::StartFailed, "the VM ended while its guest was booting").of_vm(vm_id))
            }
            () = cancel.cancelled() => {
                let message = "the wait for the guest was aborted; the VM is running";
                Err(Failure::new(ErrorCode::Aborted, message).of_vm(vm_id))
            }
            answered = timeout_at(deadline, answer_of(agent.as_path())) => answered.map_err(|_elapsed| {
                let message = format!("the guest did not answer within {} ms; the VM is running", patience.as_millis());
                Failure::new(ErrorCode::Timeout, message).of_vm(vm_id)
            }),
        }
    }
}

async fn answer_of(agent: &Path) {
    let options = AgentOptions {
        connect_timeout: ONE_ATTEMPT,
        ..AgentOptions::default()
    };
    loop {
        match GuestAgent::connect(agent, options.clone()).await {
            Ok(agent) => {
                agent.close().await;
                return;
            }
            // A refusal is immediate; do not ask in a tight circle.
            Err(_not_yet) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
