//! `walden archive-get` as PostgreSQL runs it: each outcome and its exit status on real WAL of real servers, and recoveries in which
//! PostgreSQL itself shows that no answer of ours opened a database early or on a branch that was left.

mod answers;
mod branched;
mod recoveries;
mod tails;

use wal_format::{SegmentSize, TimelineId};

const SIZE: SegmentSize = SegmentSize::MIN;
/// What the server's recovery asks its file to be written to.
const DESTINATION: &str = "pg_wal/RECOVERYXLOG";
const SERVED: i32 = 0;
const ABSENT: i32 = 1;
const UNPROVEN: i32 = 126;

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).expect("not 0")
}
