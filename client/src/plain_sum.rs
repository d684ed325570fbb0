//! What a customer of the sample catalog must be billed, from quantities alone: whole numbers, no code of the engine.

use crate::sample::{FEE_CENTS, INCLUDED, INPUT_TIERS, OUTPUT_TIERS, PACKAGE_CENTS, PACKAGE_REQUESTS, Tier};

/// Thousand-millionths of a euro in a cent.
const NANOS_PER_CENT: u128 = 10_000_000;

/// The invoice total in cents for quantities in the order of [`crate::sample::METRICS`]: fee, two staircases and
/// packages, each beyond what the plan includes.
#[must_use]
pub fn invoice_cents(quantities: &[u64; 3]) -> u64 {
    FEE_CENTS + (0..3).map(|metric| usage_cents(metric, quantities[metric])).sum::<u64>()
}

/// The price in cents of a quantity of one metric, beyond what the plan includes.
#[must_use]
pub fn usage_cents(metric: usize, quantity: u64) -> u64 {
    let beyond = quantity.saturating_sub(INCLUDED[metric]);
    match metric {
        0 => staircase_cents(beyond, &INPUT_TIERS),
        1 => staircase_cents(beyond, &OUTPUT_TIERS),
        _ => beyond.div_ceil(PACKAGE_REQUESTS) * PACKAGE_CENTS,
    }
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
    // No sample of usage comes near 184 thousand million million euros.
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
            [(0, 0), (1, 10), (1_000, 10_000), (1_001, 10_008), (5_000, 42_000), (10_001, 82_005), (25_000, 157_000)]
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
        assert_eq!(invoice_cents(&[0; 3]), FEE_CENTS);
        let packages = |requests| invoice_cents(&[0, 0, requests]) - FEE_CENTS;
        assert_eq!(packages(INCLUDED[2]), 0);
        assert_eq!(packages(INCLUDED[2] + 1), PACKAGE_CENTS);
        assert_eq!(packages(INCLUDED[2] + PACKAGE_REQUESTS), PACKAGE_CENTS);
        assert_eq!(packages(INCLUDED[2] + PACKAGE_REQUESTS + 1), 2 * PACKAGE_CENTS);
    }
}
