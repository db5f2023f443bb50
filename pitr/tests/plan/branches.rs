//! Plans over a timeline that left its parent while that went on: the path, its holes, and what is no part of it.

use crate::world::{CONFIG, MIB, SIZE, World, timeline, workload};
use pitr::assemble::cut_at;
use pitr::error::Error;
use pitr::plan::{choose_timeline, plan_pieces};
use pitr::scope::Ruling;
use pitr::target::RecoveryTarget;
use repository::ErrorClass;
use repository::catalog::Catalog;
use wal_format::testing::WalBuilder;
use wal_format::{Lsn, Major, TimelineId, Timestamp, WalDecoder, summarise_segment};

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
