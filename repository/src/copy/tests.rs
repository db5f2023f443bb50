//! Copying between two stores in memory.

use std::sync::Mutex;

use super::*;
use crate::backup::{BackupClaim, PartDescriptor};
use crate::cluster::ClusterDocument;
use crate::descriptor::WalDescriptor;
use crate::key::Archive;
use crate::testing::{self, FaultPlan, Outage};
use crate::{Deadlines, Store};
use std::time::Duration;
use wal_format::Lsn;

const LABEL: &str = "20260123T142811Z-full-3fa9";
const FIRST: &str = "7412/wal/00000001/00000000/000000010000000000000001.wal";
const SECOND: &str = "7412/wal/00000001/00000000/000000010000000000000002.wal";
const BRANCH: &str = "7412/wal/00000002/00000000/000000020000000000000002.wal";
const HISTORY: &str = "7412/wal/00000002.history";
const TAIL: &str = "7412/tail/00000001/000000010000000000000003.00000000-00000100.0A1B2C3D";
const COVERED: &str = "7412/tail/00000001/000000010000000000000002.00000000-00000100.0A1B2C3D";

fn key(path: &str) -> ObjectKey {
    path.parse().unwrap()
}

fn of_backup(object: &str) -> String {
    format!("7412/backups/{LABEL}/{object}")
}

fn seal(path: &str, plain: &[u8]) -> Sealed {
    let wal = WalDescriptor {
        start_lsn: Lsn::new(0x100_0000),
        ..WalDescriptor::default()
    };
    testing::sealed(key(path), Some(wal), plain)
}

fn cluster() -> ClusterDocument {
    testing::cluster_document(7412)
}

fn backup() -> BackupDescriptor {
    let part = |part| PartDescriptor {
        archive: Archive::Base,
        part,
        plain_size: 4,
        stored_size: 4,
        plain_crc32: None,
        first_member: None,
        continued: None,
    };
    BackupDescriptor {
        format: 1,
        requires: Vec::new(),
        label: LABEL.into(),
        kind: "full".into(),
        system_identifier: 7412,
        pg_version: 18,
        server_version: "18.0".into(),
        wal_segment_size: 1 << 20,
        timeline: 1,
        lineage: String::new(),
        start_lsn: Lsn::new(0x100_0000),
        stop_lsn: Lsn::new(0x110_0000),
        started: jiff::Timestamp::UNIX_EPOCH,
        stopped: jiff::Timestamp::UNIX_EPOCH,
        from_standby: false,
        tablespaces: Vec::new(),
        parts: vec![part(0), part(1)],
        manifest_size: 4,
        plain_size: 8,
        stored_size: 8,
    }
}

/// A repository with a little of everything.
async fn source() -> (Repository, Store) {
    let store = Store::in_memory();
    let repository = Repository::new("first", store.clone());
    let cluster = cluster();
    repository
        .put_json(&ObjectKey::Cluster(cluster.id()), &cluster)
        .await
        .unwrap();
    for path in [FIRST, SECOND, BRANCH, HISTORY, TAIL, COVERED] {
        repository.put(&seal(path, path.as_bytes())).await.unwrap();
    }
    for object in ["manifest", "catalog", "base.000000", "base.000001"] {
        let path = of_backup(object);
        repository
            .put(&seal(&path, object.as_bytes()))
            .await
            .unwrap();
    }
    let claim = BackupClaim {
        format: 1,
        label: LABEL.into(),
        started: jiff::Timestamp::UNIX_EPOCH,
        host: "h".into(),
    };
    repository
        .put_json(&key(&of_backup("started.json")), &claim)
        .await
        .unwrap();
    repository
        .put_json(&key(&of_backup("backup.json")), &backup())
        .await
        .unwrap();
    (repository, store)
}

async fn missing_of(from: &Repository, to: &Repository) -> Missing {
    let cluster = cluster().id();
    let listing = async |repository: &Repository| {
        let listed = repository.list_objects(cluster).await.unwrap();
        listed
            .into_iter()
            .map(|object| (object.path, object.size))
            .collect::<Vec<_>>()
    };
    missing(listing(from).await, listing(to).await)
}

async fn copy(from: &Repository, to: &Repository) -> (CopyReport, Vec<String>) {
    let missing = missing_of(from, to).await;
    let done = Mutex::new(Vec::new());
    let report = copy_missing(from, to, &missing, CopyLimits::default(), &|event| {
        if let CopyEvent::Done(item) = event {
            done.lock().unwrap().push(item.key.to_string());
        }
    })
    .await;
    (report, done.into_inner().unwrap())
}

fn target() -> (Repository, Store) {
    let store = Store::in_memory();
    (Repository::new("second", store.clone()), store)
}

fn failures(report: &CopyReport) -> Vec<(String, Option<ErrorClass>)> {
    let class = |failed: &Failed| failed.error.as_ref().map(CopyError::class);
    report
        .failures
        .iter()
        .map(|failed| (failed.key.to_string(), class(failed)))
        .collect()
}

#[tokio::test]
async fn everything_goes_over_byte_for_byte_in_an_order_that_is_never_a_lie() {
    let ((from, source), (to, target)) = (source().await, target());
    let (report, done) = copy(&from, &to).await;
    assert!(report.is_complete(), "{report:?}");
    let expected = [
        "7412/cluster.json".to_owned(),
        HISTORY.into(),
        FIRST.into(),
        SECOND.into(),
        BRANCH.into(),
        TAIL.into(),
        of_backup("started.json"),
        of_backup("manifest"),
        of_backup("catalog"),
        of_backup("base.000000"),
        of_backup("base.000001"),
        of_backup("backup.json"),
    ];
    assert_eq!(done, expected);
    assert_eq!(report.copied, expected.len() as u64);
    for path in &expected {
        let (ours, theirs) = (source.fetch(path, 1 << 20), target.fetch(path, 1 << 20));
        assert_eq!(ours.await.unwrap(), theirs.await.unwrap(), "{path}");
    }
    assert_eq!(target.head(COVERED).await.unwrap(), None);
    let again = missing_of(&from, &to).await;
    assert_eq!((again.objects.len(), again.differing.len()), (0, 0));
    assert_eq!(again.present.len(), expected.len());
}

#[tokio::test]
async fn other_contents_stay_and_are_named_and_the_rest_goes_on() {
    let ((from, _), (to, target)) = (source().await, target());
    let foreign = seal(SECOND, b"other WAL of the same server identity");
    to.put(&foreign).await.unwrap();
    let (report, done) = copy(&from, &to).await;
    assert_eq!(
        failures(&report),
        [(SECOND.into(), Some(ErrorClass::Conflict))]
    );
    assert_eq!((report.conflicts, done.len()), (1, 11));
    assert!(!report.is_complete());
    let kept = target.fetch(SECOND, 1 << 20).await.unwrap();
    assert_eq!(kept, [&foreign.header[..], &foreign.payload[..]].concat());
}

#[tokio::test]
async fn the_same_contents_sealed_another_way_are_no_conflict() {
    let ((from, _), (to, _)) = (source().await, target());
    let mut policy = seal(SECOND, SECOND.as_bytes());
    // The same plain bytes behind a header of another length.
    policy.descriptor.wal.as_mut().unwrap().transactions = Some(77);
    let json = policy.descriptor.encode().unwrap();
    let text = format!("walden.v1 {:08x}\n", crc32fast::hash(&json));
    let mut header = 0x184D_2A57_u32.to_le_bytes().to_vec();
    header.extend_from_slice(&((text.len() + json.len()) as u32).to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    header.extend_from_slice(&json);
    policy.header = header.into();
    to.put(&policy).await.unwrap();
    let missing = missing_of(&from, &to).await;
    assert_eq!(missing.differing.len(), 1);
    let (report, _) = copy(&from, &to).await;
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.already, 1);
}

#[tokio::test]
async fn a_damaged_object_is_not_copied_and_a_backup_that_needs_it_is_held_back() {
    let ((from, _), (to, target)) = (source().await, target());
    let part = of_backup("base.000001");
    // The same store with one part damaged.
    let (damaged, store) = self::target();
    for listed in from.list_objects(cluster().id()).await.unwrap() {
        let mut bytes = from
            .fetch_stored(&key(&listed.path), 1 << 20)
            .await
            .unwrap()
            .to_vec();
        if listed.path == part {
            *bytes.last_mut().unwrap() ^= 1;
        }
        assert_eq!(
            store.put_new(&listed.path, bytes).await.unwrap(),
            crate::PutOutcome::Created
        );
    }
    let (report, _) = copy(&damaged, &to).await;
    let descriptor = of_backup("backup.json");
    assert_eq!(
        failures(&report),
        [
            (part.clone(), Some(ErrorClass::Corrupt)),
            (descriptor.clone(), None)
        ]
    );
    assert_eq!(target.head(&part).await.unwrap(), None);
    assert_eq!(target.head(&descriptor).await.unwrap(), None);
    // The undamaged one completes it.
    let (report, done) = copy(&from, &to).await;
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(done, [part, descriptor]);
}

#[tokio::test]
async fn a_backup_without_all_its_parts_never_exists_in_the_target() {
    let ((from, _), (to, target)) = (source().await, target());
    let mut missing = missing_of(&from, &to).await;
    let part = key(&of_backup("base.000000"));
    // As if the listing had not shown it.
    missing.retain(|key| *key != part);
    let report = copy_missing(&from, &to, &missing, CopyLimits::default(), &|_| {}).await;
    let descriptor = of_backup("backup.json");
    assert_eq!(
        failures(&report),
        [(descriptor.clone(), Some(ErrorClass::NotFound))]
    );
    assert_eq!(target.head(&descriptor).await.unwrap(), None);
}

#[tokio::test]
async fn wal_of_a_timeline_waits_for_its_history() {
    let ((from, _), (to, target)) = (source().await, target());
    to.put(&seal(HISTORY, b"another history of timeline 2"))
        .await
        .unwrap();
    let (report, _) = copy(&from, &to).await;
    let held = (BRANCH.to_owned(), None);
    assert_eq!(
        failures(&report),
        [(HISTORY.into(), Some(ErrorClass::Conflict)), held]
    );
    assert_eq!(target.head(BRANCH).await.unwrap(), None);
    assert!(target.head(SECOND).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_gone_ends_the_run_and_the_next_one_continues() {
    let ((from, _), (_, inner)) = (source().await, target());
    let outage = Outage::default();
    let plan = FaultPlan {
        outage: outage.clone(),
        ..FaultPlan::default()
    };
    let deadlines = Deadlines {
        request: Duration::from_secs(1),
        total: Duration::from_secs(3),
    };
    let to = Repository::new("second", Store::faulty(&inner, plan, deadlines));
    let missing = missing_of(&from, &to).await;
    let report = copy_missing(&from, &to, &missing, CopyLimits::default(), &|event| {
        // Gone after the first segment.
        if let CopyEvent::Done(item) = event
            && item.key == key(HISTORY)
        {
            outage.set(true);
        }
    })
    .await;
    assert!(report.unanswered > 0 && report.conflicts == 0, "{report:?}");
    assert!(outage.requests_stalled() > 0);
    outage.set(false);
    let (report, done) = copy(&from, &to).await;
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(done.len(), 10, "{done:?}");
}

#[tokio::test]
async fn objects_larger_than_the_memory_go_alone() {
    let ((from, _), (to, _)) = (source().await, target());
    let missing = missing_of(&from, &to).await;
    let limits = CopyLimits {
        objects: 8,
        bytes: 1,
    };
    let report = copy_missing(&from, &to, &missing, limits, &|_| {}).await;
    assert!(report.is_complete(), "{report:?}");
}

#[test]
fn unfinished_backups_and_foreign_paths_are_left_out() {
    let none: [(&str, u64); 0] = [];
    let part = of_backup("base.000000");
    let found = missing(
        [
            (part.as_str(), 5),
            ("7412/notes.txt", 1),
            ("walden.json", 1),
        ],
        none,
    );
    assert_eq!(found.objects, []);
    assert_eq!((found.unfinished_backups.len(), found.unknown), (1, 1));
}
