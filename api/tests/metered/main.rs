//! Usage over HTTP with everything behind it: door, log, partitions, books and billing on a test clock.

mod allowances;
mod analysts;
mod backdating;
mod combining;
mod correcting;
mod currencies;
mod fixture;
mod going_on;
mod limiting;
mod pricing;
mod reading;
mod reserving;
mod settling;
mod simulating;
mod voiding;
