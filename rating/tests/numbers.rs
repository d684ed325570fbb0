//! Numbers of formulas against arithmetic with big integers. A difference here is a rate with a wrong digit.

use num_bigint::BigInt;
use proptest::prelude::*;
use rating::formula::{FormulaFailure, Number};

/// Whole numbers of 10^-scale.
#[derive(Clone, Debug)]
struct Naive {
    mantissa: BigInt,
    scale: u32,
}

fn ten(exponent: u32) -> BigInt {
    BigInt::from(10).pow(exponent)
}

fn abs(number: &BigInt) -> BigInt {
    BigInt::from(number.magnitude().clone())
}

impl Naive {
    fn at(&self, scale: u32) -> BigInt {
        &self.mantissa * ten(scale - self.scale)
    }

    /// As text, from which a `Number` is read.
    fn text(&self) -> String {
        let digits = format!("{:0>width$}", abs(&self.mantissa).to_string(), width = self.scale as usize + 1);
        let (whole, fraction) = digits.split_at(digits.len() - self.scale as usize);
        let sign = if self.mantissa < BigInt::ZERO { "-" } else { "" };
        if self.scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
    }

    fn number(&self) -> Number {
        Number::parse(&self.text()).expect("a number")
    }
}

prop_compose! {
    /// From a digit to 60, so that both representations meet.
    fn any_naive()(digits in 1_usize..60, seed in "[0-9]{60}", zeros in 0_usize..20, scale in 0_u32..45, minus in any::<bool>()) -> Naive {
        let text = format!("{}{}", &seed[..digits], "0".repeat(zeros));
        let mantissa: BigInt = text.parse().expect("digits");
        Naive { mantissa: if minus { -mantissa } else { mantissa }, scale }
    }
}

/// The quotient at 28 significant digits, half-even: scaled until it has 28 digits before the point.
fn quotient(a: &Naive, b: &Naive) -> Naive {
    let scale = a.scale.max(b.scale);
    let (mut numerator, mut denominator) = (abs(&a.at(scale)), abs(&b.at(scale)));
    let mut exponent = 0_i32;
    while numerator < &denominator * ten(27) {
        numerator *= 10;
        exponent += 1;
    }
    while numerator >= &denominator * ten(28) {
        denominator *= 10;
        exponent -= 1;
    }
    let (mut quotient, twice) = (&numerator / &denominator, (&numerator % &denominator) * 2);
    let is_odd = &quotient % 2 == BigInt::from(1);
    if twice > denominator || (twice == denominator && is_odd) {
        quotient += 1;
    }
    let mantissa = if (a.mantissa < BigInt::ZERO) == (b.mantissa < BigInt::ZERO) { quotient } else { -quotient };
    match u32::try_from(exponent) {
        Ok(scale) => Naive { mantissa, scale },
        Err(_) => Naive { mantissa: mantissa * ten(exponent.unsigned_abs()), scale: 0 },
    }
}

proptest! {
    #[test]
    fn arithmetic_agrees(a in any_naive(), b in any_naive()) {
        let scale = a.scale.max(b.scale);
        let naive = |mantissa: BigInt| Naive { mantissa, scale }.number();
        let (x, y) = (a.number(), b.number());
        prop_assert_eq!(x.add(&y), Ok(naive(a.at(scale) + b.at(scale))));
        prop_assert_eq!(x.sub(&y), Ok(naive(a.at(scale) - b.at(scale))));
        prop_assert_eq!(x.mul(&y), Ok(Naive { mantissa: &a.mantissa * &b.mantissa, scale: a.scale + b.scale }.number()));
        prop_assert_eq!(x.cmp(&y), a.at(scale).cmp(&b.at(scale)));
        prop_assert_eq!(x.neg().and_then(|n| n.neg()), Ok(x.clone()));
        if b.mantissa == BigInt::ZERO {
            prop_assert_eq!(x.div(&y), Err(FormulaFailure::DivisionByZero));
            prop_assert_eq!(x.rem(&y), Err(FormulaFailure::DivisionByZero));
        } else {
            prop_assert_eq!(x.rem(&y), Ok(naive(a.at(scale) % b.at(scale))));
            if a.mantissa != BigInt::ZERO {
                prop_assert_eq!(x.div(&y), Ok(quotient(&a, &b).number()));
            }
        }
    }

    #[test]
    fn powers_and_roots_agree(a in any_naive(), exponent in 0_u32..8) {
        let x = a.number();
        let power = Naive { mantissa: a.mantissa.pow(exponent), scale: a.scale * exponent }.number();
        prop_assert_eq!(x.pow(&Number::from(i64::from(exponent))), Ok(power.clone()));
        if let (false, Some(root)) = (x.is_zero() || x.is_negative(), [None, None, Some("0.5"), None, Some("0.25"), Some("0.2")].get(exponent as usize).copied().flatten()) {
            prop_assert_eq!(power.pow(&Number::parse(root).expect("a number")), Ok(x));
        }
    }

    #[test]
    fn text_and_rounding_agree(a in any_naive(), digits in 0_u32..50) {
        let x = a.number();
        prop_assert_eq!(Number::parse(&x.to_string()), Some(x.clone()));
        prop_assert!(!x.to_string().contains('.') || !x.to_string().ends_with('0'));
        let rounded = if digits >= a.scale { a.clone() } else {
            let power = ten(a.scale - digits);
            let half_up: BigInt = (abs(&a.mantissa) * 2 + &power) / (power * 2);
            Naive { mantissa: if a.mantissa < BigInt::ZERO { -half_up } else { half_up }, scale: digits }
        };
        prop_assert_eq!(x.rounded(digits), Ok(rounded.number()));
        let units = x.to_units(12);
        let exact = (a.scale <= 12).then(|| a.at(12)).or_else(|| {
            let power = ten(a.scale - 12);
            (&a.mantissa % &power == BigInt::ZERO).then(|| &a.mantissa / power)
        });
        prop_assert_eq!(units, exact.and_then(|exact| i128::try_from(exact).ok()));
    }
}
