//! Options of a gateway that are no secrets (`handler.updateProviderSettingsRequest`), as each provider knows them.
//!
//! | option | stripe | gocardless | values |
//! |---|---|---|---|
//! | `statement_descriptor` | yes | yes | what the customer reads on the statement |
//! | `capture_method` | yes | | `automatic`, `automatic_async`; an authorization that nobody captures would never be paid |
//! | `creditor_id` | | yes | the creditor that mandates belong to, `CR…` |
//! | `sepa_mandate_scheme` | yes | yes | `CORE`, `B2B` |
//! | `retry_on_soft_decline` | yes | yes | true or false; default true |
//!
//! Mollie and Adyen know those of both but `creditor_id`.

use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{Input, ProviderID};
use serde::{Deserialize, Serialize};

/// The options that are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProviderSettings {
    /// What the customer reads on the statement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement_descriptor: Option<String>,
    /// When an authorized amount is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture_method: Option<CaptureMethod>,
    /// The creditor that mandates belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creditor_id: Option<String>,
    /// Scheme of SEPA mandates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sepa_mandate_scheme: Option<SepaMandateScheme>,
    /// Whether a failure that may pass is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_on_soft_decline: Option<bool>,
}

domain::wire_enum! {
    /// When an authorized amount is taken.
    pub enum CaptureMethod {
        /// At once.
        Automatic = "automatic",
        /// At once, confirmed a moment later.
        AutomaticAsync = "automatic_async",
    }
}

domain::wire_enum! {
    /// Scheme of SEPA mandates.
    pub enum SepaMandateScheme {
        /// Anybody.
        Core = "CORE",
        /// Businesses.
        B2b = "B2B",
    }
}

impl ProviderSettings {
    /// Reads the member `settings` for a provider; an option that it does not have is unknown.
    ///
    /// # Errors
    /// Every bad option.
    pub fn read(field: Field<'_>, provider: ProviderID) -> FieldResult<Self> {
        field.object(|input| {
            let known = |name: &str| match name {
                "capture_method" => provider != ProviderID::Gocardless,
                "creditor_id" => provider == ProviderID::Gocardless,
                _ => true,
            };
            Some(Self {
                statement_descriptor: input.optional("statement_descriptor", statement_descriptor),
                capture_method: known("capture_method")
                    .then(|| input.optional("capture_method", Field::word))
                    .flatten(),
                creditor_id: known("creditor_id").then(|| input.optional("creditor_id", creditor_id)).flatten(),
                sepa_mandate_scheme: input.optional("sepa_mandate_scheme", Field::word),
                retry_on_soft_decline: input.optional("retry_on_soft_decline", Field::boolean),
            })
        })
    }
}

/// 5 to 22 characters with a letter among them, none of those that the card networks refuse.
fn statement_descriptor(field: Field<'_>) -> FieldResult<String> {
    let refused = field.refuse(
        Code::InvalidFormat,
        "must have 5 to 22 ASCII characters, at least one letter, and none of < > \\ ' \" *",
    );
    let text = field.text(0, 1000)?;
    let good = (5..=22).contains(&text.len())
        && text.bytes().all(|b| (b' '..=b'~').contains(&b) && !b"<>\\'\"*".contains(&b))
        && text.bytes().any(|b| b.is_ascii_alphabetic());
    if good { Ok(text) } else { refused }
}

fn creditor_id(field: Field<'_>) -> FieldResult<String> {
    let refused = field.refuse(Code::InvalidFormat, "must be the id of a creditor such as CR123");
    let text = field.text(1, 64)?;
    let good = text.starts_with("CR") && text.bytes().all(|b| b.is_ascii_alphanumeric());
    if good { Ok(text) } else { refused }
}

/// Reads the whole body.
pub(super) fn read_body(body: &serde_json::Value, provider: ProviderID) -> domain::Result<ProviderSettings> {
    let mut input = Input::new(body)?;
    let settings = input.required("settings", |v| ProviderSettings::read(v, provider));
    input.finish()?;
    settings.ok_or_else(|| domain::Error::invariant("a required member passed unread"))
}
