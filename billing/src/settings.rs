//! The organization's settings that steer billing (organization-settings, category invoicing and usage).

use chrono::TimeDelta;
use currency::FXPolicy;
use domain::clock::duration;
use domain::wire::Word;
use domain::{Error, OrganizationId, Result};
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;
use store::StoreError;

const RETRIES: &str = "dunning_retry_schedule_seconds";

/// Settings with their defaults filled in. Stored values travel as strings; JSON numbers and booleans are read as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BillingSettings {
    /// Start of every invoice number.
    pub invoice_prefix: String,
    /// Digits of the sequence, padded with zeros.
    pub invoice_number_padding: usize,
    /// How long a closed window waits for late usage before its invoice is finalized.
    pub usage_grace: TimeDelta,
    /// Whether drafts are finalized by themselves.
    pub auto_finalize: bool,
    /// Days until an invoice is due, when neither subscription nor customer says so.
    pub payment_terms_days: i32,
    /// Time zone of the organization.
    pub timezone: String,
    /// Which moment's exchange rate counts.
    pub fx_policy: FXPolicy,
    /// Pauses before the automatic retries of a payment that failed for a reason that may pass.
    pub payment_retries: Vec<TimeDelta>,
}

impl BillingSettings {
    /// Reads the settings of an organization.
    ///
    /// # Errors
    /// `NotFound` without the organization, `Internal` for a stored value that is none.
    pub async fn load(conn: &mut PgConnection, organization_id: OrganizationId) -> Result<Self> {
        let row: Option<(Json<Value>, i32, String)> =
            sqlx::query_as("SELECT settings, payment_terms_days, timezone FROM organization WHERE id = $1")
                .bind(organization_id)
                .fetch_optional(conn)
                .await
                .context("reading the organization's settings")?;
        let (Json(settings), terms, timezone) = row.ok_or_else(|| Error::not_found("organization", organization_id))?;
        Self::read(&settings, terms, timezone)
    }

    fn read(settings: &Value, terms: i32, timezone: String) -> Result<Self> {
        let wrong = |name: &str| Error::invariant(format!("the setting {name} of the organization cannot be read"));
        let text = |name: &str| match &settings[name] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let parse = |name: &'static str, default: i32| {
            text(name).map_or(Ok(default), |text| text.parse().map_err(|_| wrong(name)))
        };
        let grace = text("usage_grace_period");
        let retries = text(RETRIES).unwrap_or_else(|| "[7200, 43200, 86400]".to_owned());
        let retries: Vec<u32> = serde_json::from_str(&retries).map_err(|_| wrong(RETRIES))?;
        Ok(Self {
            invoice_prefix: text("invoice_prefix").unwrap_or_else(|| "INV-".to_owned()),
            invoice_number_padding: usize::try_from(parse("invoice_number_padding", 6)?).unwrap_or(0),
            usage_grace: grace
                .map_or(Some(TimeDelta::hours(1)), |text| duration(&text))
                .ok_or(wrong("usage_grace_period"))?,
            auto_finalize: text("auto_finalize_invoices").is_none_or(|text| text != "false"),
            payment_terms_days: parse("payment_terms_days", terms)?,
            timezone,
            fx_policy: text(currency::policy::SETTING)
                .map_or(Some(FXPolicy::InvoiceIssue), |text| FXPolicy::from_wire(&text))
                .ok_or(wrong(currency::policy::SETTING))?,
            payment_retries: retries.into_iter().map(|seconds| TimeDelta::seconds(seconds.into())).collect(),
        })
    }

    /// The number on an invoice: prefix and padded sequence, `INV-000001`.
    #[must_use]
    pub fn invoice_number(&self, sequence: i64) -> String {
        format!("{}{sequence:0width$}", self.invoice_prefix, width = self.invoice_number_padding)
    }

    /// The number on a credit note, from its own series: `CN-000001`.
    #[must_use]
    pub fn credit_note_number(&self, sequence: i64) -> String {
        format!("CN-{sequence:0width$}", width = self.invoice_number_padding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unwritten_settings_have_their_defaults() {
        let read = |settings| BillingSettings::read(&settings, 30, "UTC".into()).expect("readable");
        let defaults = read(json!({}));
        assert_eq!((defaults.invoice_number(1).as_str(), defaults.auto_finalize), ("INV-000001", true));
        assert_eq!((defaults.usage_grace, defaults.payment_terms_days), (TimeDelta::hours(1), 30));
        let own = read(
            json!({"invoice_prefix": "R", "invoice_number_padding": "3", "usage_grace_period": "0", "auto_finalize_invoices": "false"}),
        );
        assert_eq!(
            (own.invoice_number(1234).as_str(), own.auto_finalize, own.usage_grace),
            ("R1234", false, TimeDelta::zero())
        );
        assert_eq!(defaults.payment_retries, [2, 12, 24].map(TimeDelta::hours));
        assert_eq!(read(json!({"dunning_retry_schedule_seconds": "[]"})).payment_retries, []);
        assert!(BillingSettings::read(&json!({"usage_grace_period": "soon"}), 30, "UTC".into()).is_err());
    }
}
