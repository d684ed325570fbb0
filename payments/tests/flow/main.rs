//! Payments on a real PostgreSQL with a bank that counts what it really takes. What could go wrong costs money: a charge that
//! is made twice, a charge that nobody knows of, a wallet that is filled twice or not at all.

mod automatic;
mod collecting;
mod crashes;
mod fixture;
mod invoice;
mod manual;
mod methods;
mod receiving;
mod refunds;
mod routing;
mod secrets;
mod topup_invoices;
