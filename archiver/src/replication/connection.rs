//! One connection to a server: its state, the receive loop, errors of the server, the end. How it comes about is in `connect`; commands
//! on it are in `query`, `commands`, `stream` and `base_backup`.

use super::cancel::CancelToken;
use super::conninfo::{Host, TargetSession};
use super::framing::{Framed, Incoming, parse_server_error};
use super::message::StatusUpdate;
use super::session::StreamSession;
use super::{Deadlines, MAX_PARAMETERS, Mode};
use crate::error::{Error, Result, ServerError};
use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use wal_format::Lsn;

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
    /// When a sign of life was asked for since then.
    pub(super) pinged: Option<Instant>,
    mode: Mode,
    parameters: BTreeMap<String, String>,
    server_major: u32,
    cancel: CancelToken,
    host: Host,
    /// Last position reported as flushed; 0 for none yet.
    pub(super) reported: Arc<AtomicU64>,
}

/// What is known once a connection is ready.
pub(super) struct Established {
    pub framed: Framed,
    pub mode: Mode,
    pub deadlines: Deadlines,
    pub parameters: BTreeMap<String, String>,
    pub server_major: u32,
    pub cancel: CancelToken,
    pub host: Host,
}

/// How far the server was told that everything is stored, for whoever works beside the connection.
#[derive(Clone, Debug)]
pub struct ReportedFlush(Arc<AtomicU64>);

impl ReportedFlush {
    /// Last byte + 1; `0/0` until something was reported.
    pub fn get(&self) -> Lsn {
        Lsn::new(self.0.load(Ordering::Relaxed))
    }
}

impl Connection {
    pub(super) fn new(established: Established) -> Connection {
        Connection {
            framed: established.framed,
            state: State::Ready,
            deadlines: established.deadlines,
            stream: StreamSession::default(),
            last_heard: Instant::now(),
            last_status: None,
            pinged: None,
            mode: established.mode,
            parameters: established.parameters,
            server_major: established.server_major,
            cancel: established.cancel,
            host: established.host,
            reported: Arc::default(),
        }
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
        self.cancel.address()
    }

    /// Which of the listed servers it is connected to.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// How far the server was told that everything is stored; follows while it streams.
    pub fn reported_flush(&self) -> ReportedFlush {
        ReportedFlush(Arc::clone(&self.reported))
    }

    /// Whether TLS is in use.
    pub fn is_encrypted(&self) -> bool {
        self.cancel.is_encrypted()
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

    /// Whether it is the kind of server that is wanted.
    pub(super) fn check_target(&self, target: TargetSession) -> Result<()> {
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
