//! Walking the rows of a partition by position in steps that are cheap for both stores.
//!
//! Neither store keeps an index by partition and position, which would cost every event a write for what is read after a
//! take-over only. Both know the smallest and largest position of each block of rows, and a log's positions are dense, so
//! a range of positions about as long as the page is read, whole, without sorting anything else.

use async_trait::async_trait;
use domain::{Position, Result, UsageEventId};

use super::CountedId;
use crate::log::Partition;

/// Shortest range that is read at once: where many records were not counted, pages would else be read crumb by crumb.
const STEP_MIN: usize = 4_096;

/// What a store offers for the walk.
#[async_trait]
pub(super) trait ByPosition: Sync {
    /// Ids in positions `(after, up_to]`, in order, at most `limit`.
    async fn ids_in(
        &self,
        partition: Partition,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<(UsageEventId, CountedId)>>;

    /// The first stored position in `(after, up_to]`.
    async fn first_in(&self, partition: Partition, after: Position, up_to: Position) -> Result<Option<Position>>;
}

/// [`super::UsageStore::ids_between`]: fewer than `limit` ids mean that there are no more.
pub(super) async fn ids_between(
    reader: &(impl ByPosition + ?Sized),
    partition: Partition,
    after: Position,
    up_to: Position,
    limit: usize,
) -> Result<Vec<(UsageEventId, CountedId)>> {
    let (mut ids, mut after) = (Vec::new(), after);
    while ids.len() < limit && after < up_to {
        let wanted = limit - ids.len();
        let step_end = later(after, wanted.max(STEP_MIN)).min(up_to);
        let mut step = reader.ids_in(partition, after, step_end, wanted).await?;
        let full = step.len() == wanted;
        if step.is_empty() && step_end < up_to {
            // A gap, for instance to the next log: jump over it.
            match reader.first_in(partition, step_end, up_to).await? {
                Some(first) => after = first.before(),
                None => break,
            }
        } else {
            after = step_end;
        }
        ids.append(&mut step);
        if full {
            break;
        }
    }
    Ok(ids)
}

fn later(position: Position, records: usize) -> Position {
    let records = i64::try_from(records).unwrap_or(i64::MAX);
    Position::from_i64(position.as_i64().saturating_add(records))
}
