//! Bodies of the payment method operations.

use domain::error::FieldErrorCode as Code;
use domain::input::{Field, FieldResult};
use domain::{CustomerId, Error, Input, JsonMap, Patch, ProviderID, Result};
use serde_json::Value;
use utoipa::ToSchema;

use crate::words::{PaymentMethodStatus, PaymentMethodType};

/// `domain.CreatePaymentMethodRequest`.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
pub struct CreatePaymentMethodRequest {
    /// Owner.
    pub customer_id: CustomerId,
    /// Kind of instrument.
    #[schema(rename = "type")]
    pub method_type: PaymentMethodType,
    /// Who holds the token.
    pub provider: ProviderID,
    /// The provider's token.
    pub provider_id: String,
    /// Whether it is charged where none is named. The first method of a customer always is.
    #[schema(required = false)]
    pub is_default: bool,
}

impl CreatePaymentMethodRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let customer_id = input.required("customer_id", Field::id);
        let method_type = input.required("type", Field::word);
        let provider = input.required("provider", Field::word);
        let provider_id = input.required("provider_id", token);
        let is_default = input.optional("is_default", Field::boolean).unwrap_or(false);
        input.finish()?;
        let missing = || Error::invariant("a required member passed unread");
        Ok(Self {
            customer_id: customer_id.ok_or_else(missing)?,
            method_type: method_type.ok_or_else(missing)?,
            provider: provider.ok_or_else(missing)?,
            provider_id: provider_id.ok_or_else(missing)?,
            is_default,
        })
    }
}

/// Tokens only: what looks like the number of a card or an account is refused and never stored.
fn token(field: Field<'_>) -> FieldResult<String> {
    let refused = field.refuse(
        Code::NotAllowed,
        "looks like the number of a card or an account; give the token that the provider made of it",
    );
    let text = field.text(1, 255)?;
    if is_card_number(&text) || is_iban(&text) { refused } else { Ok(text) }
}

fn compact(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).collect()
}

/// 13 to 19 digits whose check digit is right (Luhn).
fn is_card_number(text: &str) -> bool {
    let digits: Option<Vec<u32>> = compact(text).chars().map(|c| c.to_digit(10)).collect();
    let Some(digits) = digits.filter(|digits| (13..=19).contains(&digits.len())) else { return false };
    let doubled = |digit: u32| if digit > 4 { 2 * digit - 9 } else { 2 * digit };
    let sum: u32 = digits.iter().rev().enumerate().map(|(at, d)| if at % 2 == 1 { doubled(*d) } else { *d }).sum();
    sum.is_multiple_of(10)
}

/// Country, check digits and account whose check digits are right (ISO 13616).
fn is_iban(text: &str) -> bool {
    let text = compact(text);
    let bytes = text.as_bytes();
    let looks = (15..=34).contains(&bytes.len())
        && bytes[..2].iter().all(u8::is_ascii_alphabetic)
        && bytes[2..4].iter().all(u8::is_ascii_digit)
        && bytes.iter().all(u8::is_ascii_alphanumeric);
    let Some((head, account)) = text.split_at_checked(4).filter(|_| looks) else { return false };
    let values = account.chars().chain(head.chars()).filter_map(|c| c.to_digit(36));
    values.fold(0, |rest, value| (rest * if value < 10 { 10 } else { 100 } + value) % 97) == 1
}

/// `domain.UpdatePaymentMethodRequest`: sent members change.
#[derive(Clone, Debug, Default, PartialEq, Eq, ToSchema)]
pub struct UpdatePaymentMethodRequest {
    /// True makes it the default, in the place of the one that is.
    pub is_default: Option<bool>,
    /// Whether it can be charged.
    pub status: Option<PaymentMethodStatus>,
    /// Brand of a card.
    #[schema(value_type = Option<String>)]
    pub display_brand: Patch<String>,
    /// Last four digits of a card.
    #[schema(value_type = Option<String>)]
    pub last4: Patch<String>,
    /// Last month of a card, 1 to 12.
    #[schema(value_type = Option<i32>)]
    pub exp_month: Patch<i32>,
    /// Year of that month.
    #[schema(value_type = Option<i32>)]
    pub exp_year: Patch<i32>,
    /// Bank of an account.
    #[schema(value_type = Option<String>)]
    pub bank_name: Patch<String>,
    /// Last four digits of an account.
    #[schema(value_type = Option<String>)]
    pub account_last4: Patch<String>,
    /// The caller's own.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonMap>,
}

impl UpdatePaymentMethodRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field; what a token belongs to never changes.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        for name in ["provider", "provider_id", "type", "customer_id"] {
            input.optional(name, |v| v.refuse::<()>(Code::NotAllowed, "never changes: make another payment method"));
        }
        let year = |v: Field<'_>| v.integer(2000, 9999).map(|year| i32::try_from(year).unwrap_or_default());
        let month = |v: Field<'_>| v.integer(1, 12).map(|month| i32::try_from(month).unwrap_or_default());
        let request = Self {
            is_default: input.optional("is_default", Field::boolean),
            status: input.optional("status", status),
            display_brand: input.patch("display_brand", |v| v.text(1, 64)),
            last4: input.patch("last4", last_digits),
            exp_month: input.patch("exp_month", month),
            exp_year: input.patch("exp_year", year),
            bank_name: input.patch("bank_name", |v| v.text(1, 255)),
            account_last4: input.patch("account_last4", last_digits),
            metadata: input.optional("metadata", Field::metadata),
        };
        input.finish()?;
        Ok(request)
    }

    /// The members that belong to cards, or to accounts, with whether they were sent.
    pub(super) fn sent_display(&self) -> [(&'static str, bool, bool); 6] {
        [
            ("display_brand", true, self.display_brand.is_sent()),
            ("last4", true, self.last4.is_sent()),
            ("exp_month", true, self.exp_month.is_sent()),
            ("exp_year", true, self.exp_year.is_sent()),
            ("bank_name", false, self.bank_name.is_sent()),
            ("account_last4", false, self.account_last4.is_sent()),
        ]
    }
}

fn status(field: Field<'_>) -> FieldResult<PaymentMethodStatus> {
    let refused = field.refuse(Code::NotAllowed, "REMOVED is what DELETE makes of it");
    let status = field.word()?;
    if status == PaymentMethodStatus::Removed { refused } else { Ok(status) }
}

fn last_digits(field: Field<'_>) -> FieldResult<String> {
    let refused = field.refuse(Code::InvalidFormat, "must be the last four characters, digits or letters");
    let text = field.text(0, 100)?;
    if text.len() == 4 && text.bytes().all(|b| b.is_ascii_alphanumeric()) { Ok(text) } else { refused }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_instruments_are_no_tokens() {
        for number in
            ["4242 4242 4242 4242", "4242424242424242", "DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"]
        {
            assert!(is_card_number(number) || is_iban(number), "{number}");
        }
        for token in
            ["pm_1NqZ4242424242424242", "MD0004471PGTVM", "4242424242424241", "DE88370400440532013000", "ba_x", "ü"]
        {
            assert!(!is_card_number(token) && !is_iban(token), "{token}");
        }
    }
}
