//! Transactions that have begun and not ended, by number (pure). Each record asks for its transaction, and the next records are of the same few:
//! those are found without a search.

use std::collections::BTreeMap;

use super::work::{Files, Work};

/// Most transactions, subtransactions included, that are followed at a time. Of others only the end is known.
const MAX_OPEN: usize = 50_000;
/// Transactions that are found without a search. A power of two.
const RECENT: usize = 64;
/// Most lists of files that are kept to be used again.
const MAX_SPARE: usize = 64;
/// No place.
const NONE: u32 = u32::MAX;

/// What each open transaction has done.
#[derive(Clone, Debug)]
pub(super) struct Open {
    /// In no order; places of those that ended are used again.
    works: Vec<Work>,
    free: Vec<u32>,
    places: BTreeMap<u32, u32>,
    /// The last transaction looked for among those with the same low bits, and its place.
    recent: [(u32, u32); RECENT],
    /// Lists with room, of transactions that are of no interest any more.
    spare: Vec<Files>,
    /// Whether some found no room.
    pub(super) overflowed: bool,
}

impl Default for Open {
    fn default() -> Self {
        Self {
            works: Vec::new(),
            free: Vec::new(),
            places: BTreeMap::new(),
            recent: [(0, NONE); RECENT],
            spare: Vec::new(),
            overflowed: false,
        }
    }
}

impl Open {
    /// What a transaction has done, which begins with this if it is not known; `None` if there is no room for one more.
    #[inline]
    pub(super) fn work(&mut self, xid: u32) -> Option<&mut Work> {
        let place = match self.recent.get(slot(xid)) {
            Some((known, place)) if *known == xid && *place != NONE => *place,
            _ => self.find_or_begin(xid)?,
        };
        self.works.get_mut(place as usize)
    }

    fn find_or_begin(&mut self, xid: u32) -> Option<u32> {
        let place = match self.places.get(&xid) {
            Some(place) => *place,
            None if self.places.len() >= MAX_OPEN => {
                self.overflowed = true;
                return None;
            }
            None => {
                let place = match self.free.pop() {
                    Some(place) => place,
                    None => {
                        self.works.push(Work::default());
                        u32::try_from(self.works.len() - 1).ok()?
                    }
                };
                if let Some(files) = self.spare.pop() {
                    self.works.get_mut(place as usize)?.files = files;
                }
                self.places.insert(xid, place);
                place
            }
        };
        if let Some(recent) = self.recent.get_mut(slot(xid)) {
            *recent = (xid, place);
        }
        Some(place)
    }

    /// Takes out one that ended.
    pub(super) fn remove(&mut self, xid: u32) -> Option<Work> {
        let place = self.places.remove(&xid)?;
        self.free.push(place);
        if let Some(recent) = self.recent.get_mut(slot(xid))
            && recent.0 == xid
        {
            *recent = (0, NONE);
        }
        self.works.get_mut(place as usize).map(std::mem::take)
    }

    /// Takes back what is of no interest any more.
    pub(super) fn recycle(&mut self, work: Work) {
        let mut files = work.files;
        if self.spare.len() < MAX_SPARE {
            files.clear();
            self.spare.push(files);
        }
    }

    /// All of them, by number.
    pub(super) fn into_works(mut self) -> BTreeMap<u32, Work> {
        let places = std::mem::take(&mut self.places);
        let mut take = |place: u32| self.works.get_mut(place as usize).map(std::mem::take);
        places
            .into_iter()
            .filter_map(|(xid, place)| Some((xid, take(place)?)))
            .collect()
    }
}

const fn slot(xid: u32) -> usize {
    xid as usize % RECENT
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wal_format::Lsn;

    proptest! {
        /// Whatever shares a slot or uses a place again, each transaction keeps its own.
        #[test]
        fn agrees_with_a_plain_map(steps in proptest::collection::vec((0_u32..200, any::<bool>(), any::<bool>()), 0..400)) {
            let mut open = Open::default();
            let mut plain: BTreeMap<u32, u64> = BTreeMap::new();
            for (xid, ends, recycled) in steps {
                if ends {
                    let ended = open.remove(xid);
                    prop_assert_eq!(ended.as_ref().map(|work| work.bytes), plain.remove(&xid));
                    if let Some(work) = ended.filter(|_| recycled) {
                        open.recycle(work);
                    }
                } else {
                    open.work(xid).unwrap().note(Lsn::new(8), 1);
                    *plain.entry(xid).or_default() += 1;
                }
            }
            let left: BTreeMap<u32, u64> = open.into_works().into_iter().map(|(xid, work)| (xid, work.bytes)).collect();
            prop_assert_eq!(left, plain);
        }
    }

    #[test]
    fn there_is_an_end_to_how_many_are_followed() {
        let mut open = Open::default();
        let followed = (1..=60_000).filter(|xid| open.work(*xid).is_some()).count();
        assert_eq!((followed, open.overflowed), (MAX_OPEN, true));
        // The room of one that ended is another's.
        assert!(open.remove(7).is_some() && open.remove(7).is_none());
        assert!(open.work(60_000).is_some() && open.work(59_999).is_none());
    }
}
