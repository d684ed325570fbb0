//! Settings of an organization (organization-settings): a catalog of well-known keys, and the values that the organization
//! has written over their defaults. All values travel as strings. The catalog has the keys that something reads.

use chrono::{DateTime, Utc};
use currency::FXPolicy;
use domain::clock::duration;
use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::money::parse_decimal;
use domain::wire::Word;
use domain::{Error, Input, JsonMap, Result, Scope};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::{StoreError, Tx};
use utoipa::ToSchema;

domain::wire_enum! {
    /// Where the value of a setting comes from.
    pub enum SettingSource {
        /// Of the catalog: the organization has written none.
        Default = "default",
        /// Written by the organization, also where it equals the default.
        Override = "override",
    }
}

domain::wire_enum! {
    /// What the string of a setting holds.
    pub enum SettingType {
        /// The text itself.
        String = "string",
        /// Digits.
        Int = "int",
        /// true or false.
        Bool = "bool",
        /// Go duration syntax.
        Duration = "duration",
        /// A JSON document.
        Json = "json",
    }
}

/// A well-known key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SettingCatalogEntry {
    /// Key.
    pub key: &'static str,
    /// Form of its value.
    pub r#type: SettingType,
    /// Its value where none is written.
    pub default: &'static str,
    /// What it is about.
    pub category: &'static str,
    /// For people.
    pub label: &'static str,
    /// What it does.
    pub description: &'static str,
}

/// The effective value of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct OrganizationSetting {
    /// Key.
    pub key: &'static str,
    /// Effective value.
    pub value: String,
    /// Where it comes from.
    pub source: SettingSource,
    /// Form of the value.
    pub r#type: SettingType,
    /// What it is about.
    pub category: &'static str,
    /// When it was written; null for a default.
    #[schema(required)]
    pub updated_at: Option<DateTime<Utc>>,
}

/// What a value may be.
#[derive(Clone, Copy)]
enum Form {
    /// At most that many characters.
    Text(usize),
    /// One of these words.
    Words(fn() -> Vec<&'static str>),
    /// A whole number of this range.
    Int(i64, i64),
    Bool,
    Duration,
    /// Empty, or a decimal that is not negative.
    Amount,
    /// A JSON list of seconds, at most that many.
    Seconds(usize),
}

/// Seconds of a year.
const YEAR: u32 = 31_536_000;

struct Setting {
    entry: SettingCatalogEntry,
    form: Form,
}

const fn setting(
    (category, key): (&'static str, &'static str),
    form: Form,
    default: &'static str,
    label: &'static str,
    description: &'static str,
) -> Setting {
    let r#type = match form {
        Form::Text(_) | Form::Words(_) | Form::Amount => SettingType::String,
        Form::Int(..) => SettingType::Int,
        Form::Bool => SettingType::Bool,
        Form::Duration => SettingType::Duration,
        Form::Seconds(_) => SettingType::Json,
    };
    Setting { entry: SettingCatalogEntry { key, r#type, default, category, label, description }, form }
}

fn fx_policies() -> Vec<&'static str> {
    FXPolicy::ALL.iter().map(|policy| policy.as_str()).collect()
}

static SETTINGS: &[Setting] = &[
    setting(("invoicing", "invoice_prefix"), Form::Text(32), "INV-", "Invoice prefix", "Start of every invoice number"),
    setting(
        ("invoicing", "invoice_number_padding"),
        Form::Int(1, 20),
        "6",
        "Invoice number padding",
        "Digits of the sequence in an invoice number, padded with zeros",
    ),
    setting(
        ("invoicing", "payment_terms_days"),
        Form::Int(0, 3650),
        "30",
        "Payment terms",
        "Days until an invoice is due, where neither subscription nor customer says so",
    ),
    setting(
        ("invoicing", "auto_finalize_invoices"),
        Form::Bool,
        "true",
        "Finalize automatically",
        "Whether drafts are finalized by themselves after the grace period",
    ),
    setting(
        ("usage", "usage_grace_period"),
        Form::Duration,
        "1h",
        "Usage grace period",
        "How long a closed window waits for late usage before its invoice is finalized",
    ),
    setting(
        ("dunning", "dunning_retry_schedule_seconds"),
        Form::Seconds(20),
        "[7200, 43200, 86400]",
        "Payment retries",
        "Seconds before each automatic retry of a payment that failed for a reason that may pass",
    ),
    setting(
        ("fx", currency::policy::SETTING),
        Form::Words(fx_policies),
        "invoice_issue",
        "Exchange rate policy",
        "Which moment's exchange rate counts",
    ),
    setting(
        ("wallets", "wallet_default_max_balance"),
        Form::Amount,
        "",
        "Largest balance",
        "Cap of cash and promotional balance of new wallets",
    ),
    setting(
        ("wallets", "wallet_default_max_single_credit"),
        Form::Amount,
        "",
        "Largest credit",
        "Cap of one credit of new wallets",
    ),
    setting(
        ("wallets", "wallet_default_low_balance_threshold"),
        Form::Amount,
        "",
        "Low balance",
        "Cash of new wallets below which automatic top-up starts",
    ),
    setting(
        ("wallets", "wallet_default_credit_limit"),
        Form::Amount,
        "",
        "Credit limit",
        "How far below zero cash of new postpaid wallets may go",
    ),
    setting(
        ("wallets", "wallet_default_auto_topup_amount"),
        Form::Amount,
        "",
        "Top-up amount",
        "Amount of one automatic top-up of new wallets",
    ),
    setting(
        ("wallets", "wallet_default_auto_topup_enabled"),
        Form::Bool,
        "false",
        "Automatic top-up",
        "Whether new wallets are topped up automatically",
    ),
];

impl Form {
    /// What a value must be; none for a good one.
    fn refusal(self, value: &str) -> Option<String> {
        let (good, must) = match self {
            Self::Text(max) => (value.chars().count() <= max, format!("must have at most {max} characters")),
            Self::Words(words) => (words().contains(&value), format!("must be one of {}", words().join(", "))),
            Self::Int(min, max) => {
                let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                let good = digits && value.parse().is_ok_and(|number: i64| (min..=max).contains(&number));
                (good, format!("must be a whole number from {min} to {max}"))
            }
            Self::Bool => (matches!(value, "true" | "false"), "must be true or false".to_owned()),
            Self::Duration => (duration(value).is_some(), "must be a duration such as 5m, 1h or 1h30m".to_owned()),
            Self::Amount => {
                let good = parse_decimal(value).is_some_and(|amount| !amount.is_sign_negative());
                (good || value.is_empty(), "must be empty or a decimal that is not negative".to_owned())
            }
            Self::Seconds(max) => {
                let list: Option<Vec<u32>> = serde_json::from_str(value).ok();
                let good = list.is_some_and(|list| list.len() <= max && list.iter().all(|seconds| *seconds <= YEAR));
                let must = format!("must be a JSON list of at most {max} numbers of seconds, each from 0 to {YEAR}");
                (good, must)
            }
        };
        (!good).then_some(must)
    }
}

/// `domain.UpsertSettingsRequest`.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
pub struct UpsertSettingsRequest {
    /// Values by key, each a string; null removes what was written.
    #[schema(value_type = std::collections::HashMap<String, String>)]
    pub settings: Vec<(&'static str, Option<String>)>,
}

impl UpsertSettingsRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every key that is unknown or has a bad value: nothing is written then.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let settings = input.required("settings", |v| {
            v.object(|input| Some(SETTINGS.iter().filter_map(|setting| written(input, setting)).collect()))
        });
        input.finish()?;
        Ok(Self { settings: settings.ok_or_else(|| Error::invariant("a required field was read"))? })
    }
}

fn written(input: &mut Input<'_>, setting: &Setting) -> Option<(&'static str, Option<String>)> {
    let key = setting.entry.key;
    let patch = input.patch(key, |v| value_of(v, setting.form));
    patch.is_sent().then(|| (key, patch.apply(None)))
}

fn value_of(field: Field<'_>, form: Form) -> FieldResult<String> {
    let Some(text) = field.raw().as_str() else {
        return field.refuse(Code::InvalidFormat, "must be a string, whatever the type of the setting");
    };
    match form.refusal(text) {
        Some(must) => field.refuse(Code::InvalidFormat, must),
        None => field.text(0, 1000),
    }
}

/// The well-known keys.
#[must_use]
pub fn catalog() -> Vec<SettingCatalogEntry> {
    SETTINGS.iter().map(|setting| setting.entry.clone()).collect()
}

/// The effective value of every key, or of those of one category.
///
/// # Errors
/// As every statement.
pub async fn list(scope: &Scope, conn: &mut PgConnection, category: Option<&str>) -> Result<Vec<OrganizationSetting>> {
    let (Json(values), Json(changed)): (Json<JsonMap>, Json<JsonMap>) =
        sqlx::query_as("SELECT settings, settings_changed_at FROM organization WHERE id = $1")
            .bind(scope.organization_id)
            .fetch_one(conn)
            .await
            .context("reading the organization's settings")?;
    let of_category = SETTINGS.iter().filter(|setting| category.is_none_or(|name| setting.entry.category == name));
    Ok(of_category.map(|setting| effective(&setting.entry, &values, &changed)).collect())
}

/// Values that were stored by hand may be numbers and booleans.
fn effective(entry: &SettingCatalogEntry, values: &JsonMap, changed: &JsonMap) -> OrganizationSetting {
    let stored = values.get(entry.key).filter(|value| !value.is_null());
    let stored = stored.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let updated_at = changed.get(entry.key).and_then(|value| value.as_str()?.parse().ok());
    OrganizationSetting {
        key: entry.key,
        source: if stored.is_some() { SettingSource::Override } else { SettingSource::Default },
        updated_at: updated_at.filter(|_| stored.is_some()),
        value: stored.unwrap_or_else(|| entry.default.to_owned()),
        r#type: entry.r#type,
        category: entry.category,
    }
}

/// Writes settings; answers all of them as they are then.
///
/// # Errors
/// As every statement.
pub async fn upsert(scope: &Scope, tx: &mut Tx, request: UpsertSettingsRequest) -> Result<Vec<OrganizationSetting>> {
    let now = scope.now();
    let (mut values, mut changed) = (JsonMap::new(), JsonMap::new());
    for (key, value) in request.settings {
        changed.insert(key.to_owned(), value.as_ref().map_or(Value::Null, |_| now.to_rfc3339().into()));
        values.insert(key.to_owned(), value.map_or(Value::Null, Value::from));
    }
    sqlx::query(
        "UPDATE organization SET settings = jsonb_strip_nulls(settings || $2),
             settings_changed_at = jsonb_strip_nulls(settings_changed_at || $3), updated_at = $4 WHERE id = $1",
    )
    .bind(scope.organization_id)
    .bind(Json(values))
    .bind(Json(changed))
    .bind(now)
    .execute(tx.conn())
    .await
    .context("writing the organization's settings")?;
    list(scope, tx.conn(), None).await
}
