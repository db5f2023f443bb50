//! How verification shows itself, for `verify` and for `restore --dry-run --deep`: its progress, what was looked at, and what is wrong.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pitr::verify::{Progress as Step, Report};

use crate::progress::{Progress, Screen};
use crate::units::{ByteSize, human_duration};

/// A progress bar that begins once it is known how much there is to read.
pub(crate) struct Bar<'a> {
    screen: &'a Screen,
    label: &'static str,
    /// Nothing under the lock panics, and a bar that is wrong is no harm.
    shown: Mutex<Option<Progress>>,
}

impl<'a> Bar<'a> {
    pub(crate) fn new(screen: &'a Screen, label: &'static str) -> Self {
        Self {
            screen,
            label,
            shown: Mutex::new(None),
        }
    }

    pub(crate) fn step(&self, step: Step) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Step::Total(bytes) if bytes > 0 => {
                *shown = Some(self.screen.progress(self.label, Some(bytes)));
            }
            Step::Total(_) => {}
            Step::Read(bytes) => {
                if let Some(bar) = &*shown {
                    bar.advance(bytes);
                }
            }
        }
    }

    pub(crate) fn finish(self) {
        let shown = self.shown.into_inner();
        if let Some(bar) = shown.unwrap_or_else(PoisonError::into_inner) {
            bar.finish();
        }
    }
}

/// How much was looked at, and how fast.
pub(crate) fn looked_at(report: &Report, seconds: f64) -> String {
    let counts = &report.counts;
    let mut text = String::new();
    if report.level.reads() {
        text += &format!(
            "{} objects, {}",
            counts.objects_read,
            ByteSize::new(counts.stored_bytes)
        );
        if counts.stored_bytes > 0 {
            let rate = (counts.stored_bytes as f64 / seconds.max(0.001)) as u64;
            text += &format!(" ({}/s)", ByteSize::new(rate));
        }
        if counts.records > 0 {
            text += &format!(", {} WAL records", counts.records);
        }
        if counts.files > 0 {
            text += &format!(", {} files, {} pages", counts.files, counts.pages);
        }
    } else {
        text += &format!("{} descriptors", counts.descriptors_read);
        if counts.descriptors_rolled_up > 0 {
            text += &format!(", {} in roll-ups", counts.descriptors_rolled_up);
        }
    }
    text += &format!(" in {}", human_duration(Duration::from_secs_f64(seconds)));
    if counts.objects_remembered > 0 {
        text += &format!("; {} verified before", counts.objects_remembered);
    }
    text
}

/// What is wrong, whom it affects and what to do.
pub(crate) fn write_findings(text: &mut String, report: &Report) -> std::fmt::Result {
    for finding in &report.findings {
        let problem = serde_json::to_value(finding.problem).unwrap_or_default();
        write!(
            text,
            "\n{}: {}",
            problem.as_str().unwrap_or("?").to_uppercase(),
            finding.object
        )?;
        if let Some(lsn) = finding.lsn {
            write!(text, " at {lsn}")?;
        }
        writeln!(text, "\n  {}", finding.detail)?;
        for effect in &finding.affects {
            writeln!(text, "  means: {effect}")?;
        }
        writeln!(text, "  do:    {}", finding.advice)?;
    }
    if report.findings_not_listed > 0 {
        writeln!(text, "\nand {} more", report.findings_not_listed)?;
    }
    Ok(())
}
