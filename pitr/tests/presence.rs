//! `verify --presence` over repositories in memory: a year of WAL takes a bounded number of requests, and roll-ups that are wrong change what it
//! costs, never what is found.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/synthetic.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod synthetic;

use pitr::verify::{Level, Memory, Problem, Report, Request, verify};
use repository::index::RolledUp;
use repository::sealed::OpenPolicy;
use repository::store::Store;
use repository::testing::{FaultPlan, RequestCount};
use repository::{Deadlines, Repository};
use synthetic::{Archive, LOG, document, segment_key, start};
use wal_format::Lsn;

/// What is found, and the requests it took: listings and reads.
async fn ask(archive: &Archive) -> (Report, u64, u64) {
    let requests = RequestCount::default();
    let plan = FaultPlan {
        requests: requests.clone(),
        ..FaultPlan::default()
    };
    let counted = Store::faulty(&archive.store, plan, Deadlines::default());
    let request = Request {
        repository: &Repository::new("memory", counted),
        policy: &OpenPolicy::default(),
        cluster: &document(),
        level: Level::Presence,
        since: None,
    };
    let report = verify(&request, &mut Memory::none(), &|_| {}).await;
    (
        report.unwrap(),
        requests.of("list"),
        requests.of("fetch") + requests.of("head"),
    )
}

fn objects(report: &Report) -> Vec<(&str, Problem)> {
    let findings = report.findings.iter();
    findings
        .map(|finding| (finding.object.as_str(), finding.problem))
        .collect()
}

/// Three logs of segments, three backups.
async fn small(absent: Option<u64>) -> Archive {
    let mut archive = Archive::new(Store::in_memory());
    for number in (1..2 * LOG + 10).filter(|number| Some(*number) != absent) {
        archive.seal(number).await;
    }
    for (index, from) in [(0, 2), (1, 100), (2, 400)] {
        archive.backup(index, from).await;
    }
    archive
}

#[tokio::test]
async fn a_year_of_wal_takes_a_bounded_number_of_requests() {
    const SEGMENTS: u64 = 100_000;
    let mut archive = Archive::new(Store::in_memory());
    let last_log = SEGMENTS / LOG;
    // Whose header is read, is found to be no object at all.
    archive.stubs(1..last_log * LOG - 1).await;
    for number in last_log * LOG - 1..=SEGMENTS {
        archive.seal(number).await;
    }
    archive.roll_up_and_back_up(SEGMENTS).await;
    let (report, lists, reads) = ask(&archive).await;
    assert_eq!(objects(&report), []);
    assert_eq!(report.backups.len(), 52);
    let end = start(SEGMENTS + 1).to_string();
    assert!(report.backups.iter().all(|reach| reach.to_lsn == end));
    println!("{SEGMENTS} segments: {lists} listings, {reads} reads");
    assert!(lists <= last_log + 80, "{lists} listings");
    // A roll-up a log, the backups, the log that is not rolled up yet and the segment before it.
    let unrolled = SEGMENTS - last_log * LOG + 1;
    assert_eq!(reads, last_log + 52 + unrolled + 1);
    let counts = report.counts;
    assert_eq!(counts.descriptors_read, unrolled + 1);
    assert_eq!(counts.descriptors_rolled_up, last_log * LOG - 2);
    let notes = report.notes.join("\n");
    assert!(notes.contains("not authenticated"), "{notes}");
    let believed = format!(
        "{} descriptors were believed from roll-ups",
        last_log * LOG - 2
    );
    assert!(notes.contains(&believed), "{notes}");
}

#[tokio::test]
async fn wrong_roll_ups_are_no_findings_and_hide_none_that_they_show() {
    type Change = fn(u64, &mut RolledUp);
    let wrong: [(&str, Change); 8] = [
        ("right", |_, _| {}),
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
        ("another place", |number, rolled| {
            if number == 350 {
                rolled.wal.start_lsn = start(3);
            }
        }),
        ("a whole log shifted", |_, rolled| {
            let shift = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.saturating_add(8));
            rolled.wal.first_record_prev = shift(rolled.wal.first_record_prev);
            rolled.wal.last_record = shift(rolled.wal.last_record);
        }),
    ];
    for (what, change) in wrong {
        let archive = small(None).await;
        archive.put_roll_up(0, |_, _| {}).await;
        archive.put_roll_up(1, change).await;
        let (report, _, reads) = ask(&archive).await;
        assert_eq!(objects(&report), [], "{what}");
        let few = reads < 40;
        assert_eq!(few, what == "right", "{what}: {reads}");
        assert!(reads < LOG + 50, "{what}: {reads}");
        // What is missing is missing, whatever is said of it.
        let archive = small(Some(300)).await;
        archive.put_roll_up(1, change).await;
        let (report, _, _) = ask(&archive).await;
        let missing = segment_key(300).to_string();
        assert_eq!(
            objects(&report),
            [(missing.as_str(), Problem::Missing)],
            "{what}"
        );
        assert_eq!(report.findings[0].affects.len(), 2, "{what}");
    }
}

#[tokio::test]
async fn a_damaged_header_is_found_where_no_roll_up_speaks_for_it() {
    let key = segment_key(300).to_string();
    for (rolled_up, expected) in [
        (false, vec![(key.as_str(), Problem::Damaged)]),
        (true, Vec::new()),
    ] {
        let mut archive = small(Some(300)).await;
        archive.stubs(std::iter::once(300)).await;
        if rolled_up {
            archive.put_roll_up(1, |_, _| {}).await;
        }
        let (report, _, _) = ask(&archive).await;
        assert_eq!(objects(&report), expected);
        let admits = report.notes.join("\n").contains("believed from roll-ups");
        assert_eq!(admits, rolled_up, "{:?}", report.notes);
    }
}

#[tokio::test]
async fn a_roll_up_that_tells_the_truth_of_a_broken_chain_is_no_reason_to_doubt_it() {
    // Segment 350 says that it follows another one, and so does the roll-up.
    let mut archive = small(Some(350)).await;
    let mut wal = synthetic::wal(350);
    wal.first_record_prev = Some(Lsn::new(5));
    archive.seal_as(350, wal.clone()).await;
    archive.put_roll_up(0, |_, _| {}).await;
    archive
        .put_roll_up(1, |number, rolled| {
            if number == 350 {
                rolled.wal = wal.clone();
            }
        })
        .await;
    let (report, _, reads) = ask(&archive).await;
    let key = segment_key(350).to_string();
    assert_eq!(objects(&report), [(key.as_str(), Problem::Chain)]);
    assert_eq!(report.findings[0].lsn, wal.first_record);
    // The two of them, and what is always read.
    assert!(reads < 40, "{reads}");
}
