//! Adapters against servers that answer as the providers document. What could go wrong costs money: a retry with another
//! idempotency key, a lost answer that is taken for a refusal, a refusal that is taken for trouble.

mod gocardless;
mod server;
mod stripe;
mod stripe_mock;
