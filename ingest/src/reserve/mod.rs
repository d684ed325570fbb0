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
use domain::{HoldId, Money, Result};
use rust_decimal::Decimal;

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
}
