//! Reserve, capture, release: usage that is paid for before it is delivered (reserve.md; rules D1, D2).
//!
//! * Reserving prices a quantity on top of what the window has counted and of what is promised: PENDING holds, and
//!   captures whose event is not counted yet. It holds the amount on the wallet.
//! * Capturing charges the hold and hands its usage event to the outbox, in one transaction. Behind the door that event is
//!   counted like any other; the checkpoint that counts it notes it, and the accrual of the window is less by what was
//!   charged. The invoice shows everything and is settled by what was charged; the rest goes back to the wallet.
//! * Releasing gives the hold back; one that nobody ends lapses with its wallet.
//!
//! What is held is what is charged for the whole quantity. For another quantity the price is found once more, on the running
//! totals that the hold was priced on, which are kept with it: what happened since changes nothing for the customer.
//!
//! A wallet in another currency than the price holds and pays what the amount is worth there, at the rate of the moment that the
//! organization's policy chooses; the rate is kept with the hold, and the capture is converted at it. The accrual and the invoice
//! are in the currency of the price.
//!
//! Locks are taken in the order window, wallet, here as everywhere (rule D3). Nothing depends on the node. Operations that
//! arrive together share a transaction ([`ReservationDesk`]).

mod answer;
pub(crate) mod captures;
mod context;
mod desk;
mod end;
mod place;
mod request;
mod stored;

use billing::invoice::draft::LineTax;
use currency::FxRate;
use domain::{Error, HoldId, Money, Result, RoundingMode};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

pub use answer::{BlockedReason, ReservationOutcome, ReserveResponse, ReserveStatus};
pub use desk::{ReservationAnswer, ReservationDesk, ReservationOperation};
pub use request::{ReleaseReservationRequest, ReserveRequest};

/// The key of the event that a capture writes: events show one, and nobody else can send it under this id.
fn idempotency_key_of(hold_id: HoldId) -> String {
    format!("capture:{hold_id}")
}

/// An amount with its tax: rounded once, as a whole (reserve.md 5, Amount held).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gross {
    net: Money,
    tax: Money,
    /// Percent.
    rate: Decimal,
}

impl Gross {
    /// With the tax that an invoice would have on it.
    fn of(net: Money) -> Result<Self> {
        Self::at(net, LineTax::none(net.currency()).rate)
    }

    /// With tax at a rate in percent.
    fn at(net: Money, rate: Decimal) -> Result<Self> {
        let total = Money::round(net.amount() + net.amount() * rate / Decimal::ONE_HUNDRED, net.currency())?;
        Ok(Self { net, tax: total.sub(net)?, rate })
    }

    fn total(self) -> Result<Money> {
        Ok(self.net.add(self.tax)?)
    }

    /// What the wallet has to give for it: the net amount is converted and taxed exactly, and rounded once.
    fn in_wallet(self, exchange: Option<&Exchange>) -> Result<Money> {
        let Some(Exchange { fx, rounding }) = exchange else { return self.total() };
        // A rate has at most 19 digits: with those of a tax rate the product is exact.
        let with_tax = (Decimal::ONE + self.rate / Decimal::ONE_HUNDRED).checked_mul(fx.rate);
        let with_tax = with_tax.ok_or_else(|| Error::business_rule("the amount is out of range"))?;
        Ok(self.net.convert(with_tax, fx.target_currency, *rounding)?)
    }
}

/// The rate at which a hold on a wallet of another currency than the price was converted. It is kept with the hold, and
/// the capture is converted at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Exchange {
    #[serde(flatten)]
    fx: FxRate,
    rounding: RoundingMode,
}

impl From<FxRate> for Exchange {
    fn from(fx: FxRate) -> Self {
        Self { rounding: fx.rounding, fx }
    }
}

#[cfg(test)]
mod tests {
    use domain::Currency;
    use domain::money::parse_decimal;

    use super::*;

    /// reserve.md, Vectors 1 and 3, and ties: half away from zero, on the whole.
    #[test]
    fn gross_is_rounded_once() {
        for (net, rate, tax, total) in [
            ("10.00", "19", "1.90", "11.90"),
            ("6.00", "19", "1.14", "7.14"),
            ("0.00", "19", "0.00", "0.00"),
            ("0.50", "19", "0.10", "0.60"),
            ("0.02", "19", "0.00", "0.02"),
            ("4.50", "0", "0.00", "4.50"),
        ] {
            let euros = |text| Money::new(parse_decimal(text).expect("a decimal"), Currency::EUR).expect("cents");
            let gross = Gross::at(euros(net), parse_decimal(rate).expect("a rate")).expect("in range");
            assert_eq!((gross.tax, gross.total().expect("in range")), (euros(tax), euros(total)), "{net} at {rate}");
        }
    }

    /// Converted, taxed and rounded once: 0.595 at 1.25 is 0.74375, while 0.60 would be 0.75.
    #[test]
    fn amounts_of_another_currency_are_rounded_once() {
        let decimal = |text| parse_decimal(text).expect("a decimal");
        for (net, tax_rate, fx_rate, currency, rounding, amount) in [
            ("10.00", "0", "1.25", "USD", RoundingMode::HalfUp, "12.50"),
            ("0.50", "19", "1.25", "USD", RoundingMode::HalfUp, "0.74"),
            ("0.50", "19", "1.25", "USD", RoundingMode::Up, "0.75"),
            ("10.00", "19", "163.45", "JPY", RoundingMode::HalfUp, "1945"),
            ("0.00", "19", "163.45", "JPY", RoundingMode::HalfUp, "0"),
        ] {
            let (source_currency, target_currency) = (Currency::EUR, Currency::parse(currency).expect("known"));
            let fx = FxRate {
                source_currency,
                target_currency,
                rate: decimal(fx_rate),
                kind: currency::FxRateKind::Snapshot,
                id: None,
                snapshot_date: None,
                as_of: chrono::DateTime::UNIX_EPOCH,
                rounding,
            };
            let gross = Gross::at(Money::new(decimal(net), Currency::EUR).expect("cents"), decimal(tax_rate));
            let exchange = Exchange::from(fx);
            let kept = serde_json::to_vec(&exchange).expect("JSON");
            assert_eq!(serde_json::from_slice::<Exchange>(&kept).expect("the same").rounding, rounding, "kept");
            let held = gross.and_then(|gross| gross.in_wallet(Some(&exchange))).expect("in range");
            assert_eq!(held.to_string(), format!("{amount} {currency}"), "{net} at {tax_rate} and {fx_rate}");
        }
    }
}
