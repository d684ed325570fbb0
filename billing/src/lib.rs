//! Customers, subscriptions, periods, invoice assembly and finalization (DESIGN sections 5 and 6).

pub mod allowance;
pub mod billing;
pub mod commitment;
pub mod control;
pub mod credit_note;
pub mod customer;
pub mod cycle;
pub mod due;
pub(crate) mod events;
pub mod invoice;
pub(crate) mod pages;
pub mod settings;
pub mod subscription;
pub mod windows;

pub use billing::Billing;
