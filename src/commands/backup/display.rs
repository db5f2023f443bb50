//! What `walden backup` shows while it runs: a line a phase, and progress of the bytes. On stderr, and nothing with `-q` or `--json`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use archiver::base_backup::BackupEvent;

use crate::progress::{Progress, Screen};

/// Time between two lines about WAL that is waited for.
const WAIT_LINE_INTERVAL: Duration = Duration::from_secs(15);

/// What is shown while the backup runs.
pub(super) struct Display<'a> {
    screen: &'a Screen,
    progress: Mutex<Option<Progress>>,
    waiting: Mutex<Option<Instant>>,
}

impl<'a> Display<'a> {
    pub(super) fn new(screen: &'a Screen) -> Self {
        Self {
            screen,
            progress: Mutex::new(None),
            waiting: Mutex::new(None),
        }
    }

    pub(super) fn show(&self, event: BackupEvent) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            BackupEvent::CheckpointRequested { label } => {
                self.screen.say(&format!(
                    "backup {label}: waiting for the server's checkpoint"
                ));
            }
            BackupEvent::Started {
                start_lsn,
                timeline,
                total_bytes,
            } => {
                self.screen.say(&format!(
                    "backup: starts at {start_lsn} on timeline {timeline}"
                ));
                *progress = Some(self.screen.progress("backup", total_bytes));
            }
            BackupEvent::Received(bytes) => {
                if let Some(progress) = &*progress {
                    progress.advance(bytes);
                }
            }
            BackupEvent::Stopped { .. } => {
                if let Some(progress) = progress.take() {
                    progress.finish();
                }
            }
            BackupEvent::WaitingForWal {
                timeline,
                stored,
                needed,
            } => {
                let mut said = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if said.is_none_or(|said| said.elapsed() >= WAIT_LINE_INTERVAL) {
                    *said = Some(Instant::now());
                    self.screen.say(&format!(
                        "backup: waiting for its WAL: stored up to {stored}, needed up to {needed} on timeline {timeline}"
                    ));
                }
            }
        }
    }

    /// A backup that was given up leaves no bar behind.
    pub(super) fn finish(self) {
        let progress = self
            .progress
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = progress {
            progress.finish();
        }
    }
}
