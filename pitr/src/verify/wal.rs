//! The WAL of one timeline, segment after segment: descriptors as a chain, stored bytes, and every record across segments.
//!
//! Owns the order of reading and what is decoded together with what. Chain rules are `plan.rs`'s, decoding `decode.rs`'s, incomplete
//! segments `open_wal.rs`'s.

use super::Job;
use super::decode::{Decoded, OpenTransactions, contradiction, decode};
use super::finding::{Found, Place, Problem};
use super::memory::{Depth, Mark, Memory, Prepared};
use super::reader::{Examined, Want, blocking};
use super::rolled;
use crate::error::{Error, Result};
use crate::plan::{BrokenChain, ChainProof, Piece, PieceSource, WalPath};
use crate::segment_source::MAX_WITHOUT_RECORDS;
use futures_util::StreamExt;
use repository::ErrorClass;
use repository::descriptor::{Descriptor, WalDescriptor};
use repository::key::ObjectKey;
use std::collections::BTreeMap;
use wal_format::{Lsn, SegmentName, SegmentNumber, SegmentScanner, TimelineId};

/// What sealed and plain segments that are being looked at may take together.
const MEMORY_BUDGET: u64 = 256 << 20;
/// Most segments looked at at the same time.
const MAX_IN_FLIGHT: u64 = 8;
/// Descriptors asked for at the same time, where only they are read.
const DESCRIPTORS_IN_FLIGHT: usize = 32;

/// How far one timeline is.
pub(crate) struct TimelineWalk<'a> {
    pub(crate) job: &'a Job<'a>,
    pub(crate) path: &'a WalPath,
    pub(crate) found: Vec<Found>,
    pub(crate) proof: ChainProof,
    /// Where the next piece must start to follow the one before.
    pub(crate) expected: Option<Lsn>,
    scanner: Option<SegmentScanner>,
    pub(crate) open: OpenTransactions,
    /// Prepared transactions from before this position are not known.
    unknown_before: Option<Lsn>,
    has_decoded: bool,
}

/// What was seen of a sealed segment.
enum Seen {
    /// What a roll-up says of it.
    RolledUp(Box<WalDescriptor>),
    Object(Examined),
}

/// What a timeline leaves behind.
pub(crate) struct Walked {
    pub(crate) found: Vec<Found>,
    pub(crate) open: Vec<Prepared>,
    /// What is open where child timelines begin.
    pub(crate) forks: BTreeMap<u32, Vec<Prepared>>,
    pub(crate) unknown_before: Option<Lsn>,
}

/// Looks at all WAL of the path's newest timeline. `inherited` are the transactions that were prepared when it began.
pub(crate) async fn walk_timeline(
    job: &Job<'_>,
    path: &WalPath,
    inherited: Vec<Prepared>,
    memory: &mut Memory,
) -> Result<Walked> {
    let timeline = path.history.timeline();
    let mut walk = TimelineWalk {
        job,
        path,
        found: Vec::new(),
        proof: ChainProof::default(),
        expected: None,
        scanner: None,
        open: OpenTransactions::new(inherited, children(job, timeline)),
        unknown_before: None,
        has_decoded: false,
    };
    walk.sealed(memory).await?;
    let sealed_end = walk.expected;
    if job.level.decodes() {
        if !walk.has_decoded {
            walk.recall(memory, sealed_end);
        }
        if let Some(end) = sealed_end.filter(|_| walk.found.is_empty()) {
            let mark = Mark {
                to: end.to_string(),
                open: walk.open.list(),
                forks: walk.open.forks(Some(end)),
            };
            memory.set_mark(timeline.get(), mark);
        }
    }
    walk.open_segments(memory).await?;
    Ok(Walked {
        found: walk.found,
        open: walk.open.list(),
        forks: walk.open.forks(None),
        unknown_before: walk.unknown_before,
    })
}

impl TimelineWalk<'_> {
    pub(crate) fn timeline(&self) -> TimelineId {
        self.path.history.timeline()
    }

    /// The sealed segments, in order.
    async fn sealed(&mut self, memory: &mut Memory) -> Result<()> {
        let job = self.job;
        let survey = job.survey;
        let Some(objects) = survey.catalog.timelines.get(&self.timeline()) else {
            return Ok(());
        };
        let limit = job.segment_limit();
        let names = objects.segments.keys().filter_map(|name| {
            let number = name.number(survey.size)?;
            survey.is_wanted(number).then_some((*name, number))
        });
        let wants: Vec<(SegmentName, SegmentNumber, Want)> = names
            .map(|(name, number)| {
                let key = job.segment_key(name);
                (name, number, job.want(&key, memory))
            })
            .collect();
        let rolled = rolled::believable(job, self.path, &wants).await?;
        let rolled = &rolled;
        let in_flight = match job.level.reads() {
            true => in_flight(u64::from(survey.size.bytes())),
            false => DESCRIPTORS_IN_FLIGHT,
        };
        let mut examined =
            futures_util::stream::iter(wants.into_iter().map(|(name, number, want)| async move {
                let key = job.segment_key(name);
                let seen = match rolled.get(&name) {
                    Some(wal) => Ok(Seen::RolledUp(Box::new(wal.clone()))),
                    None => job
                        .reader
                        .examine(&key, limit, want)
                        .await
                        .map(Seen::Object),
                };
                (name, number, key, want, seen)
            }))
            .buffered(in_flight);
        while let Some((name, number, key, want, seen)) = examined.next().await {
            let before = self.found.len();
            let depth = self.segment(name, number, &key, seen?, memory).await?;
            let text = key.to_string();
            match (survey.objects.get(&key), depth) {
                _ if self.found.len() > before => memory.forget(&text),
                (Some(_), None) if want == Want::Descriptor && job.level.reads() => {
                    job.reader.remembered();
                }
                (Some(meta), Some(depth)) => memory.note(&text, *meta, depth),
                _ => {}
            }
        }
        Ok(())
    }

    /// One sealed segment. Gives how deep it was found good.
    async fn segment(
        &mut self,
        name: SegmentName,
        number: SegmentNumber,
        key: &ObjectKey,
        seen: Seen,
        memory: &Memory,
    ) -> Result<Option<Depth>> {
        let size = self.job.survey.size;
        let start = size.start(number);
        let follows = self.expected == Some(start);
        self.expected = Some(size.end(number));
        if !follows {
            self.proof = ChainProof::default();
            self.scanner = None;
        }
        let seen = match seen {
            Seen::RolledUp(wal) => {
                self.chain(name, number, key, &wal).await?;
                self.scanner = None;
                return Ok(None);
            }
            Seen::Object(seen) => seen,
        };
        let (descriptor, plain, depth) = match seen {
            Examined::Good {
                descriptor,
                plain,
                depth,
            } => (descriptor, plain, depth),
            Examined::Bad(problem, detail) => {
                self.broken(key, start, problem, detail);
                return Ok(None);
            }
            Examined::Gone => {
                let detail = self.job.survey.gone.to_owned();
                self.broken(key, start, Problem::Missing, detail);
                return Ok(None);
            }
        };
        let Some(wal) = descriptor.wal.clone() else {
            let detail = "its descriptor says nothing of WAL".to_owned();
            self.broken(key, start, Problem::Contradiction, detail);
            return Ok(None);
        };
        let chains = self.chain(name, number, key, &wal).await?;
        let mut depth = depth;
        if let Some(plain) = plain.filter(|_| self.job.level.decodes()) {
            if plain.len() as u64 != u64::from(size.bytes()) {
                let detail = format!(
                    "it holds {} bytes, a segment has {}",
                    plain.len(),
                    size.bytes()
                );
                self.broken(key, start, Problem::Contradiction, detail);
                return Ok(None);
            }
            let decoded = self.decode(number, plain, chains, memory).await?;
            depth = depth.max(Some(Depth::Understood));
            self.judge(key, &descriptor, &wal, decoded);
        } else {
            self.scanner = None;
        }
        Ok(depth)
    }

    /// Holds a segment's descriptor against those before it; says whether it follows them.
    async fn chain(
        &mut self,
        name: SegmentName,
        number: SegmentNumber,
        key: &ObjectKey,
        wal: &WalDescriptor,
    ) -> Result<bool> {
        let start = self.job.survey.size.start(number);
        let piece = Piece {
            name,
            start,
            source: PieceSource::Sealed,
            cut: None,
        };
        if let Err(broken) = self.proof.check(self.path, &piece, wal) {
            let (problem, at) = match &broken {
                BrokenChain::Range { .. } => (Problem::Contradiction, start),
                BrokenChain::Lineage { .. } => (Problem::Lineage, start),
                BrokenChain::Invalid { at } => (Problem::InvalidWal, *at),
                BrokenChain::Link(link) => (Problem::Chain, link.at),
            };
            // Behind WAL that is not valid the last record is not known.
            let last = match broken {
                BrokenChain::Invalid { .. } => None,
                _ => wal.last_record,
            };
            self.proof = ChainProof::after(last);
            let detail = match &broken {
                BrokenChain::Invalid { .. } => format!("{broken}: it was stored and marked so"),
                _ => broken.to_string(),
            };
            self.add(key, start, at, problem, detail);
            return Ok(matches!(broken, BrokenChain::Invalid { .. }));
        }
        let is_first = self.path.first_segment(self.timeline()) == Some(number);
        if is_first && self.path.history.parent().is_some() {
            return self.check_switch(name, key, wal, start).await;
        }
        Ok(true)
    }

    /// Whether a timeline's first segment continues its parent's WAL.
    async fn check_switch(
        &mut self,
        name: SegmentName,
        key: &ObjectKey,
        wal: &WalDescriptor,
        start: Lsn,
    ) -> Result<bool> {
        let history = &self.path.history;
        let timeline_at = |lsn| Ok(history.timeline_at(lsn));
        let source = self.job.reader.segments;
        match source.check_link(name, wal, timeline_at).await {
            Ok(()) => Ok(true),
            Err(Error::Integrity { reason, .. }) => {
                let at = wal.first_record.unwrap_or(start);
                self.add(key, start, at, Problem::Chain, reason);
                Ok(false)
            }
            // The parent's segment has its own finding.
            Err(error) if error.class() == ErrorClass::Corrupt => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Decodes a segment, after those before it if it follows them.
    pub(crate) async fn decode(
        &mut self,
        number: SegmentNumber,
        bytes: Vec<u8>,
        follows: bool,
        memory: &Memory,
    ) -> Result<Decoded> {
        let start = self.job.survey.size.start(number);
        if !self.has_decoded {
            self.recall(memory, Some(start));
            self.has_decoded = true;
        }
        let kept = self
            .scanner
            .take()
            .filter(|scanner| follows && scanner.segment_start() == start);
        let scanner = match kept {
            Some(scanner) => scanner,
            None => self.warm_up(number, follows).await?,
        };
        let history = self.path.history.clone();
        Ok(blocking(move || decode(scanner, &bytes, &history)).await)
    }

    /// Goes on with the prepared transactions that were open where verified WAL ended.
    fn recall(&mut self, memory: &Memory, at: Option<Lsn>) {
        let Some(at) = at else {
            return;
        };
        let size = self.job.survey.size;
        let first = self.job.survey.catalog.timelines.get(&self.timeline());
        let first = first.and_then(|objects| objects.segments.keys().next().copied());
        let begins = first
            .and_then(|name| name.number(size))
            .is_some_and(|number| size.start(number) == at);
        if begins {
            return;
        }
        match memory.mark(self.timeline().get()) {
            Some(mark) if mark.to == at.to_string() => {
                let mut children = children(self.job, self.timeline());
                children.retain(|(_, child)| !mark.forks.contains_key(&child.get()));
                self.open = OpenTransactions::new(mark.open.clone(), children);
                self.open.remember(mark.forks.clone());
            }
            _ => self.unknown_before = Some(at),
        }
    }

    /// A decoder that has seen the WAL before segment `number`, as far back as a record that may end in it begins.
    async fn warm_up(&self, number: SegmentNumber, follows: bool) -> Result<SegmentScanner> {
        let size = self.job.survey.size;
        let fresh = |number| {
            SegmentScanner::new(self.job.decoder, size.start(number)).map_err(|error| {
                Error::Integrity {
                    object: size.start(number).to_string(),
                    reason: error.to_string(),
                }
            })
        };
        let mut before = Vec::new();
        let wanted = |number: &SegmentNumber| self.job.survey.is_wanted(*number);
        let mut next = number.previous().filter(|_| follows).filter(wanted);
        let mut found = false;
        while let Some(earlier) = next.filter(|_| before.len() < MAX_WITHOUT_RECORDS as usize) {
            let timeline = self.path.timeline_of_segment(earlier);
            let key = self.job.segment_key(self.path.name(timeline, earlier));
            let seen = self.job.reader.examine(&key, 0, Want::Descriptor).await?;
            let Examined::Good { descriptor, .. } = seen else {
                break;
            };
            before.push((earlier, key));
            found = descriptor.wal.is_some_and(|wal| wal.first_record.is_some());
            if found {
                break;
            }
            next = earlier.previous().filter(wanted);
        }
        let Some((first, _)) = before.last().filter(|_| found) else {
            return fresh(number);
        };
        let mut scanner = fresh(*first)?;
        for (_, key) in before.iter().rev() {
            let limit = self.job.segment_limit();
            let seen = self.job.reader.examine(key, limit, Want::Contents).await?;
            let Examined::Good {
                plain: Some(plain), ..
            } = seen
            else {
                return fresh(number);
            };
            let history = self.path.history.clone();
            scanner = blocking(move || decode(scanner, &plain, &history))
                .await
                .scanner;
        }
        match scanner.segment_start() == size.start(number) {
            true => Ok(scanner),
            false => fresh(number),
        }
    }

    /// What decoding a sealed segment said, against what it should say.
    fn judge(
        &mut self,
        key: &ObjectKey,
        descriptor: &Descriptor,
        wal: &WalDescriptor,
        decoded: Decoded,
    ) {
        let start = decoded.summary.start_lsn;
        let summary = decoded.summary.clone();
        let marked = self.take(decoded, key, start);
        match (summary.invalid_at, summary.end_of_wal) {
            // Its descriptor told so, and was believed.
            (Some((at, _)), _) if wal.invalid_at == Some(at) => {}
            (Some((at, reason)), _) => {
                let detail = format!("WAL is not valid at {at}: {reason}");
                self.add(key, start, at, Problem::InvalidWal, detail);
            }
            (None, Some((at, _))) if wal.invalid_at == Some(at.max(start)) => {}
            (None, Some((at, reason))) => {
                let detail =
                    format!("WAL ends at {at} in a segment that should be complete: {reason}");
                self.add(key, start, at, Problem::InvalidWal, detail);
            }
            (None, None) => {}
        }
        let told = contradiction(wal, &summary).filter(|_| summary.is_complete() && !marked);
        if let Some(detail) = told {
            self.add(key, start, start, Problem::Contradiction, detail);
        }
        let version = summary
            .major
            .and_then(|major| u16::try_from(major.number()).ok());
        if version.is_some_and(|version| version != descriptor.pg_version) {
            let detail = format!(
                "its descriptor says PostgreSQL {}, its pages are of another major",
                descriptor.pg_version
            );
            self.add(key, start, start, Problem::Contradiction, detail);
        }
    }

    /// Keeps what decoding left; says whether a page is of the wrong timeline, which is then told.
    pub(crate) fn take(&mut self, decoded: Decoded, key: &ObjectKey, start: Lsn) -> bool {
        self.job.reader.add_records(decoded.records);
        for (lsn, event) in decoded.two_phase {
            self.open.note(lsn, event);
        }
        self.scanner = Some(decoded.scanner);
        let Some((at, of, owner)) = decoded.misfit else {
            return false;
        };
        let detail = format!(
            "the page at {at} is of timeline {of}, by the history of timeline {} it belongs to timeline {owner}",
            self.timeline()
        );
        self.add(key, start, at, Problem::Contradiction, detail);
        true
    }

    /// An object that cannot be used: what follows it is looked at on its own.
    fn broken(&mut self, key: &ObjectKey, start: Lsn, problem: Problem, detail: String) {
        self.proof = ChainProof::default();
        self.scanner = None;
        self.add(key, start, start, problem, detail);
    }

    pub(crate) fn add(
        &mut self,
        key: &ObjectKey,
        start: Lsn,
        at: Lsn,
        problem: Problem,
        detail: String,
    ) {
        // A record that ends here may begin in the segment before; the object says where to look.
        let place = Place::Wal(self.timeline(), at.max(start));
        self.found.push(Found {
            object: key.to_string(),
            place,
            lsn: Some(at),
            problem,
            detail,
        });
    }
}

/// Where other timelines leave a timeline.
fn children(job: &Job<'_>, timeline: TimelineId) -> Vec<(Lsn, TimelineId)> {
    let paths = job.survey.paths.values();
    let children = paths.filter(|path| path.history.parent() == Some(timeline));
    children
        .filter_map(|path| {
            let switch = path.history.switch_point(timeline)?;
            Some((switch, path.history.timeline()))
        })
        .collect()
}

/// Segments that are looked at at the same time within the memory budget, at least one.
fn in_flight(segment_bytes: u64) -> usize {
    usize::try_from((MEMORY_BUDGET / (2 * segment_bytes)).clamp(1, MAX_IN_FLIGHT)).unwrap_or(1)
}
