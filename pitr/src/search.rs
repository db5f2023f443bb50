//! Makes a recovery plan: walks the pieces that `plan.rs` lists, proves the chain, decodes as little WAL as the target needs, finds the stop.
//!
//! Owns the order of fetching. The rules are in `plan.rs` and `stop.rs`; what fetches is a [`WalSource`].

use crate::error::{Error, Result};
use crate::plan::{
    BackupFacts, BrokenChain, Piece, PieceSource, Pieces, RecoveryPlan, WalPath, choose_backups,
    may_hold_stop, plan_pieces, window_of, without_empty_timelines,
};
use crate::settle::{Chain, Continues};
use crate::stop::{StopFinder, Verdict};
use crate::target::{RecoveryGoal, RecoveryTarget};
use futures_util::StreamExt;
use repository::catalog::Catalog;
use repository::descriptor::WalDescriptor;
use repository::key::BackupLabel;
use std::future::Future;
use wal_format::{DecoderConfig, Lsn, RecordKind, Step, Timestamp, WalDecoder};

/// Descriptors asked for at the same time.
const DESCRIPTORS_IN_FLIGHT: usize = 16;
/// Most segments after the stop whose transactions are counted.
const MAX_COUNTED_PIECES: usize = 2048;
/// How often a chain is followed again because an earlier piece was taken from another repository.
const MAX_ROUNDS: usize = 32;

/// The bytes of a piece.
#[derive(Clone, Debug)]
pub struct PieceBytes {
    /// A whole segment, or with `length` its beginning.
    pub bytes: Vec<u8>,
    /// How many of them are stored WAL; the rest is zeros.
    pub length: u32,
    /// Whether WAL that is not valid is only the end of it (a server's own `.partial`) and not damage.
    pub may_end_torn: bool,
}

/// Fetches what a plan asks for.
pub trait WalSource: Sync {
    /// What a sealed segment says of itself.
    fn descriptor(&self, piece: &Piece) -> impl Future<Output = Result<WalDescriptor>> + Send;
    /// The bytes of a piece, sealed or open.
    fn bytes(&self, piece: &Piece) -> impl Future<Output = Result<PieceBytes>> + Send;
    /// Where there are several repositories: the form of a sealed segment in the first of them in which it `fits`; from then on that one is
    /// read. `None`: it fits in none.
    fn another(
        &self,
        _piece: &Piece,
        _fits: &Fits<'_>,
    ) -> impl Future<Output = Option<WalDescriptor>> + Send {
        std::future::ready(None)
    }
    /// Chooses among several forms of sealed segments, one after the other in WAL order, those that are one chain, as far as there are any. Nothing
    /// to do where there is one repository.
    fn settle(&self, _pieces: &[Piece]) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Says whether a form of a segment is the one that is looked for.
pub type Fits<'f> = dyn Fn(&WalDescriptor) -> std::result::Result<(), BrokenChain> + Sync + 'f;

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanRequest<'a> {
    /// Names of everything stored.
    pub catalog: &'a Catalog,
    /// The way through WAL.
    pub path: &'a WalPath,
    /// Every backup that exists.
    pub backups: &'a [BackupFacts],
    /// Where to stop.
    pub goal: &'a RecoveryGoal,
    /// The backup to use, if the user named one.
    pub backup: Option<&'a BackupLabel>,
    /// The cluster, for the decoder.
    pub decoder: DecoderConfig,
}

/// Makes the plan.
///
/// # Errors
/// `NotFound`: the target cannot be reached or was not found, with the window. `Corrupt`: an object on the way is missing or contradicts
/// the others. Others from the source.
pub async fn plan_recovery(
    source: &impl WalSource,
    request: PlanRequest<'_>,
) -> Result<RecoveryPlan> {
    let PlanRequest {
        catalog,
        path,
        backups,
        goal,
        ..
    } = request;
    let mut window = window_of(catalog, backups, path);
    let candidates = choose_backups(backups, path, goal, request.backup, window)?;
    let mut searched_from: Option<Lsn> = None;
    let mut reason = String::from("nothing that is stored matches it");
    for (index, backup) in candidates.iter().enumerate() {
        let pieces = plan_pieces(catalog, path, backup.start_lsn);
        // Transactions and restore points may be anywhere: what a newer backup's WAL did not hold is looked for before it.
        let until = searched_from.filter(|_| {
            matches!(
                goal.target,
                RecoveryTarget::Xid(_) | RecoveryTarget::Name(_)
            )
        });
        let walk = match walk(source, &request, backup, &pieces, until).await {
            // An old gap is no answer to where a target is; it only ends the search.
            Err(Error::Missing { object, .. }) if index > 0 && until.is_some() => {
                reason =
                    format!("nothing that is stored after {object}, which is missing, matches it");
                break;
            }
            walk => walk?,
        };
        if let Some(latest) = &mut window.latest {
            latest.time = latest.time.max(walk.newest_time);
        }
        match walk.verdict {
            Verdict::Reached(stop) => {
                let after = count_after(source, &request, &pieces, &walk).await;
                if let Some(latest) = &mut window.latest {
                    // Not all was looked at: better no time than one that is too early.
                    latest.time = after.and_then(|after| latest.time.max(after.newest));
                }
                let needed = pieces
                    .pieces
                    .into_iter()
                    .filter(|piece| piece.start < stop.needed_to)
                    .collect();
                return Ok(RecoveryPlan {
                    goal: goal.clone(),
                    backup: (*backup).clone(),
                    path: without_empty_timelines(catalog, path)?,
                    pieces: needed,
                    stop,
                    newest_transaction: walk.finder.newest_transaction(),
                    transactions_after: after.map(|after| after.transactions),
                    prepared_open: walk.finder.prepared_open().map(str::to_owned).collect(),
                    minimums: walk.finder.minimums(),
                    window,
                });
            }
            Verdict::BeforeConsistency(_) | Verdict::NotReached
                if walk.ended_before(backup.stop_lsn) =>
            {
                return Err(Error::Missing {
                    object: format!("WAL up to {}", backup.stop_lsn),
                    reason: format!("backup {} is consistent only there", backup.label.as_str()),
                });
            }
            Verdict::BeforeConsistency(at) => {
                reason = format!(
                    "it lies at {at}, before backup {} is consistent",
                    backup.label.as_str()
                );
            }
            Verdict::NotReached => match &goal.target {
                RecoveryTarget::Time(_) => {
                    reason = "no transaction that ended after it is stored (latest recovers everything that is)".into();
                    break;
                }
                RecoveryTarget::Lsn(_) => {
                    reason = "no record at or after it is stored".into();
                    break;
                }
                _ => {}
            },
        }
        searched_from = Some(backup.stop_lsn);
    }
    Err(Error::Unreachable {
        what: goal.to_string(),
        reason,
        window: window.into(),
    })
}

/// What walking over the pieces of one backup found.
struct Walk {
    verdict: Verdict,
    finder: StopFinder,
    newest_time: Option<Timestamp>,
    /// Index of the first piece that was not looked at.
    next: usize,
    /// Whether everything stored was looked at.
    at_end: bool,
}

impl Walk {
    fn ended_before(&self, consistent_at: Lsn) -> bool {
        self.at_end
            && self
                .finder
                .last_applied()
                .is_none_or(|(_, end)| end < consistent_at)
    }
}

async fn walk(
    source: &impl WalSource,
    request: &PlanRequest<'_>,
    backup: &BackupFacts,
    pieces: &Pieces,
    until: Option<Lsn>,
) -> Result<Walk> {
    for _ in 0..MAX_ROUNDS {
        if let Some(walk) = walk_once(source, request, backup, pieces, until).await? {
            return Ok(walk);
        }
    }
    Err(Error::Integrity {
        object: format!("WAL from {}", backup.start_lsn),
        reason: "the repositories hold too many different segments of the same names".into(),
    })
}

/// `None`: an earlier piece is taken from another repository from now on.
async fn walk_once(
    source: &impl WalSource,
    request: &PlanRequest<'_>,
    backup: &BackupFacts,
    pieces: &Pieces,
    until: Option<Lsn>,
) -> Result<Option<Walk>> {
    let all = pieces.pieces.as_slice();
    let mut finder = StopFinder::new(request.goal.clone(), backup.start_lsn, backup.stop_lsn);
    let mut chain = Chain::default();
    let mut decoder: Option<WalDecoder> = None;
    let mut newest_time = None;
    // Whether a record starts in each piece seen so far: a scan must begin where one does.
    let mut has_start: Vec<bool> = Vec::new();
    let mut descriptors =
        futures_util::stream::iter(all.iter().map(|piece| describe(source, piece)))
            .buffered(DESCRIPTORS_IN_FLIGHT);
    for (index, piece) in all.iter().enumerate() {
        if until.is_some_and(|until| piece.start >= until) {
            return Ok(Some(Walk {
                verdict: finder.verdict(),
                finder,
                newest_time,
                next: index,
                at_end: false,
            }));
        }
        let mut ends_at = None;
        let wanted = match descriptors.next().await.transpose()?.flatten() {
            Some(mut wal) => {
                match chain.follow(source, request.path, piece, &wal).await {
                    Continues::Yes => {}
                    Continues::As(other) => wal = *other,
                    Continues::Anew => return Ok(None),
                    // Nothing behind it can be recovered; what lies before it can.
                    Continues::No(BrokenChain::Invalid { at }) => ends_at = Some(at),
                    Continues::No(broken) => return Err(integrity(piece, broken.to_string())),
                }
                let newest = wal
                    .time_max
                    .map(|time| Timestamp::from_unix_micros(time.as_microsecond()));
                newest_time = newest_time.max(newest);
                has_start.push(wal.first_record.is_some());
                // The last piece says where the WAL ends.
                ends_at.is_some()
                    || may_hold_stop(request.goal, backup, &wal)
                    || index + 1 == all.len()
            }
            None => {
                has_start.push(true);
                true
            }
        };
        if wanted {
            let mut scan = match decoder
                .take()
                .filter(|decoder| decoder.position() == piece.start)
            {
                Some(decoder) => decoder,
                None => {
                    // A record that ends here may start in a piece that was passed over.
                    let begin = (0..index)
                        .rev()
                        .find(|before| has_start.get(*before) == Some(&true))
                        .unwrap_or(0);
                    let first = all.get(begin).unwrap_or(piece);
                    let mut scan = WalDecoder::new(request.decoder, first.start)
                        .map_err(|error| integrity(first, error.to_string()))?;
                    for before in all.get(begin..index).unwrap_or_default() {
                        push(source, before, &mut scan, &mut finder).await?;
                    }
                    scan
                }
            };
            let pushed = push(source, piece, &mut scan, &mut finder).await;
            if let (Some(at), Verdict::NotReached) = (ends_at, finder.verdict()) {
                let walk = end_of_validity(request, piece, at, pushed, finder, index)?;
                return Ok(Some(Walk {
                    newest_time,
                    ..walk
                }));
            }
            pushed?;
            decoder = Some(scan);
            if finder.verdict() != Verdict::NotReached {
                return Ok(Some(Walk {
                    verdict: finder.verdict(),
                    newest_time: newest_time.max(finder.newest_seen()),
                    finder,
                    next: index + 1,
                    at_end: false,
                }));
            }
        }
    }
    if let Some((object, reason)) = &pieces.hole {
        return Err(Error::Missing {
            object: object.clone(),
            reason: reason.clone(),
        });
    }
    if all.is_empty() {
        let name = request.path.name(
            backup.timeline,
            request.path.segment_size.segment(backup.start_lsn),
        );
        return Err(Error::Missing {
            object: name.to_string(),
            reason: format!("replay of backup {} starts in it", backup.label.as_str()),
        });
    }
    Ok(Some(Walk {
        verdict: finder.verdict_at_end(),
        newest_time: newest_time.max(finder.newest_seen()),
        finder,
        next: all.len(),
        at_end: true,
    }))
}

/// WAL was stored with something in it that is not valid, at `at`, and the target was not found before it. A position at which every
/// record before it is there can be reached all the same.
fn end_of_validity(
    request: &PlanRequest<'_>,
    piece: &Piece,
    at: Lsn,
    pushed: Result<()>,
    finder: StopFinder,
    index: usize,
) -> Result<Walk> {
    if let Err(error) = pushed
        && !matches!(error, Error::Integrity { .. })
    {
        return Err(error);
    }
    let verdict = match request.goal.target {
        RecoveryTarget::Lsn(target) if target <= at => finder.verdict_at_end(),
        _ => Verdict::NotReached,
    };
    if verdict == Verdict::NotReached {
        let newest = match finder.last_applied() {
            Some((record, _)) => format!("; the last target before it is --to-lsn {record}"),
            None => String::new(),
        };
        return Err(integrity(
            piece,
            format!("WAL is not valid from {at} on, and recovery ends there{newest}"),
        ));
    }
    Ok(Walk {
        verdict,
        finder,
        newest_time: None,
        next: index + 1,
        at_end: true,
    })
}

/// The descriptor of a sealed piece; `None` for an open one.
async fn describe(source: &impl WalSource, piece: &Piece) -> Result<Option<WalDescriptor>> {
    match piece.source {
        PieceSource::Sealed => source.descriptor(piece).await.map(Some),
        PieceSource::Open { .. } => Ok(None),
    }
}

/// Decodes a piece.
async fn push(
    source: &impl WalSource,
    piece: &Piece,
    decoder: &mut WalDecoder,
    finder: &mut StopFinder,
) -> Result<()> {
    let content = source.bytes(piece).await?;
    let mut problem: Option<String> = None;
    let stored = stored_bytes(piece, &content);
    decoder.push(stored, |step| match step {
        Step::Record(record) if problem.is_none() => finder.observe(&record),
        Step::Invalid { at, reason } if !content.may_end_torn => {
            problem.get_or_insert_with(|| format!("WAL is not valid at {at}: {reason}"));
        }
        Step::EndOfWal { at, reason } if piece.source == PieceSource::Sealed => {
            problem.get_or_insert_with(|| {
                format!("WAL ends at {at} in a segment that should be complete: {reason}")
            });
        }
        _ => {}
    });
    match problem {
        // What comes after the stop is not needed.
        Some(reason) if finder.verdict() == Verdict::NotReached => Err(integrity(piece, reason)),
        _ => Ok(()),
    }
}

/// Transactions stored after the stop. Counting is a service: what cannot be counted makes the answer unknown, not an error.
async fn count_after(
    source: &impl WalSource,
    request: &PlanRequest<'_>,
    pieces: &Pieces,
    walk: &Walk,
) -> Option<After> {
    let rest = pieces.pieces.get(walk.next..)?;
    if rest.len() > MAX_COUNTED_PIECES || pieces.hole.is_some() {
        return None;
    }
    let mut counts =
        futures_util::stream::iter(rest.iter().map(|piece| count(source, request, piece)))
            .buffered(DESCRIPTORS_IN_FLIGHT);
    let mut total = After {
        transactions: walk.finder.transactions_after(),
        newest: walk.finder.newest_seen(),
    };
    while let Some(piece) = counts.next().await {
        let piece = piece?;
        total.transactions = total.transactions.checked_add(piece.transactions)?;
        total.newest = total.newest.max(piece.newest);
    }
    Some(total)
}

/// Commits and aborts after the stop.
#[derive(Clone, Copy, Default)]
struct After {
    transactions: u64,
    /// The newest of them.
    newest: Option<Timestamp>,
}

async fn count(source: &impl WalSource, request: &PlanRequest<'_>, piece: &Piece) -> Option<After> {
    if let Some(wal) = describe(source, piece).await.ok()? {
        let newest = wal
            .time_max
            .map(|time| Timestamp::from_unix_micros(time.as_microsecond()));
        return wal.transactions.map(|transactions| After {
            transactions,
            newest,
        });
    }
    let content = source.bytes(piece).await.ok()?;
    let mut decoder = WalDecoder::new(request.decoder, piece.start).ok()?;
    let mut after = After::default();
    decoder.push(stored_bytes(piece, &content), |step| {
        if let Step::Record(record) = step
            && let Some(
                RecordKind::Commit { time, .. }
                | RecordKind::Abort { time, .. }
                | RecordKind::CommitPrepared { time, .. }
                | RecordKind::AbortPrepared { time, .. },
            ) = record.kind
        {
            after.transactions += 1;
            after.newest = after.newest.max(Some(time));
        }
    });
    Some(after)
}

/// The WAL of a piece that belongs to the path: nothing behind what is stored, nothing behind a switch.
pub(crate) fn stored_bytes<'a>(piece: &Piece, content: &'a PieceBytes) -> &'a [u8] {
    let cut = piece.cut.and_then(|cut| cut.distance_from(piece.start));
    let length = cut.map_or(u64::from(content.length), |cut| {
        cut.min(u64::from(content.length))
    });
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    content.bytes.get(..length).unwrap_or(&content.bytes)
}

fn integrity(piece: &Piece, reason: String) -> Error {
    Error::Integrity {
        object: piece.name.to_string(),
        reason,
    }
}
