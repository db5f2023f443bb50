//! How `walden log` prints: a block of text a transaction, or one JSON document.

use pitr::log::{
    Because, Birth, ClusterEvent, Count, EventChange, Fate, Hole, Log, LogEntry, NameSource,
    RelationChange, RowCounts, Subject, Target,
};
use serde_json::{Value, json};
use wal_format::{Lsn, TimelineHistory, TimelineId, Timestamp};

use crate::report;
use crate::units::{ByteSize, counted};

/// Relations of a transaction that are printed one by one; JSON has all that are known.
const MAX_LINES: usize = 20;

/// What the answer is printed with.
pub(super) struct Shown {
    /// The repository; `None` for a folder of segments.
    pub(super) repository: Option<String>,
    /// Which timeline a position is on.
    pub(super) history: TimelineHistory,
    /// First byte of WAL that each backup on the way needs, and where it is consistent.
    pub(super) backups: Vec<(Lsn, Lsn)>,
    /// Where WAL begins again behind each hole.
    pub(super) behind_holes: Vec<Lsn>,
    /// What a restore's command line needs besides the target.
    pub(super) arguments: String,
}

impl Shown {
    pub(super) fn of_folder(timeline: TimelineId) -> Self {
        Self {
            repository: None,
            history: TimelineHistory::parse(timeline, b"").unwrap_or(TimelineHistory::first()),
            backups: Vec::new(),
            behind_holes: Vec::new(),
            arguments: String::new(),
        }
    }

    /// Why a restore cannot get there, if it cannot.
    fn obstacle(&self, target: Lsn) -> Option<&'static str> {
        let holes = self.behind_holes.iter().copied();
        let hole = holes.filter(|behind| *behind <= target).max();
        let before = |(_, consistent): &&(Lsn, Lsn)| *consistent <= target;
        let mut before = self.backups.iter().filter(before).peekable();
        if before.peek().is_none() {
            return Some("no backup ends before that");
        }
        let joined = before.any(|(start, _)| hole.is_none_or(|behind| behind <= *start));
        (!joined).then_some("WAL between every backup and that is missing")
    }

    /// The command that restores to just before a transaction.
    fn command(&self, target: &Target) -> String {
        format!(
            "walden restore{} --to-lsn {} --exclusive -D NEW_DIRECTORY",
            self.arguments, target.lsn
        )
    }

    pub(super) fn to_json(&self, log: &Log) -> Value {
        let entries: Vec<Value> = log
            .entries
            .iter()
            .map(|entry| self.entry_to_json(entry, log.count))
            .collect();
        json!({
            "repository": self.repository,
            "from_lsn": log.from.map(|lsn| lsn.to_string()),
            "to_lsn": log.to.map(|lsn| lsn.to_string()),
            "segments_read": log.segments_read,
            "holes": log.holes.iter().map(hole_to_json).collect::<Vec<_>>(),
            "transactions": entries,
            "problems": log.problems,
            "warnings": log.warnings,
        })
    }

    fn entry_to_json(&self, entry: &LogEntry, count: Count) -> Value {
        let (ended, work) = (&entry.ended, &entry.ended.work);
        let target = |target: &Target| {
            json!({
                "lsn": target.lsn.to_string(),
                "exclusive": true,
                "transactions_lost": target.lost,
                "transactions_lost_is": count_word(count),
                "because": because_word(target.because),
                "reachable": self.repository.as_ref().map(|_| self.obstacle(target.lsn).is_none()),
                "command": self.command(target),
            })
        };
        json!({
            "xid": ended.record.xid,
            "gid": ended.record.gid,
            "committed": utc(entry.time()),
            "commit_lsn": ended.commit.to_string(),
            "end_lsn": ended.end.to_string(),
            "start_lsn": work.first.map(|lsn| lsn.to_string()),
            "timeline": self.history.timeline_at(ended.commit).get(),
            "is_complete": is_complete(entry),
            "database_oid": entry.database.as_ref().map(|(oid, _)| oid),
            "database": entry.database.as_ref().and_then(|(_, name)| name.as_deref()),
            "wal_bytes": work.bytes,
            "subtransactions": ended.subtransactions,
            "relations": entry.relations.iter().map(relation_to_json).collect::<Vec<_>>(),
            "rows_of_other_relations": rows_to_json(&work.other_rows),
            "catalog_rows": entry.catalog_rows,
            "events": entry.events.iter().map(event_to_json).collect::<Vec<_>>(),
            "target": target(&entry.target),
            "alternative": entry.alternative.as_ref().map(target),
        })
    }

    pub(super) fn to_text(&self, log: &Log) -> String {
        let mut text = String::new();
        for entry in &log.entries {
            text.push_str(&self.entry_to_text(entry, log.count));
            text.push('\n');
        }
        let looked_at = match (log.from, log.to) {
            (Some(from), Some(to)) => format!("WAL from {from} to {to} was read"),
            _ => "there is no WAL to read".to_owned(),
        };
        let found = match log.entries.len() {
            0 => "no such transaction".to_owned(),
            count => counted(count, "transaction"),
        };
        text.push_str(&format!("{found}; {looked_at}{}\n", but_for(&log.holes)));
        for problem in &log.problems {
            text.push_str(&format!("problem: {problem}\n"));
        }
        for warning in &log.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        text
    }

    fn entry_to_text(&self, entry: &LogEntry, count: Count) -> String {
        let (ended, work) = (&entry.ended, &entry.ended.work);
        let mut text = format!(
            "transaction {} at {}  {}\n",
            ended.record.xid,
            ended.commit,
            local(entry.time())
        );
        let mut line = |line: String| text.push_str(&format!("  {line}\n"));
        let database = match &entry.database {
            Some((_, Some(name))) => format!("database {name}, "),
            Some((oid, None)) => format!("database {oid}, "),
            None => String::new(),
        };
        let began = match work.first {
            Some(first) => format!(", began at {first}"),
            None => String::new(),
        };
        let timeline = self.history.timeline_at(ended.commit);
        line(format!(
            "{database}{} of WAL{began}, timeline {timeline}",
            ByteSize::new(work.bytes)
        ));
        if let Some(gid) = &ended.record.gid {
            line(format!("prepared as {gid:?}"));
        }
        for event in &entry.events {
            line(event_to_text(event));
        }
        for change in entry.relations.iter().take(MAX_LINES) {
            line(relation_to_text(change, entry));
        }
        if let Some(more) = entry
            .relations
            .len()
            .checked_sub(MAX_LINES)
            .filter(|more| *more > 0)
        {
            line(format!("and {more} more relations, see --json"));
        }
        if !work.other_rows.is_empty() {
            line(format!(
                "other relations: {}",
                rows_to_text(&work.other_rows)
            ));
        }
        if entry.relations.is_empty() && entry.events.is_empty() {
            line(match entry.catalog_rows {
                0 => "no rows".to_owned(),
                rows => format!("{} of system catalogs", counted(rows, "row")),
            });
        }
        for source in &entry.sources {
            line(source_to_text(source));
        }
        if !is_complete(entry) {
            line("it began in WAL that was not read: counts are what is known".to_owned());
        }
        self.targets_to_text(entry, count, &mut line);
        text
    }

    fn targets_to_text(&self, entry: &LogEntry, count: Count, line: &mut impl FnMut(String)) {
        for target in [Some(&entry.target), entry.alternative.as_ref()]
            .into_iter()
            .flatten()
        {
            let why = match (target.because, entry.alternative.is_some()) {
                (Because::Commit, false) => "just before it",
                (Because::Commit, true) => {
                    "just before it (readers of what it had locked wait until the server is promoted)"
                }
                (Because::Lock, false) => "just before it",
                (Because::Lock, true) => "or before it locked anything",
                (Because::ActsEarly, _) => "before it began to act, which was before its commit",
            };
            let obstacle = self.repository.as_ref().and(self.obstacle(target.lsn));
            if let Some(obstacle) = obstacle {
                line(format!(
                    "{why}: --to-lsn {} --exclusive, but {obstacle}",
                    target.lsn
                ));
                continue;
            }
            line(format!(
                "{why}, losing {}:",
                lost_to_text(target.lost, count)
            ));
            line(format!("  {}", self.command(target)));
        }
    }
}

/// What was not read, after what was.
fn but_for(holes: &[Hole]) -> String {
    let told: Vec<String> = holes
        .iter()
        .take(MAX_LINES)
        .map(|hole| format!("{} to {} ({})", hole.from, hole.to, hole.reason))
        .collect();
    let more = match holes.len().saturating_sub(told.len()) {
        0 => String::new(),
        more => format!("; and {more} more holes, see --json"),
    };
    match told.is_empty() {
        true => String::new(),
        false => format!(", BUT NOT from {}{more}", told.join("; nor from ")),
    }
}

fn hole_to_json(hole: &Hole) -> Value {
    json!({ "from_lsn": hole.from.to_string(), "to_lsn": hole.to.to_string(), "reason": hole.reason })
}

fn birth_to_text(birth: &Birth) -> String {
    format!(
        "created as {:?} in the schema with OID {}, from the WAL at {}",
        birth.name, birth.schema_oid, birth.lsn
    )
}

fn birth_to_json(birth: &Birth) -> Value {
    json!({
        "name": birth.name,
        "schema_oid": birth.schema_oid,
        "oid": birth.oid,
        "kind": birth.kind.to_string(),
        "name_from": "wal",
        "lsn": birth.lsn.to_string(),
    })
}

fn is_complete(entry: &LogEntry) -> bool {
    !entry.ended.may_have_begun_before && !entry.ended.work.overflowed
}

fn lost_to_text(lost: u64, count: Count) -> String {
    let transactions = match lost {
        0 => "no other transaction".to_owned(),
        1 => "1 other transaction".to_owned(),
        lost => format!("{lost} other transactions"),
    };
    match count {
        Count::Exact => transactions,
        Count::AtMost if lost > 0 => format!("at most {transactions}"),
        Count::AtMost => transactions,
        Count::AtLeast => format!("{transactions} and those that were not counted"),
    }
}

fn relation_to_text(change: &RelationChange, entry: &LogEntry) -> String {
    let name = match &change.subject {
        Subject::Named(named) => {
            let own = entry.database.as_ref().map(|(oid, _)| *oid) == Some(named.database_oid);
            match &named.database {
                Some(database) if !own => format!("{database}.{}.{}", named.schema, named.name),
                _ => format!("{}.{}", named.schema, named.name),
            }
        }
        Subject::File(file, Some(birth)) => format!("{file} ({})", birth_to_text(birth)),
        Subject::File(file, None) => format!("{file} (no name known)"),
        Subject::Oid(database, oid, Some(birth)) => {
            let born = birth_to_text(birth);
            format!("relation {oid} of database {database} ({born})")
        }
        Subject::Oid(database, oid, None) => {
            format!("relation {oid} of database {database} (no name known)")
        }
    };
    let mut words = Vec::new();
    if let Some(fate) = change.fate {
        words.push(fate_to_text(fate).to_owned());
    }
    if !change.rows.is_empty() {
        words.push(rows_to_text(&change.rows));
    }
    let dependents = match change.dependents {
        0 => String::new(),
        1 => ", with 1 index or TOAST table".to_owned(),
        count => format!(", with {count} indexes and TOAST tables"),
    };
    format!("{name}: {}{dependents}", words.join(", "))
}

fn fate_to_text(fate: Fate) -> &'static str {
    match fate {
        Fate::Created => "created",
        Fate::CreatedOrRewritten => "created, or new file of a rewritten one",
        Fate::Dropped => "DROPPED",
        Fate::DroppedOrRewritten => "DROPPED or rewritten",
        Fate::Truncated => "TRUNCATED",
        Fate::Rewritten => "rewritten",
        Fate::TruncatedOrRewritten => "TRUNCATED or rewritten",
    }
}

fn rows_to_text(rows: &RowCounts) -> String {
    let words = [
        (rows.inserted, "inserted"),
        (rows.updated, "updated"),
        (rows.deleted, "deleted"),
    ];
    let words = words.iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = words
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    words.join(", ")
}

fn source_to_text(source: &NameSource) -> String {
    match source {
        NameSource::Snapshot { label } => format!("names as in backup {label}"),
        NameSource::Rewritten { label } => {
            format!("names as in backup {label}, followed through rewrites")
        }
        NameSource::Later { label } => format!("names as in the later backup {label}"),
    }
}

fn event_to_text(event: &EventChange) -> String {
    let (what, kind, oid) = event_parts(event.event);
    let what = match what {
        "dropped" => "DROPPED",
        other => other,
    };
    match &event.name {
        Some(name) => format!("{kind} {name} (OID {oid}): {what}"),
        None => format!("{kind} with OID {oid}: {what}"),
    }
}

fn event_parts(event: ClusterEvent) -> (&'static str, &'static str, u32) {
    match event {
        ClusterEvent::CreateDatabase(oid) => ("created", "database", oid),
        ClusterEvent::MoveDatabase(oid) => ("moved", "database", oid),
        ClusterEvent::DropDatabase(oid) => ("dropped", "database", oid),
        ClusterEvent::CreateTablespace(oid) => ("created", "tablespace", oid),
        ClusterEvent::DropTablespace(oid) => ("dropped", "tablespace", oid),
    }
}

fn event_to_json(event: &EventChange) -> Value {
    let (what, kind, oid) = event_parts(event.event);
    json!({ "kind": kind, "oid": oid, "name": event.name, "what": what })
}

fn relation_to_json(change: &RelationChange) -> Value {
    let mut value = match &change.subject {
        Subject::Named(named) => {
            let (source, label) = match &named.source {
                NameSource::Snapshot { label } => ("snapshot", label),
                NameSource::Rewritten { label } => ("snapshot-and-rewrites", label),
                NameSource::Later { label } => ("later-snapshot", label),
            };
            json!({
                "database": named.database,
                "schema": named.schema,
                "name": named.name,
                "oid": named.oid,
                "kind": named.kind.to_string(),
                "name_from": source,
                "name_from_backup": label,
            })
        }
        Subject::File(file, birth) => json!({
            "file": file.to_string(),
            "tablespace_oid": file.tablespace,
            "database_oid": file.database,
            "created_as": birth.as_ref().map(birth_to_json),
        }),
        Subject::Oid(database, oid, birth) => json!({
            "database_oid": database,
            "oid": oid,
            "created_as": birth.as_ref().map(birth_to_json),
        }),
    };
    if let Value::Object(fields) = &mut value {
        fields.insert("rows".into(), rows_to_json(&change.rows));
        fields.insert("fate".into(), change.fate.map(fate_word).into());
        fields.insert("dependents".into(), change.dependents.into());
    }
    value
}

fn rows_to_json(rows: &RowCounts) -> Value {
    json!({ "inserted": rows.inserted, "updated": rows.updated, "deleted": rows.deleted })
}

fn fate_word(fate: Fate) -> &'static str {
    match fate {
        Fate::Created => "created",
        Fate::CreatedOrRewritten => "created-or-rewritten",
        Fate::Dropped => "dropped",
        Fate::DroppedOrRewritten => "dropped-or-rewritten",
        Fate::Truncated => "truncated",
        Fate::Rewritten => "rewritten",
        Fate::TruncatedOrRewritten => "truncated-or-rewritten",
    }
}

fn count_word(count: Count) -> &'static str {
    match count {
        Count::Exact => "exact",
        Count::AtMost => "at-most",
        Count::AtLeast => "at-least",
    }
}

fn because_word(because: Because) -> &'static str {
    match because {
        Because::Commit => "commit",
        Because::Lock => "lock",
        Because::ActsEarly => "acts-before-commit",
    }
}

fn utc(time: Timestamp) -> String {
    pitr::time::format_utc(time)
}

fn local(time: Timestamp) -> String {
    match jiff::Timestamp::from_microsecond(time.unix_micros()) {
        Ok(timestamp) => report::time(timestamp),
        Err(_) => utc(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_needs_a_backup_before_it_and_no_hole_between() {
        let lsn = Lsn::new;
        let shown = Shown {
            backups: vec![(lsn(10), lsn(20)), (lsn(60), lsn(70))],
            behind_holes: vec![lsn(40), lsn(90)],
            ..Shown::of_folder(TimelineId::FIRST)
        };
        let obstacle = |at| shown.obstacle(lsn(at)).unwrap_or_default();
        assert!(obstacle(19).contains("no backup"));
        assert_eq!(obstacle(20), "");
        assert_eq!(obstacle(39), "");
        assert!(obstacle(40).contains("is missing"));
        assert!(obstacle(69).contains("is missing"));
        assert_eq!(obstacle(70), "");
        assert!(obstacle(95).contains("is missing"));
    }
}
