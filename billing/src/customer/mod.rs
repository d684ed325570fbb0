//! Customers: the party that is billed (customers.md).
//!
//! A customer is made with its primary wallet in one transaction. Requests become changes of the stored record, which is
//! then checked and written whole, so that a rule stands in one place for creation, change and upsert.

mod create;
mod model;
mod read;
mod request;
mod rules;
mod update;

pub use create::{Upserted, create, upsert};
pub use model::{
    BillingAddress, BillingModel, CreateCustomerResponse, Customer, CustomerStatus, CustomerType, VatValidationStatus,
};
pub use read::{get, get_by_external_id, list};
pub use request::{CreateCustomerRequest, UpdateCustomerRequest};
pub use update::{delete, update};
