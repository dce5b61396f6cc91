//! What is said to a program that runs, what it says, and how it is told to end.

use std::convert::Infallible;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::time::timeout;
use zeroize::Zeroizing;

/// How long the pipes of a program that has ended are read. All that it has said is in them by then; they stay open
/// for longer only where it has left a process behind that has them too, whose words nobody asked for.
const LEFT_OPEN: Duration = Duration::from_secs(1);

/// Where the output of one stream goes.
pub(super) struct Sink<'a> {
    pub(super) into: &'a mut Vec<u8>,
    pub(super) limit: u64,
    pub(super) also: Option<tokio::sync::mpsc::UnboundedSender<Vec<u8>>>,
}

/// The ends of a program's pipes that are ours.
pub(super) struct Pipes {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Pipes {
    pub(super) fn of(child: &mut Child) -> Self {
        Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
        }
    }
}

/// How it ended; `None` if it had not when `expiry` came. What it has left in its pipes is read beyond that.
pub(super) async fn talk(
    child: &mut Child,
    pipes: &mut Pipes,
    input: Zeroizing<Vec<u8>>,
    out: Sink<'_>,
    err: Sink<'_>,
    expiry: impl Future<Output = ()>,
) -> std::io::Result<Option<ExitStatus>> {
    let stdin = pipes.stdin.take();
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
    let said = async {
        tokio::try_join!(
            write,
            collect(pipes.stdout.as_mut(), out),
            collect(pipes.stderr.as_mut(), err)
        )
    };
    tokio::pin!(said, expiry);
    let mut all_said = false;
    let status = loop {
        tokio::select! {
            biased;
            said = &mut said, if !all_said => {
                said?;
                all_said = true;
            }
            status = child.wait() => break status?,
            () = &mut expiry => return Ok(None),
        }
    };
    if !all_said {
        match timeout(LEFT_OPEN, said).await {
            Ok(said) => drop(said?),
            Err(_others_have_its_pipes) => {}
        }
    }
    Ok(Some(status))
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

/// SIGTERM, `grace` to end by itself, SIGKILL. What it still says is read meanwhile, and lost: it ends neither by a
/// pipe that is closed nor waits for one that is full.
pub(super) async fn end(
    child: &mut Child,
    pipes: &mut Pipes,
    grace: Duration,
) -> Option<ExitStatus> {
    let Pipes { stdout, stderr, .. } = pipes;
    tokio::select! {
        status = told_to_end(child, grace) => status,
        never = drained(stdout.as_mut(), stderr.as_mut()) => match never {},
    }
}

async fn told_to_end(child: &mut Child, grace: Duration) -> Option<ExitStatus> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // The pid is ours until `wait` reaps it, so it cannot have been reused.
        let _gone = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
    if timeout(grace, child.wait()).await.is_err() {
        let _gone = child.kill().await;
    }
    child.wait().await.ok()
}

/// Reads for as long as it is polled: the streams may be others' by now, who do not end.
async fn drained(
    stdout: Option<impl AsyncRead + Unpin>,
    stderr: Option<impl AsyncRead + Unpin>,
) -> Infallible {
    let _read = tokio::join!(drain(stdout), drain(stderr));
    std::future::pending().await
}

async fn drain(stream: Option<impl AsyncRead + Unpin>) {
    if let Some(mut stream) = stream {
        let _broken = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
}
