//! The answer of `pitr` about reachable moments as documents: what `window`, `list` and `status` print under `--json`, and the short
//! texts that they share. Computes nothing.

use std::fmt;

use anyhow::Result;
use jiff::Timestamp;
use pitr::survey::{Effort, Survey};
use pitr::window::{
    BackupWindow, Commit, End, Hole, Moment, PromiseReason, Reach, TimelineNode, Windows,
};
use repository::Repository;
use repository::cluster::ClusterDocument;
use repository::sealed::OpenPolicy;
use repository::wal::utc;
use serde::Serialize;

use crate::config::Config;
use crate::report::time;

/// What can be recovered from one backup, along the newest timeline: a line of `list`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Window {
    /// When the backup ended.
    from_time: Timestamp,
    /// Where it is consistent.
    from_lsn: String,
    /// Newest transaction that is stored; `None`: none after the backup is known.
    to_time: Option<Timestamp>,
    /// End of the WAL that follows without interruption.
    to_lsn: String,
    /// The timeline of that end.
    timeline: u32,
    /// What stops it, if something later is stored.
    ends_at_gap: Option<String>,
    /// Every segment's description was read; else the names of those in the middle were believed.
    proven: bool,
}

impl Window {
    /// `None`: nothing can be recovered from it.
    pub(crate) fn of(backup: &BackupWindow) -> Option<Self> {
        let reach = backup.reaches.first()?;
        let (from, to) = (backup.from(), reach.to());
        let stopped = from.time.and_then(utc).unwrap_or_default();
        Some(Self {
            from_time: stopped,
            from_lsn: from.lsn.to_string(),
            to_time: to.time.and_then(utc).filter(|time| *time >= stopped),
            to_lsn: to.lsn.to_string(),
            timeline: to.timeline.get(),
            ends_at_gap: gap_text(&reach.ends),
            proven: reach.proven,
        })
    }

    /// Whether segments in the middle were believed by their names.
    pub(crate) fn is_by_name(&self) -> bool {
        !self.proven
    }

    /// For people, in one line.
    pub(crate) fn to_text(&self) -> String {
        let newest = match self.to_time {
            Some(newest) => format!("to {}", time(newest)),
            None => "on, no later transaction".to_owned(),
        };
        let mut text = format!(
            "from {} {newest} (WAL {} to {}, timeline {})",
            time(self.from_time),
            self.from_lsn,
            self.to_lsn,
            self.timeline
        );
        if let Some(gap) = &self.ends_at_gap {
            text.push_str(&format!("; ends at a gap: {gap}"));
        }
        text
    }
}

/// WAL that is not stored although later WAL is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Gap {
    /// On which timeline.
    pub(crate) timeline: u32,
    /// First missing byte.
    pub(crate) from: String,
    /// First byte behind it.
    pub(crate) to: String,
    /// The first segment that is missing.
    pub(crate) first_missing: String,
    /// How many are.
    pub(crate) segments: u64,
    /// The server no longer had it: `walden run` recorded that. Else it may still come.
    pub(crate) recorded: bool,
    /// Somebody knows of it: it is no alarm any more.
    pub(crate) acknowledged: bool,
    #[serde(skip)]
    pub(crate) text: String,
}

impl From<&Hole> for Gap {
    fn from(hole: &Hole) -> Self {
        Self {
            timeline: hole.timeline.get(),
            from: hole.from.to_string(),
            to: hole.to.to_string(),
            first_missing: hole.first_missing.to_string(),
            segments: hole.segments,
            recorded: hole.recorded,
            acknowledged: hole.acknowledged,
            text: hole.to_string(),
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The open gaps.
pub(crate) fn gaps_of(windows: &Windows) -> Vec<Gap> {
    windows.holes.iter().map(Gap::from).collect()
}

/// A position that can be recovered to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Point {
    /// The time that belongs to it; `None`: not known.
    pub(crate) time: Option<Timestamp>,
    pub(crate) lsn: String,
    pub(crate) timeline: u32,
}

impl From<Moment> for Point {
    fn from(moment: Moment) -> Self {
        Self {
            time: moment.time.and_then(utc),
            lsn: moment.lsn.to_string(),
            timeline: moment.timeline.get(),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(moment) = self.time {
            write!(f, "{} ", time(moment))?;
        }
        write!(f, "(LSN {}, timeline {})", self.lsn, self.timeline)
    }
}

/// A commit that can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct CommitPoint {
    pub(crate) time: Option<Timestamp>,
    pub(crate) xid: u32,
    /// Start of its record: what `--to-lsn` takes.
    pub(crate) lsn: String,
    /// End of its record.
    pub(crate) end_lsn: String,
}

impl From<Commit> for CommitPoint {
    fn from(commit: Commit) -> Self {
        Self {
            time: utc(commit.time),
            xid: commit.xid,
            lsn: commit.lsn.to_string(),
            end_lsn: commit.end.to_string(),
        }
    }
}

/// Everything that one repository says of a cluster's reachable moments.
#[derive(Debug, Serialize)]
pub(crate) struct RepositoryWindows {
    /// Its name in the configuration.
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) cluster: String,
    /// The oldest moment that stays reachable.
    pub(crate) oldest_promised: Option<Promised>,
    /// The furthest end.
    pub(crate) newest: Option<Point>,
    /// The last commit before it; `None`: there is none after the backup, or no key opens the WAL.
    pub(crate) last_commit: Option<CommitPoint>,
    pub(crate) backups: Vec<BackupRange>,
    pub(crate) gaps: Vec<Gap>,
    pub(crate) timelines: Vec<TimelineBranch>,
    /// Last commits and, where there are several, timelines are not known: no key opens them.
    pub(crate) lacks_key: bool,
    /// What could not be read although it is listed.
    pub(crate) problems: Vec<String>,
}

/// The oldest moment that retention still promises.
#[derive(Debug, Serialize)]
pub(crate) struct Promised {
    #[serde(flatten)]
    pub(crate) moment: Point,
    pub(crate) backup: String,
    /// `oldest-backup`: no retention is configured.
    pub(crate) reason: &'static str,
}

/// What a backup opens.
#[derive(Debug, Serialize)]
pub(crate) struct BackupRange {
    pub(crate) label: String,
    pub(crate) from: Point,
    /// One for each timeline that can be followed, the newest first.
    pub(crate) ranges: Vec<Range>,
    /// Why there is none.
    pub(crate) unusable: Option<String>,
}

/// How far replay goes along one timeline.
#[derive(Debug, Serialize)]
pub(crate) struct Range {
    /// For `--timeline`.
    pub(crate) timeline: u32,
    pub(crate) to: Point,
    pub(crate) last_commit: Option<CommitPoint>,
    /// `stored`, `missing`, `invalid`, `broken`.
    pub(crate) ends: &'static str,
    /// The gap in words.
    pub(crate) gap: Option<String>,
    /// The first segment that is missing.
    pub(crate) first_missing: Option<String>,
    /// How many are.
    pub(crate) missing_segments: Option<u64>,
    /// Every segment's description was read and held against its neighbours'.
    pub(crate) proven: bool,
}

/// A range that ends where WAL is missing, which is a gap of its own.
const ENDS_MISSING: &str = "missing";

/// A timeline in the tree.
#[derive(Debug, Serialize)]
pub(crate) struct TimelineBranch {
    pub(crate) timeline: u32,
    /// `None`: the first one, or `known` is false.
    pub(crate) parent: Option<u32>,
    pub(crate) switch_lsn: Option<String>,
    /// The server's words.
    pub(crate) reason: String,
    /// Whether its past could be read.
    pub(crate) known: bool,
    /// Its history file is missing: nothing on it can be recovered.
    pub(crate) lacks_history: bool,
    pub(crate) stored_from: Option<String>,
    pub(crate) stored_to: Option<String>,
}

impl RepositoryWindows {
    /// Reads a repository.
    ///
    /// # Errors
    /// As [`Survey::gather`].
    pub(crate) async fn gather(
        repository: &Repository,
        cluster: &ClusterDocument,
        policy: &OpenPolicy,
    ) -> Result<Self> {
        let survey = Survey::gather(repository, cluster, policy, Effort::WHOLE).await?;
        let windows = &survey.windows;
        let newest = windows.newest();
        Ok(Self {
            name: repository.name().to_owned(),
            url: repository.url().to_owned(),
            cluster: cluster.id().to_string(),
            oldest_promised: windows.promise.as_ref().map(|promise| Promised {
                moment: promise.moment.into(),
                backup: promise.backup.to_string(),
                reason: match promise.reason {
                    PromiseReason::OldestBackup => "oldest-backup",
                },
            }),
            newest: newest.map(|(_, reach)| reach.to().into()),
            last_commit: newest.and_then(|(_, reach)| reach.last_commit.map(CommitPoint::from)),
            backups: windows.backups.iter().map(BackupRange::from).collect(),
            gaps: gaps_of(windows),
            timelines: windows.timelines.iter().map(TimelineBranch::from).collect(),
            lacks_key: survey.lacks_key,
            problems: survey.problems,
        })
    }

    /// What cannot be reached and why, each thing once: for people.
    pub(crate) fn unreachable(&self) -> Vec<String> {
        let mut all: Vec<String> = self.gaps.iter().map(|gap| format!("gap: {gap}")).collect();
        // Several backups may run into the same end.
        let ranges = self.backups.iter().flat_map(|backup| &backup.ranges);
        for range in ranges.filter(|range| range.ends != ENDS_MISSING) {
            if let Some(gap) = &range.gap {
                let line = format!("timeline {}: {gap}", range.timeline);
                if !all.contains(&line) {
                    all.push(line);
                }
            }
        }
        let unusable = self.backups.iter().filter_map(|backup| {
            let why = backup.unusable.as_ref()?;
            Some(format!("backup {}: {why}", backup.label))
        });
        let lacking = self.timelines.iter().filter(|one| one.lacks_history);
        let lacking =
            lacking.map(|one| format!("timeline {}: its history file is missing", one.timeline));
        all.extend(unusable.chain(lacking));
        all.extend(self.problems.iter().cloned());
        all
    }

    /// Whether a moment between the oldest and the newest cannot be reached, or something could not be read.
    pub(crate) fn has_gaps(&self) -> bool {
        let ends_at_gap = |backup: &BackupRange| {
            backup.unusable.is_some() || backup.ranges.iter().any(|range| range.gap.is_some())
        };
        !self.gaps.is_empty()
            || !self.problems.is_empty()
            || self.timelines.iter().any(|timeline| timeline.lacks_history)
            || self.backups.iter().any(ends_at_gap)
    }
}

impl From<&BackupWindow> for BackupRange {
    fn from(window: &BackupWindow) -> Self {
        Self {
            label: window.backup.label.to_string(),
            from: window.from().into(),
            ranges: window.reaches.iter().map(Range::from).collect(),
            unusable: window.unusable.clone(),
        }
    }
}

impl From<&Reach> for Range {
    fn from(reach: &Reach) -> Self {
        let missing = match &reach.ends {
            End::Missing { first, segments } => Some((first.to_string(), *segments)),
            _ => None,
        };
        Self {
            timeline: reach.timeline.get(),
            to: reach.to().into(),
            last_commit: reach.last_commit.map(CommitPoint::from),
            ends: match &reach.ends {
                End::Stored => "stored",
                End::Missing { .. } => ENDS_MISSING,
                End::Invalid { .. } => "invalid",
                End::Broken { .. } => "broken",
            },
            gap: gap_text(&reach.ends),
            missing_segments: missing.as_ref().map(|(_, segments)| *segments),
            first_missing: missing.map(|(first, _)| first),
            proven: reach.proven,
        }
    }
}

impl From<&TimelineNode> for TimelineBranch {
    fn from(node: &TimelineNode) -> Self {
        Self {
            timeline: node.timeline.get(),
            parent: node.parent.map(|(parent, _)| parent.get()),
            switch_lsn: node.parent.map(|(_, at)| at.to_string()),
            reason: node.reason.clone(),
            known: node.is_known,
            lacks_history: node.lacks_history,
            stored_from: node.stored.map(|(from, _)| from.to_string()),
            stored_to: node.stored.map(|(_, to)| to.to_string()),
        }
    }
}

fn gap_text(ends: &End) -> Option<String> {
    ends.is_gap().then(|| ends.to_string())
}

/// What opens history files and WAL, if the configuration has it: these commands do without, and then say less.
pub(crate) async fn policy_if_any(config: &Config) -> OpenPolicy {
    match config.identities().await {
        Ok(identities) => OpenPolicy {
            identities,
            allow_plain: true,
        },
        Err(error) => {
            tracing::info!("without the identity: {error:#}");
            OpenPolicy::default()
        }
    }
}
