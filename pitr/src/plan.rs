//! What a recovery needs, decided from names and descriptors alone (pure): the timeline, the backups that can serve, the segments on the
//! way, and whether they are one unbroken chain.
//!
//! Owns every rule about paths, holes and chains. Finding the stop inside the WAL is `stop.rs`, fetching is `search.rs`.

use crate::error::{Error, Result};
use crate::reach::find_windows;
use crate::recovery_conf::WalMinimums;
use crate::scope::{Leg, RestoreScope};
use crate::stop::Stop;
use crate::stretches::{Evidence, KnownHistory, WalFacts};
use crate::target::{RecoveryGoal, RecoveryTarget};
use crate::window::Window;
use repository::backup::BackupDescriptor;
use repository::catalog::{Catalog, PartialObject, TailChunk, TimelineObjects};
use repository::descriptor::WalDescriptor;
use repository::key::{BackupLabel, ClusterId, ObjectKey};
use repository::wal::{BrokenLink, ChainLink};
use std::collections::BTreeMap;
use std::fmt;
use wal_format::{
    Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, Timestamp,
};

/// What the plan needs to know of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupFacts {
    /// Its label.
    pub label: BackupLabel,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// The lineage of that timeline.
    pub lineage: String,
    /// Where its replay starts.
    pub start_lsn: Lsn,
    /// Where it is consistent.
    pub stop_lsn: Lsn,
    /// When its last byte was received, by the clock of the host that took it.
    pub stopped: Timestamp,
}

impl BackupFacts {
    /// Reads them from the backup's descriptor.
    ///
    /// # Errors
    /// `Corrupt`: the descriptor contradicts itself.
    pub fn from_descriptor(descriptor: &BackupDescriptor) -> Result<Self> {
        let integrity = |reason: &str| Error::Integrity {
            object: format!("backup {}", descriptor.label),
            reason: reason.into(),
        };
        if descriptor.start_lsn >= descriptor.stop_lsn {
            return Err(integrity("its stop is not after its start"));
        }
        Ok(Self {
            label: descriptor
                .label
                .parse()
                .map_err(|_| integrity("not the label of a backup"))?,
            timeline: TimelineId::new(descriptor.timeline)
                .ok_or_else(|| integrity("timeline 0"))?,
            lineage: descriptor.lineage.clone(),
            start_lsn: descriptor.start_lsn,
            stop_lsn: descriptor.stop_lsn,
            stopped: Timestamp::from_unix_micros(descriptor.stopped.as_microsecond()),
        })
    }
}

/// One way through WAL: a timeline and those it descends from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalPath {
    /// The timeline and its ancestors.
    pub history: TimelineHistory,
    /// Lineage of every timeline of the path; timeline 1 has the empty one.
    pub lineages: BTreeMap<TimelineId, String>,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
}

impl WalPath {
    /// The timelines of the path, newest first.
    pub fn timelines(&self) -> impl Iterator<Item = TimelineId> {
        let ancestors = self
            .history
            .entries()
            .iter()
            .rev()
            .map(|entry| entry.timeline);
        std::iter::once(self.history.timeline()).chain(ancestors)
    }

    /// The first segment of a timeline of the path.
    pub fn first_segment(&self, timeline: TimelineId) -> Option<SegmentNumber> {
        Some(self.segment_size.segment(self.history.begin(timeline)?))
    }

    /// The timeline under whose name PostgreSQL asks for a segment first: the newest one that has begun by then.
    pub fn timeline_of_segment(&self, number: SegmentNumber) -> TimelineId {
        self.timelines()
            .find(|timeline| {
                self.first_segment(*timeline)
                    .is_some_and(|first| first <= number)
            })
            .unwrap_or(self.history.timeline())
    }

    /// Where `timeline` ends on this path; `None` for the newest one, which has no end.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.history.switch_point(timeline)
    }

    /// Whether a backup lies on the path: taken on one of its timelines, and consistent before the path leaves it.
    pub fn holds(&self, backup: &BackupFacts) -> bool {
        self.lineages.get(&backup.timeline) == Some(&backup.lineage)
            && self
                .end_of(backup.timeline)
                .is_none_or(|end| backup.stop_lsn <= end)
    }

    /// The way as far as `timeline`, one of the path's own.
    ///
    /// # Errors
    /// `Corrupt`: the history contradicts itself.
    pub fn up_to(&self, timeline: TimelineId) -> Result<Self> {
        let mut history = TimelineHistory::first();
        let entries = self.history.entries();
        for (index, entry) in entries.iter().enumerate() {
            if history.timeline() == timeline {
                break;
            }
            let next = entries
                .get(index + 1)
                .map_or(self.history.timeline(), |entry| entry.timeline);
            history = history
                .child(next, entry.switch_point, &entry.reason)
                .map_err(|error| Error::Integrity {
                    object: format!("{:08X}.history", self.history.timeline().get()),
                    reason: error.to_string(),
                })?;
        }
        Ok(Self {
            history,
            ..self.clone()
        })
    }

    /// The name of a segment of this cluster.
    pub fn name(&self, timeline: TimelineId, number: SegmentNumber) -> SegmentName {
        SegmentName::new(timeline, number, self.segment_size)
    }
}

/// Which timeline a recovery follows: the one asked for, or the newest one by number.
///
/// # Errors
/// `NotFound`: nothing is stored, or not that timeline. `Corrupt`: WAL of the timeline is stored, its history file is not.
pub fn choose_timeline(catalog: &Catalog, wanted: Option<TimelineId>) -> Result<TimelineId> {
    let unreachable = |what: String, reason: &str| Error::Unreachable {
        what,
        reason: reason.into(),
        window: Box::default(),
    };
    let newest = catalog.timelines.keys().next_back().copied();
    let Some(timeline) = wanted.or(newest) else {
        return Err(unreachable(
            "recovery".into(),
            "no WAL is stored for this cluster",
        ));
    };
    let Some(objects) = catalog.timelines.get(&timeline) else {
        return Err(unreachable(
            format!("timeline {timeline}"),
            "nothing of it is stored",
        ));
    };
    if timeline != TimelineId::FIRST && !objects.history {
        return Err(Error::Missing {
            object: format!("{:08X}.history", timeline.get()),
            reason: format!("WAL of timeline {timeline} is stored"),
        });
    }
    Ok(timeline)
}

/// Where the bytes of a segment come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PieceSource {
    /// The sealed segment.
    Sealed,
    /// Nothing complete: what reaches furthest of these.
    Open {
        /// Its tail chunks.
        tail: Vec<TailChunk>,
        /// Its partial segments.
        partials: Vec<PartialObject>,
    },
}

/// A segment on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which segment, and under which timeline's name.
    pub name: SegmentName,
    /// Position of its first byte.
    pub start: Lsn,
    /// Where its bytes are.
    pub source: PieceSource,
    /// Where the path leaves its timeline inside it: bytes from there on belong to a branch that was left.
    pub cut: Option<Lsn>,
}

impl Piece {
    /// The key of the sealed segment.
    pub fn key(&self, cluster: ClusterId) -> ObjectKey {
        ObjectKey::Segment {
            cluster,
            name: self.name,
        }
    }
}

/// The WAL from a position on, as far as it is there without interruption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Segments in WAL order without a hole between them. Only the last one, or one whose chunks fill it, is `Open`.
    pub pieces: Vec<Piece>,
    /// What is missing behind them although something later is stored: object and reason.
    pub hole: Option<(String, String)>,
}

/// Collects the segments from the one that holds `from` to the end of what is stored on `path`.
pub fn plan_pieces(catalog: &Catalog, path: &WalPath, from: Lsn) -> Pieces {
    let size = path.segment_size;
    // A timeline of which nothing but its history is stored adds nothing yet: the WAL then ends in its parent.
    let stored: Vec<TimelineId> = path
        .timelines()
        .filter(|timeline| has_wal(catalog, path, *timeline))
        .collect();
    let newest = stored.first().copied().unwrap_or(TimelineId::FIRST);
    let timeline_of = |number: SegmentNumber| {
        let begun = |timeline: &TimelineId| {
            path.first_segment(*timeline)
                .is_some_and(|first| first <= number)
        };
        path.timelines()
            .skip_while(|timeline| *timeline != newest)
            .find(begun)
    };
    let end = path.end_of(newest);
    let mut pieces = Vec::new();
    let mut number = size.segment(from);
    while let Some(timeline) = timeline_of(number) {
        if end.is_some_and(|end| size.start(number) >= end) {
            break;
        }
        let name = path.name(timeline, number);
        let objects = catalog.timelines.get(&timeline);
        let source = if objects.is_some_and(|objects| objects.segments.contains_key(&name)) {
            Some(PieceSource::Sealed)
        } else {
            objects.and_then(|objects| open_source(objects, name))
        };
        let fills = match &source {
            None => false,
            Some(PieceSource::Sealed) => true,
            Some(PieceSource::Open { tail, .. }) => {
                tail.iter().any(|chunk| chunk.to >= size.bytes())
            }
        };
        let is_stored = source.is_some();
        if let Some(source) = source {
            pieces.push(Piece {
                name,
                start: size.start(number),
                source,
                cut: end.filter(|end| size.segment(*end) == number),
            });
        }
        if !fills {
            let hole = later_object(catalog, path, &stored, number).map(|later| {
                let (object, what) = match is_stored {
                    true => (
                        format!("the rest of {name}"),
                        "only its beginning is stored, but",
                    ),
                    false => (name.to_string(), "it is not stored, but"),
                };
                (object, format!("{what} {later} is"))
            });
            return Pieces { pieces, hole };
        }
        number = number.next();
    }
    Pieces { pieces, hole: None }
}

/// What there is of a segment besides a sealed object: tail chunks and partials; `None` if neither.
pub(crate) fn open_source(objects: &TimelineObjects, name: SegmentName) -> Option<PieceSource> {
    let tail: Vec<TailChunk> = objects
        .tails
        .get(&name)
        .into_iter()
        .flatten()
        .copied()
        .collect();
    let partials: Vec<PartialObject> = objects
        .partials
        .iter()
        .filter(|partial| partial.name == name)
        .copied()
        .collect();
    (!tail.is_empty() || !partials.is_empty()).then_some(PieceSource::Open { tail, partials })
}

/// Names of everything stored of a timeline's WAL.
pub(crate) fn stored_names(objects: &TimelineObjects) -> impl Iterator<Item = SegmentName> {
    let partials = objects.partials.iter().map(|partial| partial.name);
    objects
        .segments
        .keys()
        .chain(objects.tails.keys())
        .copied()
        .chain(partials)
}

fn has_wal(catalog: &Catalog, path: &WalPath, timeline: TimelineId) -> bool {
    let first = path.first_segment(timeline);
    catalog.timelines.get(&timeline).is_some_and(|objects| {
        stored_names(objects).any(|name| {
            name.number(path.segment_size)
                .is_some_and(|number| Some(number) >= first)
        })
    })
}

/// The first object of the path's own WAL behind segment `number`. What an ancestor wrote after the path left it is not the path's.
fn later_object(
    catalog: &Catalog,
    path: &WalPath,
    stored: &[TimelineId],
    number: SegmentNumber,
) -> Option<SegmentName> {
    let mut later: Vec<(SegmentNumber, SegmentName)> = Vec::new();
    for timeline in stored {
        let Some(objects) = catalog.timelines.get(timeline) else {
            continue;
        };
        let end = path
            .end_of(*timeline)
            .map(|end| path.segment_size.segment_before(end));
        let first = stored_names(objects)
            .filter_map(|name| Some((name.number(path.segment_size)?, name)))
            .filter(|(found, _)| *found > number && end.is_none_or(|end| *found <= end))
            .min();
        later.extend(first);
    }
    later.into_iter().min().map(|(_, name)| name)
}

/// The backups that can serve a target, best first, as far as names and backup descriptors say.
///
/// # Errors
/// `NotFound`: no backup lies on the path, or none is early enough, or not the one asked for.
pub fn choose_backups<'b>(
    backups: &'b [BackupFacts],
    path: &WalPath,
    goal: &RecoveryGoal,
    wanted: Option<&BackupLabel>,
    window: Window,
) -> Result<Vec<&'b BackupFacts>> {
    let unreachable = |what: String, reason: String| Error::Unreachable {
        what,
        reason,
        window: window.into(),
    };
    let asked: Vec<&BackupFacts> = backups
        .iter()
        .filter(|backup| wanted.is_none_or(|label| backup.label == *label))
        .collect();
    if let (Some(label), true) = (wanted, asked.is_empty()) {
        return Err(unreachable(
            format!("backup {}", label.as_str()),
            "there is no such backup".into(),
        ));
    }
    let mut usable: Vec<&BackupFacts> = asked
        .into_iter()
        .filter(|backup| path.holds(backup))
        .collect();
    if usable.is_empty() {
        return Err(unreachable(
            goal.to_string(),
            format!(
                "no backup lies on timeline {} or its ancestors",
                path.history.timeline()
            ),
        ));
    }
    usable.retain(|backup| match &goal.target {
        RecoveryTarget::Time(time) => backup.stopped <= *time,
        RecoveryTarget::Lsn(lsn) => backup.stop_lsn <= *lsn,
        _ => true,
    });
    if usable.is_empty() {
        return Err(unreachable(
            goal.to_string(),
            "it lies before the first backup that could serve is consistent".into(),
        ));
    }
    usable.sort_by_key(|backup| std::cmp::Reverse((backup.stop_lsn, backup.start_lsn)));
    Ok(usable)
}

/// What can be reached on a path, as names say; the newest transaction's time is filled in by those who have read descriptors.
pub fn window_of(catalog: &Catalog, backups: &[BackupFacts], path: &WalPath) -> Window {
    let mut histories = BTreeMap::new();
    let mut history = TimelineHistory::first();
    let entries = path.history.entries().iter();
    let children = path.history.entries().iter().skip(1);
    let children = children
        .map(|entry| entry.timeline)
        .chain([path.history.timeline()]);
    for (entry, child) in entries.zip(children) {
        // A history that was read is one that can be built again.
        let Ok(next) = history.child(child, entry.switch_point, &entry.reason) else {
            break;
        };
        history = next;
        if let Some(lineage) = path.lineages.get(&child) {
            let lineage = lineage.clone();
            let known = KnownHistory {
                history: history.clone(),
                lineage,
            };
            histories.insert(child, known);
        }
    }
    let windows = find_windows(Evidence {
        catalog,
        segment_size: path.segment_size,
        histories: &histories,
        backups,
        wal: &WalFacts::default(),
    });
    windows.on_path(path.history.timeline())
}

/// Proves piece by piece that sealed segments are one chain.
#[derive(Clone, Debug, Default)]
pub struct ChainProof {
    link: ChainLink,
}

impl ChainProof {
    /// A proof that goes on behind `last_record`, whatever came before it.
    pub fn after(last_record: Option<Lsn>) -> Self {
        Self {
            link: ChainLink { last_record },
        }
    }

    /// Holds the descriptor of the next piece against the path and the pieces before.
    ///
    /// # Errors
    /// What does not hold: another range, another lineage, invalid WAL, or it does not follow. The proof then cannot go on: see [`ChainProof::after`].
    pub fn check(
        &mut self,
        path: &WalPath,
        piece: &Piece,
        wal: &WalDescriptor,
    ) -> std::result::Result<(), BrokenChain> {
        let end = piece
            .start
            .saturating_add(u64::from(path.segment_size.bytes()));
        if (wal.start_lsn, wal.end_lsn) != (piece.start, end) {
            return Err(BrokenChain::Range {
                start: wal.start_lsn,
                end: wal.end_lsn,
            });
        }
        let timeline = piece.name.timeline;
        if path.lineages.get(&timeline) != Some(&wal.lineage) {
            return Err(BrokenChain::Lineage { timeline });
        }
        if let Some(at) = wal.invalid_at {
            return Err(BrokenChain::Invalid { at });
        }
        self.join(wal)
    }

    /// Holds the first record of a piece that is not a whole segment against the pieces before.
    ///
    /// # Errors
    /// It does not follow.
    pub fn join(&mut self, wal: &WalDescriptor) -> std::result::Result<(), BrokenChain> {
        self.link.follow(wal).map_err(BrokenChain::Link)
    }
}

/// Why a sealed segment is not the next one of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenChain {
    /// It says that it holds another stretch of WAL.
    Range {
        /// First byte.
        start: Lsn,
        /// First byte behind it.
        end: Lsn,
    },
    /// It is of another history than the timeline's.
    Lineage {
        /// The timeline.
        timeline: TimelineId,
    },
    /// It was stored with WAL that is not valid.
    Invalid {
        /// From where on.
        at: Lsn,
    },
    /// Its first record does not follow the last one before it.
    Link(BrokenLink),
}

impl fmt::Display for BrokenChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { start, end } => write!(f, "says that it holds {start} to {end}"),
            Self::Lineage { timeline } => write!(
                f,
                "belongs to another timeline {timeline} than the stored history file"
            ),
            Self::Invalid { at } => write!(f, "WAL is not valid from {at} on"),
            Self::Link(broken) => write!(
                f,
                "does not follow the segment before it: the record at {} links back to {}, not to {}",
                broken.at, broken.found, broken.expected
            ),
        }
    }
}

/// Whether the stop may lie in a sealed segment, or must be looked for there, as far as its descriptor says.
pub fn may_hold_stop(goal: &RecoveryGoal, backup: &BackupFacts, wal: &WalDescriptor) -> bool {
    match &goal.target {
        RecoveryTarget::Latest => false,
        RecoveryTarget::Immediate => wal.end_lsn >= backup.stop_lsn,
        RecoveryTarget::Lsn(lsn) => wal.end_lsn > *lsn,
        RecoveryTarget::Xid(_) => wal.incomplete || wal.transactions != Some(0),
        RecoveryTarget::Name(_) => true,
        RecoveryTarget::Time(target) => {
            let newest = wal
                .time_max
                .map(|time| Timestamp::from_unix_micros(time.as_microsecond()));
            match newest {
                _ if wal.incomplete => true,
                Some(newest) => newest > *target || (!goal.inclusive && newest == *target),
                None => wal.transactions != Some(0),
            }
        }
    }
}

/// The path without the timelines of which nothing but the history is stored: they are asked for and proven absent, not missing.
///
/// # Errors
/// `Corrupt`: the history contradicts itself.
pub fn without_empty_timelines(catalog: &Catalog, path: &WalPath) -> Result<WalPath> {
    let newest = path
        .timelines()
        .find(|timeline| has_wal(catalog, path, *timeline))
        .unwrap_or(path.history.timeline());
    path.up_to(newest)
}

/// A whole plan: from where, over what, to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// What the user asked for.
    pub goal: RecoveryGoal,
    /// The backup to lay out.
    pub backup: BackupFacts,
    /// The way through WAL.
    pub path: WalPath,
    /// The segments that replay needs, in order.
    pub pieces: Vec<Piece>,
    /// Where it stops.
    pub stop: Stop,
    /// Newest commit or abort that is applied, if it was among the WAL that was read.
    pub newest_transaction: Option<Timestamp>,
    /// Commits and aborts stored after the stop, which will be gone; `None` if not all of them are counted.
    pub transactions_after: Option<u64>,
    /// Names of transactions that stay prepared at the stop, as far as the WAL that was read says.
    pub prepared_open: Vec<String>,
    /// Settings that parameter changes on the way ask for, as far as the WAL that was read says.
    pub minimums: Option<WalMinimums>,
    /// What could have been reached.
    pub window: Window,
}

impl RecoveryPlan {
    /// What `archive-get` may serve to this recovery.
    #[must_use]
    pub fn scope(&self, cluster: ClusterId) -> RestoreScope {
        let lineage = |timeline: TimelineId| {
            self.path
                .lineages
                .get(&timeline)
                .cloned()
                .unwrap_or_default()
        };
        let mut path: Vec<Leg> = self
            .path
            .history
            .entries()
            .iter()
            .map(|entry| Leg {
                timeline: entry.timeline.get(),
                lineage: lineage(entry.timeline),
                switch_point: Some(entry.switch_point.to_string()),
            })
            .collect();
        let newest = self.path.history.timeline();
        path.push(Leg {
            timeline: newest.get(),
            lineage: lineage(newest),
            switch_point: None,
        });
        RestoreScope {
            format: 1,
            cluster: cluster.to_string(),
            wal_segment_size: self.path.segment_size.bytes(),
            path,
            end: self.stop.needed_to.to_string(),
            allow_plain: false,
            settled: BTreeMap::new(),
        }
    }
}
