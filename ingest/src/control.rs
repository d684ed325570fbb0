//! Publishes the ends of windows to their home partitions (rule C2).

use std::sync::Arc;

use catalog::compiled::Snapshots;
use domain::{Error, Position, Result};

use crate::log::{Append, EventLog, Partition};
use crate::record::{Control, Record};

/// Publishes control records.
#[derive(Clone)]
pub struct Controls {
    log: Arc<dyn EventLog>,
    snapshots: Arc<Snapshots>,
}

impl Controls {
    /// A publisher on this log.
    #[must_use]
    pub fn new(log: Arc<dyn EventLog>, snapshots: Arc<Snapshots>) -> Self {
        Self { log, snapshots }
    }

    /// Appends control records with their homes and waits until they are durable; the catalog revision is set here.
    /// Answers their positions.
    ///
    /// # Errors
    /// `Unavailable` when one of them is not durable; publishing all of them again is harmless.
    pub async fn publish(&self, controls: impl IntoIterator<Item = (Partition, Control)>) -> Result<Vec<Position>> {
        let catalog_revision = self.snapshots.revision();
        let records = controls
            .into_iter()
            .map(|(partition, control)| {
                let record = Record::Control(Control { catalog_revision, ..control });
                Append { partition, payload: record.encode() }
            })
            .collect();
        let appended = self.log.append(records).await.into_iter().map(|outcome| match outcome {
            Ok(offset) => Ok(self.log.identity().position(offset)),
            Err(error) => {
                Err(Error::Unavailable { dependency: "event_log", detail: error.to_string(), retry_after_secs: 1 })
            }
        });
        appended.collect()
    }
}
