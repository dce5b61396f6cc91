//! dnsmasq's process: started, found again, its leases.
//!
//! It daemonises itself: the program that is started ends when the daemon has its sockets, or with the
//! reason why it has not; so there is nothing to wait for. The daemon is known by the exact argument that
//! names its configuration, which is nobody else's. It outlives this process, and needs no word of it.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::User;
use serde_json::{Map, Value};

use super::blocking::file_call;
use super::process::{Identity, ProcessError, ProcessHandle, identify_by};
use super::program::{Program, ProgramError};
use crate::error::{Coded, ErrorCode};
use crate::network::{Lease, parse_leases};

/// It answers in some milliseconds; a host without entropy or with a slow disk takes longer.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// What it gets to write its leases.
const END_GRACE: Duration = Duration::from_secs(5);
/// Whom it runs as, the first there is.
const USERS: [&str; 2] = ["dnsmasq", "nobody"];

const CONF: &str = "dnsmasq.conf";
const PID: &str = "dnsmasq.pid";
const LEASES: &str = "dnsmasq.leases";

/// dnsmasq could not be started, found or asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DnsmasqError {
    #[error("dnsmasq did not start: {stderr}")]
    Start { stderr: String },
    #[error("process {pid} cannot be proven to be this network's dnsmasq: {why}")]
    Unknown { pid: i32, why: String },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("{path} could not be used")]
    File { path: String, source: io::Error },
}

impl Coded for DnsmasqError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Start { .. } => ErrorCode::DhcpStartFailed,
            Self::Unknown { .. } => ErrorCode::IdentityUnknown,
            Self::Program(error) => error.code(),
            Self::Process(error) => error.code(),
            Self::File { .. } => ErrorCode::StateFile,
        }
    }

    fn context(&self) -> Map<String, Value> {
        match self {
            Self::Start { stderr } => {
                Map::from_iter([("stderr".to_owned(), Value::from(stderr.as_str()))])
            }
            Self::Unknown { pid, .. } => Map::from_iter([("pid".to_owned(), Value::from(*pid))]),
            Self::Program(error) => error.context(),
            Self::Process(error) => error.context(),
            Self::File { path, .. } => {
                Map::from_iter([("path".to_owned(), Value::from(path.as_str()))])
            }
        }
    }
}

/// One network's dnsmasq, by its folder.
#[derive(Debug, Clone)]
pub struct Dnsmasq {
    dir: PathBuf,
}

impl Dnsmasq {
    /// In this folder, which exists when it is started.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Whom it shall run as: never root.
    pub fn user() -> &'static str {
        let exists = |name: &&&str| User::from_name(name).is_ok_and(|user| user.is_some());
        USERS.iter().find(exists).unwrap_or(&USERS[1])
    }

    /// Starts it with this configuration.
    pub async fn start(&self, conf: String) -> Result<ProcessHandle, DnsmasqError> {
        self.write_conf(conf).await?;
        let argument = |key: &str, name: &str| format!("--{key}={}", self.file(name).display());
        let run = Program::new("dnsmasq")
            .deadline(Some(START_DEADLINE))
            .args([
                self.argument(),
                argument("pid-file", PID),
                argument("dhcp-leasefile", LEASES),
            ]);
        let finished = run.run().await?;
        if !finished.status.success() {
            let stderr = finished.stderr_tail();
            return Err(DnsmasqError::Start { stderr });
        }
        let gone = || DnsmasqError::Start {
            stderr: "it ended at once".to_owned(),
        };
        self.find().await?.ok_or_else(gone)
    }

    /// The one that runs, if one does.
    pub async fn find(&self) -> Result<Option<ProcessHandle>, DnsmasqError> {
        let Some(pid) = self.pid().await? else {
            return Ok(None);
        };
        match identify_by(pid, self.argument()).await {
            Identity::Ours(handle) => Ok(Some(handle)),
            Identity::Gone | Identity::NotOurs => Ok(None),
            Identity::Unknown(why) => Err(DnsmasqError::Unknown { pid, why }),
        }
    }

    /// Whether the one that runs was started with this configuration.
    pub async fn has_conf(&self, conf: &str) -> bool {
        let path = self.file(CONF);
        file_call(|| std::fs::read_to_string(path))
            .await
            .is_ok_and(|found| found == conf)
    }

    /// Ends the one that runs, if one does. Its leases stay.
    pub async fn end(&self) -> Result<(), DnsmasqError> {
        if let Some(handle) = self.find().await? {
            handle.terminate(END_GRACE).await?;
        }
        for name in [PID, CONF] {
            let path = self.file(name);
            let failed = self.failed(name);
            let removed = file_call(move || match std::fs::remove_file(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                outcome => outcome,
            });
            removed.await.map_err(failed)?;
        }
        Ok(())
    }

    /// The leases that have not ended.
    pub async fn leases(&self) -> Result<Vec<Lease>, DnsmasqError> {
        let file = self.read(LEASES).await?.unwrap_or_default();
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(parse_leases(&file, since.unwrap_or_default().as_secs()))
    }

    async fn pid(&self) -> Result<Option<i32>, DnsmasqError> {
        let text = self.read(PID).await?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    async fn read(&self, name: &str) -> Result<Option<String>, DnsmasqError> {
        let path = self.file(name);
        let read = file_call(move || match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            outcome => outcome.map(Some),
        });
        let bytes = read.await.map_err(self.failed(name))?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// It reads the file as root, before it becomes somebody else.
    async fn write_conf(&self, conf: String) -> Result<(), DnsmasqError> {
        let path = self.file(CONF);
        let write = file_call(move || std::fs::write(path, conf));
        write.await.map_err(self.failed(CONF))
    }

    fn argument(&self) -> String {
        format!("--conf-file={}", self.file(CONF).display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn failed(&self, name: &str) -> impl FnOnce(io::Error) -> DnsmasqError + use<> {
        let path = self.file(name).display().to_string();
        move |source| DnsmasqError::File { path, source }
    }
}
