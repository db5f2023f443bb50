//! Reaching a server: name lookup, TCP and Unix sockets, keepalive, and the negotiation that turns a socket into TLS.
//! Knows nothing of PostgreSQL's messages beyond the one-byte answer to an SSLRequest.

use super::conninfo::{Host, Keepalive};
use super::tls;
use crate::error::{Error, Result};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;

/// Most addresses of one host name that are tried.
const MAX_ADDRESSES: usize = 16;

/// A socket, with or without TLS.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> ByteStream for T {}

/// One address that can be connected to.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(formatter),
            Address::Unix(path) => path.display().fmt(formatter),
        }
    }
}

/// What TLS an attempt uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsUse {
    /// Not asked for.
    Never,
    /// Asked for; without it the connection goes on in clear.
    IfOffered,
    /// Asked for; without it the attempt fails.
    Required,
}

/// An open connection, nothing sent on it yet but TLS.
pub(super) struct Opened {
    pub stream: Box<dyn ByteStream>,
    pub is_encrypted: bool,
    /// Hash of the server's certificate, for SCRAM's channel binding.
    pub server_end_point: Option<Vec<u8>>,
}

/// How the TLS part of an attempt goes; the same for a later cancel request.
#[derive(Clone)]
pub(super) struct TlsPlan {
    pub connector: TlsConnector,
    /// Verified against the certificate.
    pub host_name: String,
    /// TLS from the first byte, and the server must agree on the protocol's name.
    pub is_direct: bool,
}

/// The addresses of a host, in the order to try.
///
/// # Errors
/// `Connect`: the name cannot be looked up.
pub(super) async fn resolve(host: &Host) -> Result<Vec<Address>> {
    if let Some(path) = host.socket_path() {
        return Ok(vec![Address::Unix(path)]);
    }
    let Host::Tcp {
        name,
        address,
        port,
    } = host
    else {
        return Ok(Vec::new());
    };
    if let Some(address) = address {
        return Ok(vec![Address::Tcp(SocketAddr::new(*address, *port))]);
    }
    let failed = |source| Error::Connect {
        address: host.to_string(),
        source,
    };
    let found = lookup_host((name.as_str(), *port)).await.map_err(failed)?;
    let addresses: Vec<_> = found.take(MAX_ADDRESSES).map(Address::Tcp).collect();
    if addresses.is_empty() {
        return Err(failed(io::Error::other("the name has no address")));
    }
    Ok(addresses)
}

/// Connects, and makes TLS as planned. Over Unix sockets there is never TLS, as in libpq.
///
/// # Errors
/// `Connect`, `Tls` or `ConnectionLost`.
pub(super) async fn open(
    address: &Address,
    keepalive: &Keepalive,
    tls_use: TlsUse,
    plan: Option<&TlsPlan>,
) -> Result<Opened> {
    let connect_failed = |source| Error::Connect {
        address: address.to_string(),
        source,
    };
    let clear = |stream| Opened {
        stream,
        is_encrypted: false,
        server_end_point: None,
    };
    let mut socket = match address {
        Address::Unix(path) => {
            let socket = UnixStream::connect(path).await.map_err(connect_failed)?;
            return Ok(clear(Box::new(socket)));
        }
        Address::Tcp(address) => TcpStream::connect(address).await.map_err(connect_failed)?,
    };
    socket.set_nodelay(true).map_err(connect_failed)?;
    set_keepalive(&socket, keepalive).map_err(connect_failed)?;
    let Some(plan) = plan.filter(|_| tls_use != TlsUse::Never) else {
        return Ok(clear(Box::new(socket)));
    };
    let tls_failed = |reason: &str, source| Error::Tls {
        address: address.to_string(),
        reason: reason.to_owned(),
        source,
    };
    if !plan.is_direct && !ask_for_tls(&mut socket).await? {
        return match tls_use {
            TlsUse::Required => Err(tls_failed("the server does not offer TLS", None)),
            _ => Ok(clear(Box::new(socket))),
        };
    }
    let name = tls::server_name(&plan.host_name)?;
    let stream = plan
        .connector
        .connect(name, socket)
        .await
        .map_err(|error| tls_failed("handshake", Some(error)))?;
    let (_, session) = stream.get_ref();
    if plan.is_direct && session.alpn_protocol() != Some(tls::ALPN) {
        return Err(tls_failed(
            "the server did not agree on the protocol \"postgresql\", which sslnegotiation=direct needs",
            None,
        ));
    }
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let server_end_point = certificate.and_then(|certificate| tls::server_end_point(certificate));
    Ok(Opened {
        stream: Box::new(stream),
        is_encrypted: true,
        server_end_point,
    })
}

/// Sends an SSLRequest. Exactly one byte is read, so nothing sent in clear before the handshake can slip into the session.
async fn ask_for_tls(socket: &mut TcpStream) -> Result<bool> {
    let lost = |source| Error::ConnectionLost {
        during: "ask for TLS".to_owned(),
        source,
    };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket
        .write_all(&request)
        .await
        .map_err(|e| lost(Some(e)))?;
    match socket.read_u8().await {
        Ok(b'S') => Ok(true),
        Ok(b'N') => Ok(false),
        // An error sent before TLS may be anybody's: its words are not shown.
        Ok(b'E') => Err(lost(Some(io::Error::other(
            "the server answered with an error",
        )))),
        Ok(other) => Err(Error::Protocol {
            during: "ask for TLS".to_owned(),
            reason: format!(
                "answer {:?}; is this a PostgreSQL server?",
                char::from(other)
            ),
        }),
        Err(error) => Err(lost(Some(error))),
    }
}

fn set_keepalive(socket: &TcpStream, keepalive: &Keepalive) -> io::Result<()> {
    if let Some(timeout) = keepalive.user_timeout {
        let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(socket, millis)?;
    }
    if !keepalive.enabled {
        return Ok(());
    }
    sockopt::set_socket_keepalive(socket, true)?;
    if let Some(idle) = keepalive.idle {
        sockopt::set_tcp_keepidle(socket, idle)?;
    }
    if let Some(interval) = keepalive.interval {
        sockopt::set_tcp_keepintvl(socket, interval)?;
    }
    if let Some(count) = keepalive.count {
        sockopt::set_tcp_keepcnt(socket, count)?;
    }
    Ok(())
}
