//! Asks an NBD server for an export, so that what QEMU could not use is said before anything is made.
//!
//! The fixed newstyle handshake of the protocol (`doc/proto.md` of the NBD project), as far as it goes without
//! using the export: `NBD_OPT_INFO`, then `NBD_OPT_ABORT`. A server that serves one client and then ends
//! (`qemu-nbd` without `--persistent`) does not count this as one. Where TLS is wanted only the greeting is
//! heard; the rest is between QEMU and the server.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::blocking::file_call;
use crate::config::{NbdLocation, NbdServer, ServerAddress};
use crate::error::{Coded, ErrorCode};
use crate::types::ByteSize;

/// For everything together: name, connection, answer.
const DEADLINE: Duration = Duration::from_secs(10);

const GREETING: u64 = 0x4e42_444d_4147_4943;
const NEWSTYLE: u64 = 0x4948_4156_454f_5054;
const OLDSTYLE: u64 = 0x0000_4202_8186_1253;
const REPLY: u64 = 0x0003_e889_0455_65a9;
/// `NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES`.
const CLIENT_FLAGS: u32 = 0b11;
const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
const REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
const REP_ERR_BLOCK_SIZE_REQD: u32 = (1 << 31) + 8;
const INFO_EXPORT: u16 = 0;
const FLAG_READ_ONLY: u16 = 1 << 1;
/// No answer to our question comes near.
const LONGEST_REPLY: u32 = 64 << 10;
const MOST_REPLIES: usize = 64;

/// What a server says of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// The disk's size.
    pub size: ByteSize,
    /// Nobody may write to it.
    pub read_only: bool,
}

/// Why an export cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum NbdError {
    #[error("the NBD server cannot be reached")]
    Unreachable { source: io::Error },
    #[error("the NBD server did not answer within {DEADLINE:?}")]
    Silent,
    #[error("what listens there is no NBD server")]
    NotNbd,
    #[error("the NBD server has no export {export:?}")]
    NoExport { export: String },
    #[error("the NBD server demands TLS, and the location has none")]
    TlsRequired,
    #[error("the NBD server refuses the export {export:?} (reply {reply:#x})")]
    Refused { export: String, reply: u32 },
}

impl Coded for NbdError {
    fn code(&self) -> ErrorCode {
        ErrorCode::DiskError
    }
}

/// What the server says of the export; nothing where it cannot be asked without using it.
pub async fn ask(location: &NbdLocation) -> Result<Option<Export>, NbdError> {
    let asked = async {
        match &location.server {
            NbdServer::Inet(server) => talk(connect(server).await?, location).await,
            NbdServer::Unix(path) => {
                let stream = UnixStream::connect(path.as_path()).await;
                talk(stream.map_err(unreachable)?, location).await
            }
        }
    };
    timeout(DEADLINE, asked)
        .await
        .map_err(|_elapsed| NbdError::Silent)?
}

async fn connect(server: &ServerAddress) -> Result<TcpStream, NbdError> {
    let (host, port) = (server.host.to_string(), server.port);
    let addresses = file_call(move || {
        let addresses = (host.as_str(), port).to_socket_addrs()?;
        Ok(addresses.collect::<Vec<SocketAddr>>())
    });
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses.await.map_err(unreachable)? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(unreachable(last))
}

fn unreachable(source: io::Error) -> NbdError {
    NbdError::Unreachable { source }
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    location: &NbdLocation,
) -> Result<Option<Export>, NbdError> {
    // Whoever hangs up in the middle speaks another protocol.
    let ended = |_error: io::Error| NbdError::NotNbd;
    if stream.read_u64().await.map_err(ended)? != GREETING {
        return Err(NbdError::NotNbd);
    }
    match stream.read_u64().await.map_err(ended)? {
        NEWSTYLE => {}
        // It has one export and no name for it.
        OLDSTYLE => return Ok(None),
        _ => return Err(NbdError::NotNbd),
    }
    let _handshake_flags = stream.read_u16().await.map_err(ended)?;
    if location.tls.is_some() {
        return Ok(None);
    }
    let export = location.export.as_str();
    stream.write_all(&question(export)).await.map_err(ended)?;
    let answer = answer(&mut stream, export).await;
    // It may have hung up, having refused.
    let _said = stream.write_all(&option(OPT_ABORT, &[])).await;
    answer
}

fn question(export: &str) -> Vec<u8> {
    let mut data = length(export).to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    // No further information is asked for.
    data.extend(0_u16.to_be_bytes());
    let mut bytes = CLIENT_FLAGS.to_be_bytes().to_vec();
    bytes.extend(option(OPT_INFO, &data));
    bytes
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = NEWSTYLE.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(length(data).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Names of exports are bounded where they are read.
fn length(bytes: impl AsRef<[u8]>) -> u32 {
    u32::try_from(bytes.as_ref().len()).unwrap_or(u32::MAX)
}

async fn answer(
    stream: &mut (impl AsyncRead + Unpin),
    export: &str,
) -> Result<Option<Export>, NbdError> {
    let mut told = None;
    for _ in 0..MOST_REPLIES {
        let (kind, data) = reply(stream).await.ok_or(NbdError::NotNbd)?;
        let export = || export.to_owned();
        match kind {
            REP_INFO => told = export_info(&data).or(told),
            REP_ACK => return Ok(told),
            REP_ERR_UNSUP | REP_ERR_BLOCK_SIZE_REQD => return Ok(None),
            REP_ERR_TLS_REQD => return Err(NbdError::TlsRequired),
            REP_ERR_UNKNOWN => return Err(NbdError::NoExport { export: export() }),
            reply => {
                let export = export();
                return Err(NbdError::Refused { export, reply });
            }
        }
    }
    Err(NbdError::NotNbd)
}

async fn reply(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u32, Vec<u8>)> {
    let (magic, option) = (stream.read_u64().await.ok()?, stream.read_u32().await.ok()?);
    let (kind, length) = (stream.read_u32().await.ok()?, stream.read_u32().await.ok()?);
    if magic != REPLY || option != OPT_INFO || length > LONGEST_REPLY {
        return None;
    }
    let mut data = vec![0; usize::try_from(length).ok()?];
    stream.read_exact(&mut data).await.ok()?;
    Some((kind, data))
}

fn export_info(data: &[u8]) -> Option<Export> {
    let (kind, rest) = data.split_first_chunk()?;
    let (size, rest) = rest.split_first_chunk()?;
    let (flags, _) = rest.split_first_chunk()?;
    (u16::from_be_bytes(*kind) == INFO_EXPORT).then(|| Export {
        size: ByteSize::bytes(u64::from_be_bytes(*size)),
        read_only: u16::from_be_bytes(*flags) & FLAG_READ_ONLY != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExportName;
    use crate::types::HostPath;

    fn location(tls: bool) -> NbdLocation {
        let path = HostPath::parse("/run/x").unwrap();
        NbdLocation {
            server: NbdServer::Unix(path.clone()),
            export: ExportName::parse("e").unwrap(),
            tls: tls.then_some(crate::config::NbdTls {
                credentials: path,
                hostname: None,
            }),
            reconnect_delay: 0,
        }
    }

    fn greeting() -> Vec<u8> {
        let mut bytes = GREETING.to_be_bytes().to_vec();
        bytes.extend(NEWSTYLE.to_be_bytes());
        bytes.extend(3_u16.to_be_bytes());
        bytes
    }

    fn replies(all: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = greeting();
        for (kind, data) in all {
            bytes.extend(REPLY.to_be_bytes());
            bytes.extend(OPT_INFO.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend(length(data).to_be_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    async fn heard(said: &[u8], tls: bool) -> Result<Option<Export>, NbdError> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(said).await.unwrap();
        // Its end is closed for reading only once we are done.
        theirs.shutdown().await.unwrap();
        talk(ours, &location(tls)).await
    }

    #[tokio::test]
    async fn a_server_is_believed_only_what_makes_sense() {
        let mut export = vec![0, 0];
        export.extend((7_u64 << 20).to_be_bytes());
        export.extend(0b11_u16.to_be_bytes());
        let told = heard(&replies(&[(REP_INFO, &export), (REP_ACK, &[])]), false).await;
        let size = ByteSize::bytes(7 << 20);
        let read_only = true;
        assert_eq!(told.unwrap(), Some(Export { size, read_only }));
        assert_eq!(heard(&greeting(), true).await.unwrap(), None);
        let unknown = heard(&replies(&[(REP_ERR_UNKNOWN, b"no")]), false).await;
        assert!(matches!(unknown, Err(NbdError::NoExport { .. })));
        let tls = heard(&replies(&[(REP_ERR_TLS_REQD, &[])]), false).await;
        assert!(matches!(tls, Err(NbdError::TlsRequired)));
        let mut endless = replies(&[(REP_INFO, &[])]);
        let at = endless.len() - 4;
        endless[at..].copy_from_slice(&u32::MAX.to_be_bytes());
        for nonsense in [
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            Vec::new(),
            endless,
        ] {
            let heard = heard(&nonsense, false).await;
            assert!(matches!(heard, Err(NbdError::NotNbd)), "{heard:?}");
        }
    }

    #[test]
    fn the_question_is_as_the_protocol_has_it() {
        let mut wanted = vec![0, 0, 0, 3];
        wanted.extend(b"IHAVEOPT\0\0\0\x06\0\0\0\x07\0\0\0\x01e\0\0");
        assert_eq!(question("e"), wanted);
    }
}
