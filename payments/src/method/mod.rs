//! Stored instruments of customers (payment-methods.md): tokens of providers, never card or account data.

mod model;
mod request;
mod sync;
mod write;

pub use model::PaymentMethod;
pub use request::{CreatePaymentMethodRequest, UpdatePaymentMethodRequest};
pub use write::{create, delete, get, list, set_default, update};

pub(crate) use sync::{CardDisplay, mark, token_ended, token_shown};
pub(crate) use write::chargeable;
