//! Several repositories at once: when WAL counts as durable, from how far each of them has it.
//!
//! Pure. Owns the `ack` policy and the one place that combines watermarks. Does not own the watermarks themselves (`archiver::progress`), and stores
//! nothing.

/// Which repositories must have stored something before it counts as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// Every repository.
    #[default]
    All,
    /// At least one.
    Any,
    /// At least so many: from 1 to as many as there are.
    Quorum(usize),
}

impl Ack {
    /// How many of `repositories` must have it: from 1 to all of them, whatever the policy says.
    #[must_use]
    pub fn needed(self, repositories: usize) -> usize {
        let needed = match self {
            Ack::All => repositories,
            Ack::Any => 1,
            Ack::Quorum(count) => count,
        };
        needed.clamp(1, repositories.max(1))
    }

    /// Whether `stored` of `repositories` are enough.
    #[must_use]
    pub fn is_met(self, stored: usize, repositories: usize) -> bool {
        stored >= self.needed(repositories)
    }

    /// How far things are durable under this policy, from how far each repository has them without a hole: for `All` the least, for `Any` the
    /// greatest, for a quorum of n the n-th greatest. `None` only for no repositories.
    #[must_use]
    pub fn durable<T: Ord + Copy>(self, watermarks: impl IntoIterator<Item = T>) -> Option<T> {
        let mut sorted: Vec<T> = watermarks.into_iter().collect();
        sorted.sort_unstable_by(|left, right| right.cmp(left));
        let needed = self.needed(sorted.len());
        sorted.get(needed - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_is_the_least_any_the_greatest_and_a_quorum_between() {
        let durable = |ack: Ack| ack.durable([30, 10, 20]);
        assert_eq!(durable(Ack::All), Some(10));
        assert_eq!(durable(Ack::Any), Some(30));
        assert_eq!(durable(Ack::Quorum(1)), Some(30));
        assert_eq!(durable(Ack::Quorum(2)), Some(20));
        assert_eq!(durable(Ack::Quorum(3)), Some(10));
        assert_eq!(Ack::All.durable([7]), Some(7));
        assert_eq!(Ack::All.durable(Vec::<u64>::new()), None);
    }

    #[test]
    fn no_policy_asks_for_none_or_for_more_than_there_are() {
        for (ack, repositories, needed) in [
            (Ack::Any, 3, 1),
            (Ack::All, 3, 3),
            (Ack::Quorum(0), 3, 1),
            (Ack::Quorum(9), 3, 3),
            (Ack::All, 0, 1),
        ] {
            assert_eq!(ack.needed(repositories), needed, "{ack:?}");
        }
        assert!(!Ack::All.is_met(0, 0), "nothing stored is never enough");
    }

    fn policies(repositories: usize) -> impl Iterator<Item = Ack> {
        let quorums = (1..=repositories).map(Ack::Quorum);
        [Ack::All, Ack::Any].into_iter().chain(quorums)
    }

    proptest! {
        /// The model counts, for each byte, who has it.
        #[test]
        fn a_byte_is_durable_if_enough_repositories_have_it(watermarks in proptest::collection::vec(0_u64..12, 1..6)) {
            for ack in policies(watermarks.len()) {
                let durable = ack.durable(watermarks.iter().copied()).unwrap();
                for byte in 0..12 {
                    let holders = watermarks.iter().filter(|end| byte < **end).count();
                    let needed = match ack { Ack::All => watermarks.len(), Ack::Any => 1, Ack::Quorum(count) => count };
                    prop_assert_eq!(byte < durable, holders >= needed, "{:?} byte {}", ack, byte);
                }
            }
        }
    }
}
