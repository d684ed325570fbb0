//! Billing from the subscription to the numbered invoice, driven by test clocks. What would be broken without these
//! tests: a period billed twice or not at all, a missing number, a stub that costs a month, an advance that stops half-way.

mod books;
mod clocks;
mod collecting;
mod cycles;
mod exchange;
mod exchange_rates;
mod extra;
mod fixture;
mod housekeeping;
mod items;
mod lifecycle;
mod numbers;
mod pauses;
mod real_log;
mod statistics;
mod usage;
mod wallet_payments;
