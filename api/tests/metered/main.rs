//! Usage over HTTP with everything behind it: door, log, partitions, books and billing on a test clock.

mod analysts;
mod fixture;
mod pricing;
mod reading;
mod reserving;
mod settling;
mod simulating;
mod voiding;
