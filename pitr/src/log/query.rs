//! Which transactions are asked for (pure).

use wal_format::{Lsn, Timestamp};

use super::entry::{Described, Fate, RelationChange, Subject, describe};
use super::names::NameBook;
use super::scan::Ended;
use super::work::ClusterEvent;

/// What to look for. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Most transactions: the newest.
    pub last: usize,
    /// Committed at this time or later.
    pub since: Option<Timestamp>,
    /// Committed at this time or before.
    pub until: Option<Timestamp>,
    /// Commit record at this position or later.
    pub from: Option<Lsn>,
    /// Commit record before this position.
    pub to: Option<Lsn>,
    /// This transaction, or the one it was a subtransaction of.
    pub xid: Option<u32>,
    /// Touched this relation: `name` in whichever schema, `schema.name`, `database.schema.name`, or `tablespace/database/file`.
    pub relation: Option<String>,
    /// Dropped a relation, a database or a tablespace, or may have.
    pub drops: bool,
    /// Truncated a relation, or may have.
    pub truncates: bool,
    /// Deleted more rows than this.
    pub deletes_over: Option<u64>,
}

impl LogQuery {
    /// Whether a transaction is asked for; one whose beginning is not known yet, whether it could be.
    pub fn wants(&self, ended: &Ended, book: &NameBook) -> bool {
        let time = ended.record.time;
        let in_range = self.since.is_none_or(|since| time >= since)
            && self.until.is_none_or(|until| time <= until)
            && self.from.is_none_or(|from| ended.commit >= from)
            && self.to.is_none_or(|to| ended.commit < to)
            && self.xid.is_none_or(|xid| {
                ended.record.xid == xid || ended.record.subtransactions.contains(&xid)
            });
        if !in_range || !self.asks_for_contents() {
            return in_range;
        }
        ended.may_have_begun_before
            || (self.may_want_contents(ended) && self.wants_contents(&describe(ended, book)))
    }

    /// Whether what a transaction did could be what is asked for; quick, for most is not.
    fn may_want_contents(&self, ended: &Ended) -> bool {
        let (record, work) = (&ended.record, &ended.work);
        let dropped = record.dropped_relations.as_ref();
        let may_drop = !record.dropped_files.is_empty()
            || dropped.is_some_and(|dropped| !dropped.is_empty())
            || !work.events.is_empty();
        let may_truncate = !record.dropped_files.is_empty() || !work.truncated.is_empty();
        let deleted = || -> u64 { work.files.iter().map(|(_, file)| file.rows.deleted).sum() };
        (!self.drops || may_drop)
            && (!self.truncates || may_truncate)
            && self.deletes_over.is_none_or(|limit| deleted() > limit)
    }

    fn asks_for_contents(&self) -> bool {
        self.relation.is_some() || self.drops || self.truncates || self.deletes_over.is_some()
    }

    /// Whether what a transaction did is asked for.
    pub fn wants_contents(&self, did: &Described) -> bool {
        let relations = &did.relations;
        let has_fate = |fates: &[Fate]| {
            let mut all = relations.iter().filter_map(|change| change.fate);
            all.any(|fate| fates.contains(&fate))
        };
        let dropped_event = || {
            did.events.iter().any(|event| {
                matches!(
                    event.event,
                    ClusterEvent::DropDatabase(_) | ClusterEvent::DropTablespace(_)
                )
            })
        };
        let deleted: u64 = relations.iter().map(|change| change.rows.deleted).sum();
        (!self.drops || has_fate(&[Fate::Dropped, Fate::DroppedOrRewritten]) || dropped_event())
            && (!self.truncates || has_fate(&[Fate::Truncated, Fate::TruncatedOrRewritten]))
            && self.deletes_over.is_none_or(|limit| deleted > limit)
            && self
                .relation
                .as_ref()
                .is_none_or(|name| relations.iter().any(|change| is_named(change, name)))
    }
}

fn is_named(change: &RelationChange, wanted: &str) -> bool {
    match &change.subject {
        Subject::Named(named) => {
            let name = format!("{}.{}", named.schema, named.name);
            wanted == named.name
                || wanted == name
                || named
                    .database
                    .as_ref()
                    .is_some_and(|database| wanted == format!("{database}.{name}"))
        }
        Subject::File(file, _) => wanted == file.to_string(),
        Subject::Oid(database, oid, _) => wanted == format!("{database}/{oid}"),
    }
}
