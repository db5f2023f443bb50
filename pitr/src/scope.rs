//! What one restore may fetch: its path through the timelines and its end, written beside the restored cluster's WAL and read by
//! every `archive-get` of its recovery.
//!
//! Pure. Owns the file's fields and the questions asked of them. Does not choose the path (`plan.rs`).

use repository::key::ClusterId;
use serde::{Deserialize, Serialize};
use wal_format::{Lsn, SegmentName, SegmentSize, TimelineId};

use crate::{Error, Result};

/// The file's name, in `pg_wal/walden/`.
pub const SCOPE_FILE: &str = "plan.json";

/// A restore's path and end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreScope {
    /// Format of this file, 1.
    pub format: u32,
    /// Whose WAL.
    pub cluster: String,
    /// WAL segment size in bytes.
    pub wal_segment_size: u32,
    /// Timelines in the order in which they are replayed.
    pub path: Vec<Leg>,
    /// First byte behind the WAL that the target needs, `X/X`.
    pub end: String,
}

/// One timeline of the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// Which.
    pub timeline: u32,
    /// Its lineage, as in descriptors; empty for timeline 1.
    pub lineage: String,
    /// Where the next timeline of the path leaves it, `X/X`; absent for the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch_point: Option<String>,
}

/// What the scope says of a segment, before the repository is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Not on the path: the answer is "absent", whatever is stored.
    OffPath,
    /// On the path and needed: absence is a hole. No byte from `cut` on may be served.
    Needed {
        /// Offset in the segment of the first byte of another timeline.
        cut: Option<u32>,
    },
    /// Behind the target: served if it is there.
    BehindEnd,
}

impl RestoreScope {
    /// Reads the file.
    ///
    /// # Errors
    /// `Corrupt`: not such a file, or of a later version.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let damaged = |reason: String| Error::Integrity {
            object: SCOPE_FILE.into(),
            reason,
        };
        let scope: Self =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if scope.format != 1 {
            return Err(damaged(format!(
                "format {} is of a later version",
                scope.format
            )));
        }
        // Everything that later questions rely on.
        scope.size()?;
        scope.cluster()?;
        scope.end_lsn()?;
        for leg in &scope.path {
            leg.timeline_id()?;
            leg.switch_lsn()?;
        }
        Ok(scope)
    }

    /// The segment size.
    ///
    /// # Errors
    /// `Corrupt`: impossible.
    pub fn size(&self) -> Result<SegmentSize> {
        SegmentSize::new(self.wal_segment_size).map_err(|error| Error::Integrity {
            object: SCOPE_FILE.into(),
            reason: error.to_string(),
        })
    }

    /// The cluster.
    ///
    /// # Errors
    /// `Corrupt`: not a cluster's name.
    pub fn cluster(&self) -> Result<ClusterId> {
        Ok(self.cluster.parse()?)
    }

    /// The end of the plan.
    ///
    /// # Errors
    /// `Corrupt`: not an LSN.
    pub fn end_lsn(&self) -> Result<Lsn> {
        parse_lsn(&self.end)
    }

    /// The lineage that objects of a timeline must have; `None` off the path.
    #[must_use]
    pub fn lineage(&self, timeline: TimelineId) -> Option<&str> {
        self.path
            .iter()
            .find(|leg| leg.timeline == timeline.get())
            .map(|leg| leg.lineage.as_str())
    }

    /// What the scope says of a segment.
    ///
    /// # Errors
    /// `Corrupt`: the file is not what it should be. `Config`: a name that no segment of this size has.
    pub fn rule(&self, name: SegmentName) -> Result<Ruling> {
        let size = self.size()?;
        let start = name.start(size).ok_or_else(|| Error::InvalidRequest {
            what: name.to_string(),
            reason: "no WAL segment of this cluster has this name".into(),
        })?;
        let Some(leg) = self
            .path
            .iter()
            .find(|leg| leg.timeline == name.timeline.get())
        else {
            return Ok(Ruling::OffPath);
        };
        let switch_point = leg.switch_lsn()?;
        if switch_point.is_some_and(|switch_point| switch_point <= start) {
            return Ok(Ruling::OffPath);
        }
        if start >= self.end_lsn()? {
            return Ok(Ruling::BehindEnd);
        }
        let cut = switch_point
            .and_then(|switch_point| switch_point.distance_from(start))
            .filter(|offset| *offset < u64::from(size.bytes()))
            .and_then(|offset| u32::try_from(offset).ok());
        Ok(Ruling::Needed { cut })
    }
}

impl Leg {
    /// Which timeline.
    ///
    /// # Errors
    /// `Corrupt`: zero.
    pub fn timeline_id(&self) -> Result<TimelineId> {
        TimelineId::new(self.timeline).ok_or_else(|| Error::Integrity {
            object: SCOPE_FILE.into(),
            reason: "timeline 0".into(),
        })
    }

    fn switch_lsn(&self) -> Result<Option<Lsn>> {
        self.switch_point.as_deref().map(parse_lsn).transpose()
    }
}

fn parse_lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(|_| Error::Integrity {
        object: SCOPE_FILE.into(),
        reason: format!("{text:?} is not an LSN"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> RestoreScope {
        let leg = |timeline, switch_point: Option<&str>| Leg {
            timeline,
            lineage: String::new(),
            switch_point: switch_point.map(str::to_owned),
        };
        RestoreScope {
            format: 1,
            cluster: "7412".into(),
            wal_segment_size: 1 << 24,
            path: vec![leg(1, Some("0/3000500")), leg(3, None)],
            end: "0/5000100".into(),
        }
    }

    #[test]
    fn rules_by_path_and_end() {
        let scope = RestoreScope::parse(&serde_json::to_vec(&scope()).unwrap()).unwrap();
        for (name, ruling) in [
            ("000000010000000000000002", Ruling::Needed { cut: None }),
            (
                "000000010000000000000003",
                Ruling::Needed { cut: Some(0x500) },
            ),
            ("000000010000000000000004", Ruling::OffPath),
            ("000000020000000000000003", Ruling::OffPath),
            ("000000030000000000000003", Ruling::Needed { cut: None }),
            ("000000030000000000000005", Ruling::Needed { cut: None }),
            ("000000030000000000000006", Ruling::BehindEnd),
        ] {
            assert_eq!(scope.rule(name.parse().unwrap()).unwrap(), ruling, "{name}");
        }
        assert!(
            scope
                .rule("000000030000000000000FFF".parse().unwrap())
                .is_err()
        );
    }

    #[test]
    fn a_switch_on_a_boundary_shares_no_segment() {
        let mut scope = scope();
        scope.path[0].switch_point = Some("0/3000000".into());
        assert_eq!(
            scope
                .rule("000000010000000000000003".parse().unwrap())
                .unwrap(),
            Ruling::OffPath
        );
        assert_eq!(
            scope
                .rule("000000010000000000000002".parse().unwrap())
                .unwrap(),
            Ruling::Needed { cut: None }
        );
    }

    #[test]
    fn refuses_what_it_cannot_rely_on() {
        for (from, to) in [
            ("\"0/5000100\"", "\"5000100\""),
            ("\"format\":1", "\"format\":2"),
            ("\"7412\"", "\"x\""),
        ] {
            let text = String::from_utf8(serde_json::to_vec(&scope()).unwrap()).unwrap();
            assert!(text.contains(from), "{text}");
            assert!(
                RestoreScope::parse(text.replace(from, to).as_bytes()).is_err(),
                "{to}"
            );
        }
    }
}
