//! Lists of fixed-size items in main data: read where they stand, item by item.

use core::fmt;
use core::marker::PhantomData;

/// What a [`List`] may hold.
pub trait ListItem: Sized {
    /// The size of an item in bytes.
    const BYTES: usize;

    /// The item that those [`ListItem::BYTES`] bytes are.
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// Items that a record lists.
pub struct List<'a, T> {
    bytes: &'a [u8],
    items: PhantomData<fn() -> T>,
}

impl<'a, T> List<'a, T> {
    pub(crate) const EMPTY: Self = Self::new(&[]);

    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            items: PhantomData,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl<'a, T: ListItem> List<'a, T> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.chunks_exact(T::BYTES).len()
    }

    /// The items, in the order of the record.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        self.bytes.chunks_exact(T::BYTES).filter_map(T::read)
    }
}

impl<T> Clone for List<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for List<'_, T> {}

impl<T> PartialEq for List<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for List<'_, T> {}

impl<T: ListItem + fmt::Debug> fmt::Debug for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
