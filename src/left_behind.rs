//! What is stored beside the path of the server: the commits that a failover or a restore left behind. For `status`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use archiver::branches;
use archiver::replication::{Connection, ConnectionInfo, Deadlines, Mode};
use pitr::left_behind::count_commits;
use repository::ErrorClass;
use repository::sealed::OpenPolicy;
use repository::wal::utc;
use serde::Serialize;
use wal_format::{TimelineHistory, TimelineId};

use crate::config::Config;
use crate::each::{Place, Unseen};
use crate::open;

/// How long one answer of the server may take: a person waits.
const PATIENCE: Deadlines = Deadlines {
    connect: Duration::from_secs(5),
    reply: Duration::from_secs(15),
    ..Deadlines::DEFAULT
};
/// Most stretches whose commits are counted, newest timeline first.
const MAX_COUNTED: usize = 4;

/// WAL on one timeline that does not lead to the server.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LeftBehind {
    /// On which timeline.
    timeline: u32,
    /// Where the server's path left it.
    from_lsn: String,
    /// Where what is stored of it ends.
    to_lsn: String,
    /// Names of the repositories that hold all of it.
    repositories: Vec<String>,
    /// Transactions that committed there; `None`: no key opens the WAL, or it is too old to be looked at each time.
    commits: Option<u64>,
    /// There may be more.
    at_least: bool,
    last: Option<LastCommit>,
}

#[derive(Debug, Clone, Serialize)]
struct LastCommit {
    time: Option<jiff::Timestamp>,
    xid: u32,
    lsn: String,
}

/// Asks the server for its history and each repository for what lies beside it; also gives those that could not be looked at.
///
/// # Errors
/// The server cannot be asked.
pub(crate) async fn ask(
    info: &ConnectionInfo,
    timeline: TimelineId,
    config: &Config,
    places: &[Place],
) -> Result<(Vec<LeftBehind>, Vec<Unseen>)> {
    // Nothing was left before the first promotion.
    if timeline == TimelineId::FIRST {
        return Ok(Default::default());
    }
    let mut connection =
        Connection::connect_with(info, Mode::PhysicalReplication, PATIENCE).await?;
    let file = connection.timeline_history(timeline).await?;
    connection.close().await?;
    let history = TimelineHistory::parse(timeline, &file.content)?;
    let policy = open::open_policy(config, false).await.unwrap_or_default();
    let (mut left, mut unseen) = (BTreeMap::new(), Vec::new());
    for place in places {
        let (repository, cluster) = (&place.repository, &place.cluster);
        let listed = repository.list(cluster.id()).await;
        match listed {
            Ok(catalog) => {
                for one in branches::left_behind(&history, &catalog, cluster.segment_size()?) {
                    let holders: &mut Vec<_> = left.entry(one.timeline).or_default();
                    holders.push((place, one));
                }
            }
            Err(error) => unseen.push(Unseen::new(repository, &error.into())),
        }
    }
    let mut found = Vec::new();
    for (index, (_, holders)) in left.into_iter().rev().enumerate() {
        let is_counted = index < MAX_COUNTED;
        found.extend(LeftBehind::new(&holders, is_counted, &policy).await);
    }
    Ok((found, unseen))
}

impl LeftBehind {
    /// One timeline's, of those that hold any of it: the one that reaches furthest tells.
    async fn new(
        holders: &[(&Place, branches::LeftBehind)],
        is_counted: bool,
        policy: &OpenPolicy,
    ) -> Option<Self> {
        let furthest = holders.iter().rev().max_by_key(|(_, one)| one.to);
        let (place, left) = furthest?;
        let from = holders.iter().map(|(_, one)| one.from).min();
        let from = from.unwrap_or(left.from);
        let whole = holders.iter().filter(|(_, one)| one.to == left.to);
        let mut one = Self {
            timeline: left.timeline.get(),
            from_lsn: from.to_string(),
            to_lsn: left.to.to_string(),
            repositories: whole
                .map(|(place, _)| place.repository.name().to_owned())
                .collect(),
            commits: None,
            at_least: false,
            last: None,
        };
        if !is_counted {
            return Some(one);
        }
        let (repository, id) = (&place.repository, place.cluster.id());
        match count_commits(repository, policy, id, left.timeline, left.from, left.to).await {
            Ok(counted) => {
                one.commits = Some(counted.count);
                one.at_least = !counted.is_whole;
                one.last = counted.last.map(|commit| LastCommit {
                    time: utc(commit.time),
                    xid: commit.xid,
                    lsn: commit.lsn.to_string(),
                });
            }
            Err(error) if error.class() == ErrorClass::Retry => {
                let (name, timeline) = (repository.name(), left.timeline);
                tracing::warn!(
                    "commits of timeline {timeline} are not counted: repository {name}: {error}"
                );
            }
            // What is missing or damaged is for `verify` to say; without a key nothing can be counted.
            Err(error) => tracing::debug!(
                "commits of timeline {} are not counted: {error}",
                left.timeline
            ),
        }
        Some(one)
    }

    /// One line, without its label; `all` are the names of the repositories that were looked at.
    pub(crate) fn to_text(&self, all: &[String]) -> String {
        let mut text = format!("timeline {} beyond {}", self.timeline, self.from_lsn);
        match (self.commits, &self.last) {
            (Some(count), Some(last)) => {
                let word = if count == 1 { "commit" } else { "commits" };
                let at_least = if self.at_least { "at least " } else { "" };
                let time = last
                    .time
                    .map(|time| format!(" of {time}"))
                    .unwrap_or_default();
                text.push_str(&format!(
                    ": {at_least}{count} {word}, the last{time}, xid {} at {}",
                    last.xid, last.lsn
                ));
            }
            (Some(_), None) if self.at_least => text.push_str(&format!(
                " up to {}: no commit in the part that was read",
                self.to_lsn
            )),
            (Some(_), None) => text.push_str(&format!(" up to {}: no commit", self.to_lsn)),
            (None, _) => text.push_str(&format!(" up to {}: commits not counted", self.to_lsn)),
        }
        text.push_str(&format!(" (restores with --timeline {})", self.timeline));
        let lack = all.iter().filter(|name| !self.repositories.contains(name));
        let lack: Vec<&str> = lack.map(String::as_str).collect();
        if !lack.is_empty() {
            text.push_str(&format!("; not, or not all of it, in {}", lack.join(", ")));
        }
        text
    }
}
