//! WAL as the repository describes it: lineage, the descriptor of a segment or part of one, and whether two descriptors chain.
//!
//! Pure. Owns the rule by which segment N+1 follows N. Does not decode WAL (`wal-format`) or walk a whole chain (`pitr`).

use sha2::{Digest, Sha256};
use wal_format::{Lsn, SegmentSummary, Timestamp};

use crate::descriptor::WalDescriptor;

/// What tells two timelines of the same number apart: the first 16 bytes of SHA-256 of the history file, 32 lower-case hex digits.
/// Timeline 1 has no history file and an empty lineage.
#[must_use]
pub fn lineage(history: Option<&[u8]>) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    if let Some(history) = history {
        for byte in &Sha256::digest(history)[..16] {
            // Writing to a string cannot fail.
            write!(text, "{byte:02x}").expect("a string takes any text");
        }
    }
    text
}

/// Describes the WAL from a segment's start to `end` from what decoding it said.
#[must_use]
pub fn describe(summary: &SegmentSummary, end: Lsn, lineage: &str) -> WalDescriptor {
    let times = summary.transactions.times;
    WalDescriptor {
        start_lsn: summary.start_lsn,
        end_lsn: end,
        lineage: lineage.to_owned(),
        first_record: summary.first_record,
        first_record_prev: summary.first_record_prev,
        first_record_overwrites: summary.first_record_overwrites,
        last_record: summary.last_record,
        transactions: Some(summary.transactions.count),
        time_min: times.and_then(|(min, _)| utc(min)),
        time_max: times.and_then(|(_, max)| utc(max)),
        incomplete: summary.transactions.incomplete,
        invalid_at: summary.invalid_at.map(|(at, _)| at),
    }
}

/// Describes a whole segment. One whose records do not fill it says where they end: behind that nothing can be recovered.
#[must_use]
pub fn describe_segment(summary: &SegmentSummary, lineage: &str) -> WalDescriptor {
    let mut wal = describe(summary, summary.end_lsn, lineage);
    if !summary.is_complete() {
        wal.invalid_at = wal.invalid_at.or(Some(summary.valid_to));
    }
    wal
}

/// A time of WAL as UTC; `None` outside the range of years that RFC 3339 has.
#[must_use]
pub fn utc(time: Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_microsecond(time.unix_micros()).ok()
}

/// What a chain of segments has shown so far: hand it the descriptors in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainLink {
    /// Start of the last record seen; `None` before the first.
    pub last_record: Option<Lsn>,
}

impl ChainLink {
    /// Whether `next` follows, as far as record positions say; segments in which no record starts are passed over. The LSN range and
    /// the lineage are the caller's to compare: across a switch of timelines they differ.
    ///
    /// # Errors
    /// The `xl_prev` that was found and the record that was expected.
    pub fn follow(&mut self, next: &WalDescriptor) -> Result<(), BrokenLink> {
        let Some(first) = next.first_record else {
            return Ok(());
        };
        if let (Some(expected), Some(found)) = (self.last_record, next.first_record_prev) {
            // The first record may replace one that a crash cut; its link leads to the one before that.
            if found != expected && next.first_record_overwrites != Some(expected) {
                return Err(BrokenLink {
                    at: first,
                    expected,
                    found,
                });
            }
        }
        self.last_record = next.last_record.or(Some(first));
        Ok(())
    }
}

/// Two segments that do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenLink {
    /// The record whose link is wrong.
    pub at: Lsn,
    /// The last record of the WAL before it.
    pub expected: Lsn,
    /// The record its link names.
    pub found: Lsn,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(first: Option<u64>, prev: u64, last: u64) -> WalDescriptor {
        WalDescriptor {
            first_record: first.map(Lsn::new),
            first_record_prev: Some(Lsn::new(prev)),
            last_record: first.map(|_| Lsn::new(last)),
            ..WalDescriptor::default()
        }
    }

    #[test]
    fn follows_links_and_passes_over_segments_without_records() {
        let mut link = ChainLink::default();
        assert_eq!(link.follow(&segment(Some(10), 5, 20)), Ok(()));
        assert_eq!(link.follow(&segment(None, 0, 0)), Ok(()));
        assert_eq!(link.follow(&segment(Some(40), 20, 50)), Ok(()));
        let broken = BrokenLink {
            at: Lsn::new(60),
            expected: Lsn::new(50),
            found: Lsn::new(40),
        };
        assert_eq!(link.follow(&segment(Some(60), 40, 70)), Err(broken));
    }

    #[test]
    fn an_overwritten_record_may_be_skipped() {
        let mut link = ChainLink {
            last_record: Some(Lsn::new(20)),
        };
        let mut next = segment(Some(40), 10, 50);
        next.first_record_overwrites = Some(Lsn::new(20));
        assert_eq!(link.follow(&next), Ok(()));
    }

    #[test]
    fn lineage_is_sixteen_bytes_of_sha_256() {
        assert_eq!(lineage(None), "");
        assert_eq!(lineage(Some(b"abc")), "ba7816bf8f01cfea414140de5dae2223");
    }
}
