//! Reads WAL for the log, newest first and only as much as the question needs, with the names that belong to it.
//!
//! Owns the order of fetching and when it is enough. What records say is `scan.rs` and `history.rs`, what matters is `query.rs`; where
//! bytes come from is a [`WalSource`].

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use repository::Repositories;
use repository::key::{BackupLabel, BackupObject, ClusterId, ObjectKey};
use repository::names::{CatalogNames, MAX_CATALOG_BYTES};
use repository::sealed::OpenPolicy;
use wal_format::{Decoded, DecoderConfig, Lsn, Step, Timestamp, WalDecoder};

use super::entry::{LogEntry, describe};
use super::history::History;
use super::names::NameBook;
use super::query::LogQuery;
use super::scan::{Ended, Scan, Stretch};
use crate::error::{Error, Result};
use crate::plan::{Piece, PieceSource};
use crate::search::{WalSource, stored_bytes};

/// Plain bytes of WAL that are looked at as one stretch.
const STRETCH_BYTES: u64 = 128 << 20;
/// Most plain bytes of segments that are fetched ahead.
const AHEAD_BYTES: u64 = 128 << 20;
/// Most segments fetched at the same time.
const MAX_IN_FLIGHT: u64 = 8;
/// Descriptors asked for at the same time.
const DESCRIPTORS_IN_FLIGHT: usize = 16;
/// Most segments that are looked through for the beginning of transactions that were found.
const MAX_LOOK_BACK: usize = 512;
/// Most segments behind what was asked for whose transactions are counted by their descriptors.
const MAX_COUNTED: usize = 2048;
/// Commit times follow the order of WAL but for this much, unless a clock was set back.
const CLOCK_SLACK_MICROS: i64 = 5 * 60 * 1_000_000;
/// A record ends the stretch before it once this much of the next one was looked at.
const OVERHANG_BYTES: usize = 64 << 10;
/// Most snapshots kept at a time.
const MAX_SNAPSHOTS: usize = 3;

/// WAL to look through.
pub struct LogMaterial<'a, S> {
    /// Fetches it.
    pub source: &'a S,
    /// Segments in WAL order.
    pub pieces: &'a [Piece],
    /// What is missing before a piece, by its index.
    pub holes: BTreeMap<usize, String>,
    /// For the decoder.
    pub decoder: DecoderConfig,
    /// Catalogue snapshots of the backups on the way, if there are any.
    pub names: Option<NamesSource<'a>>,
}

/// Where catalogue snapshots are.
pub struct NamesSource<'a> {
    /// In which repositories.
    pub repository: &'a Repositories,
    /// How they are opened.
    pub policy: &'a OpenPolicy,
    /// Whose.
    pub cluster: ClusterId,
    /// Backups that have one, by the position behind which they were taken.
    pub backups: BTreeMap<Lsn, BackupLabel>,
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Newest first.
    pub entries: Vec<LogEntry>,
    /// What between `from` and `to` could not be read, newest first.
    pub holes: Vec<Hole>,
    /// Transactions that no one could look at, or count, for a reason: WAL that is missing or not valid.
    pub problems: Vec<String>,
    /// Names that could not be read.
    pub warnings: Vec<String>,
    /// Whether the transactions after each entry were counted one by one; else their number is not known, or holds rolled-back ones too.
    pub count: Count,
    /// First byte that was looked at.
    pub from: Option<Lsn>,
    /// First byte behind what was looked at.
    pub to: Option<Lsn>,
    /// Segments that were read.
    pub segments_read: usize,
}

/// WAL that was not read, between such that was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Its first byte.
    pub from: Lsn,
    /// The first byte behind it.
    pub to: Lsn,
    /// Why.
    pub reason: String,
}

/// How well later transactions are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Count {
    /// One by one.
    #[default]
    Exact,
    /// As descriptors say, rolled-back ones included.
    AtMost,
    /// Not all of them.
    AtLeast,
}

/// Answers a question.
///
/// # Errors
/// From the source. WAL that is missing or not valid is no error: see [`Log::problems`].
pub async fn read_log<S: WalSource>(
    material: &LogMaterial<'_, S>,
    query: &LogQuery,
) -> Result<Log> {
    let mut reader = Reader {
        material,
        query,
        log: Log::default(),
        book: NameBook::default(),
        looked_back: 0,
        reached: Lsn::new(0),
    };
    let newest = reader.newest_wanted().await?;
    let mut history = History::new(reader.count_from(newest).await);
    let (mut end, mut searching) = (newest, true);
    while end > 0 {
        let begin = reader.stretch_before(end);
        let pieces = material.pieces.get(begin..end).unwrap_or_default();
        // A commit that begins in the last of them ends in the next one, and counts there.
        let described = material.pieces.get(begin..end + 1).unwrap_or(pieces);
        searching = searching
            && history.settled() < query.last
            && !reader.is_too_old(pieces, described).await?;
        if let Some(hole) = material.holes.get(&end).filter(|_| end != newest) {
            history.give_up();
            if searching {
                reader.log.problems.push(hole.clone());
                reader.log.count = Count::AtLeast;
            }
        }
        if !searching {
            // Only what began here and committed later is still of interest.
            reader.looked_back += pieces.len();
            if !history.has_unsettled() || reader.looked_back > MAX_LOOK_BACK {
                break;
            }
        }
        let hole = reader.behind_hole(end);
        let stretch = reader.scan(begin, end, !searching).await?;
        if let Some((to, reason)) = hole {
            reader.book.add_hole(to);
            let from = reader.reached.min(to);
            reader.log.holes.push(Hole { from, to, reason });
            reader.log.holes.sort_by_key(|hole| Reverse(hole.from));
        }
        reader.book.add_births(history.add_older(stretch));
        history.retain(query.last, |ended| query.wants(ended, &reader.book));
        end = begin;
    }
    reader.load_names_for(history.past()).await;
    let book = &reader.book;
    let wanted = history.past().iter().filter(|past| {
        // What could not be settled is shown as far as it is known.
        query.wants(&past.ended, book) && query.wants_contents(&describe(&past.ended, book))
    });
    reader.log.entries = wanted
        .take(query.last)
        .map(|past| LogEntry::new(past, book))
        .collect();
    if history.overflowed() {
        reader.log.warnings.push(
            "more transactions were open at a time than are followed: some counts are too low"
                .into(),
        );
    }
    Ok(reader.log)
}

struct Reader<'a, S> {
    material: &'a LogMaterial<'a, S>,
    query: &'a LogQuery,
    log: Log,
    book: NameBook,
    looked_back: usize,
    /// The end of the stretch that was read last.
    reached: Lsn,
}

impl<S: WalSource> Reader<'_, S> {
    /// The index behind the last piece that can hold what is asked for.
    async fn newest_wanted(&self) -> Result<usize> {
        let pieces = self.material.pieces;
        let mut end = match self.query.to {
            Some(to) => pieces.partition_point(|piece| piece.start < to),
            None => pieces.len(),
        };
        let Some(until) = self.query.until else {
            return Ok(end);
        };
        // Binary search: the first piece in which everything is later.
        let mut low = 0;
        let limit = end;
        while low < end {
            let middle = low + (end - low) / 2;
            match self.first_time_from(middle, limit).await? {
                Some(time) if time.0 <= until.0.saturating_add(CLOCK_SLACK_MICROS) => {
                    low = middle + 1;
                }
                _ => end = middle,
            }
        }
        // The pieces behind it that say nothing of times.
        Ok((low + 1).min(limit))
    }

    /// The earliest time in the first piece from `index` on that has one; `None` if the rest says nothing (its times are later).
    async fn first_time_from(&self, index: usize, limit: usize) -> Result<Option<Timestamp>> {
        const MAX_WITHOUT_TIMES: usize = 64;
        let pieces = self.material.pieces.get(index..limit).unwrap_or_default();
        for piece in pieces.iter().take(MAX_WITHOUT_TIMES) {
            let Some(wal) = self.describe(piece).await? else {
                // An open piece is the newest; what it holds is looked at.
                return Ok(Some(Timestamp(i64::MIN)));
            };
            if wal.transactions.is_none() || wal.incomplete {
                return Ok(Some(Timestamp(i64::MIN)));
            }
            if let Some(time) = wal.time_min {
                return Ok(Some(Timestamp::from_unix_micros(time.as_microsecond())));
            }
        }
        Ok(None)
    }

    async fn describe(
        &self,
        piece: &Piece,
    ) -> Result<Option<repository::descriptor::WalDescriptor>> {
        match piece.source {
            PieceSource::Sealed => self.material.source.descriptor(piece).await.map(Some),
            PieceSource::Open { .. } => Ok(None),
        }
    }

    /// Transactions in the pieces from `begin` on, by their descriptors.
    async fn count_from(&mut self, begin: usize) -> u64 {
        let rest = self.material.pieces.get(begin..).unwrap_or_default();
        if rest.is_empty() {
            return 0;
        }
        self.log.count = Count::AtMost;
        if rest.len() > MAX_COUNTED {
            self.log.count = Count::AtLeast;
            return 0;
        }
        let described = rest.iter().map(|piece| self.describe(piece));
        let counts: Vec<_> = futures_util::stream::iter(described)
            .buffered(DESCRIPTORS_IN_FLIGHT)
            .collect()
            .await;
        let mut total = 0_u64;
        for count in counts {
            match count.ok().flatten().and_then(|wal| wal.transactions) {
                Some(count) => total = total.saturating_add(count),
                // The open piece at the end, most often.
                None => self.log.count = Count::AtLeast,
            }
        }
        total
    }

    /// Where WAL begins again at the piece `end` behind a hole, and why, if it was read from there on.
    fn behind_hole(&self, end: usize) -> Option<(Lsn, String)> {
        let reason = self.material.holes.get(&end)?;
        let behind = self.material.pieces.get(end)?.start;
        (self.log.from == Some(behind)).then(|| (behind, reason.clone()))
    }

    /// The beginning of the stretch that ends at `end`.
    fn stretch_before(&self, end: usize) -> usize {
        let size = u64::from(self.material.decoder.segment_size.bytes());
        let most = usize::try_from((STRETCH_BYTES / size).max(1)).unwrap_or(1);
        let begin = end.saturating_sub(most);
        // Not over a hole.
        let holes = self.material.holes.range(begin..end);
        holes.map(|(index, _)| *index).next_back().unwrap_or(begin)
    }

    /// Whether pieces are older than everything that is asked for, by more than clocks can be wrong.
    async fn is_too_old(&self, pieces: &[Piece], described: &[Piece]) -> Result<bool> {
        let size = u64::from(self.material.decoder.segment_size.bytes());
        let reach = pieces.last().map(|last| last.start.saturating_add(size));
        if self.query.from.is_some() && reach <= self.query.from {
            return Ok(true);
        }
        let Some(since) = self.query.since else {
            return Ok(false);
        };
        let described = described.iter().map(|piece| self.describe(piece));
        let mut described = futures_util::stream::iter(described).buffered(DESCRIPTORS_IN_FLIGHT);
        while let Some(wal) = described.next().await {
            let Some(wal) = wal?.filter(|wal| !wal.incomplete) else {
                return Ok(false);
            };
            let old = match wal.time_max {
                Some(newest) => {
                    let newest = Timestamp::from_unix_micros(newest.as_microsecond());
                    newest.0 < since.0.saturating_sub(CLOCK_SLACK_MICROS)
                }
                None => wal.transactions == Some(0),
            };
            if !old {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Decodes the pieces `begin..end`. With `only_beginnings` no commit in them is asked for.
    async fn scan(&mut self, begin: usize, end: usize, only_beginnings: bool) -> Result<Stretch> {
        let pieces = self.material.pieces.get(begin..end).unwrap_or_default();
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return Ok(Stretch::default());
        };
        let size = u64::from(self.material.decoder.segment_size.bytes());
        let boundary = last.start.saturating_add(size);
        self.load_names(first.start, boundary).await;
        let next = self
            .material
            .pieces
            .get(end)
            .filter(|_| !self.material.holes.contains_key(&end));
        let source = self.material.source;
        // With the one before, if none is missing between them: it says what the first has to follow.
        let joined = begin - usize::from(begin > 0 && !self.material.holes.contains_key(&begin));
        let behind = end + usize::from(next.is_some());
        let stretch = self.material.pieces.get(joined..behind);
        source.settle(stretch.unwrap_or_default()).await;
        let in_flight = (AHEAD_BYTES / size).clamp(1, MAX_IN_FLIGHT) as usize;
        let fetched = pieces.iter().chain(next).map(|piece| async move {
            let bytes = source.bytes(piece).await?;
            Ok::<_, Error>((piece, bytes))
        });
        let mut fetched = futures_util::stream::iter(fetched).buffered(in_flight);

        let (query, book) = (self.query, &self.book);
        let wanted = |ended: &Ended| !only_beginnings && query.wants(ended, book);
        let mut scan = Scan::new(book.pg_database_file(), query.last, &wanted);
        let mut decoder = WalDecoder::new(self.material.decoder, first.start)
            .map_err(|error| damaged(first, error.to_string()))?;
        let mut problem: Option<String> = None;
        let mut invalid: Vec<Hole> = Vec::new();
        let decoder_size = self.material.decoder.segment_size;
        let mut beyond = false;
        let (mut read, mut reached) = (0, None);
        while let Some(next) = fetched.next().await {
            let (piece, content) = next?;
            let is_overhang = piece.start >= boundary;
            read += usize::from(!is_overhang);
            let stored = stored_bytes(piece, &content);
            let mut stop = false;
            for bytes in stored.chunks(match is_overhang {
                true => OVERHANG_BYTES,
                false => stored.len().max(1),
            }) {
                decoder.push_records(bytes, |decoded| match decoded {
                    Decoded::Record(record, body) => {
                        beyond |= record.start >= boundary;
                        if !beyond {
                            scan.record(record, body);
                        }
                    }
                    Decoded::Other(Step::Invalid { at, reason })
                        if !content.may_end_torn && !beyond =>
                    {
                        stop |= at >= boundary;
                        if at < boundary {
                            let segment = decoder_size.segment(at);
                            invalid.push(Hole {
                                from: at,
                                to: decoder_size.end(segment),
                                reason: format!("it is not valid: {reason}"),
                            });
                            problem.get_or_insert_with(|| {
                                format!("{}: WAL is not valid at {at}: {reason}", piece.name)
                            });
                        }
                    }
                    Decoded::Other(_) => {}
                });
                if is_overhang && (beyond || stop) {
                    break;
                }
            }
            if !is_overhang {
                let end = piece.start.saturating_add(stored.len() as u64);
                reached = Some(end);
            }
        }
        drop(fetched);
        let stretch = scan.finish();
        self.log.segments_read += read;
        self.log.from = Some(first.start);
        self.log.to = self.log.to.or(reached);
        self.reached = reached.unwrap_or(first.start);
        for hole in invalid.into_iter().rev() {
            self.book.add_hole(hole.to);
            self.log.holes.push(hole);
        }
        if let Some(problem) = problem {
            self.log.problems.push(problem);
            self.log.count = Count::AtLeast;
        }
        self.book.add_links(stretch.links.iter().copied());
        Ok(stretch)
    }

    /// Makes the snapshots that name what is in `[from, to)` available, and the next one behind it.
    async fn load_names(&mut self, from: Lsn, to: Lsn) {
        let Some(names) = &self.material.names else {
            return;
        };
        let newest = names.backups.range(..to).next_back();
        let oldest = names.backups.range(..=from).next_back();
        let later = names.backups.range(to..).next();
        let needed: BTreeMap<Lsn, &BackupLabel> = [oldest, newest, later]
            .into_iter()
            .flatten()
            .map(|(position, label)| (*position, label))
            .collect();
        self.book.retain(|position| needed.contains_key(&position));
        debug_assert!(needed.len() <= MAX_SNAPSHOTS, "three places");
        for (position, label) in needed {
            if self.book.has(position) {
                continue;
            }
            match fetch_names(names, label).await {
                Ok(found) => self.book.add(position, Arc::new(found)),
                Err(error) => {
                    let warning = format!("names of backup {label} cannot be read: {error}");
                    if !self.log.warnings.contains(&warning) {
                        self.log.warnings.push(warning);
                    }
                }
            }
        }
    }

    /// Snapshots around what is shown.
    async fn load_names_for(&mut self, past: &[super::history::Past]) {
        let shown = past.get(..past.len().min(self.query.last)).unwrap_or(past);
        if let (Some(newest), Some(oldest)) = (shown.first(), shown.last()) {
            let to = newest.ended.commit.saturating_add(1);
            self.load_names(oldest.ended.commit, to).await;
        }
    }
}

/// Looks through WAL as [`read_log`] does for `--drops`, for the bench: transactions that committed, and those that may be wanted. `feed` gives the
/// bytes from `start` on, in pieces.
///
/// # Errors
/// `Config` if `start` is no page's.
#[doc(hidden)]
pub fn scan_for_drops(
    config: DecoderConfig,
    start: Lsn,
    feed: impl FnOnce(&mut dyn FnMut(&[u8])),
) -> Result<(u64, usize)> {
    let query = LogQuery {
        last: 20,
        drops: true,
        ..LogQuery::default()
    };
    let book = NameBook::default();
    let wanted = |ended: &Ended| query.wants(ended, &book);
    let mut scan = Scan::new(book.pg_database_file(), query.last, &wanted);
    let mut decoder = WalDecoder::new(config, start).map_err(|error| Error::InvalidRequest {
        what: start.to_string(),
        reason: error.to_string(),
    })?;
    feed(&mut |bytes| {
        decoder.push_records(bytes, |decoded| {
            if let Decoded::Record(record, body) = decoded {
                scan.record(record, body);
            }
        });
    });
    let stretch = scan.finish();
    Ok((stretch.commits, stretch.ended.len()))
}

async fn fetch_names(names: &NamesSource<'_>, label: &BackupLabel) -> Result<CatalogNames> {
    let key = ObjectKey::Backup {
        cluster: names.cluster,
        label: label.clone(),
        object: BackupObject::Catalog,
    };
    let fetched = names
        .repository
        .fetch(&key, names.policy, MAX_CATALOG_BYTES)
        .await?;
    Ok(CatalogNames::parse(&fetched.1, &key.to_string())?)
}

fn damaged(piece: &Piece, reason: String) -> Error {
    Error::Integrity {
        object: piece.name.to_string(),
        reason,
    }
}
