//! The stretch of WAL that can be recovered to, as errors and listings show it (pure). How it is computed: `plan.rs`.

use crate::time::format_utc;
use std::fmt;
use wal_format::{Lsn, TimelineId, Timestamp};

/// One end of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The timeline on which the position lies.
    pub timeline: TimelineId,
    /// The position.
    pub lsn: Lsn,
    /// The time that belongs to it, if known: end of the earliest backup, newest commit or abort.
    pub time: Option<Timestamp>,
}

/// What can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Window {
    /// Where the earliest usable backup becomes consistent; `None` without one.
    pub earliest: Option<Moment>,
    /// The end of the unbroken WAL that follows; `None` without a usable backup.
    pub latest: Option<Moment>,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(time) = self.time {
            write!(f, "{} ", format_utc(time))?;
        }
        write!(f, "(LSN {}, timeline {})", self.lsn, self.timeline)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.earliest, self.latest) {
            (Some(earliest), Some(latest)) => write!(f, "reachable: {earliest} to {latest}"),
            _ => f.write_str("nothing is reachable: no usable backup"),
        }
    }
}
