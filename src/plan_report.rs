//! A recovery plan as text and as JSON: what `walden restore` shows before it writes anything.

use std::fmt::Write;

use pitr::plan::{PieceSource, RecoveryPlan};
use pitr::time::format_utc;
use repository::backup::BackupDescriptor;
use serde_json::{Value, json};

use crate::units::{ByteSize, counted};

/// What is shown of a plan.
pub(crate) struct PlanReport<'a> {
    /// The plan.
    pub(crate) plan: &'a RecoveryPlan,
    /// Its backup.
    pub(crate) backup: &'a BackupDescriptor,
    /// The target in the user's words.
    pub(crate) target: &'a str,
    /// Objects that it reads, and their stored bytes.
    pub(crate) cost: (u64, u64),
}

/// A line of what is shown for people.
pub(crate) fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a string cannot fail.
    writeln!(text, "{name:<18} {value}").expect("a string takes any text");
}

impl PlanReport<'_> {
    /// The plan for people.
    pub(crate) fn to_text(&self) -> String {
        let Self {
            plan,
            backup,
            target,
            cost: (objects, bytes),
        } = self;
        let mut text = String::new();
        let mut line = |name: &str, value: String| line(&mut text, name, &value);
        line("target", (*target).to_owned());
        line(
            "backup",
            format!(
                "{} ({}, {}, PostgreSQL {})",
                backup.label,
                backup.kind,
                ByteSize::new(backup.plain_size),
                backup.server_version
            ),
        );
        line(
            "download",
            format!(
                "{} in {}: the backup's {} in {}, the rest WAL",
                ByteSize::new(*bytes),
                counted(*objects, "object"),
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
    pub(crate) fn to_json(&self) -> Value {
        let Self {
            plan,
            backup,
            target,
            cost: (objects, bytes),
        } = self;
        let moment = |moment: Option<pitr::window::Moment>| {
            moment.map(|moment| {
            json!({ "lsn": moment.lsn.to_string(), "timeline": moment.timeline.get(), "time": moment.time.map(format_utc) })
        })
        };
        json!({
            "target": target,
            "backup": backup.label,
            // What is laid out one after the other, the full backup first.
            "chain": [backup.label],
            "server_version": backup.server_version,
            "plain_bytes": backup.plain_size,
            "stored_bytes": backup.stored_size,
            "parts": backup.parts.len(),
            "objects": objects,
            "download_bytes": bytes,
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
}
