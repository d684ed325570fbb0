//! Bodies of the gateway operations.

use std::collections::BTreeMap;

use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{Currency, Error, Input, ProviderID, Result};
use serde_json::Value;
use utoipa::ToSchema;

use super::settings::{self, ProviderSettings};
use crate::words::{GatewayMode, PaymentMethodType};

/// Secrets by name.
pub(super) type Secrets = BTreeMap<String, String>;

/// Names under which a provider's API key may stand.
const API_KEY_NAMES: [&str; 2] = ["api_key", "access_token"];

/// The provider's API key among the secrets of a gateway.
///
/// # Errors
/// `Internal` without one: the request that made the gateway was refused without.
pub(crate) fn api_key(secrets: &Secrets) -> Result<String> {
    let found = API_KEY_NAMES.iter().find_map(|name| secrets.get(*name));
    found.cloned().ok_or_else(|| Error::invariant("the gateway has no API key"))
}

const NAME_MAX: usize = 255;
const SECRETS_MAX: usize = 20;
const SECRET_CHARS_MAX: usize = 4_000;

/// `internal.payment.CreatePaymentGatewayConfigRequest`.
#[derive(Clone, PartialEq, Eq, ToSchema)]
pub struct CreatePaymentGatewayConfigRequest {
    /// The processor.
    pub provider: ProviderID,
    /// Which world the credentials belong to.
    pub mode: GatewayMode,
    /// Secrets by name: `api_key`, `webhook_secret`, ….
    #[schema(value_type = Object)]
    pub config: BTreeMap<String, String>,
    /// Label for operators.
    pub display_name: Option<String>,
    /// What it charges in; empty: anything.
    #[schema(value_type = Vec<String>, required = false)]
    pub supported_currencies: Vec<Currency>,
    /// What it can charge; empty: anything.
    #[schema(required = false)]
    pub supported_methods: Vec<PaymentMethodType>,
}

impl CreatePaymentGatewayConfigRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let provider = input.required("provider", provider);
        let mode = input.required("mode", Field::word);
        let config = input.required("config", secrets);
        let display_name = input.optional("display_name", |v| v.text(1, NAME_MAX));
        let supported_currencies = input.optional("supported_currencies", currencies).unwrap_or_default();
        let supported_methods = input.optional("supported_methods", methods).unwrap_or_default();
        input.finish()?;
        let missing = || Error::invariant("a required member passed unread");
        Ok(Self {
            provider: provider.ok_or_else(missing)?,
            mode: mode.ok_or_else(missing)?,
            config: config.ok_or_else(missing)?,
            display_name,
            supported_currencies,
            supported_methods,
        })
    }
}

/// `internal.payment.UpdatePaymentGatewayConfigRequest`: sent members change; `config` replaces all secrets.
#[derive(Clone, Default, PartialEq, Eq, ToSchema)]
pub struct UpdatePaymentGatewayConfigRequest {
    /// Secrets by name, in the place of those that are set.
    #[schema(value_type = Option<Object>)]
    pub config: Option<BTreeMap<String, String>>,
    /// Label for operators.
    pub display_name: Option<String>,
    /// Whether it is asked where no preference matches; true takes it from the others of its mode.
    pub is_default: Option<bool>,
    /// Whether payments may go through it.
    pub is_enabled: Option<bool>,
    /// Which world the credentials belong to.
    pub mode: Option<GatewayMode>,
    /// What it charges in; empty: anything.
    #[schema(value_type = Option<Vec<String>>)]
    pub supported_currencies: Option<Vec<Currency>>,
    /// What it can charge; empty: anything.
    pub supported_methods: Option<Vec<PaymentMethodType>>,
}

impl UpdatePaymentGatewayConfigRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field; `provider` never changes.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        input.optional("provider", |v| v.refuse::<()>(Code::NotAllowed, "never changes: make another gateway"));
        let request = Self {
            config: input.optional("config", secrets),
            display_name: input.optional("display_name", |v| v.text(1, NAME_MAX)),
            is_default: input.optional("is_default", Field::boolean),
            is_enabled: input.optional("is_enabled", Field::boolean),
            mode: input.optional("mode", Field::word),
            supported_currencies: input.optional("supported_currencies", currencies),
            supported_methods: input.optional("supported_methods", methods),
        };
        input.finish()?;
        Ok(request)
    }
}

/// `handler.updateProviderSettingsRequest`; read when the gateway's provider is known.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
pub struct UpdateProviderSettingsRequest {
    /// The options; those that are left out are unset.
    #[schema(value_type = Object)]
    pub settings: ProviderSettings,
}

impl UpdateProviderSettingsRequest {
    /// Reads the body for a provider.
    ///
    /// # Errors
    /// `Validation` with every bad option.
    pub fn read(body: &Value, provider: ProviderID) -> Result<Self> {
        Ok(Self { settings: settings::read_body(body, provider)? })
    }
}

fn provider(field: Field<'_>) -> FieldResult<ProviderID> {
    let refused = field
        .refuse(Code::InvalidEnum, "`external` stands for payments that no gateway takes: it has no configuration");
    let provider = field.word()?;
    if provider == ProviderID::External { refused } else { Ok(provider) }
}

fn secrets(field: Field<'_>) -> FieldResult<Secrets> {
    let lacking = field.refuse(Code::Required, "must have the provider's API key under `api_key`");
    let secrets = field.map_of(SECRETS_MAX, 64, |v| v.text(1, SECRET_CHARS_MAX))?;
    if API_KEY_NAMES.iter().any(|name| secrets.contains_key(*name)) { Ok(secrets) } else { lacking }
}

fn currencies(field: Field<'_>) -> FieldResult<Vec<Currency>> {
    field.list(0, 200, Field::currency).map(unique)
}

fn methods(field: Field<'_>) -> FieldResult<Vec<PaymentMethodType>> {
    field.list(0, 20, Field::word).map(unique)
}

fn unique<T: PartialEq>(values: Vec<T>) -> Vec<T> {
    let mut kept = Vec::with_capacity(values.len());
    for value in values {
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    kept
}
