//! What is stored beside the path of the server: the commits that a failover or a restore left behind. For `status`.

use std::time::Duration;

use anyhow::Result;
use archiver::branches;
use archiver::replication::{Connection, ConnectionInfo, Deadlines, Mode};
use pitr::left_behind::count_commits;
use repository::ErrorClass;
use repository::wal::utc;
use serde::Serialize;
use wal_format::{TimelineHistory, TimelineId};

use crate::config::Config;
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

/// Asks the server for its history and the repository for what lies beside it.
///
/// # Errors
/// Either cannot be asked.
pub(crate) async fn ask(
    info: &ConnectionInfo,
    timeline: TimelineId,
    config: &Config,
) -> Result<Vec<LeftBehind>> {
    // Nothing was left before the first promotion.
    if timeline == TimelineId::FIRST {
        return Ok(Vec::new());
    }
    let mut connection =
        Connection::connect_with(info, Mode::PhysicalReplication, PATIENCE).await?;
    let file = connection.timeline_history(timeline).await?;
    connection.close().await?;
    let history = TimelineHistory::parse(timeline, &file.content)?;
    let repository = open::open_repository_with(config, open::IMPATIENT).await?;
    let cluster = open::find_cluster(config, &repository, None).await?;
    let catalog = repository.list(cluster.id()).await?;
    let left = branches::left_behind(&history, &catalog, cluster.segment_size()?);
    let policy = open::open_policy(config, false).await.unwrap_or_default();
    let mut found = Vec::new();
    for (index, left) in left.iter().rev().enumerate() {
        let mut one = LeftBehind {
            timeline: left.timeline.get(),
            from_lsn: left.from.to_string(),
            to_lsn: left.to.to_string(),
            commits: None,
            at_least: false,
            last: None,
        };
        if index < MAX_COUNTED {
            let id = cluster.id();
            match count_commits(&repository, &policy, id, left.timeline, left.from, left.to).await {
                Ok(counted) => {
                    one.commits = Some(counted.count);
                    one.at_least = !counted.is_whole;
                    one.last = counted.last.map(|commit| LastCommit {
                        time: utc(commit.time),
                        xid: commit.xid,
                        lsn: commit.lsn.to_string(),
                    });
                }
                // What is missing or damaged is for `verify` to say; without a key nothing can be counted.
                Err(error) if error.class() != ErrorClass::Retry => {
                    tracing::debug!(
                        "commits of timeline {} are not counted: {error}",
                        left.timeline
                    );
                }
                Err(error) => return Err(error.into()),
            }
        }
        found.push(one);
    }
    Ok(found)
}

impl LeftBehind {
    /// One line, without its label.
    pub(crate) fn to_text(&self) -> String {
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
            (Some(_), None) => text.push_str(&format!(" up to {}: no commit", self.to_lsn)),
            (None, _) => text.push_str(&format!(" up to {}: commits not counted", self.to_lsn)),
        }
        text.push_str(&format!(" (restores with --timeline {})", self.timeline));
        text
    }
}
