//! `walden init --adopt`: a restored server takes its source's place. Checks that what is stored goes on with it, takes the mark of a
//! restore away on the running server, and makes the slot. Owns the order of that; nothing changes before every check has passed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use archiver::branches::{LeftBehind, check_newest, left_behind};
use archiver::replication::{Connection, ConnectionInfo, Mode};
use archiver::server_identity::{StoredHistory, compare_history};
use pitr::recovery_conf::{RESTORED_FROM, settings_of_a_restore};
use repository::Repository;
use repository::key::ClusterId;
use serde::Serialize;
use wal_format::{SegmentSize, TimelineHistory, TimelineId};

use super::super::Globals;
use crate::cli::ServerArgs;
use crate::config::Overrides;
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::server_check::{self, Finding, ServerFacts, Severity};
use crate::{open, setup};

/// How long a reload may take until new connections see it.
const RELOAD_DEADLINE: Duration = Duration::from_secs(10);

/// What was done, for `--json` and for people.
#[derive(Debug, Serialize)]
struct Report {
    cluster: String,
    timeline: u32,
    /// What the server was restored from; `None`: it carried no mark.
    restored_from: Option<String>,
    slot: String,
    slot_is_new: bool,
    left_behind: Vec<Left>,
    /// What the restore set besides, and is still in force.
    settings: Vec<Setting>,
    warnings: Vec<Finding>,
}

/// Stored WAL that does not lead to this server.
#[derive(Debug, Serialize)]
struct Left {
    timeline: u32,
    from_lsn: String,
    to_lsn: String,
}

#[derive(Debug, Serialize)]
struct Setting {
    name: String,
    value: String,
    needs_restart: bool,
}

/// Lets the configured server in.
pub(super) async fn run(server: ServerArgs, globals: &Globals) -> Result<ExitCode> {
    let overrides = Overrides {
        conninfo: server.conninfo,
        slot: server.slot,
        ..Overrides::default()
    };
    let config = globals.load_config(&overrides)?;
    let slot = config.postgres.slot.as_str();
    let info = open::connection_info(&config)?;
    let repositories = open::repositories(&config).await?;
    let mut facts = ServerFacts::ask(&info, slot).await;
    let mark = facts.restored_from.take();
    let mut findings = server_check::judge(&facts, slot, config.archive.rpo);
    if facts.is_standby {
        findings.insert(0, still_recovering());
    }
    if server_check::has_errors(&findings) {
        return super::refuse(&facts, &findings, globals);
    }
    let timeline = facts
        .identity
        .as_ref()
        .context("the server does not say what it is")?
        .timeline;
    let history = Histories::ask(&info, timeline).await?;
    let (mut cluster, mut left) = (None, Vec::new());
    for repository in &repositories {
        open::require_repository(repository).await?;
        let known = open::find_cluster(&config, repository, None).await?;
        if let Some(what) = known.difference(&with_incarnation(setup::cluster_of(&facts)?, &known))
        {
            return Err(anyhow!(
                "the server is not the cluster {}: another {what}",
                known.id()
            ))
            .exit_code(ExitCode::Integrity);
        }
        let stored = Stored {
            repository,
            cluster: known.id(),
            size: known.segment_size()?,
        };
        let beside = stored.goes_on_with(&history, mark.is_some()).await;
        left = beside
            .hint("nothing was changed; `walden init --new-incarnation` opens a place of its own for this server's WAL, then adopt it")
            .exit_code(ExitCode::Integrity)?;
        cluster = Some(known.id());
    }
    if mark.is_some() {
        take_mark_away(&info).await?;
    }
    let slot_is_new = setup::make_slot(&info, slot).await?;
    let report = Report {
        cluster: cluster
            .map(|cluster| cluster.to_string())
            .unwrap_or_default(),
        timeline: timeline.get(),
        restored_from: mark,
        slot: slot.to_owned(),
        slot_is_new,
        left_behind: left.into_iter().map(Left::from).collect(),
        settings: ask_settings(&info).await?,
        warnings: findings,
    };
    globals
        .output
        .print("walden.adopt", &report, || report.to_text())?;
    Ok(match report.warnings.is_empty() {
        true => ExitCode::Done,
        false => ExitCode::Warnings,
    })
}

fn with_incarnation(
    mut document: repository::cluster::ClusterDocument,
    known: &repository::cluster::ClusterDocument,
) -> repository::cluster::ClusterDocument {
    document.incarnation = known.incarnation;
    document
}

fn still_recovering() -> Finding {
    Finding {
        severity: Severity::Error,
        what: "the server is still in recovery: it goes live on a timeline of its own, once it is open for writing".into(),
        fix: Some("SELECT pg_wal_replay_resume();  -- paused at its target; else SELECT pg_promote();".into()),
        then: Some("walden init --adopt"),
    }
}

/// The server's way here: the history files of its timeline and of those before.
struct Histories {
    parsed: TimelineHistory,
    contents: Vec<(TimelineId, Vec<u8>)>,
}

impl Histories {
    async fn ask(info: &ConnectionInfo, timeline: TimelineId) -> Result<Self> {
        let mut connection = Connection::connect(info, Mode::PhysicalReplication).await?;
        let mut contents = Vec::new();
        let mut parsed = TimelineHistory::first();
        if timeline != TimelineId::FIRST {
            let file = connection.timeline_history(timeline).await?;
            parsed = TimelineHistory::parse(timeline, &file.content)
                .context("read the server's timeline history")?;
            contents.push((timeline, file.content.to_vec()));
        }
        for entry in parsed.entries() {
            if entry.timeline == TimelineId::FIRST {
                continue;
            }
            // The server may have dropped an old one.
            if let Ok(file) = connection.timeline_history(entry.timeline).await {
                contents.push((entry.timeline, file.content.to_vec()));
            } else {
                break;
            }
        }
        Ok(Self { parsed, contents })
    }
}

/// What one repository holds of the cluster.
struct Stored<'a> {
    repository: &'a Repository,
    cluster: ClusterId,
    size: SegmentSize,
}

impl Stored<'_> {
    /// Whether what is stored goes on with a server of this history, and what of it lies beside that.
    async fn goes_on_with(&self, server: &Histories, is_marked: bool) -> Result<Vec<LeftBehind>> {
        let place = self.repository.url();
        let catalog = self.repository.list(self.cluster).await?;
        let timeline = server.parsed.timeline();
        check_newest(&server.parsed, &catalog, self.size).with_context(|| place.to_owned())?;
        // A marked server was never archived: what is stored of its timeline, another server wrote.
        if is_marked && catalog.wal_end(timeline, self.size).is_some() {
            return Err(anyhow!(
                "{place}: WAL of timeline {timeline} is stored already, and not of this server: another one was promoted to it"
            ));
        }
        for (timeline, content) in &server.contents {
            let stored = compare_history(self.repository, self.cluster, *timeline, content).await?;
            if stored == StoredHistory::Another {
                return Err(anyhow!(
                    "{place}: the history of timeline {timeline} is stored, and is not this server's: two servers were promoted to it"
                ));
            }
        }
        Ok(left_behind(&server.parsed, &catalog, self.size))
    }
}

/// Removes the mark from the running server, and waits until nobody sees it any more.
async fn take_mark_away(info: &ConnectionInfo) -> Result<()> {
    let statement = format!("ALTER SYSTEM RESET {RESTORED_FROM}");
    let by_hand = || {
        format!(
            "as a superuser: {statement}; SELECT pg_reload_conf();  then `walden init --adopt` again"
        )
    };
    let mut sql = connect(info).await?;
    for query in [statement.as_str(), "SELECT pg_catalog.pg_reload_conf()"] {
        sql.simple_query(query)
            .await
            .with_context(|| format!("take the mark of the restore away ({query})"))
            .hint(by_hand())?;
    }
    let begun = Instant::now();
    loop {
        let answer = connect(info)
            .await?
            .simple_query(&format!(
                "SELECT coalesce(pg_catalog.current_setting('{RESTORED_FROM}', true), '') AS mark"
            ))
            .await?;
        if answer.text(0, "mark") == Some("") {
            return Ok(());
        }
        if begun.elapsed() > RELOAD_DEADLINE {
            return Err(anyhow!("{RESTORED_FROM} is still set after a reload"))
                .hint("another file than postgresql.auto.conf sets it (pg_settings.sourcefile says which): remove the line there, reload, and run `walden init --adopt` again");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn connect(info: &ConnectionInfo) -> Result<Connection> {
    let mut info = info.clone();
    info.database.get_or_insert_with(|| "postgres".to_owned());
    Ok(Connection::connect(&info, Mode::Sql).await?)
}

/// What `postgresql.auto.conf` still sets of what a restore sets. Nothing, for a role that may not see where settings come from.
async fn ask_settings(info: &ConnectionInfo) -> Result<Vec<Setting>> {
    let names: Vec<String> = settings_of_a_restore()
        .map(|name| format!("'{name}'"))
        .collect();
    let answer = connect(info)
        .await?
        .simple_query(&format!(
            "SELECT name, setting, context = 'postmaster' AS restart FROM pg_catalog.pg_settings \
             WHERE sourcefile LIKE '%postgresql.auto.conf' AND name IN ({}) ORDER BY name",
            names.join(", ")
        ))
        .await?;
    let text = |row: usize, column: &str| answer.text(row, column).unwrap_or_default().to_owned();
    Ok((0..answer.rows.len())
        .map(|row| Setting {
            name: text(row, "name"),
            value: text(row, "setting"),
            needs_restart: answer.text(row, "restart") == Some("t"),
        })
        .collect())
}

impl From<LeftBehind> for Left {
    fn from(left: LeftBehind) -> Self {
        Self {
            timeline: left.timeline.get(),
            from_lsn: left.from.to_string(),
            to_lsn: left.to.to_string(),
        }
    }
}

impl Report {
    fn to_text(&self) -> String {
        let mut text = match &self.restored_from {
            Some(from) => format!(
                "adopted     restored from {from}; from now on it archives as the cluster {}\n",
                self.cluster
            ),
            None => format!(
                "adopted     it carries no mark of a restore; it archives as the cluster {}\n",
                self.cluster
            ),
        };
        let made = if self.slot_is_new {
            "made"
        } else {
            "was there"
        };
        text.push_str(&format!(
            "timeline    {}\nslot        {} ({made})\n",
            self.timeline, self.slot
        ));
        for left in &self.left_behind {
            text.push_str(&format!(
                "left behind timeline {} from {} to {}: stored, and restores with --timeline {}\n",
                left.timeline, left.from_lsn, left.to_lsn, left.timeline
            ));
        }
        text.push_str(&server_check::to_text(&self.warnings));
        if !self.settings.is_empty() {
            text.push_str("\nThe restore also set these, and they are in force; without them postgresql.conf counts again:\n");
            for setting in &self.settings {
                let restart = if setting.needs_restart {
                    ", needs a restart"
                } else {
                    ""
                };
                text.push_str(&format!(
                    "    ALTER SYSTEM RESET {};  -- is '{}'{restart}\n",
                    setting.name, setting.value
                ));
            }
        }
        text.push_str("\nNext: see to it that the old server never comes back, start `walden run`, then `walden backup`.\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::Store;
    use repository::key::ObjectKey;

    const HISTORY: &[u8] = b"1\t0/3000500\tno recovery target specified\n";

    /// Asks a repository that holds these, all but history files empty, about a server on timeline 2.
    async fn ask(stored: &[(&str, &[u8])], server: &[u8], is_marked: bool) -> Result<usize> {
        let cluster = "7412".parse().unwrap();
        let repository = Repository::new("test", Store::in_memory());
        for (path, plain) in stored {
            let key: ObjectKey = format!("7412/wal/{path}").parse().unwrap();
            let sealed = repository::testing::sealed(key, None, plain);
            repository.put(&sealed).await.unwrap();
        }
        let second = TimelineId::new(2).unwrap();
        let histories = Histories {
            parsed: TimelineHistory::parse(second, server).unwrap(),
            contents: vec![(second, server.to_vec())],
        };
        let stored = Stored {
            repository: &repository,
            cluster,
            size: SegmentSize::DEFAULT,
        };
        let left = stored.goes_on_with(&histories, is_marked).await?;
        Ok(left.len())
    }

    #[tokio::test]
    async fn a_server_whose_past_is_stored_is_let_in_and_one_with_another_past_is_not() {
        const OTHER: &[u8] = b"1\t0/4000500\tno recovery target specified\n";
        let parent = ("00000001/00000000/000000010000000000000003.wal", &b""[..]);
        let own = ("00000002/00000000/000000020000000000000003.wal", &b""[..]);
        let newer = ("00000003/00000000/000000030000000000000005.wal", &b""[..]);
        let history = ("00000002.history", HISTORY);
        for (stored, server, is_marked, expected) in [
            (vec![], HISTORY, true, Ok(0)),
            (vec![parent], HISTORY, true, Ok(1)),
            (vec![parent, history], HISTORY, true, Ok(1)),
            (
                vec![parent, history],
                OTHER,
                true,
                Err("two servers were promoted to it"),
            ),
            (
                vec![parent, history],
                OTHER,
                false,
                Err("two servers were promoted to it"),
            ),
            (vec![history, own], HISTORY, false, Ok(0)),
            (
                vec![history, own],
                HISTORY,
                true,
                Err("another one was promoted to it"),
            ),
            (vec![history, own, newer], HISTORY, false, Err("timeline 3")),
        ] {
            let names: Vec<&str> = stored.iter().map(|(path, _)| *path).collect();
            match (ask(&stored, server, is_marked).await, expected) {
                (Ok(left), Ok(expected)) => assert_eq!(left, expected, "{names:?}"),
                (Err(error), Err(expected)) => {
                    let said = format!("{error:#}");
                    assert!(said.contains(expected), "{names:?}: {said}");
                }
                (asked, _) => panic!("{names:?} {is_marked}: {asked:?}"),
            }
        }
    }
}
