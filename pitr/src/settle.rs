//! Which of several stored forms of a segment is the one. Repositories may hold different WAL under one name; the one that counts is the one whose
//! records continue those before it, and are continued by those behind it.
//!
//! Owns that choice and its memory: what was chosen once is what everybody reads from then on. What follows what is `plan.rs`'s, asking one
//! repository after the other the repository crate's.

use crate::error::{Error, Result};
use crate::plan::{BrokenChain, ChainProof, Piece, WalPath};
use crate::search::WalSource;
use repository::descriptor::WalDescriptor;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use wal_format::SegmentName;

/// The segments of which the first form that was found was not taken, and what the one that was says of itself. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Settled(Arc<Mutex<BTreeMap<SegmentName, WalDescriptor>>>);

impl Settled {
    /// Takes this form of a segment from now on.
    pub fn add(&self, name: SegmentName, wal: WalDescriptor) {
        self.all_mut(|all| all.insert(name, wal));
    }

    /// What the chosen form of a segment says of itself; `None`: nobody had to choose.
    #[must_use]
    pub fn get(&self, name: SegmentName) -> Option<WalDescriptor> {
        self.all_mut(|all| all.get(&name).cloned())
    }

    /// All of them, by the names of their segments.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<String, WalDescriptor> {
        let all = self.all_mut(|all| all.clone());
        let named = all.into_iter();
        named.map(|(name, wal)| (name.to_string(), wal)).collect()
    }

    /// Refuses another form of a segment than the chosen one.
    ///
    /// # Errors
    /// `Corrupt`: its records are at other positions.
    pub fn check(&self, name: SegmentName, wal: &WalDescriptor) -> Result<()> {
        let positions =
            |wal: &WalDescriptor| (wal.first_record, wal.first_record_prev, wal.last_record);
        match self.get(name) {
            Some(chosen) if positions(&chosen) != positions(wal) => Err(Error::Integrity {
                object: name.to_string(),
                reason: "it holds other records than those that continue the WAL before it".into(),
            }),
            _ => Ok(()),
        }
    }

    fn all_mut<T>(&self, work: impl FnOnce(&mut BTreeMap<SegmentName, WalDescriptor>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A chain of sealed segments, followed piece by piece.
#[derive(Default)]
pub(crate) struct Chain {
    proof: ChainProof,
    /// The last piece in which a record starts, and the proof before it.
    before: Option<(Piece, ChainProof)>,
}

/// Whether a piece continues the chain.
pub(crate) enum Continues {
    /// As it is.
    Yes,
    /// In the form that another repository has.
    As(Box<WalDescriptor>),
    /// It does in another form of a piece before it, which is taken from now on: the chain is to be followed again.
    Anew,
    /// In no form.
    No(BrokenChain),
}

impl Chain {
    /// Holds the next piece, and what it says of itself, against those before. Where it does not follow, other repositories are asked for their form
    /// of it, and of the one before.
    pub(crate) async fn follow(
        &mut self,
        source: &impl WalSource,
        path: &WalPath,
        piece: &Piece,
        wal: &WalDescriptor,
    ) -> Continues {
        let begin = self.proof.clone();
        let broken = match self.proof.check(path, piece, wal) {
            Ok(()) => {
                self.passed(piece, wal, begin);
                return Continues::Yes;
            }
            Err(broken) => broken,
        };
        let follows = |other: &WalDescriptor| begin.clone().check(path, piece, other);
        if let Some(other) = source.another(piece, &follows).await {
            self.proof = begin.clone();
            // It was just seen to follow.
            if self.proof.check(path, piece, &other).is_ok() {
                self.passed(piece, &other, begin);
                return Continues::As(Box::new(other));
            }
        }
        if let Some((earlier, begin)) = &self.before {
            let joins = |other: &WalDescriptor| {
                let mut proof = begin.clone();
                proof.check(path, earlier, other)?;
                proof.check(path, piece, wal)
            };
            if source.another(earlier, &joins).await.is_some() {
                return Continues::Anew;
            }
        }
        Continues::No(broken)
    }

    fn passed(&mut self, piece: &Piece, wal: &WalDescriptor, begin: ChainProof) {
        if wal.first_record.is_some() {
            self.before = Some((piece.clone(), begin));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PieceSource;
    use crate::search::{Fits, PieceBytes};
    use wal_format::{Lsn, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    /// Repositories that hold these forms of segments, in their order.
    struct Forms {
        forms: BTreeMap<SegmentName, Vec<WalDescriptor>>,
        settled: Settled,
    }

    impl WalSource for Forms {
        async fn descriptor(&self, piece: &Piece) -> Result<WalDescriptor> {
            let settled = self.settled.get(piece.name);
            Ok(settled.unwrap_or_else(|| self.forms[&piece.name][0].clone()))
        }

        async fn bytes(&self, piece: &Piece) -> Result<PieceBytes> {
            panic!("nobody asks for the bytes of {}", piece.name)
        }

        async fn another(&self, piece: &Piece, fits: &Fits<'_>) -> Option<WalDescriptor> {
            let mut forms = self.forms[&piece.name].iter();
            let found = forms.find(|wal| fits(wal).is_ok())?.clone();
            self.settled.add(piece.name, found.clone());
            Some(found)
        }
    }

    fn name(number: u64) -> SegmentName {
        SegmentName::new(TimelineId::FIRST, SegmentNumber::new(number), SIZE)
    }

    /// A segment whose first record follows the one at `previous` in the segment before, and whose last one is at `last`.
    fn wal(number: u64, previous: u64, last: u64) -> WalDescriptor {
        let start = |number| SIZE.start(SegmentNumber::new(number));
        WalDescriptor {
            start_lsn: start(number),
            end_lsn: start(number + 1),
            first_record: Some(start(number).saturating_add(40)),
            first_record_prev: Some(start(number - 1).saturating_add(previous)),
            last_record: Some(start(number).saturating_add(last)),
            ..WalDescriptor::default()
        }
    }

    /// Segments 5, 6 and 7 in these forms; gives where the last record of each lies in it, as far as they are one chain.
    fn check(forms: [&[(u64, u64)]; 3], expected: &[u64]) {
        let path = WalPath {
            history: TimelineHistory::first(),
            lineages: BTreeMap::from([(TimelineId::FIRST, String::new())]),
            segment_size: SIZE,
        };
        let forms = (5..).zip(forms).map(|(number, forms)| {
            let forms = forms.iter();
            let wal = forms.map(|(previous, last)| wal(number, *previous, *last));
            (name(number), wal.collect())
        });
        let source = Forms {
            forms: forms.collect(),
            settled: Settled::default(),
        };
        let follow = async || {
            let (mut chain, mut lasts) = (Chain::default(), Vec::new());
            for number in 5..8 {
                let start = SIZE.start(SegmentNumber::new(number));
                let piece = Piece {
                    name: name(number),
                    start,
                    source: PieceSource::Sealed,
                    cut: None,
                };
                let wal = source.descriptor(&piece).await.unwrap();
                let wal = match chain.follow(&source, &path, &piece, &wal).await {
                    Continues::Yes => wal,
                    Continues::As(other) => *other,
                    Continues::Anew => return None,
                    Continues::No(_) => break,
                };
                let last: Lsn = wal.last_record.unwrap();
                lasts.push(last.distance_from(start).unwrap());
            }
            Some(lasts)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let found = runtime.unwrap().block_on(async {
            for _ in 0..4 {
                if let Some(lasts) = follow().await {
                    return lasts;
                }
            }
            panic!("it never ends")
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn the_form_that_chains_is_taken_whichever_repository_has_it() {
        let (good, odd) = ((80, 80), (72, 72));
        check([&[good], &[good], &[good]], &[80, 80, 80]);
        // It does not follow.
        check([&[good], &[odd, good], &[good]], &[80, 80, 80]);
        check([&[good], &[good], &[odd, odd, good]], &[80, 80, 80]);
        // It does, and is not followed: so for the first, of which nobody knows what it follows.
        check([&[good], &[(80, 72), good], &[good]], &[80, 80, 80]);
        check([&[odd, good], &[good], &[good]], &[80, 80, 80]);
        // Another server's for a while.
        check([&[good], &[odd, good], &[(72, 64), good]], &[80, 80, 80]);
        // Nobody has one that does.
        check([&[good], &[odd, odd], &[good]], &[80]);
    }

    #[test]
    fn what_is_chosen_is_taken_and_no_other_form() {
        let settled = Settled::default();
        assert!(settled.check(name(6), &wal(6, 72, 72)).is_ok());
        settled.add(name(6), wal(6, 80, 80));
        assert!(settled.check(name(6), &wal(6, 80, 80)).is_ok());
        for other in [wal(6, 72, 80), wal(6, 80, 72)] {
            let refused = settled.check(name(6), &other).unwrap_err();
            assert_eq!(refused.class(), repository::ErrorClass::Corrupt);
        }
        assert!(settled.by_name().contains_key(&name(6).to_string()));
    }
}
