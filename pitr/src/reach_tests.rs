//! The answer about windows over made catalogues: holes, timelines, invalid WAL, several backups, tail chunks.

use super::*;
use crate::stretches::{KnownHistory, WalFacts};
use crate::target::{RecoveryGoal, RecoveryTarget};
use crate::window::{Moment, Window};
use repository::catalog::Catalog;
use wal_format::{SegmentName, SegmentSize, TimelineHistory};

const SIZE: SegmentSize = SegmentSize::MIN;
const MIB: u64 = 1 << 20;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn lsn(mib: u64) -> Lsn {
    Lsn::new(mib * MIB)
}

fn name(line: u32, number: u64) -> SegmentName {
    SegmentName::new(timeline(line), SegmentNumber::new(number), SIZE)
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_unix_micros(second * 1_000_000)
}

/// Segments whose records link, with one transaction each, at the second that is their number.
#[derive(Default)]
struct World {
    paths: Vec<String>,
    histories: BTreeMap<TimelineId, KnownHistory>,
    backups: Vec<BackupFacts>,
    wal: WalFacts,
}

impl World {
    fn sealed(mut self, line: u32, numbers: impl IntoIterator<Item = u64>) -> Self {
        for number in numbers {
            let name = name(line, number);
            let log = &name.to_string()[8..16];
            self.paths
                .push(format!("7/wal/{line:08X}/{log}/{name}.wal"));
            let lineage = self.lineage(line);
            self.wal.sealed.insert(
                name,
                WalDescriptor {
                    start_lsn: lsn(number),
                    end_lsn: lsn(number + 1),
                    lineage,
                    first_record: Some(lsn(number).saturating_add(40)),
                    first_record_prev: Some(lsn(number - 1).saturating_add(80)),
                    last_record: Some(lsn(number).saturating_add(80)),
                    transactions: Some(1),
                    time_max: repository::wal::utc(second(number as i64)),
                    ..WalDescriptor::default()
                },
            );
        }
        self
    }

    fn lineage(&self, line: u32) -> String {
        let known = self.histories.get(&timeline(line));
        known.map_or_else(String::new, |known| known.lineage.clone())
    }

    fn tail(mut self, line: u32, number: u64, chunks: &[(u32, u32)]) -> Self {
        for (from, to) in chunks {
            let name = name(line, number);
            self.paths.push(format!(
                "7/tail/{line:08X}/{name}.{from:08X}-{to:08X}.00000001"
            ));
            let chunk = repository::catalog::TailChunk {
                from: *from,
                to: *to,
                writer: 1,
            };
            self.wal.tails.insert(
                (name, chunk),
                WalDescriptor {
                    start_lsn: lsn(number).saturating_add(u64::from(*from)),
                    end_lsn: lsn(number).saturating_add(u64::from(*to)),
                    transactions: Some(0),
                    ..WalDescriptor::default()
                },
            );
        }
        self
    }

    fn history(mut self, line: u32, parent: u32, at: Lsn) -> Self {
        let parents = self.histories.get(&timeline(parent));
        let before = parents.map_or_else(TimelineHistory::first, |known| known.history.clone());
        let history = before.child(timeline(line), at, "test").unwrap();
        self.paths.push(format!("7/wal/{line:08X}.history"));
        let lineage = format!("lineage {line}");
        self.histories
            .insert(timeline(line), KnownHistory { history, lineage });
        self
    }

    fn backup(mut self, line: u32, start: u64, stop: u64) -> Self {
        let label = format!("20260101T{:06}Z-full-0000", self.backups.len());
        self.backups.push(BackupFacts {
            label: label.parse().unwrap(),
            timeline: timeline(line),
            lineage: self.lineage(line),
            start_lsn: lsn(start).saturating_add(40),
            stop_lsn: lsn(stop).saturating_add(60),
            stopped: second(stop as i64),
        });
        self
    }

    fn change(mut self, line: u32, number: u64, change: impl FnOnce(&mut WalDescriptor)) -> Self {
        change(self.wal.sealed.get_mut(&name(line, number)).unwrap());
        self
    }

    fn windows(&self) -> Windows {
        let catalog = Catalog::from_listing(
            "7".parse().unwrap(),
            self.paths.iter().map(|path| (path, 1)),
        );
        assert_eq!(catalog.unknown, 0, "{:?}", self.paths);
        find_windows(Evidence {
            catalog: &catalog,
            segment_size: SIZE,
            histories: &self.histories,
            backups: &self.backups,
            wal: &self.wal,
        })
    }
}

/// Each reach as `timeline: end LSN in MiB, newest second, end`.
fn reaches(window: &BackupWindow) -> Vec<String> {
    let one = |reach: &Reach| {
        let newest = reach
            .newest_transaction
            .map(|time| time.unix_micros() / 1_000_000);
        format!(
            "{}: {}+{} {newest:?} {}",
            reach.timeline,
            reach.end.as_u64() / MIB,
            reach.end.as_u64() % MIB,
            reach.ends
        )
    };
    window.reaches.iter().map(one).collect()
}

const STORED: &str = "the end of what is stored";

#[test]
fn a_backup_opens_what_follows_it_up_to_the_last_tail_chunk() {
    let world = World::default()
        .sealed(1, 1..6)
        .tail(1, 6, &[(0, 100), (100, 300), (50, 200)])
        .backup(1, 2, 3);
    let windows = world.windows();
    let window = &windows.backups[0];
    assert_eq!(
        reaches(window),
        [format!("1: 6+300 Some(5) {STORED}")],
        "{window:?}"
    );
    assert!(window.reaches[0].proven && windows.holes.is_empty() && !windows.has_gaps());
    assert_eq!(windows.promise.unwrap().moment.lsn, window.backup.stop_lsn);
    // A chunk behind a hole in the tail is not reached.
    let torn = World::default()
        .sealed(1, 1..6)
        .tail(1, 6, &[(0, 100), (150, 300)])
        .backup(1, 2, 3);
    assert_eq!(
        reaches(&torn.windows().backups[0]),
        [format!("1: 6+100 None {STORED}")],
        "what the chunk at the end says of times is no word about the WAL before it"
    );
}

#[test]
fn a_hole_ends_one_backup_and_not_the_next() {
    let world = World::default()
        .sealed(1, (1..4).chain(7..10))
        .backup(1, 1, 2)
        .backup(1, 8, 8)
        .backup(1, 3, 7);
    let windows = world.windows();
    let missing = format!("3 segments from {} on are missing", name(1, 4));
    assert_eq!(
        reaches(&windows.backups[0]),
        [format!("1: 4+0 Some(3) {missing}")]
    );
    assert_eq!(
        windows.backups[1].unusable,
        Some(format!(
            "it is consistent at {}, and {missing}",
            lsn(7).saturating_add(60)
        ))
    );
    assert_eq!(
        reaches(&windows.backups[2]),
        [format!("1: 10+0 Some(9) {STORED}")]
    );
    let [hole] = windows.holes.as_slice() else {
        panic!("{:?}", windows.holes)
    };
    assert_eq!(
        (hole.from, hole.to, hole.first_missing, hole.segments),
        (lsn(4), lsn(7), name(1, 4), 3)
    );
    assert!(windows.has_gaps() && !hole.recorded);
}

#[test]
fn recorded_gaps_count_once_and_close_when_filled() {
    const GAP: &str = "7/gaps/00000001-0000000000200000-0000000000300000.json";
    let gaps = |numbers: &[u64], gap: bool| {
        let mut world = World::default().sealed(1, numbers.iter().copied());
        world.paths.extend(gap.then(|| GAP.to_owned()));
        let holes = world.windows().holes;
        holes.iter().map(|hole| hole.recorded).collect::<Vec<_>>()
    };
    assert_eq!(gaps(&[1, 2, 3], false), [false; 0]);
    assert_eq!(gaps(&[1, 3], false), [false]);
    assert_eq!(gaps(&[1, 3], true), [true]);
    assert_eq!(gaps(&[1], true), [true]);
    assert_eq!(gaps(&[1, 2, 3], true), [false; 0]);
}

#[test]
fn only_a_part_of_a_segment_ends_the_window_and_is_no_gap_yet() {
    let world = World::default()
        .sealed(1, 1..4)
        .tail(1, 4, &[(0, 100)])
        .tail(1, 5, &[(0, 100)])
        .backup(1, 1, 2);
    let windows = world.windows();
    assert_eq!(
        reaches(&windows.backups[0]),
        [format!("1: 4+100 Some(3) {} is missing", name(1, 4))]
    );
    assert_eq!(windows.holes, [], "the segment may be on its way");
    let overtaken = world.sealed(1, [6]).windows().holes;
    let [hole, _] = overtaken.as_slice() else {
        panic!("{overtaken:?}")
    };
    assert_eq!(
        (hole.from, hole.to, hole.first_missing, hole.segments),
        (lsn(4).saturating_add(100), lsn(5), name(1, 4), 1)
    );
}

#[test]
fn timelines_are_followed_where_they_branch_off() {
    // 1 to 5.5, then 2 to the end; 3 branches off 2 at 8.5; 4 off 1 at 3.5, where the first backup is not consistent yet.
    let half = |mib: u64| lsn(mib).saturating_add(MIB / 2);
    let world = World::default()
        .history(2, 1, half(5))
        .history(3, 2, half(8))
        .history(4, 1, half(3))
        .sealed(1, 1..7)
        .sealed(2, 5..10)
        .sealed(3, 8..12)
        .sealed(4, 3..5)
        .backup(1, 1, 2)
        .backup(1, 4, 4)
        .backup(2, 6, 7);
    let windows = world.windows();
    let line = |number: u32, end: u64| {
        let newest = end - 1;
        format!("{number}: {end}+0 Some({newest}) {STORED}")
    };
    assert_eq!(
        reaches(&windows.backups[0]),
        [line(4, 5), line(3, 12), line(2, 10), line(1, 7)]
    );
    assert_eq!(
        reaches(&windows.backups[1]),
        [line(3, 12), line(2, 10), line(1, 7)]
    );
    assert_eq!(reaches(&windows.backups[2]), [line(3, 12), line(2, 10)]);
    let runs = &windows.backups[0].reaches[1].legs;
    let runs: Vec<_> = runs
        .iter()
        .map(|leg| (leg.timeline.get(), leg.first.as_u64(), leg.last.as_u64()))
        .collect();
    assert_eq!(runs, [(1, 1, 4), (2, 5, 7), (3, 8, 11)]);
    let parents: Vec<_> = windows
        .timelines
        .iter()
        .map(|node| (node.timeline.get(), node.parent))
        .collect();
    assert_eq!(
        parents,
        [
            (1, None),
            (2, Some((timeline(1), half(5)))),
            (3, Some((timeline(2), half(8)))),
            (4, Some((timeline(1), half(3))))
        ]
    );
    assert!(!windows.has_gaps());
    let (newest, _) = windows.newest().unwrap();
    assert_eq!(newest.backup.label, world.backups[0].label);
}

#[test]
fn wal_missing_before_or_behind_a_switch_is_a_hole() {
    let before = World::default()
        .history(2, 1, lsn(5).saturating_add(9))
        .sealed(1, 1..4)
        .sealed(2, 5..8)
        .backup(1, 1, 2);
    let windows = before.windows();
    assert_eq!(
        reaches(&windows.backups[0]),
        [format!("1: 4+0 Some(3) {} is missing", name(1, 4))]
    );
    assert_eq!(windows.holes.len(), 1);
    let behind = World::default()
        .history(2, 1, lsn(5).saturating_add(9))
        .sealed(1, 1..6)
        .sealed(2, 7..9)
        .backup(1, 1, 2);
    let windows = behind.windows();
    assert_eq!(
        reaches(&windows.backups[0]),
        [
            format!(
                "2: 5+0 Some(4) 2 segments from {} on are missing",
                name(2, 5)
            ),
            format!("1: 6+0 Some(5) {STORED}")
        ]
    );
    assert_eq!(windows.holes[0].first_missing, name(2, 5));
}

#[test]
fn a_timeline_of_which_only_the_history_is_stored_ends_where_it_branches_off() {
    let world = World::default()
        .history(2, 1, lsn(5).saturating_add(9))
        .sealed(1, 1..7)
        .backup(1, 1, 2);
    let windows = world.windows();
    assert_eq!(
        reaches(&windows.backups[0]),
        [
            format!("2: 5+9 None {STORED}"),
            format!("1: 7+0 Some(6) {STORED}")
        ]
    );
}

#[test]
fn missing_and_foreign_histories_open_nothing() {
    let mut world = World::default()
        .history(2, 1, lsn(5).saturating_add(9))
        .sealed(1, 1..6)
        .sealed(2, 5..8)
        .backup(2, 6, 6)
        .backup(1, 1, 2);
    world.backups[0].lineage = "another".into();
    let foreign = world.windows();
    let unusable = foreign.backups[1].unusable.as_deref().unwrap();
    assert!(unusable.contains("another timeline 2"), "{unusable}");
    world.paths.retain(|path| !path.ends_with(".history"));
    world.histories.clear();
    let windows = world.windows();
    assert_eq!(
        windows.backups[1].unusable.as_deref(),
        Some("00000002.history is missing")
    );
    assert_eq!(
        reaches(&windows.backups[0]),
        [format!("1: 6+0 Some(5) {STORED}")]
    );
    assert!(windows.timelines[1].lacks_history && windows.has_gaps());
}

#[test]
fn wal_that_is_not_valid_ends_a_window_and_a_later_backup_begins_another() {
    let at = lsn(4).saturating_add(500);
    let world = World::default()
        .sealed(1, 1..9)
        .change(1, 4, |wal| wal.invalid_at = Some(at))
        .backup(1, 1, 2)
        .backup(1, 5, 6)
        .backup(1, 3, 5);
    let windows = world.windows();
    assert_eq!(
        reaches(&windows.backups[0]),
        [format!("1: 4+500 Some(4) WAL is not valid from {at} on")]
    );
    let crossing = windows.backups[1].unusable.as_deref().unwrap();
    assert!(crossing.contains("not valid"), "{crossing}");
    assert_eq!(
        reaches(&windows.backups[2]),
        [format!("1: 9+0 Some(8) {STORED}")]
    );
}

#[test]
fn segments_of_another_history_break_the_chain() {
    let broken = |change: fn(&mut WalDescriptor)| {
        let world = World::default()
            .sealed(1, 1..9)
            .change(1, 4, change)
            .backup(1, 1, 2)
            .backup(1, 5, 6);
        let windows = world.windows();
        assert_eq!(windows.backups[0].reaches[0].end, lsn(4));
        assert_eq!(windows.backups[1].reaches[0].end, lsn(9));
        windows.backups[0].reaches[0].ends.to_string()
    };
    assert!(
        broken(|wal| wal.first_record_prev = Some(Lsn::new(7))).contains("does not follow"),
        "a link"
    );
    assert!(
        broken(|wal| wal.lineage = "x".into()).contains("another timeline"),
        "a lineage"
    );
    assert!(
        broken(|wal| wal.end_lsn = lsn(6)).contains("says that it holds"),
        "a range"
    );
    // Across a switch: the child's first record does not continue the parent's last.
    let world = World::default()
        .history(2, 1, lsn(5).saturating_add(9))
        .sealed(1, 1..6)
        .sealed(2, 5..8)
        .change(2, 5, |wal| wal.first_record_prev = Some(Lsn::new(7)))
        .backup(1, 1, 2);
    let windows = world.windows();
    let ends = reaches(&windows.backups[0]);
    assert!(
        ends[0].starts_with("2: 5+0") && ends[0].contains("does not follow"),
        "{ends:?}"
    );
    assert!(ends[1].starts_with("1: 6+0"), "{ends:?}");
}

#[test]
fn names_alone_are_believed_and_said_not_to_be_proven() {
    let mut world = World::default().sealed(1, 1..6).backup(1, 1, 2);
    world.wal.sealed.remove(&name(1, 3));
    let reach = &world.windows().backups[0].reaches[0];
    assert_eq!((reach.end, reach.proven), (lsn(6), false));
    assert_eq!(reach.newest_transaction, Some(second(5)));
    let mut damaged = World::default().sealed(1, 1..6).backup(1, 1, 2);
    damaged.wal.sealed.remove(&name(1, 3));
    damaged.wal.damaged.insert(name(1, 3), "torn".into());
    let windows = damaged.windows();
    assert_eq!(
        reaches(&windows.backups[0]),
        [format!("1: 3+0 Some(2) {}: torn", name(1, 3))]
    );
}

#[test]
fn the_newest_transaction_is_never_one_before_the_backup() {
    let mut world = World::default().sealed(1, 1..9);
    for number in 4..9 {
        world = world.change(1, number, |wal| {
            (wal.transactions, wal.time_max) = (Some(0), None);
        });
    }
    let windows = world.backup(1, 1, 2).backup(1, 5, 6).windows();
    let newest = |index: usize| windows.backups[index].reaches[0].newest_transaction;
    assert_eq!((newest(0), newest(1)), (Some(second(3)), None));
}

#[test]
fn a_refusal_names_the_moments_around_the_target() {
    let windows = World::default()
        .sealed(1, (1..4).chain(7..10))
        .backup(1, 1, 2)
        .backup(1, 8, 8)
        .windows();
    let nearest = |target: RecoveryTarget| {
        let goal = RecoveryGoal {
            target,
            inclusive: true,
        };
        let nearest = windows.nearest(&goal, timeline(1));
        let lsn = |moment: Option<Moment>| moment.map(|moment| moment.lsn.as_u64() / MIB);
        (lsn(nearest.before), lsn(nearest.after))
    };
    let time = |at: i64| nearest(RecoveryTarget::Time(second(at)));
    assert_eq!(time(1), (None, Some(2)));
    assert_eq!(time(5), (Some(4), Some(8)));
    assert_eq!(time(50), (Some(10), None));
    assert_eq!(
        nearest(RecoveryTarget::Lsn(lsn(5))),
        (Some(4), Some(8)),
        "in the hole"
    );
    assert_eq!(nearest(RecoveryTarget::Xid(7)), (None, None));
    let window = Window {
        nearest: windows.nearest(
            &RecoveryGoal {
                target: RecoveryTarget::Time(second(5)),
                inclusive: true,
            },
            timeline(1),
        ),
        ..windows.on_path(timeline(1))
    };
    assert_eq!(
        window.to_string(),
        "reachable: 1970-01-01T00:00:02Z (LSN 0/20003C, timeline 1) to 1970-01-01T00:00:09Z (LSN 0/A00000, timeline 1); \
         nearest before the target: 1970-01-01T00:00:03Z (LSN 0/400000, timeline 1); \
         nearest after the target: 1970-01-01T00:00:08Z (LSN 0/80003C, timeline 1)"
    );
}
