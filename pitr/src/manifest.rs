//! The list of files in PostgreSQL's `backup_manifest`, and whether what was written is what it lists (pure). Whose it is and its WAL
//! ranges are read in `repository::manifest`; nothing here reads files.

use crate::error::{Error, Result};
use crate::tar_slice::check_path;
use crc_fast::CrcAlgorithm;
use repository::key::Archive;
use repository::manifest::ManifestFacts;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use wal_format::{Lsn, TimelineId};

/// The name of the object in errors.
const OBJECT: &str = "backup_manifest";

/// One file of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Size in bytes.
    pub size: u64,
    /// CRC-32C of its bytes; `None` where the backup was taken with another checksum or none.
    pub crc32c: Option<u32>,
}

/// What a restore reads of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Files by path below the data directory; those of tablespaces below `pg_tblspc/<oid>`.
    pub files: BTreeMap<String, FileFacts>,
    /// Whose backup it is; absent before PostgreSQL 17.
    pub system_identifier: Option<u64>,
    /// First byte of WAL it needs, and the timeline.
    pub start: (TimelineId, Lsn),
    /// First byte of WAL it no longer needs, and the timeline.
    pub stop: (TimelineId, Lsn),
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Files")]
    files: Vec<FileEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FileEntry {
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    checksum: Option<String>,
}

impl Manifest {
    /// Reads a manifest and compares its checksum of itself.
    ///
    /// # Errors
    /// `Corrupt`: not a manifest, damaged, or with paths that could leave the data directory.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let facts = ManifestFacts::parse(bytes).map_err(integrity)?;
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| integrity(format!("cannot be read: {error}")))?;
        let mut files = BTreeMap::new();
        for entry in &document.files {
            let (path, facts) = entry.read()?;
            if files.insert(path.clone(), facts).is_some() {
                return Err(integrity(format!("lists {path:?} twice")));
            }
        }
        let (Some((start, first)), Some((stop, last))) = (facts.start(), facts.stop()) else {
            return Err(integrity("it has no WAL range".into()));
        };
        Ok(Self {
            files,
            system_identifier: facts.system_identifier,
            start: (first, start),
            stop: (last, stop),
        })
    }
}

impl Manifest {
    /// What it lists of a file that has `size` bytes in the backup.
    ///
    /// # Errors
    /// `Corrupt`: it does not list the file, or with another size.
    pub fn expect(&self, name: &str, size: u64) -> Result<FileFacts> {
        let fail = |reason: String| Error::Integrity {
            object: name.to_owned(),
            reason,
        };
        let facts = self
            .files
            .get(name)
            .ok_or_else(|| fail("is in the backup and not in its manifest".into()))?;
        match facts.size == size {
            true => Ok(*facts),
            false => Err(fail(format!(
                "has {size} bytes in the backup, {} in the manifest",
                facts.size
            ))),
        }
    }
}

/// The name in the manifest of a path in a backup's tar stream.
pub fn name_of(archive: Archive, path: &str) -> String {
    match archive {
        Archive::Base => path.to_owned(),
        Archive::Tablespace(oid) => format!("pg_tblspc/{oid}/{path}"),
    }
}

/// Which files of a backup have come whole.
#[derive(Debug, Default)]
pub struct FileLedger {
    /// Files whose pieces have not all come.
    open: BTreeMap<String, PieceSums>,
    whole: BTreeSet<String>,
}

impl FileLedger {
    /// Takes a piece of a file.
    ///
    /// # Errors
    /// `Corrupt`: it was the last piece, and the file's checksum is not the one listed.
    pub fn note(&mut self, name: &str, facts: FileFacts, piece: PieceSums) -> Result<()> {
        let sums = self.open.entry(name.to_owned()).or_default();
        sums.merge(piece);
        let Some(sum) = sums.whole(facts.size) else {
            return Ok(());
        };
        self.open.remove(name);
        if facts.crc32c.is_some_and(|expected| expected != sum) {
            return Err(wrong_checksum(name));
        }
        self.whole.insert(name.to_owned());
        Ok(())
    }

    /// Whether a file has come whole, and fits.
    pub fn is_whole(&self, name: &str) -> bool {
        self.whole.contains(name)
    }
}

pub(crate) fn wrong_checksum(name: &str) -> Error {
    Error::Integrity {
        object: name.to_owned(),
        reason: "its bytes do not have the checksum that the manifest lists".into(),
    }
}

impl FileEntry {
    fn read(&self) -> Result<(String, FileFacts)> {
        let path = match (&self.path, &self.encoded_path) {
            (Some(path), None) => path.clone(),
            (None, Some(encoded)) => decode_hex(encoded)
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| {
                    integrity(format!(
                        "has a path that is not UTF-8 ({encoded}): such files cannot be restored"
                    ))
                })?,
            _ => return Err(integrity("has a file without a path".into())),
        };
        check_path(&path).map_err(integrity)?;
        let crc32c = match (self.algorithm.as_deref(), &self.checksum) {
            (Some("CRC32C"), Some(hex)) => {
                // The server prints the bytes as they stand in its memory.
                let bytes = decode_hex(hex).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
                Some(bytes.map(u32::from_le_bytes).ok_or_else(|| {
                    integrity(format!("has a checksum that makes no sense for {path:?}"))
                })?)
            }
            _ => None,
        };
        Ok((
            path,
            FileFacts {
                size: self.size,
                crc32c,
            },
        ))
    }
}

/// CRC-32C as the manifest has it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    low_half(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// The pieces of one file, each with its CRC-32C, as they arrive in any order.
#[derive(Clone, Debug, Default)]
pub struct PieceSums {
    /// Offset to length and CRC-32C.
    pieces: BTreeMap<u64, (u64, u32)>,
}

impl PieceSums {
    /// Adds a piece.
    pub fn add(&mut self, offset: u64, bytes: &[u8]) {
        self.pieces
            .insert(offset, (bytes.len() as u64, crc32c(bytes)));
    }

    /// Adds the pieces of another.
    pub fn merge(&mut self, other: Self) {
        self.pieces.extend(other.pieces);
    }

    /// The CRC-32C of the whole file; `None` while pieces are missing.
    pub fn whole(&self, size: u64) -> Option<u32> {
        let mut end = 0;
        let mut sum = 0;
        for (offset, (length, crc)) in &self.pieces {
            if *offset != end {
                return None;
            }
            end += length;
            sum =
                crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, sum, u64::from(*crc), *length);
        }
        (end == size).then_some(low_half(sum))
    }
}

/// A CRC of 32 bits comes in a 64-bit number.
fn low_half(sum: u64) -> u32 {
    u32::try_from(sum & u64::from(u32::MAX)).unwrap_or_default()
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(
        digits
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect(),
    )
}

fn integrity(reason: String) -> Error {
    Error::Integrity {
        object: OBJECT.into(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    fn manifest(files: &str) -> Vec<u8> {
        let mut text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7412345678901234567,\n\"Files\": [\n{files}],\n\"WAL-Ranges\": [\n{{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000120\" }}\n],\n"
        );
        let sum: String = Sha256::digest(text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        text.push_str(&format!("\"Manifest-Checksum\": \"{sum}\"}}\n"));
        text.into_bytes()
    }

    #[test]
    fn reads_files_and_the_range() {
        let bytes = manifest(
            "{ \"Path\": \"base/1/2\", \"Size\": 9, \"Last-Modified\": \"x\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"839206e3\" },\n{ \"Encoded-Path\": \"c3a9\", \"Size\": 0 }\n",
        );
        let found = Manifest::parse(&bytes).unwrap();
        // The check value of CRC-32C, in memory order.
        assert_eq!(
            found.files["base/1/2"],
            FileFacts {
                size: 9,
                crc32c: Some(crc32c(b"123456789"))
            }
        );
        assert_eq!(found.files["é"].crc32c, None);
        assert_eq!(found.stop, (TimelineId::FIRST, Lsn::new(0x2000120)));
        assert_eq!(found.system_identifier, Some(7412345678901234567));
        let mut damaged = bytes.clone();
        let at = damaged.windows(2).position(|pair| pair == b"9,").unwrap();
        damaged[at] = b'8';
        assert!(
            Manifest::parse(&damaged)
                .unwrap_err()
                .to_string()
                .contains("checksum of itself")
        );
    }

    #[test]
    fn refuses_what_no_server_writes() {
        for files in [
            "{ \"Path\": \"../x\", \"Size\": 0 }",
            "{ \"Path\": \"/x\", \"Size\": 0 }",
            "{ \"Encoded-Path\": \"2e2e\", \"Size\": 0 }",
            "{ \"Encoded-Path\": \"ff\", \"Size\": 0 }",
            "{ \"Size\": 0 }",
            "{ \"Path\": \"x\", \"Size\": -1 }",
            "{ \"Path\": \"x\", \"Size\": 0, \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"12\" }",
            "{ \"Path\": \"x\", \"Size\": 0 }, { \"Path\": \"x\", \"Size\": 0 }",
        ] {
            let error = Manifest::parse(&manifest(files)).unwrap_err();
            assert_eq!(error.class(), repository::ErrorClass::Corrupt, "{files}");
        }
        assert!(Manifest::parse(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_sum_to_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..500), cut in 1_usize..100, reverse: bool) {
            let mut sums = PieceSums::default();
            let mut pieces: Vec<(usize, &[u8])> = bytes.chunks(cut).enumerate().map(|(index, piece)| (index * cut, piece)).collect();
            if reverse {
                pieces.reverse();
            }
            for (index, (offset, piece)) in pieces.iter().enumerate() {
                prop_assert!(index == 0 || sums.whole(bytes.len() as u64).is_none());
                sums.add(*offset as u64, piece);
            }
            prop_assert_eq!(sums.whole(bytes.len() as u64), Some(crc32c(&bytes)));
        }
    }
}
