//! The header of a sealed object: an age v1 header with our stanza first, or a skippable frame where nothing is encrypted.
//!
//! Owns the bytes ahead of the payload, both ways, and their limits. Does not own the payload (`payload.rs`) nor the descriptor's
//! fields (`descriptor.rs`). Sources: C2SP `age.md` (header, HMAC), LZ4 frame format 1.6 (skippable frames).
//!
//! ```text
//! encrypted                                    plain
//! age-encryption.org/v1                        57 2A 4D 18      skippable frame magic, little-endian
//! -> walden.v1 <CRC-32, 8 hex>                 u32              bytes that follow, little-endian
//! <descriptor JSON, base64, 64 columns>        walden.v1 <CRC-32, 8 hex>\n
//! -> X25519 <ephemeral share>                  <descriptor JSON>
//! <wrapped file key>
//! --- <HMAC-SHA-256 of all the above>
//! ```
//! The CRC-32 covers the JSON and, in an encrypted object, the text of the stanzas behind ours: so a damaged header is told from a
//! wrong key. It proves nothing against an attacker; the HMAC does.

use age_core::format::{FileKey, Stanza};
use age_core::primitives::hkdf;
use age_core::secrecy::ExposeSecret;
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::descriptor::{Descriptor, MAX_DESCRIPTOR_BYTES};
use crate::{Error, Result};

/// Longest header, in bytes: a reader refuses more without reading on.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Most stanzas in a header.
pub const MAX_STANZAS: usize = 32;
/// Most recipients an object is sealed for.
pub const MAX_RECIPIENTS: usize = 16;

const AGE_MAGIC: &[u8] = b"age-encryption.org/v1\n";
const DESCRIPTOR_TAG: &str = "walden.v1";
const SKIPPABLE_MAGIC: [u8; 4] = 0x184D_2A57_u32.to_le_bytes();
const COLUMNS: usize = 64;

/// A parsed header.
#[derive(Debug)]
pub(crate) struct Header {
    /// What the object says of itself; `None` for an age file of another writer.
    pub(crate) descriptor: Option<Descriptor>,
    /// Bytes of the header; the payload starts here.
    pub(crate) length: usize,
    /// How to get at the payload.
    pub(crate) protection: Protection,
}

/// Encrypted or not.
#[derive(Debug)]
pub(crate) enum Protection {
    /// Nothing is encrypted.
    Plain,
    /// An age header: the stanzas and what its HMAC covers.
    Age {
        /// All stanzas, ours included.
        stanzas: Vec<Stanza>,
        /// Length of the bytes the HMAC covers, from the start.
        covered: usize,
        /// The HMAC.
        mac: [u8; 32],
    },
}

/// Spells the header of an encrypted object.
pub(crate) fn encode_age(json: &[u8], wrapped: &[Stanza], file_key: &FileKey) -> Vec<u8> {
    let mut recipients = Vec::new();
    for stanza in wrapped {
        encode_stanza(&mut recipients, &stanza.tag, &stanza.args, &stanza.body);
    }
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(json);
    checksum.update(&recipients);
    let mut header = AGE_MAGIC.to_vec();
    encode_stanza(
        &mut header,
        DESCRIPTOR_TAG,
        &[format!("{:08x}", checksum.finalize())],
        json,
    );
    header.extend_from_slice(&recipients);
    header.extend_from_slice(b"---");
    let mac = header_mac(file_key, &header).finalize().into_bytes();
    header.push(b' ');
    header.extend_from_slice(BASE64_STANDARD_NO_PAD.encode(mac).as_bytes());
    header.push(b'\n');
    header
}

/// Spells the header of an unencrypted object.
pub(crate) fn encode_plain(json: &[u8]) -> Vec<u8> {
    let line = format!("{DESCRIPTOR_TAG} {:08x}\n", crc32fast::hash(json));
    let size = u32::try_from(line.len() + json.len()).expect("descriptors are at most 2 KiB");
    let mut header = SKIPPABLE_MAGIC.to_vec();
    header.extend_from_slice(&size.to_le_bytes());
    header.extend_from_slice(line.as_bytes());
    header.extend_from_slice(json);
    header
}

/// Whether the HMAC of `header` fits the file key.
pub(crate) fn mac_fits(file_key: &FileKey, covered: &[u8], mac: &[u8; 32]) -> bool {
    header_mac(file_key, covered).verify_slice(mac).is_ok()
}

fn header_mac(file_key: &FileKey, covered: &[u8]) -> Hmac<Sha256> {
    let key = hkdf(&[], b"header", file_key.expose_secret());
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&key).expect("HMAC takes any key");
    mac.update(covered);
    mac
}

fn encode_stanza(out: &mut Vec<u8>, tag: &str, args: &[String], body: &[u8]) {
    out.extend_from_slice(b"-> ");
    out.extend_from_slice(tag.as_bytes());
    for arg in args {
        out.push(b' ');
        out.extend_from_slice(arg.as_bytes());
    }
    out.push(b'\n');
    let encoded = BASE64_STANDARD_NO_PAD.encode(body);
    for line in encoded.as_bytes().chunks(COLUMNS) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    // The last line of a body is always shorter than the others, if need be empty.
    if encoded.len().is_multiple_of(COLUMNS) {
        out.push(b'\n');
    }
}

/// Reads the header at the start of `object`, which may be cut behind [`MAX_HEADER_BYTES`].
///
/// # Errors
/// `Corrupt`: no header of ours or of age, a damaged one, one over the limits. `Config`: one of a later version.
pub(crate) fn parse(object: &[u8], key: &str) -> Result<Header> {
    let head = &object[..object.len().min(MAX_HEADER_BYTES)];
    if head.starts_with(AGE_MAGIC) {
        parse_age(head, key)
    } else if head.starts_with(&SKIPPABLE_MAGIC) {
        parse_plain(head, key)
    } else {
        Err(Error::NoDescriptor {
            key: key.to_owned(),
        })
    }
}

fn parse_plain(head: &[u8], key: &str) -> Result<Header> {
    let damaged = |what: &str| damaged(key, what);
    let size = head
        .get(4..8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes);
    let size = size.ok_or_else(|| damaged("cut off within the header"))? as usize;
    if size > MAX_DESCRIPTOR_BYTES + 64 {
        return Err(damaged("a header larger than any of format 1"));
    }
    let content = head
        .get(8..8 + size)
        .ok_or_else(|| damaged("cut off within the header"))?;
    let end = content
        .iter()
        .position(|b| *b == b'\n')
        .ok_or_else(|| damaged("a header without a first line"))?;
    let (line, json) = (&content[..end], &content[end + 1..]);
    let expected = format!("{DESCRIPTOR_TAG} {:08x}", crc32fast::hash(json));
    if line != expected.as_bytes() {
        return Err(damaged("the checksum of the header does not fit"));
    }
    let descriptor = Some(Descriptor::parse(json, key)?);
    Ok(Header {
        descriptor,
        length: 8 + size,
        protection: Protection::Plain,
    })
}

fn parse_age(head: &[u8], key: &str) -> Result<Header> {
    let mut lines = Lines {
        bytes: head,
        at: AGE_MAGIC.len(),
        key,
    };
    let mut stanzas = Vec::new();
    // Bytes of the header from the end of our stanza to the line of the HMAC: what its checksum covers.
    let mut behind_first = AGE_MAGIC.len();
    loop {
        let start = lines.at;
        let line = lines.next()?;
        if let Some(mac) = line.strip_prefix(b"--- ") {
            let covered = start + 3;
            let mac = decode_base64(mac).and_then(|mac| mac.try_into().ok());
            let mac =
                mac.ok_or_else(|| damaged(key, "the last line of the header is malformed"))?;
            let descriptor = read_descriptor(&stanzas, &head[behind_first..start], key)?;
            let protection = Protection::Age {
                stanzas,
                covered,
                mac,
            };
            return Ok(Header {
                descriptor,
                length: lines.at,
                protection,
            });
        }
        if stanzas.len() == MAX_STANZAS {
            return Err(damaged(
                key,
                "a header with more stanzas than any of format 1",
            ));
        }
        stanzas.push(parse_stanza(line, &mut lines)?);
        if stanzas.len() == 1 {
            behind_first = lines.at;
        }
    }
}

fn parse_stanza(first_line: &[u8], lines: &mut Lines<'_>) -> Result<Stanza> {
    let malformed = || damaged(lines.key, "a line of the header is malformed");
    let words = first_line
        .strip_prefix(b"-> ")
        .and_then(|words| str::from_utf8(words).ok());
    let mut words = words.ok_or_else(malformed)?.split(' ').map(str::to_owned);
    let tag = words.next().unwrap_or_default();
    let args: Vec<String> = words.collect();
    if !age_core::format::is_arbitrary_string(&tag)
        || !args.iter().all(age_core::format::is_arbitrary_string)
    {
        return Err(malformed());
    }
    let mut encoded = Vec::new();
    loop {
        let line = lines.next()?;
        encoded.extend_from_slice(line);
        match line.len() {
            COLUMNS => {}
            0..COLUMNS => break,
            _ => return Err(damaged(lines.key, "a line of the header is too long")),
        }
    }
    let body = decode_base64(&encoded)
        .ok_or_else(|| damaged(lines.key, "a line of the header is malformed"))?;
    Ok(Stanza { tag, args, body })
}

fn read_descriptor(stanzas: &[Stanza], behind: &[u8], key: &str) -> Result<Option<Descriptor>> {
    let Some(stanza) = stanzas
        .first()
        .filter(|stanza| stanza.tag == DESCRIPTOR_TAG)
    else {
        return Ok(None);
    };
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&stanza.body);
    checksum.update(behind);
    if stanza.args != [format!("{:08x}", checksum.finalize())] {
        return Err(damaged(key, "the checksum of the header does not fit"));
    }
    Descriptor::parse(&stanza.body, key).map(Some)
}

/// Canonical base64 without padding: trailing bits must be zero (the engine refuses others).
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    BASE64_STANDARD_NO_PAD.decode(text).ok()
}

struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    key: &'a str,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            let what = if self.bytes.len() >= MAX_HEADER_BYTES {
                "a header larger than any of format 1"
            } else {
                "cut off within the header"
            };
            return Err(damaged(self.key, what));
        };
        self.at += end + 1;
        Ok(&rest[..end])
    }
}

fn damaged(key: &str, what: &str) -> Error {
    Error::Damaged {
        key: key.to_owned(),
        what: what.to_owned(),
    }
}
