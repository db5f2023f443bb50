//! Finding a server among those listed: which address and how much TLS is tried in which order, and which failure ends the search.

use super::authentication::{self, Transport};
use super::cancel::CancelToken;
use super::connection::{Connection, Established, protocol, within};
use super::conninfo::{ChannelBinding, ConnectionInfo, Host, SslMode, TargetSession};
use super::framing::Framed;
use super::tls;
use super::transport::{self, Address, TlsPlan, TlsUse};
use super::{Deadlines, Mode};
use crate::error::{Error, ErrorClass, Result, ServerErrorKind};

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
        Ok(Connection::new(Established {
            framed,
            mode: self.mode,
            deadlines: self.deadlines,
            parameters: welcome.parameters,
            server_major,
            host: self.host.clone(),
            cancel: CancelToken {
                address: address.clone(),
                plan: self.plan.clone().filter(|_| opened.is_encrypted),
                key: welcome.key,
                keepalive: *keepalive,
                deadline: self.deadlines.connect,
            },
        }))
    }
}

/// `18.6`, `18beta1`, `15.14 (Debian …)`.
fn parse_major(version: &str) -> Option<u32> {
    let end = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version.get(..end)?.parse().ok()
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
