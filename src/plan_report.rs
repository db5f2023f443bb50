//! A recovery plan as text and as JSON: what `walden restore` shows before it writes anything.

use std::fmt::Write;

use pitr::plan::{PieceSource, RecoveryPlan};
use pitr::time::format_utc;
use repository::backup::BackupDescriptor;
use serde_json::{Value, json};

use crate::units::{ByteSize, counted};

/// The plan for people.
pub(crate) fn to_text(plan: &RecoveryPlan, backup: &BackupDescriptor, target: &str) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        writeln!(text, "{name:<18} {value}").expect("a string takes any text");
    };
    line("target", target.to_owned());
    line(
        "backup",
        format!(
            "{} ({}, PostgreSQL {})",
            backup.label,
            ByteSize::new(backup.plain_size),
            backup.server_version
        ),
    );
    line(
        "download",
        format!(
            "{} in {}",
            ByteSize::new(backup.stored_size),
            counted(backup.parts.len(), "part")
        ),
    );
    let timelines: Vec<String> = plan
        .path
        .timelines()
        .map(|timeline| timeline.to_string())
        .collect();
    line(
        "timelines",
        timelines.into_iter().rev().collect::<Vec<_>>().join(", "),
    );
    line(
        "WAL",
        format!(
            "{} from {} to {}",
            counted(plan.pieces.len(), "segment"),
            plan.backup.start_lsn,
            plan.stop.needed_to
        ),
    );
    if plan
        .pieces
        .iter()
        .any(|piece| matches!(piece.source, PieceSource::Open { .. }))
    {
        line("", "the last one from tail chunks".to_owned());
    }
    line("stops after", format!("the record at {}", plan.stop.record));
    if let Some(time) = plan.newest_transaction {
        line("last transaction", format_utc(time));
    }
    if let Some(after) = plan.transactions_after {
        line(
            "will be gone",
            format!("{} stored after it", counted(after, "transaction")),
        );
    }
    if !plan.prepared_open.is_empty() {
        line("stay prepared", plan.prepared_open.join(", "));
    }
    for tablespace in &backup.tablespaces {
        line(
            "tablespace",
            format!("{} {}", tablespace.oid, tablespace.location),
        );
    }
    line("window", plan.window.to_string());
    line("note", "unlogged tables come back empty".to_owned());
    text
}

/// The plan for programs.
pub(crate) fn to_json(plan: &RecoveryPlan, backup: &BackupDescriptor, target: &str) -> Value {
    let moment = |moment: Option<pitr::window::Moment>| {
        moment.map(|moment| {
            json!({ "lsn": moment.lsn.to_string(), "timeline": moment.timeline.get(), "time": moment.time.map(format_utc) })
        })
    };
    json!({
        "target": target,
        "backup": backup.label,
        "server_version": backup.server_version,
        "plain_bytes": backup.plain_size,
        "stored_bytes": backup.stored_size,
        "parts": backup.parts.len(),
        "timeline": plan.path.history.timeline().get(),
        "wal_segments": plan.pieces.len(),
        "start_lsn": plan.backup.start_lsn.to_string(),
        "consistent_lsn": plan.backup.stop_lsn.to_string(),
        "stop_record_lsn": plan.stop.record.to_string(),
        "end_lsn": plan.stop.needed_to.to_string(),
        "newest_transaction": plan.newest_transaction.map(format_utc),
        "transactions_after": plan.transactions_after,
        "prepared_open": plan.prepared_open,
        "window": { "earliest": moment(plan.window.earliest), "latest": moment(plan.window.latest) },
    })
}
