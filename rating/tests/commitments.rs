//! What is carried and what is committed (allowances.md 5.1): quantities are conserved, commitments charge what they say, and
//! the bill of a commitment period does not depend on how windows and arrival cut it.

mod common;

use std::sync::Arc;

use common::*;
use domain::period::Period;
use domain::{CommittedUsePlanId, Currency, MeterFunction, Money, PricingModel, ProductId, Quantity};
use proptest::prelude::*;
use rating::allowance::{Allowance, Lot, Rollover, sum_of};
use rating::{
    Commitment, CompiledBinding, CompiledPrice, Exact, PeriodFacts, Rated, RatingInput, Shortfall, Terms, WindowState,
};

fn commitment(committed: &str, rate: &str) -> Commitment {
    let rate = Commitment::compile_rate(ProductId(id(10)), decimal(rate), Currency::EUR).expect("a good rate");
    Commitment {
        plan_id: CommittedUsePlanId(id(70)),
        period: month(),
        committed: quantity(committed),
        rate,
        overage: None,
        used: Quantity::ZERO,
        beyond: Vec::new(),
    }
}

fn rated(price: &Arc<CompiledPrice>, quantities: &[Quantity], allowance: Quantity, commitment: &Commitment) -> Rated {
    let binding: Arc<CompiledBinding> = binding(MeterFunction::Sum);
    let mut window = WindowState::new();
    for (number, quantity) in (1..).zip(quantities) {
        let mut event = event(number, "0");
        event.quantity = *quantity;
        window.apply(&event, target(&binding, price)).expect("countable");
    }
    let terms = [Terms { commitments: vec![commitment.clone()], ..Terms::new(ProductId(id(10)), "calls", allowance) }];
    let input = RatingInput { terms: &terms, until: None, period: PeriodFacts::default() };
    let rated = window.rate(&input).expect("rates");
    assert_eq!(window.accrue(&input).expect("rates"), rated.totals);
    rated
}

fn total_of(rated: &Rated) -> Money {
    rated.lines.iter().fold(Money::zero(Currency::EUR), |sum, line| sum.add(line.amount).expect("in range"))
}

fn used_of(rated: &Rated) -> Exact {
    let atoms = rated.lines.iter().flat_map(|line| &line.atoms).filter(|atom| atom.committed.is_some());
    atoms.fold(Exact::ZERO, |sum, atom| sum.checked_add(atom.billable_quantity).expect("in range"))
}

/// allowances.md 5.2, vectors 6 and 7; rule 9: the allowance comes first.
#[test]
fn commitments_are_charged_and_topped_up() {
    let standard = price(PricingModel::Staircase, tiers(&[("", "0.010", "0")]));
    let commitment = commitment("10000", "0.008");
    for (used, allowance, charged, short) in [
        ("7000", "0", "56.00", Some("24.00")),
        ("12000", "0", "100.00", None),
        ("10000", "0", "80.00", None),
        ("0", "0", "0.00", Some("80.00")),
        ("12000", "1000", "90.00", None),
        ("1000", "1000", "0.00", Some("80.00")),
    ] {
        let rated = rated(&standard, &[quantity(used)], quantity(allowance), &commitment);
        assert_eq!(total_of(&rated).amount().to_string(), charged, "{used} of which {allowance} are included");
        let shortfall = Shortfall::of(&commitment.rate, commitment.committed, used_of(&rated)).expect("in range");
        assert_eq!(shortfall.map(|one| one.amount.amount().to_string()).as_deref(), short, "{used}");
        let line = &rated.lines[0];
        let events: u64 = line.atoms.iter().map(|atom| atom.event_count).sum();
        assert_eq!((events, line.event_count), (1, 1));
        let quantities = line.atoms.iter().fold(Exact::ZERO, |sum, a| sum.checked_add(a.quantity).expect("small"));
        assert_eq!(quantities, quantity(used).into());
    }
    let rated = rated(&standard, &[quantity("12000")], quantity("1000"), &commitment);
    let atoms: Vec<_> = rated.lines[0]
        .atoms
        .iter()
        .map(|a| {
            (a.is_discounted(), a.allowance_quantity.to_string(), a.billable_quantity.to_string(), a.amount.to_string())
        })
        .collect();
    assert_eq!(
        atoms,
        [
            (true, "1000".into(), "10000".into(), "80.00 EUR".into()),
            (false, "0".into(), "1000".into(), "10.00 EUR".into())
        ],
        "the discounted part is an atom of its own"
    );
}

/// A commitment price of its own takes the place of the standard one, and tiers go on where the window before stopped.
#[test]
fn later_windows_go_on_where_earlier_ones_stopped() {
    let standard = price(PricingModel::Staircase, reference_tiers());
    let mut second = commitment("1000", "0.05");
    (second.used, second.beyond) = (quantity("1900"), vec![(standard.version_id, None, quantity("900"))]);
    // 100 in the first tier, 200 in the second.
    let rated = rated(&standard, &[quantity("300")], Quantity::ZERO, &second);
    assert_eq!(total_of(&rated).amount().to_string(), "26.00");
    let walked: Vec<_> = rated.lines[0].atoms[0].walk.tiers.iter().map(|tier| tier.quantity.to_string()).collect();
    assert_eq!(walked, ["1000", "200"]);
    assert_eq!(rated.lines[0].atoms[0].covered.as_ref().map(|walk| walk.quantity.to_string()), Some("900".into()));
    second.overage = Some(price(PricingModel::Staircase, tiers(&[("", "1", "0")])));
    let rated = self::rated(&standard, &[quantity("300")], Quantity::ZERO, &second);
    assert_eq!(total_of(&rated).amount().to_string(), "300.00");
}

/// Usage outside the commitment period is charged at the standard price.
#[test]
fn a_commitment_takes_in_its_own_period_only() {
    let standard = price(PricingModel::Staircase, tiers(&[("", "0.010", "0")]));
    let mut later = commitment("10000", "0.008");
    later.period = Period { start: at(60), end: month().end };
    let rated = rated(&standard, &[quantity("7000")], Quantity::ZERO, &later);
    assert_eq!((total_of(&rated).amount().to_string(), used_of(&rated)), ("70.00".into(), Exact::ZERO));
}

fn day(number: i64) -> domain::Instant {
    at(number * 24 * 60)
}

fn carry(rule: Rollover, start: i64, lots: &[Lot], included: &str, used: &str) -> Vec<Lot> {
    let allowance =
        Allowance { rolled_over: sum_of(lots).expect("small"), included: quantity(included), granted: Quantity::ZERO };
    let drawn = allowance.draw(quantity(used).into()).expect("small");
    rule.carry(day(start), lots, &drawn, quantity(included), |periods| day(start + 1 + i64::from(periods)))
        .expect("small")
}

fn quantities(lots: &[Lot]) -> Vec<String> {
    lots.iter().map(|lot| lot.quantity.to_string()).collect()
}

/// allowances.md 5.2, vectors 3 and 4, and what they leave open: several periods of life, a cap over several lots.
#[test]
fn carried_quantities() {
    let one = Rollover { max_quantity: None, expiry_periods: Some(1) };
    let capped = Rollover { max_quantity: Some(quantity("150")), ..one };
    assert_eq!(quantities(&carry(capped, 0, &[], "1000", "800")), ["150"]);
    let second = carry(one, 0, &[], "1000", "800");
    assert_eq!((quantities(&second), second[0].expires_at), (vec!["200".into()], Some(day(2))));
    let third = carry(one, 1, &second, "1000", "1000");
    assert_eq!((quantities(&third), third[0].source_start), (vec!["200".into()], day(1)), "what was carried is spent");
    assert_eq!(quantities(&carry(one, 1, &second, "1000", "0")), ["1000"], "what was carried has lived its period");

    let two = Rollover { max_quantity: None, expiry_periods: Some(2) };
    let second = carry(two, 0, &[], "1000", "800");
    let third = carry(two, 1, &second, "1000", "150");
    assert_eq!(quantities(&third), ["50", "1000"]);
    assert_eq!(third.iter().map(|lot| lot.expires_at).collect::<Vec<_>>(), [Some(day(3)), Some(day(4))]);
    assert_eq!(quantities(&carry(two, 2, &third, "1000", "100")), ["950", "1000"], "the oldest expiry is drawn first");
    let room = Rollover { max_quantity: Some(quantity("1010")), ..two };
    assert_eq!(quantities(&carry(room, 1, &second, "1000", "150")), ["10", "1000"], "what lapses first stays behind");

    let for_ever = Rollover::default();
    let third = carry(for_ever, 1, &carry(for_ever, 0, &[], "1000", "800"), "1000", "0");
    assert_eq!((quantities(&third), third[0].expires_at), (vec!["200".into(), "1000".into()], None));
}

prop_compose! {
    fn any_quantity(max: i128)(units in 0..max) -> Quantity { Quantity::from_units(units) }
}

const UNITS: i128 = 1_000_000_000_000;

proptest! {
    /// Drawn and overage are what was used; what is carried is what was left, less what lapsed or found no room.
    #[test]
    fn quantities_are_conserved(
        lots in prop::collection::vec((any_quantity(5_000 * UNITS), 1_u32..4), 0..4), included in any_quantity(5_000 * UNITS),
        granted in any_quantity(1_000 * UNITS), used in any_quantity(20_000 * UNITS),
        limit in prop::option::of(1_u32..4), cap in prop::option::of(any_quantity(8_000 * UNITS)),
    ) {
        let lots: Vec<Lot> = lots.into_iter().enumerate().map(|(age, (quantity, periods_lived))| Lot {
            source_start: day(-(age as i64) - 1), quantity, periods_lived,
            expires_at: limit.map(|limit| day(i64::from(limit) - i64::from(periods_lived))),
        }).collect();
        let allowance = Allowance { rolled_over: sum_of(&lots).unwrap(), included, granted };
        let drawn = allowance.draw(used.into()).unwrap();
        let add = |a: Exact, b: Exact| a.checked_add(b).unwrap();
        let taken = add(add(drawn.from_rolled_over, drawn.from_included), drawn.from_granted);
        prop_assert_eq!(add(taken, drawn.overage), used.into());
        prop_assert_eq!(add(taken, drawn.remaining), drawn.total.into());
        if !drawn.from_included.is_zero() {
            prop_assert_eq!(drawn.from_rolled_over, allowance.rolled_over.into());
        }

        let rule = Rollover { max_quantity: cap, expiry_periods: limit };
        let carried = rule.carry(day(0), &lots, &drawn, included, |periods| day(i64::from(periods) + 1)).unwrap();
        let sum = Exact::from(sum_of(&carried).unwrap());
        let left = add(allowance.rolled_over.into(), included.into());
        let left = left.checked_sub(add(drawn.from_rolled_over, drawn.from_included)).unwrap();
        prop_assert!(sum <= left);
        prop_assert!(cap.is_none_or(|cap| sum <= cap.into()));
        prop_assert!(carried.iter().all(|lot| limit.is_none_or(|limit| lot.periods_lived <= limit)));
        if cap.is_none() && limit.is_none() {
            prop_assert_eq!(sum, left);
        }
    }

    /// One window over the whole commitment period and several one after the other charge the same, to the cent; the
    /// discounted part and the shortfall are the whole commitment; the charge grows with the quantity.
    #[test]
    fn windows_of_a_commitment_period_add_up(
        parts in prop::collection::vec(any_quantity(3_000 * UNITS), 1..6), committed in any_quantity(6_000 * UNITS),
        rate in 0_i64..200_000,
    ) {
        let standard = price(PricingModel::Staircase, reference_tiers());
        let mut commitment = commitment("1", &format!("{}", rust_decimal::Decimal::new(rate, 7)));
        commitment.committed = committed.max(Quantity::from_units(1));
        let whole = rated(&standard, &parts, Quantity::ZERO, &commitment);
        let mut reversed = parts.clone();
        reversed.reverse();
        prop_assert_eq!(&total_of(&rated(&standard, &reversed, Quantity::ZERO, &commitment)), &total_of(&whole));

        let (mut going, mut sum, mut discounted) = (commitment.clone(), Money::zero(Currency::EUR), Money::zero(Currency::EUR));
        let mut beyond = Quantity::ZERO;
        for part in &parts {
            let rated = rated(&standard, &[*part], Quantity::ZERO, &going);
            sum = sum.add(total_of(&rated)).unwrap();
            for atom in rated.lines.iter().flat_map(|line| &line.atoms) {
                let quantity = atom.billable_quantity.to_quantity().unwrap();
                going.used = going.used.checked_add(quantity).unwrap();
                if atom.is_discounted() {
                    discounted = discounted.add(atom.amount).unwrap();
                } else {
                    beyond = beyond.checked_add(quantity).unwrap();
                }
            }
            going.beyond = vec![(standard.version_id, None, beyond)];
        }
        prop_assert_eq!(sum, total_of(&whole));
        let short = Shortfall::of(&commitment.rate, commitment.committed, going.used.into()).unwrap();
        let short = short.map_or(Money::zero(Currency::EUR), |short| short.amount);
        let full = rating::total(&commitment.rate, commitment.committed).unwrap();
        prop_assert_eq!(discounted.add(short).unwrap(), full, "d × c is charged in any case");
        let covered = going.used.min(commitment.committed);
        prop_assert!(sum.amount() >= rating::total(&commitment.rate, covered).unwrap().amount());
        let more: Vec<_> = parts.iter().copied().chain([Quantity::ONE]).collect();
        prop_assert!(total_of(&rated(&standard, &more, Quantity::ZERO, &commitment)).amount() >= total_of(&whole).amount());
    }
}
