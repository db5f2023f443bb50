//! Finds the last commit before an end of WAL, by decoding backwards from there.
//!
//! Owns how far it goes back in which steps. What fetches is a [`WalSource`].

use crate::error::{Error, Result};
use crate::plan::{Piece, PieceSource};
use crate::search::{WalSource, stored_bytes};
use crate::stretches::WalFacts;
use crate::window::Commit;
use wal_format::{DecoderConfig, Lsn, RecordKind, Step, WalDecoder};

/// Decodes from the end backwards until a commit is found. A record may begin in the segment before the one it ends in.
pub(crate) async fn find_last_commit(
    source: &impl WalSource,
    config: DecoderConfig,
    pieces: &[Piece],
    wal: &WalFacts,
    end: Lsn,
) -> Result<Option<Commit>> {
    let sealed = |piece: &Piece| match piece.source {
        PieceSource::Sealed => wal.sealed.get(&piece.name),
        PieceSource::Open { .. } => None,
    };
    for (index, piece) in pieces.iter().enumerate().rev() {
        if sealed(piece).is_some_and(|wal| wal.transactions == Some(0) && !wal.incomplete) {
            continue;
        }
        let has_start = |before: &usize| {
            let known = pieces.get(*before).and_then(sealed);
            known.is_none_or(|wal| wal.first_record.is_some())
        };
        let before = (0..index).rev().find(has_start);
        for begin in std::iter::once(index).chain(before) {
            let stretch = pieces.get(begin..=index).unwrap_or_default();
            let commit = last_commit_in(source, config, stretch, end).await?;
            if commit.is_some() {
                return Ok(commit);
            }
        }
    }
    Ok(None)
}

async fn last_commit_in(
    source: &impl WalSource,
    config: DecoderConfig,
    pieces: &[Piece],
    end: Lsn,
) -> Result<Option<Commit>> {
    let Some(first) = pieces.first() else {
        return Ok(None);
    };
    let mut decoder = WalDecoder::new(config, first.start).map_err(|error| Error::Integrity {
        object: first.name.to_string(),
        reason: error.to_string(),
    })?;
    let mut last = None;
    for piece in pieces {
        let content = source.bytes(piece).await?;
        decoder.push(stored_bytes(piece, &content), |step| {
            if let Step::Record(record) = step
                && let Some(
                    RecordKind::Commit { xid, time } | RecordKind::CommitPrepared { xid, time, .. },
                ) = record.kind
                && record.end <= end
            {
                last = Some(Commit {
                    time,
                    xid: xid.0,
                    lsn: record.start,
                    end: record.end,
                });
            }
        });
    }
    Ok(last)
}
