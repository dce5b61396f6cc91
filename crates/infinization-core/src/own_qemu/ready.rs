//! Waiting until a QEMU that was started answers, or has ended.

use std::io;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::words::Words;
use crate::error::{ErrorCode, Failure};
use crate::host::dir_watch::DirWatch;
use crate::host::process::ProcessHandle;
use crate::qmp::{QmpClient, QmpError, QmpOptions};
use crate::types::HostPath;

/// For the socket to appear: QEMU makes it before its devices.
const SOCKET_DEADLINE: Duration = Duration::from_secs(5);
/// For the greeting, which comes when the devices are there: loading modules and firmware takes a moment.
const GREETING_DEADLINE: Duration = Duration::from_secs(30);
/// A QEMU that nobody can ask has started when it has lived for so long: most that fail do so at once.
const PROBATION: Duration = Duration::from_secs(1);
/// Between `bind` and `listen`, of which nothing tells, a socket refuses.
const LISTEN_PAUSE: Duration = Duration::from_millis(5);

/// What is waited for. Made before the start, so that nothing is missed.
#[derive(Debug)]
pub(super) enum Greeting {
    /// That of the monitor behind this socket.
    Of { socket: HostPath, watch: DirWatch },
    /// There is no monitor.
    None,
}

impl Greeting {
    pub(super) fn of(socket: Option<&HostPath>) -> Result<Self, Failure> {
        let Some(socket) = socket else {
            return Ok(Self::None);
        };
        let directory = socket.as_path().parent().unwrap_or(socket.as_path());
        let watch = DirWatch::on(directory).map_err(|error| {
            let directory = directory.display().to_string();
            let message = format!(
                "{directory}, where the monitor's socket should be, cannot be watched: {error}"
            );
            Failure::new(ErrorCode::HostFile, message).with("path", directory)
        })?;
        Ok(Self::Of {
            socket: socket.clone(),
            watch,
        })
    }

    /// Fails with QEMU's last words when it ends first.
    pub(super) async fn wait(self, process: &ProcessHandle, words: &Words) -> Result<(), Failure> {
        let ended = async || words.failure(process.exited().await);
        let ready = async {
            match self {
                Self::Of { socket, watch } => greeted(&socket, watch).await,
                Self::None => {
                    sleep(PROBATION).await;
                    Ok(())
                }
            }
        };
        let failed = tokio::select! {
            biased;
            failure = ended() => return Err(failure),
            ready = ready => match ready {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            },
        };
        // A connection that breaks is how an end shows first: its reason is the better answer.
        Err(timeout(Duration::from_secs(1), ended())
            .await
            .unwrap_or(failed))
    }
}

async fn greeted(socket: &HostPath, watch: DirWatch) -> Result<(), Failure> {
    let late = |what: &str, deadline: Duration| {
        let message = format!("{what} at {socket} after {deadline:?}");
        Failure::new(ErrorCode::Timeout, message).with("path", socket.as_str())
    };
    let appeared = timeout(SOCKET_DEADLINE, appeared(socket, watch)).await;
    appeared.map_err(|_elapsed| late("there is no monitor", SOCKET_DEADLINE))??;
    let greets = timeout(GREETING_DEADLINE, greets(socket)).await;
    greets.map_err(|_elapsed| late("no monitor greets", GREETING_DEADLINE))?
}

async fn greets(socket: &HostPath) -> Result<(), Failure> {
    let options = QmpOptions {
        connect_timeout: GREETING_DEADLINE,
        ..QmpOptions::default()
    };
    loop {
        match QmpClient::connect(socket.as_path(), options.clone()).await {
            Ok((monitor, _events)) => {
                // It has one connection, which whoever comes next needs.
                monitor.close().await;
                return Ok(());
            }
            Err(QmpError::Connect { source, .. })
                if source.kind() == io::ErrorKind::ConnectionRefused =>
            {
                sleep(LISTEN_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn appeared(socket: &HostPath, mut watch: DirWatch) -> Result<(), Failure> {
    while !socket.as_path().exists() {
        watch.changed().await.map_err(|error| {
            let message = format!("the directory of {socket} is heard no more: {error}");
            Failure::new(ErrorCode::HostFile, message)
        })?;
    }
    Ok(())
}
