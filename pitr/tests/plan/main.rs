//! Plans over made WAL: every target against a scan of everything, and every kind of hole, broken chain and foreign timeline.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod branches;
mod world;

use pitr::stop::{StopFinder, Verdict};
use pitr::target::{RecoveryGoal, RecoveryTarget};
use repository::ErrorClass;
use repository::descriptor::WalDescriptor;
use wal_format::{Lsn, Record, TimelineId, Timestamp};
use world::{MIB, World, time_of, world};

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
