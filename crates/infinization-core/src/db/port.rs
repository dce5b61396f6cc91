//! The way to a database that another runtime speaks with: the user's Prisma client, or his own
//! adapter object.
//!
//! A [`Port`] carries one request there and one answer back, both plain JSON; what they mean is
//! decided here, in [`prisma`](super::prisma) and [`injected`](super::injected). Every question has
//! a deadline, and dropping one is safe: an answer that comes later is nobody's.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::timeout;

/// How long an answer may take unless `databaseTimeout` says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(20);
/// A longer message of a foreign error is cut.
const LONGEST_MESSAGE: usize = 300;
/// Larger details of a foreign error are left out.
const LARGEST_DETAILS: usize = 4096;

/// Carries requests to the other side.
#[async_trait]
pub trait Port: Send + Sync + std::fmt::Debug {
    /// One request, one answer. Dropping the future gives the answer up.
    async fn call(&self, request: Value) -> Result<Value, PortError>;
}

/// What the other side threw, as far as it can be told in JSON. Its message may hold what was asked,
/// secrets too, until [`Line`] has looked at it.
#[derive(Debug, Clone, PartialEq, Default, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    /// The error's class, such as `PrismaClientKnownRequestError`.
    pub name: String,
    /// Its code, such as `P2025`, `ECONNREFUSED` or `VERSION_CONFLICT`.
    pub code: Option<String>,
    /// Its words.
    pub message: String,
    /// What else it says, an object or null.
    pub details: Value,
}

impl PortError {
    /// The [`name`](Self::name) when nobody is there to answer.
    pub const GONE: &'static str = "PortClosed";
    /// The [`name`](Self::name) when the deadline passed first.
    pub const LATE: &'static str = "DeadlinePassed";
    /// The [`name`](Self::name) when the object asked has no such methods; `details.missing` lists them.
    pub const MISSING: &'static str = "MissingMethod";

    /// Nobody is there to answer.
    pub fn gone(message: impl Into<String>) -> Self {
        Self {
            name: Self::GONE.to_owned(),
            message: message.into(),
            ..Self::default()
        }
    }

    fn late(deadline: Duration) -> Self {
        Self {
            name: Self::LATE.to_owned(),
            message: format!("no answer within {} ms", deadline.as_millis()),
            ..Self::default()
        }
    }

    /// Whether it says that the database cannot be reached.
    pub(super) fn is_connection_failure(&self) -> bool {
        [Self::GONE, Self::LATE].contains(&self.name.as_str())
            || NETWORK_NAMES.contains(&self.name.as_str())
            || self.code.as_deref().is_some_and(is_network_code)
    }
}

/// Errors of Node's and of browsers' network calls.
const NETWORK_NAMES: [&str; 4] = [
    "AbortError",
    "TimeoutError",
    "FetchError",
    "ConnectTimeoutError",
];
/// What the kernel and the resolver say.
const NETWORK_CODES: [&str; 14] = [
    "EAI_AGAIN",
    "ECONNABORTED",
    "ECONNREFUSED",
    "ECONNRESET",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "ENETDOWN",
    "ENETUNREACH",
    "ENOENT",
    "ENOTFOUND",
    "EPIPE",
    "ESOCKETTIMEDOUT",
    "ETIMEDOUT",
    "ERR_SOCKET_CLOSED",
];

fn is_network_code(code: &str) -> bool {
    NETWORK_CODES.contains(&code) || code.starts_with("UND_ERR_")
}

/// A port and how long it may take.
#[derive(Debug, Clone)]
pub(super) struct Line {
    port: Arc<dyn Port>,
    deadline: Duration,
}

impl Line {
    pub(super) fn new(port: Arc<dyn Port>) -> Self {
        Self {
            port,
            deadline: DEFAULT_DEADLINE,
        }
    }

    pub(super) fn answering_within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The answer; an error of it is short and holds no secret of the request.
    pub(super) async fn ask(&self, request: Value) -> Result<Value, PortError> {
        let secrets = secrets_of(&request);
        let answer = match timeout(self.deadline, self.port.call(request)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(PortError::late(self.deadline)),
        };
        answer.map_err(|error| PortError {
            message: last_line(&scrubbed(&error.message, &secrets)),
            details: told(&error.details, &secrets),
            ..error
        })
    }
}

/// The display password, wherever the request has it.
fn secrets_of(request: &Value) -> Vec<String> {
    match request {
        Value::Object(members) => members
            .iter()
            .flat_map(|(key, value)| match value {
                Value::String(text) if key == "graphicPassword" && !text.is_empty() => {
                    vec![text.clone()]
                }
                other => secrets_of(other),
            })
            .collect(),
        Value::Array(elements) => elements.iter().flat_map(secrets_of).collect(),
        _ => Vec::new(),
    }
}

/// Without the secrets, neither as they are nor as JSON and JavaScript print them.
fn scrubbed(text: &str, secrets: &[String]) -> String {
    let hide = |text: String, secret: &String| {
        let printed = Value::from(secret.as_str()).to_string();
        // Within its quotes.
        let text = text.replace(&printed[1..printed.len() - 1], "***");
        text.replace(secret.as_str(), "***")
    };
    secrets.iter().fold(text.to_owned(), hide)
}

/// Prisma prints the arguments first and says what is wrong with them last.
fn last_line(message: &str) -> String {
    let mut lines = message.lines().rev().map(str::trim);
    let line = lines.find(|line| !line.is_empty()).unwrap_or("no message");
    match line.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

fn told(details: &Value, secrets: &[String]) -> Value {
    let text = scrubbed(&details.to_string(), secrets);
    let fits = details.is_object() && text.len() <= LARGEST_DETAILS;
    // A secret that is part of the JSON itself takes the whole with it.
    let kept = fits.then(|| serde_json::from_str(&text).ok());
    kept.flatten().unwrap_or_default()
}
