//! `CommandExecutor`, over the core's `host::command`.

use infinization_core::config::CommandOptions;
use infinization_core::host::command;
use napi_derive::napi;

use super::{Cancellation, warned};
use crate::argument::{Argument, wrong};
use crate::outcome::{Outcome, bytes};

/// Programs of the user's, each run to its end.
#[napi]
#[derive(Debug)]
pub struct CommandExecutor {}

#[napi]
impl CommandExecutor {
    /// Touches nothing.
    #[napi(constructor)]
    #[allow(clippy::new_without_default, reason = "JavaScript alone makes one")]
    pub fn new() -> Self {
        Self {}
    }

    /// Its standard output, of which `js/command-executor.js` makes text. What it rejects with becomes an error of its own there.
    #[napi]
    pub async fn execute(
        &self,
        command: Argument,
        args: Argument,
        options: Argument,
        cancel: Option<&Cancellation>,
    ) -> Outcome {
        let cancel = Cancellation::token(cancel);
        bytes(async {
            let command = command.text("command")?;
            if command.is_empty() {
                return Err(wrong("command", "must not be empty"));
            }
            let args = args.texts("args")?.unwrap_or_default();
            let options = CommandOptions::parse(&options.value("options")?)?;
            let options = warned("CommandExecutor", options);
            Ok(command::run(command, args, options, cancel).await?)
        })
        .await
    }
}
