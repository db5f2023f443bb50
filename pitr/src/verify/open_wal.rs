//! Segments that are not complete: tail chunks and `.partial`s. Each object on its own, then put together and decoded as the continuation of
//! what is sealed.
//!
//! Owns the order. Joining is `assemble.rs`'s, the place of an object `segment_source.rs`'s, chain and decoder go on from `wal.rs`.

use super::backups::reason_of;
use super::finding::Problem;
use super::memory::Memory;
use super::reader::{Examined, Want};
use super::wal::TimelineWalk;
use crate::assemble::{Chunk, assemble_tail};
use crate::error::Result;
use crate::plan::{ChainProof, PieceSource, open_source};
use crate::segment_source::check;
use futures_util::StreamExt;
use repository::catalog::{PartialObject, TailChunk};
use repository::key::ObjectKey;
use std::collections::BTreeSet;
use wal_format::{Lsn, SegmentName, SegmentNumber};

/// Objects looked at at the same time. A segment has few chunks, and they are small together.
const IN_FLIGHT: usize = 4;

/// A chunk or partial that is as it should be.
struct Piece {
    key: ObjectKey,
    from: u32,
    length: u64,
    plain: Option<Vec<u8>>,
}

impl TimelineWalk<'_> {
    /// Every segment of which something incomplete is stored.
    pub(crate) async fn open_segments(&mut self, memory: &mut Memory) -> Result<()> {
        let survey = self.job.survey;
        let Some(objects) = survey.catalog.timelines.get(&self.timeline()) else {
            return Ok(());
        };
        let partials = objects.partials.iter().map(|partial| partial.name);
        let names: BTreeSet<SegmentName> = objects.tails.keys().copied().chain(partials).collect();
        for name in names {
            let Some(number) = name.number(survey.size) else {
                continue;
            };
            if !survey.is_wanted(number) {
                continue;
            }
            let Some(PieceSource::Open {
                tail: tails,
                partials,
            }) = open_source(objects, name)
            else {
                continue;
            };
            let is_sealed = objects.segments.contains_key(&name);
            // What a sealed segment covers is garbage: nothing reads it, and there may be very much of it.
            if is_sealed && !self.job.level.reads() {
                continue;
            }
            self.open_segment(name, number, &tails, &partials, is_sealed, memory)
                .await?;
        }
        Ok(())
    }

    async fn open_segment(
        &mut self,
        name: SegmentName,
        number: SegmentNumber,
        tails: &[TailChunk],
        partials: &[PartialObject],
        is_sealed: bool,
        memory: &mut Memory,
    ) -> Result<()> {
        let start = self.job.survey.size.start(number);
        let pieces = (self.pieces(name, start, tails, partials, is_sealed, memory)).await?;
        let Some(mut pieces) = pieces.filter(|pieces| !is_sealed && !pieces.is_empty()) else {
            return Ok(());
        };
        pieces.sort_by_key(|piece| (piece.from, piece.length));
        let mut filled = 0;
        for piece in &pieces {
            if u64::from(piece.from) > filled {
                let at = start.saturating_add(filled);
                let detail = format!(
                    "bytes {filled}..{} of segment {name} are missing before it",
                    piece.from
                );
                self.add(&piece.key, start, at, Problem::Missing, detail);
                return Ok(());
            }
            filled = filled.max(u64::from(piece.from).saturating_add(piece.length));
        }
        if self.job.level.decodes() {
            self.decode_open(number, &pieces, !partials.is_empty(), memory)
                .await?;
        }
        Ok(())
    }

    /// Looks at each object of a segment; `None` if one is not as it should be.
    async fn pieces(
        &mut self,
        name: SegmentName,
        start: Lsn,
        tails: &[TailChunk],
        partials: &[PartialObject],
        is_sealed: bool,
        memory: &mut Memory,
    ) -> Result<Option<Vec<Piece>>> {
        let cluster = self.job.survey.cluster;
        let chunks = tails.iter().map(|chunk| {
            let (from, to, writer) = (chunk.from, chunk.to, chunk.writer);
            let key = ObjectKey::Tail {
                cluster,
                name,
                from,
                to,
                writer,
            };
            (from, Some(to), key)
        });
        let partials = partials.iter().map(|partial| {
            let tag = partial.tag;
            (0, None, ObjectKey::Partial { cluster, name, tag })
        });
        let (job, limit) = (self.job, self.job.segment_limit());
        let want = match (job.level.decodes() && !is_sealed, job.level.reads()) {
            (true, _) => Want::Contents,
            (false, true) => Want::Checked,
            (false, false) => Want::Descriptor,
        };
        let mut all: Vec<_> = partials.chain(chunks).collect();
        if is_sealed {
            all.retain(|(_, _, key)| {
                let meta = job.survey.objects.get(key);
                let is_known =
                    meta.is_some_and(|meta| memory.knows(&key.to_string(), *meta, job.enough));
                if is_known {
                    job.reader.remembered();
                }
                !is_known
            });
        }
        let mut seen =
            futures_util::stream::iter(all.into_iter().map(|(from, to, key)| async move {
                let seen = job.reader.examine(&key, limit, want).await;
                (from, to, key, seen)
            }))
            .buffered(IN_FLIGHT);
        let mut pieces = Some(Vec::new());
        while let Some((from, to, key, seen)) = seen.next().await {
            let begin = start.saturating_add(u64::from(from));
            let bad = match seen? {
                // Listed a moment ago; chunks that a sealed segment covers may be removed meanwhile.
                Examined::Gone => continue,
                Examined::Bad(problem, detail) => Some((problem, detail)),
                Examined::Good {
                    descriptor,
                    plain,
                    depth,
                } => {
                    let length = descriptor.plain_size;
                    let end = begin.saturating_add(length);
                    let lineage = self.path.lineages.get(&self.timeline());
                    let lineage = lineage.map(String::as_str).unwrap_or_default();
                    let named = to.is_none_or(|to| u64::from(to) == u64::from(from) + length);
                    match check(&key, &descriptor, (begin, end), lineage) {
                        Err(error) => {
                            let other = descriptor
                                .wal
                                .as_ref()
                                .is_some_and(|wal| wal.lineage != lineage);
                            let problem = match other {
                                true => Problem::Lineage,
                                false => Problem::Contradiction,
                            };
                            Some((problem, reason_of(&error)))
                        }
                        Ok(_) if !named => Some((
                            Problem::Contradiction,
                            format!("it holds {length} bytes, its name says otherwise"),
                        )),
                        Ok(wal) => {
                            let invalid = wal.invalid_at.filter(|_| to.is_some());
                            if from == 0 {
                                self.join(&key, start, wal);
                            }
                            if let Some((meta, depth)) = job.survey.objects.get(&key).zip(depth) {
                                memory.note(&key.to_string(), *meta, depth);
                            }
                            if let Some(pieces) = &mut pieces {
                                pieces.push(Piece {
                                    key: key.clone(),
                                    from,
                                    length,
                                    plain,
                                });
                            }
                            match invalid {
                                Some(at) if !job.level.decodes() => {
                                    let detail = format!(
                                        "WAL is not valid from {at} on: it was stored and marked so"
                                    );
                                    self.add(&key, start, at, Problem::InvalidWal, detail);
                                }
                                _ => {}
                            }
                            None
                        }
                    }
                }
            };
            if let Some((problem, detail)) = bad {
                memory.forget(&key.to_string());
                self.add(&key, start, begin, problem, detail);
                pieces = None;
            }
        }
        Ok(pieces)
    }

    /// Whether the first record of a segment follows the sealed one before it.
    fn join(&mut self, key: &ObjectKey, start: Lsn, wal: &repository::descriptor::WalDescriptor) {
        if self.expected != Some(start) {
            return;
        }
        // Several objects may begin the segment: each is held against what is before it.
        let mut proof: ChainProof = self.proof.clone();
        if let Err(broken) = proof.join(wal) {
            let at = wal.first_record.unwrap_or(start);
            self.add(key, start, at, Problem::Chain, broken.to_string());
        }
    }

    async fn decode_open(
        &mut self,
        number: SegmentNumber,
        pieces: &[Piece],
        may_end_torn: bool,
        memory: &Memory,
    ) -> Result<()> {
        let size = self.job.survey.size;
        let start = size.start(number);
        let names: Vec<String> = pieces.iter().map(|piece| piece.key.to_string()).collect();
        let chunks: Vec<Chunk<'_>> = pieces
            .iter()
            .zip(&names)
            .filter_map(|(piece, key)| {
                Some(Chunk {
                    key,
                    from: piece.from,
                    bytes: piece.plain.as_deref()?,
                })
            })
            .collect();
        let Some(first) = pieces.first() else {
            return Ok(());
        };
        let whole = match assemble_tail(&chunks, size) {
            Ok(whole) => whole,
            Err(error) => {
                let last = pieces.last().unwrap_or(first);
                let at = start.saturating_add(u64::from(last.from));
                let key = last.key.clone();
                self.add(&key, start, at, Problem::Contradiction, reason_of(&error));
                return Ok(());
            }
        };
        let mut bytes = whole.bytes;
        bytes.truncate(usize::try_from(whole.length).unwrap_or(usize::MAX));
        let follows = self.expected == Some(start) || self.expected.is_none();
        let decoded = self.decode(number, bytes, follows, memory).await?;
        let summary = decoded.summary.clone();
        self.take(decoded, &first.key, start);
        self.expected = None;
        let problem = match (summary.invalid_at, summary.end_of_wal) {
            _ if may_end_torn => None,
            (Some((at, reason)), _) => Some((at, format!("WAL is not valid at {at}: {reason}"))),
            (None, Some((at, reason))) => Some((at, format!("WAL ends at {at}: {reason}"))),
            (None, None) => None,
        };
        if let Some((at, detail)) = problem {
            let offset = at.distance_from(start).unwrap_or(0);
            let holder = pieces
                .iter()
                .filter(|piece| u64::from(piece.from) <= offset)
                .find(|piece| offset < u64::from(piece.from).saturating_add(piece.length));
            let key = holder.unwrap_or(first).key.clone();
            self.add(&key, start, at, Problem::InvalidWal, detail);
        }
        Ok(())
    }
}
