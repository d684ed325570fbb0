//! 256-bit products and quotients, for the rare number that leaves 128 bits half-way (PERFORMANCE P15).

/// Powers of ten that fit `u128`.
const POWERS: [u128; 39] = {
    let mut powers = [1_u128; 39];
    let mut i = 1;
    while i < 39 {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};

/// 10^`exponent`; `None` above 10³⁸.
#[must_use]
pub fn power_of_ten(exponent: u32) -> Option<u128> {
    POWERS.get(exponent as usize).copied()
}

/// An unsigned number of 256 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct U256 {
    high: u128,
    low: u128,
}

impl U256 {
    /// The exact product.
    #[must_use]
    pub fn product(a: u128, b: u128) -> Self {
        const MASK: u128 = u64::MAX as u128;
        let (a1, a0, b1, b0) = (a >> 64, a & MASK, b >> 64, b & MASK);
        let low = a0 * b0;
        // None of these sums overflows: (2^64-1)^2 + 2*(2^64-1) = 2^128 - 1.
        let middle = a1 * b0 + (low >> 64);
        let cross = a0 * b1 + (middle & MASK);
        Self { high: a1 * b1 + (middle >> 64) + (cross >> 64), low: (cross << 64) | (low & MASK) }
    }

    /// The exact sum; `None` above 256 bits.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let (low, carry) = self.low.overflowing_add(other.low);
        let high = self.high.checked_add(other.high)?.checked_add(u128::from(carry))?;
        Some(Self { high, low })
    }

    /// Quotient and remainder; `None` when the quotient needs more than 128 bits or the divisor is zero.
    #[must_use]
    pub fn div_rem(self, divisor: u128) -> Option<(u128, u128)> {
        if self.high == 0 {
            let quotient = self.low.checked_div(divisor)?;
            return Some((quotient, self.low - quotient * divisor));
        }
        if self.high >= divisor {
            return None;
        }
        let (mut quotient, mut remainder) = (0_u128, self.high);
        for bit in (0..128).rev() {
            let carry = remainder >> 127 == 1;
            remainder = (remainder << 1) | ((self.low >> bit) & 1);
            quotient <<= 1;
            if carry || remainder >= divisor {
                remainder = remainder.wrapping_sub(divisor); // exact: remainder < 2 * divisor with its carry
                quotient |= 1;
            }
        }
        Some((quotient, remainder))
    }
}

/// `numerator / divisor`, rounded half away from zero.
#[must_use]
pub fn div_half_up(numerator: U256, divisor: u128) -> Option<u128> {
    let (quotient, remainder) = numerator.div_rem(divisor)?;
    if remainder >= divisor - remainder { quotient.checked_add(1) } else { Some(quotient) }
}

/// `numerator / divisor`, rounded half to even.
#[must_use]
pub fn div_half_even(numerator: U256, divisor: u128) -> Option<u128> {
    let (quotient, remainder) = numerator.div_rem(divisor)?;
    let rest = divisor - remainder;
    if remainder > rest || (remainder == rest && quotient % 2 == 1) { quotient.checked_add(1) } else { Some(quotient) }
}

/// Gives a magnitude its sign back; `None` beyond `i128`.
#[must_use]
pub fn signed(magnitude: u128, negative: bool) -> Option<i128> {
    let value = i128::try_from(magnitude).ok()?;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigUint;
    use proptest::prelude::*;

    fn big(value: U256) -> BigUint {
        (BigUint::from(value.high) << 128) + BigUint::from(value.low)
    }

    proptest! {
        #[test]
        fn products_sums_and_quotients_agree_with_big_integers(a in any::<u128>(), b in any::<u128>(), c in any::<u128>(), d in 1..u128::MAX) {
            let product = U256::product(a, b);
            prop_assert_eq!(big(product), BigUint::from(a) * BigUint::from(b));
            let sum = product.checked_add(U256 { high: 0, low: c });
            let exact = BigUint::from(a) * BigUint::from(b) + BigUint::from(c);
            prop_assert_eq!(sum.map(big), Some(exact.clone()));
            let expected = &exact / BigUint::from(d);
            match sum.and_then(|s| s.div_rem(d)) {
                Some((quotient, remainder)) => {
                    prop_assert_eq!(BigUint::from(quotient), expected);
                    prop_assert_eq!(BigUint::from(remainder), exact % BigUint::from(d));
                }
                None => prop_assert!(expected > BigUint::from(u128::MAX)),
            }
        }
    }

    #[test]
    fn rounds_as_named() {
        for (numerator, up, even) in [(5, 1, 0), (15, 2, 2), (25, 3, 2), (24, 2, 2), (26, 3, 3), (0, 0, 0)] {
            let numerator = U256 { high: 0, low: numerator };
            assert_eq!((div_half_up(numerator, 10), div_half_even(numerator, 10)), (Some(up), Some(even)));
        }
    }
}
