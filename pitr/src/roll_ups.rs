//! What roll-ups say of a cluster's sealed segments.
//!
//! Owns which of them are read and which of their words count: those about a segment that is stored in the size they name, and of which no
//! two disagree. A roll-up is a cache and a hint: how far it is believed is decided by who asks (`survey.rs`, `verify/rolled.rs`).

use crate::error::Result;
use futures_util::StreamExt;
use repository::catalog::Catalog;
use repository::descriptor::WalDescriptor;
use repository::key::{ClusterId, ObjectKey};
use repository::{ErrorClass, Repositories};
use std::collections::{BTreeMap, BTreeSet};
use wal_format::SegmentName;

/// Roll-ups asked for at the same time.
const IN_FLIGHT: usize = 16;
/// Roll-ups of one log that are read at most; one is the rule.
const MAX_A_LOG: usize = 4;

/// Reads them. One that cannot be read is as good as none.
///
/// # Errors
/// `Retry`: the store does not answer.
pub(crate) async fn fetch_roll_ups(
    repositories: &Repositories,
    cluster: ClusterId,
    catalog: &Catalog,
) -> Result<BTreeMap<SegmentName, WalDescriptor>> {
    let roll_ups = catalog.roll_ups.iter();
    let keys = roll_ups.flat_map(|((timeline, log), tags)| {
        // The largest hold most.
        let mut tags: Vec<_> = tags.iter().collect();
        tags.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        tags.truncate(MAX_A_LOG);
        tags.into_iter().map(move |(tag, _)| ObjectKey::RollUp {
            cluster,
            timeline: *timeline,
            log: *log,
            tag: *tag,
        })
    });
    let fetches = keys.map(|key| async move { repositories.fetch_roll_up(&key).await });
    let mut fetched = futures_util::stream::iter(fetches).buffer_unordered(IN_FLIGHT);
    let mut told: BTreeMap<SegmentName, WalDescriptor> = BTreeMap::new();
    let mut disputed = BTreeSet::new();
    while let Some(roll_up) = fetched.next().await {
        let roll_up = match roll_up {
            Ok(roll_up) => roll_up,
            Err(error) if error.class() == ErrorClass::Retry => return Err(error.into()),
            Err(error) => {
                tracing::debug!("a roll-up cannot be used: {error}");
                continue;
            }
        };
        let Some(objects) = catalog.timelines.get(&roll_up.timeline) else {
            continue;
        };
        for (name, rolled) in roll_up.segments {
            if objects.segments.get(&name) != Some(&rolled.stored_size) {
                continue;
            }
            if told.get(&name).is_some_and(|known| *known != rolled.wal) {
                disputed.insert(name);
            }
            told.insert(name, rolled.wal);
        }
    }
    told.retain(|name, _| !disputed.contains(name));
    Ok(told)
}
