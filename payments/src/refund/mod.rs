//! Refunds (refunds.md): money of a payment that goes back, because we order it ([`order`]), because its provider says that it
//! went, or because the customer's bank took it ([`told`]).
//!
//! Locks: the invoice, then the payment and its refunds, then wallets. Whoever holds the invoice knows what of it can be refunded:
//! what came for it, less refunds that did not fail.

mod finish;
mod order;
mod request;
mod told;

pub use order::Ordered;
pub use request::{RefundDestination, RefundInvoiceRequest, RefundLineItem, RefundResult};

pub(crate) use finish::{announce, finish};
pub(crate) use told::{charged_back, contested, given_back};
