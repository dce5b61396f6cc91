//! `startVM({ waitForBoot: true })`: the guest has booted when its agent answers.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use super::machine::Machine;
use super::stop::{Interrupt, Waited};
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
        &mut self,
        agent: &HostPath,
        patience: Duration,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        let failed = |code, message: &str| Err(Failure::new(code, message));
        let mut answered = pin!(timeout(patience, answer_of(agent.as_path())));
        let mut interrupted = pin!(interrupt.came());
        loop {
            tokio::select! {
                biased;
                _exit = self.exited() => {
                    return failed(ErrorCode::StartFailed, "the VM ended while its guest was booting");
                }
                waited = &mut interrupted => return match waited {
                    Waited::Forced => failed(ErrorCode::Aborted, "the VM was stopped while its guest was booting"),
                    _ => failed(ErrorCode::Aborted, "the wait for the guest was aborted; the VM is running"),
                },
                event = self.next_event() => self.on_event(event).await,
                answered = &mut answered => return answered.or_else(|_elapsed| {
                    let waited = patience.as_millis();
                    failed(ErrorCode::Timeout, &format!("the guest did not answer within {waited} ms; the VM is running"))
                }),
            }
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
            // The socket may be of any agent, or not be there yet, so nobody tells when it answers. A
            // refusal is immediate; do not ask in a tight circle.
            Err(_not_yet) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
