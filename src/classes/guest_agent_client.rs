//! `GuestAgentClient`, over the core's `qmp::guest_agent`.

use std::sync::Arc;

use infinization_core::Failure;
use infinization_core::config::{GuestAgentClientOptions, GuestExecOptions};
use infinization_core::qmp::{AgentSocket, ExecOutput};
use infinization_core::types::HostPath;
use napi_derive::napi;
use serde_json::{Value, json};

use super::refused::Refused;
use super::{Cancellation, warned};
use crate::argument::{Argument, wrong};
use crate::outcome::{Outcome, data, done, verbatim};

/// The freeze includes flushing the guest's file systems.
const FREEZE: std::time::Duration = std::time::Duration::from_secs(60);

/// The agent inside a guest, behind its socket.
#[napi]
#[derive(Debug)]
pub struct GuestAgentClient {
    socket: Result<Arc<AgentSocket>, Refused>,
}

#[napi]
impl GuestAgentClient {
    /// Touches nothing and does not fail.
    #[napi(constructor)]
    pub fn new(path: Argument, options: Argument) -> Self {
        Self {
            socket: socket(path, options).map_err(Refused::from),
        }
    }

    #[napi]
    pub async fn connect(&self, cancel: &Cancellation) -> Outcome {
        let cancel = Cancellation::token(Some(cancel));
        done(async { Ok(self.socket()?.connect(&cancel).await?) }).await
    }

    #[napi]
    pub async fn disconnect(&self) -> Outcome {
        done(async {
            self.socket()?.disconnect().await;
            Ok(())
        })
        .await
    }

    #[napi]
    pub fn is_connected(&self) -> bool {
        self.socket
            .as_ref()
            .is_ok_and(|socket| socket.is_connected())
    }

    /// Any command; its answer is the agent's own JSON.
    #[napi]
    pub async fn execute(&self, command: Argument, arguments: Argument) -> Outcome {
        verbatim(async {
            let (command, arguments) = (command.text("command")?, arguments.object("args")?);
            Ok(self.socket()?.agent()?.execute(&command, arguments).await?)
        })
        .await
    }

    #[napi]
    pub async fn guest_exec(
        &self,
        command: Argument,
        args: Argument,
        options: Argument,
    ) -> Outcome {
        data(async {
            let output = self.exec(command, args, options).await?;
            Ok(shown(&output, ExecOutput::text))
        })
        .await
    }

    /// The output as Latin-1, which keeps each byte: `js/guest-agent-client.js` makes Buffers of it.
    #[napi]
    pub async fn guest_exec_raw(
        &self,
        command: Argument,
        args: Argument,
        options: Argument,
    ) -> Outcome {
        data(async {
            let output = self.exec(command, args, options).await?;
            Ok(shown(&output, ExecOutput::latin1))
        })
        .await
    }

    /// How many file systems were frozen.
    #[napi]
    pub async fn fs_freeze(&self) -> Outcome {
        data(async { Ok(self.socket()?.agent()?.fs_freeze(FREEZE).await?) }).await
    }

    /// How many file systems were thawed.
    #[napi]
    pub async fn fs_thaw(&self) -> Outcome {
        data(async { Ok(self.socket()?.agent()?.fs_thaw().await?) }).await
    }

    fn socket(&self) -> Result<&AgentSocket, Failure> {
        Ok(self.socket.as_ref()?)
    }

    async fn exec(
        &self,
        command: Argument,
        args: Argument,
        options: Argument,
    ) -> Result<ExecOutput, Failure> {
        let (command, args) = (command.text("command")?, args.texts("args")?);
        let options = GuestExecOptions::parse(&options.value("options")?)?;
        let timeout = warned("guestExec", options).timeout;
        let agent = self.socket()?.agent()?;
        let args = args.unwrap_or_default();
        Ok(agent.exec(&command, &args, timeout).await?)
    }
}

fn socket(path: Argument, options: Argument) -> Result<Arc<AgentSocket>, Failure> {
    let path = HostPath::parse(path.text("socketPath")?)
        .map_err(|why| wrong("socketPath", &why.to_string()))?;
    let options = GuestAgentClientOptions::parse(&options.object("options")?)?;
    let options = warned("GuestAgentClient", options);
    let path = path.as_path().to_owned();
    Ok(Arc::new(AgentSocket::new(path, (&options).into())))
}

fn shown(output: &ExecOutput, text: impl Fn(&[u8]) -> String) -> Value {
    json!({
        "stdout": text(&output.stdout),
        "stderr": text(&output.stderr),
        "exitCode": output.exit_code.unwrap_or(-1),
    })
}
