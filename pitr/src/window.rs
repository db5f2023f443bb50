//! The moments that can be gone back to, as one answer (pure data and its words): what each backup opens, where WAL is missing, timelines
//! as a tree. `list`, `status`, `window` and the refusals of `restore` all say what stands here.
//!
//! Owns the shape of the answer. How it is computed from names and descriptors: `reach.rs`; what is read for it: `survey.rs`.

use crate::plan::BackupFacts;
use crate::target::{RecoveryGoal, RecoveryTarget};
use crate::time::format_utc;
use repository::key::BackupLabel;
use std::fmt;
use wal_format::{Lsn, SegmentName, SegmentNumber, TimelineId, Timestamp};

/// A position that can be recovered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The timeline on which the position lies.
    pub timeline: TimelineId,
    /// The position.
    pub lsn: Lsn,
    /// The time that belongs to it, if known: end of a backup, newest commit or abort.
    pub time: Option<Timestamp>,
}

/// What can be reached, in a refusal's few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Window {
    /// Where the earliest usable backup becomes consistent; `None` without one.
    pub earliest: Option<Moment>,
    /// The end of the unbroken WAL that follows; `None` without a usable backup.
    pub latest: Option<Moment>,
    /// What lies nearest to the target that was refused.
    pub nearest: Nearest,
}

/// The reachable moments around one that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Nearest {
    /// The last one before it.
    pub before: Option<Moment>,
    /// The first one after it.
    pub after: Option<Moment>,
}

/// The whole answer for one cluster in one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Every backup, oldest first, and what it opens.
    pub backups: Vec<BackupWindow>,
    /// WAL that is not stored although later WAL is, in WAL order.
    pub holes: Vec<Hole>,
    /// Timelines, by number; `parent` makes them a tree.
    pub timelines: Vec<TimelineNode>,
    /// The oldest moment that stays reachable: see [`Promise`].
    pub promise: Option<Promise>,
}

/// The oldest moment that retention still promises. Nothing expires by itself in this version: it is where the oldest usable backup
/// becomes consistent. A configured retention will move `moment` on and say so in `reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The moment.
    pub moment: Moment,
    /// The backup that opens it.
    pub backup: BackupLabel,
    /// Why it is this one.
    pub reason: PromiseReason,
}

/// What sets the oldest promised moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromiseReason {
    /// No retention is configured: the oldest backup.
    OldestBackup,
}

/// A backup and what it can be recovered to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupWindow {
    /// The backup.
    pub backup: BackupFacts,
    /// One for each timeline that can be followed from it, newest timeline first. Empty: nothing can be recovered from it.
    pub reaches: Vec<Reach>,
    /// Why there is none.
    pub unusable: Option<String>,
}

impl BackupWindow {
    /// Where the range begins.
    #[must_use]
    pub fn from(&self) -> Moment {
        Moment {
            timeline: self.backup.timeline,
            lsn: self.backup.stop_lsn,
            time: Some(self.backup.stopped),
        }
    }
}

/// How far replay can go along one timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The timeline to follow (`--timeline`).
    pub timeline: TimelineId,
    /// The segments on the way, oldest first; none is missing among them.
    pub legs: Vec<SegmentRun>,
    /// Where the unbroken WAL ends.
    pub end: Lsn,
    /// What is there.
    pub ends: End,
    /// Every sealed segment on the way was held against its neighbours by what it says of itself. Else only names were looked at, or not
    /// all of them could be read.
    pub proven: bool,
    /// Time of the newest commit or abort before the end, as descriptors say; `None`: there is none after the backup's start, or
    /// it is not known.
    pub newest_transaction: Option<Timestamp>,
    /// The last commit before the end, where the WAL itself could be read.
    pub last_commit: Option<Commit>,
}

impl Reach {
    /// The end as a moment. Its timeline is the one whose bytes come last.
    #[must_use]
    pub fn to(&self) -> Moment {
        Moment {
            timeline: self.legs.last().map_or(self.timeline, |leg| leg.timeline),
            lsn: self.end,
            time: self
                .last_commit
                .map(|commit| commit.time)
                .max(self.newest_transaction),
        }
    }
}

/// Consecutive segments under one timeline's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRun {
    /// Under whose name.
    pub timeline: TimelineId,
    /// The first one.
    pub first: SegmentNumber,
    /// The last one, included; it may be incomplete in the last leg.
    pub last: SegmentNumber,
}

/// A commit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its time.
    pub time: Timestamp,
    /// The transaction.
    pub xid: u32,
    /// Where the record starts: a target for `--to-lsn`.
    pub lsn: Lsn,
    /// Where the next record may start.
    pub end: Lsn,
}

/// What stands at the end of a reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing: it is the end of what is stored.
    Stored,
    /// WAL is missing, later WAL is there.
    Missing {
        /// The first segment that is not there, or not whole.
        first: SegmentName,
        /// How many.
        segments: u64,
    },
    /// A record that failed validation when it was stored: replay stops there.
    Invalid {
        /// Its position.
        at: Lsn,
    },
    /// What is stored next does not follow: another server or history wrote it.
    Broken {
        /// The segment that does not follow.
        segment: SegmentName,
        /// What disagrees.
        reason: String,
    },
}

impl End {
    /// Whether something is wrong there.
    #[must_use]
    pub fn is_gap(&self) -> bool {
        *self != Self::Stored
    }
}

/// A stretch of WAL that is not stored although later WAL is, half-open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hole {
    /// On which timeline.
    pub timeline: TimelineId,
    /// First missing byte.
    pub from: Lsn,
    /// First byte behind it.
    pub to: Lsn,
    /// The first segment that is missing, or of which only the beginning is there.
    pub first_missing: SegmentName,
    /// How many segments are missing or not whole.
    pub segments: u64,
    /// The server no longer had it: `walden run` recorded that. Else it may still come.
    pub recorded: bool,
    /// Somebody knows of it and has said why it may stay.
    pub acknowledged: bool,
}

/// A timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineNode {
    /// Its number.
    pub timeline: TimelineId,
    /// Where it branched off, and from which timeline; `None`: it is the first one, or its history file could not be read.
    pub parent: Option<(TimelineId, Lsn)>,
    /// Why the server branched off, in its own words.
    pub reason: String,
    /// Whether its past is known: timeline 1, or its history file could be read.
    pub is_known: bool,
    /// WAL of it is stored and says that there is a history file, which is not stored: nothing on it can be recovered.
    pub lacks_history: bool,
    /// The stored WAL under its own name: start of the first segment, end of the last. `None`: nothing of it is stored.
    pub stored: Option<(Lsn, Lsn)>,
    /// Time of the newest commit or abort in it, as far as descriptors were read.
    pub newest_transaction: Option<Timestamp>,
}

impl Windows {
    /// Backups from which something can be recovered, oldest first.
    pub fn usable(&self) -> impl DoubleEndedIterator<Item = &BackupWindow> {
        self.backups
            .iter()
            .filter(|backup| !backup.reaches.is_empty())
    }

    /// The furthest end that can be reached: on the newest timeline that any backup reaches, from the newest backup that does.
    #[must_use]
    pub fn newest(&self) -> Option<(&BackupWindow, &Reach)> {
        self.usable()
            .flat_map(|backup| backup.reaches.iter().map(move |reach| (backup, reach)))
            .max_by_key(|(backup, reach)| (reach.timeline, reach.end, backup.backup.stop_lsn))
    }

    /// Whether something keeps a stretch from being recovered: a hole, WAL that is not valid or does not follow, a missing history file,
    /// a backup that opens nothing.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        !self.holes.is_empty()
            || self.timelines.iter().any(|timeline| timeline.lacks_history)
            || self.backups.iter().any(|backup| {
                backup.unusable.is_some() || backup.reaches.iter().any(|reach| reach.ends.is_gap())
            })
    }

    /// What a refusal says: earliest and latest moment on the path to `timeline`.
    #[must_use]
    pub fn on_path(&self, timeline: TimelineId) -> Window {
        let earliest = self
            .spans(timeline)
            .map(|(backup, _)| backup.from())
            .min_by_key(|moment| moment.lsn);
        let latest = self
            .spans(timeline)
            .max_by_key(|(backup, _)| backup.backup.stop_lsn)
            .map(|(_, reach)| reach.to());
        Window {
            earliest,
            latest,
            nearest: Nearest::default(),
        }
    }

    /// The reachable moments around a target that cannot be reached on the path to `timeline`; nothing for a target that has no place of
    /// its own (a transaction or a restore point that is not there).
    #[must_use]
    pub fn nearest(&self, goal: &RecoveryGoal, timeline: TimelineId) -> Nearest {
        let mut nearest = Nearest::default();
        for (backup, reach) in self.spans(timeline) {
            let (from, to) = (backup.from(), reach.to());
            let (starts_after, ends_before) = match &goal.target {
                RecoveryTarget::Time(target) => (
                    from.time.is_some_and(|time| time > *target),
                    // Without a transaction after the backup, its own end is the last that is known.
                    to.time.max(from.time).is_some_and(|time| time <= *target),
                ),
                RecoveryTarget::Lsn(target) => (from.lsn > *target, to.lsn <= *target),
                _ => return nearest,
            };
            if starts_after && nearest.after.is_none_or(|known| from.lsn < known.lsn) {
                nearest.after = Some(from);
            }
            if ends_before && nearest.before.is_none_or(|known| to.lsn > known.lsn) {
                nearest.before = Some(Moment {
                    time: to.time.max(from.time),
                    ..to
                });
            }
        }
        nearest
    }

    fn spans(&self, timeline: TimelineId) -> impl Iterator<Item = (&BackupWindow, &Reach)> {
        self.backups.iter().flat_map(move |backup| {
            let reaches = backup.reaches.iter();
            let along = reaches.filter(move |reach| reach.timeline == timeline);
            along.map(move |reach| (backup, reach))
        })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(time) = self.time {
            write!(f, "{} ", format_utc(time))?;
        }
        write!(f, "(LSN {}, timeline {})", self.lsn, self.timeline)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.earliest, self.latest) {
            (Some(earliest), Some(latest)) => write!(f, "reachable: {earliest} to {latest}")?,
            _ => f.write_str("nothing is reachable: no usable backup")?,
        }
        if let Some(before) = self.nearest.before {
            write!(f, "; nearest before the target: {before}")?;
        }
        if let Some(after) = self.nearest.after {
            write!(f, "; nearest after the target: {after}")?;
        }
        Ok(())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored => f.write_str("the end of what is stored"),
            Self::Missing { first, segments: 1 } => write!(f, "{first} is missing"),
            Self::Missing { first, segments } => {
                write!(f, "{segments} segments from {first} on are missing")
            }
            Self::Invalid { at } => write!(f, "WAL is not valid from {at} on"),
            Self::Broken { segment, reason } => write!(f, "{segment}: {reason}"),
        }
    }
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.recorded, self.acknowledged) {
            (_, true) => "lost and acknowledged",
            (true, false) => "the server had removed it",
            (false, false) => "not stored",
        };
        write!(
            f,
            "WAL from {} to {} on timeline {}: {what} ({})",
            self.from,
            self.to,
            self.timeline,
            End::Missing {
                first: self.first_missing,
                segments: self.segments
            }
        )
    }
}
