//! Segments that two repositories hold with different contents, as far as their sizes tell: for `status`, which reads no contents. `verify` and
//! `copy` look at more.

use repository::ErrorClass;
use repository::copy::{CopyError, Item, compare_object};
use repository::key::ObjectKey;

use crate::archiving_state::StoredState;
use crate::each::Place;

/// Most segments of different sizes whose descriptors are compared, newest first.
const MAX_COMPARED: usize = 8;

/// Names of the segments that `other` holds with other contents than `standing`, which stands for all. What cannot be compared is not named.
pub(crate) async fn find(
    (standing, ours): &(Place, StoredState),
    (other, theirs): &(Place, StoredState),
) -> Vec<String> {
    let both = theirs.segments.iter().rev().filter_map(|(name, theirs)| {
        let size = *ours.segments.get(name)?;
        (size != *theirs).then_some((*name, size))
    });
    let mut found = Vec::new();
    for (name, size) in both.take(MAX_COMPARED) {
        let cluster = standing.cluster.id();
        let key = ObjectKey::Segment { cluster, name };
        let item = Item { key, size };
        match compare_object(&standing.repository, &other.repository, &item).await {
            // The same contents sealed twice.
            Ok(()) => {}
            Err(CopyError::To { source, .. })
                if matches!(source.class(), ErrorClass::Conflict | ErrorClass::Corrupt) =>
            {
                found.push(name.to_string());
            }
            Err(error) => tracing::debug!("{name} is not compared: {error}"),
        }
    }
    found.reverse();
    found
}
