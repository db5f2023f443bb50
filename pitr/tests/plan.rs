//! Plans over made WAL: every target against a scan of everything, and every kind of hole, broken chain and foreign timeline.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use pitr::assemble::{Chunk, assemble_tail, cut_at};
use pitr::error::{Error, Result};
use pitr::plan::{
    BackupFacts, Piece, PieceSource, RecoveryPlan, WalPath, choose_timeline, plan_pieces,
};
use pitr::scope::Ruling;
use pitr::search::{PieceBytes, PlanRequest, WalSource, plan_recovery};
use pitr::stop::{StopFinder, Verdict};
use pitr::target::{RecoveryGoal, RecoveryTarget};
use repository::ErrorClass;
use repository::catalog::{Catalog, TailChunk};
use repository::descriptor::WalDescriptor;
use repository::wal::{describe, lineage};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use wal_format::testing::WalBuilder;
use wal_format::{
    DecoderConfig, Lsn, Major, Record, SegmentName, SegmentSize, Step, TimelineHistory, TimelineId,
    Timestamp, WalDecoder, summarise_segment,
};

const SIZE: SegmentSize = SegmentSize::MIN;
const MIB: u64 = 1 << 20;
const CONFIG: DecoderConfig = DecoderConfig {
    segment_size: SIZE,
    system_identifier: None,
    major: None,
};

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

/// A store of WAL: bytes by name, and names as a catalogue.
struct World {
    wal: BTreeMap<SegmentName, Vec<u8>>,
    tails: BTreeMap<SegmentName, Vec<(u32, Vec<u8>)>>,
    descriptors: BTreeMap<SegmentName, WalDescriptor>,
    catalog: Catalog,
    path: WalPath,
    backups: Vec<BackupFacts>,
    fetched: Mutex<BTreeSet<SegmentName>>,
}

impl WalSource for World {
    async fn descriptor(&self, piece: &Piece) -> Result<WalDescriptor> {
        Ok(self.descriptors[&piece.name].clone())
    }

    async fn bytes(&self, piece: &Piece) -> Result<PieceBytes> {
        self.fetched.lock().unwrap().insert(piece.name);
        if piece.source == PieceSource::Sealed {
            let bytes = self.wal[&piece.name].clone();
            return Ok(PieceBytes {
                length: SIZE.bytes(),
                bytes,
                may_end_torn: false,
            });
        }
        let chunks: Vec<Chunk<'_>> = self.tails[&piece.name]
            .iter()
            .map(|(from, bytes)| Chunk {
                key: "chunk",
                from: *from,
                bytes,
            })
            .collect();
        let found = assemble_tail(&chunks, SIZE)?;
        Ok(PieceBytes {
            bytes: found.bytes,
            length: found.length,
            may_end_torn: false,
        })
    }
}

impl World {
    /// Timeline 1 from segment 1 on: `bytes` in whole segments, what is left over as a tail chunk.
    fn new(bytes: &[u8]) -> Self {
        let mut world = World {
            wal: BTreeMap::new(),
            tails: BTreeMap::new(),
            descriptors: BTreeMap::new(),
            catalog: Catalog::default(),
            path: WalPath {
                history: TimelineHistory::first(),
                lineages: [(TimelineId::FIRST, String::new())].into(),
                segment_size: SIZE,
            },
            backups: Vec::new(),
            fetched: Mutex::default(),
        };
        world.store(TimelineId::FIRST, 1, bytes);
        world
    }

    fn name(&self, timeline: TimelineId, number: u64) -> SegmentName {
        self.path
            .name(timeline, wal_format::SegmentNumber::new(number))
    }

    fn store(&mut self, timeline: TimelineId, first: u64, bytes: &[u8]) {
        for (index, segment) in bytes.chunks(MIB as usize).enumerate() {
            let name = self.name(timeline, first + index as u64);
            let objects = self.catalog.timelines.entry(timeline).or_default();
            if segment.len() < MIB as usize {
                let to = segment.len() as u32;
                objects.tails.entry(name).or_default().insert(TailChunk {
                    from: 0,
                    to,
                    writer: 1,
                });
                self.tails.insert(name, vec![(0, segment.to_vec())]);
                continue;
            }
            let summary = summarise_segment(CONFIG, name.start(SIZE).unwrap(), segment).unwrap();
            assert!(summary.is_complete(), "{summary:?}");
            objects.segments.insert(name, MIB);
            let lineage = self
                .path
                .lineages
                .get(&timeline)
                .cloned()
                .unwrap_or_default();
            self.descriptors
                .insert(name, describe(&summary, summary.end_lsn, &lineage));
            self.wal.insert(name, segment.to_vec());
        }
    }

    /// The path onto a child of the current timeline, its history stored.
    fn branch(&mut self, child: u32, at: Lsn) {
        let history = self
            .path
            .history
            .child(timeline(child), at, "test")
            .unwrap();
        self.path
            .lineages
            .insert(timeline(child), lineage(Some(&history.encode())));
        self.path.history = history;
        self.catalog
            .timelines
            .entry(timeline(child))
            .or_default()
            .history = true;
    }

    fn backup(&mut self, start: Lsn, stop: Lsn, stopped: i64) {
        let timeline = self.path.history.timeline();
        let index = self.backups.len();
        self.backups.push(BackupFacts {
            label: format!("2026012{index}T142811Z-full-3fa9").parse().unwrap(),
            timeline,
            lineage: self.path.lineages[&timeline].clone(),
            start_lsn: start,
            stop_lsn: stop,
            stopped: Timestamp(stopped),
        });
    }

    fn forget(&mut self, timeline: TimelineId, number: u64) {
        let name = self.name(timeline, number);
        let objects = self.catalog.timelines.get_mut(&timeline).unwrap();
        assert!(objects.segments.remove(&name).is_some() | objects.tails.remove(&name).is_some());
    }

    fn plan(&self, target: RecoveryTarget, inclusive: bool) -> Result<RecoveryPlan> {
        self.fetched.lock().unwrap().clear();
        let goal = RecoveryGoal { target, inclusive };
        let request = PlanRequest {
            catalog: &self.catalog,
            path: &self.path,
            backups: &self.backups,
            goal: &goal,
            backup: None,
            decoder: CONFIG,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(plan_recovery(self, request))
    }

    fn stop(&self, target: RecoveryTarget, inclusive: bool) -> Lsn {
        self.plan(target, inclusive).unwrap().stop.record
    }

    fn failure(&self, target: RecoveryTarget) -> (ErrorClass, String) {
        let error = self.plan(target, true).unwrap_err();
        (error.class(), error.to_string())
    }
}

/// Six segments and a half with a commit every 200 kB or so; commit `n` has xid 100 + n and time n * 1000, but every seventh is late.
struct Workload {
    bytes: Vec<u8>,
    records: Vec<Record>,
}

fn time_of(n: i64) -> i64 {
    n * 1000 + if n % 7 == 0 { 2500 } else { 0 }
}

fn workload() -> Workload {
    let mut builder = WalBuilder::new(Major::V17, SIZE, Lsn::new(MIB), Lsn::new(MIB - 64));
    let mut n = 0;
    while builder.bytes().len() < 6 * MIB as usize + 500_000 {
        n += 1;
        for filler in 0..20 {
            builder.data_record(10, 0, 100 + n, &vec![filler; 9_000 + 37 * n as usize]);
        }
        match n % 5 {
            0 => builder.abort(100 + n, Timestamp(time_of(i64::from(n)))),
            _ => builder.commit(100 + n, Timestamp(time_of(i64::from(n)))),
        };
        if n == 12 || n == 20 {
            builder.restore_point(Timestamp(0), "here");
        }
    }
    let bytes = builder.into_bytes();
    let mut records = Vec::new();
    let mut decoder = WalDecoder::new(CONFIG, Lsn::new(MIB)).unwrap();
    decoder.push(&bytes, |step| {
        if let Step::Record(record) = step {
            records.push(record);
        }
    });
    Workload { bytes, records }
}

fn world() -> (World, Vec<Record>) {
    let workload = workload();
    let mut world = World::new(&workload.bytes);
    let record = |index: usize| &workload.records[index];
    world.backup(record(5).start, record(9).end, 10);
    // The second one is consistent in the fourth segment.
    let index = workload
        .records
        .iter()
        .position(|record| record.start > Lsn::new(4 * MIB + 300_000))
        .unwrap();
    let times = workload.records[..index]
        .iter()
        .filter(|record| record.header.resource_manager == 1)
        .count();
    world.backup(
        record(index - 4).start,
        record(index).end,
        time_of(times as i64) + 3000,
    );
    (world, workload.records)
}

/// The stop of a scan of everything from the first backup, or from the second where it is usable.
fn expected(
    world: &World,
    records: &[Record],
    target: &RecoveryTarget,
    inclusive: bool,
) -> Option<Lsn> {
    for backup in world.backups.iter().rev() {
        let usable = match target {
            RecoveryTarget::Time(time) => backup.stopped <= *time,
            RecoveryTarget::Lsn(lsn) => backup.stop_lsn <= *lsn,
            _ => true,
        };
        let goal = RecoveryGoal {
            target: target.clone(),
            inclusive,
        };
        let mut finder = StopFinder::new(goal, backup.start_lsn, backup.stop_lsn);
        for record in records {
            finder.observe(record);
        }
        if let (true, Verdict::Reached(stop)) = (usable, finder.verdict_at_end()) {
            return Some(stop.record);
        }
    }
    None
}

#[test]
fn every_target_is_found_where_a_scan_of_everything_finds_it() {
    let (world, records) = world();
    let mut reached = 0;
    let mut refused = 0;
    let mut check = |target: RecoveryTarget| {
        for inclusive in [true, false] {
            let wanted = expected(&world, &records, &target, inclusive);
            let found = world.plan(target.clone(), inclusive);
            match (wanted, found) {
                (Some(wanted), Ok(plan)) => {
                    assert_eq!(plan.stop.record, wanted, "{target} {inclusive}");
                    let last = plan.pieces.last().unwrap();
                    assert!(
                        plan.stop.needed_to <= last.start.saturating_add(MIB)
                            && plan.stop.record >= plan.backup.start_lsn
                    );
                    reached += 1;
                }
                (None, Err(error)) => {
                    assert_eq!(error.class(), ErrorClass::NotFound, "{target}: {error}");
                    assert!(
                        error
                            .to_string()
                            .contains("reachable: 2000-01-01T00:00:00.00001Z"),
                        "{error}"
                    );
                    refused += 1;
                }
                (wanted, found) => panic!(
                    "{target} {inclusive}: {wanted:?}, {:?}",
                    found.map(|plan| plan.stop)
                ),
            }
        }
    };
    check(RecoveryTarget::Latest);
    check(RecoveryTarget::Immediate);
    for n in 0..45 {
        for offset in [-1, 0, 1] {
            check(RecoveryTarget::Time(Timestamp(time_of(n) + offset)));
        }
        check(RecoveryTarget::Xid(100 + n as u32));
    }
    for record in records.iter().step_by(41).chain(records.last()) {
        for offset in [0, 1, 8] {
            check(RecoveryTarget::Lsn(record.start.saturating_add(offset)));
        }
    }
    check(RecoveryTarget::Lsn(Lsn::new(100 * MIB)));
    check(RecoveryTarget::Name("here".into()));
    check(RecoveryTarget::Name("there".into()));
    assert!(reached > 200 && refused > 20, "{reached} {refused}");
}

#[test]
fn a_time_is_found_without_reading_all_wal() {
    let (world, _) = world();
    world
        .plan(RecoveryTarget::Time(Timestamp(time_of(3))), true)
        .unwrap();
    let fetched = world.fetched.lock().unwrap().len();
    assert!(fetched <= 2, "{fetched}");
}

#[test]
fn says_how_many_transactions_will_be_gone() {
    let (world, records) = world();
    let ends = |record: &&Record| record.header.resource_manager == 1;
    let plan = world.plan(RecoveryTarget::Xid(103), true).unwrap();
    let after = records
        .iter()
        .filter(ends)
        .filter(|record| record.start > plan.stop.record)
        .count();
    assert_eq!(plan.transactions_after, Some(after as u64));
    assert_eq!(
        world
            .plan(RecoveryTarget::Latest, true)
            .unwrap()
            .transactions_after,
        Some(0)
    );
}

#[test]
fn a_hole_before_the_target_is_named_and_one_behind_it_is_not_in_the_way() {
    let (mut world, _) = world();
    world.backups.truncate(1);
    world.forget(TimelineId::FIRST, 4);
    for target in [
        RecoveryTarget::Latest,
        RecoveryTarget::Lsn(Lsn::new(4 * MIB + 5)),
        RecoveryTarget::Name("nowhere".into()),
    ] {
        let (class, words) = world.failure(target);
        assert_eq!(class, ErrorClass::Corrupt, "{words}");
        assert!(
            words.contains("000000010000000000000004: missing"),
            "{words}"
        );
        assert!(words.contains("000000010000000000000005"), "{words}");
    }
    world
        .plan(RecoveryTarget::Lsn(Lsn::new(3 * MIB)), true)
        .unwrap();
}

#[test]
fn the_tail_is_part_of_the_latest_and_its_gap_is_a_hole() {
    let (mut world, records) = world();
    assert_eq!(
        world.stop(RecoveryTarget::Latest, true),
        records.last().unwrap().start
    );
    let name = world.name(TimelineId::FIRST, 7);
    let whole = world.tails[&name][0].1.clone();
    world.tails.insert(
        name,
        vec![(0, whole[..1000].to_vec()), (1001, whole[1001..].to_vec())],
    );
    let (class, words) = world.failure(RecoveryTarget::Latest);
    assert!(
        class == ErrorClass::Corrupt && words.contains("bytes 1000..1001"),
        "{words}"
    );
    // A damaged byte breaks the chain of records, which is no end of WAL.
    let mut damaged = whole.clone();
    damaged[200_000] ^= 1;
    world.tails.insert(name, vec![(0, damaged)]);
    let (class, words) = world.failure(RecoveryTarget::Latest);
    assert!(
        class == ErrorClass::Corrupt && words.contains("not valid at 0/7"),
        "{words}"
    );
    // Cut anywhere, what is whole is the latest.
    world
        .tails
        .insert(name, vec![(0, whole[..200_000].to_vec())]);
    let stop = world.stop(RecoveryTarget::Latest, true);
    let cut = Lsn::new(7 * MIB + 200_000);
    assert_eq!(
        Some(stop),
        records
            .iter()
            .rfind(|record| record.end <= cut)
            .map(|record| record.start)
    );
    // Without the tail the last whole record of the sealed segments is.
    world.forget(TimelineId::FIRST, 7);
    let stop = world.stop(RecoveryTarget::Latest, true);
    assert_eq!(
        Some(stop),
        records
            .iter()
            .rfind(|record| record.end <= Lsn::new(7 * MIB))
            .map(|record| record.start)
    );
}

#[test]
fn segments_that_do_not_chain_are_refused() {
    type Change = fn(&mut WalDescriptor);
    let changes: [(Change, &str); 5] = [
        (
            |wal| wal.first_record_prev = Some(Lsn::new(77)),
            "links back to 0/4D",
        ),
        (|wal| wal.lineage = "00".repeat(16), "another timeline"),
        (
            |wal| wal.invalid_at = Some(Lsn::new(3 * MIB + 50)),
            "not valid from 0/300032",
        ),
        (
            |wal| wal.end_lsn = Lsn::new(3 * MIB + 50),
            "says that it holds",
        ),
        (
            |wal| wal.start_lsn = Lsn::new(2 * MIB),
            "says that it holds",
        ),
    ];
    for (change, expected) in changes {
        let (mut world, _) = world();
        world.backups.truncate(1);
        let name = world.name(TimelineId::FIRST, 3);
        change(world.descriptors.get_mut(&name).unwrap());
        let (class, words) = world.failure(RecoveryTarget::Latest);
        assert!(
            class == ErrorClass::Corrupt
                && words.contains(expected)
                && words.contains(&name.to_string()),
            "{words}"
        );
    }
}

#[test]
fn a_backup_whose_wal_is_not_there_cannot_serve() {
    let (mut world, _) = world();
    world.backups.truncate(1);
    world.forget(TimelineId::FIRST, 1);
    let (class, words) = world.failure(RecoveryTarget::Latest);
    assert!(
        class == ErrorClass::Corrupt && words.starts_with("000000010000000000000001: missing"),
        "{words}"
    );
    for number in 2..=7 {
        world.forget(TimelineId::FIRST, number);
    }
    let (class, words) = world.failure(RecoveryTarget::Immediate);
    assert!(
        class == ErrorClass::Corrupt && words.starts_with("000000010000000000000001: missing"),
        "{words}"
    );
    // Consistent only beyond the end of what is stored.
    let (mut world, _) = self::world();
    world.backups.truncate(1);
    world.backups[0].stop_lsn = Lsn::new(9 * MIB);
    for target in [RecoveryTarget::Latest, RecoveryTarget::Immediate] {
        let (class, words) = world.failure(target);
        assert!(
            class == ErrorClass::Corrupt && words.contains("WAL up to 0/900000: missing"),
            "{words}"
        );
    }
}

/// Timeline 1 as in `world`, left in its fourth segment for timeline 2, which has two segments and a tail. The parent goes on: a dead branch.
fn branched() -> (World, Lsn, Vec<u8>) {
    let workload = workload();
    let mut world = World::new(&workload.bytes);
    world.backup(workload.records[5].start, workload.records[9].end, 10);
    let index = workload
        .records
        .iter()
        .position(|record| record.start > Lsn::new(4 * MIB + 300_000))
        .unwrap();
    let (switch, previous) = (
        workload.records[index].start,
        workload.records[index - 1].start,
    );
    // The new timeline's first page is the one with the switch point, which it repeats.
    let mut bytes = workload.bytes[3 * MIB as usize..(switch.as_u64() - MIB) as usize].to_vec();
    bytes.resize(bytes.len().next_multiple_of(8192), 0);
    let end_of_page = Lsn::new(4 * MIB + bytes.len() as u64);
    let mut decoder = WalDecoder::new(CONFIG, Lsn::new(MIB)).unwrap();
    decoder.push(&workload.bytes[..(switch.as_u64() - MIB) as usize], |_| {});
    // Records of the rest of that page do not matter here: a record fills it exactly.
    let room = (end_of_page.as_u64() - switch.as_u64()) as usize;
    let body = wal_format::testing::main_data(&vec![9; room - 24 - 5]);
    let record = wal_format::testing::encode_record(10, 0, 0, previous, &body);
    let at = bytes.len() - room;
    bytes[at..at + record.len()].copy_from_slice(&record);
    let mut builder = WalBuilder::new(Major::V17, SIZE, end_of_page, switch);
    builder.timeline = timeline(2);
    while builder.bytes().len() < 2 * MIB as usize + 300_000 - bytes.len() {
        builder.data_record(10, 0, 0, &[3; 3000]);
    }
    builder.commit(900, Timestamp(900_000));
    bytes.extend_from_slice(builder.bytes());
    world.branch(2, switch);
    world.store(timeline(2), 4, &bytes);
    (world, switch, bytes)
}

#[test]
fn the_path_leaves_its_parent_at_the_switch_point() {
    let (world, switch, _) = branched();
    let plan = world.plan(RecoveryTarget::Xid(900), true).unwrap();
    let names: Vec<String> = plan
        .pieces
        .iter()
        .map(|piece| piece.name.to_string())
        .collect();
    assert_eq!(
        names,
        [
            "000000010000000000000001",
            "000000010000000000000002",
            "000000010000000000000003",
            "000000020000000000000004",
            "000000020000000000000005",
            "000000020000000000000006"
        ]
    );
    let scope = plan.scope("7412".parse().unwrap());
    let rule = |timeline, number| scope.rule(world.name(timeline, number)).unwrap();
    let cut = Some(SIZE.offset(switch));
    assert!(
        matches!(rule(TimelineId::FIRST, 4), Ruling::Needed { cut: found, .. } if found == cut)
    );
    assert_eq!(rule(TimelineId::FIRST, 5), Ruling::OffPath);
    assert!(matches!(
        rule(timeline(2), 6),
        Ruling::Needed { cut: None, .. }
    ));
    // A transaction of the dead branch is not found, one of the shared part is.
    assert_eq!(
        world.failure(RecoveryTarget::Xid(128)).0,
        ErrorClass::NotFound
    );
    world.plan(RecoveryTarget::Xid(105), true).unwrap();
    assert_eq!(choose_timeline(&world.catalog, None).unwrap(), timeline(2));
}

#[test]
fn a_missing_switch_segment_is_a_hole_and_never_the_dead_branch() {
    for number in [4, 5] {
        let (mut world, _, _) = branched();
        world.forget(timeline(2), number);
        let (class, words) = world.failure(RecoveryTarget::Latest);
        assert!(
            class == ErrorClass::Corrupt
                && words.contains(&format!("00000002000000000000000{number}: missing")),
            "{words}"
        );
    }
    // A parent that lacks its last whole segment is a hole too.
    let (mut world, _, _) = branched();
    world.forget(TimelineId::FIRST, 3);
    assert!(
        world
            .failure(RecoveryTarget::Latest)
            .1
            .contains("000000010000000000000003: missing")
    );
    // What the parent wrote after the path left it is no part of it.
    let (mut world, _, _) = branched();
    for number in 4..=7 {
        world.forget(TimelineId::FIRST, number);
    }
    world.plan(RecoveryTarget::Latest, true).unwrap();
}

#[test]
fn a_timeline_of_which_only_the_history_is_stored_ends_in_its_parent() {
    let (mut world, switch, _) = branched();
    for number in 4..=6 {
        world.forget(timeline(2), number);
    }
    let pieces = plan_pieces(&world.catalog, &world.path, Lsn::new(MIB));
    assert_eq!(
        pieces.pieces.last().unwrap().name.timeline,
        TimelineId::FIRST
    );
    let stop = world.stop(RecoveryTarget::Latest, true);
    assert!(stop < switch, "{stop} is not before {switch}");
    // The recovery follows the parent, so that nothing of the empty timeline counts as missing.
    let plan = world.plan(RecoveryTarget::Latest, true).unwrap();
    assert_eq!(plan.path.history.timeline(), TimelineId::FIRST);
    let scope = plan.scope("7412".parse().unwrap());
    let rule = |timeline, number| scope.rule(world.name(timeline, number)).unwrap();
    assert_eq!(rule(timeline(2), 4), Ruling::OffPath);
    assert!(matches!(
        rule(TimelineId::FIRST, 4),
        Ruling::Needed { cut: None, .. }
    ));
    assert_eq!(rule(TimelineId::FIRST, 5), Ruling::BehindEnd);
}

#[test]
fn backups_of_another_branch_do_not_count() {
    let (mut world, switch, _) = branched();
    // Consistent only after the path had left timeline 1.
    world.backups[0].stop_lsn = switch.saturating_add(8);
    let (class, words) = world.failure(RecoveryTarget::Latest);
    assert!(
        class == ErrorClass::NotFound && words.contains("no backup lies on timeline 2"),
        "{words}"
    );
    let (mut world, _, _) = branched();
    world.backups[0].lineage = "11".repeat(16);
    assert_eq!(
        world.failure(RecoveryTarget::Latest).0,
        ErrorClass::NotFound
    );
}

#[test]
fn wal_without_its_history_file_is_a_missing_object() {
    let (mut world, _, _) = branched();
    world
        .catalog
        .timelines
        .get_mut(&timeline(2))
        .unwrap()
        .history = false;
    let error = choose_timeline(&world.catalog, None).unwrap_err();
    assert!(
        matches!(&error, Error::Missing { object, .. } if object == "00000002.history"),
        "{error}"
    );
    assert_eq!(
        choose_timeline(&world.catalog, Some(TimelineId::FIRST)).unwrap(),
        TimelineId::FIRST
    );
    assert_eq!(
        choose_timeline(&world.catalog, Some(timeline(9)))
            .unwrap_err()
            .class(),
        ErrorClass::NotFound
    );
    assert_eq!(
        choose_timeline(&Catalog::default(), None)
            .unwrap_err()
            .class(),
        ErrorClass::NotFound
    );
}

#[test]
fn a_cut_switch_segment_decodes_to_the_switch_point_and_no_further() {
    let (world, switch, _) = branched();
    let name = world.name(TimelineId::FIRST, 4);
    let mut bytes = world.wal[&name].clone();
    cut_at(&mut bytes, SIZE.offset(switch));
    let summary = summarise_segment(CONFIG, Lsn::new(4 * MIB), &bytes).unwrap();
    assert_eq!(summary.valid_to, switch);
}
