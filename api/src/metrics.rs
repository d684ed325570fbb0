//! Metrics of HTTP: how long each route took, by outcome.

use prometheus::{HistogramOpts, HistogramVec, Registry};

/// Histograms of this node.
#[derive(Clone)]
pub struct HttpMetrics {
    duration: HistogramVec,
}

impl HttpMetrics {
    /// Makes and registers them. A second registration in one registry is reported and not shown twice.
    #[must_use]
    pub fn registered(registry: &Registry) -> Self {
        let options = HistogramOpts::new("http_request_duration_seconds", "Time to answer, by route and status.")
            .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
        // The options are constants that prometheus accepts.
        let duration = HistogramVec::new(options, &["method", "route", "status"])
            .unwrap_or_else(|error| unreachable!("constant options: {error}"));
        if let Err(error) = registry.register(Box::new(duration.clone())) {
            tracing::warn!(%error, "HTTP metrics are registered twice");
        }
        Self { duration }
    }

    /// Notes one answer. `route` is the pattern, never the path: labels are bounded.
    pub fn answered(&self, method: &str, route: &str, status: u16, seconds: f64) {
        let method = if METHODS.contains(&method) { method } else { "other" };
        self.duration.with_label_values(&[method, route, &status.to_string()]).observe(seconds);
    }
}

const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
