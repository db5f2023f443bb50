//! What decoding says of stored WAL: whether every record is valid and every page in its place, whether the descriptor tells the truth, and
//! which transactions stay prepared (pure).

use super::memory::Prepared;
use repository::descriptor::WalDescriptor;
use repository::wal::describe_segment;
use std::collections::BTreeMap;
use wal_format::{
    Lsn, RecordKind, SegmentScanner, SegmentSummary, Step, TimelineHistory, TimelineId,
};

/// Something about a prepared transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TwoPhase {
    Prepared(Prepared),
    Ended(u32),
}

/// A stretch of WAL, decoded.
pub(crate) struct Decoded {
    /// Goes on with what follows.
    pub(crate) scanner: SegmentScanner,
    pub(crate) summary: SegmentSummary,
    pub(crate) records: u64,
    /// In WAL order, with the start of the record.
    pub(crate) two_phase: Vec<(Lsn, TwoPhase)>,
    /// The first page that another timeline must have written: its address, and both.
    pub(crate) misfit: Option<(Lsn, TimelineId, TimelineId)>,
}

/// Decodes a segment, or the beginning of one, from the scanner's position on.
pub(crate) fn decode(
    mut scanner: SegmentScanner,
    bytes: &[u8],
    history: &TimelineHistory,
) -> Decoded {
    let mut records = 0;
    let mut two_phase = Vec::new();
    let mut misfit = None;
    scanner.push(bytes, |step| match step {
        Step::Page(page) => {
            let owner = history.timeline_at(page.address);
            if page.timeline != owner && misfit.is_none() {
                misfit = Some((page.address, page.timeline, owner));
            }
        }
        Step::Record(record) => {
            records += 1;
            match &record.kind {
                Some(RecordKind::Prepare { xid, gid, .. }) => {
                    let prepared = Prepared {
                        name: gid.clone(),
                        xid: xid.0,
                        lsn: record.start.to_string(),
                    };
                    two_phase.push((record.start, TwoPhase::Prepared(prepared)));
                }
                Some(
                    RecordKind::CommitPrepared { xid, .. } | RecordKind::AbortPrepared { xid, .. },
                ) => two_phase.push((record.start, TwoPhase::Ended(xid.0))),
                _ => {}
            }
        }
        _ => {}
    });
    let summary = match scanner.missing() {
        0 => scanner.finish_segment(),
        _ => None,
    };
    let summary = summary.unwrap_or_else(|| scanner.summary());
    Decoded {
        scanner,
        summary,
        records,
        two_phase,
        misfit,
    }
}

/// The first fact in which a descriptor differs from what decoding its segment said.
pub(crate) fn contradiction(described: &WalDescriptor, summary: &SegmentSummary) -> Option<String> {
    let actual = describe_segment(summary, &described.lineage);
    let positions = [
        ("first record", described.first_record, actual.first_record),
        (
            "link of the first record",
            described.first_record_prev,
            actual.first_record_prev,
        ),
        (
            "record that the first one replaces",
            described.first_record_overwrites,
            actual.first_record_overwrites,
        ),
        ("last record", described.last_record, actual.last_record),
        (
            "place where WAL is not valid",
            described.invalid_at,
            actual.invalid_at,
        ),
    ];
    let show = |lsn: Option<Lsn>| lsn.map_or_else(|| "none".to_owned(), |lsn| lsn.to_string());
    for (what, said, is) in positions {
        if said != is {
            return Some(format!(
                "it says of its {what}: {}, but it is {}",
                show(said),
                show(is)
            ));
        }
    }
    // Who began to decode here did not see what a record that began before is.
    let comparable = described.incomplete == actual.incomplete;
    let count = |wal: &WalDescriptor| wal.transactions.unwrap_or(0);
    let times = |wal: &WalDescriptor| (wal.time_min, wal.time_max);
    if comparable && described.transactions.is_some() {
        if count(described) != count(&actual) {
            return Some(format!(
                "it says that {} transactions end in it, and {} do",
                count(described),
                count(&actual)
            ));
        }
        if times(described) != times(&actual) {
            return Some("its transactions have other times than it says".to_owned());
        }
    }
    None
}

/// Transactions that are prepared and open, by number, and the sets with which child timelines begin.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenTransactions {
    open: BTreeMap<u32, Prepared>,
    /// Where children leave the timeline, in WAL order.
    forks: Vec<(Lsn, TimelineId)>,
    at_forks: BTreeMap<u32, Vec<Prepared>>,
}

impl OpenTransactions {
    /// Begins with those that are open already.
    pub(crate) fn new(open: Vec<Prepared>, mut forks: Vec<(Lsn, TimelineId)>) -> Self {
        forks.sort_unstable();
        Self {
            open: open
                .into_iter()
                .map(|prepared| (prepared.xid, prepared))
                .collect(),
            forks,
            at_forks: BTreeMap::new(),
        }
    }

    /// Takes what happened at `lsn`.
    pub(crate) fn note(&mut self, lsn: Lsn, event: TwoPhase) {
        while let Some((switch, child)) = self.forks.first().copied()
            && switch <= lsn
        {
            self.at_forks.insert(child.get(), self.list());
            self.forks.remove(0);
        }
        match event {
            TwoPhase::Prepared(prepared) => {
                self.open.insert(prepared.xid, prepared);
            }
            TwoPhase::Ended(xid) => {
                self.open.remove(&xid);
            }
        }
    }

    pub(crate) fn list(&self) -> Vec<Prepared> {
        self.open.values().cloned().collect()
    }

    /// What is open where each child begins that does so up to `end`.
    pub(crate) fn forks(&self, end: Option<Lsn>) -> BTreeMap<u32, Vec<Prepared>> {
        let mut forks = self.at_forks.clone();
        let ahead = self
            .forks
            .iter()
            .filter(|(switch, _)| end.is_none_or(|end| *switch <= end));
        for (_, child) in ahead {
            forks.insert(child.get(), self.list());
        }
        forks
    }

    /// Takes over what is known of children that begin earlier.
    pub(crate) fn remember(&mut self, forks: BTreeMap<u32, Vec<Prepared>>) {
        self.at_forks.extend(forks);
    }
}
