//! Which members of a tar stream stand in which part: follows the headers from part to part.
//!
//! Pure. Knows of tar (POSIX ustar, as PostgreSQL 15 to 18 write it) only where members begin and how long they are. Does not cut the
//! stream (`parts.rs`) and extracts nothing; names come from the server and are not to be trusted as paths.

use repository::backup::ContinuedMember;
use tar::{EntryType, Header};

/// Bytes of a header, and what contents are padded to.
const BLOCK_BYTES: usize = 512;
/// Where a header keeps its checksum, for whose sake those bytes count as spaces.
const CHECKSUM_FIELD: std::ops::Range<usize> = 148..156;

/// What one part of a tar stream holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PartMembers {
    /// Name of the first member whose header stands here.
    pub(super) first_member: Option<String>,
    /// The member that the part before left open.
    pub(super) continued: Option<ContinuedMember>,
}

/// A tar stream, as far as it was followed.
#[derive(Debug, Default)]
pub(super) struct TarMembers {
    open: Option<OpenMember>,
    ended: bool,
}

#[derive(Debug)]
struct OpenMember {
    name: Vec<u8>,
    mode: u32,
    /// Bytes of contents.
    size: u64,
    /// Bytes of contents and padding.
    padded: u64,
    /// How many of these have passed.
    passed: u64,
}

impl TarMembers {
    /// Walks over the next part. Every part but the last is a multiple of 512 bytes, so that no header is split.
    ///
    /// # Errors
    /// Why the stream is not one that could be restored.
    pub(super) fn walk(&mut self, part: &[u8]) -> Result<PartMembers, String> {
        let mut members = PartMembers {
            first_member: None,
            continued: self.open.as_ref().map(OpenMember::continued).transpose()?,
        };
        let mut rest = part;
        loop {
            if let Some(open) = &mut self.open {
                let left = usize::try_from(open.padded - open.passed).unwrap_or(usize::MAX);
                let (here, after) = rest.split_at(left.min(rest.len()));
                open.passed += here.len() as u64;
                rest = after;
                if open.passed < open.padded {
                    return Ok(members);
                }
                self.open = None;
            }
            if rest.is_empty() {
                return Ok(members);
            }
            if self.ended {
                return match rest.iter().all(|byte| *byte == 0) {
                    true => Ok(members),
                    false => Err("data behind the end mark".to_owned()),
                };
            }
            let (block, after) = rest
                .split_first_chunk::<BLOCK_BYTES>()
                .ok_or("it ends inside a header")?;
            rest = after;
            match OpenMember::parse(block)? {
                None => self.ended = true,
                Some(member) => {
                    let name = String::from_utf8_lossy(&member.name);
                    members.first_member.get_or_insert(name.into_owned());
                    self.open = Some(member);
                }
            }
        }
    }

    /// Whether the stream came to its end mark.
    ///
    /// # Errors
    /// Where it broke off.
    pub(super) fn finish(&self) -> Result<(), String> {
        match (&self.open, self.ended) {
            (None, true) => Ok(()),
            (None, false) => Err("it ends without an end mark".to_owned()),
            (Some(open), _) => Err(format!("it ends inside {}", open.display_name())),
        }
    }
}

/// The member a stream begins with, its name and contents, if they stand whole in its first part.
pub(super) fn leading_file(part: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (block, rest) = part.split_first_chunk::<BLOCK_BYTES>()?;
    let member = OpenMember::parse(block).ok()??;
    let contents = rest.get(..usize::try_from(member.size).ok()?)?;
    Some((member.name, contents))
}

impl OpenMember {
    /// `None` for a block of zeros, which marks the end.
    fn parse(block: &[u8; BLOCK_BYTES]) -> Result<Option<Self>, String> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(block);
        let bad = |error: std::io::Error| format!("a header that cannot be read: {error}");
        if header.cksum().map_err(bad)? != checksum(block) {
            return Err("a header whose checksum does not fit".to_owned());
        }
        let size = match header.entry_type() {
            EntryType::Directory
            | EntryType::Symlink
            | EntryType::Link
            | EntryType::Char
            | EntryType::Block
            | EntryType::Fifo => 0,
            _ => header.entry_size().map_err(bad)?,
        };
        let padded = size
            .checked_next_multiple_of(BLOCK_BYTES as u64)
            .ok_or("a member of impossible size")?;
        Ok(Some(Self {
            name: header.path_bytes().into_owned(),
            mode: header.mode().map_err(bad)? & 0o7777,
            size,
            padded,
            passed: 0,
        }))
    }

    fn continued(&self) -> Result<ContinuedMember, String> {
        // The descriptor is the only place a restore learns this name from, so it has to be exact.
        let name = std::str::from_utf8(&self.name).map_err(|_| {
            format!(
                "{} lies in two parts and its name is not UTF-8: rename or move it",
                self.display_name()
            )
        })?;
        Ok(ContinuedMember {
            name: name.to_owned(),
            offset: self.passed.min(self.size),
            size: self.size,
            mode: self.mode,
        })
    }

    fn display_name(&self) -> String {
        format!("{:?}", String::from_utf8_lossy(&self.name))
    }
}

fn checksum(block: &[u8; BLOCK_BYTES]) -> u32 {
    let byte = |(at, byte): (usize, &u8)| match CHECKSUM_FIELD.contains(&at) {
        true => u32::from(b' '),
        false => u32::from(*byte),
    };
    block.iter().enumerate().map(byte).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &[u8], size: usize) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(size as u64);
        header.set_mode(0o600);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(BLOCK_BYTES + size.next_multiple_of(BLOCK_BYTES), b'x');
        bytes
    }

    fn stream(members: &[(&str, usize)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, size) in members {
            bytes.extend(member(name.as_bytes(), *size));
        }
        bytes.extend([0; 2 * BLOCK_BYTES]);
        bytes
    }

    fn continued(name: &str, offset: u64, size: u64) -> ContinuedMember {
        ContinuedMember {
            name: name.into(),
            offset,
            size,
            mode: 0o600,
        }
    }

    #[test]
    fn every_part_says_what_begins_and_what_goes_on_in_it() {
        // Blocks: a-header | a 0..512 | a 512..600 + padding | empty-header | b-header | b | end | end
        let bytes = stream(&[("a", 600), ("empty", 0), ("b", 512)]);
        let walk = |part_blocks: usize| {
            let mut members = TarMembers::default();
            let parts: Vec<PartMembers> = bytes
                .chunks(part_blocks * BLOCK_BYTES)
                .map(|part| members.walk(part).unwrap())
                .collect();
            members.finish().unwrap();
            parts
        };
        let part = |first: Option<&str>, continued| PartMembers {
            first_member: first.map(str::to_owned),
            continued,
        };
        assert_eq!(walk(100), [part(Some("a"), None)]);
        assert_eq!(
            walk(2),
            [
                part(Some("a"), None),
                part(Some("empty"), Some(continued("a", 512, 600))),
                part(Some("b"), None),
                part(None, None),
            ]
        );
        assert_eq!(
            walk(1),
            [
                part(Some("a"), None),
                part(None, Some(continued("a", 0, 600))),
                part(None, Some(continued("a", 512, 600))),
                part(Some("empty"), None),
                part(Some("b"), None),
                part(None, Some(continued("b", 0, 512))),
                part(None, None),
                part(None, None),
            ]
        );
    }

    #[test]
    fn a_part_may_begin_with_nothing_but_padding() {
        let bytes = stream(&[("a", 513)]);
        let mut members = TarMembers::default();
        members.walk(&bytes[..3 * BLOCK_BYTES - 510]).unwrap();
        let rest = members.walk(&bytes[3 * BLOCK_BYTES - 510..]).unwrap();
        assert_eq!(rest.continued, Some(continued("a", 513, 513)));
    }

    #[test]
    fn refuses_what_could_not_be_restored() {
        let check = |bytes: &[u8], expected: &str| {
            let mut members = TarMembers::default();
            let error = members
                .walk(bytes)
                .and_then(|_| members.finish())
                .unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        let whole = stream(&[("a", 600)]);
        check(&whole[..1024], "it ends inside \"a\"");
        check(&whole[..3 * 512], "without an end mark");
        check(&whole[..3 * 512 + 7], "inside a header");
        let mut flipped = whole.clone();
        flipped[0] ^= 1;
        check(&flipped, "checksum does not fit");
        let mut more = whole.clone();
        more.extend(member(b"hidden", 0));
        check(&more, "data behind the end mark");
        let mut huge = Header::new_ustar();
        huge.set_size(u64::MAX - 5);
        huge.set_cksum();
        check(huge.as_bytes(), "impossible size");

        let mut foreign = member(b"\xff", 600);
        foreign.extend([0; 1024]);
        let mut members = TarMembers::default();
        members.walk(&foreign[..512]).unwrap();
        assert!(
            members
                .walk(&foreign[512..])
                .unwrap_err()
                .contains("not UTF-8")
        );
    }

    #[test]
    fn the_leading_file_is_read_if_it_is_whole() {
        let bytes = stream(&[("a", 600), ("b", 1)]);
        let expected = Some((b"a".to_vec(), &[b'x'; 600][..]));
        assert_eq!(leading_file(&bytes), expected);
        for short in [&bytes[..512 + 599], &bytes[..511], &[0; 1024]] {
            assert_eq!(leading_file(short), None);
        }
    }

    #[test]
    fn sizes_beyond_8_gib_are_read() {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[0] = b'a';
        header.set_size(20 << 30);
        header.set_mode(0o600);
        header.set_cksum();
        let mut members = TarMembers::default();
        members.walk(header.as_bytes()).unwrap();
        let next = members.walk(&[b'x'; 512]).unwrap();
        assert_eq!(next.continued, Some(continued("a", 0, 20 << 30)));
    }
}
