//! What every customer must be billed, from the raw input alone: whole numbers, no code of the engine.

use client::sample::{FEE_CENTS, INCLUDED, INPUT_TIERS, OUTPUT_TIERS, PACKAGE_CENTS, PACKAGE_REQUESTS, Tier};

use super::trace::Request;

/// Thousand-millionths of a euro in a cent.
const NANOS_PER_CENT: u128 = 10_000_000;

/// What one customer used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Quantities, in the order of `client::sample::METRICS`.
    pub quantities: [u64; 3],
    /// Requests; each is one event of every metric.
    pub requests: u64,
}

/// Sums of each customer: request i belongs to customer i mod `customers`.
#[must_use]
pub fn by_customer(requests: &[Request], customers: usize) -> Vec<Used> {
    let mut sums = vec![Used::default(); customers];
    for (index, request) in requests.iter().enumerate() {
        let used = &mut sums[index % customers];
        used.quantities[0] += request.input_tokens;
        used.quantities[1] += request.output_tokens;
        used.quantities[2] += 1;
        used.requests += 1;
    }
    sums
}

/// The invoice total in cents: fee, two staircases and packages, each beyond what the plan includes.
#[must_use]
pub fn total_cents(used: &Used) -> u64 {
    let beyond = |index: usize| used.quantities[index].saturating_sub(INCLUDED[index]);
    FEE_CENTS
        + staircase_cents(beyond(0), &INPUT_TIERS)
        + staircase_cents(beyond(1), &OUTPUT_TIERS)
        + beyond(2).div_ceil(PACKAGE_REQUESTS) * PACKAGE_CENTS
}

/// Each tier takes the units between the bound before it and its own, and its contribution is rounded half up
/// (pricing-models.md).
fn staircase_cents(quantity: u64, tiers: &[Tier]) -> u64 {
    let mut total = 0;
    let mut below = 0;
    for tier in tiers {
        let upper = tier.up_to.map_or(quantity, |bound| bound.min(quantity));
        let units = upper.saturating_sub(below);
        let nanos = u128::from(units) * u128::from(tier.nanos_per_unit);
        total += (nanos + NANOS_PER_CENT / 2) / NANOS_PER_CENT;
        below = below.max(upper);
    }
    // A euro amount beyond 184 thousand million million does not happen in a demo.
    u64::try_from(total).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTED: [Tier; 3] = [
        Tier { up_to: Some(1_000), nanos_per_unit: 100_000_000 },
        Tier { up_to: Some(10_000), nanos_per_unit: 80_000_000 },
        Tier { up_to: None, nanos_per_unit: 50_000_000 },
    ];

    #[test]
    fn the_staircase_gives_the_documented_vectors() {
        for (quantity, cents) in
            [(0, 0), (1, 10), (1_000, 100_00), (1_001, 100_08), (5_000, 420_00), (10_001, 820_05), (25_000, 1_570_00)]
        {
            assert_eq!(staircase_cents(quantity, &DOCUMENTED), cents, "{quantity}");
        }
    }

    #[test]
    fn each_tier_is_rounded_alone() {
        let halves =
            [Tier { up_to: Some(1), nanos_per_unit: 5_000_000 }, Tier { up_to: None, nanos_per_unit: 4_999_999 }];
        assert_eq!(staircase_cents(1, &halves), 1);
        assert_eq!(staircase_cents(2, &halves), 1);
        assert_eq!(staircase_cents(4, &halves), 2);
    }

    #[test]
    fn nothing_used_costs_the_fee_and_packages_are_whole() {
        assert_eq!(total_cents(&Used::default()), FEE_CENTS);
        let packages = |requests| total_cents(&Used { quantities: [0, 0, requests], requests }) - FEE_CENTS;
        assert_eq!(packages(INCLUDED[2]), 0);
        assert_eq!(packages(INCLUDED[2] + 1), PACKAGE_CENTS);
        assert_eq!(packages(INCLUDED[2] + PACKAGE_REQUESTS), PACKAGE_CENTS);
        assert_eq!(packages(INCLUDED[2] + PACKAGE_REQUESTS + 1), 2 * PACKAGE_CENTS);
    }
}
