//! When the next tail chunk is due, and which bytes it takes.
//!
//! Pure: the clock is passed in. Owns group commit (one chunk write in flight, everything that arrived meanwhile goes into the
//! next), the minimum interval, and the restart that lets chunks be replaced. Does not own what durability means (`progress.rs`).

use std::time::{Duration, Instant};

/// After so many chunks of a segment the next one starts at the segment's start and replaces them.
pub const MAX_CHUNKS: u32 = 64;
/// Least time between two chunks, however often the server asks.
pub const MIN_INTERVAL: Duration = Duration::from_millis(20);

/// Bytes `[from, to)` of the open segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRange {
    /// First offset.
    pub from: u32,
    /// Offset behind the last byte.
    pub to: u32,
}

/// Schedules the tail chunks of the open segment.
#[derive(Clone, Debug)]
pub struct TailSchedule {
    /// Longest time bytes may wait; zero in sync mode.
    interval: Duration,
    /// Chunks taken of the open segment since the last one that started at 0.
    chunks: u32,
    /// Bytes of the open segment that are in chunks.
    covered: u32,
    /// Since when there are bytes that are in none.
    waiting_since: Option<Instant>,
    /// The server asked.
    asked: bool,
    in_flight: bool,
    last_start: Option<Instant>,
}

impl TailSchedule {
    /// A schedule for `rpo = interval`; zero stores every byte at once.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            chunks: 0,
            covered: 0,
            waiting_since: None,
            asked: false,
            in_flight: false,
            last_start: None,
        }
    }

    /// A new segment is open and empty. A chunk in flight may still end.
    pub fn open_segment(&mut self) {
        (self.chunks, self.covered, self.waiting_since) = (0, 0, None);
    }

    /// The open segment has `offset` bytes now.
    pub fn receive(&mut self, offset: u32, now: Instant) {
        if offset > self.covered {
            self.waiting_since.get_or_insert(now);
        }
    }

    /// The server wants everything flushed: do not wait for the interval.
    pub fn ask(&mut self) {
        self.asked = self.asked || self.waiting_since.is_some();
    }

    /// The moment from which [`TailSchedule::take`] gives a chunk; `None` while there is nothing to store or one is in flight.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let waiting = self.waiting_since.filter(|_| !self.in_flight)?;
        let wanted = if self.asked {
            waiting
        } else {
            waiting + self.interval
        };
        Some(
            self.last_start
                .map_or(wanted, |last| wanted.max(last + MIN_INTERVAL)),
        )
    }

    /// Takes the chunk that is due, if one is; `offset` is the open segment's length.
    pub fn take(&mut self, offset: u32, now: Instant) -> Option<ChunkRange> {
        self.due().filter(|due| *due <= now)?;
        let from = if self.chunks >= MAX_CHUNKS {
            0
        } else {
            self.covered
        };
        self.chunks = if from == 0 { 1 } else { self.chunks + 1 };
        self.covered = offset;
        self.waiting_since = None;
        self.asked = false;
        self.in_flight = true;
        self.last_start = Some(now);
        Some(ChunkRange { from, to: offset })
    }

    /// The chunk in flight is durable.
    pub fn finish(&mut self) {
        self.in_flight = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RPO: Duration = Duration::from_secs(5);

    #[test]
    fn bytes_wait_for_the_interval_and_no_new_bytes_make_no_chunk() {
        let start = Instant::now();
        let mut tail = TailSchedule::new(RPO);
        assert_eq!(tail.due(), None);
        tail.receive(100, start);
        tail.receive(200, start + RPO / 2);
        assert_eq!(tail.due(), Some(start + RPO));
        assert_eq!(tail.take(200, start + RPO / 2), None);
        assert_eq!(
            tail.take(250, start + RPO),
            Some(ChunkRange { from: 0, to: 250 })
        );
        tail.finish();
        tail.receive(250, start + RPO * 2);
        assert_eq!(tail.due(), None);
    }

    #[test]
    fn one_in_flight_and_what_arrived_meanwhile_goes_into_the_next() {
        let start = Instant::now();
        let mut tail = TailSchedule::new(Duration::ZERO);
        tail.receive(10, start);
        assert_eq!(tail.take(10, start), Some(ChunkRange { from: 0, to: 10 }));
        tail.receive(20, start);
        tail.receive(30, start);
        assert_eq!(tail.due(), None);
        tail.finish();
        assert_eq!(
            tail.take(30, start),
            None,
            "not before the minimum interval"
        );
        assert_eq!(
            tail.take(30, start + MIN_INTERVAL),
            Some(ChunkRange { from: 10, to: 30 })
        );
    }

    #[test]
    fn the_server_asking_ends_the_wait() {
        let start = Instant::now();
        let mut tail = TailSchedule::new(RPO);
        tail.receive(10, start);
        tail.ask();
        assert_eq!(tail.take(10, start), Some(ChunkRange { from: 0, to: 10 }));
    }

    #[test]
    fn after_sixty_four_chunks_one_replaces_them() {
        let mut now = Instant::now();
        let mut tail = TailSchedule::new(Duration::ZERO);
        let ranges: Vec<ChunkRange> = (1..=66)
            .map(|offset| {
                now += MIN_INTERVAL;
                tail.receive(offset, now);
                let range = tail.take(offset, now).unwrap();
                tail.finish();
                range
            })
            .collect();
        assert_eq!(ranges[63], ChunkRange { from: 63, to: 64 });
        assert_eq!(ranges[64], ChunkRange { from: 0, to: 65 });
        assert_eq!(ranges[65], ChunkRange { from: 65, to: 66 });
    }

    #[test]
    fn a_new_segment_starts_at_zero_while_the_old_ones_chunk_is_in_flight() {
        let start = Instant::now();
        let mut tail = TailSchedule::new(Duration::ZERO);
        tail.receive(10, start);
        tail.take(10, start).unwrap();
        tail.open_segment();
        tail.receive(5, start);
        assert_eq!(tail.due(), None);
        tail.finish();
        assert_eq!(
            tail.take(5, start + MIN_INTERVAL),
            Some(ChunkRange { from: 0, to: 5 })
        );
    }
}
