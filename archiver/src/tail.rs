//! When the next tail chunk is due, and which bytes it takes.
//!
//! Pure: the clock is passed in. Owns group commit (one chunk write in flight, everything that arrived meanwhile goes into the
//! next), the minimum interval, and which chunks the next one replaces. Does not own what durability means (`progress.rs`).

use std::time::{Duration, Instant};

/// So many chunks are replaced by the next one, so many of such larger ones by a still larger one, and so on.
const FAN: usize = 16;
/// A replacement of [`FAN`] chunks of this level starts at the segment's start. So no byte is stored much more than a few times, however
/// small the chunks are, and few are large.
const HIGHEST_LEVEL: u32 = 2;
/// Most chunks that a tail has to be put together from.
pub const MAX_CHUNKS: usize = (HIGHEST_LEVEL as usize + 1) * FAN + 1;
/// Least time between two chunks, however often the server asks; where commits wait, the store's own time is enough.
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
    /// The chunks of the open segment that no later one has replaced: offsets at which they start, and their levels, which fall.
    chunks: Vec<(u32, u32)>,
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
            chunks: Vec::new(),
            covered: 0,
            waiting_since: None,
            asked: false,
            in_flight: false,
            last_start: None,
        }
    }

    /// Changes how long bytes may wait, those that wait now included.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// A new segment is open and empty. A chunk in flight may still end.
    pub fn open_segment(&mut self) {
        self.chunks.clear();
        (self.covered, self.waiting_since) = (0, None);
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
        if self.interval.is_zero() {
            return Some(waiting);
        }
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
        let from = self.place_chunk();
        self.covered = offset;
        self.waiting_since = None;
        self.asked = false;
        self.in_flight = true;
        self.last_start = Some(now);
        Some(ChunkRange { from, to: offset })
    }

    /// Where the next chunk starts: behind all others, or where those start that it replaces.
    fn place_chunk(&mut self) -> u32 {
        let (mut from, mut level) = (self.covered, 0);
        while let Some(first) = self.chunks.len().checked_sub(FAN)
            && let Some((start, first_level)) = self.chunks.get(first).copied()
            && first_level == level
        {
            self.chunks.truncate(first);
            (from, level) = (start, level + 1);
            if level > HIGHEST_LEVEL {
                self.chunks.clear();
                from = 0;
            }
        }
        self.chunks.push((from, level));
        from
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
        assert_eq!(tail.take(30, start), Some(ChunkRange { from: 10, to: 30 }));
    }

    #[test]
    fn a_server_that_asks_in_a_loop_is_answered_at_intervals() {
        let start = Instant::now();
        let mut tail = TailSchedule::new(RPO);
        for (offset, at) in [(10, start), (20, start + MIN_INTERVAL)] {
            tail.receive(offset, start);
            tail.ask();
            assert_eq!(tail.due(), Some(at));
            tail.take(offset, at).unwrap();
            tail.finish();
        }
    }

    #[test]
    fn a_changed_interval_counts_for_what_waits() {
        let start = Instant::now();
        let mut tail = TailSchedule::new(RPO);
        tail.receive(10, start);
        tail.set_interval(Duration::ZERO);
        assert_eq!(tail.due(), Some(start));
        tail.set_interval(RPO * 2);
        assert_eq!(tail.due(), Some(start + RPO * 2));
    }

    #[test]
    fn the_server_asking_ends_the_wait() {
        let start = Instant::now();
        let mut tail = TailSchedule::new(RPO);
        tail.receive(10, start);
        tail.ask();
        assert_eq!(tail.take(10, start), Some(ChunkRange { from: 0, to: 10 }));
    }

    /// The ranges of so many chunks of one byte each.
    fn ranges(count: u32) -> Vec<ChunkRange> {
        let mut now = Instant::now();
        let mut tail = TailSchedule::new(Duration::ZERO);
        let ranges = (1..=count).map(|offset| {
            now += MIN_INTERVAL;
            tail.receive(offset, now);
            let range = tail.take(offset, now).unwrap();
            tail.finish();
            range
        });
        ranges.collect()
    }

    #[test]
    fn sixteen_chunks_are_replaced_by_one_and_sixteen_of_those_by_another() {
        let ranges = ranges(16 * 17 * 17);
        assert_eq!(ranges[15], ChunkRange { from: 15, to: 16 });
        assert_eq!(ranges[16], ChunkRange { from: 0, to: 17 });
        assert_eq!(ranges[17], ChunkRange { from: 17, to: 18 });
        assert_eq!(ranges[33], ChunkRange { from: 17, to: 34 });
        assert_eq!(ranges[16 * 17 + 15], ChunkRange { from: 287, to: 288 });
        assert_eq!(ranges[16 * 17 + 16], ChunkRange { from: 0, to: 289 });
    }

    #[test]
    fn few_chunks_make_a_tail_and_little_is_stored_twice() {
        let ranges = ranges(20_000);
        for count in [1, 16, 17, 300, 5_000, 19_999, 20_000] {
            let (mut reach, mut needed) = (0, 0);
            while reach < count as u32 {
                let next = ranges[..count].iter().filter(|range| range.from <= reach);
                reach = next.map(|range| range.to).max().unwrap();
                needed += 1;
            }
            assert!(needed <= MAX_CHUNKS, "{needed} chunks of {count}");
        }
        let stored: u64 = ranges
            .iter()
            .map(|range| u64::from(range.to - range.from))
            .sum();
        assert!(stored < 8 * 20_000, "{stored} bytes for 20000");
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
