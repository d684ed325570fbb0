//! Limits on what a subscription uses of a product and metric in a billing period: usage caps (thresholds-and-alerts.md 1)
//! and the allowance (allowances.md 5.1 rules 7 and 11).
//!
//! Every event is compared with the thresholds of its meter (`threshold.rs`); limits are compared with the running totals of a
//! window whenever a checkpoint writes it, so events pay nothing for them. What was reached is part of the state of the window:
//! it is told once, whoever counts on from there. A limit that several events have passed since the last look is told with all
//! that lie below it, in ascending order.

use std::cmp::Ordering;
use std::sync::Arc;

use chrono_tz::Tz;
use domain::period::Period;
use domain::{
    BlockCode, Money, ProductId, Quantity, ThresholdActionKind, ThresholdBasis, ThresholdComparator, UsageCapAction,
    UsageEvent,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::binding::CompiledBinding;
use crate::error::Result;
use crate::exact::Exact;
use crate::threshold::{Breach, ThresholdAction, ThresholdOwner, compare_percent};
use crate::total::{PairTotal, RatingInput, pair_totals};
use crate::window::{Place, WindowState};

/// Percentages of an allowance that are told (allowances.md 5.1 rule 11), ascending.
const ALLOWANCE_ALERTS: [u8; 2] = [80, 100];

/// How much of a product and metric a subscription may use in a billing period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageCap {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// The limit.
    #[serde(flatten)]
    pub limit: CapLimit,
    /// What happens when it is reached.
    pub action: UsageCapAction,
}

/// What a cap is measured in; above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CapLimit {
    /// Units of the metric, before the allowance.
    #[serde(rename = "limit_quantity")]
    Quantity(Quantity),
    /// Net amount of the usage, in the currency of the subscription.
    #[serde(rename = "limit_amount")]
    Amount(Money),
}

impl UsageCap {
    /// Whether it is on this product and metric.
    #[must_use]
    pub fn is_on(&self, product_id: ProductId, metric_key: &str) -> bool {
        self.product_id == product_id && self.metric_key == metric_key
    }
}

impl CapLimit {
    /// Compares what is used with the limit; an amount in another currency is no amount of this limit.
    #[must_use]
    pub fn compare(self, quantity: Exact, amount: Option<Money>) -> Option<Ordering> {
        match self {
            Self::Quantity(limit) => Some(quantity.cmp(&limit.into())),
            Self::Amount(limit) => amount
                .filter(|amount| amount.currency() == limit.currency())
                .map(|amount| amount.amount().cmp(&limit.amount())),
        }
    }

    /// Whether it is an amount.
    #[must_use]
    pub fn is_amount(self) -> bool {
        matches!(self, Self::Amount(_))
    }

    fn value(self) -> Result<Exact> {
        match self {
            Self::Quantity(limit) => Ok(limit.into()),
            Self::Amount(limit) => Exact::from_decimal(limit.amount()),
        }
    }
}

/// A limit on the running total of a product and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// So many percent of the allowance are used.
    AllowancePercent(u8),
    /// Nothing is left of the allowance.
    AllowanceExhausted,
    /// Nothing is left of an allowance beyond which the plan sells nothing.
    AllowanceEnd,
    /// A usage cap.
    Cap(CapLimit, UsageCapAction),
}

impl Limit {
    /// Why further usage is refused while it is reached.
    #[must_use]
    pub fn blocks(self) -> Option<BlockCode> {
        match self {
            Self::AllowanceEnd => Some(BlockCode::AllowanceExhausted),
            Self::Cap(_, UsageCapAction::Block) => Some(BlockCode::UsageCapReached),
            Self::AllowancePercent(_) | Self::AllowanceExhausted | Self::Cap(_, UsageCapAction::Notify) => None,
        }
    }

    /// Alerts are told once per window; caps and the end of an allowance hold as long as they are reached.
    fn is_told_once(self) -> bool {
        matches!(self, Self::AllowancePercent(_) | Self::AllowanceExhausted)
    }

    fn is_reached(self, pool: &PairTotal) -> bool {
        let percent = |percent: u8| {
            compare_percent(pool.quantity, Quantity::from_int(percent.into()), pool.allowance) != Ordering::Less
        };
        match self {
            Self::AllowancePercent(part) => percent(part),
            Self::AllowanceExhausted | Self::AllowanceEnd => pool.quantity >= pool.allowance.into(),
            Self::Cap(limit, _) => limit.compare(pool.quantity, pool.amount).is_some_and(Ordering::is_ge),
        }
    }
}

/// The limits of one subscription.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits<'a> {
    /// Its usage caps.
    pub caps: &'a [UsageCap],
    /// Products of which its plan sells nothing beyond the allowance.
    pub ending: &'a [ProductId],
}

impl Limits<'_> {
    /// Those on a pool: what is told of the allowance, then what ends it, then caps, each in ascending order.
    fn of(&self, pool: &PairTotal) -> Result<SmallVec<[Limit; 8]>> {
        let mut limits = SmallVec::new();
        if pool.allowance > Quantity::ZERO {
            limits.extend(ALLOWANCE_ALERTS.map(Limit::AllowancePercent));
            limits.push(Limit::AllowanceExhausted);
        }
        let (product_id, metric_key) = pool.pair();
        if self.ending.contains(&product_id) && pool.pools.is_empty() {
            limits.push(Limit::AllowanceEnd);
        }
        let mut caps = SmallVec::<[_; 4]>::new();
        for cap in self.caps.iter().filter(|cap| cap.is_on(product_id, metric_key)) {
            caps.push((cap.limit.is_amount(), cap.limit.value()?, Limit::Cap(cap.limit, cap.action)));
        }
        caps.sort_by(|(is_amount, value, _), other| (is_amount, value).cmp(&(&other.0, &other.1)));
        limits.extend(caps.into_iter().map(|(_, _, limit)| limit));
        Ok(limits)
    }
}

/// The limits of a product and metric that are reached, or were told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachedLimits {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// In the order in which they were reached.
    pub limits: SmallVec<[Limit; 4]>,
    /// Price keys with allowances of their own beyond which the plan sells nothing, and whether nothing is left of theirs;
    /// `AllowanceEnd` then is the end of what all others share.
    pub own_keys: Vec<(String, bool)>,
}

impl ReachedLimits {
    fn is_of(&self, (product_id, metric_key): (ProductId, &str)) -> bool {
        self.product_id == product_id && self.metric_key == metric_key
    }

    /// Whether anything is to be remembered.
    fn is_any(&self) -> bool {
        !self.limits.is_empty() || self.own_keys.iter().any(|(_, is_used_up)| *is_used_up)
    }

    /// What is refused: why, the price key whose usage alone is, and those whose usage is not.
    fn blocks(&self) -> impl Iterator<Item = (BlockCode, Option<&String>, Vec<String>)> {
        let of_all = self.limits.iter().filter_map(|limit| {
            let own = if *limit == Limit::AllowanceEnd { self.own_keys.as_slice() } else { &[] };
            Some((limit.blocks()?, None, own.iter().map(|(key, _)| key.clone()).collect()))
        });
        let used_up = self.own_keys.iter().filter(|(_, is_used_up)| *is_used_up);
        of_all.chain(used_up.map(|(key, _)| (BlockCode::AllowanceExhausted, Some(key), Vec::new())))
    }
}

/// A limit that has just been reached, to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct NewlyReached {
    /// Which one.
    pub limit: Limit,
    /// Product and metric with what is used of them; the amount where the limit is one.
    pub pool: PairTotal,
}

impl NewlyReached {
    /// A cap as a breach of the latest binding: caps are thresholds of the binding for one subscription.
    ///
    /// # Errors
    /// `Overflow`.
    pub fn breach(&self, window: Period) -> Result<Option<Breach>> {
        let Limit::Cap(limit, action) = self.limit else { return Ok(None) };
        let (threshold_name, threshold_value, observed_value) = match (limit, self.pool.amount) {
            (CapLimit::Amount(limit), Some(amount)) => {
                let value = Exact::from_decimal(limit.amount())?.to_quantity().unwrap_or_default();
                ("usage_cap_amount", value, Exact::from_decimal(amount.amount())?)
            }
            (CapLimit::Quantity(limit), _) => ("usage_cap", limit, self.pool.quantity),
            (CapLimit::Amount(_), None) => return Ok(None),
        };
        let kind = match action {
            UsageCapAction::Block => ThresholdActionKind::Block,
            UsageCapAction::Notify => ThresholdActionKind::Notify,
        };
        Ok(Some(Breach {
            binding: Arc::clone(&self.pool.binding),
            window,
            owner: ThresholdOwner::Binding,
            threshold_name: threshold_name.into(),
            threshold_value,
            basis: ThresholdBasis::Absolute,
            comparator: ThresholdComparator::Gte,
            observed_value,
            action: ThresholdAction { kind, target: None, event_type: None },
        }))
    }
}

/// Usage of a product and metric that is refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// The product.
    pub product_id: ProductId,
    /// The metric.
    pub metric_key: String,
    /// Only usage of this price key, which has an allowance of its own.
    pub price_key: Option<String>,
    /// Price keys whose usage goes on, because they have allowances of their own.
    pub except_keys: Vec<String>,
    /// Why.
    pub code: BlockCode,
    /// Start of the span in which the timestamps of refused events lie: the window, or a sub-window.
    pub starts_at: domain::Instant,
    /// Its end, exclusive.
    pub ends_at: domain::Instant,
}

impl Block {
    fn new(binding: &CompiledBinding, code: BlockCode, span: Period) -> Self {
        let metric_key = binding.meter.metric_key.clone();
        Self {
            product_id: binding.product_id,
            metric_key,
            price_key: None,
            except_keys: Vec::new(),
            code,
            starts_at: span.start,
            ends_at: span.end,
        }
    }

    /// Whether it refuses an event.
    #[must_use]
    pub fn refuses(&self, event: &UsageEvent) -> bool {
        let price_key = event.price_key.as_ref();
        let is_of_key = match &self.price_key {
            Some(only) => price_key == Some(only),
            None => price_key.is_none_or(|key| !self.except_keys.contains(key)),
        };
        is_of_key
            && self.product_id == event.product_id
            && self.metric_key == event.metric_key
            && (self.starts_at..self.ends_at).contains(&event.timestamp)
    }
}

impl WindowState {
    /// Compares the running totals with the limits and answers what was reached since the last time. Amounts count only in a
    /// window that is charged. A cap that is no longer reached, or no longer there, is forgotten.
    ///
    /// # Errors
    /// As [`WindowState::rate`]; nothing has changed then.
    pub fn review(
        &mut self,
        input: &RatingInput<'_>,
        limits: &Limits<'_>,
        is_charged: bool,
    ) -> Result<Vec<NewlyReached>> {
        let wants_amount = |binding: &CompiledBinding| {
            let is_on = |cap: &UsageCap| cap.is_on(binding.product_id, &binding.meter.metric_key);
            is_charged && limits.caps.iter().any(|cap| cap.limit.is_amount() && is_on(cap))
        };
        let mut reached = self.reached.clone();
        for known in &mut reached {
            known.limits.retain(|limit| limit.is_told_once());
            known.own_keys.clear();
        }
        let mut news = Vec::new();
        for pool in pair_totals(input, &self.seen_at(input.until)?, wants_amount)? {
            let before = self.reached.iter().find(|known| known.is_of(pool.pair()));
            for limit in limits.of(&pool)?.into_iter().filter(|limit| limit.is_reached(&pool)) {
                let is_known = before.is_some_and(|before| before.limits.contains(&limit));
                if !is_known && limit != Limit::AllowanceEnd {
                    news.push(NewlyReached { limit, pool: pool.clone() });
                }
                note(&mut reached, pool.pair(), limit);
            }
            if limits.ending.contains(&pool.pair().0) {
                note_own_keys(&mut reached, &pool);
            }
        }
        reached.retain(ReachedLimits::is_any);
        self.reached = reached;
        Ok(news)
    }

    /// Whether any limit was reached, so that the next review may find it otherwise.
    #[must_use]
    pub fn has_reached_limits(&self) -> bool {
        !self.reached.is_empty()
    }

    /// Whether further usage is refused of anything.
    #[must_use]
    pub fn is_blocking(&self) -> bool {
        self.fired().any(|(_, fired)| fired.blocks) || self.reached.iter().any(|known| known.blocks().next().is_some())
    }

    /// The usage that is refused from now on, in order and each once.
    #[must_use]
    pub fn blocks(&self, window: Period, subscription_timezone: Tz) -> Vec<Block> {
        let mut blocks: Vec<Block> = self.blocks_of_thresholds(window, subscription_timezone).collect();
        for known in &self.reached {
            blocks.extend(known.blocks().map(|(code, price_key, except_keys)| Block {
                product_id: known.product_id,
                metric_key: known.metric_key.clone(),
                price_key: price_key.cloned(),
                except_keys,
                code,
                starts_at: window.start,
                ends_at: window.end,
            }));
        }
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    /// What thresholds with the action BLOCK refuse.
    pub fn blocks_of_thresholds(&self, window: Period, subscription_timezone: Tz) -> impl Iterator<Item = Block> {
        let blocking = self.fired().filter(|(_, fired)| fired.blocks);
        blocking.filter_map(move |(place, _)| {
            let binding = self.binding_at(place)?;
            let part = place.1.and_then(|start| binding.span().part(start, window, subscription_timezone));
            Some(Block::new(binding, BlockCode::UsageCapReached, part.unwrap_or(window)))
        })
    }

    /// Takes over what `old`, the same window before it was counted anew, has told for the whole window: alerts, and thresholds
    /// that do not re-arm. The others stand as the events that are left have set them.
    pub fn remember(&mut self, old: &Self) {
        for (place, fired) in old.fired() {
            let definition =
                old.binding_at(place).and_then(|b| b.bound_thresholds().iter().find(|bound| fired.is(bound)));
            if !definition.is_some_and(|bound| bound.threshold.rearm) {
                self.keep_fired(place, fired);
            }
        }
        self.reached.clone_from(&old.reached);
    }

    fn binding_at(&self, place: Place) -> Option<&CompiledBinding> {
        self.entries_at(place).last().map(|entry| entry.binding().as_ref())
    }
}

fn of_pair<'r>(reached: &'r mut Vec<ReachedLimits>, pair: (ProductId, &str)) -> &'r mut ReachedLimits {
    let found = reached.iter().position(|known| known.is_of(pair));
    let index = found.unwrap_or_else(|| {
        let (product_id, metric_key) = (pair.0, pair.1.to_owned());
        reached.push(ReachedLimits { product_id, metric_key, limits: SmallVec::new(), own_keys: Vec::new() });
        reached.len() - 1
    });
    &mut reached[index]
}

fn note(reached: &mut Vec<ReachedLimits>, pair: (ProductId, &str), limit: Limit) {
    let known = of_pair(reached, pair);
    if !known.limits.contains(&limit) {
        known.limits.push(limit);
    }
}

/// Notes which own allowances are used up, and whether the shared one is.
fn note_own_keys(reached: &mut Vec<ReachedLimits>, total: &PairTotal) {
    for pool in &total.pools {
        match &pool.price_key {
            Some(key) => of_pair(reached, total.pair()).own_keys.push((key.clone(), pool.is_used_up())),
            None if pool.is_used_up() => note(reached, total.pair(), Limit::AllowanceEnd),
            None => {}
        }
    }
}
