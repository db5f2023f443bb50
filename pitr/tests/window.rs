//! The survey over repositories in memory: roll-ups that are right, stale, wrong, damaged or foreign never change the answer, only what it
//! costs; a year of WAL costs a bounded number of requests.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use pitr::survey::{Effort, Survey};
use pitr::window::{End, Windows};
use repository::cluster::ClusterDocument;
use repository::descriptor::WalDescriptor;
use repository::index::{RollUp, RolledUp};
use repository::key::{BackupLabel, BackupObject, ClusterId, ObjectKey};
use repository::sealed::{BufferPool, Facts, OpenPolicy, SealPolicy, Sealer};
use repository::store::Store;
use repository::testing::{FaultPlan, RequestCount};
use repository::{Deadlines, Repository};
use std::collections::BTreeMap;
use wal_format::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const LOG: u64 = 256;

fn cluster() -> ClusterId {
    ClusterId::new(7)
}

fn name(number: u64) -> SegmentName {
    SegmentName::new(TimelineId::FIRST, SegmentNumber::new(number), SIZE)
}

fn start(number: u64) -> Lsn {
    SIZE.start(SegmentNumber::new(number))
}

fn time(number: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_790_000_000 + i64::try_from(number).unwrap()).unwrap()
}

/// One transaction a segment, a second apart, all records linked.
fn wal(number: u64) -> WalDescriptor {
    WalDescriptor {
        start_lsn: start(number),
        end_lsn: start(number + 1),
        first_record: Some(start(number).saturating_add(40)),
        first_record_prev: Some(start(number - 1).saturating_add(80)),
        last_record: Some(start(number).saturating_add(80)),
        transactions: Some(1),
        time_min: Some(time(number)),
        time_max: Some(time(number)),
        ..WalDescriptor::default()
    }
}

struct Archive {
    memory: Store,
    sealer: Sealer,
    sizes: BTreeMap<SegmentName, u64>,
}

impl Archive {
    fn new() -> Self {
        let policy = SealPolicy {
            recipients: None,
            compression: Default::default(),
            minimal_descriptor: false,
        };
        Self {
            memory: Store::in_memory(),
            sealer: Sealer::new(policy, BufferPool::new(1)),
            sizes: BTreeMap::new(),
        }
    }

    fn repository(&self) -> Repository {
        Repository::new("memory", self.memory.clone())
    }

    async fn seal(&mut self, number: u64) {
        let facts = Facts {
            key: ObjectKey::Segment {
                cluster: cluster(),
                name: name(number),
            },
            pg_version: 18,
            wal: Some(wal(number)),
        };
        let sealed = self.sealer.seal(facts, b"not the WAL itself").unwrap();
        self.repository().put(&sealed).await.unwrap();
        self.sizes.insert(name(number), sealed.stored_size());
    }

    /// An object that only its name and a roll-up describe: who opens it, fails.
    async fn stub(&mut self, number: u64) {
        let key = ObjectKey::Segment {
            cluster: cluster(),
            name: name(number),
        };
        let stored = self.memory.put_new(&key.to_string(), "stub").await;
        let _outcome = stored.unwrap();
        self.sizes.insert(name(number), 4);
    }

    async fn backup(&self, index: u32, from: u64) {
        let label: BackupLabel = format!("202601{:02}T{index:06}Z-full-0000", 1 + index % 28)
            .parse()
            .unwrap();
        let key = ObjectKey::Backup {
            cluster: cluster(),
            label: label.clone(),
            object: BackupObject::Descriptor,
        };
        let document = serde_json::json!({
            "format": 1, "label": label.as_str(), "kind": "full", "system_identifier": "7", "pg_version": 18,
            "server_version": "18.1", "wal_segment_size": SIZE.bytes(), "timeline": 1, "lineage": "",
            "start_lsn": start(from).saturating_add(40).to_string(), "stop_lsn": start(from + 1).saturating_add(60).to_string(),
            "started": time(from), "stopped": time(from + 1), "from_standby": false, "tablespaces": [], "parts": [],
            "manifest_size": "1", "plain_size": "1", "stored_size": "1",
        });
        self.repository().put_json(&key, &document).await.unwrap();
    }

    fn roll_up(&self, log: u32, change: impl Fn(u64, &mut RolledUp)) -> RollUp {
        let first = u64::from(log) * LOG;
        let segments = (first.max(1)..first + LOG).filter_map(|number| {
            let mut rolled = RolledUp {
                stored_size: *self.sizes.get(&name(number))?,
                wal: wal(number),
            };
            change(number, &mut rolled);
            Some((name(number), rolled))
        });
        RollUp {
            cluster: cluster(),
            timeline: TimelineId::FIRST,
            log,
            segments: segments.collect(),
        }
    }

    async fn put_roll_up(&self, log: u32, change: impl Fn(u64, &mut RolledUp)) {
        let roll_up = self.roll_up(log, change);
        self.repository().put_roll_up(&roll_up).await.unwrap();
    }

    /// The answer, and the requests it took: listings and reads.
    async fn ask(&self, effort: Effort) -> (Windows, u64, u64) {
        let requests = RequestCount::default();
        let plan = FaultPlan {
            requests: requests.clone(),
            ..FaultPlan::default()
        };
        let counted = Store::faulty(&self.memory, plan, Deadlines::default());
        let document = ClusterDocument {
            format: 1,
            requires: Vec::new(),
            system_identifier: 7,
            incarnation: 0,
            parent: None,
            pg_version: 18,
            block_size: 8192,
            wal_segment_size: SIZE.bytes(),
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        let repository = Repository::new("memory", counted);
        let policy = OpenPolicy::default();
        let survey = Survey::gather(&repository, &document, &policy, effort)
            .await
            .unwrap();
        (
            survey.windows,
            requests.of("list"),
            requests.of("fetch") + requests.of("head"),
        )
    }
}

/// Descriptors alone: what stands in these objects is no WAL.
const DESCRIPTORS: Effort = Effort {
    max_descriptors: usize::MAX,
    commits: false,
};

/// Two logs and a little, three backups, segment 300 missing.
async fn small() -> Archive {
    let mut archive = Archive::new();
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
    let (expected, _, without) = bare.ask(DESCRIPTORS).await;
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
    let (found, _, requests) = right.ask(DESCRIPTORS).await;
    assert_eq!(found, expected);
    // 3 backups, 2 roll-ups, the last log, and the last two before each of the two ends, once more.
    assert!(requests <= 3 + 2 + 10 + 4, "{requests}");

    // A second one that agrees costs itself; one of half the log, the other half.
    right.put_roll_up(1, |_, _| {}).await;
    let half = small().await;
    let mut first_half = half.roll_up(1, |_, _| {});
    first_half.segments.retain(|name, _| name.segment < 128);
    half.repository().put_roll_up(&first_half).await.unwrap();
    let (found, _, requests) = half.ask(DESCRIPTORS).await;
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
        let (found, _, _) = archive.ask(DESCRIPTORS).await;
        assert_eq!(found, expected, "{what}");
        // Beside a right one: neither is believed where they differ.
        archive.put_roll_up(1, |_, _| {}).await;
        let (found, _, requests) = archive.ask(DESCRIPTORS).await;
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
        let put = stale.memory.put_new(&elsewhere, bytes).await;
        let _outcome = put.unwrap();
    }
    let (found, _, requests) = stale.ask(DESCRIPTORS).await;
    assert_eq!(found, expected);
    assert!(requests < LOG + 40, "{requests}");
}

#[tokio::test]
async fn a_year_of_wal_costs_a_bounded_number_of_requests() {
    const SEGMENTS: u64 = 100_000;
    let mut archive = Archive::new();
    let last_log = SEGMENTS / LOG;
    for number in 1..=SEGMENTS {
        // The last two before the end of each log are opened where an end is.
        match number / LOG == last_log {
            true => archive.seal(number).await,
            false => archive.stub(number).await,
        }
    }
    for log in 0..u32::try_from(last_log).unwrap() {
        archive.put_roll_up(log, |_, _| {}).await;
    }
    for index in 0..52 {
        archive.backup(index, 1 + u64::from(index) * 1900).await;
    }
    let (windows, lists, reads) = archive.ask(DESCRIPTORS).await;
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
    let (ends, _, reads) = archive.ask(Effort::ENDS).await;
    assert_eq!(ends.newest().unwrap().1.end, start(SEGMENTS + 1));
    assert!(reads < 100, "{reads} reads");
}
