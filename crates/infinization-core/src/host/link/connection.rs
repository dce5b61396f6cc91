//! One rtnetlink socket, and one question over it.
//!
//! The kernel carries a request out inside `send`: deleting a link takes 10 to 20 ms there. The
//! socket therefore lives on a thread of its own and never holds up a worker of the caller's
//! runtime. The thread inherits the network namespace of the thread that opened the connection,
//! and ends when the [`Connection`] is dropped.

use std::io;
use std::thread::{self, JoinHandle};

use futures_util::{Stream, StreamExt};
use rtnetlink::packet_core::{NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::Refusal;

/// An open rtnetlink socket.
#[derive(Debug)]
pub(super) struct Connection {
    handle: rtnetlink::Handle,
    thread: JoinHandle<()>,
    _end: DropGuard,
}

impl Connection {
    pub(super) async fn open() -> io::Result<Self> {
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let (ready, opened) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("netlink".to_owned())
            .spawn(move || serve(ready, end))?;
        let handle = opened.await.map_err(io::Error::other)??;
        Ok(Self {
            handle,
            thread,
            _end: guard,
        })
    }

    /// Whether the socket is gone, so that a new connection is needed.
    pub(super) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    pub(super) fn handle(&self) -> rtnetlink::Handle {
        self.handle.clone()
    }
}

fn serve(ready: oneshot::Sender<io::Result<rtnetlink::Handle>>, end: CancellationToken) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async move {
        let (connection, handle, messages) = match open_socket() {
            Ok(opened) => opened,
            Err(error) => return drop(ready.send(Err(error))),
        };
        drop(ready.send(Ok(handle)));
        // Requests that are pending when the socket goes see their stream end without an answer.
        tokio::select! {
            () = connection => {}
            () = overrun(messages) => {}
            () = end.cancelled() => {}
        }
    });
}

type Opened = (
    rtnetlink::proto::Connection<RouteNetlinkMessage>,
    rtnetlink::Handle,
    Messages,
);
/// What the kernel says without being asked.
pub(super) type Messages =
    std::pin::Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send>>;

fn open_socket() -> io::Result<Opened> {
    let (mut connection, handle, messages) = rtnetlink::new_connection()?;
    // Acknowledgements reach us, so that a stream that just ends is known not to be one.
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    let socket = connection.socket_mut().socket_mut();
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    Ok((connection, handle, Box::pin(messages.map(without_sender))))
}

pub(super) fn without_sender(
    (message, _kernel): (NetlinkMessage<RouteNetlinkMessage>, SocketAddr),
) -> NetlinkMessage<RouteNetlinkMessage> {
    message
}

/// Ends when the kernel dropped messages (ENOBUFS): an answer may have been among them.
async fn overrun(mut messages: Messages) {
    while let Some(message) = messages.next().await {
        if matches!(message.payload, NetlinkPayload::Overrun(_)) {
            return;
        }
    }
}

/// Puts one request and gathers its answers up to the kernel's acknowledgement or end of dump.
/// `flags` must hold `NLM_F_ACK` or `NLM_F_DUMP`.
pub(super) async fn ask(
    mut handle: rtnetlink::Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    let answers = handle.request(request).map_err(|_closed| Refusal::Lost)?;
    gather(answers).await
}

async fn gather(
    answers: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
    let mut answers = std::pin::pin!(answers);
    let (mut gathered, mut torn) = (Vec::new(), false);
    while let Some(answer) = answers.next().await {
        torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
        match answer.payload {
            NetlinkPayload::InnerMessage(message) => gathered.push(message),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(Refusal::from_message(&error));
            }
            NetlinkPayload::Done(done) if done.code != 0 => {
                return Err(Refusal::from_errno(done.code));
            }
            // Links came or went during the dump: it must be asked for again.
            NetlinkPayload::Done(_) if torn => return Err(Refusal::from_errno(libc::EINTR)),
            NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(gathered),
            _ => {}
        }
    }
    Err(Refusal::Lost)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use super::*;
    use nix::errno::Errno;
    use rtnetlink::packet_core::{DoneMessage, ErrorMessage, NetlinkHeader};
    use rtnetlink::packet_route::link::LinkMessage;

    type Payload = NetlinkPayload<RouteNetlinkMessage>;

    fn link() -> Payload {
        Payload::InnerMessage(RouteNetlinkMessage::NewLink(LinkMessage::default()))
    }

    fn answer(code: i32) -> Payload {
        let mut message = ErrorMessage::default();
        message.code = NonZeroI32::new(code);
        Payload::Error(message)
    }

    async fn gathered(payloads: Vec<Payload>, flags: u16) -> Result<usize, Refusal> {
        let messages = payloads.into_iter().map(|payload| {
            let mut header = NetlinkHeader::default();
            header.flags = flags;
            NetlinkMessage::new(header, payload)
        });
        let all = gather(futures_util::stream::iter(messages)).await?;
        Ok(all.len())
    }

    #[tokio::test]
    async fn only_an_acknowledgement_is_a_success() {
        assert_eq!(gathered(vec![link(), answer(0)], 0).await.unwrap(), 1);
        for unfinished in [vec![], vec![link()]] {
            let refusal = gathered(unfinished, 0).await.unwrap_err();
            assert!(matches!(refusal, Refusal::Lost));
        }
        let refusal = gathered(vec![answer(-17)], 0).await.unwrap_err();
        assert_eq!(refusal.errno(), Some(Errno::EEXIST));
    }

    #[tokio::test]
    async fn f26_a_torn_dump_is_not_a_list() {
        let dump = || vec![link(), link(), Payload::Done(DoneMessage::default())];
        assert_eq!(gathered(dump(), 0).await.unwrap(), 2);
        let refusal = gathered(dump(), NLM_F_DUMP_INTR).await.unwrap_err();
        assert_eq!(refusal.errno(), Some(Errno::EINTR));
    }

    #[tokio::test]
    async fn f26_an_overrun_ends_the_connection() {
        let lost = NetlinkMessage::new(NetlinkHeader::default(), Payload::Overrun(Vec::new()));
        overrun(Box::pin(
            futures_util::stream::iter([lost]).chain(futures_util::stream::pending()),
        ))
        .await;
    }
}
