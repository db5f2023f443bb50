//! Puts the last segment of a timeline together from its tail chunks or a `.partial` (pure).
//!
//! Owns the rules of the union: overlaps agree byte for byte, a hole followed by a chunk is a gap, zeros follow the end. Whether the
//! records chain is for those who decode the result.

use crate::error::{Error, Result};
use wal_format::SegmentSize;

/// A tail chunk and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// Its key, for errors.
    pub key: &'a str,
    /// Offset of its first byte in the segment.
    pub from: u32,
    /// Its bytes, without padding.
    pub bytes: &'a [u8],
}

/// The bytes of a segment that is not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssembledSegment {
    /// As many bytes as a segment has; zeros from `length` on.
    pub bytes: Vec<u8>,
    /// How many bytes were stored.
    pub length: u32,
}

/// Joins the chunks of one segment. No chunk at all gives an empty segment.
///
/// # Errors
/// `Corrupt`: chunks contradict each other, reach beyond the segment, or leave a hole before a later one.
pub fn assemble_tail(chunks: &[Chunk<'_>], size: SegmentSize) -> Result<AssembledSegment> {
    let integrity = |object: &str, reason: String| Error::Integrity {
        object: object.to_owned(),
        reason,
    };
    let segment_bytes = size.bytes() as usize;
    let mut sorted: Vec<&Chunk<'_>> = chunks.iter().collect();
    sorted.sort_by_key(|chunk| (chunk.from, chunk.bytes.len()));
    let mut bytes = vec![0; segment_bytes];
    let mut filled = 0;
    for chunk in sorted {
        let from = chunk.from as usize;
        let to = from.saturating_add(chunk.bytes.len());
        if from > filled {
            return Err(Error::Missing {
                object: format!("bytes {filled}..{from} of the segment"),
                reason: format!("{} follows them", chunk.key),
            });
        }
        let Some(place) = bytes.get_mut(from..to) else {
            return Err(integrity(
                chunk.key,
                format!("reaches beyond the segment's {segment_bytes} bytes"),
            ));
        };
        let known = (filled - from).min(chunk.bytes.len());
        let (overlap, rest) = place.split_at_mut(known);
        let (again, new) = chunk.bytes.split_at(known);
        if let Some(offset) = overlap.iter().zip(again).position(|(a, b)| a != b) {
            return Err(integrity(
                chunk.key,
                format!(
                    "differs from other chunks at byte {} of the segment",
                    from + offset
                ),
            ));
        }
        rest.copy_from_slice(new);
        filled = filled.max(to);
    }
    Ok(AssembledSegment {
        bytes,
        length: u32::try_from(filled).unwrap_or(size.bytes()),
    })
}

/// Cuts a segment at a switch point: from `offset` on nothing but zeros, so that no byte of a branch that was left can be replayed.
pub fn cut_at(bytes: &mut [u8], offset: u32) {
    if let Some(rest) = bytes.get_mut(offset as usize..) {
        rest.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: SegmentSize = SegmentSize::MIN;

    fn check(chunks: &[(u32, &[u8])], expected: std::result::Result<&[u8], &str>) {
        let chunks: Vec<Chunk<'_>> = chunks
            .iter()
            .map(|(from, bytes)| Chunk {
                key: "chunk",
                from: *from,
                bytes,
            })
            .collect();
        match (assemble_tail(&chunks, SIZE), expected) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(&found.bytes[..found.length as usize], expected);
                assert_eq!(found.bytes.len(), SIZE.bytes() as usize);
                assert!(
                    found.bytes[found.length as usize..]
                        .iter()
                        .all(|byte| *byte == 0)
                );
            }
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{error}");
                assert_eq!(error.class(), repository::ErrorClass::Corrupt);
            }
            (found, _) => panic!("{:?}", found.map(|found| found.length)),
        }
    }

    #[test]
    fn chunks_join_by_offset() {
        check(&[], Ok(b""));
        check(&[(0, b"abc")], Ok(b"abc"));
        check(&[(3, b"de"), (0, b"abc")], Ok(b"abcde"));
        check(
            &[(0, b"abc"), (1, b"bcd"), (0, b"abcdef"), (2, b"c")],
            Ok(b"abcdef"),
        );
        check(&[(0, b"ab"), (2, b""), (1, b"b")], Ok(b"ab"));
    }

    #[test]
    fn contradictions_and_holes_are_errors() {
        check(&[(0, b"abc"), (2, b"x")], Err("byte 2 of the segment"));
        check(&[(0, b"abc"), (1, b"bXde")], Err("byte 2 of the segment"));
        check(&[(0, b"abc"), (4, b"e")], Err("bytes 3..4 of the segment"));
        check(&[(1, b"b")], Err("bytes 0..1 of the segment"));
        let whole = vec![7; SIZE.bytes() as usize];
        check(
            &[(0, &whole), (SIZE.bytes() - 1, &[7, 7])],
            Err("beyond the segment"),
        );
        check(&[(0, &whole)], Ok(&whole));
    }

    #[test]
    fn a_cut_leaves_nothing_behind_it() {
        let mut bytes = [1; 8];
        cut_at(&mut bytes, 5);
        assert_eq!(bytes, [1, 1, 1, 1, 1, 0, 0, 0]);
        cut_at(&mut bytes, 9);
    }

    proptest! {
        #[test]
        fn any_cover_of_the_bytes_gives_them_back(
            bytes in proptest::collection::vec(any::<u8>(), 1..200),
            cuts in proptest::collection::vec((0_usize..200, 0_usize..200), 0..8),
        ) {
            let mut chunks: Vec<Chunk<'_>> = vec![Chunk { key: "all", from: 0, bytes: &bytes }];
            for (a, b) in &cuts {
                let (a, b) = (a % bytes.len(), b % bytes.len());
                chunks.insert(0, Chunk { key: "part", from: a.min(b) as u32, bytes: &bytes[a.min(b)..a.max(b)] });
            }
            let found = assemble_tail(&chunks, SIZE).unwrap();
            prop_assert_eq!(found.length as usize, bytes.len());
            prop_assert_eq!(&found.bytes[..bytes.len()], &bytes[..]);
        }
    }
}
