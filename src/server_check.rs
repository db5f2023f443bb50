//! What a server must be and have before Walden can archive it: asked once, judged in one place, for `init` and `config check`.
//!
//! Asking ([`ServerFacts::ask`]) talks to the server; judging ([`judge`]) is pure: facts in, findings out, each with the exact
//! statement or line that helps. Changes nothing on the server.

use std::fmt::Write as _;
use std::time::Duration;

use archiver::error::ServerErrorKind;
use archiver::replication::{
    Connection, ConnectionInfo, Deadlines, Host, Mode, SUPPORTED_MAJORS, SystemIdentity,
};
use archiver::upload::error_text;
use pitr::recovery_conf::RESTORED_FROM;
use serde::Serialize;
use wal_format::SegmentSize;

/// How long one answer of the server may take: a person waits.
const PATIENCE: Deadlines = Deadlines {
    connect: Duration::from_secs(10),
    reply: Duration::from_secs(15),
    ..Deadlines::DEFAULT
};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Archiving does not work.
    Error,
    /// It works, with a danger.
    Warning,
}

/// Something about the server, and what helps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How much it matters.
    pub(crate) severity: Severity,
    /// What is found.
    pub(crate) what: String,
    /// The statement or line that changes it, ready to be copied.
    pub(crate) fix: Option<String>,
    /// What must be done for the change to take effect.
    pub(crate) then: Option<&'static str>,
}

const RESTART: &str = "restart the server";
const RELOAD: &str = "reload: SELECT pg_reload_conf();";

/// What a server says of itself. What could not be asked is `None`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerFacts {
    /// The user we connect as.
    pub(crate) user: String,
    /// Where from, as a line of pg_hba.conf has it: `local`, or `host` with an address.
    pub(crate) over_socket: bool,
    /// Major version.
    pub(crate) major: Option<u32>,
    /// Full version, such as `18.6`.
    pub(crate) version: Option<String>,
    /// Who it is and where its WAL ends.
    pub(crate) identity: Option<SystemIdentity>,
    /// System identifier, also where there is no replication connection.
    pub(crate) system_identifier: Option<u64>,
    /// WAL segment size.
    pub(crate) segment_size: Option<SegmentSize>,
    /// Bytes in a page of a relation.
    pub(crate) block_size: Option<u32>,
    /// Why no SQL connection could be made.
    pub(crate) sql_error: Option<String>,
    /// Why no replication connection could be made.
    pub(crate) replication_error: Option<String>,
    /// Whether the server said so itself: then it is up.
    pub(crate) answered: bool,
    /// That refusal was for lack of a line in pg_hba.conf.
    pub(crate) refused_by_hba: bool,
    /// That refusal was for lack of a free WAL sender.
    pub(crate) no_free_sender: bool,
    /// The role may replicate.
    pub(crate) may_replicate: Option<bool>,
    /// It is a standby.
    pub(crate) is_standby: bool,
    /// `wal_level`
    pub(crate) wal_level: Option<String>,
    /// `max_wal_senders` and how many are in use.
    pub(crate) senders: Option<(u32, u32)>,
    /// `max_replication_slots` and how many exist.
    pub(crate) slots: Option<(u32, u32)>,
    /// Our slot exists; `false`: as a logical one.
    pub(crate) slot_is_physical: Option<bool>,
    /// `archive_mode`
    pub(crate) archive_mode: Option<String>,
    /// `archive_command` or `archive_library`.
    pub(crate) archive_command: Option<String>,
    /// `synchronous_standby_names`
    pub(crate) synchronous_standby_names: Option<String>,
    /// `walden.restored_from`, where it is set.
    pub(crate) restored_from: Option<String>,
}

impl ServerFacts {
    /// Asks the server over both kinds of connection. A connection that cannot be made is a fact, not an error.
    pub(crate) async fn ask(info: &ConnectionInfo, slot: &str) -> Self {
        let mut facts = Self {
            user: info.user.clone(),
            over_socket: matches!(info.hosts.first(), Some(Host::Unix { .. })),
            ..Self::default()
        };
        match Connection::connect_with(info, Mode::PhysicalReplication, PATIENCE).await {
            Ok(mut connection) => {
                facts.note_connection(&connection);
                if let Err(error) = facts.ask_replication(&mut connection).await {
                    facts.replication_error = Some(error_text(&error));
                } else if let Err(error) = connection.close().await {
                    // Everything was asked: how the connection ends is of no interest.
                    tracing::debug!(error = error_text(&error), "replication connection");
                }
            }
            Err(error) => {
                facts.answered |= error.server().is_some();
                facts.refused_by_hba = error.server_kind() == Some(ServerErrorKind::Rejected)
                    && error
                        .server()
                        .is_some_and(|said| said.message.contains("pg_hba"));
                facts.no_free_sender =
                    error.server_kind() == Some(ServerErrorKind::TooManyConnections);
                facts.replication_error = Some(error_text(&error));
            }
        }
        let mut info = info.clone();
        info.database.get_or_insert_with(|| "postgres".to_owned());
        match Connection::connect_with(&info, Mode::Sql, PATIENCE).await {
            Ok(mut connection) => {
                facts.note_connection(&connection);
                if let Err(error) = facts.ask_sql(&mut connection, slot).await {
                    facts.sql_error = Some(error_text(&error));
                }
            }
            Err(error) => {
                facts.answered |= error.server().is_some();
                facts.sql_error = Some(error_text(&error));
            }
        }
        facts
    }

    fn note_connection(&mut self, connection: &Connection) {
        self.answered = true;
        self.major = Some(connection.server_major());
        self.version = connection
            .parameter("server_version")
            .and_then(|text| text.split_whitespace().next())
            .map(str::to_owned);
        self.is_standby = connection.parameter("in_hot_standby") == Some("on");
    }

    async fn ask_replication(&mut self, connection: &mut Connection) -> archiver::Result<()> {
        let identity = connection.identify_system().await?;
        self.system_identifier = Some(identity.system_identifier);
        self.identity = Some(identity);
        self.segment_size = Some(connection.wal_segment_size().await?);
        self.block_size = connection.show("block_size").await?.parse().ok();
        self.wal_level = Some(connection.show("wal_level").await?);
        self.synchronous_standby_names = Some(connection.show("synchronous_standby_names").await?);
        self.archive_mode = Some(connection.show("archive_mode").await?);
        // A server that was never restored does not know the setting.
        self.restored_from = match connection.show(RESTORED_FROM).await {
            Ok(from) => Some(from).filter(|from| !from.is_empty()),
            Err(error) if error.server().is_some() => None,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    async fn ask_sql(&mut self, connection: &mut Connection, slot: &str) -> archiver::Result<()> {
        let answer = connection
            .simple_query(
                "SELECT system_identifier, current_setting('wal_segment_size') AS segment_size, \
                 current_setting('block_size') AS block_size, current_setting('wal_level') AS wal_level, \
                 current_setting('max_wal_senders') AS max_senders, \
                 (SELECT count(*) FROM pg_catalog.pg_stat_get_wal_senders()) AS senders, \
                 current_setting('max_replication_slots') AS max_slots, \
                 (SELECT count(*) FROM pg_catalog.pg_replication_slots) AS slots, \
                 (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) AS may_replicate, \
                 current_setting('archive_mode') AS archive_mode, \
                 current_setting('archive_command') AS archive_command, \
                 current_setting('archive_library', true) AS archive_library, \
                 current_setting('synchronous_standby_names') AS synchronous_names, \
                 current_setting('walden.restored_from', true) AS restored_from \
                 FROM pg_catalog.pg_control_system()",
            )
            .await?;
        let text = |column: &str| answer.text(0, column).map(str::to_owned);
        let number = |column: &str| answer.text(0, column).and_then(|text| text.parse().ok());
        self.system_identifier = answer
            .text(0, "system_identifier")
            .and_then(|text| text.parse().ok())
            .or(self.system_identifier);
        self.block_size = number("block_size").or(self.block_size);
        self.wal_level = text("wal_level");
        self.senders = number("max_senders").zip(number("senders"));
        self.slots = number("max_slots").zip(number("slots"));
        self.may_replicate = text("may_replicate").map(|word| word == "t");
        self.archive_mode = text("archive_mode");
        self.archive_command = text("archive_library")
            .filter(|library| !library.is_empty())
            .or(text("archive_command"))
            .filter(|command| !command.is_empty() && command != "(disabled)");
        self.synchronous_standby_names = text("synchronous_names");
        self.restored_from = text("restored_from").filter(|from| !from.is_empty());
        self.slot_is_physical = connection
            .slot_status(slot)
            .await?
            .map(|status| status.is_physical);
        Ok(())
    }

    /// Whether nobody answered at all.
    pub(crate) fn is_unreachable(&self) -> bool {
        !self.answered
    }
}

/// What is wrong or unwise, the worst first.
pub(crate) fn judge(facts: &ServerFacts, slot: &str) -> Vec<Finding> {
    let mut findings = Findings::default();
    if facts.is_unreachable() {
        let why = facts.replication_error.clone().unwrap_or_default();
        findings.error(format!("the server cannot be reached: {why}"), None, None);
        return findings.0;
    }
    if let Some(major) = facts
        .major
        .filter(|major| !SUPPORTED_MAJORS.contains(major))
    {
        let what = format!(
            "PostgreSQL {major} is not supported: {} to {} are",
            SUPPORTED_MAJORS.start(),
            SUPPORTED_MAJORS.end()
        );
        findings.error(what, None, None);
    }
    if let Some(from) = &facts.restored_from {
        findings.error(
            format!("this server was restored from {from}: archiving it here would continue its source's WAL as if it were the source"),
            Some("ALTER SYSTEM RESET walden.restored_from;  -- only after deciding that this server replaces its source".into()),
            Some(RELOAD),
        );
    }
    judge_connections(facts, &mut findings);
    judge_settings(facts, slot, &mut findings);
    findings.0.sort_by_key(|finding| finding.severity);
    findings.0
}

fn judge_connections(facts: &ServerFacts, findings: &mut Findings) {
    let user = quote_identifier(&facts.user);
    if facts.may_replicate == Some(false) {
        findings.error(
            format!("the role {user} may not replicate"),
            Some(format!("ALTER ROLE {user} REPLICATION;")),
            None,
        );
    } else if facts.refused_by_hba {
        let line = if facts.over_socket {
            format!("local  replication  {user}  scram-sha-256")
        } else {
            format!("hostssl  replication  {user}  <address of this host>/32  scram-sha-256")
        };
        findings.error(
            "pg_hba.conf lets no replication connection in (`all` does not include replication)"
                .into(),
            Some(line),
            Some(RELOAD),
        );
    } else if facts.no_free_sender {
        // Said below, with the numbers, if these are known.
        if facts.senders.is_none() {
            findings.error(
                "no WAL sender is free".into(),
                Some("ALTER SYSTEM SET max_wal_senders = 10;".into()),
                Some(RESTART),
            );
        }
    } else if let Some(why) = &facts.replication_error {
        findings.error(format!("no replication connection: {why}"), None, None);
    }
    if let Some(why) = &facts.sql_error {
        findings.warning(
            format!("no SQL connection, so not everything could be checked: {why}"),
            Some(format!(
                "{}  postgres  {user}  {}scram-sha-256",
                if facts.over_socket {
                    "local"
                } else {
                    "hostssl"
                },
                if facts.over_socket {
                    ""
                } else {
                    "<address of this host>/32  "
                }
            )),
            Some(RELOAD),
        );
    }
}

fn judge_settings(facts: &ServerFacts, slot: &str, findings: &mut Findings) {
    if facts.wal_level.as_deref() == Some("minimal") {
        findings.error(
            "wal_level is minimal: such WAL cannot be replayed by a recovery".into(),
            Some("ALTER SYSTEM SET wal_level = 'replica';".into()),
            Some(RESTART),
        );
    }
    match facts.senders {
        Some((max, used)) if used >= max => findings.error(
            format!("no WAL sender is free: max_wal_senders is {max}, {used} in use"),
            Some(format!("ALTER SYSTEM SET max_wal_senders = {};", max + 5)),
            Some(RESTART),
        ),
        Some((max, used)) if used + 1 >= max => findings.warning(
            format!("{used} of {max} WAL senders are in use: `walden run` and `walden backup` need one each"),
            Some(format!("ALTER SYSTEM SET max_wal_senders = {};", max + 5)),
            Some(RESTART),
        ),
        _ => {}
    }
    match (facts.slots, facts.slot_is_physical) {
        (_, Some(false)) => findings.error(
            format!("the slot {slot:?} exists and is a logical one"),
            Some("choose another name with --slot".into()),
            None,
        ),
        (Some((max, used)), None) if used >= max => findings.error(
            format!("all {max} replication slots are in use (max_replication_slots)"),
            Some(format!(
                "ALTER SYSTEM SET max_replication_slots = {};",
                max + 5
            )),
            Some(RESTART),
        ),
        _ => {}
    }
    if let Some(names) = &facts.synchronous_standby_names
        && names.contains('*')
    {
        findings.warning(
            format!("synchronous_standby_names = '{names}' matches every receiver: commits would wait for walden's store"),
            Some("name the standbys that commits shall wait for, e.g. ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (standby1)';".into()),
            Some(RELOAD),
        );
    }
    if let (Some(mode @ ("on" | "always")), Some(command)) =
        (facts.archive_mode.as_deref(), &facts.archive_command)
        && !command.contains("walden")
    {
        findings.warning(
            format!("archive_mode is {mode} and archives elsewhere too: a failing archive_command keeps WAL on the server's disk"),
            None,
            None,
        );
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        what: String,
        fix: Option<String>,
        then: Option<&'static str>,
    ) {
        self.0.push(Finding {
            severity,
            what,
            fix,
            then,
        });
    }

    fn error(&mut self, what: String, fix: Option<String>, then: Option<&'static str>) {
        self.add(Severity::Error, what, fix, then);
    }

    fn warning(&mut self, what: String, fix: Option<String>, then: Option<&'static str>) {
        self.add(Severity::Warning, what, fix, then);
    }
}

/// Findings for people, each with what to do under it.
pub(crate) fn to_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let word = match finding.severity {
            Severity::Error => "missing",
            Severity::Warning => "warning",
        };
        // Writing to a String does not fail.
        let mut add = |line: std::fmt::Arguments<'_>| {
            text.write_fmt(line).expect("a String takes every write");
        };
        add(format_args!("{word}: {}\n", finding.what));
        if let Some(fix) = &finding.fix {
            add(format_args!("    {fix}\n"));
        }
        if let Some(then) = finding.then {
            add(format_args!("    then {then}\n"));
        }
    }
    text
}

/// Whether archiving cannot work.
pub(crate) fn has_errors(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.severity == Severity::Error)
}

/// As an SQL identifier: quoted unless it needs none.
fn quote_identifier(name: &str) -> String {
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit());
    if plain && !name.is_empty() {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> ServerFacts {
        ServerFacts {
            user: "walden".into(),
            answered: true,
            major: Some(18),
            may_replicate: Some(true),
            wal_level: Some("replica".into()),
            senders: Some((10, 0)),
            slots: Some((10, 0)),
            archive_mode: Some("off".into()),
            synchronous_standby_names: Some(String::new()),
            ..ServerFacts::default()
        }
    }

    #[test]
    fn a_good_server_has_no_findings() {
        assert_eq!(judge(&good(), "walden"), []);
    }

    #[test]
    fn each_thing_missing_names_what_helps() {
        let check =
            |facts: ServerFacts, severity: Severity, what: &str, fix: &str, then: Option<&str>| {
                let findings = judge(&facts, "walden");
                assert_eq!(findings.len(), 1, "{findings:?}");
                let found = &findings[0];
                assert_eq!(found.severity, severity, "{found:?}");
                assert!(found.what.contains(what), "{found:?}");
                assert!(
                    found.fix.as_deref().unwrap_or_default().contains(fix),
                    "{found:?}"
                );
                assert_eq!(found.then, then, "{found:?}");
            };
        use Severity::{Error, Warning};
        check(
            ServerFacts {
                wal_level: Some("minimal".into()),
                ..good()
            },
            Error,
            "minimal",
            "ALTER SYSTEM SET wal_level = 'replica';",
            Some(RESTART),
        );
        check(
            ServerFacts {
                major: Some(14),
                ..good()
            },
            Error,
            "PostgreSQL 14 is not supported",
            "",
            None,
        );
        check(
            ServerFacts {
                may_replicate: Some(false),
                user: "Big \"B\"".into(),
                ..good()
            },
            Error,
            "may not replicate",
            "ALTER ROLE \"Big \"\"B\"\"\" REPLICATION;",
            None,
        );
        let refused = ServerFacts {
            refused_by_hba: true,
            replication_error: Some("x".into()),
            ..good()
        };
        check(
            ServerFacts {
                over_socket: true,
                ..refused.clone()
            },
            Error,
            "pg_hba.conf",
            "local  replication  walden  scram-sha-256",
            Some(RELOAD),
        );
        check(
            refused,
            Error,
            "pg_hba.conf",
            "hostssl  replication  walden",
            Some(RELOAD),
        );
        check(
            ServerFacts {
                senders: Some((2, 2)),
                ..good()
            },
            Error,
            "max_wal_senders is 2, 2 in use",
            "max_wal_senders = 7",
            Some(RESTART),
        );
        check(
            ServerFacts {
                senders: Some((2, 1)),
                ..good()
            },
            Warning,
            "1 of 2 WAL senders",
            "max_wal_senders = 7",
            Some(RESTART),
        );
        check(
            ServerFacts {
                senders: None,
                no_free_sender: true,
                replication_error: Some("x".into()),
                ..good()
            },
            Error,
            "no WAL sender",
            "max_wal_senders",
            Some(RESTART),
        );
        check(
            ServerFacts {
                slots: Some((1, 1)),
                ..good()
            },
            Error,
            "all 1 replication slots",
            "max_replication_slots = 6",
            Some(RESTART),
        );
        check(
            ServerFacts {
                slot_is_physical: Some(false),
                ..good()
            },
            Error,
            "logical",
            "--slot",
            None,
        );
        check(
            ServerFacts {
                synchronous_standby_names: Some("*".into()),
                ..good()
            },
            Warning,
            "commits would wait",
            "synchronous_standby_names",
            Some(RELOAD),
        );
        check(
            ServerFacts {
                restored_from: Some("7412".into()),
                ..good()
            },
            Error,
            "was restored from 7412",
            "walden.restored_from",
            Some(RELOAD),
        );
        check(
            ServerFacts {
                archive_mode: Some("on".into()),
                archive_command: Some("cp".into()),
                ..good()
            },
            Warning,
            "archives elsewhere",
            "",
            None,
        );
        check(
            ServerFacts {
                answered: false,
                replication_error: Some("refused".into()),
                ..good()
            },
            Error,
            "cannot be reached: refused",
            "",
            None,
        );
        check(
            ServerFacts {
                replication_error: Some("odd".into()),
                ..good()
            },
            Error,
            "no replication connection: odd",
            "",
            None,
        );
    }

    #[test]
    fn a_slot_of_ours_needs_no_free_one() {
        let facts = ServerFacts {
            slots: Some((1, 1)),
            slot_is_physical: Some(true),
            ..good()
        };
        assert_eq!(judge(&facts, "walden"), []);
    }
}
