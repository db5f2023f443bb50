//! Archives that look like a year of WAL and hold none: names, descriptors, roll-ups and backups are real, what the objects hold is not.
//! For the tests of what is read how often, and for `benches/window.rs`.

use futures_util::StreamExt;
use repository::Repository;
use repository::cluster::ClusterDocument;
use repository::descriptor::WalDescriptor;
use repository::index::{RollUp, RolledUp};
use repository::key::{BackupLabel, BackupObject, ClusterId, ObjectKey};
use repository::sealed::{BufferPool, Facts, Sealer};
use repository::store::Store;
use repository::testing::UNENCRYPTED;
use std::collections::BTreeMap;
use wal_format::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};

pub(crate) const SIZE: SegmentSize = SegmentSize::DEFAULT;
/// Segments of a log.
pub(crate) const LOG: u64 = 256;
/// What an object holds of which only the name counts.
pub(crate) const STUB: &[u8] = b"stub";
/// Objects written at the same time.
const IN_FLIGHT: usize = 16;

pub(crate) fn cluster() -> ClusterId {
    ClusterId::new(7)
}

pub(crate) fn name(number: u64) -> SegmentName {
    SegmentName::new(TimelineId::FIRST, SegmentNumber::new(number), SIZE)
}

pub(crate) fn segment_key(number: u64) -> ObjectKey {
    let (cluster, name) = (cluster(), name(number));
    ObjectKey::Segment { cluster, name }
}

pub(crate) fn start(number: u64) -> Lsn {
    SIZE.start(SegmentNumber::new(number))
}

/// A segment takes 315 seconds: 100,000 a year.
pub(crate) fn time(number: u64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_760_000_000 + 315 * i64::try_from(number).unwrap()).unwrap()
}

/// Two records a segment, all linked.
pub(crate) fn wal(number: u64) -> WalDescriptor {
    WalDescriptor {
        start_lsn: start(number),
        end_lsn: start(number + 1),
        first_record: Some(start(number).saturating_add(40)),
        first_record_prev: Some(start(number - 1).saturating_add(80)),
        last_record: Some(start(number).saturating_add(80)),
        transactions: Some(1234),
        time_min: Some(time(number)),
        time_max: Some(time(number)),
        ..WalDescriptor::default()
    }
}

pub(crate) fn document() -> ClusterDocument {
    ClusterDocument {
        format: 1,
        requires: Vec::new(),
        system_identifier: 7,
        incarnation: 0,
        parent: None,
        pg_version: 18,
        block_size: 8192,
        wal_segment_size: SIZE.bytes(),
        created: time(0),
    }
}

pub(crate) struct Archive {
    pub(crate) store: Store,
    sealer: Sealer,
    /// Stored sizes of segments, for roll-ups.
    pub(crate) sizes: BTreeMap<SegmentName, u64>,
}

impl Archive {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            sealer: Sealer::new(UNENCRYPTED, BufferPool::new(1)),
            sizes: BTreeMap::new(),
        }
    }

    pub(crate) fn repository(&self) -> Repository {
        Repository::new("synthetic", self.store.clone())
    }

    /// `walden.json` and `cluster.json`.
    pub(crate) async fn found(&self) {
        let identity =
            serde_json::json!({ "format": 1, "repository_id": "0".repeat(32), "created": time(0) });
        let repository = self.repository();
        let put = repository.put_json(&ObjectKey::Repository, &identity).await;
        put.unwrap();
        let key = ObjectKey::Cluster(cluster());
        repository.put_json(&key, &document()).await.unwrap();
    }

    /// An object with a header of its own.
    pub(crate) async fn seal(&mut self, number: u64) {
        self.seal_as(number, wal(number)).await;
    }

    /// One that says this of itself.
    pub(crate) async fn seal_as(&mut self, number: u64, wal: WalDescriptor) {
        let facts = Facts {
            key: segment_key(number),
            pg_version: 18,
            wal: Some(wal),
        };
        let sealed = self.sealer.seal(facts, b"not the WAL itself").unwrap();
        self.repository().put(&sealed).await.unwrap();
        self.sizes.insert(name(number), sealed.stored_size());
    }

    /// Objects that only their names and a roll-up describe: who opens one, fails.
    pub(crate) async fn stubs(&mut self, numbers: impl Iterator<Item = u64>) {
        let store = self.store.clone();
        let puts = numbers.map(|number| {
            let store = store.clone();
            async move {
                let put = store.put_new(&segment_key(number).to_string(), STUB).await;
                put.map(|_| number)
            }
        });
        let mut puts = futures_util::stream::iter(puts).buffer_unordered(IN_FLIGHT);
        while let Some(put) = puts.next().await {
            self.sizes.insert(name(put.unwrap()), STUB.len() as u64);
        }
    }

    /// A backup that starts in one segment and ends in the next.
    pub(crate) async fn backup(&self, index: u32, from: u64) {
        let label: BackupLabel = format!("202601{:02}T{index:06}Z-full-0000", 1 + index % 28)
            .parse()
            .unwrap();
        let key = |object| ObjectKey::Backup {
            cluster: cluster(),
            label: label.clone(),
            object,
        };
        let document = serde_json::json!({
            "format": 1, "label": label.as_str(), "kind": "full", "system_identifier": "7", "pg_version": 18,
            "server_version": "18.1", "wal_segment_size": SIZE.bytes(), "timeline": 1, "lineage": "",
            "start_lsn": start(from).saturating_add(40).to_string(), "stop_lsn": start(from + 1).saturating_add(60).to_string(),
            "started": time(from), "stopped": time(from + 1), "from_standby": false, "tablespaces": [], "parts": [],
            "manifest_size": "4", "plain_size": "0", "stored_size": "4",
        });
        let manifest = key(BackupObject::Manifest).to_string();
        let put = self.store.put_new(&manifest, STUB).await;
        let _outcome = put.unwrap();
        let put = self
            .repository()
            .put_json(&key(BackupObject::Descriptor), &document)
            .await;
        put.unwrap();
    }

    /// The roll-up of a log, as `change` makes it.
    pub(crate) fn roll_up(&self, log: u32, change: impl Fn(u64, &mut RolledUp)) -> RollUp {
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

    pub(crate) async fn put_roll_up(&self, log: u32, change: impl Fn(u64, &mut RolledUp)) {
        let roll_up = self.roll_up(log, change);
        self.repository().put_roll_up(&roll_up).await.unwrap();
    }

    /// Roll-ups of all logs before the one with segment `end`, and a backup a week.
    pub(crate) async fn roll_up_and_back_up(&self, end: u64) {
        for log in 0..u32::try_from(end / LOG).unwrap() {
            self.put_roll_up(log, |_, _| {}).await;
        }
        let weeks = u32::try_from(end / 1920 + 1).unwrap().min(52);
        for week in 0..weeks {
            self.backup(week, 1 + u64::from(week) * 1920).await;
        }
    }
}
