//! The books on a real PostgreSQL. What could go wrong costs money: a balance that is not the sum of its entries, a
//! wallet spent twice, a retry booked twice, an entry that changed.

mod closing;
mod concurrency;
mod fixture;
mod groups;
mod histories;
mod immutability;
mod invoices;
mod lapsing;
mod model;
mod rates;
mod replays;
mod scale;
mod statements;
mod vectors;
mod verifying;
mod wallets;
