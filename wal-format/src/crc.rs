//! CRC-32C (Castagnoli) as PostgreSQL uses it, on `crc-fast`. The CRC-32 of stored objects is another polynomial and not here.

use crc_fast::{CrcAlgorithm, Digest};

/// A running CRC-32C.
#[derive(Debug, Clone)]
pub(crate) struct Crc32c {
    digest: Digest,
}

impl Crc32c {
    pub(crate) fn new() -> Self {
        Self {
            digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
        }
    }

    /// Begins anew; cheaper than [`Crc32c::new`].
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.digest.reset();
    }

    #[inline]
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a 32-bit CRC in the low half of the library's u64"
    )]
    pub(crate) fn finish(&self) -> u32 {
        self.digest.finalize() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::Crc32c;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn agrees_with_the_reference_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut: prop::sample::Index) {
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            let mut crc = Crc32c::new();
            for _ in 0..2 {
                crc.reset();
                crc.update(head);
                crc.update(tail);
                prop_assert_eq!(crc.finish(), crc32c::crc32c(&bytes));
            }
        }
    }

    #[test]
    fn agrees_with_the_reference_on_every_length_of_a_page() {
        let bytes: Vec<u8> = (0..8192_u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for length in 0..bytes.len() {
            let mut crc = Crc32c::new();
            crc.update(&bytes[..length]);
            assert_eq!(crc.finish(), crc32c::crc32c(&bytes[..length]), "{length}");
        }
    }
}
