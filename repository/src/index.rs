//! Roll-ups: the descriptors of one log (4 GiB of WAL) in one object, so that a year of WAL is read with hundreds of requests, not a
//! hundred thousand.
//!
//! Owns the document, its compression and its checks. A roll-up is a cache and a hint: any number may exist, they can be made again from the
//! segments, and nothing that is restored depends on them. Who writes them and when is `archiver`'s, who believes them how far `pitr`'s.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use wal_format::{SegmentName, TimelineId};

use crate::cluster::check_version;
use crate::descriptor::{FORMAT, WalDescriptor, text};
use crate::key::{ClusterId, ObjectKey};
use crate::sealed::frame;
use crate::{Error, Result};

/// Most segments in a log: those of 1 MiB.
pub const MAX_SEGMENTS: usize = 4096;

/// Largest roll-up as it is stored, in bytes.
pub const MAX_STORED_BYTES: usize = 4 << 20;

/// Largest document in it, in bytes: [`MAX_SEGMENTS`] of the largest descriptors.
pub const MAX_PLAIN_BYTES: usize = 10 << 20;

/// The descriptors of the segments of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollUp {
    /// Whose.
    pub cluster: ClusterId,
    /// Of which timeline.
    pub timeline: TimelineId,
    /// Of which log: the middle 8 digits of a segment's name.
    pub log: u32,
    /// What the segments say of themselves.
    pub segments: BTreeMap<SegmentName, RolledUp>,
}

/// What a segment's object says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledUp {
    /// Size of the whole object in bytes. An entry whose object has another size is not of that object.
    pub stored_size: u64,
    /// Of its WAL.
    pub wal: WalDescriptor,
}

/// As it stands in the frame.
#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    requires: Vec<String>,
    cluster: String,
    timeline: u32,
    log: u32,
    segments: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(with = "text")]
    name: SegmentName,
    stored_size: u64,
    wal: WalDescriptor,
}

impl RollUp {
    /// The object and its key, which holds the CRC-32 of the object's bytes.
    ///
    /// # Errors
    /// `Bug`: larger than a reader accepts.
    pub fn encode(&self) -> Result<(ObjectKey, Bytes)> {
        let place = format!("roll-up of log {:08X}", self.log);
        let too_large = |what: String| Error::Unsealable {
            key: place.clone(),
            reason: what,
        };
        let segments = self.segments.iter().map(|(name, rolled)| Entry {
            name: *name,
            stored_size: rolled.stored_size,
            wal: rolled.wal.clone(),
        });
        let document = Document {
            format: FORMAT,
            requires: Vec::new(),
            cluster: self.cluster.to_string(),
            timeline: self.timeline.get(),
            log: self.log,
            segments: segments.collect(),
        };
        let json = serde_json::to_vec(&document).map_err(|error| too_large(error.to_string()))?;
        let mut bytes = Vec::new();
        frame::FrameEncoder::new()
            .encode(frame::Compression::Lz4, &json, &mut |piece| {
                bytes.extend_from_slice(piece);
            })
            .map_err(|error| too_large(error.to_string()))?;
        if json.len() > MAX_PLAIN_BYTES || bytes.len() > MAX_STORED_BYTES {
            return Err(too_large(format!("{} bytes", json.len())));
        }
        let key = ObjectKey::RollUp {
            cluster: self.cluster,
            timeline: self.timeline,
            log: self.log,
            tag: crc32fast::hash(&bytes),
        };
        Ok((key, bytes.into()))
    }

    /// Reads the object found at `key`.
    ///
    /// # Errors
    /// `Corrupt`: damaged, or of another place. `Config`: of a later version. Either way it is as good as none.
    pub fn parse(key: &ObjectKey, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::Damaged {
            key: key.to_string(),
            what,
        };
        let ObjectKey::RollUp {
            cluster,
            timeline,
            log,
            tag,
        } = *key
        else {
            return Err(damaged("not the key of a roll-up".into()));
        };
        if crc32fast::hash(bytes) != tag {
            return Err(damaged("its bytes are not those of its name".into()));
        }
        let mut json = Vec::new();
        frame::decode(bytes, MAX_PLAIN_BYTES, &mut json).map_err(damaged)?;
        let document: Document =
            serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        check_version(&key.to_string(), document.format, &document.requires)?;
        let place = (document.cluster.as_str(), document.timeline, document.log);
        if place != (cluster.to_string().as_str(), timeline.get(), log) {
            return Err(damaged("it is of another place".into()));
        }
        if document.segments.len() > MAX_SEGMENTS {
            return Err(damaged(format!("{} segments", document.segments.len())));
        }
        let mut segments = BTreeMap::new();
        for Entry {
            name,
            stored_size,
            wal,
        } in document.segments
        {
            if (name.timeline, name.log) != (timeline, log) {
                return Err(damaged(format!("{name} is not of its log")));
            }
            segments.insert(name, RolledUp { stored_size, wal });
        }
        Ok(Self {
            cluster,
            timeline,
            log,
            segments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorClass;
    use wal_format::{Lsn, SegmentNumber, SegmentSize};

    fn sample(count: u64) -> RollUp {
        let size = SegmentSize::DEFAULT;
        let timeline = TimelineId::FIRST;
        let segments = (0..count).map(|number| {
            let number = SegmentNumber::new(256 + number);
            let wal = WalDescriptor {
                start_lsn: size.start(number),
                end_lsn: size.end(number),
                first_record: Some(size.start(number).saturating_add(40)),
                first_record_prev: Some(Lsn::new(number.as_u64())),
                last_record: Some(size.end(number).saturating_sub(70)),
                transactions: Some(812),
                time_min: Some("2026-01-23T14:28:11.000001Z".parse().unwrap()),
                time_max: Some("2026-01-23T14:29:11.5Z".parse().unwrap()),
                ..WalDescriptor::default()
            };
            let rolled = RolledUp {
                stored_size: 5_000_000 + number.as_u64(),
                wal,
            };
            (SegmentName::new(timeline, number, size), rolled)
        });
        RollUp {
            cluster: ClusterId::new(7412),
            timeline,
            log: 1,
            segments: segments.collect(),
        }
    }

    #[test]
    fn reads_back_what_it_writes_in_a_few_bytes_a_segment() {
        let roll_up = sample(256);
        let (key, bytes) = roll_up.encode().unwrap();
        assert_eq!(RollUp::parse(&key, &bytes).unwrap(), roll_up);
        let path = key.to_string();
        let tag = format!("{:08X}", crc32fast::hash(&bytes));
        assert_eq!(path, format!("7412/index/00000001/00000001.{tag}"));
        assert_eq!(path.parse::<ObjectKey>().unwrap(), key);
        assert!(bytes.len() < 256 * 120, "{} bytes", bytes.len());
    }

    #[test]
    fn the_largest_log_fits() {
        let mut roll_up = sample(0);
        let size = SegmentSize::MIN;
        for number in 4096..8192 {
            let number = SegmentNumber::new(number);
            let mut wal = sample(1).segments.pop_first().unwrap().1.wal;
            wal.lineage = format!(
                "{:032x}",
                number.as_u64().wrapping_mul(0x9E37_79B9_7F4A_7C15)
            );
            let name = SegmentName::new(TimelineId::FIRST, number, size);
            let stored_size = u64::MAX;
            roll_up.segments.insert(name, RolledUp { stored_size, wal });
        }
        assert_eq!(roll_up.segments.len(), MAX_SEGMENTS);
        let (key, bytes) = roll_up.encode().unwrap();
        assert_eq!(RollUp::parse(&key, &bytes).unwrap(), roll_up);
    }

    #[test]
    fn any_flipped_bit_and_any_other_place_is_refused() {
        let (key, bytes) = sample(3).encode().unwrap();
        for index in 0..bytes.len() {
            let mut bytes = bytes.to_vec();
            bytes[index] ^= 1 << (index % 8);
            let error = RollUp::parse(&key, &bytes).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Corrupt, "{index}");
        }
        let ObjectKey::RollUp {
            cluster,
            timeline,
            log,
            tag,
        } = key
        else {
            panic!("{key}")
        };
        let other = |cluster, log| ObjectKey::RollUp {
            cluster,
            timeline,
            log,
            tag,
        };
        for place in [other(ClusterId::new(7413), log), other(cluster, 2)] {
            let error = RollUp::parse(&place, &bytes).unwrap_err();
            assert!(error.to_string().contains("another place"), "{error}");
        }
    }

    #[test]
    fn a_later_version_is_told_apart() {
        let json = br#"{"format":2,"cluster":"7412","timeline":1,"log":1,"segments":[]}"#;
        let mut bytes = Vec::new();
        frame::FrameEncoder::new()
            .encode(frame::Compression::Lz4, json, &mut |piece| {
                bytes.extend_from_slice(piece)
            })
            .unwrap();
        let key = ObjectKey::RollUp {
            cluster: ClusterId::new(7412),
            timeline: TimelineId::FIRST,
            log: 1,
            tag: crc32fast::hash(&bytes),
        };
        let error = RollUp::parse(&key, &bytes).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Config);
    }
}
