//! What one part of a backup's tar stream holds (pure): folders, and pieces of files with their place in the file.
//!
//! Owns the reading of headers and the refusal of paths that could leave the data directory: the stream comes from a server, and with
//! `--allow-plain` from anybody who can write to the store. Writes nothing.

use crate::error::{Error, Result};
use repository::backup::ContinuedMember;
use std::ops::Range;
use tar::{EntryType, Header};

/// Bytes of a header, and what contents are padded to.
const BLOCK_BYTES: usize = 512;
/// Where a header keeps its checksum, for whose sake those bytes count as spaces.
const CHECKSUM_FIELD: Range<usize> = 148..156;
/// Longest path in bytes; tar's own limit is 255.
const MAX_PATH_BYTES: usize = 1024;

/// One entry of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Path in the stream: relative, without `..`, proven by [`check_path`].
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub content: SliceContent,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceContent {
    /// A folder.
    Folder,
    /// Bytes of a file.
    Piece {
        /// Size of the whole file in bytes.
        size: u64,
        /// Offset in the file of the first byte here.
        offset: u64,
        /// Where the bytes are in the part.
        bytes: Range<usize>,
    },
}

/// Reads a part. `continued` is the member that the part before left open.
///
/// # Errors
/// `Corrupt`, naming `object`: not such a stream, links or devices, or a path that could leave the data directory.
pub fn read_part(
    object: &str,
    part: &[u8],
    continued: Option<&ContinuedMember>,
) -> Result<Vec<Slice>> {
    let fail = |reason: String| Error::Integrity {
        object: object.to_owned(),
        reason,
    };
    let mut slices = Vec::new();
    let mut at = 0;
    if let Some(member) = continued {
        let left = member
            .size
            .checked_sub(member.offset)
            .ok_or_else(|| fail(format!("{} continues behind its end", member.name)))?;
        let slice = piece(
            &member.name,
            member.mode,
            member.size,
            member.offset,
            0,
            part.len(),
            left,
        )
        .map_err(fail)?;
        at = end_of_contents(part.len(), 0, left);
        slices.push(slice);
    }
    while at < part.len() {
        let rest = part.get(at..).unwrap_or_default();
        let block = rest
            .first_chunk::<BLOCK_BYTES>()
            .ok_or_else(|| fail("ends inside a header".into()))?;
        if block.iter().all(|byte| *byte == 0) {
            if rest.iter().any(|byte| *byte != 0) {
                return Err(fail("has data behind its end mark".into()));
            }
            break;
        }
        let header = Header::from_byte_slice(block);
        let unreadable =
            |error: std::io::Error| fail(format!("has a header that cannot be read: {error}"));
        if header.cksum().map_err(unreadable)? != checksum(block) {
            return Err(fail("has a header whose checksum does not fit".into()));
        }
        let path = header.path_bytes();
        let path = std::str::from_utf8(&path).map_err(|_| {
            fail(format!(
                "has a name that is not UTF-8: {}",
                String::from_utf8_lossy(&path)
            ))
        })?;
        // The server writes some folders as ./pg_wal.
        let path = path.strip_prefix("./").unwrap_or(path);
        let mode = header.mode().map_err(unreadable)? & 0o777;
        at += BLOCK_BYTES;
        match header.entry_type() {
            EntryType::Directory => {
                // The server names `./pg_wal/archive_status` and `./pg_wal/summaries` so.
                let path = path
                    .strip_prefix("./")
                    .unwrap_or(path)
                    .trim_end_matches('/');
                check_path(path).map_err(fail)?;
                slices.push(Slice {
                    path: path.to_owned(),
                    mode,
                    content: SliceContent::Folder,
                });
            }
            EntryType::Regular | EntryType::Continuous => {
                let size = header.entry_size().map_err(unreadable)?;
                slices.push(piece(path, mode, size, 0, at, part.len(), size).map_err(fail)?);
                at = end_of_contents(part.len(), at, size);
            }
            other => {
                return Err(fail(format!(
                    "{path} is neither a file nor a folder ({other:?})"
                )));
            }
        }
    }
    Ok(slices)
}

/// Why a path from a tar stream or a manifest must not be used, if it must not.
///
/// # Errors
/// The reason.
pub fn check_path(path: &str) -> std::result::Result<(), String> {
    let bad = path.len() > MAX_PATH_BYTES
        || path.contains('\0')
        || path.split('/').any(|part| matches!(part, "" | "." | ".."));
    match bad {
        true => Err(format!("path {path:?} could leave the data directory")),
        false => Ok(()),
    }
}

/// The piece of a file whose contents begin at `at` in a part of `length` bytes and of which `left` bytes are still to come.
fn piece(
    path: &str,
    mode: u32,
    size: u64,
    offset: u64,
    at: usize,
    length: usize,
    left: u64,
) -> std::result::Result<Slice, String> {
    check_path(path)?;
    let here = usize::try_from(left).unwrap_or(usize::MAX).min(length - at);
    Ok(Slice {
        path: path.to_owned(),
        mode,
        content: SliceContent::Piece {
            size,
            offset,
            bytes: at..at + here,
        },
    })
}

/// Where the next header is, or the part's end.
fn end_of_contents(length: usize, at: usize, left: u64) -> usize {
    usize::try_from(left)
        .ok()
        .and_then(|left| left.checked_next_multiple_of(BLOCK_BYTES))
        .and_then(|padded| at.checked_add(padded))
        .map_or(length, |end| end.min(length))
}

fn checksum(block: &[u8; BLOCK_BYTES]) -> u32 {
    let value = |(index, byte): (usize, &u8)| {
        if CHECKSUM_FIELD.contains(&index) {
            u32::from(b' ')
        } else {
            u32::from(*byte)
        }
    };
    block.iter().enumerate().map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn header(name: &str, size: u64, kind: EntryType) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(size);
        header.set_mode(0o600);
        header.set_entry_type(kind);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn file(name: &str, contents: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, contents.len() as u64, EntryType::Regular);
        bytes.extend_from_slice(contents);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }

    fn stream() -> (Vec<u8>, BTreeMap<String, Vec<u8>>) {
        let mut bytes = header("base/1/", 0, EntryType::Directory);
        let mut files = BTreeMap::new();
        for (index, size) in [0, 1, 511, 512, 513, 1024, 5000, 0, 700]
            .into_iter()
            .enumerate()
        {
            let contents: Vec<u8> = (0..size).map(|n| (n * 7 + index) as u8 | 1).collect();
            let name = format!("base/1/{index}");
            bytes.extend(file(&name, &contents));
            files.insert(name, contents);
        }
        bytes.resize(bytes.len() + 1024, 0);
        (bytes, files)
    }

    #[test]
    fn any_cut_at_blocks_gives_the_files_back() {
        let (stream, files) = stream();
        for blocks in 1..=stream.len() / BLOCK_BYTES {
            let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let mut open: Option<ContinuedMember> = None;
            for part in stream.chunks(blocks * BLOCK_BYTES) {
                let slices = read_part("part", part, open.as_ref()).unwrap();
                open = None;
                for slice in slices {
                    let SliceContent::Piece {
                        size,
                        offset,
                        bytes,
                    } = slice.content
                    else {
                        continue;
                    };
                    let contents = found.entry(slice.path.clone()).or_default();
                    assert_eq!(contents.len() as u64, offset);
                    contents.extend_from_slice(&part[bytes]);
                    let offset = contents.len() as u64;
                    open = (offset < size).then_some(ContinuedMember {
                        name: slice.path,
                        offset,
                        size,
                        mode: slice.mode,
                    });
                }
            }
            assert_eq!(found, files, "{blocks}");
            assert_eq!(open, None);
        }
    }

    #[test]
    fn the_servers_own_way_to_write_a_folder_is_understood() {
        let slices = read_part(
            "part",
            &header("./pg_wal/archive_status/", 0, EntryType::Directory),
            None,
        )
        .unwrap();
        assert_eq!(slices[0].path, "pg_wal/archive_status");
    }

    #[test]
    fn hostile_members_are_refused() {
        let check = |bytes: Vec<u8>, expected: &str| {
            let error = read_part("part", &bytes, None).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        for name in [
            "../x",
            "/etc/passwd",
            "base/../../x",
            "a//b",
            "././a",
            "a/.",
            "",
        ] {
            check(file(name, b"x"), "could leave the data directory");
        }
        check(header("../x/", 0, EntryType::Directory), "could leave");
        check(
            header("pg_tblspc/1", 0, EntryType::Symlink),
            "neither a file nor a folder",
        );
        check(
            header("x", 0, EntryType::Link),
            "neither a file nor a folder",
        );
        check(
            header("x", 0, EntryType::Block),
            "neither a file nor a folder",
        );
        let mut damaged = file("x", b"x");
        damaged[0] ^= 1;
        check(damaged, "checksum");
        check(vec![1; 100], "inside a header");
        let mut behind = vec![0; 1024];
        behind[1000] = 1;
        check(behind, "end mark");
        let outside = ContinuedMember {
            name: "../x".into(),
            offset: 0,
            size: 10,
            mode: 0o600,
        };
        assert!(read_part("part", &[0; 512], Some(&outside)).is_err());
        let negative = ContinuedMember {
            name: "x".into(),
            offset: 11,
            size: 10,
            mode: 0o600,
        };
        assert!(read_part("part", &[0; 512], Some(&negative)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), offset: u64, size: u64) {
            let continued = ContinuedMember { name: "x".into(), offset, size, mode: 0 };
            read_part("part", &bytes, Some(&continued)).ok();
            let mut stream = stream().0;
            for (index, byte) in bytes.iter().enumerate().step_by(50) {
                stream[index] ^= byte;
            }
            read_part("part", &stream, None).ok();
        }
    }
}
