//! What a server lacks or has that is unwise, pure: facts in, findings out, each with the exact statement or line that helps.

use archiver::replication::SUPPORTED_MAJORS;
use archiver::synchronous::{CommitException, CommitSettings};

use super::{Finding, Findings, RELOAD, RESTART, ServerFacts};
use crate::config::Rpo;

/// What is wrong or unwise, the worst first.
pub(crate) fn judge(facts: &ServerFacts, slot: &str, rpo: Rpo) -> Vec<Finding> {
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
            Some("walden init --adopt   # only after deciding that this server replaces its source".into()),
            None,
        );
    }
    judge_connections(facts, &mut findings);
    judge_settings(facts, slot, rpo, &mut findings);
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

fn judge_settings(facts: &ServerFacts, slot: &str, rpo: Rpo, findings: &mut Findings) {
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
    if let Some(commits) = &facts.commits {
        judge_commits(commits, &facts.application_name, rpo, findings);
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

/// How only chosen commits wait.
const FOR_ROLES: &str = "for chosen roles only: ALTER SYSTEM SET synchronous_commit = 'local'; ALTER ROLE name SET synchronous_commit = 'on';";

/// Whether commits wait for the store as they should, and never for what does not come.
fn judge_commits(
    commits: &CommitSettings,
    application_name: &str,
    rpo: Rpo,
    findings: &mut Findings,
) {
    let names = &commits.standby_names;
    let own = quote_identifier(application_name);
    let waited_for = commits.wait_for(application_name);
    if commits.wait_for_anyone() {
        findings.warning(
            format!("synchronous_standby_names = '{names}' matches every receiver: commits would wait for walden's store, and for any other"),
            Some(format!("name the standbys that commits shall wait for, e.g. ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (standby1)';, with walden among them ({own}) for rpo = \"sync\"")),
            Some(RELOAD),
        );
    } else if rpo == Rpo::Sync && !waited_for {
        let own = own.replace('\'', "''");
        let (others, wanted) = match names.is_empty() {
            true => (String::new(), own),
            false => (
                format!(" (they are '{names}' now)"),
                format!("FIRST 2 ({own}, standby1)"),
            ),
        };
        findings.warning(
            format!("rpo is \"sync\", but no commit waits: synchronous_standby_names do not name {application_name:?}{others}"),
            Some(format!("ALTER SYSTEM SET synchronous_standby_names = '{wanted}';  -- while `walden run` is at work: without it commits wait; {FOR_ROLES}")),
            Some(RELOAD),
        );
    } else if rpo == Rpo::Sync && !commits.always_wait_for(application_name) {
        findings.warning(
            format!("rpo is \"sync\", but a commit may return before walden has stored it: with synchronous_standby_names = '{names}' another standby is enough"),
            Some(format!("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 2 ({}, standby1)';  -- as many as must have it, walden among the first", own.replace('\'', "''"))),
            Some(RELOAD),
        );
    } else if rpo != Rpo::Sync && waited_for {
        findings.warning(
            format!("commits wait for walden (synchronous_standby_names = '{names}'), which stores at once then, whatever rpo says"),
            Some("rpo = \"sync\" in [archive] if that is meant; else take its name out of synchronous_standby_names".into()),
            None,
        );
    }
    if !waited_for {
        return;
    }
    let hangs = |whose: &str| {
        format!(
            "synchronous_commit of {whose} is remote_apply: its commits would hang, because walden never replays WAL"
        )
    };
    if commits.server.eq_ignore_ascii_case("remote_apply") {
        findings.error(
            hangs("the server"),
            Some("ALTER SYSTEM SET synchronous_commit = 'on';".into()),
            Some(RELOAD),
        );
    }
    for exception in commits.hanging() {
        findings.error(
            hangs(&exception.to_string()),
            Some(set_commit(exception, "on")),
            None,
        );
    }
    if rpo == Rpo::Sync && matches!(commits.server.as_str(), "off" | "local") {
        findings.warning(
            format!(
                "rpo is \"sync\", but synchronous_commit is {}: only commits of those who set it to on wait",
                commits.server
            ),
            Some(format!("ALTER SYSTEM SET synchronous_commit = 'on';  -- or {FOR_ROLES}")),
            Some(RELOAD),
        );
    }
}

/// The statement that sets `synchronous_commit` where an exception sets it.
fn set_commit(exception: &CommitException, value: &str) -> String {
    let quoted = |name: &Option<String>| name.as_deref().map(quote_identifier);
    let whose = match (quoted(&exception.role), quoted(&exception.database)) {
        (Some(role), Some(database)) => format!("ROLE {role} IN DATABASE {database}"),
        (Some(role), None) => format!("ROLE {role}"),
        (None, Some(database)) => format!("DATABASE {database}"),
        (None, None) => "ROLE ALL".to_owned(),
    };
    format!("ALTER {whose} SET synchronous_commit = '{value}';")
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
    use crate::server_check::Severity;
    use std::time::Duration;

    const RPO: Rpo = Rpo::Interval(Duration::from_secs(5));

    fn commits(names: &str, server: &str) -> CommitSettings {
        CommitSettings {
            standby_names: names.into(),
            server: server.into(),
            exceptions: Vec::new(),
        }
    }

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
            application_name: "walden".into(),
            commits: Some(commits("", "on")),
            ..ServerFacts::default()
        }
    }

    #[test]
    fn a_good_server_has_no_findings() {
        assert_eq!(judge(&good(), "walden", RPO), []);
    }

    #[test]
    fn each_thing_missing_names_what_helps() {
        let check =
            |facts: ServerFacts, severity: Severity, what: &str, fix: &str, then: Option<&str>| {
                let findings = judge(&facts, "walden", RPO);
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
                commits: Some(CommitSettings {
                    standby_names: "*".into(),
                    ..commits("", "on")
                }),
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
            "walden init --adopt",
            None,
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
        assert_eq!(judge(&facts, "walden", RPO), []);
    }

    #[test]
    fn what_commits_wait_for_is_said_with_the_statement_that_changes_it() {
        let found = |commits: CommitSettings, rpo: Rpo| {
            let facts = ServerFacts {
                commits: Some(commits),
                ..good()
            };
            let findings = judge(&facts, "walden", rpo);
            findings
                .into_iter()
                .map(|finding| (finding.severity, finding.fix.unwrap_or_default()))
                .collect::<Vec<_>>()
        };
        let one = |commits, rpo, severity, fix: &str| {
            let found = found(commits, rpo);
            let [(found, said)] = found.as_slice() else {
                panic!("{found:?}");
            };
            assert_eq!(*found, severity);
            assert!(said.contains(fix), "{said}");
        };
        assert_eq!(found(commits("walden, a", "on"), Rpo::Sync), []);
        one(
            commits("a, walden", "on"),
            Rpo::Sync,
            Severity::Warning,
            "'FIRST 2 (walden, standby1)'",
        );
        assert_eq!(found(commits("a", "remote_apply"), RPO), [], "not ours");
        let enable = "ALTER SYSTEM SET synchronous_standby_names = 'walden'";
        one(commits("", "on"), Rpo::Sync, Severity::Warning, enable);
        let for_a_role = "ALTER ROLE name SET synchronous_commit = 'on'";
        one(commits("", "on"), Rpo::Sync, Severity::Warning, for_a_role);
        one(
            commits("a", "on"),
            Rpo::Sync,
            Severity::Warning,
            "'FIRST 2 (walden, standby1)'",
        );
        one(
            commits("walden", "on"),
            RPO,
            Severity::Warning,
            "rpo = \"sync\"",
        );
        one(
            commits("walden", "local"),
            Rpo::Sync,
            Severity::Warning,
            "ALTER SYSTEM SET synchronous_commit = 'on'",
        );
        one(
            commits("walden", "remote_apply"),
            Rpo::Sync,
            Severity::Error,
            "ALTER SYSTEM SET synchronous_commit = 'on'",
        );
        let exception = |database: Option<&str>, role: Option<&str>| CommitSettings {
            exceptions: vec![CommitException {
                database: database.map(str::to_owned),
                role: role.map(str::to_owned),
                value: "remote_apply".into(),
            }],
            ..commits("walden", "on")
        };
        for (database, role, fix) in [
            (None, Some("Etl"), "ALTER ROLE \"Etl\" SET"),
            (Some("shop"), None, "ALTER DATABASE shop SET"),
            (
                Some("shop"),
                Some("etl"),
                "ALTER ROLE etl IN DATABASE shop SET",
            ),
            (None, None, "ALTER ROLE ALL SET"),
        ] {
            one(exception(database, role), Rpo::Sync, Severity::Error, fix);
        }
    }
}
