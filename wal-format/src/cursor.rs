//! The bounds-checked reader of little-endian bytes, and the few sums on lengths that come from input.
//!
//! One of the two files that may compute with numbers from input (the other is `lsn.rs`). Nothing here indexes, so nothing here can panic.
//! PostgreSQL writes in the byte order of its machine; all machines that run it today are little-endian.

use crate::Error;
use crate::list::{List, ListItem};

/// Reads fields off the front of a slice.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that are left.
    pub(crate) const fn len(&self) -> usize {
        self.rest.len()
    }

    /// All bytes that are left.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` items of a list.
    pub(crate) fn list<T: ListItem>(
        &mut self,
        count: u32,
        field: &'static str,
    ) -> Result<List<'a, T>, Error> {
        self.take(index(count).saturating_mul(T::BYTES), field)
            .map(List::new)
    }

    /// The bytes up to the next zero byte, which is passed over.
    pub(crate) fn text(&mut self, field: &'static str) -> Result<&'a [u8], Error> {
        let end = self
            .rest
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(Error::Truncated { field })?;
        let text = self.take(end, field)?;
        self.u8(field)?;
        Ok(text)
    }

    /// The next `N` bytes.
    #[inline]
    pub(crate) fn take_array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], Error> {
        let (bytes, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(Error::Truncated { field })?;
        self.rest = rest;
        Ok(*bytes)
    }

    /// The next `length` bytes.
    #[inline]
    pub(crate) fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], Error> {
        let (bytes, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Error::Truncated { field })?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, Error> {
        self.take_array::<1>(field).map(u8::from_le_bytes)
    }

    /// A C `bool` and the `padding` bytes after it.
    pub(crate) fn bool(&mut self, padding: usize, field: &'static str) -> Result<bool, Error> {
        let value = self.u8(field)? != 0;
        self.take(padding, field)?;
        Ok(value)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, Error> {
        self.take_array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, Error> {
        self.take_array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self, field: &'static str) -> Result<i32, Error> {
        self.take_array(field).map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, Error> {
        self.take_array(field).map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, Error> {
        self.take_array(field).map(i64::from_le_bytes)
    }
}

/// The first `length` bytes (all of them if there are fewer) and what follows.
pub(crate) fn split(bytes: &[u8], length: usize) -> (&[u8], &[u8]) {
    bytes.split_at_checked(length).unwrap_or((bytes, &[]))
}

/// Up to `N` bytes that arrive in pieces.
#[derive(Debug, Clone)]
pub(crate) struct Held<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Held<N> {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; N],
            length: 0,
        }
    }

    pub(crate) const fn clear(&mut self) {
        self.length = 0;
    }

    pub(crate) const fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        split(&self.bytes, self.length).0
    }

    /// All `N` bytes, those that have not arrived as zeros or as what was held before.
    pub(crate) const fn array(&self) -> &[u8; N] {
        &self.bytes
    }

    /// Takes bytes off the front of `input` until `length` (at most `N`) are held; says how many it took and whether they are all here.
    pub(crate) fn fill(&mut self, input: &[u8], length: usize) -> (usize, bool) {
        let missing = length.min(N).saturating_sub(self.length);
        let (taken, _) = split(input, missing);
        if let Some(space) = self
            .bytes
            .get_mut(self.length..)
            .and_then(|space| space.get_mut(..taken.len()))
        {
            space.copy_from_slice(taken);
        }
        self.length = self.length.saturating_add(taken.len());
        (taken.len(), taken.len() == missing)
    }
}

/// A 32-bit length as an index.
pub(crate) const fn index(length: u32) -> usize {
    length as usize
}

/// The length of a slice that is at most a page or another small piece, as the unit in which PostgreSQL counts (saturating).
pub(crate) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// `length` and the padding to the next multiple of 8.
pub(crate) const fn aligned(length: u32) -> usize {
    (length as usize).saturating_add(7) & !7
}

/// Whether all bytes are zero; quick on long slices.
pub(crate) fn all_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks
        .iter()
        .all(|chunk| chunk.iter().fold(0, |or, &b| or | b) == 0)
        && rest.iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use super::{Cursor, Held, aligned, all_zero};
    use crate::Error;

    #[test]
    fn reads_in_order_and_names_the_field_that_is_cut() {
        let mut cursor = Cursor::new(&[1, 2, 0, 3, 0, 0, 0, 9]);
        assert_eq!(cursor.u8("a"), Ok(1));
        assert_eq!(cursor.u16("b"), Ok(2));
        assert_eq!(cursor.u32("c"), Ok(3));
        assert_eq!(cursor.u64("d"), Err(Error::Truncated { field: "d" }));
        assert_eq!(cursor.bool(0, "e"), Ok(true));
        assert_eq!(cursor.take(1, "f"), Err(Error::Truncated { field: "f" }));
    }

    #[test]
    fn holds_pieces_up_to_its_size() {
        let mut held = Held::<4>::new();
        assert_eq!(held.fill(&[1, 2], 3), (2, false));
        assert_eq!(held.fill(&[3, 4], 3), (1, true));
        assert_eq!(held.bytes(), [1, 2, 3]);
        assert_eq!(held.fill(&[4, 5], 9), (1, true));
        assert_eq!((held.len(), held.array()), (4, &[1, 2, 3, 4]));
    }

    #[test]
    fn finds_the_one_byte_that_is_not_zero() {
        for length in [0, 1, 63, 64, 65, 200] {
            let mut bytes = std::vec![0_u8; length];
            assert!(all_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!all_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
        assert_eq!(
            (aligned(0), aligned(1), aligned(8), aligned(25)),
            (0, 8, 8, 32)
        );
    }
}
