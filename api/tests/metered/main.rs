//! Usage over HTTP with everything behind it: door, log, partitions, books and billing on a test clock.

mod fixture;
mod limiting;
mod pricing;
mod reserving;
mod settling;
mod simulating;
mod voiding;
