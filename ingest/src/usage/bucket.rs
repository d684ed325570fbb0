//! Buckets of aggregates, aligned in UTC.

use domain::{Error, Instant, Result};

use super::{AggregateQuery, UsageAggregateBucketSize};

/// A Monday midnight before every event: hours, days and weeks all count from it, and whole numbers that are divided
/// towards zero are divided downwards. 1900-01-01T00:00:00Z.
pub(super) const ORIGIN_MICROS: i64 = -2_208_988_800_000_000;

/// Length of a bucket in microseconds; in UTC every day has 24 hours.
pub(super) fn micros(size: UsageAggregateBucketSize) -> i64 {
    const HOUR: i64 = 3_600_000_000;
    match size {
        UsageAggregateBucketSize::Hour => HOUR,
        UsageAggregateBucketSize::Day => 24 * HOUR,
        UsageAggregateBucketSize::Week => 7 * 24 * HOUR,
    }
}

/// Start of the bucket with this number, counted from the origin.
///
/// # Errors
/// `Internal` for a number that no instant has.
pub(super) fn start(size: UsageAggregateBucketSize, number: i64) -> Result<Instant> {
    number
        .checked_mul(micros(size))
        .and_then(|micros| micros.checked_add(ORIGIN_MICROS))
        .and_then(Instant::from_timestamp_micros)
        .ok_or_else(|| Error::invariant(format!("bucket {number} of an aggregate has no start")))
}

/// `[since, until)` of a query, narrowed by its filter's own bounds.
pub(super) fn range(query: &AggregateQuery) -> (Instant, Instant) {
    let since = query.filter.occurred_after.map_or(query.since, |after| after.max(query.since));
    let until = query.filter.occurred_before.map_or(query.until, |before| before.min(query.until));
    (since, until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{Datelike, Timelike};

    #[test]
    fn the_origin_is_a_monday_midnight() {
        let origin = start(UsageAggregateBucketSize::Week, 0).unwrap();
        assert_eq!((origin.weekday(), origin.hour(), origin.minute()), (chrono::Weekday::Mon, 0, 0));
    }
}
