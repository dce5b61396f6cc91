//! What is said to a program that runs, what it says, and how it is told to end.

use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use zeroize::Zeroizing;

/// Where the output of one stream goes.
pub(super) struct Sink<'a> {
    pub(super) into: &'a mut Vec<u8>,
    pub(super) limit: u64,
    pub(super) also: Option<tokio::sync::mpsc::UnboundedSender<Vec<u8>>>,
}

pub(super) async fn talk(
    child: &mut Child,
    input: Zeroizing<Vec<u8>>,
    out: Sink<'_>,
    err: Sink<'_>,
) -> std::io::Result<ExitStatus> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async move {
        if let Some(mut stdin) = stdin {
            // A program may end without reading all: its exit status tells the story, not EPIPE.
            match stdin.write_all(&input).await {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        Ok(())
    };
    tokio::try_join!(write, collect(stdout, out), collect(stderr, err))?;
    child.wait().await
}

async fn collect(stream: Option<impl AsyncRead + Unpin>, sink: Sink<'_>) -> std::io::Result<()> {
    let Some(stream) = stream else { return Ok(()) };
    let mut stream = stream.take(sink.limit.saturating_add(1));
    loop {
        let before = sink.into.len();
        if stream.read_buf(sink.into).await? == 0 {
            break;
        }
        if let Some(also) = &sink.also {
            // Nobody listening is no reason to fail the program.
            let _unheard = also.send(sink.into[before..].to_vec());
        }
    }
    if sink.into.len() as u64 > sink.limit {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(())
}

/// SIGTERM, `grace` to end by itself, SIGKILL.
pub(super) async fn end(child: &mut Child, grace: Duration) -> Option<ExitStatus> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // The pid is ours until `wait` reaps it, so it cannot have been reused.
        let _gone = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        let _gone = child.kill().await;
    }
    child.wait().await.ok()
}
