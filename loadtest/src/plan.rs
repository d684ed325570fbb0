//! Which events are sent, as pure functions of the seed and a number, so that nothing has to be remembered to know
//! afterwards what every total must be.
//!
//! The stream of *positions* is what is sent; a position is a new *event* or one of the last few thousand once more.

use chrono::{DateTime, TimeDelta, Utc};

/// How far back a repeated event may lie.
const REPEAT_WITHIN: u64 = 5_000;

/// Everything that decides the stream.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the random choices.
    pub seed: u64,
    /// Begins every idempotency key: keys of several runs never meet.
    pub run: String,
    /// Customers with one subscription each.
    pub customers: u64,
    /// Thousandths of the positions that are repeats.
    pub duplicates: u64,
    /// Which meters count.
    pub shape: Shape,
    /// Timestamp of event 0; each later one is a microsecond later.
    pub base: DateTime<Utc>,
}

/// The meters of every subscription: the three of the sample catalog, and further ones after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Meters, each with a metric of its own.
    pub meters: usize,
}

impl Shape {
    /// Whether a meter counts events of one region only: half of all, the first of the further ones.
    #[must_use]
    pub fn is_filtered(self, meter: usize) -> bool {
        self.has_regions() && (3..3 + self.meters / 2).contains(&meter)
    }

    /// Whether events say their region, which only filters read.
    #[must_use]
    pub fn has_regions(self) -> bool {
        self.meters > 3
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Number of the customer.
    pub customer: usize,
    /// Index of the metric.
    pub metric: usize,
    /// Whole quantity.
    pub quantity: u64,
    /// Whether it happened in the region that filters look for.
    pub is_near: bool,
}

/// What one customer must have, per metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Sums.
    pub quantities: Vec<u64>,
    /// Numbers of events.
    pub events: Vec<u64>,
}

impl Expected {
    /// Nothing yet.
    #[must_use]
    pub fn none(shape: Shape) -> Self {
        Self { quantities: vec![0; shape.meters], events: vec![0; shape.meters] }
    }

    fn add(&mut self, spec: Spec, shape: Shape) {
        if spec.is_near || !shape.is_filtered(spec.metric) {
            self.quantities[spec.metric] += spec.quantity;
            self.events[spec.metric] += 1;
        }
    }
}

impl Plan {
    /// New events before a position.
    #[must_use]
    pub fn distinct(&self, position: u64) -> u64 {
        position - position * self.duplicates / 1_000
    }

    /// The event at a position.
    #[must_use]
    pub fn event_at(&self, position: u64) -> u64 {
        let before = self.distinct(position);
        let is_repeat = self.distinct(position + 1) == before;
        if !is_repeat || before == 0 {
            return before;
        }
        before - 1 - mix(self.seed ^ 0x5265_7065_6174, position) % before.min(REPEAT_WITHIN)
    }

    /// What an event says.
    #[must_use]
    pub fn spec(&self, event: u64) -> Spec {
        let random = mix(self.seed, event);
        let metric = (event % self.shape.meters as u64) as usize;
        let quantity = match metric {
            0 => 1 + (random >> 40) % 4_000,
            2 => 1,
            _ => 1 + (random >> 40) % 900,
        };
        // Low bits choose the customer, high bits the quantity, one in between the region.
        let is_near = (random >> 32).is_multiple_of(2);
        Spec { customer: (random % self.customers) as usize, metric, quantity, is_near }
    }

    /// When it happened.
    #[must_use]
    pub fn timestamp(&self, event: u64) -> DateTime<Utc> {
        self.base + TimeDelta::microseconds(event.cast_signed())
    }

    /// What every customer must have after the first `positions`.
    #[must_use]
    pub fn expected(&self, positions: u64) -> Vec<Expected> {
        let mut all = vec![Expected::none(self.shape); self.customers as usize];
        for event in 0..self.distinct(positions) {
            let spec = self.spec(event);
            all[spec.customer].add(spec, self.shape);
        }
        all
    }
}

/// SplitMix64 of two numbers.
fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xd134_2543_de82_ef95) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    //! Guards against a generator that expects something else than it sends: it would call a wrong server exact.

    use std::collections::HashMap;

    use super::*;

    fn plan(duplicates: u64) -> Plan {
        Plan {
            seed: 7,
            run: "r".to_owned(),
            customers: 13,
            duplicates,
            shape: Shape { meters: 3 },
            base: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_stream_holds_every_event_and_the_asked_share_of_repeats() {
        for duplicates in [0, 1, 50, 333, 500] {
            let plan = plan(duplicates);
            let mut times: HashMap<u64, u32> = HashMap::new();
            for position in 0..20_000 {
                let event = plan.event_at(position);
                assert!(event <= plan.distinct(position), "an event is repeated only after it was sent");
                *times.entry(event).or_default() += 1;
            }
            let distinct = plan.distinct(20_000);
            assert_eq!(times.len() as u64, distinct);
            assert_eq!(times.keys().max(), Some(&(distinct - 1)));
            assert_eq!(20_000 - distinct, 20 * duplicates);
        }
    }

    #[test]
    fn what_is_expected_is_the_sum_of_what_is_sent_once() {
        for meters in [3, 10] {
            let plan = Plan { shape: Shape { meters }, ..plan(100) };
            let mut seen = std::collections::HashSet::new();
            let mut sums = vec![Expected::none(plan.shape); 13];
            let mut left_out = 0;
            for position in 0..5_000 {
                let event = plan.event_at(position);
                if seen.insert(event) {
                    let spec = plan.spec(event);
                    if (3..8).contains(&spec.metric) && !spec.is_near {
                        left_out += 1;
                        continue;
                    }
                    sums[spec.customer].quantities[spec.metric] += spec.quantity;
                    sums[spec.customer].events[spec.metric] += 1;
                }
            }
            assert_eq!(plan.expected(5_000), sums);
            assert!(
                sums.iter().all(|sum| sum.events.iter().all(|events| *events > 5)),
                "all customers and metrics take part"
            );
            assert_eq!(left_out > 1_000, meters == 10, "half of what five of ten meters see");
            let filtered = (0..meters).filter(|meter| plan.shape.is_filtered(*meter)).count();
            assert_eq!(filtered, if meters == 10 { 5 } else { 0 });
        }
    }

    #[test]
    fn a_seed_repeats_a_run() {
        let specs = |seed| (0..100).map(|event| Plan { seed, ..plan(0) }.spec(event)).collect::<Vec<_>>();
        assert_eq!(specs(7), specs(7));
        assert_ne!(specs(7), specs(8));
    }
}
