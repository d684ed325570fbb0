//! Customers, subscriptions, periods, invoice assembly and finalization (DESIGN sections 5 and 6).

pub mod control;
pub mod due;
pub mod invoice;
pub mod settings;
pub mod subscription;
pub mod windows;
