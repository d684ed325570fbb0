//! Bodies of customer writes. A creation is what an update can say, and a few members more.

use std::collections::BTreeMap;

use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{Currency, Input, JsonMap, Patch, ProviderID, Result, TestClockId};
use rust_decimal::Decimal;
use serde_json::Value;
use utoipa::openapi::schema::{ArrayBuilder, Object, Schema};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use super::model::{BillingAddress, BillingModel, CustomerStatus, CustomerType};

const PAYMENT_TERMS_DAYS_MAX: i64 = 3_650;

/// `domain.UpdateCustomerRequest`: sent members change, null clears.
#[derive(Clone, Debug, Default, PartialEq, ToSchema)]
pub struct UpdateCustomerRequest {
    /// Printed on invoices.
    pub name: Option<String>,
    /// Main contact.
    pub email: Option<String>,
    /// The caller's own id.
    #[schema(value_type = Option<String>)]
    pub external_id: Patch<String>,
    /// `ACTIVE` or `INACTIVE`.
    pub status: Option<CustomerStatus>,
    /// `HYBRID`, or the word of the present mode.
    pub billing_model: Option<BillingModel>,
    /// Replaced as a whole.
    #[schema(value_type = Option<BillingAddress>)]
    pub billing_address: Patch<BillingAddress>,
    /// Replaced as a whole.
    pub tax_identifiers: Option<BTreeMap<String, String>>,
    /// Billing currency.
    #[schema(value_type = Option<String>)]
    pub preferred_currency: Patch<Currency>,
    /// Language of documents, e.g. `de-DE`.
    #[schema(value_type = Option<String>)]
    pub locale: Patch<String>,
    /// Days until an invoice is due.
    #[schema(value_type = Option<i32>)]
    pub payment_terms_days: Patch<i32>,
    /// E-invoice routing.
    #[schema(value_type = Option<String>)]
    pub peppol_id: Patch<String>,
    /// E-invoice address.
    #[schema(value_type = Option<String>)]
    pub einvoice_email: Patch<String>,
    /// Whether e-invoices are preferred.
    pub prefer_einvoice: Option<bool>,
    /// Gateway to use.
    #[schema(value_type = Option<ProviderID>)]
    pub preferred_provider: Patch<ProviderID>,
    /// Gateways not to use.
    pub disabled_providers: Option<Vec<ProviderID>>,
    /// Wallet default.
    #[schema(value_type = Option<bool>)]
    pub default_auto_topup_enabled: Patch<bool>,
    /// Wallet default, in the currency of the wallet that takes it.
    #[schema(value_type = Option<String>)]
    pub default_auto_topup_amount: Patch<Decimal>,
    /// Wallet default.
    #[schema(value_type = Option<String>)]
    pub default_credit_limit: Patch<Decimal>,
    /// Wallet default.
    #[schema(value_type = Option<String>)]
    pub default_low_balance_threshold: Patch<Decimal>,
    /// Wallet default.
    #[schema(value_type = Option<String>)]
    pub default_max_balance: Patch<Decimal>,
    /// Wallet default.
    #[schema(value_type = Option<String>)]
    pub default_max_single_credit: Patch<Decimal>,
    /// Opt-out of VAT checks.
    pub vat_validation_disabled: Option<bool>,
    /// Why.
    #[schema(value_type = Option<String>)]
    pub vat_validation_disabled_reason: Patch<String>,
    /// Values of the organization's field definitions.
    #[schema(value_type = Option<Object>)]
    pub custom_fields: Option<JsonMap>,
    /// Sent keys are replaced, null removes one.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
}

impl UpdateCustomerRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let name = not_null(&mut input, "name", |v| v.text(1, 255));
        let email = not_null(&mut input, "email", Field::email);
        let status = not_null(&mut input, "status", Field::word);
        let request = Self { name, email, status, ..Self::read_shared(&mut input) };
        input.finish()?;
        Ok(request)
    }

    /// The members that creations have as well.
    fn read_shared(input: &mut Input<'_>) -> Self {
        Self {
            external_id: input.patch("external_id", |v| v.text(1, 255)),
            billing_model: not_null(input, "billing_model", Field::word),
            billing_address: input.patch("billing_address", address),
            tax_identifiers: not_null(input, "tax_identifiers", |v| v.map_of(20, 40, |v| v.text(1, 64))),
            preferred_currency: input.patch("preferred_currency", Field::currency),
            locale: input.patch("locale", locale),
            payment_terms_days: input.patch("payment_terms_days", payment_terms_days),
            peppol_id: input.patch("peppol_id", |v| v.text(1, 255)),
            einvoice_email: input.patch("einvoice_email", Field::email),
            prefer_einvoice: not_null(input, "prefer_einvoice", Field::boolean),
            preferred_provider: input.patch("preferred_provider", Field::word),
            disabled_providers: not_null(input, "disabled_providers", |v| v.list(0, 5, Field::word)),
            default_auto_topup_enabled: input.patch("default_auto_topup_enabled", Field::boolean),
            default_auto_topup_amount: input.patch("default_auto_topup_amount", Field::rate_positive),
            default_credit_limit: input.patch("default_credit_limit", Field::rate),
            default_low_balance_threshold: input.patch("default_low_balance_threshold", Field::rate),
            default_max_balance: input.patch("default_max_balance", Field::rate),
            default_max_single_credit: input.patch("default_max_single_credit", Field::rate),
            vat_validation_disabled: not_null(input, "vat_validation_disabled", Field::boolean),
            vat_validation_disabled_reason: input.patch("vat_validation_disabled_reason", |v| v.text(0, 1_000)),
            custom_fields: not_null(input, "custom_fields", Field::json_object),
            metadata: not_null(input, "metadata", Field::metadata),
            ..Self::default()
        }
    }
}

/// `domain.CreateCustomerRequest`.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateCustomerRequest {
    /// Printed on invoices.
    pub name: String,
    /// Main contact.
    pub email: String,
    /// Default UNKNOWN.
    pub customer_type: Option<CustomerType>,
    /// Whether a VAT check may start after creation; null is yes when otherwise eligible.
    pub auto_validate_vat: Option<bool>,
    /// Tags.
    pub tag_ids: Vec<Uuid>,
    /// Clock that it lives by; sandbox only.
    pub test_clock_id: Option<TestClockId>,
    /// Everything that an update can say.
    pub members: UpdateCustomerRequest,
}

impl CreateCustomerRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let name = input.required("name", |v| v.text(1, 255));
        let email = input.required("email", Field::email);
        let customer_type = input.optional("customer_type", Field::word);
        let auto_validate_vat = input.optional("auto_validate_vat", Field::boolean);
        let tag_ids = input.optional("tag_ids", |v| v.list(0, 50, Field::id)).unwrap_or_default();
        let test_clock_id = input.optional("test_clock_id", Field::id);
        let members = UpdateCustomerRequest::read_shared(&mut input);
        input.finish()?;
        let (Some(name), Some(email)) = (name, email) else {
            return Err(domain::Error::invariant("a required member passed unread"));
        };
        Ok(Self { name, email, customer_type, auto_validate_vat, tag_ids, test_clock_id, members })
    }

    /// The same as a change of a customer that exists.
    pub(super) fn into_update(self) -> UpdateCustomerRequest {
        UpdateCustomerRequest { name: Some(self.name), email: Some(self.email), ..self.members }
    }
}

/// The members of an update without `status`, and those of a creation only.
impl PartialSchema for CreateCustomerRequest {
    fn schema() -> RefOr<Schema> {
        let mut object = match UpdateCustomerRequest::schema() {
            RefOr::T(Schema::Object(object)) => object,
            _ => Object::new(),
        };
        object.properties.remove("status");
        object.description = Some("`domain.CreateCustomerRequest`".into());
        // Every id has the schema of a UUID.
        let ids = ArrayBuilder::new().items(TestClockId::schema());
        for (name, schema) in [
            ("customer_type", RefOr::Ref(Ref::from_schema_name("CustomerType"))),
            ("auto_validate_vat", Option::<bool>::schema()),
            ("tag_ids", ids.into()),
            ("test_clock_id", TestClockId::schema()),
        ] {
            object.properties.insert(name.to_owned(), schema);
        }
        object.required = vec!["name".to_owned(), "email".to_owned()];
        RefOr::T(Schema::Object(object))
    }
}

impl ToSchema for CreateCustomerRequest {
    fn name() -> std::borrow::Cow<'static, str> {
        "CreateCustomerRequest".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("CustomerType".to_owned(), CustomerType::schema()));
        UpdateCustomerRequest::schemas(schemas);
    }
}

/// A member that an update may send but not clear.
fn not_null<'a, T>(
    input: &mut Input<'a>,
    name: &'static str,
    read: impl FnOnce(Field<'a>) -> FieldResult<T>,
) -> Option<T> {
    match input.patch(name, read) {
        Patch::Keep => None,
        Patch::Set(value) => Some(value),
        Patch::Clear => {
            input.error(name, Code::Required, "cannot be null; leave it out to keep it");
            None
        }
    }
}

/// A language tag: letters and digits in parts of 2 to 8, joined by `-` or `_`.
fn locale(field: Field<'_>) -> FieldResult<String> {
    let refused = field.refuse(Code::InvalidFormat, "must be a language tag such as de-DE");
    let text = field.text(2, 35)?;
    let good = text
        .split(['-', '_'])
        .all(|part| (2..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if good { Ok(text) } else { refused }
}

fn payment_terms_days(field: Field<'_>) -> FieldResult<i32> {
    // In range: the bound is below the largest i32.
    field.integer(0, PAYMENT_TERMS_DAYS_MAX).map(|days| i32::try_from(days).unwrap_or(i32::MAX))
}

fn address(field: Field<'_>) -> FieldResult<BillingAddress> {
    field.object(|input| {
        let (line1, line2) = (input.optional("line1", |v| v.text(0, 255)), input.optional("line2", |v| v.text(0, 255)));
        let city = input.optional("city", |v| v.text(0, 255));
        let state = input.optional("state", |v| v.text(0, 255));
        let postal_code = input.optional("postal_code", |v| v.text(0, 32));
        let country = input.required("country", Field::country)?;
        Some(BillingAddress { line1, line2, city, state, postal_code, country })
    })
}
