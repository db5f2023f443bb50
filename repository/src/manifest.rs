//! What both sides read of PostgreSQL's `backup_manifest` (versions 1 and 2, PostgreSQL 13 to 18): whose it is, which WAL it needs, and
//! that it is whole. It is stored byte for byte; its list of files is read by restores (`pitr`), not here.
//!
//! Source: manual chapter "Backup Manifest Format".

use std::fmt::Write;

use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use wal_format::{Lsn, TimelineId};

/// Versions of the format that are understood.
const VERSIONS: std::ops::RangeInclusive<u64> = 1..=2;

/// The facts a base backup is checked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFacts {
    /// Absent before PostgreSQL 17.
    pub system_identifier: Option<u64>,
    /// WAL that makes the backup consistent, oldest timeline first, without holes.
    pub wal_ranges: Vec<WalRange>,
}

/// WAL of one timeline, half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// First byte.
    pub start: Lsn,
    /// First byte behind it.
    pub end: Lsn,
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u64,
    #[serde(rename = "System-Identifier")]
    system_identifier: Option<u64>,
    // Only walked over: a cluster may have millions of files.
    #[serde(rename = "Files")]
    _files: IgnoredAny,
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<Range>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Range {
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl ManifestFacts {
    /// Reads a manifest and compares its checksum of itself.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|error| format!("it cannot be read: {error}"))?;
        if !VERSIONS.contains(&document.version) {
            return Err(format!("version {} is not known", document.version));
        }
        if checksum(bytes).as_ref() != Some(&document.checksum) {
            return Err("its checksum of itself does not fit".to_owned());
        }
        let mut wal_ranges = document
            .wal_ranges
            .iter()
            .map(|range| range.parse().ok_or("a WAL range that makes no sense"))
            .collect::<Result<Vec<_>, _>>()?;
        // The server lists the newest timeline first.
        wal_ranges.sort_by_key(|range| range.timeline);
        let gapless = wal_ranges
            .windows(2)
            .all(|pair| pair[0].timeline < pair[1].timeline && pair[0].end == pair[1].start);
        if wal_ranges.is_empty() || !gapless {
            return Err("its WAL ranges do not join".to_owned());
        }
        Ok(Self {
            system_identifier: document.system_identifier,
            wal_ranges,
        })
    }

    /// First byte of WAL the backup needs, and its timeline.
    pub fn start(&self) -> Option<(Lsn, TimelineId)> {
        self.wal_ranges
            .first()
            .map(|range| (range.start, range.timeline))
    }

    /// First byte of WAL the backup no longer needs, and its timeline.
    pub fn stop(&self) -> Option<(Lsn, TimelineId)> {
        self.wal_ranges
            .last()
            .map(|range| (range.end, range.timeline))
    }
}

impl Range {
    fn parse(&self) -> Option<WalRange> {
        let (start, end): (Lsn, Lsn) = (self.start.parse().ok()?, self.end.parse().ok()?);
        (start <= end).then_some(WalRange {
            timeline: TimelineId::new(self.timeline)?,
            start,
            end,
        })
    }
}

/// SHA-256, in hexadecimal, of all lines but the last, which holds this checksum.
fn checksum(bytes: &[u8]) -> Option<String> {
    let last_line = bytes.strip_suffix(b"\n")?;
    let covered = last_line.iter().rposition(|byte| *byte == b'\n')? + 1;
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(&bytes[..covered]) {
        write!(text, "{byte:02x}").expect("a string takes any text");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest with these ranges and a checksum that fits.
    fn manifest(version: u32, identifier: &str, ranges: &str) -> Vec<u8> {
        let mut text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n{identifier}\"Files\": [\n\
             {{ \"Path\": \"a\", \"Size\": 1, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\" }}\n],\n\
             \"WAL-Ranges\": [\n{ranges}\n],\n"
        );
        let sum: String = Sha256::digest(text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        text.push_str(&format!("\"Manifest-Checksum\": \"{sum}\"}}\n"));
        text.into_bytes()
    }

    const ONE: &str = r#"{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000120" }"#;

    #[test]
    fn identifiers_are_whole_numbers_and_ranges_are_sorted() {
        let identifier = "\"System-Identifier\": 18446744073709551615,\n";
        let two = r#"{ "Timeline": 3, "Start-LSN": "0/3000000", "End-LSN": "0/4000000" },
            { "Timeline": 2, "Start-LSN": "0/2000028", "End-LSN": "0/3000000" }"#;
        let parsed = ManifestFacts::parse(&manifest(2, identifier, two)).unwrap();
        assert_eq!(parsed.system_identifier, Some(u64::MAX));
        let timeline = |number| TimelineId::new(number).unwrap();
        assert_eq!(parsed.start(), Some((Lsn::new(0x200_0028), timeline(2))));
        assert_eq!(parsed.stop(), Some((Lsn::new(0x400_0000), timeline(3))));
        let old = ManifestFacts::parse(&manifest(1, "", ONE)).unwrap();
        assert_eq!((old.system_identifier, old.wal_ranges.len()), (None, 1));
    }

    #[test]
    fn refuses_what_is_damaged_or_unknown() {
        let check = |bytes: &[u8], expected: &str| {
            let error = ManifestFacts::parse(bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        let good = manifest(2, "", ONE);
        check(&good[..good.len() - 9], "cannot be read");
        let changed = String::from_utf8(good).unwrap().replace("\"a\"", "\"b\"");
        check(changed.as_bytes(), "checksum of itself does not fit");
        check(&manifest(3, "", ONE), "version 3");
        check(&manifest(2, "", ""), "do not join");
        let hole = format!(r#"{ONE}, {{ "Timeline": 2, "Start-LSN": "0/9", "End-LSN": "0/10" }}"#);
        check(&manifest(2, "", &hole), "do not join");
        let backwards = ONE.replace("0/2000120", "0/1");
        check(&manifest(2, "", &backwards), "makes no sense");
    }
}
