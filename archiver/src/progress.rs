//! What has been received and what is durable on one timeline, and the status update that follows from it.
//!
//! Alone builds the status update: nothing else decides what the server is told. Pure; does not store, seal or send anything.
//!
//! What is reported flushed lets the server delete its copy of the WAL. So it is never more than was received on this timeline of
//! this connection, and never passes the end of a segment whose sealed object is not durable.

use std::collections::BTreeMap;

use repository::mirror::Ack;
use wal_format::{Lsn, SegmentNumber, SegmentSize};

/// Watermarks of one repository on one timeline.
#[derive(Clone, Debug)]
pub struct Progress {
    size: SegmentSize,
    /// First byte behind the last one received.
    received: Lsn,
    /// The segment whose end `flushed` waits for.
    first_open: SegmentNumber,
    /// Segments from `first_open` on of which something is durable.
    segments: BTreeMap<SegmentNumber, Durable>,
}

/// What is durable of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durable {
    /// All of it, as a sealed object.
    Sealed,
    /// Bytes from its start to this offset, as tail chunks.
    Tail(u32),
}

/// What the server is told, each position one behind the last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// `write`: received; in sync mode durable.
    pub write: Lsn,
    /// `flush`: durable.
    pub flush: Lsn,
}

impl Progress {
    /// Nothing received yet; streaming starts at `start`, a segment's first byte, before which everything is durable.
    #[must_use]
    pub fn new(size: SegmentSize, start: Lsn) -> Self {
        Self {
            size,
            received: start,
            first_open: size.segment(start),
            segments: BTreeMap::new(),
        }
    }

    /// Bytes up to `end` arrived.
    pub fn receive(&mut self, end: Lsn) {
        self.received = self.received.max(end);
    }

    /// The sealed object of a segment is durable.
    pub fn seal(&mut self, segment: SegmentNumber) {
        if segment >= self.first_open {
            self.segments.insert(segment, Durable::Sealed);
        }
        while self.segments.get(&self.first_open) == Some(&Durable::Sealed) {
            self.segments.remove(&self.first_open);
            self.first_open = self.first_open.next();
        }
    }

    /// Tail chunks cover a segment from its start to `offset`. An offset of the whole segment is not enough to pass its end.
    pub fn store_tail(&mut self, segment: SegmentNumber, offset: u32) {
        let known = self.segments.get(&segment).copied();
        let more = match known {
            Some(Durable::Sealed) => false,
            Some(Durable::Tail(known)) => offset > known,
            None => true,
        };
        if more && segment >= self.first_open {
            self.segments.insert(segment, Durable::Tail(offset));
        }
    }

    /// First byte behind the last one received.
    #[must_use]
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// First byte that is not durable, or whose loss would leave a hole before it.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        let start = self.size.start(self.first_open);
        let tail = match self.segments.get(&self.first_open) {
            Some(Durable::Tail(offset)) => (*offset).min(self.size.bytes() - 1),
            _ => 0,
        };
        start.saturating_add(u64::from(tail)).min(self.received)
    }
}

/// What the server is told now: the last byte received, how far each repository has WAL without a hole (`None`: nobody knows, or not even up to
/// where this stream began), and how many of them must. In sync mode `write` too waits for durability, so that
/// `synchronous_commit = remote_write` promises as much.
///
/// Where the policy is met only before the stream's start nothing is claimed (`flush` is 0/0): the slot stays where it is.
#[must_use]
pub fn positions(
    ack: Ack,
    received: Lsn,
    durable: impl IntoIterator<Item = Option<Lsn>>,
    sync: bool,
) -> Positions {
    let durable = durable.into_iter();
    let durable = durable.map(|durable| durable.unwrap_or(Lsn::INVALID));
    let flush = ack.durable(durable).unwrap_or(Lsn::INVALID).min(received);
    Positions {
        write: if sync { flush } else { received },
        flush,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(segment: u64, offset: u64) -> Lsn {
        Lsn::new(segment * MIB + offset)
    }

    fn progress() -> Progress {
        Progress::new(SegmentSize::new(1 << 20).unwrap(), at(5, 0))
    }

    #[test]
    fn nothing_is_flushed_before_it_is_durable() {
        let mut progress = progress();
        progress.receive(at(5, 700));
        let told = |progress: &Progress, sync| {
            positions(
                Ack::All,
                progress.received(),
                [Some(progress.durable())],
                sync,
            )
        };
        assert_eq!(
            told(&progress, false),
            Positions {
                write: at(5, 700),
                flush: at(5, 0)
            }
        );
        assert_eq!(
            told(&progress, true),
            Positions {
                write: at(5, 0),
                flush: at(5, 0)
            }
        );
        progress.store_tail(SegmentNumber::new(5), 600);
        assert_eq!(progress.durable(), at(5, 600));
    }

    #[test]
    fn a_later_segment_does_not_move_the_flush_past_an_earlier_one() {
        let mut progress = progress();
        progress.receive(at(7, 9));
        progress.seal(SegmentNumber::new(6));
        progress.store_tail(SegmentNumber::new(7), 9);
        assert_eq!(progress.durable(), at(5, 0));
        progress.store_tail(SegmentNumber::new(5), 1 << 20);
        assert_eq!(
            progress.durable(),
            at(5, MIB - 1),
            "tail chunks alone never pass a segment's end"
        );
        progress.seal(SegmentNumber::new(5));
        assert_eq!(progress.durable(), at(7, 9));
    }

    #[test]
    fn nothing_is_claimed_for_a_repository_of_which_nobody_knows() {
        let told = |ack, durable: [Option<u64>; 3]| {
            let durable = durable.map(|offset| offset.map(|offset| at(5, offset)));
            positions(ack, at(5, 900), durable, true)
        };
        let at_flush = |flush| Positions {
            write: flush,
            flush,
        };
        let unknown = [Some(700), None, Some(800)];
        assert_eq!(told(Ack::All, unknown), at_flush(Lsn::INVALID));
        assert_eq!(told(Ack::Quorum(2), unknown), at_flush(at(5, 700)));
        assert_eq!(told(Ack::Any, unknown), at_flush(at(5, 800)));
        let ahead = [Some(9_000), Some(9_000), Some(9_000)];
        assert_eq!(
            told(Ack::All, ahead),
            at_flush(at(5, 900)),
            "never more than was received"
        );
    }

    #[test]
    fn never_more_than_was_received_on_this_connection() {
        let mut progress = progress();
        progress.receive(at(5, 10));
        progress.store_tail(SegmentNumber::new(5), 500);
        assert_eq!(progress.durable(), at(5, 10));
    }

    proptest! {
        /// Against a model that keeps every byte's state.
        #[test]
        fn flush_equals_the_first_byte_that_is_not_safe(events in proptest::collection::vec((0_u8..3, 5_u64..9, 0_u32..=1 << 20), 0..40)) {
            let mut progress = progress();
            let (mut received, mut sealed, mut tails) = (at(5, 0), [false; 16], [0_u32; 16]);
            let mut before = progress.durable();
            for (kind, segment, offset) in events {
                let number = SegmentNumber::new(segment);
                match kind {
                    0 => { received = received.max(at(segment, u64::from(offset))); progress.receive(at(segment, u64::from(offset))); }
                    1 => { sealed[segment as usize] = true; progress.seal(number); }
                    _ => { tails[segment as usize] = tails[segment as usize].max(offset); progress.store_tail(number, offset); }
                }
                let open = (5_u64..).find(|segment| !sealed[*segment as usize]).unwrap();
                let safe = at(open, u64::from(tails[open as usize].min((1 << 20) - 1)));
                prop_assert_eq!(progress.durable(), safe.min(received));
                prop_assert!(progress.durable() >= before, "it never moves backwards");
                before = progress.durable();
            }
        }
    }
}
