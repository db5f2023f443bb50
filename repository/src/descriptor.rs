//! Descriptors: what every sealed object says of itself, readable in its first bytes without a key.
//!
//! Owns the fields, their JSON spelling and the check of a descriptor against the key it was found at. Does not own where it stands
//! in the object (`sealed.rs`). Without a key a descriptor is a claim: it finds accidents, not attackers.

use serde::{Deserialize, Serialize};
use wal_format::Lsn;

use crate::key::ObjectKey;
use crate::{Error, Result};

/// The stored format this version writes, and the latest it reads.
pub const FORMAT: u32 = 1;

/// Largest descriptor, in bytes of JSON.
pub const MAX_DESCRIPTOR_BYTES: usize = 2048;

/// What an object says of itself. 64-bit numbers are strings in JSON, checksums 8 hex digits, times RFC 3339 with microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Stored format, 1.
    pub format: u32,
    /// What a reader must understand to use the object; an unknown entry is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Full key below the repository's root.
    pub key: String,
    /// Kind of object, as [`ObjectKey::kind`] names it.
    pub kind: String,
    /// PostgreSQL's system identifier.
    #[serde(with = "text")]
    pub system_identifier: u64,
    /// PostgreSQL's major version, 14 to 18.
    pub pg_version: u16,
    /// Plain size in bytes.
    #[serde(with = "text")]
    pub plain_size: u64,
    /// Bytes stored behind the header.
    #[serde(with = "text")]
    pub payload_size: u64,
    /// CRC-32 (IEEE) of all bytes behind the header.
    #[serde(with = "crc")]
    pub payload_crc32: u32,
    /// CRC-32 (IEEE) of the plain bytes; absent on tail chunks, where it would confirm guesses, and with `descriptor = "minimal"`
    /// on all but history files.
    #[serde(
        default,
        with = "optional_crc",
        skip_serializing_if = "Option::is_none"
    )]
    pub plain_crc32: Option<u32>,
    /// What only WAL has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal: Option<WalDescriptor>,
}

/// What a descriptor says of WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalDescriptor {
    /// First byte.
    #[serde(with = "text")]
    pub start_lsn: Lsn,
    /// First byte behind it.
    #[serde(with = "text")]
    pub end_lsn: Lsn,
    /// First 16 bytes of SHA-256 of the timeline's history file, 32 lower-case hex digits; empty for timeline 1.
    pub lineage: String,
    /// Start of the first record that starts here; absent if none does.
    #[serde(
        default,
        with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub first_record: Option<Lsn>,
    /// `xl_prev` of that record.
    #[serde(
        default,
        with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub first_record_prev: Option<Lsn>,
    /// The record, cut by a crash, that the first record replaces: the segment before ends in it, and the link leads past it.
    #[serde(
        default,
        with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub first_record_overwrites: Option<Lsn>,
    /// Start of the last record that starts here.
    #[serde(
        default,
        with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_record: Option<Lsn>,
    /// Commit and abort records that end here; absent = unknown, never zero.
    #[serde(
        default,
        with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub transactions: Option<u64>,
    /// Earliest time of those records.
    #[serde(
        default,
        with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub time_min: Option<jiff::Timestamp>,
    /// Latest time of those records.
    #[serde(
        default,
        with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub time_max: Option<jiff::Timestamp>,
    /// A record that continued from an unseen segment ends here: count and times lack what it may be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incomplete: bool,
    /// Where validation failed, if it did.
    #[serde(
        default,
        with = "optional_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub invalid_at: Option<Lsn>,
}

impl Descriptor {
    /// Spells the descriptor as JSON.
    ///
    /// # Errors
    /// `Bug`: more than [`MAX_DESCRIPTOR_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let unsealable = |reason: String| Error::Unsealable {
            key: self.key.clone(),
            reason,
        };
        let json = serde_json::to_vec(self).map_err(|error| unsealable(error.to_string()))?;
        if json.len() > MAX_DESCRIPTOR_BYTES {
            return Err(unsealable(format!("descriptor of {} bytes", json.len())));
        }
        Ok(json)
    }

    /// Reads a descriptor's JSON. `found_at` is only for messages.
    ///
    /// # Errors
    /// `Corrupt`: not a descriptor. `Config`: a later format, or a requirement this version does not know.
    pub fn parse(json: &[u8], found_at: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Gate {
            format: u32,
            #[serde(default)]
            requires: Vec<String>,
        }
        let damaged = |error: serde_json::Error| Error::Damaged {
            key: found_at.to_owned(),
            what: format!("its descriptor cannot be read: {error}"),
        };
        let gate: Gate = serde_json::from_slice(json).map_err(damaged)?;
        if gate.format > FORMAT {
            return Err(future(found_at, format!("format {}", gate.format)));
        }
        if let Some(requirement) = gate.requires.first() {
            return Err(future(found_at, format!("it requires {requirement:?}")));
        }
        serde_json::from_slice(json).map_err(damaged)
    }

    /// Holds the descriptor against the key the object was found at.
    ///
    /// # Errors
    /// `Corrupt`: an object of another key, cluster or kind.
    pub fn check_place(&self, key: &ObjectKey) -> Result<()> {
        let foreign_cluster = key
            .cluster()
            .is_some_and(|cluster| cluster.system_identifier != self.system_identifier);
        if foreign_cluster || self.key != key.to_string() || self.kind != key.kind() {
            let cluster = if foreign_cluster {
                format!(
                    " of the cluster with system identifier {}",
                    self.system_identifier
                )
            } else {
                String::new()
            };
            return Err(Error::Misplaced {
                key: key.to_string(),
                found: format!("{} ({}){cluster}", self.key, self.kind),
            });
        }
        Ok(())
    }

    /// Whether two descriptors describe the same plain contents, as far as they say: what "already archived" means.
    ///
    /// Returns the first fact that differs; sizes, checksum, LSN range, lineage and record positions count, times and codec do not.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let wal = |d: &Self| d.wal.clone().unwrap_or_default();
        let (a, b) = (wal(self), wal(other));
        let checksums_differ = match (self.plain_crc32, other.plain_crc32) {
            (Some(a), Some(b)) => a != b,
            _ => false,
        };
        [
            (self.key != other.key, "key"),
            (
                self.system_identifier != other.system_identifier,
                "system identifier",
            ),
            (self.plain_size != other.plain_size, "plain size"),
            (checksums_differ, "checksum of the plain bytes"),
            (
                (a.start_lsn, a.end_lsn) != (b.start_lsn, b.end_lsn),
                "LSN range",
            ),
            (a.lineage != b.lineage, "lineage of the timeline"),
            (
                (a.first_record, a.first_record_prev, a.last_record)
                    != (b.first_record, b.first_record_prev, b.last_record),
                "record positions",
            ),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

fn future(key: &str, what: String) -> Error {
    Error::FromTheFuture {
        key: key.to_owned(),
        what,
    }
}

/// Numbers, LSNs and times as strings.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(d: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(d)?;
        text.parse()
            .map_err(|error| de::Error::custom(format!("{text:?}: {error}")))
    }
}

/// The same, where absent means unknown.
pub(crate) mod optional_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => s.collect_str(value),
            None => s.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T, D>(d: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        super::text::deserialize(d).map(Some)
    }
}

/// Checksums as 8 lower-case hex digits.
mod crc {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &u32, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{value:08x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
        let text = String::deserialize(d)?;
        let digits = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let value = digits
            .then(|| u32::from_str_radix(&text, 16).ok())
            .flatten();
        value.ok_or_else(|| de::Error::custom(format!("{text:?} is not a CRC-32 of 8 hex digits")))
    }
}

/// The same, where it may be absent.
pub(crate) mod optional_crc {
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Option<u32>, s: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::crc::serialize(value, s),
            None => s.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u32>, D::Error> {
        super::crc::deserialize(d).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorClass;

    fn sample() -> Descriptor {
        Descriptor {
            format: 1,
            requires: Vec::new(),
            key: "7412/wal/00000001/00000000/000000010000000000000001.wal".into(),
            kind: "wal".into(),
            system_identifier: 7412,
            pg_version: 18,
            plain_size: 1 << 24,
            payload_size: 5_000_000_000,
            payload_crc32: 0xdead_beef,
            plain_crc32: Some(7),
            wal: Some(WalDescriptor {
                start_lsn: Lsn::new(0x100_0000),
                end_lsn: Lsn::new(0x200_0000),
                first_record: Some(Lsn::new(0x100_0028)),
                first_record_prev: Some(Lsn::INVALID),
                time_min: Some("2026-01-23T14:28:11.000001Z".parse().unwrap()),
                ..WalDescriptor::default()
            }),
        }
    }

    #[test]
    fn reads_back_what_it_spells_and_spells_64_bit_numbers_as_strings() {
        let json = sample().encode().unwrap();
        let text = String::from_utf8(json.clone()).unwrap();
        assert!(text.contains(r#""payload_size":"5000000000""#), "{text}");
        assert!(text.contains(r#""payload_crc32":"deadbeef""#), "{text}");
        assert!(!text.contains("last_record"), "{text}");
        assert_eq!(Descriptor::parse(&json, "x").unwrap(), sample());
    }

    #[test]
    fn ignores_unknown_fields_and_refuses_unknown_requirements_and_formats() {
        let text = String::from_utf8(sample().encode().unwrap()).unwrap();
        let with = |field: &str| text.replacen('{', &format!("{{{field},"), 1);
        assert_eq!(
            Descriptor::parse(with(r#""later":1"#).as_bytes(), "x").unwrap(),
            sample()
        );
        let requires =
            Descriptor::parse(with(r#""requires":["dictionary"]"#).as_bytes(), "x").unwrap_err();
        assert_eq!(
            requires.to_string(),
            r#"x: written by a later version: it requires "dictionary""#
        );
        let format = text.replacen(r#""format":1"#, r#""format":2,"wal":7"#, 1);
        let format = Descriptor::parse(format.as_bytes(), "x").unwrap_err();
        assert_eq!(
            (format.to_string().as_str(), format.class()),
            (
                "x: written by a later version: format 2",
                ErrorClass::Config
            )
        );
    }

    #[test]
    fn same_contents_ignores_times_and_names_what_differs() {
        let (a, mut b) = (sample(), sample());
        b.wal.as_mut().unwrap().time_min = None;
        b.payload_size = 9;
        assert_eq!(a.difference(&b), None);
        b.wal.as_mut().unwrap().last_record = Some(Lsn::new(9));
        assert_eq!(a.difference(&b), Some("record positions"));
        b.plain_crc32 = Some(8);
        assert_eq!(a.difference(&b), Some("checksum of the plain bytes"));
    }
}
