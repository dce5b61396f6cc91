//! The agent's commands this library uses.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};

use super::GuestAgent;
use super::error::AgentError;
use crate::types::base64;

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// For ending a program that outlived its deadline.
const LAST_RESORT: Duration = Duration::from_secs(3);

/// What a program in the guest left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its standard output, byte for byte.
    pub stdout: Vec<u8>,
    /// Its standard error, byte for byte.
    pub stderr: Vec<u8>,
    /// Absent when a signal ended it.
    pub exit_code: Option<i64>,
    /// The signal (or Windows exception) that ended it.
    pub signal: Option<i64>,
    /// The agent cut an output off at its own limit (16 MiB each).
    pub truncated: bool,
}

impl ExecOutput {
    /// A program's output as text: UTF-8 where it is that, else each byte as one character (Latin-1).
    pub fn text(output: &[u8]) -> String {
        std::str::from_utf8(output).map_or_else(|_| Self::latin1(output), str::to_owned)
    }

    /// Each byte as one character, which keeps them all.
    pub fn latin1(output: &[u8]) -> String {
        output.iter().copied().map(char::from).collect()
    }
}

/// Whether the guest's file systems take writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum FreezeStatus {
    Thawed,
    Frozen,
}

impl GuestAgent {
    /// Returns once the agent has answered.
    pub async fn ping(&self) -> Result<(), AgentError> {
        self.execute("guest-ping", ()).await.map(drop)
    }

    /// Runs a program in the guest, without a shell, and waits for its end. One that outlives the
    /// deadline is ended, where the guest has a program for that ([`AgentError::StillRunning`]).
    pub async fn exec(
        &self,
        path: &str,
        args: &[String],
        deadline: Duration,
    ) -> Result<ExecOutput, AgentError> {
        let arguments = json!({ "path": path, "arg": args, "capture-output": true });
        let command = "guest-exec";
        let started = self.execute_with(command, arguments, deadline).await?;
        let Started { pid } = decode(command, &started)?;
        match timeout(deadline, self.ended(pid, deadline)).await {
            Ok(ended) => ended,
            Err(_elapsed) => Err(AgentError::StillRunning {
                pid,
                deadline,
                ended: timeout(LAST_RESORT, self.end(pid)).await.unwrap_or(false),
            }),
        }
    }

    /// Ends a program that the agent runs; whether it did. The agent has no command for it, but runs
    /// the guest's own.
    async fn end(&self, pid: i64) -> bool {
        let number = pid.to_string();
        let unix = json!({ "path": "kill", "arg": ["-KILL", number] });
        let windows = json!({ "path": "taskkill", "arg": ["/F", "/T", "/PID", number] });
        for arguments in [unix, windows] {
            if self
                .execute_with("guest-exec", arguments, LAST_RESORT)
                .await
                .is_ok()
            {
                return self.ended(pid, LAST_RESORT).await.is_ok();
            }
        }
        false
    }

    /// The agent has no event for a program's end: it can only be asked, at growing intervals.
    async fn ended(&self, pid: i64, deadline: Duration) -> Result<ExecOutput, AgentError> {
        let command = "guest-exec-status";
        let mut pause = FIRST_PAUSE;
        loop {
            let arguments = json!({ "pid": pid });
            let status = self.execute_with(command, arguments, deadline).await?;
            let status: ExecStatus = decode(command, &status)?;
            if status.exited {
                return status.output();
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Flushes and freezes the guest's file systems; how many were frozen. When that fails, or the
    /// future is dropped, they are thawed again, as far as the agent lets us.
    pub async fn fs_freeze(&self, deadline: Duration) -> Result<u64, AgentError> {
        let undo = ThawIfDropped(Some(self.clone()));
        let command = "guest-fsfreeze-freeze";
        let frozen = match self.execute_with(command, (), deadline).await {
            Ok(frozen) => decode(command, &frozen),
            Err(error) => Err(error),
        };
        if frozen.is_err() {
            self.thaw_quietly().await;
        }
        undo.done();
        frozen
    }

    /// Thaws the guest's file systems; how many were thawed.
    pub async fn fs_thaw(&self) -> Result<u64, AgentError> {
        self.query("guest-fsfreeze-thaw").await
    }

    /// Whether the guest's file systems are frozen, as the agent remembers it.
    pub async fn fs_status(&self) -> Result<FreezeStatus, AgentError> {
        self.query("guest-fsfreeze-status").await
    }

    /// Thaws over a connection of its own when this one was closed in the middle of a freeze.
    async fn thaw_quietly(&self) {
        let thawed = match self.reopened().await {
            Ok(agent) => agent.fs_thaw().await,
            Err(error) => Err(error),
        };
        if let Err(error) = thawed {
            tracing::warn!(%error, "the guest's file systems may still be frozen");
        }
    }

    async fn query<T: DeserializeOwned>(&self, command: &str) -> Result<T, AgentError> {
        decode(command, &self.execute(command, ()).await?)
    }
}

/// A caller that stops waiting for a freeze must not leave a guest frozen behind.
struct ThawIfDropped(Option<GuestAgent>);

impl ThawIfDropped {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for ThawIfDropped {
    fn drop(&mut self) {
        if let Some(agent) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { agent.thaw_quietly().await });
        }
    }
}

#[derive(Deserialize)]
struct Started {
    pid: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ExecStatus {
    exited: bool,
    exitcode: Option<i64>,
    signal: Option<i64>,
    #[serde(default)]
    out_data: String,
    #[serde(default)]
    err_data: String,
    #[serde(default)]
    out_truncated: bool,
    #[serde(default)]
    err_truncated: bool,
}

impl ExecStatus {
    fn output(self) -> Result<ExecOutput, AgentError> {
        Ok(ExecOutput {
            stdout: bytes(&self.out_data)?,
            stderr: bytes(&self.err_data)?,
            exit_code: self.exitcode,
            signal: self.signal,
            truncated: self.out_truncated || self.err_truncated,
        })
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, AgentError> {
    base64::decode(text).ok_or_else(|| AgentError::Protocol {
        why: "a program's output is not base64".to_owned(),
    })
}

fn decode<T: DeserializeOwned>(command: &str, answer: &RawValue) -> Result<T, AgentError> {
    serde_json::from_str(answer.get()).map_err(|_| AgentError::Protocol {
        why: format!("the answer to {command} has an unexpected shape"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_utf8_or_byte_for_byte() {
        for (bytes, text) in [
            (&b"plain"[..], "plain"),
            ("€ ü".as_bytes(), "€ ü"),
            (&[0xfc, b'\n'], "ü\n"),
            (&[0xe2, 0x82], "\u{e2}\u{82}"),
            (&[], ""),
        ] {
            assert_eq!(ExecOutput::text(bytes), text, "{bytes:?}");
        }
        assert_eq!(ExecOutput::latin1("€".as_bytes()), "\u{e2}\u{82}\u{ac}");
    }
}
