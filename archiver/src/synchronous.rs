//! Which of the server's commits wait for this receiver, and for what: reading of `synchronous_standby_names` and of
//! `synchronous_commit`, which may be set for the server, a role, a database, or a role in a database. (What a session sets for itself cannot
//! be seen from outside.) Owns the questions and their judgement; what follows from it is the receiver's (`commit_watch.rs`) and the command
//! line's.
//!
//! Source: manual chapter "Replication", settings of the primary server; `src/backend/replication/syncrep.c`, `pg_db_role_setting`.

use std::fmt;
use std::time::Duration;

use crate::replication::{Connection, ConnectionInfo, Deadlines, Mode};
use crate::upload::error_text;
use crate::{Error, Result};

/// How long one answer may take: it is asked for again.
const PATIENCE: Deadlines = Deadlines {
    connect: Duration::from_secs(10),
    reply: Duration::from_secs(10),
    ..Deadlines::DEFAULT
};

/// Set where commits wait until a standby has *replayed* them: a receiver never does.
const REMOTE_APPLY: &str = "remote_apply";

const EXCEPTIONS: &str = "SELECT d.datname::text AS database, r.rolname::text AS role, split_part(c.setting, '=', 2) AS value \
     FROM pg_catalog.pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting) \
          LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole \
     WHERE c.setting LIKE 'synchronous\\_commit=%' ORDER BY 1 NULLS FIRST, 2 NULLS FIRST LIMIT 1000";

/// How commits wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitSettings {
    /// `synchronous_standby_names`
    pub standby_names: String,
    /// `synchronous_commit` of a session of ours.
    pub server: String,
    /// Where `synchronous_commit` is set for somebody.
    pub exceptions: Vec<CommitException>,
}

/// `synchronous_commit` of a role, a database, or a role in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitException {
    /// The database; `None`: in all.
    pub database: Option<String>,
    /// The role; `None`: of all.
    pub role: Option<String>,
    /// The setting.
    pub value: String,
}

impl CommitSettings {
    /// Asks over an SQL connection. Any role may see these.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn ask(sql: &mut Connection) -> Result<Self> {
        let standby_names = sql.show("synchronous_standby_names").await?;
        let server = sql.show("synchronous_commit").await?;
        let answer = sql.simple_query(EXCEPTIONS).await?;
        let text = |row, column| answer.text(row, column).map(str::to_owned);
        let exceptions = (0..answer.rows.len())
            .map(|row| CommitException {
                database: text(row, "database"),
                role: text(row, "role"),
                value: text(row, "value").unwrap_or_default(),
            })
            .collect();
        Ok(Self {
            standby_names,
            server,
            exceptions,
        })
    }

    /// Connects for this one question. A connection that stayed would keep the server from a smart shutdown.
    ///
    /// # Errors
    /// Those of the connection: a role that may only replicate is let into no database.
    pub async fn connect_and_ask(replication: &ConnectionInfo) -> Result<Self> {
        let mut info = replication.clone();
        info.database.get_or_insert_with(|| "postgres".to_owned());
        let mut sql = Connection::connect_with(&info, Mode::Sql, PATIENCE).await?;
        let settings = Self::ask(&mut sql).await?;
        if let Err(error) = sql.close().await {
            // Everything was asked: how the connection ends is of no interest.
            tracing::debug!(error = error_text(&error), "side connection");
        }
        Ok(settings)
    }

    /// Whether commits may wait for a receiver of this name.
    #[must_use]
    pub fn wait_for(&self, application_name: &str) -> bool {
        names_match(&self.standby_names, application_name)
    }

    /// Whether no commit returns without a receiver of this name, as far as `synchronous_standby_names` decide: others that are named may
    /// be enough for the server.
    #[must_use]
    pub fn always_wait_for(&self, application_name: &str) -> bool {
        always_waits(&self.standby_names, application_name)
    }

    /// Whether commits wait for whoever receives WAL: `synchronous_standby_names` has a `*`.
    #[must_use]
    pub fn wait_for_anyone(&self) -> bool {
        names(&self.standby_names).any(|name| name == "*")
    }

    /// The exceptions whose commits would wait for ever for a receiver that they wait for.
    pub fn hanging(&self) -> impl Iterator<Item = &CommitException> {
        self.exceptions
            .iter()
            .filter(|exception| exception.value.eq_ignore_ascii_case(REMOTE_APPLY))
    }

    /// Refuses what would hang, given that commits wait for us.
    ///
    /// # Errors
    /// `RemoteApply`: commits would wait for ever.
    pub fn refuse_remote_apply(&self) -> Result<()> {
        let whose = self.first_hanging();
        whose.map_or(Ok(()), |whose| Err(Error::RemoteApply { whose }))
    }

    /// Whose commits wait for ever, if anybody's do.
    pub(crate) fn first_hanging(&self) -> Option<String> {
        match self.server.eq_ignore_ascii_case(REMOTE_APPLY) {
            true => Some("the server".to_owned()),
            false => self.hanging().next().map(ToString::to_string),
        }
    }
}

impl fmt::Display for CommitException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.role, &self.database) {
            (Some(role), Some(database)) => write!(f, "role {role:?} in database {database:?}"),
            (Some(role), None) => write!(f, "role {role:?}"),
            (None, Some(database)) => write!(f, "database {database:?}"),
            (None, None) => f.write_str("all roles"),
        }
    }
}

/// Whether a server with these `synchronous_standby_names` may wait for a receiver of this name. Names are compared without case, as
/// the server does.
fn names_match(setting: &str, application_name: &str) -> bool {
    names(setting).any(|name| name == "*" || name.eq_ignore_ascii_case(application_name))
}

/// Of `FIRST n (…)` (or only names, for n = 1) the first n count, of `ANY n (…)` any n. `*` stands for any number of receivers.
fn always_waits(setting: &str, application_name: &str) -> bool {
    let (head, list) = match setting.split_once('(') {
        Some((head, list)) => (head.trim(), list.trim_end().trim_end_matches(')')),
        None => ("1", setting),
    };
    let listed: Vec<String> = list
        .split(',')
        .map(|name| name.trim().trim_matches('"').replace("\"\"", "\""))
        .collect();
    let is_any = head
        .get(..3)
        .is_some_and(|word| word.eq_ignore_ascii_case("any"));
    let count = head.rsplit(|c: char| !c.is_ascii_digit()).next();
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(1);
    let needed = if is_any {
        listed.len().max(count) == count
    } else {
        true
    };
    let mut first = listed.iter().take(count);
    needed
        && !(is_any && listed.iter().any(|name| name == "*"))
        && first
            .by_ref()
            .take_while(|name| *name != "*")
            .any(|name| name.eq_ignore_ascii_case(application_name))
}

/// The words of the syntax (`FIRST`, `ANY`) and numbers are taken for names, which errs on the side of storing at once.
fn names(setting: &str) -> impl Iterator<Item = &str> {
    let part_of_a_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$' | ' ');
    setting
        .split(move |c: char| !part_of_a_name(c) && c != '*')
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(names: &str, server: &str, exceptions: &[(&str, &str)]) -> CommitSettings {
        CommitSettings {
            standby_names: names.into(),
            server: server.into(),
            exceptions: exceptions
                .iter()
                .map(|(role, value)| CommitException {
                    database: None,
                    role: Some((*role).into()),
                    value: (*value).into(),
                })
                .collect(),
        }
    }

    #[test]
    fn who_is_waited_for() {
        let wait = |names: &str| settings(names, "on", &[]).wait_for("walden");
        for waiting in [
            "walden",
            "WALDEN",
            "*",
            "ANY 1 (a, walden)",
            "FIRST 2 (\"walden\", b)",
            "2(x,*)",
        ] {
            assert!(wait(waiting), "{waiting}");
        }
        for not in ["", "walden2", "a, b", "ANY 1 (\"the walden\")"] {
            assert!(!wait(not), "{not}");
        }
        assert!(settings("ANY 1 (*)", "on", &[]).wait_for_anyone());
        assert!(!settings("walden", "on", &[]).wait_for_anyone());
    }

    #[test]
    fn others_may_be_enough() {
        let always = |names: &str| settings(names, "on", &[]).always_wait_for("walden");
        for waiting in [
            "walden",
            "Walden, b",
            "FIRST 2 (b, \"walden\")",
            "2 (b, walden, c)",
            "ANY 2 (b, walden)",
            "any 1(walden)",
        ] {
            assert!(always(waiting), "{waiting}");
        }
        for not in [
            "",
            "b",
            "b, walden",
            "FIRST 1 (b, walden)",
            "ANY 1 (b, walden)",
            "ANY 2 (*, walden)",
            "2 (*, walden)",
            "*",
        ] {
            assert!(!always(not), "{not}");
        }
    }

    #[test]
    fn whoever_would_hang_is_named() {
        let refused = |server, exceptions: &[(&str, &str)]| {
            settings("walden", server, exceptions)
                .refuse_remote_apply()
                .map_err(|error| error.to_string())
        };
        assert_eq!(refused("on", &[("app", "local"), ("etl", "off")]), Ok(()));
        let server = refused("remote_apply", &[]).unwrap_err();
        assert!(server.contains("of the server"), "{server}");
        let role = refused("on", &[("app", "local"), ("etl", "Remote_Apply")]).unwrap_err();
        assert!(role.contains("role \"etl\""), "{role}");
    }
}
