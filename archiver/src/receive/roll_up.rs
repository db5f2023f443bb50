//! Writes roll-ups: once a log of WAL is stored whole, the descriptors of its segments go into one object, for those who read.
//!
//! Owns when that is done. A task of its own, behind a bounded queue that drops what does not fit: nothing here ever delays WAL, and a
//! failure is a warning. What is missed is made up for by a later session; until then readers ask each segment.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use repository::Repository;
use repository::catalog::Catalog;
use repository::descriptor::WalDescriptor;
use repository::index::{RollUp, RolledUp};
use repository::key::{ClusterId, ObjectKey, log_prefix};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wal_format::{SegmentName, SegmentSize, TimelineId};

use crate::upload::error_text;

/// Messages that wait at most.
const QUEUE: usize = 1024;
/// Logs whose descriptors are kept: the one that is being received and those that end meanwhile.
const MAX_LOGS_KEPT: usize = 4;
/// Descriptors asked for at the same time, where they are not known: what is received goes first.
const IN_FLIGHT: usize = 4;
/// Segments of the next log that are stored before one whose last segments are still missing here is written: uploads overtake each other.
const OVERTAKING: u32 = 8;

/// One log of one timeline.
type Log = (TimelineId, u32);

/// A segment that is durable.
#[derive(Clone, Debug)]
pub(super) struct StoredSegment {
    pub(super) name: SegmentName,
    pub(super) stored_size: u64,
    pub(super) wal: WalDescriptor,
}

enum Message {
    Stored(Box<StoredSegment>),
    /// Logs that have ended and have no roll-up.
    Missing(Vec<Log>),
}

/// Where segments are announced. Clones announce to the same task.
#[derive(Clone)]
pub(super) struct RollUps {
    sender: mpsc::Sender<Message>,
}

impl RollUps {
    /// Starts the task; it ends with the last clone, or when it is aborted.
    pub(super) fn start(
        repository: Repository,
        cluster: ClusterId,
        size: SegmentSize,
    ) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let keeper = Keeper {
            repository,
            cluster,
            size,
            known: Known::default(),
        };
        (Self { sender }, tokio::spawn(keeper.run(receiver)))
    }

    /// Says that a segment is durable.
    pub(super) fn stored(&self, segment: StoredSegment) {
        self.send(Message::Stored(Box::new(segment)));
    }

    /// Has the logs rolled up that ended without it: by an earlier version, by `archive-push`, or while nothing ran.
    pub(super) fn catch_up(&self, catalog: &Catalog) {
        self.send(Message::Missing(not_rolled_up(catalog)));
    }

    fn send(&self, message: Message) {
        // Full or closed: a cache is not worth a wait.
        if self.sender.try_send(message).is_err() {
            tracing::debug!("a roll-up will be made later");
        }
    }
}

/// Logs that are not written to any more and have no roll-up, newest first: all but the last of each timeline, and of timelines that
/// the server has left that one too.
fn not_rolled_up(catalog: &Catalog) -> Vec<Log> {
    let with_wal = |timeline: &&TimelineId| {
        let objects = catalog.timelines.get(timeline);
        objects.is_some_and(|objects| !objects.segments.is_empty())
    };
    let newest = catalog.timelines.keys().rev().find(with_wal);
    let mut ended: BTreeSet<Log> = BTreeSet::new();
    for (timeline, objects) in &catalog.timelines {
        let last = objects.segments.keys().next_back().map(|name| name.log);
        let logs = objects.segments.keys().map(|name| name.log);
        let logs = logs.filter(|log| Some(*log) != last || Some(timeline) != newest);
        ended.extend(logs.map(|log| (*timeline, log)));
    }
    ended.retain(|log| !catalog.roll_ups.contains_key(log));
    ended.into_iter().rev().collect()
}

/// What was announced, and which logs are to be written.
#[derive(Default)]
struct Known {
    logs: BTreeMap<Log, BTreeMap<SegmentName, RolledUp>>,
    /// Logs whose last segment is stored.
    ending: BTreeSet<Log>,
}

impl Known {
    /// Takes a segment; gives the logs that are complete now.
    fn add(&mut self, segment: StoredSegment, size: SegmentSize) -> Vec<Log> {
        let name = segment.name;
        let log = (name.timeline, name.log);
        let rolled = RolledUp {
            stored_size: segment.stored_size,
            wal: segment.wal,
        };
        self.logs.entry(log).or_default().insert(name, rolled);
        while self.logs.len() > MAX_LOGS_KEPT {
            self.logs.pop_first();
        }
        if u64::from(name.segment) + 1 == size.segments_per_log() {
            self.ending.insert(log);
        }
        let is_whole = |ending: &Log| {
            let known = self.logs.get(ending).map_or(0, BTreeMap::len);
            known as u64 == size.segments_per_log() || (*ending < log && name.segment >= OVERTAKING)
        };
        let whole: Vec<Log> = self
            .ending
            .iter()
            .filter(|log| is_whole(log))
            .copied()
            .collect();
        self.ending.retain(|log| !whole.contains(log));
        whole
    }
}

struct Keeper {
    repository: Repository,
    cluster: ClusterId,
    size: SegmentSize,
    known: Known,
}

impl Keeper {
    async fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        while let Some(message) = receiver.recv().await {
            let logs = match message {
                Message::Stored(segment) => self.known.add(*segment, self.size),
                Message::Missing(logs) => logs,
            };
            for log in logs {
                let known = self.known.logs.remove(&log).unwrap_or_default();
                match self.write(log, known).await {
                    Ok(0) => {}
                    Ok(segments) => {
                        tracing::debug!(
                            timeline = log.0.get(),
                            log = log.1,
                            segments,
                            "roll-up stored"
                        );
                    }
                    Err(error) => tracing::warn!(
                        timeline = log.0.get(),
                        log = format!("{:08X}", log.1),
                        error = error_text(&error),
                        "the roll-up of a log of WAL was not stored; listings and windows take longer without it"
                    ),
                }
            }
        }
    }

    async fn rolled_up(
        &self,
        name: SegmentName,
        stored_size: u64,
        known: Option<RolledUp>,
    ) -> repository::Result<Option<(SegmentName, RolledUp)>> {
        if let Some(known) = known {
            return Ok(Some((name, known)));
        }
        let cluster = self.cluster;
        let key = ObjectKey::Segment { cluster, name };
        let wal = self.repository.fetch_descriptor(&key).await?.wal;
        Ok(wal.map(|wal| (name, RolledUp { stored_size, wal })))
    }

    /// Rolls up what is stored of a log; what was not announced is asked for. Gives how many segments it holds.
    async fn write(
        &self,
        (timeline, log): Log,
        known: BTreeMap<SegmentName, RolledUp>,
    ) -> repository::Result<usize> {
        let first = SegmentName {
            timeline,
            log,
            segment: 0,
        };
        let prefix = log_prefix(self.cluster, first);
        let mut listed = self.repository.list_below(self.cluster, &prefix).await?;
        let listed = listed.timelines.remove(&timeline).unwrap_or_default();
        let fetches = listed.segments.into_iter().map(|(name, stored_size)| {
            let known = known
                .get(&name)
                .filter(|one| one.stored_size == stored_size);
            self.rolled_up(name, stored_size, known.cloned())
        });
        let mut fetched = futures_util::stream::iter(fetches).buffered(IN_FLIGHT);
        let mut segments = BTreeMap::new();
        while let Some(rolled) = fetched.next().await {
            segments.extend(rolled?);
        }
        drop(fetched);
        if segments.is_empty() {
            return Ok(0);
        }
        let roll_up = RollUp {
            cluster: self.cluster,
            timeline,
            log,
            segments,
        };
        self.repository.put_roll_up(&roll_up).await?;
        Ok(roll_up.segments.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::store::Store;
    use wal_format::SegmentNumber;

    /// 64 segments a log.
    fn size() -> SegmentSize {
        SegmentSize::new(64 << 20).unwrap()
    }

    fn name(number: u64) -> SegmentName {
        SegmentName::new(TimelineId::FIRST, SegmentNumber::new(number), size())
    }

    fn wal(number: u64) -> WalDescriptor {
        let number = SegmentNumber::new(number);
        WalDescriptor {
            start_lsn: size().start(number),
            end_lsn: size().end(number),
            ..WalDescriptor::default()
        }
    }

    fn segment(number: u64) -> StoredSegment {
        StoredSegment {
            name: name(number),
            stored_size: 7,
            wal: wal(number),
        }
    }

    #[test]
    fn a_log_is_written_once_when_it_is_whole_in_whatever_order() {
        let mut known = Known::default();
        for number in (0..64).filter(|number| *number != 61) {
            assert_eq!(known.add(segment(number), size()), []);
        }
        assert_eq!(known.add(segment(64), size()), []);
        let first: Log = (TimelineId::FIRST, 0);
        assert_eq!(known.add(segment(61), size()), [first]);
        assert_eq!(known.add(segment(80), size()), []);
    }

    #[test]
    fn a_log_that_began_before_us_is_written_once_the_next_is_under_way() {
        let mut known = Known::default();
        for number in 50..64 + u64::from(OVERTAKING) {
            assert_eq!(known.add(segment(number), size()), []);
        }
        let first: Log = (TimelineId::FIRST, 0);
        let next = 64 + u64::from(OVERTAKING);
        assert_eq!(known.add(segment(next), size()), [first]);
    }

    #[test]
    fn only_logs_that_ended_and_have_none_are_made_up_for() {
        let path = |line: u32, log: u32| {
            format!("7/wal/{line:08X}/{log:08X}/{line:08X}{log:08X}00000001.wal")
        };
        let mut paths = vec![path(1, 0), path(1, 1), path(1, 2), path(2, 2), path(2, 3)];
        paths.push("7/index/00000001/00000001.DEADBEEF".into());
        paths.push("7/wal/00000003.history".into());
        let catalog =
            Catalog::from_listing("7".parse().unwrap(), paths.iter().map(|path| (path, 1)));
        let (one, two) = (TimelineId::FIRST, TimelineId::new(2).unwrap());
        assert_eq!(not_rolled_up(&catalog), [(two, 2), (one, 2), (one, 0)]);
    }

    #[tokio::test]
    async fn what_was_not_announced_or_is_stored_otherwise_is_asked_for() {
        let repository = Repository::new("memory", Store::in_memory());
        let cluster = ClusterId::new(7);
        let mut sizes = BTreeMap::new();
        for number in 0..3 {
            let key = ObjectKey::Segment {
                cluster,
                name: name(number),
            };
            let sealed = repository::testing::sealed(key, Some(wal(number)), b"plain");
            repository.put(&sealed).await.unwrap();
            sizes.insert(name(number), sealed.stored_size());
        }
        let (roll_ups, task) = RollUps::start(repository.clone(), cluster, size());
        let mut right = segment(0);
        right.stored_size = sizes[&name(0)];
        // To be told apart from what the object says.
        right.wal.transactions = Some(5);
        roll_ups.stored(right);
        let mut wrong = segment(1);
        wrong.wal.transactions = Some(6);
        roll_ups.stored(wrong);
        roll_ups.send(Message::Missing(vec![(TimelineId::FIRST, 0)]));
        drop(roll_ups);
        task.await.unwrap();
        let catalog = repository.list(cluster).await.unwrap();
        let ((timeline, log), tags) = catalog.roll_ups.first_key_value().unwrap();
        let key = ObjectKey::RollUp {
            cluster,
            timeline: *timeline,
            log: *log,
            tag: tags.first().unwrap().0,
        };
        let roll_up = repository.fetch_roll_up(&key).await.unwrap();
        let found: Vec<_> = roll_up
            .segments
            .iter()
            .map(|(name, rolled)| (*name, rolled.stored_size, rolled.wal.transactions))
            .collect();
        let expected = [(0, Some(5)), (1, None), (2, None)]
            .map(|(number, transactions)| (name(number), sizes[&name(number)], transactions));
        assert_eq!(found, expected);
    }
}
