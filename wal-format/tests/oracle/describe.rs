//! What the crate says of a record, in the words of `pg_waldump`. Written from the `*_desc` functions of `src/backend/access/rmgrdesc`.

use crate::waldump::text_of;
use std::fmt::Write as _;
use wal_format::{
    Action, BlockReference, Checkpoint, Fork, Invalidation, List, Major, OriginPosition,
    RecordKind, RelationLocator, TransactionEnd, TransactionId,
};

/// Whether the crate reads what records of that kind did.
pub(crate) fn is_read(manager: &str, name: &str) -> bool {
    match manager {
        "XLOG" | "Transaction" | "Storage" | "Database" | "Tablespace" | "RelMap" | "Standby"
        | "LogicalMessage" => true,
        "Heap" => matches!(name, "TRUNCATE" | "INPLACE"),
        "Heap2" => name.starts_with("MULTI_INSERT"),
        _ => false,
    }
}

/// A description without what the crate does not read.
pub(crate) fn comparable(name: &str, text: &str) -> String {
    if name.starts_with("MULTI_INSERT") {
        // "7 tuples flags 0x02" or "ntuples: 7, flags: 0x02, offsets: [1, 2]": the first number.
        let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        return digits
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap_or("")
            .to_owned();
    }
    let left_out = |part: &str| {
        [
            "dropped stats",
            "commit dropped stats",
            "abort dropped stats",
            "relcache init file inval",
            "apply_feedback",
            "sync",
            "subxid ov",
        ]
        .iter()
        .any(|start| part.starts_with(start))
            || name == "END_OF_RECOVERY" && part.starts_with("wal_level")
    };
    let parts = text.split("; ").map(str::trim).map(|part| match part {
        payload if payload.starts_with("payload (") => payload.split(':').next().unwrap_or(""),
        other => other,
    });
    let parts: Vec<&str> = parts
        .filter(|part| !part.is_empty() && !left_out(part))
        .collect();
    parts.join("; ")
}

/// What recovery's reading of a record says must be what the log's reading says.
pub(crate) fn check_kind(kind: Option<&RecordKind>, action: &Action<'_>) {
    let same_gid = |gid: &Option<String>, end: &TransactionEnd<'_>| {
        gid.as_ref().map(String::as_bytes) == end.gid
    };
    let agrees = match (kind, action) {
        (Some(RecordKind::Commit { xid, time }), Action::Commit(end))
        | (Some(RecordKind::Abort { xid, time }), Action::Abort(end)) => {
            (*xid, *time, false) == (end.xid, end.time, end.is_prepared)
        }
        (Some(RecordKind::CommitPrepared { xid, time, gid }), Action::Commit(end))
        | (Some(RecordKind::AbortPrepared { xid, time, gid }), Action::Abort(end)) => {
            (*xid, *time, true) == (end.xid, end.time, end.is_prepared) && same_gid(gid, end)
        }
        (Some(RecordKind::Prepare { xid, time, gid }), Action::Prepare(end)) => {
            (*xid, *time, gid.as_bytes()) == (end.xid, end.time, end.gid)
        }
        (Some(kind), Action::Recovery(same)) => kind == same,
        (None, Action::Commit(_) | Action::Abort(_) | Action::Prepare(_) | Action::Recovery(_)) => {
            false
        }
        (None, _) => true,
        (Some(_), _) => false,
    };
    assert!(agrees, "{kind:?} {action:?}");
}

pub(crate) fn block_text(block: &BlockReference, major: Major) -> String {
    let mut text = format!(
        "blkref #{}: rel {} fork {} blk {}",
        block.id, block.relation, block.fork, block.block
    );
    if let Some(image) = block.image {
        let purpose = if image.apply {
            ""
        } else {
            " for WAL verification"
        };
        write!(
            text,
            " (FPW{purpose}); hole: offset: {}, length: {}",
            image.hole_offset, image.hole_length
        )
        .expect("text");
        if let Some(compression) = image.compression {
            let saved = 8192 - u32::from(image.hole_length) - u32::from(image.length);
            write!(text, ", compression saved: {saved}").expect("text");
            if major > Major::V14 {
                write!(text, ", method: {compression}").expect("text");
            }
        }
    }
    text
}

/// The description of a record, `origin` being the number of the replication origin that it carries.
pub(crate) fn describe(action: &Action<'_>, origin: u16, major: Major) -> String {
    match action {
        Action::Commit(end) | Action::Abort(end) => end_text(end, origin, major),
        Action::Prepare(prepared) => {
            let gid = String::from_utf8_lossy(prepared.gid);
            let mut text = format!("gid {gid}: {}", text_of(prepared.time));
            text += &files_text("rels(commit)", prepared.dropped_by_commit, major);
            text += &files_text("rels(abort)", prepared.dropped_by_abort, major);
            text += &xids_text("; subxacts:", prepared.subtransactions);
            text += &invalidations_text(prepared.invalidations);
            let position = prepared.origin.filter(|_| origin != 0);
            text + &origin_text(origin, position)
        }
        Action::AssignSubtransactions {
            top_level,
            subtransactions,
        } => format!(
            "xtop {top_level}: {}",
            xids_text("subxacts:", *subtransactions)
        ),
        Action::Invalidate { messages, .. } => invalidations_text(*messages),
        Action::MultiInsert { rows } => rows.to_string(),
        Action::Truncate {
            relations,
            cascade,
            restart_identity,
            ..
        } => truncate_text(*relations, *cascade, *restart_identity, major),
        Action::UpdateInPlace { row, invalidations } => {
            let colon = if major < Major::V16 { "" } else { ":" };
            format!("off{colon} {row}{}", invalidations_text(*invalidations))
        }
        Action::CreateFile { relation, fork } => path(*relation, *fork, major),
        Action::TruncateFile {
            relation,
            blocks,
            main,
            visibility_map,
            free_space_map,
        } => format!(
            "{} to {blocks} blocks flags {}",
            path(*relation, Fork::Main, major),
            u8::from(*main) + 2 * u8::from(*visibility_map) + 4 * u8::from(*free_space_map)
        ),
        Action::CreateDatabase {
            database,
            tablespace,
            copied_from: Some((source, source_tablespace)),
        } => format!("copy dir {source_tablespace}/{source} to {tablespace}/{database}"),
        Action::CreateDatabase {
            database,
            tablespace,
            copied_from: None,
        } => format!("create dir {tablespace}/{database}"),
        Action::DropDatabase {
            database,
            tablespaces,
        } => {
            let folders = tablespaces
                .iter()
                .map(|tablespace| format!(" {tablespace}/{database}"));
            format!("dir{}", folders.collect::<String>())
        }
        Action::CreateTablespace { tablespace, path } => {
            format!("{tablespace} \"{}\"", String::from_utf8_lossy(path))
        }
        Action::DropTablespace { tablespace } => tablespace.to_string(),
        Action::UpdateRelationMap {
            database,
            tablespace,
            length,
        } => format!("database {database} tablespace {tablespace} size {length}"),
        Action::LogicalMessage {
            transactional,
            prefix,
            length,
            ..
        } => {
            let kind = if *transactional { "" } else { "non-" };
            let prefix = String::from_utf8_lossy(prefix);
            format!("{kind}transactional, prefix \"{prefix}\"; payload ({length} bytes)")
        }
        Action::ExclusiveLocks(locks) => {
            let text = |lock: wal_format::ExclusiveLock| {
                format!(
                    "xid {} db {} rel {}",
                    lock.xid, lock.database, lock.relation
                )
            };
            locks.iter().map(text).collect::<Vec<_>>().join(" ")
        }
        Action::RunningTransactions(running) => {
            let mut text = format!(
                "nextXid {} latestCompletedXid {} oldestRunningXid {}",
                running.next_xid, running.newest_ended, running.oldest_running
            );
            let count = running.transactions.len();
            text += &xids_text(&format!("; {count} xacts:"), running.transactions);
            if major >= Major::V16 {
                let count = running.subtransactions.len();
                text += &xids_text(&format!("; {count} subxacts:"), running.subtransactions);
            }
            text
        }
        Action::Recovery(kind) => recovery_text(kind),
        Action::NextOid(oid) => oid.to_string(),
        Action::FullPageWrites(on) => on.to_string(),
        Action::CheckpointRedo { wal_level } => format!("wal_level {wal_level}"),
        Action::FullPageImages { .. } | Action::Other => String::new(),
        other => format!("{other:?}"),
    }
}

fn end_text(end: &TransactionEnd<'_>, origin: u16, major: Major) -> String {
    let mut text = String::new();
    if end.is_prepared {
        write!(text, "{}: ", end.xid).expect("text");
    }
    text += &text_of(end.time);
    text += &files_text("rels", end.dropped, major);
    text += &xids_text("; subxacts:", end.subtransactions);
    text += &invalidations_text(end.invalidations);
    text + &origin_text(origin, end.origin)
}

fn origin_text(origin: u16, position: Option<OriginPosition>) -> String {
    position.map_or_else(String::new, |position| {
        let (lsn, time) = (position.lsn, text_of(position.time));
        format!("; origin: node {origin}, lsn {lsn}, at {time}")
    })
}

fn xids_text(label: &str, xids: List<'_, TransactionId>) -> String {
    if xids.is_empty() {
        return String::new();
    }
    let mut text = label.to_owned();
    for xid in xids.iter() {
        write!(text, " {xid}").expect("text");
    }
    text
}

fn files_text(label: &str, files: List<'_, RelationLocator>, major: Major) -> String {
    if files.is_empty() {
        return String::new();
    }
    let paths = files
        .iter()
        .map(|file| format!(" {}", path(file, Fork::Main, major)));
    format!("; {label}:{}", paths.collect::<String>())
}

fn invalidations_text(messages: List<'_, Invalidation>) -> String {
    if messages.is_empty() {
        return String::new();
    }
    let texts = messages.iter().map(|message| match message {
        Invalidation::CatalogRow { cache, .. } => format!(" catcache {cache}"),
        Invalidation::Catalog { catalog, .. } => format!(" catalog {catalog}"),
        Invalidation::Relation { relation, .. } => format!(" relcache {relation}"),
        Invalidation::File(_) => " smgr".to_owned(),
        Invalidation::RelationMap { database } => format!(" relmap db {database}"),
        Invalidation::Snapshot { relation, .. } => format!(" snapshot {relation}"),
        Invalidation::RelationSync { relation, .. } => format!(" relsync {relation}"),
        other => format!(" {other:?}"),
    });
    format!("; inval msgs:{}", texts.collect::<String>())
}

fn truncate_text(relations: List<'_, u32>, cascade: bool, restart: bool, major: Major) -> String {
    let oids: Vec<String> = relations.iter().map(|oid| oid.to_string()).collect();
    let count = oids.len();
    if major < Major::V16 {
        let cascade = if cascade { "cascade " } else { "" };
        let restart = if restart { "restart_seqs " } else { "" };
        return format!(
            "{cascade}{restart}nrelids {count} relids {}",
            oids.join(" ")
        );
    }
    let flags = [(cascade, "CASCADE"), (restart, "RESTART_SEQS")];
    let flags: Vec<&str> = flags
        .iter()
        .filter(|flag| flag.0)
        .map(|flag| flag.1)
        .collect();
    format!(
        "flags: [{}], nrelids: {count}, relids: [{}]",
        flags.join(", "),
        oids.join(", ")
    )
}

/// Where the file is in a data directory.
fn path(file: RelationLocator, fork: Fork, major: Major) -> String {
    let RelationLocator {
        tablespace,
        database,
        relation,
    } = file;
    let suffix = match fork {
        Fork::Main => String::new(),
        other => format!("_{other}"),
    };
    match tablespace {
        1664 => format!("global/{relation}{suffix}"),
        1663 => format!("base/{database}/{relation}{suffix}"),
        _ => {
            let version = format!("PG_{major}_{}", major.catalog_version());
            format!("pg_tblspc/{tablespace}/{version}/{database}/{relation}{suffix}")
        }
    }
}

fn recovery_text(kind: &RecordKind) -> String {
    match kind {
        RecordKind::RestorePoint { name, .. } => name.clone(),
        RecordKind::CheckpointOnline(checkpoint) => {
            format!("{}; online", checkpoint_text(checkpoint))
        }
        RecordKind::CheckpointShutdown(checkpoint) => {
            format!("{}; shutdown", checkpoint_text(checkpoint))
        }
        RecordKind::Switch => String::new(),
        RecordKind::BackupEnd { start } => start.to_string(),
        RecordKind::EndOfRecovery {
            time,
            timeline,
            previous_timeline,
        } => format!(
            "tli {timeline}; prev tli {previous_timeline}; time {}",
            text_of(*time)
        ),
        RecordKind::ParameterChange(p) => format!(
            "max_connections={} max_worker_processes={} max_wal_senders={} max_prepared_xacts={} \
             max_locks_per_xact={} wal_level={} wal_log_hints={} track_commit_timestamp={}",
            p.max_connections,
            p.max_worker_processes,
            p.max_wal_senders,
            p.max_prepared_transactions,
            p.max_locks_per_transaction,
            p.wal_level,
            on_off(p.wal_log_hints),
            on_off(p.track_commit_timestamp),
        ),
        RecordKind::OverwriteContrecord { overwritten, time } => {
            format!("lsn {overwritten}; time {}", text_of(*time))
        }
        other => format!("{other:?}"),
    }
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn checkpoint_text(c: &Checkpoint) -> String {
    let wal_level = c
        .wal_level
        .map(|level| format!(" wal_level {level};"))
        .unwrap_or_default();
    format!(
        "redo {}; tli {}; prev tli {}; fpw {};{wal_level} xid {}:{}; oid {}; multi {}; offset {}; oldest xid {} in DB {}; \
         oldest multi {} in DB {}; oldest/newest commit timestamp xid: {}/{}; oldest running xid {}",
        c.redo,
        c.timeline,
        c.previous_timeline,
        c.full_page_writes,
        c.next_full_xid >> 32,
        c.next_full_xid & 0xFFFF_FFFF,
        c.next_oid,
        c.next_multixact,
        c.next_multixact_offset,
        c.oldest_xid,
        c.oldest_xid_database,
        c.oldest_multixact,
        c.oldest_multixact_database,
        c.oldest_commit_timestamp_xid,
        c.newest_commit_timestamp_xid,
        c.oldest_active_xid,
    )
}
