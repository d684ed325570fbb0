//! Reads a request body and collects *all* of its field errors, so that a form can mark every bad field at once
//! (conventions.md, Validation). An unread member is an unknown field.
//!
//! ```
//! # use domain::{Input, Result};
//! # fn demo(body: serde_json::Value) -> Result<(String, Option<i64>)> {
//! let mut input = Input::new(&body)?;
//! let name = input.required("name", |v| v.text(1, 255));
//! let days = input.optional("payment_terms_days", |v| v.integer(0, 3650));
//! input.finish()?;
//! Ok((name.unwrap_or_default(), days)) // `finish` has refused a missing name
//! # }
//! ```

use rust_decimal::Decimal;
use serde_json::Value;

use crate::error::FieldErrorCode as Code;
use crate::wire::Word;
use crate::{Currency, Error, FieldError, Instant, JsonMap, Money, Quantity, Result};

/// A member of an update: left out, set to null, or given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// Not sent: unchanged.
    #[default]
    Keep,
    /// Sent as null: cleared.
    Clear,
    /// Sent.
    Set(T),
}

impl<T> Patch<T> {
    /// The value after the update.
    pub fn apply(self, current: Option<T>) -> Option<T> {
        match self {
            Self::Keep => current,
            Self::Clear => None,
            Self::Set(value) => Some(value),
        }
    }

    /// Whether the member was sent.
    pub fn is_sent(&self) -> bool {
        !matches!(self, Self::Keep)
    }
}

/// What a reader of one value says of a bad one.
pub type FieldResult<T> = std::result::Result<T, Vec<FieldError>>;

/// One JSON object that is being read.
pub struct Input<'a> {
    object: &'a JsonMap,
    path: String,
    seen: Vec<&'static str>,
    errors: Vec<FieldError>,
}

impl<'a> Input<'a> {
    /// Starts on a body.
    ///
    /// # Errors
    /// `BadRequest` when it is no JSON object.
    pub fn new(body: &'a Value) -> Result<Self> {
        let Value::Object(object) = body else {
            return Err(Error::BadRequest { code: "BAD_REQUEST", detail: "the body must be a JSON object".into() });
        };
        Ok(Self::at(object, String::new()))
    }

    fn at(object: &'a JsonMap, path: String) -> Self {
        Self { object, path, seen: Vec::new(), errors: Vec::new() }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Whether a member was sent (null counts as sent).
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// A member that must be there. `None` means that an error was noted, and `finish` will refuse.
    pub fn required<T>(&mut self, name: &'static str, read: impl FnOnce(Field<'a>) -> FieldResult<T>) -> Option<T> {
        match self.optional(name, read) {
            None if self.object.get(name).is_none_or(Value::is_null) => {
                self.error(name, Code::Required, "is required");
                None
            }
            other => other,
        }
    }

    /// A member that may be left out or null.
    pub fn optional<T>(&mut self, name: &'static str, read: impl FnOnce(Field<'a>) -> FieldResult<T>) -> Option<T> {
        self.seen.push(name);
        let value = self.object.get(name).filter(|value| !value.is_null())?;
        match read(Field { value, path: self.path_of(name) }) {
            Ok(value) => Some(value),
            Err(mut errors) => {
                self.errors.append(&mut errors);
                None
            }
        }
    }

    /// A member of an update, where null clears.
    pub fn patch<T>(&mut self, name: &'static str, read: impl FnOnce(Field<'a>) -> FieldResult<T>) -> Patch<T> {
        if self.object.get(name).is_some_and(Value::is_null) {
            self.seen.push(name);
            return Patch::Clear;
        }
        self.optional(name, read).map_or(Patch::Keep, Patch::Set)
    }

    /// Notes an error on a member of this object.
    pub fn error(&mut self, name: &str, code: Code, message: impl Into<String>) {
        self.errors.push(FieldError { field: self.path_of(name), code, message: message.into() });
    }

    /// Whether an error was noted so far.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// `Validation` with every error that was noted and every member that nobody asked for.
    pub fn finish(self) -> Result<()> {
        self.finish_fields().map_err(Error::Validation)
    }

    fn finish_fields(mut self) -> FieldResult<()> {
        for name in self.object.keys().filter(|name| !self.seen.contains(&name.as_str())) {
            let message = format!("is not a known field; known are: {}", self.seen.join(", "));
            self.errors.push(FieldError { field: self.path_of(name), code: Code::UnknownField, message });
        }
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }
}

/// One value with its path.
pub struct Field<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Field<'a> {
    /// The raw JSON value.
    #[must_use]
    pub fn raw(&self) -> &'a Value {
        self.value
    }

    /// A refusal of this value.
    pub fn refuse<T>(&self, code: Code, message: impl Into<String>) -> FieldResult<T> {
        Err(vec![FieldError { field: self.path.clone(), code, message: message.into() }])
    }

    fn str(&self) -> FieldResult<&'a str> {
        match self.value {
            Value::String(text) if !text.contains('\0') => Ok(text),
            Value::String(_) => self.refuse(Code::InvalidFormat, "must not contain the character U+0000"),
            _ => self.refuse(Code::InvalidFormat, "must be a string"),
        }
    }

    /// A string of `min` to `max` characters.
    pub fn text(self, min: usize, max: usize) -> FieldResult<String> {
        let text = self.str()?;
        let length = text.chars().count();
        if length < min {
            return self.refuse(Code::OutOfRange, format!("must have at least {min} character(s)"));
        }
        if length > max {
            return self.refuse(Code::TooLong, format!("must have at most {max} characters, has {length}"));
        }
        Ok(text.to_owned())
    }

    /// A key: lower-case letter first, then lower-case letters, digits and `_`, at most 64 characters.
    pub fn key(self) -> FieldResult<String> {
        let text = self.str()?;
        let good = text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if good { Ok(text.to_owned()) } else { self.refuse(Code::InvalidFormat, "must match ^[a-z][a-z0-9_]{0,63}$") }
    }

    /// A whole number from `min` to `max`.
    pub fn integer(self, min: i64, max: i64) -> FieldResult<i64> {
        match self.value.as_i64() {
            Some(number) if (min..=max).contains(&number) => Ok(number),
            Some(_) => self.refuse(Code::OutOfRange, format!("must be between {min} and {max}")),
            None => self.refuse(Code::InvalidFormat, "must be a whole number"),
        }
    }

    /// true or false.
    pub fn boolean(self) -> FieldResult<bool> {
        match self.value {
            Value::Bool(value) => Ok(*value),
            _ => self.refuse(Code::InvalidFormat, "must be true or false"),
        }
    }

    /// A UUID, as a typed id.
    pub fn id<T: From<uuid::Uuid>>(self) -> FieldResult<T> {
        match uuid::Uuid::parse_str(self.str()?) {
            Ok(id) => Ok(id.into()),
            Err(_) => self.refuse(Code::InvalidFormat, "must be a UUID"),
        }
    }

    /// A word of an enum.
    pub fn word<T: Word>(self) -> FieldResult<T> {
        let text = self.str()?;
        T::from_wire(text)
            .map_or_else(|| self.refuse(Code::InvalidEnum, format!("must be one of {}", T::allowed())), Ok)
    }

    /// An RFC 3339 timestamp; kept at microseconds.
    pub fn instant(self) -> FieldResult<Instant> {
        match chrono::DateTime::parse_from_rfc3339(self.str()?) {
            Ok(instant) if (0..=9999).contains(&chrono::Datelike::year(&instant)) => {
                Ok(crate::clock::micros(instant.to_utc()))
            }
            _ => self.refuse(Code::InvalidFormat, "must be an RFC 3339 timestamp such as 2026-01-31T00:00:00Z"),
        }
    }

    /// A date `YYYY-MM-DD`.
    pub fn date(self) -> FieldResult<chrono::NaiveDate> {
        match chrono::NaiveDate::parse_from_str(self.str()?, "%Y-%m-%d") {
            Ok(date) => Ok(date),
            Err(_) => self.refuse(Code::InvalidFormat, "must be a date such as 2026-01-31"),
        }
    }

    /// A mail address of 3 to 320 characters: something, `@`, a host.
    pub fn email(self) -> FieldResult<String> {
        let refused = self.refuse(Code::InvalidFormat, "must be an e-mail address such as billing@acme.example");
        let text = self.text(3, 320)?;
        let good = text.rsplit_once('@').is_some_and(|(local, host)| {
            !local.is_empty() && !host.is_empty() && !host.contains('@') && !text.contains(char::is_whitespace)
        });
        if good { Ok(text) } else { refused }
    }

    /// An ISO 4217 code in upper case.
    pub fn currency(self) -> FieldResult<Currency> {
        match Currency::parse(self.str()?) {
            Some(currency) => Ok(currency),
            None => self.refuse(Code::InvalidFormat, "must be an ISO 4217 currency code in upper case"),
        }
    }

    /// An ISO 3166-1 alpha-2 country in upper case.
    pub fn country(self) -> FieldResult<String> {
        let text = self.str()?;
        if text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase()) {
            return Ok(text.to_owned());
        }
        self.refuse(Code::InvalidFormat, "must be an ISO 3166-1 alpha-2 country code in upper case")
    }

    fn number_text(&self) -> FieldResult<std::borrow::Cow<'a, str>> {
        match self.value {
            Value::String(text) => Ok(text.as_str().into()),
            Value::Number(number) => Ok(number.to_string().into()),
            _ => self.refuse(Code::InvalidFormat, "must be a decimal string such as \"2.5\""),
        }
    }

    /// A quantity: decimal string or JSON number, at most 15 integer and 12 fraction digits.
    pub fn quantity(self) -> FieldResult<Quantity> {
        match Quantity::parse(&self.number_text()?) {
            Ok(quantity) => Ok(quantity),
            Err(error @ crate::quantity::QuantityError::Format) => self.refuse(Code::InvalidFormat, error.to_string()),
            Err(error) => self.refuse(Code::OutOfRange, error.to_string()),
        }
    }

    /// A quantity that is not negative.
    pub fn quantity_not_negative(self) -> FieldResult<Quantity> {
        let path = self.path.clone();
        let value = self.value;
        let quantity = self.quantity()?;
        if quantity.is_negative() {
            return Field { value, path }.refuse(Code::OutOfRange, "must not be negative");
        }
        Ok(quantity)
    }

    /// A decimal string (rate or plain amount) with at most 15 integer and 12 fraction digits; not negative.
    pub fn rate(self) -> FieldResult<Decimal> {
        let path = self.path.clone();
        let value = self.value;
        let quantity = self.quantity_not_negative()?;
        quantity.to_decimal().or_else(|error| Field { value, path }.refuse(Code::OutOfRange, error.to_string()))
    }

    /// A rate above zero.
    pub fn rate_positive(self) -> FieldResult<Decimal> {
        let refused = self.refuse(Code::OutOfRange, "must be above zero");
        let rate = self.rate()?;
        if rate.is_zero() { refused } else { Ok(rate) }
    }

    /// An exchange rate: a decimal string above 0 and below 1,000,000,000 with at most 10 fraction digits (fx.md 4).
    pub fn exchange_rate(self) -> FieldResult<Decimal> {
        let (path, value) = (self.path.clone(), self.value);
        let rate = self.quantity()?.to_decimal().ok().filter(|rate| {
            let in_range = rate.is_sign_positive() && !rate.is_zero() && *rate < Decimal::from(1_000_000_000);
            in_range && rate.normalize().scale() <= 10
        });
        rate.map_or_else(
            || {
                let message = "must be above 0 and below 1000000000, with at most 10 decimal places";
                Field { value, path }.refuse(Code::OutOfRange, message)
            },
            Ok,
        )
    }

    /// Money: `{"value": "120.00", "currency": "EUR"}`; more decimals than the currency has are refused.
    pub fn money(self) -> FieldResult<Money> {
        let path = self.path.clone();
        let value = self.value;
        let (amount, currency) = self.object(|input| {
            let amount = input.required("value", |v| match v.raw() {
                Value::String(text) => crate::money::parse_decimal(text).map_or_else(
                    || v.refuse(Code::InvalidFormat, "must match ^-?\\d+(\\.\\d+)?$ with at most 28 digits"),
                    Ok,
                ),
                _ => v.refuse(Code::InvalidFormat, "must be a decimal string such as \"120.00\""),
            });
            let currency = input.required("currency", Field::currency);
            amount.zip(currency)
        })?;
        match Money::new(amount, currency) {
            Ok(money) => Ok(money),
            Err(error) => Field { value, path: format!("{path}.value") }.refuse(Code::OutOfRange, error.to_string()),
        }
    }

    /// Money above zero.
    pub fn money_positive(self) -> FieldResult<Money> {
        let refused = self.refuse(Code::OutOfRange, "must be above zero");
        let money = self.money()?;
        if money.is_zero() || money.is_negative() { refused } else { Ok(money) }
    }

    /// A nested object. `read` returns `None` when it noted an error.
    pub fn object<T>(self, read: impl FnOnce(&mut Input<'a>) -> Option<T>) -> FieldResult<T> {
        let Value::Object(object) = self.value else {
            return self.refuse(Code::InvalidFormat, "must be an object");
        };
        let path = self.path.clone();
        let mut input = Input::at(object, self.path.clone());
        let result = read(&mut input);
        input.finish_fields()?;
        result.ok_or_else(|| {
            vec![FieldError { field: path, code: Code::InvalidFormat, message: "cannot be read".into() }]
        })
    }

    /// A list of `min` to `max` entries.
    pub fn list<T>(
        self,
        min: usize,
        max: usize,
        mut read: impl FnMut(Field<'a>) -> FieldResult<T>,
    ) -> FieldResult<Vec<T>> {
        let Value::Array(entries) = self.value else {
            return self.refuse(Code::InvalidFormat, "must be a list");
        };
        if entries.len() < min {
            return self.refuse(Code::OutOfRange, format!("must have at least {min} entries"));
        }
        if entries.len() > max {
            return self.refuse(Code::TooLong, format!("must have at most {max} entries"));
        }
        let (mut good, mut bad) = (Vec::with_capacity(entries.len()), Vec::new());
        for (index, value) in entries.iter().enumerate() {
            match read(Field { value, path: format!("{}[{index}]", self.path) }) {
                Ok(entry) => good.push(entry),
                Err(mut errors) => bad.append(&mut errors),
            }
        }
        if bad.is_empty() { Ok(good) } else { Err(bad) }
    }

    /// Any JSON object, as it is.
    pub fn json_object(self) -> FieldResult<JsonMap> {
        match self.value {
            Value::Object(object) => Ok(object.clone()),
            _ => self.refuse(Code::InvalidFormat, "must be an object"),
        }
    }

    /// A map of strings.
    pub fn string_map(
        self,
        keys_max: usize,
        value_max: usize,
    ) -> FieldResult<std::collections::BTreeMap<String, String>> {
        let Value::Object(object) = self.value else {
            return self.refuse(Code::InvalidFormat, "must be an object");
        };
        if object.len() > keys_max {
            return self.refuse(Code::TooLong, format!("must have at most {keys_max} keys"));
        }
        let (mut good, mut bad) = (std::collections::BTreeMap::new(), Vec::new());
        for (key, value) in object {
            match (Field { value, path: format!("{}.{key}", self.path) }).text(0, value_max) {
                Ok(text) => drop(good.insert(key.clone(), text)),
                Err(mut errors) => bad.append(&mut errors),
            }
        }
        if bad.is_empty() { Ok(good) } else { Err(bad) }
    }

    /// A map whose values are read one by one; keys have 1 to `key_chars_max` characters.
    pub fn map_of<T>(
        self,
        keys_max: usize,
        key_chars_max: usize,
        mut read: impl FnMut(Field<'a>) -> FieldResult<T>,
    ) -> FieldResult<std::collections::BTreeMap<String, T>> {
        let Value::Object(object) = self.value else {
            return self.refuse(Code::InvalidFormat, "must be an object");
        };
        if object.len() > keys_max {
            return self.refuse(Code::TooLong, format!("must have at most {keys_max} keys"));
        }
        let (mut good, mut bad) = (std::collections::BTreeMap::new(), Vec::new());
        for (key, value) in object {
            let field = Field { value, path: format!("{}.{key}", self.path) };
            let entry = if key.is_empty() || key.chars().count() > key_chars_max || key.contains('\0') {
                field.refuse(Code::InvalidFormat, format!("keys have 1 to {key_chars_max} characters"))
            } else {
                read(field)
            };
            match entry {
                Ok(entry) => drop(good.insert(key.clone(), entry)),
                Err(mut errors) => bad.append(&mut errors),
            }
        }
        if bad.is_empty() { Ok(good) } else { Err(bad) }
    }

    /// Metadata: at most 50 keys of up to 40 characters; strings up to 500, numbers, booleans (conventions.md).
    /// Nulls pass: in an update they remove the key.
    pub fn metadata(self) -> FieldResult<JsonMap> {
        let Value::Object(object) = self.value else {
            return self.refuse(Code::InvalidFormat, "must be an object");
        };
        if object.len() > METADATA_KEYS_MAX {
            return self.refuse(Code::TooLong, METADATA_TOO_LONG);
        }
        let mut bad = Vec::new();
        for (key, value) in object {
            let field = Field { value, path: format!("{}.{key}", self.path) };
            let outcome: FieldResult<()> = match value {
                _ if key.is_empty() || key.chars().count() > 40 => {
                    field.refuse(Code::TooLong, "keys have 1 to 40 characters")
                }
                _ if key.contains('\0') => field.refuse(Code::InvalidFormat, "keys must not contain U+0000"),
                Value::String(_) => field.text(0, 500).map(drop),
                Value::Number(_) | Value::Bool(_) | Value::Null => Ok(()),
                _ => field.refuse(Code::InvalidFormat, "must be a string, a number or a boolean"),
            };
            bad.extend(outcome.err().into_iter().flatten());
        }
        if bad.is_empty() { Ok(object.clone()) } else { Err(bad) }
    }
}

const METADATA_KEYS_MAX: usize = 50;
const METADATA_TOO_LONG: &str = "must have at most 50 keys";

/// Applies sent metadata to stored metadata: sent keys replace, null removes (conventions.md).
///
/// # Errors
/// `Validation` when there are more than 50 keys then.
pub fn merge_metadata(current: &mut JsonMap, sent: JsonMap) -> Result<()> {
    for (key, value) in sent {
        if value.is_null() {
            current.remove(&key);
        } else {
            current.insert(key, value);
        }
    }
    current.retain(|_, value| !value.is_null());
    if current.len() > METADATA_KEYS_MAX {
        return Err(Error::field("metadata", Code::TooLong, METADATA_TOO_LONG));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reports_every_bad_field_with_its_path() {
        let body = json!({
            "name": "", "age": "x", "address": {"country": "de", "zip": 1}, "list": [1, "a", null], "extra": true,
            "amount": {"value": "1.001", "currency": "EUR"}
        });
        let mut input = Input::new(&body).expect("an object");
        input.required("name", |v| v.text(1, 5));
        input.required("age", |v| v.integer(0, 9));
        input.required("missing", Field::boolean);
        input.optional("address", |v| v.object(|i| i.required("country", Field::country)));
        input.optional("list", |v| v.list(0, 5, |e| e.integer(0, 9)));
        input.optional("amount", Field::money);
        let Err(Error::Validation(fields)) = input.finish() else { panic!("must be refused") };
        let found: Vec<_> = fields.iter().map(|f| (f.field.as_str(), f.code.as_str())).collect();
        assert_eq!(
            found,
            [
                ("name", "OUT_OF_RANGE"),
                ("age", "INVALID_FORMAT"),
                ("missing", "REQUIRED"),
                ("address.country", "INVALID_FORMAT"),
                ("address.zip", "UNKNOWN_FIELD"),
                ("list[1]", "INVALID_FORMAT"),
                ("list[2]", "INVALID_FORMAT"),
                ("amount.value", "OUT_OF_RANGE"),
                ("extra", "UNKNOWN_FIELD"),
            ]
        );
    }

    #[test]
    fn patch_tells_left_out_from_null() {
        let body = json!({"a": null, "b": "x"});
        let mut input = Input::new(&body).expect("an object");
        assert_eq!(input.patch("a", |v| v.text(0, 9)), Patch::Clear);
        assert_eq!(input.patch("b", |v| v.text(0, 9)), Patch::Set("x".to_owned()));
        assert_eq!(input.patch("c", |v| v.text(0, 9)), Patch::Keep);
        input.finish().expect("all members are known");
    }

    #[test]
    fn metadata_stays_within_its_bounds() {
        let keys = |range: std::ops::Range<u32>| range.map(|key| (key.to_string(), json!(1))).collect::<JsonMap>();
        let mut current = keys(0..50);
        merge_metadata(&mut current, json!({"0": null, "x": 1}).as_object().expect("an object").clone()).expect("50");
        assert!(merge_metadata(&mut current, keys(60..61)).is_err(), "51 keys after the merge");
        let body = json!({"metadata": {"a\0b": 1}});
        let mut input = Input::new(&body).expect("an object");
        input.optional("metadata", Field::metadata);
        assert!(input.finish().is_err(), "PostgreSQL cannot store U+0000");
    }
}
