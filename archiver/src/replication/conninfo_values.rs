//! The settings of a connection string together with the environment behind them: which keywords exist, which values they take.
//! Does not split strings (`conninfo_syntax`) nor hold the result (`conninfo`).

use super::conninfo::{
    ChannelBinding, DEFAULT_SOCKET_DIRECTORIES, Host, Keepalive, RootCertificates, SslMode,
    TargetSession,
};
use super::conninfo_syntax::{Settings, invalid};
use crate::error::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

/// Port of a server that no setting names.
const DEFAULT_PORT: u16 = 5432;
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

pub(super) const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

/// The settings after names are checked and the environment is mixed in. Empty values count as absent, as in libpq.
pub(super) struct Values(Settings);

impl Values {
    pub(super) fn collect(
        settings: Settings,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Values> {
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

    pub(super) fn text(&self, keyword: &str) -> Option<&str> {
        let (_, value) = self.0.iter().rev().find(|(name, _)| name == keyword)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn refuse_unsupported(&self) -> Result<()> {
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

    pub(super) fn hosts(&self) -> Result<Vec<Host>> {
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
    pub(super) fn ssl(&self, default_root: Option<PathBuf>) -> Result<(SslMode, RootCertificates)> {
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

    pub(super) fn channel_binding(&self) -> Result<ChannelBinding> {
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

    pub(super) fn target_session(&self) -> Result<TargetSession> {
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

    pub(super) fn keepalive(&self) -> Result<Keepalive> {
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
    pub(super) fn seconds(&self, keyword: &str) -> Result<Option<Duration>> {
        let seconds = self.number(keyword)?.filter(|seconds| *seconds > 0);
        Ok(seconds.map(|seconds| Duration::from_secs(seconds.into())))
    }

    pub(super) fn flag(&self, keyword: &str, default: bool) -> Result<bool> {
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

pub(super) fn bad_value(keyword: &str, value: &str, expected: &str) -> Error {
    invalid(format!("{keyword}={value:?}: expected {expected}"))
}

fn unknown_keyword(keyword: &str) -> Error {
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
