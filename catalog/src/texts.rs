//! Members that products and plans share: translations, custom fields, metadata.

use std::collections::BTreeMap;

use domain::input::{Field, FieldResult};
use domain::{Error, Input, JsonMap, Patch, Result};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Texts in one language.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TranslationFields {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Internal text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Text for customers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_description: Option<String>,
}

/// Locale → texts (`domain.Translations`).
pub type Translations = BTreeMap<String, TranslationFields>;

/// Languages of one entity.
const LOCALES_MAX: usize = 50;

/// Reads a map of locale to texts.
///
/// # Errors
/// The bad fields.
pub fn read_translations(field: Field<'_>) -> FieldResult<Translations> {
    field.map_of(LOCALES_MAX, 35, |entry| {
        entry.object(|input| {
            Some(TranslationFields {
                name: input.optional("name", |v| v.text(1, 255)),
                description: input.optional("description", |v| v.text(0, 2_000)),
                public_description: input.optional("public_description", |v| v.text(0, 2_000)),
            })
        })
    })
}

/// Refuses custom fields: no definitions exist, so that every key is an unknown one (conventions.md).
///
/// # Errors
/// `Rule`.
pub fn check_custom_fields(sent: Option<&JsonMap>) -> Result<()> {
    let unknown: Vec<&String> = sent.into_iter().flatten().map(|(key, _)| key).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let names = unknown.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    Err(Error::business_rule(format!("no custom fields with these keys are defined: {names}")))
}

/// Notes null on a member that cannot be cleared and gives what was sent.
pub fn not_null<T>(input: &mut Input<'_>, name: &'static str, patch: Patch<T>) -> Option<T> {
    match patch {
        Patch::Set(value) => Some(value),
        Patch::Keep => None,
        Patch::Clear => {
            input.error(name, domain::error::FieldErrorCode::Required, "cannot be cleared");
            None
        }
    }
}
