//! WAL that is made for a test, in a store of its own, and the workload that most tests plan over.

use pitr::assemble::{Chunk, assemble_tail};
use pitr::error::Result;
use pitr::plan::{BackupFacts, Piece, PieceSource, RecoveryPlan, WalPath};
use pitr::search::{PieceBytes, PlanRequest, WalSource, plan_recovery};
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

pub(crate) const SIZE: SegmentSize = SegmentSize::MIN;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const CONFIG: DecoderConfig = DecoderConfig {
    segment_size: SIZE,
    system_identifier: None,
    major: None,
};

pub(crate) fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

/// A store of WAL: bytes by name, and names as a catalogue.
pub(crate) struct World {
    pub(crate) wal: BTreeMap<SegmentName, Vec<u8>>,
    pub(crate) tails: BTreeMap<SegmentName, Vec<(u32, Vec<u8>)>>,
    pub(crate) descriptors: BTreeMap<SegmentName, WalDescriptor>,
    pub(crate) catalog: Catalog,
    pub(crate) path: WalPath,
    pub(crate) backups: Vec<BackupFacts>,
    pub(crate) fetched: Mutex<BTreeSet<SegmentName>>,
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
    pub(crate) fn new(bytes: &[u8]) -> Self {
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

    pub(crate) fn name(&self, timeline: TimelineId, number: u64) -> SegmentName {
        self.path
            .name(timeline, wal_format::SegmentNumber::new(number))
    }

    pub(crate) fn store(&mut self, timeline: TimelineId, first: u64, bytes: &[u8]) {
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
    pub(crate) fn branch(&mut self, child: u32, at: Lsn) {
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

    pub(crate) fn backup(&mut self, start: Lsn, stop: Lsn, stopped: i64) {
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

    pub(crate) fn forget(&mut self, timeline: TimelineId, number: u64) {
        let name = self.name(timeline, number);
        let objects = self.catalog.timelines.get_mut(&timeline).unwrap();
        assert!(objects.segments.remove(&name).is_some() | objects.tails.remove(&name).is_some());
    }

    pub(crate) fn plan(&self, target: RecoveryTarget, inclusive: bool) -> Result<RecoveryPlan> {
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

    pub(crate) fn stop(&self, target: RecoveryTarget, inclusive: bool) -> Lsn {
        self.plan(target, inclusive).unwrap().stop.record
    }

    pub(crate) fn failure(&self, target: RecoveryTarget) -> (ErrorClass, String) {
        let error = self.plan(target, true).unwrap_err();
        (error.class(), error.to_string())
    }
}

/// Six segments and a half with a commit every 200 kB or so; commit `n` has xid 100 + n and time n * 1000, but every seventh is late.
pub(crate) struct Workload {
    pub(crate) bytes: Vec<u8>,
    pub(crate) records: Vec<Record>,
}

pub(crate) fn time_of(n: i64) -> i64 {
    n * 1000 + if n % 7 == 0 { 2500 } else { 0 }
}

pub(crate) fn workload() -> Workload {
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

pub(crate) fn world() -> (World, Vec<Record>) {
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
