//! The sealed object: compress, encrypt and checksum plain bytes into one object, and back.
//!
//! Owns the order of the work and every check on the way back. Does not own where objects are stored (`store.rs`), where keys come
//! from (`identity.rs`), or what the plain bytes mean. The format is in `docs/repository-format.md`, "Sealed objects".

pub(crate) mod frame;
mod header;
mod payload;
mod pool;

use age_core::format::FileKey;
use bytes::{Bytes, BytesMut};

pub use self::frame::Compression;
use self::header::{Header, Protection};
pub use self::header::{MAX_HEADER_BYTES, MAX_RECIPIENTS, MAX_STANZAS};
use self::payload::PayloadWriter;
pub use self::pool::BufferPool;
use crate::descriptor::{Descriptor, FORMAT, WalDescriptor};
use crate::identity::{Identities, Recipients};
use crate::key::ObjectKey;
use crate::{Error, Result};

/// What sealing needs to know beyond the bytes.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where the object will stand.
    pub key: ObjectKey,
    /// PostgreSQL's major version.
    pub pg_version: u16,
    /// What only WAL has.
    pub wal: Option<WalDescriptor>,
}

/// An object ready to be stored: its header and its payload, in this order.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Where it belongs.
    pub key: ObjectKey,
    /// What it says of itself.
    pub descriptor: Descriptor,
    /// The first bytes.
    pub header: Bytes,
    /// The rest.
    pub payload: Bytes,
}

impl Sealed {
    /// An object as it is stored, held against what it says of itself: see [`check_stored`]. Needs no key.
    ///
    /// # Errors
    /// As [`check_stored`].
    pub fn from_stored(key: ObjectKey, object: Bytes) -> Result<Self> {
        let (descriptor, length, _) = parse_stored(&key, &object)?;
        Ok(Self {
            key,
            descriptor,
            header: object.slice(..length),
            payload: object.slice(length..),
        })
    }

    /// Size in bytes as stored.
    #[must_use]
    pub fn stored_size(&self) -> u64 {
        (self.header.len() + self.payload.len()) as u64
    }
}

/// How a repository's objects are sealed.
#[derive(Clone, Debug)]
pub struct SealPolicy {
    /// Whom objects are encrypted for; `None` where `encryption = "none"` is configured.
    pub recipients: Option<Recipients>,
    /// How plain bytes are compressed.
    pub compression: Compression,
    /// Leaves checksums of plain bytes out of descriptors (`descriptor = "minimal"`).
    pub minimal_descriptor: bool,
}

/// Seals objects one after the other; one for each worker thread, as it keeps its buffers.
pub struct Sealer {
    policy: SealPolicy,
    encoder: frame::FrameEncoder,
    pool: BufferPool,
}

impl Sealer {
    /// A sealer that takes payload buffers from `pool` and gives them back when the object is dropped.
    #[must_use]
    pub fn new(policy: SealPolicy, pool: BufferPool) -> Self {
        Self {
            policy,
            encoder: frame::FrameEncoder::new(),
            pool,
        }
    }

    /// Seals `plain`. The file key and the nonce are fresh for each object.
    ///
    /// # Errors
    /// `Bug`: a descriptor over its limit, or an object that belongs to no cluster. `Retry`: the system has no randomness.
    pub fn seal(&mut self, facts: Facts, plain: &[u8]) -> Result<Sealed> {
        let name = facts.key.to_string();
        let unsealable = |reason: String| Error::Unsealable {
            key: name.clone(),
            reason,
        };
        let cluster = facts
            .key
            .cluster()
            .ok_or_else(|| unsealable("it belongs to no cluster".into()))?;
        let buffer = self.pool.take(payload::bound(frame::bound(plain.len())));
        let (mut writer, file_key) = if self.policy.recipients.is_some() {
            let mut nonce = [0; payload::NONCE];
            let random = |bytes: &mut [u8]| {
                getrandom::fill(bytes).map_err(|error| Error::Io {
                    action: "read randomness for",
                    path: name.clone().into(),
                    source: std::io::Error::other(error.to_string()),
                })
            };
            random(&mut nonce)?;
            let file_key = FileKey::try_init_with_mut(|key| random(key))?;
            (
                PayloadWriter::encrypted(buffer, &file_key, nonce),
                Some(file_key),
            )
        } else {
            (PayloadWriter::plain(buffer), None)
        };
        let plain_crc32 = self
            .encoder
            .encode(self.policy.compression, plain, &mut |bytes| {
                writer.write(bytes)
            })
            .map_err(|error| unsealable(error.to_string()))?;
        let (payload, payload_crc32) = writer.finish();

        // A history file is told from another one of its length by nothing else; what it says, the lineage of each segment says too.
        let hide_checksum = match facts.key {
            ObjectKey::Tail { .. } => true,
            ObjectKey::History { .. } => false,
            _ => self.policy.minimal_descriptor,
        };
        let descriptor = Descriptor {
            format: FORMAT,
            requires: Vec::new(),
            key: name.clone(),
            kind: facts.key.kind().to_owned(),
            system_identifier: cluster.system_identifier,
            pg_version: facts.pg_version,
            plain_size: plain.len() as u64,
            payload_size: payload.len() as u64,
            payload_crc32,
            plain_crc32: (!hide_checksum).then_some(plain_crc32),
            wal: facts.wal,
        };
        let json = descriptor.encode()?;
        let header = match (&self.policy.recipients, &file_key) {
            (Some(recipients), Some(file_key)) => {
                header::encode_age(&json, &recipients.wrap(file_key)?, file_key)
            }
            _ => header::encode_plain(&json),
        };
        if header.len() > MAX_HEADER_BYTES {
            return Err(unsealable(format!("a header of {} bytes", header.len())));
        }
        Ok(Sealed {
            key: facts.key,
            descriptor,
            header: header.into(),
            payload: self.pool.lend(payload),
        })
    }
}

/// Reads what an object says of itself from its first bytes (at most [`MAX_HEADER_BYTES`] are looked at), without a key.
///
/// # Errors
/// `Corrupt`: no descriptor, a damaged header, or the object of another key. `Config`: written by a later version.
pub fn read_descriptor(key: &ObjectKey, head: &[u8]) -> Result<Descriptor> {
    described(key, head).map(|(descriptor, _)| descriptor)
}

/// As [`read_descriptor`], with the bytes that the whole object has if nothing of it is missing.
pub(crate) fn described(key: &ObjectKey, head: &[u8]) -> Result<(Descriptor, u64)> {
    let name = key.to_string();
    let header = header::parse(head, &name)?;
    let descriptor = header.descriptor.ok_or(Error::NoDescriptor { key: name })?;
    descriptor.check_place(key)?;
    let size = (header.length as u64).saturating_add(descriptor.payload_size);
    Ok((descriptor, size))
}

/// Holds an object as it is stored against what it says of itself: its place, its size, the checksums of header and payload. Needs no
/// key, and therefore finds accidents only.
///
/// # Errors
/// `Corrupt`: damaged, cut off, misplaced or without a descriptor. `Config`: written by a later version.
pub fn check_stored(key: &ObjectKey, object: &[u8]) -> Result<Descriptor> {
    parse_stored(key, object).map(|(descriptor, ..)| descriptor)
}

/// As [`check_stored`], with the header's length and how to get at the payload.
fn parse_stored(key: &ObjectKey, object: &[u8]) -> Result<(Descriptor, usize, Protection)> {
    let name = key.to_string();
    let damaged = |what: String| Error::Damaged {
        key: name.clone(),
        what,
    };
    let Header {
        descriptor,
        length,
        protection,
    } = header::parse(object, &name)?;
    let descriptor = descriptor.ok_or_else(|| Error::NoDescriptor { key: name.clone() })?;
    descriptor.check_place(key)?;
    let payload = object.get(length..).unwrap_or_default();
    if payload.len() as u64 != descriptor.payload_size {
        return Err(damaged(format!(
            "cut off or grown: {} bytes follow the header, {} were stored",
            payload.len(),
            descriptor.payload_size
        )));
    }
    if crc32fast::hash(payload) != descriptor.payload_crc32 {
        return Err(damaged(
            "the checksum of the stored bytes does not fit".into(),
        ));
    }
    Ok((descriptor, length, protection))
}

/// How objects are opened.
#[derive(Clone, Debug, Default)]
pub struct OpenPolicy {
    /// The identities that may open objects; none where nothing is encrypted.
    pub identities: Identities,
    /// Accept unencrypted objects although there are identities.
    pub allow_plain: bool,
}

impl OpenPolicy {
    /// Opens `object`, found at `key`: checks its place, its checksums, the header's HMAC and every tag, and decompresses it into
    /// `plain`, which is emptied and keeps its allocation. At most `limit` plain bytes are accepted.
    ///
    /// # Errors
    /// `Corrupt`: damaged, cut off, misplaced or without a descriptor. `Key`: no identity, or none that fits. `Config`: a later
    /// version, or unencrypted although identities are configured. `plain` then holds nothing to be used.
    pub fn open(
        &self,
        key: &ObjectKey,
        object: Bytes,
        limit: usize,
        plain: &mut Vec<u8>,
    ) -> Result<Descriptor> {
        plain.clear();
        let name = key.to_string();
        let damaged = |what: String| Error::Damaged {
            key: name.clone(),
            what,
        };
        let (descriptor, length, protection) = parse_stored(key, &object)?;
        self.unseal(&name, object, length, &protection, limit, plain)?;
        if plain.len() as u64 != descriptor.plain_size {
            return Err(damaged(format!(
                "{} plain bytes, {} were stored",
                plain.len(),
                descriptor.plain_size
            )));
        }
        if descriptor
            .plain_crc32
            .is_some_and(|crc| crc != crc32fast::hash(plain))
        {
            return Err(damaged(
                "the checksum of the plain bytes does not fit".into(),
            ));
        }
        Ok(descriptor)
    }

    /// Opens an age file with an LZ4 or zstd frame in it, or a bare frame behind our header, whoever made it: no descriptor is
    /// asked for, so nothing is known of its place. For tests and tools; hooks and restores use [`OpenPolicy::open`].
    ///
    /// # Errors
    /// As [`OpenPolicy::open`].
    pub fn open_undescribed(
        &self,
        name: &str,
        object: Bytes,
        limit: usize,
        plain: &mut Vec<u8>,
    ) -> Result<()> {
        plain.clear();
        let Header {
            length, protection, ..
        } = header::parse(&object, name)?;
        self.unseal(name, object, length, &protection, limit, plain)
    }

    fn unseal(
        &self,
        name: &str,
        object: Bytes,
        length: usize,
        protection: &Protection,
        limit: usize,
        plain: &mut Vec<u8>,
    ) -> Result<()> {
        let damaged = |what: String| Error::Damaged {
            key: name.to_owned(),
            what,
        };
        match protection {
            Protection::Plain => {
                if !self.identities.is_empty() && !self.allow_plain {
                    return Err(Error::PlainRefused {
                        key: name.to_owned(),
                    });
                }
                frame::decode(&object[length..], limit, plain).map_err(damaged)
            }
            Protection::Age {
                stanzas,
                covered,
                mac,
            } => {
                let file_key = self.identities.unwrap(name, stanzas)?;
                if !header::mac_fits(&file_key, &object[..*covered], mac) {
                    return Err(damaged(
                        "the header was changed: its HMAC does not fit".into(),
                    ));
                }
                // In place where nobody else holds the bytes, which is how the store hands them over.
                let mut object = object
                    .try_into_mut()
                    .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
                let payload = &mut object[length..];
                let frame = payload::decrypt_in_place(&file_key, payload).ok_or_else(|| {
                    damaged("the stored bytes were changed: a tag does not fit".into())
                })?;
                frame::decode(&payload[..frame], limit, plain).map_err(damaged)
            }
        }
    }
}
