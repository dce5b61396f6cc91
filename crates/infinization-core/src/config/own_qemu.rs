//! What `QemuProcess` is told of a QEMU of the user's: how to start it, and how to know it again.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::fields::{Fields, Report, elements, milliseconds, parsed, string, words_of_text};
use super::{ConfigError, Parsed};
use crate::types::{HostPath, InvalidValue};

/// A command line. It may have a secret on it, so it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct QemuLaunch {
    /// The program: a path, or a name that is looked up in `PATH`.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// A program that becomes this one (numactl), and its own arguments.
    pub wrapper: Option<(String, Vec<String>)>,
}

impl fmt::Debug for QemuLaunch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let launch = &mut f.debug_struct("QemuLaunch");
        launch
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

/// What a QEMU is known by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QemuTraits {
    /// Where its monitor listens.
    pub qmp_socket: Option<HostPath>,
    /// Where it writes its number.
    pub pid_file: Option<HostPath>,
    /// The exact value of its `-name`, `-pidfile` or `-qmp unix:`.
    pub token: Option<String>,
}

impl QemuLaunch {
    /// Reads a command line.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        let report = Report::default();
        let launch = Fields::of("command", value, &report).and_then(|fields| {
            let command = fields.required("command", words_of_text);
            let args = fields.required("args", texts);
            let wrapper = fields.optional("wrapperCommand", words_of_text);
            let wrapper_args = fields.optional("wrapperArgs", texts);
            fields.finish();
            Some(Self {
                command: command?,
                args: args?,
                wrapper: wrapper.map(|command| (command, wrapper_args.unwrap_or_default())),
            })
        });
        report.conclude(launch)
    }

    /// Without `-daemonize`: whoever starts it detaches it, and has it as a child. QEMU's own way does not go with its
    /// sandbox, and makes a process of which only a file tells the number.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.args
            .retain(|arg| !matches!(arg.as_str(), "-daemonize" | "--daemonize"));
        self
    }

    /// As `/proc/<pid>/cmdline` will have it.
    pub fn cmdline(&self) -> Vec<u8> {
        let words = std::iter::once(&self.command).chain(&self.args);
        words.flat_map(|word| word.bytes().chain([0])).collect()
    }

    /// The program to be executed, with all its arguments.
    pub fn program(&self) -> (&str, Vec<String>) {
        let Some((wrapper, own)) = &self.wrapper else {
            return (&self.command, self.args.clone());
        };
        let command = std::iter::once(&self.command);
        (
            wrapper,
            own.iter()
                .chain(command)
                .chain(&self.args)
                .cloned()
                .collect(),
        )
    }
}

impl QemuTraits {
    /// Reads the traits.
    pub fn parse(value: &Value) -> Result<Parsed<Self>, ConfigError> {
        super::options::read(value, |fields| Self {
            qmp_socket: fields.optional("qmpSocketPath", parsed),
            pid_file: fields.optional("pidFilePath", parsed),
            token: fields.optional("identityToken", words_of_text),
        })
    }
}

/// How long a QEMU may take to end by SIGTERM: `timeoutMs`. Default 30 s.
pub fn stop_grace(value: &Value) -> Result<Parsed<Duration>, ConfigError> {
    super::options::read(value, |fields| {
        let grace = fields.optional("timeoutMs", milliseconds);
        grace.unwrap_or(Duration::from_secs(30))
    })
}

fn texts(value: &Value) -> Result<Vec<String>, InvalidValue> {
    let texts = elements(value)?.iter().map(string);
    texts.map(|text| Ok(text?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wrapper_comes_first_and_nothing_daemonizes() {
        let given = json!({
            "command": "qemu", "args": ["-name", "vm", "-daemonize", "-vnc", ":0,password=x"],
            "wrapperCommand": "numactl", "wrapperArgs": ["--membind=0"]
        });
        let launch = QemuLaunch::parse(&given).unwrap().config.detached();
        let (program, args) = launch.program();
        assert_eq!(
            (program, args.join(" ").as_str()),
            ("numactl", "--membind=0 qemu -name vm -vnc :0,password=x")
        );
        assert!(launch.cmdline().starts_with(b"qemu\0-name\0vm\0-vnc\0"));
        assert!(!format!("{launch:?}").contains("password"));
    }

    #[test]
    fn b10_what_makes_no_sense_is_named() {
        let refused = QemuLaunch::parse(&json!({ "command": "", "args": [1] })).unwrap_err();
        assert_eq!(refused.issues.len(), 2);
        let given = json!({ "qmpSocketPath": "qmp.sock", "pidFilePath": 5, "identityToken": " " });
        assert_eq!(QemuTraits::parse(&given).unwrap_err().issues.len(), 3);
        assert_eq!(
            QemuTraits::parse(&json!(null)).unwrap().config,
            QemuTraits::default()
        );
    }
}
