//! The survey over repositories in memory: roll-ups that are right, stale, wrong, damaged or foreign never change the answer, only what it
//! costs; a year of WAL costs a bounded number of requests.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/synthetic.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod synthetic;

use pitr::survey::{Effort, Survey};
use pitr::window::{End, Windows};
use repository::Deadlines;
use repository::Repository;
use repository::index::RolledUp;
use repository::sealed::OpenPolicy;
use repository::store::Store;
use repository::testing::{FaultPlan, RequestCount};
use synthetic::{Archive, LOG, document, name, start, time, wal};
use wal_format::Lsn;

/// The answer, and the requests it took: listings and reads.
async fn ask(archive: &Archive, effort: Effort) -> (Windows, u64, u64) {
    let requests = RequestCount::default();
    let plan = FaultPlan {
        requests: requests.clone(),
        ..FaultPlan::default()
    };
    let counted = Store::faulty(&archive.store, plan, Deadlines::default());
    let repository = Repository::new("memory", counted);
    let policy = OpenPolicy::default();
    let survey = Survey::gather(&repository, &document(), &policy, effort)
        .await
        .unwrap();
    (
        survey.windows,
        requests.of("list"),
        requests.of("fetch") + requests.of("head"),
    )
}

/// Descriptors alone: what stands in these objects is no WAL.
const DESCRIPTORS: Effort = Effort {
    max_descriptors: usize::MAX,
    commits: false,
};

/// Two logs and a little, three backups, segment 300 missing.
async fn small() -> Archive {
    let mut archive = Archive::new(Store::in_memory());
    for number in (1..2 * LOG + 10).filter(|number| *number != 300) {
        archive.seal(number).await;
    }
    for (index, from) in [(0, 2), (1, 100), (2, 400)] {
        archive.backup(index, from).await;
    }
    archive
}

#[tokio::test]
async fn roll_ups_change_the_cost_and_never_the_answer() {
    let bare = small().await;
    let (expected, _, without) = ask(&bare, DESCRIPTORS).await;
    assert_eq!(expected.backups.len(), 3);
    let ends: Vec<Lsn> = expected.backups.iter().map(|b| b.reaches[0].end).collect();
    assert_eq!(ends, [start(300), start(300), start(2 * LOG + 10)]);
    assert!(
        matches!(&expected.backups[0].reaches[0].ends, End::Missing { first, segments: 1 } if *first == name(300))
    );
    assert!(without > 2 * LOG, "{without}");

    let right = small().await;
    right.put_roll_up(0, |_, _| {}).await;
    right.put_roll_up(1, |_, _| {}).await;
    let (found, _, requests) = ask(&right, DESCRIPTORS).await;
    assert_eq!(found, expected);
    // 3 backups, 2 roll-ups, the last log, and the last two before each of the two ends, once more.
    assert!(requests <= 3 + 2 + 10 + 4, "{requests}");

    // A second one that agrees costs itself; one of half the log, the other half.
    right.put_roll_up(1, |_, _| {}).await;
    let half = small().await;
    let mut first_half = half.roll_up(1, |_, _| {});
    first_half.segments.retain(|name, _| name.segment < 128);
    half.repository().put_roll_up(&first_half).await.unwrap();
    let (found, _, requests) = ask(&half, DESCRIPTORS).await;
    assert_eq!(found, expected);
    assert!(
        (LOG + 128..LOG + 128 + 30).contains(&requests),
        "{requests}"
    );

    type Change = fn(u64, &mut RolledUp);
    let wrong: [(&str, Change); 6] = [
        ("another object's size", |_, rolled| rolled.stored_size += 1),
        ("a broken link", |number, rolled| {
            if number == 350 {
                rolled.wal.first_record_prev = Some(Lsn::new(5));
            }
        }),
        ("a broken link from the one before", |number, rolled| {
            if number == 350 {
                rolled.wal.last_record = Some(Lsn::new(5));
            }
        }),
        ("not valid", |number, rolled| {
            if number == 350 {
                rolled.wal.invalid_at = Some(rolled.wal.start_lsn);
            }
        }),
        ("another lineage", |number, rolled| {
            if number % 50 == 7 {
                rolled.wal.lineage = "x".into();
            }
        }),
        ("another time at the end", |number, rolled| {
            if number == 299 {
                rolled.wal.time_max = None;
                rolled.wal.transactions = Some(0);
            }
        }),
    ];
    for (what, change) in wrong {
        let archive = small().await;
        archive.put_roll_up(1, change).await;
        let (found, _, _) = ask(&archive, DESCRIPTORS).await;
        assert_eq!(found, expected, "{what}");
        // Beside a right one: neither is believed where they differ.
        archive.put_roll_up(1, |_, _| {}).await;
        let (found, _, requests) = ask(&archive, DESCRIPTORS).await;
        assert_eq!(found, expected, "{what}, beside a right one");
        assert!(requests < 2 * LOG, "{what}: {requests}");
    }

    // Names segments that are gone, and stands at keys that are not its own.
    let stale = small().await;
    let mut roll_up = stale.roll_up(1, |_, _| {});
    let wal = wal(300);
    let rolled = RolledUp {
        stored_size: 7,
        wal,
    };
    roll_up.segments.insert(name(300), rolled);
    stale.repository().put_roll_up(&roll_up).await.unwrap();
    let (key, bytes) = roll_up.encode().unwrap();
    let path = key.to_string();
    for (elsewhere, bytes) in [
        (
            path.replace("7/index/00000001/00000001", "7/index/00000001/00000000"),
            bytes.to_vec(),
        ),
        (
            path.replace("7/index/00000001/", "7/index/00000002/"),
            bytes.to_vec(),
        ),
        (
            "7/index/00000001/00000001.00000000".to_owned(),
            bytes.to_vec(),
        ),
        ("7/index/00000001/00000000.00000000".to_owned(), Vec::new()),
    ] {
        let put = stale.store.put_new(&elsewhere, bytes).await;
        let _outcome = put.unwrap();
    }
    let (found, _, requests) = ask(&stale, DESCRIPTORS).await;
    assert_eq!(found, expected);
    assert!(requests < LOG + 40, "{requests}");
}

#[tokio::test]
async fn a_year_of_wal_costs_a_bounded_number_of_requests() {
    const SEGMENTS: u64 = 100_000;
    let mut archive = Archive::new(Store::in_memory());
    let last_log = SEGMENTS / LOG;
    archive.stubs(1..last_log * LOG).await;
    // Where the end is, the objects are opened.
    for number in last_log * LOG..=SEGMENTS {
        archive.seal(number).await;
    }
    archive.roll_up_and_back_up(SEGMENTS).await;
    let (windows, lists, reads) = ask(&archive, DESCRIPTORS).await;
    assert_eq!(windows.backups.len(), 52);
    for backup in &windows.backups {
        let reach = &backup.reaches[0];
        assert_eq!(
            (reach.end, &reach.ends),
            (start(SEGMENTS + 1), &End::Stored)
        );
        assert!(reach.proven);
    }
    let newest = windows.newest().unwrap().1.newest_transaction.unwrap();
    assert_eq!(repository::wal::utc(newest).unwrap(), time(SEGMENTS));
    // A listing a log and a few folders; a roll-up a log, the last log, the backups.
    println!("{SEGMENTS} segments: {lists} listings, {reads} reads");
    assert!(lists <= last_log + 80, "{lists} listings");
    assert!(reads <= last_log + LOG + 52 + 8, "{reads} reads");
    // The ends alone need no roll-ups.
    let (ends, _, reads) = ask(&archive, Effort::ENDS).await;
    assert_eq!(ends.newest().unwrap().1.end, start(SEGMENTS + 1));
    assert!(reads < 100, "{reads} reads");
}
