//! Connection settings as libpq understands them: which keywords exist, the environment behind them, defaults, and what they mean.
//! Does not split strings (`conninfo_syntax`), read files, or look into the password file (`pgpass`): everything here is pure.

use super::conninfo_syntax::{Settings, invalid, parse_settings};
use crate::error::Result;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Port of a server that no setting names.
const DEFAULT_PORT: u16 = 5432;
/// Where servers put their socket: first the distributions' place, then the PostgreSQL project's.
pub(super) const DEFAULT_SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
/// `application_name` unless set.
const DEFAULT_APPLICATION_NAME: &str = "walden";
/// libpq waits at least this long for a connection, whatever `connect_timeout` says.
const MIN_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Most servers one connection string may list.
const MAX_HOSTS: usize = 64;

/// Keywords that mean something here, with the environment variable behind each.
const KEYWORDS: [(&str, Option<&str>); 31] = [
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("user", Some("PGUSER")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("dbname", Some("PGDATABASE")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslsni", Some("PGSSLSNI")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("application_name", Some("PGAPPNAME")),
    ("fallback_application_name", None),
    ("options", Some("PGOPTIONS")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("keepalives", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("keepalives_count", None),
    ("tcp_user_timeout", None),
    // Accepted where they ask for what happens anyway.
    ("client_encoding", Some("PGCLIENTENCODING")),
    ("gssencmode", Some("PGGSSENCMODE")),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    ("replication", None),
    ("sslcompression", None),
    // Known to libpq, refused with a reason.
    ("service", Some("PGSERVICE")),
    ("servicefile", None),
];

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

const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// The settings after names are checked and the environment is mixed in. Empty values count as absent, as in libpq.
struct Values(Settings);

impl Values {
    fn collect(settings: Settings, environment: &dyn Fn(&str) -> Option<String>) -> Result<Values> {
        let mut values: Settings = KEYWORDS
            .iter()
            .filter_map(|(keyword, variable)| {
                let value = variable.and_then(environment)?;
                Some(((*keyword).to_owned(), value))
            })
            .collect();
        for (keyword, value) in settings {
            if !KEYWORDS.iter().any(|(known, _)| *known == keyword) {
                return Err(unknown_keyword(&keyword));
            }
            values.push((keyword, value));
        }
        Ok(Values(values))
    }

    fn text(&self, keyword: &str) -> Option<&str> {
        let (_, value) = self.0.iter().rev().find(|(name, _)| name == keyword)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    fn refuse_unsupported(&self) -> Result<()> {
        if self.text("service").is_some() || self.text("servicefile").is_some() {
            return Err(invalid(
                "service files are not supported; write the service's settings into the connection string",
            ));
        }
        if let Some(mode @ "require") = self.text("gssencmode") {
            return Err(bad_value(
                "gssencmode",
                mode,
                "disable or prefer: GSSAPI is not supported",
            ));
        }
        if let Some(balance) = self.text("load_balance_hosts").filter(|b| *b != "disable") {
            return Err(bad_value(
                "load_balance_hosts",
                balance,
                "disable: hosts are tried in order",
            ));
        }
        Ok(())
    }

    fn hosts(&self) -> Result<Vec<Host>> {
        let list = |keyword| -> Vec<&str> {
            self.text(keyword)
                .map(|value| value.split(',').map(str::trim).collect())
                .unwrap_or_default()
        };
        let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        let count = names.len().max(addresses.len()).max(1);
        if count > MAX_HOSTS {
            return Err(invalid(format!("more than {MAX_HOSTS} hosts")));
        }
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(invalid(format!(
                "{} hosts but {} hostaddr values",
                names.len(),
                addresses.len()
            )));
        }
        if ports.len() > 1 && ports.len() != count {
            return Err(invalid(format!("{} ports for {count} hosts", ports.len())));
        }
        let mut hosts = Vec::new();
        for index in 0..count {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or("");
            let port = match port {
                "" => DEFAULT_PORT,
                text => match text.parse::<u16>() {
                    Ok(port) if port > 0 => port,
                    _ => return Err(bad_value("port", text, "a number from 1 to 65535")),
                },
            };
            let name = names.get(index).copied().unwrap_or("");
            let address = addresses.get(index).copied().unwrap_or("");
            push_hosts(&mut hosts, name, address, port)?;
        }
        Ok(hosts)
    }

    /// `sslmode` and `sslrootcert` depend on each other: a root certificate turns `require` into `verify-ca`, `system` wants
    /// `verify-full` and makes it the default.
    fn ssl(&self, default_root: Option<PathBuf>) -> Result<(SslMode, RootCertificates)> {
        let mode = match self.text("sslmode") {
            None => None,
            Some(text) => match SSL_MODES.iter().find(|(name, _)| *name == text) {
                Some((_, mode)) => Some(*mode),
                None => {
                    return Err(bad_value(
                        "sslmode",
                        text,
                        "disable, allow, prefer, require, verify-ca or verify-full",
                    ));
                }
            },
        };
        match (self.text("sslrootcert"), mode) {
            (Some("system"), None | Some(SslMode::VerifyFull)) => {
                Ok((SslMode::VerifyFull, RootCertificates::System))
            }
            (Some("system"), Some(_)) => Err(invalid(
                "sslrootcert=system needs sslmode=verify-full: a public authority signs for anybody",
            )),
            (Some(path), mode) => {
                let mode = match mode.unwrap_or(SslMode::Prefer) {
                    SslMode::Require => SslMode::VerifyCa,
                    other => other,
                };
                Ok((mode, RootCertificates::File(path.into())))
            }
            (None, mode) => Ok((
                mode.unwrap_or(SslMode::Prefer),
                default_root.map_or(RootCertificates::None, RootCertificates::DefaultFile),
            )),
        }
    }

    fn channel_binding(&self) -> Result<ChannelBinding> {
        match self.text("channel_binding") {
            Some("disable") => Ok(ChannelBinding::Disable),
            None | Some("prefer") => Ok(ChannelBinding::Prefer),
            Some("require") => Ok(ChannelBinding::Require),
            Some(other) => Err(bad_value(
                "channel_binding",
                other,
                "disable, prefer or require",
            )),
        }
    }

    fn target_session(&self) -> Result<TargetSession> {
        match self.text("target_session_attrs") {
            None | Some("any") => Ok(TargetSession::Any),
            Some("read-write") => Ok(TargetSession::ReadWrite),
            Some("read-only") => Ok(TargetSession::ReadOnly),
            Some("primary") => Ok(TargetSession::Primary),
            Some("standby") => Ok(TargetSession::Standby),
            Some("prefer-standby") => Ok(TargetSession::PreferStandby),
            Some(other) => Err(bad_value(
                "target_session_attrs",
                other,
                "any, read-write, read-only, primary, standby or prefer-standby",
            )),
        }
    }

    fn keepalive(&self) -> Result<Keepalive> {
        let count = self.number("keepalives_count")?;
        Ok(Keepalive {
            enabled: self.flag("keepalives", true)?,
            idle: self.seconds("keepalives_idle")?,
            interval: self.seconds("keepalives_interval")?,
            count: count.filter(|count| *count > 0),
            user_timeout: self
                .number("tcp_user_timeout")?
                .filter(|millis| *millis > 0)
                .map(|millis| Duration::from_millis(millis.into())),
        })
    }

    fn number(&self, keyword: &str) -> Result<Option<u32>> {
        let Some(text) = self.text(keyword) else {
            return Ok(None);
        };
        match text.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(bad_value(keyword, text, "a number")),
        }
    }

    /// Whole seconds; zero means "the default" to libpq.
    fn seconds(&self, keyword: &str) -> Result<Option<Duration>> {
        let seconds = self.number(keyword)?.filter(|seconds| *seconds > 0);
        Ok(seconds.map(|seconds| Duration::from_secs(seconds.into())))
    }

    fn flag(&self, keyword: &str, default: bool) -> Result<bool> {
        match self.text(keyword) {
            None => Ok(default),
            Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(other) => Err(bad_value(keyword, other, "0 or 1")),
        }
    }
}

/// One entry of the host list: an address, a socket directory, a name, or nothing at all.
fn push_hosts(hosts: &mut Vec<Host>, name: &str, address: &str, port: u16) -> Result<()> {
    if !address.is_empty() {
        let Ok(ip) = address.parse() else {
            return Err(bad_value("hostaddr", address, "an IP address"));
        };
        let name = if name.is_empty() { address } else { name };
        hosts.push(Host::Tcp {
            name: name.to_owned(),
            address: Some(ip),
            port,
        });
    } else if name.is_empty() {
        hosts.extend(
            DEFAULT_SOCKET_DIRECTORIES
                .iter()
                .map(|directory| Host::Unix {
                    directory: directory.into(),
                    port,
                }),
        );
    } else if name.starts_with('/') {
        hosts.push(Host::Unix {
            directory: name.into(),
            port,
        });
    } else if name.starts_with('@') {
        return Err(bad_value(
            "host",
            name,
            "no abstract socket: these are not supported",
        ));
    } else {
        hosts.push(Host::Tcp {
            name: name.to_owned(),
            address: None,
            port,
        });
    }
    Ok(())
}

fn bad_value(keyword: &str, value: &str, expected: &str) -> crate::Error {
    invalid(format!("{keyword}={value:?}: expected {expected}"))
}

fn unknown_keyword(keyword: &str) -> crate::Error {
    let nearest = KEYWORDS
        .iter()
        .map(|(known, _)| (edit_distance(keyword, known), *known))
        .min();
    match nearest {
        Some((distance, known)) if distance <= 2.max(keyword.len() / 3) => invalid(format!(
            "unknown keyword {keyword:?}; did you mean {known:?}?"
        )),
        _ => invalid(format!("unknown or unsupported keyword {keyword:?}")),
    }
}

/// Levenshtein distance in bytes, one row at a time; `a` is cut to keep the work small.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().take(64).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let next = (diagonal + usize::from(x != y))
                .min(left + 1)
                .min(*cell + 1);
            diagonal = std::mem::replace(cell, next);
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
#[path = "conninfo_tests.rs"]
mod tests;
