//! What ingest tells Prometheus. Each metric is declared once; labels are partitions and fixed words, never tenants.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::log::Partition;

/// Counters and gauges of ingest.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Events that changed a total.
    pub counted: IntCounterVec,
    /// Events that were known already.
    pub duplicated: IntCounterVec,
    /// Events that were kept with a reason.
    pub rejected: IntCounterVec,
    /// Events that a policy dropped.
    pub dropped: IntCounterVec,
    /// Records that belong to no workspace.
    pub unattributed: IntCounterVec,
    /// Records in the log behind the checkpoint.
    pub lag: IntGaugeVec,
    /// Milliseconds since the last checkpoint while something waits for one; else 0.
    pub checkpoint_age_ms: IntGaugeVec,
    /// Committed checkpoints.
    pub checkpoints: IntCounterVec,
    /// Times that a partition was dropped and loaded again.
    pub reloads: IntCounterVec,
    /// Living subscription actors.
    pub actors: IntGaugeVec,
}

/// The metrics of one partition, with their label resolved once.
#[derive(Clone, Debug)]
pub struct PartitionMetrics {
    /// See [`Metrics::counted`].
    pub counted: IntCounter,
    /// See [`Metrics::duplicated`].
    pub duplicated: IntCounter,
    /// See [`Metrics::rejected`].
    pub rejected: IntCounter,
    /// See [`Metrics::dropped`].
    pub dropped: IntCounter,
    /// See [`Metrics::unattributed`].
    pub unattributed: IntCounter,
    /// See [`Metrics::lag`].
    pub lag: IntGauge,
    /// See [`Metrics::checkpoint_age_ms`].
    pub checkpoint_age_ms: IntGauge,
    /// See [`Metrics::checkpoints`].
    pub checkpoints: IntCounter,
    /// See [`Metrics::actors`].
    pub actors: IntGauge,
}

impl Metrics {
    /// Those of one partition.
    #[must_use]
    pub fn of(&self, partition: Partition) -> PartitionMetrics {
        let label = partition.to_string();
        let counter = |metric: &IntCounterVec| metric.with_label_values(&[&label]);
        let gauge = |metric: &IntGaugeVec| metric.with_label_values(&[&label]);
        PartitionMetrics {
            counted: counter(&self.counted),
            duplicated: counter(&self.duplicated),
            rejected: counter(&self.rejected),
            dropped: counter(&self.dropped),
            unattributed: counter(&self.unattributed),
            lag: gauge(&self.lag),
            checkpoint_age_ms: gauge(&self.checkpoint_age_ms),
            checkpoints: counter(&self.checkpoints),
            actors: gauge(&self.actors),
        }
    }

    /// Ends the gauges of a partition that was given up: its next owner shows them.
    pub fn forget(&self, partition: Partition) {
        let label = partition.to_string();
        for gauge in [&self.lag, &self.checkpoint_age_ms, &self.actors] {
            // One that was never set is not there.
            let _ = gauge.remove_label_values(&[&label]);
        }
    }

    /// Declares them in a registry; a name that is taken keeps counting unregistered, which only tests do.
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str| {
            let metric =
                IntCounterVec::new(Opts::new(name, help), &["partition"]).unwrap_or_else(|error| unreachable(&error));
            let _ = registry.register(Box::new(metric.clone()));
            metric
        };
        let gauge = |name: &str, help: &str| {
            let metric =
                IntGaugeVec::new(Opts::new(name, help), &["partition"]).unwrap_or_else(|error| unreachable(&error));
            let _ = registry.register(Box::new(metric.clone()));
            metric
        };
        Self {
            counted: counter("kontorion_ingest_counted_events_total", "Usage events that changed a total"),
            duplicated: counter("kontorion_ingest_duplicate_events_total", "Usage events that were known already"),
            rejected: counter("kontorion_ingest_rejected_events_total", "Usage events kept with a reason"),
            dropped: counter("kontorion_ingest_dropped_events_total", "Usage events dropped by a policy"),
            unattributed: counter("kontorion_ingest_unattributed_records_total", "Records that belong to no workspace"),
            lag: gauge("kontorion_ingest_lag_records", "Records in the log behind the checkpoint"),
            checkpoint_age_ms: gauge("kontorion_ingest_checkpoint_age_milliseconds", "Time since the last checkpoint"),
            checkpoints: counter("kontorion_ingest_checkpoints_total", "Committed checkpoints"),
            reloads: counter("kontorion_ingest_reloads_total", "Times that a partition was dropped and loaded again"),
            actors: gauge("kontorion_ingest_actors", "Living subscription actors"),
        }
    }
}

/// Names and labels above are constants that Prometheus accepts; a typo shows in the first test that starts ingest.
fn unreachable(error: &prometheus::Error) -> ! {
    panic!("a metric's name is not acceptable: {error}")
}
