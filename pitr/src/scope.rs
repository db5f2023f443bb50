//! What one restore may fetch: its path through the timelines and its end, written beside the restored cluster's WAL and read by
//! every `archive-get` of its recovery.
//!
//! Pure. Owns the file's fields and the questions asked of them. Does not choose the path (`plan.rs`).

use repository::descriptor::WalDescriptor;
use repository::key::ClusterId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use wal_format::{Lsn, SegmentName, SegmentSize, TimelineId};

use crate::settle::Settled;
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
    /// Whether unencrypted objects are accepted although an identity is configured: the restore was told so.
    #[serde(default)]
    pub allow_plain: bool,
    /// Segments of which repositories hold different forms, by name: what the planned one says of itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settled: BTreeMap<String, WalDescriptor>,
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
        /// How many of the segment's first bytes the plan needs, at least 1, at most `cut`.
        bytes: u32,
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
        scope.settled()?;
        // Timelines descend from one another, each left at a point behind the one before, the last one not at all.
        let mut before: Option<(u32, Lsn)> = None;
        for (index, leg) in scope.path.iter().enumerate() {
            leg.timeline_id()?;
            let switch_point = leg.switch_lsn()?;
            let is_last = index + 1 == scope.path.len();
            let follows = before.is_none_or(|(timeline, left)| {
                timeline < leg.timeline && switch_point.is_none_or(|point| left <= point)
            });
            if !follows || is_last != switch_point.is_none() {
                return Err(damaged(format!(
                    "timeline {} does not continue the path",
                    leg.timeline
                )));
            }
            before = switch_point.map(|point| (leg.timeline, point));
        }
        if scope.path.is_empty() {
            return Err(damaged("an empty path".into()));
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

    /// The chosen forms of segments.
    ///
    /// # Errors
    /// `Corrupt`: not the name of a segment.
    pub fn settled(&self) -> Result<Settled> {
        let settled = Settled::default();
        for (name, wal) in &self.settled {
            let parsed = name.parse().map_err(|_| Error::Integrity {
                object: SCOPE_FILE.into(),
                reason: format!("{name} is no segment"),
            })?;
            settled.add(parsed, wal.clone());
        }
        Ok(settled)
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
        let mut begin = None;
        let mut own = None;
        for leg in &self.path {
            if leg.timeline == name.timeline.get() {
                own = Some(leg);
                break;
            }
            begin = leg.switch_lsn()?;
        }
        let Some(leg) = own else {
            return Ok(Ruling::OffPath);
        };
        let switch_point = leg.switch_lsn()?;
        let is_left = switch_point.is_some_and(|switch_point| switch_point <= start);
        let is_before = begin.is_some_and(|begin| size.segment(begin) > size.segment(start));
        if is_left || is_before {
            return Ok(Ruling::OffPath);
        }
        let needed = self.end_lsn()?.distance_from(start).unwrap_or(0);
        if needed == 0 {
            return Ok(Ruling::BehindEnd);
        }
        let whole = size.bytes();
        let within = |bytes: u64| u32::try_from(bytes).unwrap_or(whole).min(whole);
        let cut = switch_point
            .and_then(|switch_point| switch_point.distance_from(start))
            .map(within)
            .filter(|offset| *offset < whole);
        Ok(Ruling::Needed {
            cut,
            bytes: within(needed).min(cut.unwrap_or(whole)),
        })
    }

    /// The timeline that owns the byte at `lsn` on this path; `None` if the path is empty.
    ///
    /// # Errors
    /// `Corrupt`: the file is not what it should be.
    pub fn timeline_at(&self, lsn: Lsn) -> Result<Option<TimelineId>> {
        for leg in &self.path {
            if leg
                .switch_lsn()?
                .is_none_or(|switch_point| lsn < switch_point)
            {
                return leg.timeline_id().map(Some);
            }
        }
        Ok(None)
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

    const WHOLE: u32 = 1 << 24;

    fn needed(cut: Option<u32>, bytes: u32) -> Ruling {
        Ruling::Needed { cut, bytes }
    }

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
            allow_plain: false,
            settled: BTreeMap::new(),
        }
    }

    #[test]
    fn rules_by_path_and_end() {
        let scope = RestoreScope::parse(&serde_json::to_vec(&scope()).unwrap()).unwrap();
        for (name, ruling) in [
            ("000000010000000000000002", needed(None, WHOLE)),
            ("000000010000000000000003", needed(Some(0x500), 0x500)),
            ("000000010000000000000004", Ruling::OffPath),
            ("000000020000000000000003", Ruling::OffPath),
            ("000000030000000000000002", Ruling::OffPath),
            ("000000030000000000000003", needed(None, WHOLE)),
            ("000000030000000000000005", needed(None, 0x100)),
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
            needed(None, WHOLE)
        );
    }

    #[test]
    fn knows_whose_a_byte_is() {
        let scope = scope();
        for (lsn, timeline) in [(0x300_04FF, 1), (0x300_0500, 3), (0x900_0000, 3)] {
            let found = scope.timeline_at(Lsn::new(lsn)).unwrap();
            assert_eq!(found, TimelineId::new(timeline));
        }
    }

    #[test]
    fn refuses_what_it_cannot_rely_on() {
        for (from, to) in [
            ("\"0/5000100\"", "\"5000100\""),
            ("\"format\":1", "\"format\":2"),
            ("\"7412\"", "\"x\""),
            ("\"timeline\":3", "\"timeline\":1"),
            (",\"switch_point\":\"0/3000500\"", ""),
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
