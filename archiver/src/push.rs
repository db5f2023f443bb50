//! `archive-push`: one finished WAL file of a server into the repository.
//!
//! Owns what a file must be to get a key of its own: its kind, its size, where its pages belong, whose they are, which timelines
//! wrote them, and that its records run to its end. Does not own sealing and storing (`repository`) or the hook's exit status.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use repository::cluster::ClusterDocument;
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::{BufferPool, Facts, OpenPolicy, SealPolicy, Sealer};
use repository::wal::{describe, describe_segment, lineage};
use repository::{ErrorClass, Repository, Stored};
use wal_format::{
    DecoderConfig, InvalidReason, Lsn, PAGE_BYTES, PageHeader, SegmentName, SegmentScanner,
    SegmentSize, SegmentSummary, Step, TimelineHistory, TimelineId, WalDecoder, WalFileName,
};

use crate::assembler::InvalidWal;
use crate::receive::OnInvalid;
use crate::{Error, Result};

/// Largest history file and largest backup history file that is read, in bytes.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// Bytes of a segment's first page header.
const FIRST_HEADER_BYTES: u64 = 40;
/// Most files of a folder that are looked at to learn whose it is.
const MAX_SIBLINGS: usize = 100_000;

/// A finished file as the server hands it over, read whole.
#[derive(Debug)]
pub struct WalFile {
    name: WalFileName,
    bytes: Vec<u8>,
    folder: PathBuf,
    /// The history file of its timeline, if it stands beside it.
    history: Option<Vec<u8>>,
}

/// What was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Where it stands.
    pub key: ObjectKey,
    /// Whether it was there already.
    pub stored: Stored,
    /// Bytes stored, header included.
    pub stored_size: u64,
    /// What is not valid in it, and where: stored all the same, and marked.
    pub invalid: Option<InvalidWal>,
}

/// What storing a file needs to know beyond the file.
pub struct PushConfig<'a> {
    /// Where it goes.
    pub repository: &'a Repository,
    /// How it is sealed.
    pub seal: SealPolicy,
    /// The only cluster whose files are taken; `None`: any that the repository knows.
    pub system_identifier: Option<u64>,
    /// Which incarnation of the cluster they go to; 0 for the first.
    pub incarnation: u32,
    /// What happens to a segment with a record that is not valid.
    pub on_invalid: OnInvalid,
}

impl WalFile {
    /// Reads a file of a server's `pg_wal`, and the history file of its timeline beside it.
    ///
    /// # Errors
    /// `Corrupt`: the name is of no file that a server archives, or the file is larger than its kind can be. `Retry`: it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = path.file_name().and_then(|name| name.to_str());
        let name: WalFileName = text.and_then(|text| text.parse().ok()).ok_or_else(|| {
            let reason = "not the name of a WAL segment, a .partial, a .history or a .backup file";
            refused(&path.display().to_string(), reason)
        })?;
        let folder = match path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
            Some(folder) => folder.to_owned(),
            None => PathBuf::from("."),
        };
        let limit = match name {
            WalFileName::Segment(_) | WalFileName::Partial(_) => {
                u64::from(SegmentSize::MAX.bytes())
            }
            WalFileName::History(_) | WalFileName::BackupHistory { .. } => MAX_TEXT_BYTES,
        };
        let bytes = read_bounded(path, limit)?.ok_or_else(|| Error::LocalFile {
            path: path.to_owned(),
            reason: "cannot be opened".into(),
            source: Some(ErrorKind::NotFound.into()),
        })?;
        let history = match timeline_of(name) {
            Some(timeline) if timeline != TimelineId::FIRST => {
                let sibling = folder.join(WalFileName::History(timeline).to_string());
                read_bounded(&sibling, MAX_TEXT_BYTES)?
            }
            _ => None,
        };
        Ok(Self {
            name,
            bytes,
            folder,
            history,
        })
    }

    /// Which file it is.
    #[must_use]
    pub fn name(&self) -> WalFileName {
        self.name
    }

    /// Whether storing it takes the history file from the repository, which may need a key.
    #[must_use]
    pub fn lacks_history(&self) -> bool {
        self.history.is_none() && timeline_of(self.name).is_some_and(|t| t != TimelineId::FIRST)
    }

    /// Whose it is: from its own first page, or for a text file from a segment beside it.
    fn system_identifier(&self) -> Result<u64> {
        let header = match self.name {
            WalFileName::Segment(_) | WalFileName::Partial(_) => self
                .bytes
                .get(..FIRST_HEADER_BYTES as usize)
                .unwrap_or_default()
                .to_vec(),
            _ => first_page_beside(&self.folder)?
                .ok_or_else(|| self.refused("no segment beside it says whose it is"))?,
        };
        let (_, long) = PageHeader::parse_first(&header)
            .map_err(|error| self.refused(&format!("its first page: {error}")))?;
        Ok(long.system_identifier)
    }

    fn refused(&self, reason: &str) -> Error {
        refused(&self.name.to_string(), reason)
    }
}

/// Stores a file; durable when this returns. The same file again is success.
///
/// # Errors
/// `Corrupt`: the file is not complete, or not what its name says. `Conflict`: of another cluster than the configured one, or other
/// contents stand at its key. `Config`: a cluster that the repository does not know. `Retry`: not stored, the server will ask again.
pub async fn push(file: WalFile, config: &PushConfig<'_>, open: &OpenPolicy) -> Result<Pushed> {
    let cluster = find_cluster(&file, config).await?;
    let (id, size) = (cluster.id(), cluster.segment_size()?);
    let facts = |key: ObjectKey| Facts {
        key,
        pg_version: cluster.pg_version,
        wal: None,
    };
    match file.name {
        WalFileName::History(timeline) => {
            let history = TimelineHistory::parse(timeline, &file.bytes)
                .map_err(|error| file.refused(&error.to_string()))?;
            if history.parent().is_none() {
                return Err(file.refused("it names no ancestor"));
            }
            let key = ObjectKey::History {
                cluster: id,
                timeline,
            };
            store(config, facts(key), &file.bytes).await
        }
        WalFileName::BackupHistory { segment, offset } => {
            check_backup_history(segment, offset, size, &file.bytes)
                .map_err(|reason| file.refused(reason))?;
            let key = ObjectKey::BackupHistory {
                cluster: id,
                name: segment,
                offset,
                tag: crc32fast::hash(&file.bytes),
            };
            store(config, facts(key), &file.bytes).await
        }
        WalFileName::Segment(name) => {
            let history = find_history(&file, name.timeline, &cluster, config, open).await?;
            let checked = check_segment(name, id, size, &history.parsed, &file.bytes)
                .map_err(|reason| file.refused(&reason))?;
            let invalid = invalid_in(&checked);
            if let Some(InvalidWal { at, reason }) = invalid
                .clone()
                .filter(|_| config.on_invalid == OnInvalid::Refuse)
            {
                return Err(Error::InvalidWal { at, reason });
            }
            let facts = Facts {
                key: ObjectKey::Segment { cluster: id, name },
                pg_version: version(&checked, &cluster),
                wal: Some(describe_segment(&checked, &history.lineage)),
            };
            store_history(&history, &cluster, config).await?;
            let mut pushed = store(config, facts, &file.bytes).await?;
            pushed.invalid = invalid;
            Ok(pushed)
        }
        WalFileName::Partial(name) => {
            let history = find_history(&file, name.timeline, &cluster, config, open).await?;
            let (summary, plain) = cut_partial(name, id, size, &history.parsed, &file.bytes)
                .map_err(|reason| file.refused(&reason))?;
            let facts = Facts {
                key: ObjectKey::Partial {
                    cluster: id,
                    name,
                    tag: crc32fast::hash(plain),
                },
                pg_version: version(&summary, &cluster),
                wal: Some(describe(&summary, summary.received_to, &history.lineage)),
            };
            store_history(&history, &cluster, config).await?;
            store(config, facts, plain).await
        }
    }
}

async fn store(config: &PushConfig<'_>, facts: Facts, plain: &[u8]) -> Result<Pushed> {
    let sealed = Sealer::new(config.seal.clone(), BufferPool::new(0)).seal(facts, plain)?;
    let stored = config.repository.put(&sealed).await?;
    Ok(Pushed {
        stored,
        stored_size: sealed.stored_size(),
        key: sealed.key,
        invalid: None,
    })
}

/// The cluster as the repository knows it.
async fn find_cluster(file: &WalFile, config: &PushConfig<'_>) -> Result<ClusterDocument> {
    let found = match (file.name, config.system_identifier) {
        // A text file does not say whose it is: the configuration is believed.
        (WalFileName::History(_) | WalFileName::BackupHistory { .. }, Some(identifier)) => {
            identifier
        }
        _ => file.system_identifier()?,
    };
    if let Some(expected) = config.system_identifier.filter(|id| *id != found) {
        return Err(Error::WrongServer {
            what: "system identifier of the file",
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }
    let id = ClusterId {
        system_identifier: found,
        incarnation: config.incarnation,
    };
    let known = config.repository.fetch_cluster(id).await?;
    known.ok_or_else(|| Error::UnknownCluster {
        cluster: id.to_string(),
        repository: config.repository.url().to_owned(),
    })
}

/// A timeline's way here, and what tells it from another of its number.
struct History {
    parsed: TimelineHistory,
    lineage: String,
    /// Bytes of the file beside the segment; `None` if there is none, or they are the repository's own.
    to_store: Option<Vec<u8>>,
}

/// The history of a segment's timeline.
async fn find_history(
    file: &WalFile,
    timeline: TimelineId,
    cluster: &ClusterDocument,
    config: &PushConfig<'_>,
    open: &OpenPolicy,
) -> Result<History> {
    if timeline == TimelineId::FIRST {
        return Ok(History {
            parsed: TimelineHistory::first(),
            lineage: lineage(None),
            to_store: None,
        });
    }
    let stored;
    let bytes = match &file.history {
        Some(bytes) => bytes,
        None => {
            let key = ObjectKey::History {
                cluster: cluster.id(),
                timeline,
            };
            let limit = usize::try_from(MAX_TEXT_BYTES).unwrap_or(usize::MAX);
            stored = match config.repository.fetch(&key, open, limit).await {
                Ok((_, bytes)) => bytes,
                Err(error) if error.class() == ErrorClass::NotFound => {
                    let reason = format!(
                        "the history of timeline {timeline} is neither beside it nor in the repository"
                    );
                    return Err(file.refused(&reason));
                }
                Err(error) => return Err(error.into()),
            };
            &stored
        }
    };
    let parsed = TimelineHistory::parse(timeline, bytes).map_err(|error| {
        file.refused(&format!("the history of its timeline {timeline}: {error}"))
    })?;
    Ok(History {
        parsed,
        lineage: lineage(Some(bytes)),
        to_store: file.history.clone(),
    })
}

/// The history of a timeline is stored before any WAL of it: else the WAL could not be told from another server's.
async fn store_history(
    history: &History,
    cluster: &ClusterDocument,
    config: &PushConfig<'_>,
) -> Result<()> {
    let Some(bytes) = &history.to_store else {
        return Ok(());
    };
    let key = ObjectKey::History {
        cluster: cluster.id(),
        timeline: history.parsed.timeline(),
    };
    // Asking is one small request where putting would be two. Whatever it does not settle, putting does.
    let there = config.repository.fetch_descriptor(&key).await;
    let checksum = crc32fast::hash(bytes);
    let same = there.is_ok_and(|there| {
        there.plain_size == bytes.len() as u64 && there.plain_crc32 == Some(checksum)
    });
    if !same {
        let facts = Facts {
            key,
            pg_version: cluster.pg_version,
            wal: None,
        };
        store(config, facts, bytes).await?;
    }
    Ok(())
}

/// Decodes a whole segment. What comes back may be archived under the segment's name; WAL in it may still not be valid
/// (`invalid_at`), if the server has gone on behind it: else the file is not finished, or is another one.
fn check_segment(
    name: SegmentName,
    cluster: ClusterId,
    size: SegmentSize,
    history: &TimelineHistory,
    bytes: &[u8],
) -> Result<SegmentSummary, String> {
    let (config, start) = whole_segment(name, cluster, size, bytes)?;
    let summary = decode(config, start, history, bytes)?;
    if summary.is_complete() {
        return Ok(summary);
    }
    let config = DecoderConfig {
        major: summary.major,
        ..config
    };
    // The first page says whose file it is and which: what does not fit there is no damage.
    let is_misplaced = summary.page_timelines.is_empty();
    match (summary.invalid_at, summary.end_of_wal) {
        (Some((at, reason)), _) if is_misplaced => Err(page_misfit(at, reason)),
        // Recovery goes on in the next segment, whatever follows a switch.
        (Some((_, InvalidReason::SwitchPadding)), _) => Ok(summary),
        (Some((at, _)), _) => check_rest(config, start, history, at, bytes).map(|()| summary),
        (None, Some((at, reason))) => {
            let last_page = start.saturating_add(bytes.len() as u64 - u64::from(PAGE_BYTES));
            match at < last_page && is_written_to_the_end(config, start, bytes) {
                true => Ok(summary),
                false => Err(format!("not complete: its WAL ends at {at} ({reason})")),
            }
        }
        (None, None) => Err(format!(
            "not complete: its WAL ends at {}",
            summary.valid_to
        )),
    }
}

/// After what is not valid at `invalid`: pages must go on to the segment's end or to a segment switch. They are decoded anew from the page
/// behind each place that is not valid, so that a switch is recognised.
fn check_rest(
    config: DecoderConfig,
    start: Lsn,
    history: &TimelineHistory,
    invalid: Lsn,
    bytes: &[u8],
) -> Result<(), String> {
    let mut invalid = invalid;
    loop {
        let offset = invalid.distance_from(start).unwrap_or(0);
        let next_page = (offset / u64::from(PAGE_BYTES) + 1) * u64::from(PAGE_BYTES);
        let rest = usize::try_from(next_page)
            .ok()
            .and_then(|from| bytes.get(from..))
            .unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        let from = start.saturating_add(next_page);
        let mut decoder = WalDecoder::new(config, from).map_err(|error| error.to_string())?;
        let mut timelines = TimelineCheck::new(history);
        let mut stop = None;
        decoder.push(rest, |step| {
            timelines.note(&step);
            match step {
                Step::Invalid { at, reason } => stop = Some(Ok((at, reason))),
                Step::EndOfWal { at, reason } => stop = Some(Err((at, reason))),
                _ => {}
            }
        });
        timelines.verdict()?;
        match stop {
            None | Some(Ok((_, InvalidReason::SwitchPadding))) => return Ok(()),
            Some(Ok((at, _))) => invalid = at.max(from),
            Some(Err(_)) if is_written_to_the_end(config, start, bytes) => return Ok(()),
            Some(Err((at, reason))) => {
                return Err(format!(
                    "not complete: WAL at {invalid} is not valid, and WAL ends at {at} ({reason})"
                ));
            }
        }
    }
}

/// Whether the last page of a segment was written where it stands. A server writes pages in order, so it has written those before it too: what
/// is wrong with one of them is damage, and not the end of WAL.
fn is_written_to_the_end(config: DecoderConfig, start: Lsn, bytes: &[u8]) -> bool {
    let from = bytes.len().saturating_sub(PAGE_BYTES as usize);
    let page = start.saturating_add(from as u64);
    let Ok(mut decoder) = WalDecoder::new(config, page) else {
        return false;
    };
    let mut fits = false;
    decoder.push(bytes.get(from..).unwrap_or_default(), |step| {
        fits |= matches!(step, Step::Page(_));
    });
    fits
}

/// What is not valid in a segment that may be stored all the same.
fn invalid_in(summary: &SegmentSummary) -> Option<InvalidWal> {
    let invalid = summary
        .invalid_at
        .map(|(at, reason)| (at, reason.to_string()));
    let end = summary
        .end_of_wal
        .map(|(at, reason)| (at, format!("{reason} where WAL goes on behind it")));
    invalid
        .or(end)
        .map(|(at, reason)| InvalidWal { at, reason })
}

/// The valid beginning of a `.partial`: the server leaves what was in the file before behind it.
fn cut_partial<'a>(
    name: SegmentName,
    cluster: ClusterId,
    size: SegmentSize,
    history: &TimelineHistory,
    bytes: &'a [u8],
) -> Result<(SegmentSummary, &'a [u8]), String> {
    let (config, start) = whole_segment(name, cluster, size, bytes)?;
    let found = decode(config, start, history, bytes)?;
    let length = found.valid_to.distance_from(start).unwrap_or(0);
    let plain = usize::try_from(length)
        .ok()
        .and_then(|length| bytes.get(..length))
        .unwrap_or_default();
    if plain.is_empty() {
        return Err(match (found.invalid_at, found.end_of_wal) {
            (Some((at, reason)), _) => page_misfit(at, reason),
            (None, Some((_, reason))) => format!("it holds no WAL of its place but {reason}"),
            (None, None) => "no record ends in it".to_owned(),
        });
    }
    // Described as what is stored, so that the same bytes from elsewhere say the same.
    Ok((decode(config, start, history, plain)?, plain))
}

fn decode(
    config: DecoderConfig,
    start: Lsn,
    history: &TimelineHistory,
    bytes: &[u8],
) -> Result<SegmentSummary, String> {
    let mut scanner = SegmentScanner::new(config, start).map_err(|error| error.to_string())?;
    let mut timelines = TimelineCheck::new(history);
    scanner.push(bytes, |step| timelines.note(step));
    timelines.verdict()?;
    Ok(scanner.summary())
}

/// Each page must be of the timeline that wrote its place on the way to the name's timeline.
struct TimelineCheck<'a> {
    history: &'a TimelineHistory,
    misfit: Option<(Lsn, TimelineId)>,
}

impl<'a> TimelineCheck<'a> {
    fn new(history: &'a TimelineHistory) -> Self {
        Self {
            history,
            misfit: None,
        }
    }

    fn note(&mut self, step: &Step) {
        if let Step::Page(page) = step
            && page.timeline != self.history.timeline_at(page.address)
        {
            self.misfit.get_or_insert((page.address, page.timeline));
        }
    }

    fn verdict(self) -> Result<(), String> {
        let Some((address, timeline)) = self.misfit else {
            return Ok(());
        };
        Err(format!(
            "the page at {address} is of timeline {timeline}, by the history of timeline {} it belongs to timeline {}",
            self.history.timeline(),
            self.history.timeline_at(address)
        ))
    }
}

fn page_misfit(at: Lsn, reason: InvalidReason) -> String {
    format!("the page at {at} does not fit: {reason}")
}

/// What must hold of the size and the name before any page is looked at.
fn whole_segment(
    name: SegmentName,
    cluster: ClusterId,
    size: SegmentSize,
    bytes: &[u8],
) -> Result<(DecoderConfig, Lsn), String> {
    if bytes.len() as u64 != u64::from(size.bytes()) {
        return Err(format!(
            "{} bytes, but segments of this cluster have {}",
            bytes.len(),
            size.bytes()
        ));
    }
    let start = name
        .start(size)
        .ok_or_else(|| format!("no segment of {} bytes has this name", size.bytes()))?;
    let config = DecoderConfig {
        segment_size: size,
        system_identifier: Some(cluster.system_identifier),
        major: None,
    };
    Ok((config, start))
}

/// A backup history file names its segment in its first line: `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)`.
fn check_backup_history(
    segment: SegmentName,
    offset: u32,
    size: SegmentSize,
    bytes: &[u8],
) -> Result<(), &'static str> {
    let first = bytes.split(|byte| *byte == b'\n').next();
    let line = first
        .and_then(|line| std::str::from_utf8(line).ok())
        .and_then(|line| line.strip_prefix("START WAL LOCATION: "))
        .and_then(|rest| rest.strip_suffix(')')?.split_once(" (file "));
    let (lsn, file) = line.ok_or("it does not begin with a backup's start")?;
    let start = segment
        .start(size)
        .and_then(|start| start.checked_add(u64::from(offset)));
    if file != segment.to_string() || start.is_none() || lsn.parse::<Lsn>().ok() != start {
        return Err("the backup's start in it is not that of its name");
    }
    Ok(())
}

fn version(summary: &SegmentSummary, cluster: &ClusterDocument) -> u16 {
    summary
        .major
        .and_then(|major| u16::try_from(major.number()).ok())
        .unwrap_or(cluster.pg_version)
}

fn timeline_of(name: WalFileName) -> Option<TimelineId> {
    match name {
        WalFileName::Segment(name) | WalFileName::Partial(name) => Some(name.timeline),
        WalFileName::History(_) | WalFileName::BackupHistory { .. } => None,
    }
}

/// The first page header of any segment in a folder.
fn first_page_beside(folder: &Path) -> Result<Option<Vec<u8>>> {
    let entries =
        std::fs::read_dir(folder).map_err(|source| local(folder, "cannot be listed", source))?;
    for entry in entries.take(MAX_SIBLINGS).flatten() {
        let name = entry.file_name();
        let is_segment = name
            .to_str()
            .is_some_and(|name| name.parse::<SegmentName>().is_ok());
        if !is_segment {
            continue;
        }
        let mut header = Vec::new();
        // A segment being recycled may vanish or be empty: the next one will do.
        let read = File::open(entry.path())
            .and_then(|file| file.take(FIRST_HEADER_BYTES).read_to_end(&mut header));
        if read.is_ok() && PageHeader::parse_first(&header).is_ok() {
            return Ok(Some(header));
        }
    }
    Ok(None)
}

/// A whole file of at most `limit` bytes; `None` if it does not exist.
fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(local(path, "cannot be opened", error)),
    };
    let failed = |error| local(path, "cannot be read", error);
    let size = file.metadata().map_err(failed)?.len();
    let too_large = || {
        refused(
            &path.display().to_string(),
            &format!("larger than such a file can be ({limit} bytes)"),
        )
    };
    if size > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    if read.map_err(failed)? as u64 > limit {
        return Err(too_large());
    }
    Ok(Some(bytes))
}

fn refused(file: &str, reason: &str) -> Error {
    Error::RefusedFile {
        file: file.to_owned(),
        reason: reason.to_owned(),
    }
}

fn local(path: &Path, reason: &str, source: std::io::Error) -> Error {
    Error::LocalFile {
        path: path.to_owned(),
        reason: reason.to_owned(),
        source: Some(source),
    }
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
