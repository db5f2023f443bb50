//! One connection to a server: which address and how much TLS is tried in which order, the receive loop, cancel requests, the end.
//! Commands on it live in `query`, `commands`, `stream` and `base_backup`.

use super::authentication::{self, BackendKey, Transport};
use super::conninfo::{ChannelBinding, ConnectionInfo, Host, SslMode, TargetSession};
use super::framing::{Framed, Incoming, parse_server_error};
use super::message::StatusUpdate;
use super::session::StreamSession;
use super::tls;
use super::transport::{self, Address, TlsPlan, TlsUse};
use super::{Deadlines, MAX_PARAMETERS, Mode};
use crate::error::{Error, ErrorClass, Result, ServerError, ServerErrorKind};
use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

/// What a connection is doing. A command that was dropped half-way leaves `Busy` behind, so nothing reads another command's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    Busy,
    Streaming,
    BackingUp,
    Closed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Busy => "in the middle of an abandoned command",
            State::Streaming => "streaming",
            State::BackingUp => "taking a base backup",
            State::Closed => "closed",
        }
    }
}

/// A connection. Dropping it closes the socket without a word, which a server treats like a crashed client.
pub struct Connection {
    pub(super) framed: Framed,
    pub(super) state: State,
    pub(super) deadlines: Deadlines,
    pub(super) stream: StreamSession,
    /// When the last byte arrived.
    pub(super) last_heard: Instant,
    /// What was last reported while streaming.
    pub(super) last_status: Option<StatusUpdate>,
    /// A sign of life was asked for since then.
    pub(super) is_pinged: bool,
    mode: Mode,
    parameters: BTreeMap<String, String>,
    server_major: u32,
    cancel: CancelToken,
}

impl Connection {
    /// Connects and logs in, trying the listed servers in order, with the default [`Deadlines`].
    ///
    /// # Errors
    /// Class `Config`: settings, files, certificates, authentication. Class `Retry`: nobody answers. Several servers failing give `NoServer`.
    pub async fn connect(info: &ConnectionInfo, mode: Mode) -> Result<Connection> {
        Connection::connect_with(info, mode, Deadlines::default()).await
    }

    /// Connects with other deadlines; `connect_timeout` of the settings wins over theirs.
    ///
    /// # Errors
    /// As [`Connection::connect`].
    pub async fn connect_with(
        info: &ConnectionInfo,
        mode: Mode,
        deadlines: Deadlines,
    ) -> Result<Connection> {
        let mut deadlines = deadlines;
        deadlines.connect = info.connect_timeout.unwrap_or(deadlines.connect);
        let connector = tls::connector(info)?;
        let mut failures = Vec::new();
        let passes: &[TargetSession] = match info.target_session {
            TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
            ref other => std::slice::from_ref(other),
        };
        for target in passes {
            for host in &info.hosts {
                let plan = connector.clone().map(|connector| TlsPlan {
                    connector,
                    host_name: match host {
                        Host::Tcp { name, .. } => name.clone(),
                        Host::Unix { .. } => String::new(),
                    },
                    is_direct: tls::needs_alpn(info),
                });
                let attempt = Attempt {
                    info,
                    mode,
                    deadlines,
                    host,
                    plan,
                };
                match attempt.connect(*target).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) if decides(&error) => return Err(error),
                    Err(error) => failures.push(error),
                }
            }
        }
        Err(no_server(&info.hosts, failures))
    }

    /// The server's major version, for example 18.
    pub fn server_major(&self) -> u32 {
        self.server_major
    }

    /// A parameter the server reports on its own: `server_version`, `in_hot_standby`, `TimeZone`, ….
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// How it was connected.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The address it is connected to.
    pub fn address(&self) -> String {
        self.cancel.address.to_string()
    }

    /// Whether TLS is in use.
    pub fn is_encrypted(&self) -> bool {
        self.cancel.plan.is_some()
    }

    /// What ends this connection's running command from elsewhere.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// How long it waits; may be changed between commands.
    pub fn deadlines_mut(&mut self) -> &mut Deadlines {
        &mut self.deadlines
    }

    /// Says goodbye and closes the socket.
    ///
    /// # Errors
    /// `ConnectionLost` or `Timeout`; the connection is gone either way.
    pub async fn close(mut self) -> Result<()> {
        self.queue("close", |out| {
            frontend::terminate(out);
            Ok(())
        })?;
        let deadline = self.deadlines.reply;
        let shutdown = async {
            self.framed.flush().await?;
            self.framed.shutdown().await
        };
        within("close", deadline, shutdown).await
    }

    /// Begins a command: the connection must be idle.
    pub(super) async fn send_query(&mut self, during: &str, sql: &str) -> Result<()> {
        self.expect_state(during, State::Ready)?;
        self.queue(during, |out| frontend::query(sql, out))?;
        self.state = State::Busy;
        self.flush(during).await
    }

    pub(super) fn expect_state(&self, during: &str, expected: State) -> Result<()> {
        match self.state == expected {
            true => Ok(()),
            false => Err(Error::WrongState {
                during: during.to_owned(),
                state: self.state.name(),
            }),
        }
    }

    pub(super) fn queue(
        &mut self,
        during: &str,
        encode: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<()> {
        self.framed
            .queue(encode)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => lost(during, Some(error)),
                _ => protocol(during, error.to_string()),
            })
    }

    pub(super) async fn flush(&mut self, during: &str) -> Result<()> {
        let deadline = self.deadlines.reply;
        let flushed = within(during, deadline, self.framed.flush()).await;
        flushed.inspect_err(|_| self.state = State::Closed)
    }

    /// A message that has already arrived. Parameters and notices are dealt with on the way.
    pub(super) fn take_buffered(&mut self, during: &str) -> Result<Option<Incoming>> {
        loop {
            let message = self.framed.buffered().map_err(|error| {
                self.state = State::Closed;
                protocol(during, error.to_string())
            })?;
            match message {
                Some(Incoming::Message(Message::ParameterStatus(body))) => {
                    if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                        let is_known = self.parameters.contains_key(name);
                        if is_known || self.parameters.len() < MAX_PARAMETERS {
                            self.parameters.insert(name.to_owned(), value.to_owned());
                        }
                    }
                }
                Some(Incoming::Message(Message::NoticeResponse(body))) => {
                    let notice = parse_server_error(body.fields());
                    match notice.severity.as_str() {
                        "WARNING" => tracing::warn!("{notice}"),
                        _ => tracing::info!("{notice}"),
                    }
                }
                Some(Incoming::Message(Message::NotificationResponse(_))) => {}
                other => return Ok(other),
            }
        }
    }

    /// The next message, waiting at most until the deadline for each read. Cancel-safe.
    pub(super) async fn receive(&mut self, during: &str, deadline: Duration) -> Result<Incoming> {
        loop {
            if let Some(message) = self.take_buffered(during)? {
                return Ok(message);
            }
            self.fill(during, deadline).await?;
        }
    }

    /// Reads what has arrived. Cancel-safe.
    pub(super) async fn fill(&mut self, during: &str, deadline: Duration) -> Result<()> {
        let read = within(during, deadline, self.framed.fill()).await;
        let lost_connection = match read {
            Ok(0) => lost(during, None),
            Ok(_) => {
                self.last_heard = Instant::now();
                return Ok(());
            }
            Err(error) => error,
        };
        self.state = State::Closed;
        Err(lost_connection)
    }

    /// As [`Connection::receive`] with the reply deadline, for commands: an error of the server ends the command.
    pub(super) async fn receive_reply(&mut self, during: &str) -> Result<Message> {
        let deadline = self.deadlines.reply;
        match self.receive(during, deadline).await? {
            Incoming::Message(Message::ErrorResponse(body)) => {
                let error = parse_server_error(body.fields());
                Err(self.fail(during, error).await)
            }
            Incoming::Message(message) => Ok(message),
            Incoming::CopyBoth => Err(self.unexpected(during)),
        }
    }

    /// Turns the server's error into ours, after waiting until the server is ready again, so that the connection stays usable.
    pub(super) async fn fail(&mut self, during: &str, error: ServerError) -> Error {
        let is_fatal = error.is_fatal();
        let error = Error::Server {
            during: during.to_owned(),
            source: Box::new(error),
        };
        if is_fatal {
            self.state = State::Closed;
            return error;
        }
        loop {
            match self.receive(during, self.deadlines.reply).await {
                Ok(Incoming::Message(Message::ReadyForQuery(_))) => {
                    self.state = State::Ready;
                    return error;
                }
                Ok(_) => {}
                // What the server said first tells more than how the connection ended.
                Err(_) => {
                    self.state = State::Closed;
                    return error;
                }
            }
        }
    }

    /// An answer that has no place here: the connection cannot be used any more.
    pub(super) fn unexpected(&mut self, during: &str) -> Error {
        self.state = State::Closed;
        protocol(during, "a message that has no place here".to_owned())
    }

    fn check_target(&self, target: TargetSession) -> Result<()> {
        let reported = |name: &str| self.parameter(name) == Some("on");
        let standby = reported("in_hot_standby");
        let read_only = standby || reported("default_transaction_read_only");
        let (fits, wanted) = match target {
            TargetSession::Any | TargetSession::PreferStandby => (true, ""),
            TargetSession::ReadWrite => {
                (!read_only, "the server is read-only, read-write is wanted")
            }
            TargetSession::ReadOnly => (read_only, "the server is not read-only"),
            TargetSession::Primary => (!standby, "the server is a standby, a primary is wanted"),
            TargetSession::Standby => (standby, "the server is not a standby"),
        };
        match fits {
            true => Ok(()),
            false => Err(Error::UnsuitableServer {
                address: self.address(),
                reason: wanted.to_owned(),
            }),
        }
    }
}

/// Whether an error ends the search: another server would only hide that the settings are wrong.
fn decides(error: &Error) -> bool {
    match error.server_kind() {
        Some(ServerErrorKind::AuthenticationFailed | ServerErrorKind::Rejected) => true,
        Some(_) => false,
        None => !matches!(error, Error::Tls { .. }) && error.class() == ErrorClass::Config,
    }
}

fn no_server(hosts: &[Host], mut failures: Vec<Error>) -> Error {
    let Some(last) = failures.pop() else {
        return Error::ConnectionSettings {
            reason: "no host".to_owned(),
        };
    };
    if failures.is_empty() {
        return last;
    }
    let names: Vec<String> = hosts.iter().map(Host::to_string).collect();
    let others: Vec<String> = failures.iter().map(describe).collect();
    Error::NoServer {
        addresses: names.join(", "),
        others: others.join("; "),
        source: Box::new(last),
    }
}

/// An error and its causes in one line.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// One listed server, with everything needed to try it.
struct Attempt<'a> {
    info: &'a ConnectionInfo,
    mode: Mode,
    deadlines: Deadlines,
    host: &'a Host,
    plan: Option<TlsPlan>,
}

impl Attempt<'_> {
    /// Tries every address of the host.
    async fn connect(&self, target: TargetSession) -> Result<Connection> {
        let during = format!("connect to {}", self.host);
        let resolve = async { Ok(transport::resolve(self.host).await) };
        let addresses = within(&during, self.deadlines.connect, resolve).await??;
        let mut last = None;
        for address in addresses {
            match self.connect_address(&address).await {
                Ok(connection) => {
                    connection.check_target(target)?;
                    return Ok(connection);
                }
                Err(error) if decides(&error) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| no_server(&[], Vec::new())))
    }

    /// `allow` tries again with TLS if the server rejects a clear connection, `prefer` without if TLS fails or is rejected.
    /// A wrong password is never tried twice.
    async fn connect_address(&self, address: &Address) -> Result<Connection> {
        let second = match (self.info.ssl_mode, address) {
            (_, Address::Unix(_)) | (SslMode::Disable, _) => {
                return self.log_in(address, TlsUse::Never).await;
            }
            (SslMode::Allow, _) => {
                let first = self.log_in(address, TlsUse::Never).await;
                match first {
                    Err(error) if error.server_kind() == Some(ServerErrorKind::Rejected) => {
                        TlsUse::Required
                    }
                    done => return done,
                }
            }
            (SslMode::Prefer, _) => {
                let first = self.log_in(address, TlsUse::IfOffered).await;
                match first {
                    Err(error)
                        if self.info.channel_binding != ChannelBinding::Require
                            && (matches!(error, Error::Tls { .. })
                                || error.server_kind() == Some(ServerErrorKind::Rejected)) =>
                    {
                        TlsUse::Never
                    }
                    done => return done,
                }
            }
            (SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull, _) => {
                return self.log_in(address, TlsUse::Required).await;
            }
        };
        self.log_in(address, second).await
    }

    async fn log_in(&self, address: &Address, tls_use: TlsUse) -> Result<Connection> {
        let during = format!("connect to {address}");
        let attempt = async { Ok(self.try_log_in(address, tls_use).await) };
        within(&during, self.deadlines.connect, attempt).await?
    }

    async fn try_log_in(&self, address: &Address, tls_use: TlsUse) -> Result<Connection> {
        let keepalive = &self.info.keepalive;
        let opened = transport::open(address, keepalive, tls_use, self.plan.as_ref()).await?;
        let mut framed = Framed::new(opened.stream);
        let transport = Transport {
            host: self.host,
            is_encrypted: opened.is_encrypted,
            server_end_point: opened.server_end_point,
        };
        let welcome = authentication::log_in(&mut framed, self.info, self.mode, transport).await?;
        let version = welcome.parameters.get("server_version");
        let server_major = version
            .and_then(|text| parse_major(text))
            .ok_or_else(|| protocol("log in", format!("server_version is {version:?}")))?;
        Ok(Connection {
            framed,
            state: State::Ready,
            deadlines: self.deadlines,
            stream: StreamSession::default(),
            last_heard: Instant::now(),
            last_status: None,
            is_pinged: false,
            mode: self.mode,
            parameters: welcome.parameters,
            server_major,
            cancel: CancelToken {
                address: address.clone(),
                plan: self.plan.clone().filter(|_| opened.is_encrypted),
                key: welcome.key,
                keepalive: *keepalive,
                deadline: self.deadlines.connect,
            },
        })
    }
}

/// `18.6`, `18beta1`, `15.14 (Debian …)`.
fn parse_major(version: &str) -> Option<u32> {
    let end = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version.get(..end)?.parse().ok()
}

/// Ends the running command of one connection, over another one. Harmless if nothing runs.
#[derive(Clone)]
pub struct CancelToken {
    address: Address,
    plan: Option<TlsPlan>,
    key: Option<BackendKey>,
    keepalive: super::conninfo::Keepalive,
    deadline: Duration,
}

impl CancelToken {
    /// Asks the server; the connection itself then receives an error of kind `Cancelled`, unless it was done already.
    ///
    /// # Errors
    /// `Connect`, `Tls`, `Timeout`, `ConnectionLost`.
    pub async fn cancel(&self) -> Result<()> {
        const DURING: &str = "cancel request";
        let Some(key) = self.key else {
            return Ok(());
        };
        let tls_use = match self.plan {
            Some(_) => TlsUse::Required,
            None => TlsUse::Never,
        };
        let request = async {
            let opened =
                transport::open(&self.address, &self.keepalive, tls_use, self.plan.as_ref()).await;
            let mut stream = match opened {
                Ok(opened) => opened.stream,
                Err(error) => return Ok(Err(error)),
            };
            let mut message = BytesMut::new();
            frontend::cancel_request(key.process_id, key.secret, &mut message);
            stream.write_all(&message).await?;
            stream.flush().await?;
            // The server closes the connection when it has passed the request on; how it closes does not matter.
            let mut byte = [0];
            match stream.read(&mut byte).await {
                Ok(_) | Err(_) => Ok(Ok(())),
            }
        };
        within(DURING, self.deadline, request).await?
    }
}

/// Runs one piece of I/O under a deadline.
pub(super) async fn within<T>(
    during: &str,
    deadline: Duration,
    io: impl Future<Output = io::Result<T>>,
) -> Result<T> {
    match timeout(deadline, io).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(lost(during, Some(error))),
        Err(_) => Err(Error::Timeout {
            during: during.to_owned(),
            after: deadline,
        }),
    }
}

pub(super) fn lost(during: &str, source: Option<io::Error>) -> Error {
    Error::ConnectionLost {
        during: during.to_owned(),
        source,
    }
}

pub(super) fn protocol(during: &str, reason: String) -> Error {
    Error::Protocol {
        during: during.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_read_from_every_spelling_of_the_version() {
        let check = |text: &str, major: Option<u32>| assert_eq!(parse_major(text), major, "{text}");
        check("18.6", Some(18));
        check("15.14 (Debian 15.14-0+deb12u1)", Some(15));
        check("18beta1", Some(18));
        check("19devel", Some(19));
        check("x", None);
        check("", None);
    }
}
