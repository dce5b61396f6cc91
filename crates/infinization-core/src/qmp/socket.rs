//! A monitor's socket that somebody names before he connects to it: what `new QMPClient(path)` is.
//!
//! Connecting is idempotent, and a connection that ended may be made anew; after
//! [`MonitorSocket::disconnect`] none is, ever again. Neighbour: [`super::client`] is one connection.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::client::{Link, QmpClient, QmpOptions};
use super::error::QmpError;
use super::event_stream::EventReceiver;

/// A monitor's socket, and the connection to it while there is one.
#[derive(Debug)]
pub struct MonitorSocket {
    path: PathBuf,
    options: QmpOptions,
    client: Mutex<Option<QmpClient>>,
    connecting: tokio::sync::Mutex<()>,
    closed: CancellationToken,
}

impl MonitorSocket {
    /// Touches nothing.
    pub fn new(path: PathBuf, options: QmpOptions) -> Self {
        Self {
            path,
            options,
            client: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            closed: CancellationToken::new(),
        }
    }

    /// Connects, unless there is a connection already; one that is being made again is waited for.
    /// `Some` with a new connection's events: the receiver misses none.
    pub async fn connect(&self) -> Result<Option<EventReceiver>, QmpError> {
        let _one_at_a_time = self.connecting.lock().await;
        let connected = self.closed.run_until_cancelled(self.dial()).await;
        connected.unwrap_or(Err(CLOSED))
    }

    async fn dial(&self) -> Result<Option<EventReceiver>, QmpError> {
        if let Some(client) = self.client() {
            client.settled().await;
            if client.is_connected() {
                return Ok(None);
            }
        }
        let (client, events) = QmpClient::connect(&self.path, self.options.clone()).await?;
        *self.slot() = Some(client);
        Ok(Some(events))
    }

    /// Ends the connection for good: calls that wait fail at once, and nothing revives it. A
    /// connection that is just being made is given up.
    pub async fn disconnect(&self) {
        self.closed.cancel();
        let _none_is_made = self.connecting.lock().await;
        if let Some(client) = self.client() {
            client.close().await;
        }
    }

    /// The connection made last, which may have ended.
    pub fn connection(&self) -> Result<QmpClient, QmpError> {
        self.client().ok_or(if self.closed.is_cancelled() {
            CLOSED
        } else {
            QmpError::NotConnected {
                why: "connect() has not succeeded",
            }
        })
    }

    /// The connection made last, if there was one.
    pub fn client(&self) -> Option<QmpClient> {
        self.slot().clone()
    }

    /// Where the connection stands; [`Link::Closed`] before the first.
    pub fn link(&self) -> Link {
        self.client().map_or(Link::Closed, |client| client.link())
    }

    fn slot(&self) -> MutexGuard<'_, Option<QmpClient>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const CLOSED: QmpError = QmpError::NotConnected {
    why: "disconnect() was called",
};
