//! What `walden copy` reports: counts cluster by cluster, what did not get over and why, and the exit code that follows.

use std::time::Duration;

use repository::Repository;
use repository::copy::{CopyReport, Failed, Missing};
use repository::key::{BackupLabel, ClusterId};
use serde_json::{Value, json};
use wal_format::Lsn;

use crate::exit_code::ExitCode;
use crate::units::{ByteSize, counted, human_duration};

/// What became of one cluster.
pub(crate) struct Copied {
    /// Which.
    pub(crate) cluster: ClusterId,
    /// What the target lacked.
    pub(crate) missing: Missing,
    /// `None` in a dry run.
    pub(crate) report: Option<CopyReport>,
    /// Where the WAL that is copied begins, if not at its beginning.
    pub(crate) from_lsn: Option<Lsn>,
}

/// What is wrong with an object, in words.
pub(crate) fn problem(failed: &Failed) -> String {
    use std::error::Error;
    let Some(error) = &failed.error else {
        return "held back: an object it needs did not get over".to_owned();
    };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// What the whole run did.
pub(crate) struct Summary<'a> {
    /// Where from.
    pub(crate) from: &'a Repository,
    /// Where to.
    pub(crate) to: &'a Repository,
    /// The target was made by this run.
    pub(crate) is_made: bool,
    /// Cluster by cluster.
    pub(crate) clusters: &'a [Copied],
    /// All in all.
    pub(crate) took: Duration,
}

impl Summary<'_> {
    /// How the command ends.
    pub(crate) fn exit_code(&self) -> ExitCode {
        let reports = || {
            self.clusters
                .iter()
                .filter_map(|copied| copied.report.as_ref())
        };
        let has = |count: fn(&CopyReport) -> u64| reports().any(|report| count(report) > 0);
        if has(|report| report.conflicts + report.damaged) {
            ExitCode::Integrity
        } else if has(|report| report.unanswered + report.held_back) {
            ExitCode::Failed
        } else {
            ExitCode::Done
        }
    }

    fn copied(&self) -> (u64, u64) {
        let reports = self
            .clusters
            .iter()
            .filter_map(|copied| copied.report.as_ref());
        reports.fold((0, 0), |(objects, bytes), report| {
            (objects + report.copied, bytes + report.copied_bytes)
        })
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        let place =
            |repository: &Repository| json!({ "name": repository.name(), "url": repository.url() });
        let (objects, bytes) = self.copied();
        let seconds = self.took.as_secs_f64();
        let clusters: Vec<Value> = self.clusters.iter().map(cluster_json).collect();
        json!({
            "from": place(self.from),
            "to": place(self.to),
            "repository_made": self.is_made,
            "dry_run": self.clusters.iter().any(|copied| copied.report.is_none()),
            "clusters": clusters,
            "copied_objects": objects,
            "copied_bytes": bytes,
            "seconds": seconds,
            "bytes_per_second": (seconds > 0.0).then(|| bytes as f64 / seconds),
        })
    }

    /// For people.
    pub(crate) fn to_text(&self) -> String {
        let mut lines = Vec::new();
        if self.is_made {
            lines.push(format!("made a repository at {}", self.to.url()));
        }
        if self.clusters.is_empty() {
            lines.push(format!("{}: no cluster is stored there", self.from.url()));
        }
        for copied in self.clusters {
            lines.extend(cluster_lines(copied));
        }
        let (objects, bytes) = self.copied();
        if objects > 0 {
            let rate = bytes as f64 / self.took.as_secs_f64().max(0.001);
            lines.push(format!(
                "copied {}, {}, in {} ({}/s)",
                counted(objects, "object"),
                ByteSize::new(bytes),
                human_duration(self.took),
                ByteSize::new(rate as u64)
            ));
        }
        lines.join("\n") + "\n"
    }
}

fn cluster_json(copied: &Copied) -> Value {
    let missing = &copied.missing;
    let unfinished: Vec<&str> = missing
        .unfinished_backups
        .iter()
        .map(BackupLabel::as_str)
        .collect();
    let mut body = json!({
        "cluster": copied.cluster.to_string(),
        "wal_from": copied.from_lsn.map(|lsn| lsn.to_string()),
        "missing_objects": missing.objects.len(),
        "missing_bytes": missing.bytes(),
        "present_objects": missing.present.len(),
        "differing_objects": missing.differing.len(),
        "unfinished_backups": unfinished,
        "unknown_objects": missing.unknown,
    });
    let (Some(report), Some(body_fields)) = (&copied.report, body.as_object_mut()) else {
        return body;
    };
    let failures: Vec<Value> = report
        .failures
        .iter()
        .map(|failed| json!({ "object": failed.key.to_string(), "problem": problem(failed) }))
        .collect();
    let counts = [
        ("copied_objects", report.copied),
        ("copied_bytes", report.copied_bytes),
        ("already_there", report.already),
        ("conflicts", report.conflicts),
        ("damaged", report.damaged),
        ("held_back", report.held_back),
        ("unanswered", report.unanswered),
        ("gone", report.gone),
    ];
    for (name, count) in counts {
        body_fields.insert(name.to_owned(), count.into());
    }
    body_fields.insert("gave_up".to_owned(), report.gave_up.into());
    body_fields.insert("failures".to_owned(), failures.into());
    body
}

fn cluster_lines(copied: &Copied) -> Vec<String> {
    let missing = &copied.missing;
    let mut lines = vec![format!(
        "cluster {}: {} there, {} missing ({})",
        copied.cluster,
        counted(missing.present.len(), "object"),
        missing.objects.len(),
        ByteSize::new(missing.bytes())
    )];
    for label in &missing.unfinished_backups {
        lines.push(format!(
            "  left out: backup {label}, which was never finished"
        ));
    }
    let Some(report) = &copied.report else {
        if !missing.differing.is_empty() {
            lines.push(format!(
                "  {} of another size on both sides: compared when they are copied",
                counted(missing.differing.len(), "object")
            ));
        }
        lines.push("  nothing was written (--dry-run)".to_owned());
        return lines;
    };
    for failed in &report.failures {
        lines.push(format!("  not copied: {}: {}", failed.key, problem(failed)));
    }
    let mut count = |number: u64, what: &str| {
        if number > 0 {
            lines.push(format!("  {number} {what}"));
        }
    };
    count(
        report.conflicts,
        "on both sides with different contents: both stay as they are",
    );
    count(report.damaged, "damaged or missing");
    count(
        report.held_back,
        "held back, since what they need did not get over",
    );
    count(report.unanswered, "without an answer: run it again");
    lines
}
