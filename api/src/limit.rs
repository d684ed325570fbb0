//! Token buckets per organization and workspace (conventions.md, Rate limits).
//!
//! A bucket is one number: the instant at which it will be full again. That is all a token bucket needs, and it can be
//! changed with one compare-and-swap. Buckets are per node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as Tick};

use dashmap::DashMap;
use domain::{Instant, WorkspaceId};

/// Size and speed of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come back per second, at least 1.
    pub per_second: u32,
    /// Tokens of a full bucket, at least 1.
    pub burst: u32,
}

/// What a bucket pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// One token per request.
    Requests,
    /// One token per usage event.
    Ingest,
}

/// State of a bucket after a request, for the headers of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateState {
    /// Tokens of the full bucket.
    pub limit: u32,
    /// Tokens left.
    pub remaining: u32,
    /// When the bucket is full again, Unix seconds.
    pub reset: i64,
    /// Whole seconds until the refused request would pass; `None` when it passed.
    pub retry_after_secs: Option<u64>,
}

/// All buckets of this node.
pub struct Limiter {
    start: Tick,
    full_at: DashMap<(WorkspaceId, Bucket), Arc<AtomicU64>>,
}

impl Default for Limiter {
    fn default() -> Self {
        Self { start: Tick::now(), full_at: DashMap::new() }
    }
}

impl Limiter {
    /// Takes `tokens` from the workspace's bucket, all or none; `now` is only for the reset header.
    pub fn take(&self, workspace: WorkspaceId, bucket: Bucket, rate: Rate, tokens: u32, now: Instant) -> RateState {
        self.take_at(nanos(self.start.elapsed()), (workspace, bucket), rate, tokens, now)
    }

    fn take_at(&self, at: u64, bucket: (WorkspaceId, Bucket), rate: Rate, tokens: u32, now: Instant) -> RateState {
        let per_token = 1_000_000_000 / u64::from(rate.per_second.max(1));
        let capacity = per_token * u64::from(rate.burst.max(1));
        let full_at = self.full_at.entry(bucket).or_default().clone();
        let cost = per_token * u64::from(tokens);
        let mut passed = false;
        let before = full_at
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |full| {
                let next = full.max(at) + cost;
                passed = next - at <= capacity;
                passed.then_some(next)
            })
            .unwrap_or_else(|refused| refused)
            .max(at);
        let after = if passed { before + cost } else { before };
        let missing = after - at;
        RateState {
            limit: rate.burst.max(1),
            remaining: u32::try_from(capacity.saturating_sub(missing) / per_token).unwrap_or(u32::MAX),
            reset: now.timestamp() + i64::try_from(missing.div_ceil(1_000_000_000)).unwrap_or(i64::MAX),
            retry_after_secs: (!passed)
                .then(|| (before + cost).saturating_sub(at + capacity).div_ceil(1_000_000_000).max(1)),
        }
    }
}

fn nanos(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 20 };

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let limiter = Limiter::default();
        let (bucket, now) = ((WorkspaceId::generate(), Bucket::Requests), domain::Clock::System.now());
        for left in (0..20).rev() {
            let state = limiter.take_at(0, bucket, RATE, 1, now);
            assert_eq!((state.remaining, state.retry_after_secs), (left, None));
        }
        let refused = limiter.take_at(0, bucket, RATE, 1, now);
        assert_eq!((refused.remaining, refused.retry_after_secs), (0, Some(1)));
        assert_eq!(refused.reset, now.timestamp() + 2);
        assert_eq!(limiter.take_at(100_000_000, bucket, RATE, 1, now).retry_after_secs, None);
        assert_eq!(limiter.take_at(100_000_000, bucket, RATE, 1, now).retry_after_secs, Some(1));
        assert_eq!(limiter.take_at(10_000_000_000, bucket, RATE, 20, now).remaining, 0);
    }

    #[test]
    fn a_batch_is_taken_whole_or_not_at_all() {
        let limiter = Limiter::default();
        let (bucket, now) = ((WorkspaceId::generate(), Bucket::Ingest), domain::Clock::System.now());
        assert_eq!(limiter.take_at(0, bucket, RATE, 15, now).remaining, 5);
        assert_eq!(limiter.take_at(0, bucket, RATE, 10, now).retry_after_secs, Some(1));
        assert_eq!(limiter.take_at(0, bucket, RATE, 5, now).retry_after_secs, None);
    }
}
