//! One timeline's objects on their way to several repositories: who stores what next, who has it, and who is let go.
//!
//! Pure: the clock is passed in, nothing is stored here. Objects stand in a window in the order of their WAL; each repository has a lane, which
//! stores them one after the other. An object leaves the window when every lane in the race has stored it, so the window is what memory has to
//! hold. A lane that holds it up is let go: it no longer counts, its watermark stands still, and it is filled from a peer that has what it
//! missed (`fill.rs`). It comes back in two steps: from [`Lanes::join`] on the window is held for it too, so that what is listed of a peer
//! afterwards and the window together are everything; once the listed is there, [`Lanes::joined`] lets it store again.
//!
//! Does not own what a watermark means (`progress.rs`), or the policy (`repository::mirror`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use repository::mirror::Ack;
use repository::sealed::Sealed;
use wal_format::{Lsn, SegmentNumber, SegmentSize};

use crate::progress::Progress;
use crate::upload::NEEDED_GRACE;

/// How long a lane that the policy does not need may hold up the window.
const UNNEEDED_PATIENCE: Duration = Duration::from_millis(500);
/// Most objects in the window.
const MAX_OBJECTS: usize = 160;

/// What an object makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Covers {
    /// A whole segment, or all that there will be of it.
    Segment(SegmentNumber),
    /// A segment up to this offset.
    Tail(SegmentNumber, u32),
}

/// How a lane takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneState {
    /// It stores what comes.
    Live,
    /// It lacks something and stores nothing; since when.
    Behind(Instant),
    /// What it lacked is being filled in, and the window held for it; since when it is behind.
    Joining(Instant),
    /// Its repository holds other contents.
    Refused,
}

struct Object {
    covers: Covers,
    /// Once it is sealed.
    sealed: Option<Arc<Sealed>>,
}

struct Lane {
    state: LaneState,
    /// The object that it stores next, or now.
    next: u64,
    busy: bool,
    /// When it last stored something, or had nothing to store.
    moved: Instant,
    /// How far it has WAL without a hole; `None`: not even up to the stream's start, or nobody knows.
    progress: Option<Progress>,
}

/// See the module.
pub(super) struct Lanes {
    ack: Ack,
    max_segments: usize,
    max_tail_bytes: u64,
    window: VecDeque<Object>,
    /// Number of the window's first object.
    first: u64,
    lanes: Vec<Lane>,
    /// What every lane in the race has: all before the window.
    common: Progress,
    full_since: Option<Instant>,
    /// Nothing more comes: whoever holds up the window holds up the end.
    is_ending: bool,
}

impl Lanes {
    /// Lanes of a stream that begins at `start`; `level` says of each repository whether it has everything before that. At least one has, or
    /// nothing is there to be missed.
    pub(super) fn new(
        ack: Ack,
        max_segments: usize,
        size: SegmentSize,
        start: Lsn,
        level: &[bool],
        now: Instant,
    ) -> Self {
        let common = Progress::new(size, start);
        let lane = |level: &bool| Lane {
            state: match level {
                true => LaneState::Live,
                false => LaneState::Behind(now),
            },
            next: 0,
            busy: false,
            moved: now,
            progress: level.then(|| common.clone()),
        };
        Self {
            ack,
            max_segments,
            max_tail_bytes: u64::from(size.bytes()),
            window: VecDeque::new(),
            first: 0,
            lanes: level.iter().map(lane).collect(),
            common,
            full_since: None,
            is_ending: false,
        }
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self, now: Instant) {
        self.is_ending = true;
        self.note_fullness(now);
    }

    /// Whether every lane in the race has everything.
    pub(super) fn is_empty(&self) -> bool {
        self.window.is_empty()
    }

    /// WAL up to `end` arrived.
    pub(super) fn receive(&mut self, end: Lsn) {
        self.common.receive(end);
        for progress in self
            .lanes
            .iter_mut()
            .filter_map(|lane| lane.progress.as_mut())
        {
            progress.receive(end);
        }
    }

    /// First byte behind the last one received.
    pub(super) fn received(&self) -> Lsn {
        self.common.received()
    }

    /// How far each repository has WAL without a hole, in their order.
    pub(super) fn durable(&self) -> impl Iterator<Item = Option<Lsn>> {
        let lanes = self.lanes.iter();
        lanes.map(|lane| lane.progress.as_ref().map(Progress::durable))
    }

    /// How a lane takes part.
    pub(super) fn state(&self, lane: usize) -> LaneState {
        self.lanes[lane].state
    }

    /// Adds an object that is yet to be sealed; gives its number.
    pub(super) fn push(&mut self, covers: Covers, now: Instant) -> u64 {
        let number = self.next_number();
        for lane in self.lanes.iter_mut().filter(|lane| lane.next == number) {
            lane.moved = now;
        }
        self.window.push_back(Object {
            covers,
            sealed: None,
        });
        self.note_fullness(now);
        number
    }

    /// An object is sealed.
    pub(super) fn sealed(&mut self, number: u64, sealed: Arc<Sealed>) {
        if let Some(object) = self.object_mut(number) {
            object.sealed = Some(sealed);
        }
    }

    /// What may be stored now: lane, number, object. Each is given once.
    pub(super) fn start(&mut self) -> Vec<(usize, u64, Arc<Sealed>)> {
        let mut started = Vec::new();
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if lane.busy || lane.state != LaneState::Live {
                continue;
            }
            let place = usize::try_from(lane.next - self.first).unwrap_or(usize::MAX);
            let sealed = self
                .window
                .get(place)
                .and_then(|object| object.sealed.clone());
            if let Some(sealed) = sealed {
                lane.busy = true;
                started.push((number, lane.next, sealed));
            }
        }
        started
    }

    /// A lane has stored an object. One that was let go meanwhile does not count.
    pub(super) fn stored(&mut self, lane: usize, number: u64, now: Instant) {
        let Some(covers) = self.object_mut(number).map(|object| object.covers) else {
            return;
        };
        let lane = &mut self.lanes[lane];
        if lane.state != LaneState::Live || lane.next != number {
            return;
        }
        (lane.busy, lane.next, lane.moved) = (false, number + 1, now);
        if let Some(progress) = &mut lane.progress {
            apply(progress, covers);
        }
        self.trim(now);
    }

    /// A lane's repository holds other contents: it is out.
    pub(super) fn refuse(&mut self, lane: usize, now: Instant) {
        self.leave(lane, LaneState::Refused, now);
    }

    /// The window is held for this lane from now on.
    pub(super) fn join(&mut self, lane: usize) {
        let first = self.first;
        let lane = &mut self.lanes[lane];
        if let LaneState::Behind(since) = lane.state {
            (lane.state, lane.next, lane.busy) = (LaneState::Joining(since), first, false);
        }
    }

    /// Everything before the window is in this lane's repository: it stores again.
    pub(super) fn joined(&mut self, lane: usize, now: Instant) {
        let common = &self.common;
        let lane = &mut self.lanes[lane];
        if let LaneState::Joining(_) = lane.state {
            (lane.state, lane.moved) = (LaneState::Live, now);
            lane.progress = Some(common.clone());
        }
    }

    /// Whether as many lanes have an object as can be waited for: the policy's number, or all in the race if they are fewer.
    pub(super) fn is_settled(&self, number: u64) -> bool {
        self.holders(number) >= self.wanted()
    }

    /// Whether all of the window is settled.
    pub(super) fn all_settled(&self) -> bool {
        self.window.is_empty() || self.is_settled(self.next_number() - 1)
    }

    /// Segments that are not settled.
    pub(super) fn unsettled_segments(&self) -> usize {
        let objects = self.window.iter().zip(self.first..);
        objects
            .filter(|(object, number)| {
                matches!(object.covers, Covers::Segment(_)) && !self.is_settled(*number)
            })
            .count()
    }

    /// Whether nothing more may come into the window.
    pub(super) fn is_full(&self) -> bool {
        let segments = self.window.iter();
        let segments = segments.filter(|object| matches!(object.covers, Covers::Segment(_)));
        let tails = self.window.iter().filter_map(|object| match object.covers {
            Covers::Segment(_) => None,
            Covers::Tail(..) => object.sealed.as_ref().map(|sealed| sealed.stored_size()),
        });
        segments.count() >= self.max_segments
            || self.window.len() >= MAX_OBJECTS
            || tails.sum::<u64>() >= self.max_tail_bytes
    }

    /// The next moment at which [`Lanes::let_go`] may find somebody.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        let full_since = self.full_since?;
        let holding = self.holding().into_iter();
        holding
            .map(|lane| self.patience_with(lane, full_since))
            .min()
    }

    /// Lets go the lanes that have held up the window for too long, while others have what they hold. Gives their numbers.
    pub(super) fn let_go(&mut self, now: Instant) -> Vec<usize> {
        let Some(full_since) = self.full_since else {
            return Vec::new();
        };
        let mut gone = self.holding();
        gone.retain(|lane| self.patience_with(*lane, full_since) <= now);
        for lane in &gone {
            self.leave(*lane, LaneState::Behind(now), now);
        }
        gone
    }

    /// Lanes that have not stored the window's first object, if another one has: it can be copied from there.
    fn holding(&self) -> Vec<usize> {
        if self.window.is_empty() || self.holders(self.first) == 0 {
            return Vec::new();
        }
        let lanes = self.lanes.iter().enumerate();
        let holding = lanes.filter(|(_, lane)| lane.is_in_the_race() && lane.next == self.first);
        holding.map(|(number, _)| number).collect()
    }

    fn patience_with(&self, lane: usize, full_since: Instant) -> Instant {
        let lane = &self.lanes[lane];
        let needed = match lane.state {
            LaneState::Live => !self.is_settled(self.first),
            // Let go at once, it would join for ever, and the server keep WAL for it.
            LaneState::Joining(_) => self.holders(self.first) < self.ack.needed(self.lanes.len()),
            _ => false,
        };
        match needed {
            true => full_since.max(lane.moved) + NEEDED_GRACE,
            false => full_since + UNNEEDED_PATIENCE,
        }
    }

    fn leave(&mut self, lane: usize, state: LaneState, now: Instant) {
        let lane = &mut self.lanes[lane];
        let since = match (lane.state, state) {
            // Behind it was all the time.
            (LaneState::Joining(since), LaneState::Behind(_)) => LaneState::Behind(since),
            _ => state,
        };
        (lane.state, lane.busy) = (since, false);
        self.trim(now);
    }

    fn trim(&mut self, now: Instant) {
        let racing = self.lanes.iter().filter(|lane| lane.is_in_the_race());
        // Without a lane in the race nobody has it: it stays.
        let Some(passed) = racing.map(|lane| lane.next).min() else {
            return;
        };
        while self.first < passed {
            let Some(object) = self.window.pop_front() else {
                break;
            };
            self.first += 1;
            apply(&mut self.common, object.covers);
        }
        self.note_fullness(now);
    }

    fn note_fullness(&mut self, now: Instant) {
        self.full_since = match self.is_full() || (self.is_ending && !self.window.is_empty()) {
            true => self.full_since.or(Some(now)),
            false => None,
        };
    }

    fn holders(&self, number: u64) -> usize {
        let live = self
            .lanes
            .iter()
            .filter(|lane| lane.state == LaneState::Live);
        live.filter(|lane| lane.next > number).count()
    }

    fn wanted(&self) -> usize {
        let live = self
            .lanes
            .iter()
            .filter(|lane| lane.state == LaneState::Live);
        self.ack.needed(self.lanes.len()).min(live.count()).max(1)
    }

    fn next_number(&self) -> u64 {
        self.first + self.window.len() as u64
    }

    fn object_mut(&mut self, number: u64) -> Option<&mut Object> {
        let place = number.checked_sub(self.first)?;
        self.window.get_mut(usize::try_from(place).ok()?)
    }
}

impl Lane {
    fn is_in_the_race(&self) -> bool {
        matches!(self.state, LaneState::Live | LaneState::Joining(_))
    }
}

fn apply(progress: &mut Progress, covers: Covers) {
    match covers {
        Covers::Segment(segment) => progress.seal(segment),
        Covers::Tail(segment, to) => progress.store_tail(segment, to),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use repository::key::{ClusterId, ObjectKey};
    use wal_format::{SegmentName, TimelineId};

    use super::*;

    const SEGMENT: u64 = 1 << 20;

    fn size() -> SegmentSize {
        SegmentSize::new(SEGMENT as u32).unwrap()
    }

    fn sealed() -> Sealed {
        let name = SegmentName::new(TimelineId::FIRST, SegmentNumber::new(1), size());
        let cluster = ClusterId::new(7);
        repository::testing::sealed(ObjectKey::Segment { cluster, name }, None, b"plain")
    }

    struct Race {
        lanes: Lanes,
        now: Instant,
        segment: u64,
    }

    impl Race {
        fn new(ack: Ack, level: &[bool]) -> Self {
            let now = Instant::now();
            let lanes = Lanes::new(ack, 4, size(), Lsn::new(0), level, now);
            let segment = 0;
            Self {
                lanes,
                now,
                segment,
            }
        }

        /// A whole segment arrives and is sealed.
        fn receive(&mut self) {
            let covers = Covers::Segment(SegmentNumber::new(self.segment));
            self.segment += 1;
            self.lanes.receive(Lsn::new(self.segment * SEGMENT));
            let number = self.lanes.push(covers, self.now);
            self.lanes.sealed(number, Arc::new(sealed()));
        }

        /// What is started now, as (lane, number).
        fn start(&mut self) -> Vec<(usize, u64)> {
            let started = self.lanes.start();
            let started = started.into_iter();
            started.map(|(lane, number, _)| (lane, number)).collect()
        }

        fn stored(&mut self, lane: usize, number: u64) {
            self.lanes.stored(lane, number, self.now);
        }

        /// The lane stores whatever it can.
        fn keep_up(&mut self, lane: usize) {
            while let Some((_, number)) = self.start().into_iter().find(|(one, _)| *one == lane) {
                self.stored(lane, number);
            }
        }

        fn durable(&self) -> Vec<Option<u64>> {
            let durable = self.lanes.durable();
            let segments = durable.map(|lsn| lsn.map(|lsn| lsn.as_u64() / SEGMENT));
            segments.collect()
        }
    }

    #[test]
    fn each_lane_stores_in_order_one_at_a_time() {
        let mut race = Race::new(Ack::All, &[true, true]);
        race.receive();
        race.receive();
        assert_eq!(race.start(), [(0, 0), (1, 0)]);
        assert_eq!(race.start(), []);
        race.stored(0, 0);
        assert_eq!(race.start(), [(0, 1)]);
        race.stored(0, 1);
        assert_eq!(race.durable(), [Some(2), Some(0)]);
        assert!(!race.lanes.is_settled(0));
        race.stored(1, 0);
        assert!(race.lanes.is_settled(0) && !race.lanes.all_settled());
    }

    #[test]
    fn who_is_not_needed_is_let_go_at_once_and_who_is_needed_is_waited_for() {
        for (ack, patience) in [(Ack::Any, UNNEEDED_PATIENCE), (Ack::All, NEEDED_GRACE)] {
            let mut race = Race::new(ack, &[true, true]);
            (0..4).for_each(|_| race.receive());
            assert_eq!(race.start(), [(0, 0), (1, 0)]);
            assert!(race.lanes.is_full());
            race.now += patience * 2;
            assert!(race.lanes.let_go(race.now).is_empty(), "nobody else has it");
            for number in 0..4 {
                race.stored(0, number);
                race.start();
            }
            race.now -= patience * 2;
            let almost = race.now + patience - Duration::from_millis(1);
            assert!(race.lanes.let_go(almost).is_empty(), "{ack:?}");
            assert_eq!(race.lanes.patience_ends(), Some(race.now + patience));
            race.now += patience;
            assert_eq!(race.lanes.let_go(race.now), [1], "{ack:?}");
            assert!(!race.lanes.is_full() && race.lanes.is_empty());
            assert_eq!(race.durable(), [Some(4), Some(0)], "it stands still");
            race.stored(1, 0);
            assert_eq!(race.durable(), [Some(4), Some(0)], "too late to count");
            race.receive();
            race.keep_up(0);
            assert!(race.lanes.is_settled(4), "the others go on");
        }
    }

    #[test]
    fn who_comes_back_misses_nothing() {
        let mut race = Race::new(Ack::Any, &[true, false]);
        assert_eq!(race.durable(), [Some(0), None]);
        race.receive();
        race.keep_up(0);
        race.lanes.join(1);
        // Segment 0 has left the window, so a listing shows it; 1 and 2 wait for the lane.
        race.receive();
        race.receive();
        race.keep_up(0);
        assert_eq!(race.durable(), [Some(3), None], "not before all is there");
        race.lanes.joined(1, race.now);
        assert_eq!(race.durable(), [Some(3), Some(1)]);
        assert_eq!(race.start(), [(1, 1)]);
        race.stored(1, 1);
        race.keep_up(1);
        assert_eq!(race.durable(), [Some(3), Some(3)]);
        assert!(race.lanes.is_empty());
    }

    #[test]
    fn a_joining_lane_holds_up_the_others_only_as_long_as_it_is_needed() {
        for (ack, patience) in [(Ack::All, NEEDED_GRACE), (Ack::Any, UNNEEDED_PATIENCE)] {
            let mut race = Race::new(ack, &[true, false]);
            race.lanes.join(1);
            (0..4).for_each(|_| race.receive());
            race.keep_up(0);
            race.now += patience / 2;
            assert!(race.lanes.let_go(race.now).is_empty(), "{ack:?}");
            race.now += patience;
            assert_eq!(race.lanes.let_go(race.now), [1], "{ack:?}");
            race.lanes.joined(1, race.now);
            assert_eq!(race.durable(), [Some(4), None], "it has to begin again");
        }
    }

    #[test]
    fn a_refused_lane_is_out_and_its_watermark_stands() {
        let mut race = Race::new(Ack::Any, &[true, true]);
        race.receive();
        race.keep_up(0);
        race.start();
        race.lanes.refuse(1, race.now);
        race.lanes.join(1);
        race.lanes.joined(1, race.now);
        assert_eq!(race.lanes.state(1), LaneState::Refused);
        assert_eq!(race.durable(), [Some(1), Some(0)]);
        assert!(race.lanes.is_empty());
    }

    proptest! {
        /// Against sets of what each repository holds: a peer's objects are copied when it joins, as the filler does.
        #[test]
        fn a_watermark_is_never_ahead_of_an_unbroken_chain(
            events in proptest::collection::vec((0_u8..6, 0_usize..3), 0..120),
            quorum in 1_usize..=3,
        ) {
            let mut race = Race::new(Ack::Quorum(quorum), &[true, true, true]);
            let mut held = [const { std::collections::BTreeSet::<u64>::new() }; 3];
            // What is in flight: number, by lane.
            let mut flying: Vec<(usize, u64)> = Vec::new();
            for (kind, lane) in events {
                match kind {
                    0 if !race.lanes.is_full() => race.receive(),
                    0 => {}
                    1 | 2 => {
                        flying.extend(race.start());
                        if let Some(place) = flying.iter().position(|(one, _)| *one == lane) {
                            let (lane, number) = flying.remove(place);
                            held[lane].insert(number);
                            race.stored(lane, number);
                        }
                    }
                    3 => {
                        race.now += NEEDED_GRACE * 2;
                        for gone in race.lanes.let_go(race.now) {
                            flying.retain(|(lane, _)| *lane != gone);
                        }
                    }
                    4 => race.lanes.join(lane),
                    _ => {
                        if let LaneState::Joining(_) = race.lanes.state(lane) {
                            let live = (0..3).find(|one| race.lanes.state(*one) == LaneState::Live).unwrap();
                            let copied = held[live].clone();
                            held[lane].extend(copied);
                            race.lanes.joined(lane, race.now);
                        }
                    }
                }
                for (lane, durable) in race.durable().into_iter().enumerate() {
                    let unbroken = (0..).find(|number| !held[lane].contains(number)).unwrap();
                    prop_assert!(durable.unwrap_or(0) <= unbroken, "lane {lane}: {durable:?} of {unbroken}");
                    let live = race.lanes.state(lane) == LaneState::Live;
                    prop_assert!(!live || held[lane].len() as u64 == unbroken, "a hole in lane {}", lane);
                }
                prop_assert!((0..3).any(|lane| race.lanes.state(lane) == LaneState::Live));
                prop_assert!(race.lanes.window.len() <= 4);
            }
        }
    }
}
