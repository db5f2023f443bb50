//! Connection settings as libpq understands them: what they mean, their defaults, and how they print without the password.
//! Does not split strings (`conninfo_syntax`), know keywords (`conninfo_values`), read files, or look into the password file (`pgpass`): everything here is pure.

use super::conninfo_syntax::{invalid, parse_settings};
use super::conninfo_values::{SSL_MODES, Values, bad_value};
use crate::error::Result;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where servers put their socket: first the distributions' place, then the PostgreSQL project's.
pub(super) const DEFAULT_SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
/// `application_name` unless set.
const DEFAULT_APPLICATION_NAME: &str = "walden";
/// libpq waits at least this long for a connection, whatever `connect_timeout` says.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// One place to look for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A TCP address.
    Tcp {
        /// The name as given: what certificates are compared with, and looked up unless `address` is given.
        name: String,
        /// The address to use instead of looking the name up (`hostaddr`).
        address: Option<IpAddr>,
        /// The port.
        port: u16,
    },
    /// A Unix socket `<directory>/.s.PGSQL.<port>`.
    Unix {
        /// The directory, absolute.
        directory: PathBuf,
        /// The port in the socket's name.
        port: u16,
    },
}

impl Host {
    /// The socket file, for Unix sockets.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match self {
            Host::Tcp { .. } => None,
            Host::Unix { directory, port } => Some(directory.join(format!(".s.PGSQL.{port}"))),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Tcp { name, port, .. } if name.contains(':') => {
                write!(formatter, "[{name}]:{port}")
            }
            Host::Tcp { name, port, .. } => write!(formatter, "{name}:{port}"),
            Host::Unix { directory, port } => {
                write!(formatter, "{}/.s.PGSQL.{port}", directory.display())
            }
        }
    }
}

/// How much TLS is wanted (`sslmode`), as in libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server refuses the connection without.
    Allow,
    /// If the server has it; the default.
    Prefer,
    /// Always, whoever the server is (with a root certificate: as `VerifyCa`).
    Require,
    /// Always, and the certificate comes from a known authority.
    VerifyCa,
    /// Always, and the certificate is made out to the host name.
    VerifyFull,
}

/// How TLS begins (`sslnegotiation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslNegotiation {
    /// The server is asked first; every major.
    Postgres,
    /// TLS from the first byte; PostgreSQL 17 or later.
    Direct,
}

/// Which authorities may sign the server's certificate (`sslrootcert`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCertificates {
    /// Those the operating system trusts.
    System,
    /// Those in this PEM file, which must exist.
    File(PathBuf),
    /// Those in this PEM file (`~/.postgresql/root.crt`) if it exists.
    DefaultFile(PathBuf),
    /// None are known: no home directory.
    None,
}

/// A file that must exist if named, and is used if it happens to exist at its default place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialFile {
    /// Named by a setting.
    Named(PathBuf),
    /// The default place.
    Default(PathBuf),
    /// Neither.
    None,
}

/// Whether SCRAM must be bound to the TLS connection (`channel_binding`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If both sides can.
    Prefer,
    /// Or refuse.
    Require,
}

/// Which kind of server will do (`target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSession {
    /// Whichever answers first.
    Any,
    /// Not in recovery, and transactions may write by default.
    ReadWrite,
    /// The opposite of `ReadWrite`.
    ReadOnly,
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery, or any if none is.
    PreferStandby,
}

/// TCP keepalive (`keepalives*`, `tcp_user_timeout`); absent parts are the operating system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Whether the system probes an idle connection.
    pub enabled: bool,
    /// Idle time before the first probe.
    pub idle: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// Probes lost before the connection counts as dead.
    pub count: Option<u32>,
    /// How long sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}

/// A password, which no `Debug` or `Display` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Wraps a password.
    pub fn new(password: impl Into<String>) -> Self {
        Password(password.into())
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(…)")
    }
}

/// Everything needed to connect to one cluster. `Display` prints it as a connection string without the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Servers, in the order to try. Never empty.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// The password, if given outside the password file.
    pub password: Option<Password>,
    /// The password file; looked into only when a server asks for a password.
    pub passfile: Option<PathBuf>,
    /// The database of SQL connections; the role's name if absent.
    pub database: Option<String>,
    /// How much TLS.
    pub ssl_mode: SslMode,
    /// How TLS begins.
    pub ssl_negotiation: SslNegotiation,
    /// Whether the host name is sent in clear at the start of TLS.
    pub ssl_sni: bool,
    /// Authorities of the server's certificate.
    pub ssl_root_certificates: RootCertificates,
    /// Our certificate chain, PEM.
    pub ssl_certificate: CredentialFile,
    /// Our key, PEM.
    pub ssl_key: CredentialFile,
    /// SCRAM and TLS bound together.
    pub channel_binding: ChannelBinding,
    /// How long connecting to one address may take, if set.
    pub connect_timeout: Option<Duration>,
    /// What the server shows in `pg_stat_replication`, and compares with `synchronous_standby_names`.
    pub application_name: String,
    /// Command-line options for the server process.
    pub options: Option<String>,
    /// Of a replication connection: how long the server may hear nothing from us before it ends the connection and lets the slot go, if that is
    /// not left to the server's own setting. Sent as `wal_sender_timeout`, which a session may set for itself; `options` that name it win.
    pub wal_sender_timeout: Option<Duration>,
    /// Which kind of server will do.
    pub target_session: TargetSession,
    /// TCP keepalive.
    pub keepalive: Keepalive,
}

impl ConnectionInfo {
    /// Reads a connection string, with libpq's environment variables (`PGHOST`, …, `HOME`, `USER`) behind it.
    ///
    /// # Errors
    /// `ConnectionSettings` (class `Config`): unknown keyword (with a suggestion), bad value, no user.
    pub fn parse(
        conninfo: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<ConnectionInfo> {
        let values = Values::collect(parse_settings(conninfo)?, environment)?;
        values.refuse_unsupported()?;
        let home = environment("HOME")
            .filter(|home| !home.is_empty())
            .map(PathBuf::from);
        let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
        let (ssl_mode, ssl_root_certificates) = values.ssl(in_home(".postgresql/root.crt"))?;
        let ssl_negotiation = match values.text("sslnegotiation") {
            None | Some("postgres") => SslNegotiation::Postgres,
            Some("direct") if ssl_mode >= SslMode::Require => SslNegotiation::Direct,
            Some("direct") => {
                return Err(invalid(
                    "sslnegotiation=direct needs sslmode=require or stronger",
                ));
            }
            Some(other) => return Err(bad_value("sslnegotiation", other, "postgres or direct")),
        };
        let credential = |keyword: &str, default: &str| match values.text(keyword) {
            Some(path) => CredentialFile::Named(path.into()),
            None => in_home(default).map_or(CredentialFile::None, CredentialFile::Default),
        };
        let user = values
            .text("user")
            .map(str::to_owned)
            .or_else(|| environment("USER"))
            .or_else(|| environment("LOGNAME"))
            .filter(|user| !user.is_empty())
            .ok_or_else(|| invalid("no user: write user=… or set PGUSER"))?;
        Ok(ConnectionInfo {
            hosts: values.hosts()?,
            user,
            password: values.text("password").map(Password::new),
            passfile: values
                .text("passfile")
                .map(PathBuf::from)
                .or_else(|| in_home(".pgpass")),
            database: values.text("dbname").map(str::to_owned),
            ssl_mode,
            ssl_negotiation,
            ssl_sni: values.flag("sslsni", true)?,
            ssl_root_certificates,
            ssl_certificate: credential("sslcert", ".postgresql/postgresql.crt"),
            ssl_key: credential("sslkey", ".postgresql/postgresql.key"),
            channel_binding: values.channel_binding()?,
            connect_timeout: values
                .seconds("connect_timeout")?
                .map(|timeout| timeout.max(MIN_CONNECT_TIMEOUT)),
            application_name: values
                .text("application_name")
                .or_else(|| values.text("fallback_application_name"))
                .unwrap_or(DEFAULT_APPLICATION_NAME)
                .to_owned(),
            options: values.text("options").map(str::to_owned),
            wal_sender_timeout: None,
            target_session: values.target_session()?,
            keepalive: values.keepalive()?,
        })
    }
}

impl fmt::Display for ConnectionInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|host| match host {
                Host::Tcp { name, .. } => name.clone(),
                Host::Unix { directory, .. } => directory.display().to_string(),
            })
            .collect();
        let ports: Vec<String> = self
            .hosts
            .iter()
            .map(|(Host::Tcp { port, .. } | Host::Unix { port, .. })| port.to_string())
            .collect();
        let mode = SSL_MODES
            .iter()
            .find(|(_, mode)| *mode == self.ssl_mode)
            .map_or("", |(name, _)| name);
        write!(
            formatter,
            "host={} port={} user={}",
            quote(&hosts.join(",")),
            ports.join(","),
            quote(&self.user)
        )?;
        if let Some(database) = &self.database {
            write!(formatter, " dbname={}", quote(database))?;
        }
        write!(
            formatter,
            " sslmode={mode} application_name={}",
            quote(&self.application_name)
        )
    }
}

/// As a value of a `keyword=value` string.
fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./,:@".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
#[path = "conninfo_tests.rs"]
mod tests;
