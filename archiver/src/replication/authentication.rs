//! The start of a connection: startup message, password methods (SCRAM-SHA-256 with or without channel binding, MD5, cleartext over
//! trusted transports), and the parameters the server reports until it is ready. Does not open sockets.

use super::conninfo::{ChannelBinding, ConnectionInfo, Host, Password};
use super::framing::{Framed, Incoming, parse_server_error};
use super::pgpass::{self, REPLICATION_DATABASE};
use super::{MAX_PARAMETERS, Mode};
use crate::error::{Error, Result};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

const DURING: &str = "log in";
const WAL_SENDER_TIMEOUT: &str = "wal_sender_timeout";

/// Names the server process in a cancel request.
#[derive(Clone, Copy)]
pub(super) struct BackendKey {
    pub process_id: i32,
    pub secret: i32,
}

/// What the server said of itself until it was ready.
pub(super) struct Welcome {
    pub parameters: BTreeMap<String, String>,
    pub key: Option<BackendKey>,
}

/// What the transport can do for authentication.
pub(super) struct Transport<'a> {
    pub host: &'a Host,
    pub is_encrypted: bool,
    pub server_end_point: Option<Vec<u8>>,
}

/// Logs in. Deadlines are the caller's.
///
/// # Errors
/// `Server` (wrong password, no pg_hba line, too many connections), `Authentication` (the server asks for what we cannot give),
/// `ConnectionLost`, `Protocol`.
pub(super) async fn log_in(
    framed: &mut Framed,
    info: &ConnectionInfo,
    mode: Mode,
    transport: Transport<'_>,
) -> Result<Welcome> {
    send(framed, |out| {
        let parameters = startup_parameters(info, mode);
        let parameters = parameters.iter().map(|(name, value)| (*name, &**value));
        frontend::startup_message(parameters, out)
    })
    .await?;
    Login {
        framed,
        info,
        mode,
        transport,
    }
    .authenticate()
    .await?;
    framed.authenticated();
    welcome(framed).await
}

fn startup_parameters(info: &ConnectionInfo, mode: Mode) -> Vec<(&'static str, Cow<'_, str>)> {
    let mut parameters = vec![
        ("user", info.user.as_str().into()),
        ("client_encoding", "UTF8".into()),
        ("application_name", info.application_name.as_str().into()),
    ];
    match (mode, &info.database) {
        (Mode::PhysicalReplication, _) => parameters.push(("replication", "true".into())),
        (Mode::Sql, Some(database)) => parameters.push(("database", database.into())),
        (Mode::Sql, None) => {}
    }
    if let Some(options) = &info.options {
        parameters.push(("options", options.into()));
    }
    // The server reads `options` first and would let this win.
    let is_named = info
        .options
        .as_deref()
        .unwrap_or_default()
        .contains(WAL_SENDER_TIMEOUT);
    if let (Mode::PhysicalReplication, Some(timeout), false) =
        (mode, info.wal_sender_timeout, is_named)
    {
        let milliseconds = timeout.as_millis().min(i32::MAX.unsigned_abs().into());
        parameters.push((WAL_SENDER_TIMEOUT, milliseconds.to_string().into()));
    }
    parameters
}

struct Login<'a> {
    framed: &'a mut Framed,
    info: &'a ConnectionInfo,
    mode: Mode,
    transport: Transport<'a>,
}

impl Login<'_> {
    async fn authenticate(&mut self) -> Result<()> {
        match receive(self.framed).await? {
            Message::AuthenticationOk => self.may_skip_channel_binding(),
            Message::AuthenticationCleartextPassword => {
                self.may_skip_channel_binding()?;
                let is_local = matches!(self.transport.host, Host::Unix { .. });
                if !self.transport.is_encrypted && !is_local {
                    return Err(self.refuse(
                        "the server asks for the password in clear over an unencrypted connection; use sslmode=require or scram-sha-256",
                    ));
                }
                let password = self.password()?;
                send(self.framed, |out| {
                    frontend::password_message(password.reveal().as_bytes(), out)
                })
                .await?;
                self.expect_ok().await
            }
            Message::AuthenticationMd5Password(body) => {
                self.may_skip_channel_binding()?;
                let password = self.password()?;
                let user = self.info.user.as_bytes();
                let hash = md5_hash(user, password.reveal().as_bytes(), body.salt());
                send(self.framed, |out| frontend::password_message(hash.as_bytes(), out)).await?;
                self.expect_ok().await
            }
            Message::AuthenticationSasl(body) => self.scram(&body).await,
            Message::AuthenticationGss | Message::AuthenticationSspi => Err(self.refuse(
                "the server asks for GSSAPI or SSPI, which is not supported; use scram-sha-256 or a certificate",
            )),
            _ => Err(unexpected()),
        }
    }

    async fn scram(&mut self, body: &AuthenticationSaslBody) -> Result<()> {
        let (mut has_scram, mut has_plus) = (false, false);
        let mut mechanisms = body.mechanisms();
        while let Some(mechanism) = mechanisms.next().map_err(broken)? {
            has_scram |= mechanism == SCRAM_SHA_256;
            has_plus |= mechanism == SCRAM_SHA_256_PLUS;
        }
        let end_point = self
            .transport
            .server_end_point
            .take()
            .filter(|_| self.info.channel_binding != ChannelBinding::Disable);
        let (binding, mechanism) = match (has_plus, has_scram, end_point) {
            (true, _, Some(hash)) => (
                sasl::ChannelBinding::tls_server_end_point(hash),
                SCRAM_SHA_256_PLUS,
            ),
            // "We could, you did not offer it": lets the server notice if somebody removed its offer.
            (false, true, Some(_)) => (sasl::ChannelBinding::unrequested(), SCRAM_SHA_256),
            (_, true, None) => (sasl::ChannelBinding::unsupported(), SCRAM_SHA_256),
            _ => return Err(self.refuse("the server offers no mechanism but unknown ones")),
        };
        if mechanism != SCRAM_SHA_256_PLUS {
            self.may_skip_channel_binding()?;
        }
        let password = self.password()?;
        let mut scram = ScramSha256::new(password.reveal().as_bytes(), binding);
        send(self.framed, |out| {
            frontend::sasl_initial_response(mechanism, scram.message(), out)
        })
        .await?;
        let Message::AuthenticationSaslContinue(body) = receive(self.framed).await? else {
            return Err(unexpected());
        };
        scram.update(body.data()).map_err(broken)?;
        send(self.framed, |out| {
            frontend::sasl_response(scram.message(), out)
        })
        .await?;
        let Message::AuthenticationSaslFinal(body) = receive(self.framed).await? else {
            return Err(unexpected());
        };
        scram.finish(body.data()).map_err(|_| {
            self.refuse(
                "the server does not prove that it knows the password: it may be an impostor",
            )
        })?;
        self.expect_ok().await
    }

    async fn expect_ok(&mut self) -> Result<()> {
        match receive(self.framed).await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(unexpected()),
        }
    }

    fn may_skip_channel_binding(&self) -> Result<()> {
        match self.info.channel_binding {
            ChannelBinding::Require => Err(self.refuse(
                "channel_binding=require, but the server authenticates without it (it needs TLS and scram-sha-256)",
            )),
            ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
        }
    }

    fn password(&self) -> Result<Password> {
        if let Some(password) = &self.info.password {
            return Ok(password.clone());
        }
        let database = match (self.mode, &self.info.database) {
            (Mode::PhysicalReplication, _) => REPLICATION_DATABASE,
            (Mode::Sql, Some(database)) => database,
            (Mode::Sql, None) => &self.info.user,
        };
        let host = self.transport.host;
        if let Some(path) = &self.info.passfile
            && let Some(password) = pgpass::read_password(path, host, database, &self.info.user)?
        {
            return Ok(password);
        }
        Err(self.refuse(&format!(
            "the server asks for a password and none is known for user {:?}, database {database:?}: set PGPASSWORD or add a line to the password file",
            self.info.user
        )))
    }

    fn refuse(&self, reason: &str) -> Error {
        Error::Authentication {
            address: self.transport.host.to_string(),
            reason: reason.to_owned(),
        }
    }
}

async fn welcome(framed: &mut Framed) -> Result<Welcome> {
    let mut welcome = Welcome {
        parameters: BTreeMap::new(),
        key: None,
    };
    loop {
        match receive(framed).await? {
            Message::ReadyForQuery(_) => return Ok(welcome),
            Message::BackendKeyData(body) => {
                welcome.key = Some(BackendKey {
                    process_id: body.process_id(),
                    secret: body.secret_key(),
                });
            }
            Message::ParameterStatus(body) if welcome.parameters.len() < MAX_PARAMETERS => {
                let name = body.name().map_err(broken)?.to_owned();
                let value = body.value().map_err(broken)?.to_owned();
                welcome.parameters.insert(name, value);
            }
            _ => return Err(unexpected()),
        }
    }
}

/// The next message that is no notice; an error of the server is an error.
async fn receive(framed: &mut Framed) -> Result<Message> {
    loop {
        match framed.buffered().map_err(broken)? {
            Some(Incoming::Message(Message::ErrorResponse(body))) => {
                return Err(Error::Server {
                    during: DURING.to_owned(),
                    source: Box::new(parse_server_error(body.fields())),
                });
            }
            Some(Incoming::Message(Message::NoticeResponse(body))) => {
                tracing::warn!("{}", parse_server_error(body.fields()));
            }
            Some(Incoming::Message(message)) => return Ok(message),
            Some(Incoming::CopyBoth) => return Err(unexpected()),
            None => match framed.fill().await {
                Ok(0) => return Err(lost(None)),
                Ok(_) => {}
                Err(error) => return Err(lost(Some(error))),
            },
        }
    }
}

async fn send(
    framed: &mut Framed,
    encode: impl FnOnce(&mut bytes::BytesMut) -> io::Result<()>,
) -> Result<()> {
    // Only a NUL inside a name or password cannot be encoded.
    framed
        .queue(encode)
        .map_err(|error| Error::ConnectionSettings {
            reason: format!("user, password or another setting cannot be sent: {error}"),
        })?;
    framed.flush().await.map_err(|error| lost(Some(error)))
}

fn lost(source: Option<io::Error>) -> Error {
    Error::ConnectionLost {
        during: DURING.to_owned(),
        source,
    }
}

fn broken(error: io::Error) -> Error {
    Error::Protocol {
        during: DURING.to_owned(),
        reason: error.to_string(),
    }
}

fn unexpected() -> Error {
    Error::Protocol {
        during: DURING.to_owned(),
        reason: "a message that has no place here".to_owned(),
    }
}
