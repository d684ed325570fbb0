//! Configurations of outside processors (payment-gateways.md): who can charge, with which secrets, and which of them does.

mod choice;
mod model;
mod request;
mod settings;
mod write;

pub use choice::{Candidate, Wanted, choose};
pub use model::{
    GatewayCreateResponse, GatewayListResponse, GatewayUpdateAck, GatewayUpdateResponse, PaymentGatewayConfig,
};
pub use request::{
    CreatePaymentGatewayConfigRequest, UpdatePaymentGatewayConfigRequest, UpdateProviderSettingsRequest,
};
pub use settings::ProviderSettings;
pub use write::{LIST, create, delete, get, list, secrets, update, update_provider_settings};

pub(crate) use request::api_key;
pub(crate) use write::{candidates, hold, is_configured};
