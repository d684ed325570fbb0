//! Reads usage events from JSON: quickly when they are well-formed, thoroughly when they are not.
//!
//! The quick reader takes a well-formed event without building a JSON tree; whatever it refuses is read again by the
//! thorough one, which reports every bad field at once. Both read numbers from their text, so no digit passes through a
//! float.

use std::borrow::Cow;
use std::collections::BTreeMap;

use domain::error::FieldErrorCode as Code;
use domain::event::{VarValue, Vars};
use domain::input::Field;
use domain::{
    Currency, CustomerId, Error, HoldId, Input, Instant, ProductId, Quantity, Result, SubscriptionId, WalletId,
};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_MAX: usize = 255;
/// Longest metric key, in characters (meters.md).
pub const METRIC_KEY_MAX: usize = 64;
/// Longest price key, in characters.
pub const PRICE_KEY_MAX: usize = 255;

/// A well-formed event that has not been compared with the catalog (`IngestEventRequest`, usage.md 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Who consumed.
    pub customer_id: CustomerId,
    /// Gives the billing period.
    pub subscription_id: SubscriptionId,
    /// USAGE product.
    pub product_id: ProductId,
    /// Kind of consumption.
    pub metric_key: String,
    /// Amount consumed.
    pub quantity: Quantity,
    /// When it was consumed.
    pub timestamp: Instant,
    /// Makes retries safe.
    pub idempotency_key: String,
    /// Sibling price of a keyed product.
    pub price_key: Option<String>,
    /// Upstream cost.
    pub external_cost: Option<(Decimal, Currency)>,
    /// Read by formulas.
    pub pricing_vars: Vars,
    /// Read by filters.
    pub dimension_vars: Vars,
    /// Hold that it consumes.
    pub hold_id: Option<HoldId>,
    /// Pin by wallet.
    pub wallet_id: Option<WalletId>,
    /// Pin by currency.
    pub wallet_currency: Option<Currency>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuickEvent<'a> {
    customer_id: uuid::Uuid,
    subscription_id: uuid::Uuid,
    product_id: uuid::Uuid,
    #[serde(borrow)]
    metric_key: Cow<'a, str>,
    #[serde(borrow)]
    quantity: &'a RawValue,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow)]
    idempotency_key: Cow<'a, str>,
    #[serde(borrow, default)]
    price_key: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    dimension_vars: Option<BTreeMap<Cow<'a, str>, &'a RawValue>>,
    #[serde(borrow, default)]
    pricing_vars: Option<BTreeMap<Cow<'a, str>, &'a RawValue>>,
    #[serde(default)]
    wallet_currency: Option<Currency>,
}

impl NewEvent {
    /// Reads one event.
    ///
    /// # Errors
    /// `BadRequest` when it is no JSON object, `Validation` with every bad field.
    pub fn read(json: &str) -> Result<Self> {
        match serde_json::from_str::<QuickEvent<'_>>(json).ok().and_then(Self::quick) {
            Some(event) => Ok(event),
            None => Self::read_thoroughly(json),
        }
    }

    /// `None` for anything that the thorough reader has to judge.
    fn quick(quick: QuickEvent<'_>) -> Option<Self> {
        let number = quick.quantity.get();
        let quantity =
            Quantity::parse(number.strip_prefix('"').and_then(|n| n.strip_suffix('"')).unwrap_or(number)).ok()?;
        let good = is_text(&quick.metric_key, METRIC_KEY_MAX)
            && is_key(&quick.idempotency_key)
            && quick.price_key.as_deref().is_none_or(|key| is_text(key, PRICE_KEY_MAX));
        good.then_some(())?;
        Some(Self {
            customer_id: quick.customer_id.into(),
            subscription_id: quick.subscription_id.into(),
            product_id: quick.product_id.into(),
            metric_key: quick.metric_key.into_owned(),
            quantity,
            timestamp: read_instant(&quick.timestamp)?,
            idempotency_key: quick.idempotency_key.into_owned(),
            price_key: quick.price_key.map(Cow::into_owned),
            external_cost: None,
            pricing_vars: quick_vars(quick.pricing_vars)?,
            dimension_vars: quick_vars(quick.dimension_vars)?,
            hold_id: None,
            wallet_id: None,
            wallet_currency: quick.wallet_currency,
        })
    }

    fn read_thoroughly(json: &str) -> Result<Self> {
        let body: serde_json::Value = serde_json::from_str(json)
            .map_err(|error| Error::BadRequest { code: "BAD_REQUEST", detail: format!("not JSON: {error}") })?;
        let exact: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(json).unwrap_or_default();
        Self::from_value(&body, &exact)
    }

    fn from_value(body: &serde_json::Value, exact: &BTreeMap<Cow<'_, str>, &RawValue>) -> Result<Self> {
        let mut input = Input::new(body)?;
        let customer_id = input.required("customer_id", Field::id);
        let subscription_id = input.required("subscription_id", Field::id);
        let product_id = input.required("product_id", Field::id);
        let metric_key = input.required("metric_key", |v| v.text(1, METRIC_KEY_MAX));
        let quantity = input.required("quantity", |v| read_exact(v, exact.get("quantity")));
        let timestamp = input.required("timestamp", Field::instant);
        let idempotency_key = input.required("idempotency_key", |v| v.text(1, IDEMPOTENCY_KEY_MAX));
        let price_key = input.optional("price_key", |v| v.text(1, PRICE_KEY_MAX));
        let cost = input.optional("external_cost_amount", Field::rate);
        let cost_currency = input.optional("external_cost_currency", Field::currency);
        let vars = |name: &str| exact.get(name).and_then(|raw| serde_json::from_str(raw.get()).ok());
        let pricing_vars = input.optional("pricing_vars", |v| read_vars(v, vars("pricing_vars")));
        let dimension_vars = input.optional("dimension_vars", |v| read_vars(v, vars("dimension_vars")));
        let hold_id = input.optional("hold_id", Field::id);
        let wallet_id = input.optional("wallet_id", Field::id);
        let wallet_currency = input.optional("wallet_currency", Field::currency);
        match (cost, cost_currency) {
            (Some(_), None) if !input.has("external_cost_currency") => {
                input.error("external_cost_currency", Code::Required, "is required beside external_cost_amount");
            }
            (None, Some(_)) if !input.has("external_cost_amount") => {
                input.error("external_cost_amount", Code::Required, "is required beside external_cost_currency");
            }
            _ => {}
        }
        input.finish()?;
        let all = || {
            Some(Self {
                customer_id: customer_id?,
                subscription_id: subscription_id?,
                product_id: product_id?,
                metric_key: metric_key?,
                quantity: quantity?,
                timestamp: timestamp?,
                idempotency_key: idempotency_key?,
                price_key,
                external_cost: cost.zip(cost_currency),
                pricing_vars: pricing_vars.unwrap_or_default(),
                dimension_vars: dimension_vars.unwrap_or_default(),
                hold_id,
                wallet_id,
                wallet_currency,
            })
        };
        all().ok_or_else(|| Error::invariant("a usage event passed without a required field"))
    }
}

/// The events of a request body: one event, or `{"events": [...]}`.
#[derive(Debug)]
pub enum Submission<'a> {
    /// One event.
    Single(&'a str),
    /// A batch, each event on its own.
    Batch(Vec<&'a str>),
}

/// Most events of one batch (usage.md 1).
pub const BATCH_MAX: usize = 1_000;

impl<'a> Submission<'a> {
    /// Tells a batch from a single event without reading the events.
    ///
    /// # Errors
    /// `BadRequest` when the body is no JSON object, `Validation` for an empty or oversized batch.
    pub fn read(body: &'a str) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Batch<'a> {
            #[serde(borrow)]
            events: Vec<&'a RawValue>,
        }
        if let Ok(batch) = serde_json::from_str::<Batch<'_>>(body) {
            return match batch.events.len() {
                0 => Err(Error::field("events", Code::OutOfRange, "must have at least 1 event")),
                1..=BATCH_MAX => Ok(Self::Batch(batch.events.into_iter().map(RawValue::get).collect())),
                found => Err(Error::field(
                    "events",
                    Code::TooLong,
                    format!("must have at most {BATCH_MAX} events, has {found}"),
                )),
            };
        }
        let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(body).map_err(|error| {
            Error::BadRequest { code: "BAD_REQUEST", detail: format!("the body must be a JSON object: {error}") }
        })?;
        if !members.contains_key("events") {
            return Ok(Self::Single(body));
        }
        let unknown = members.keys().find(|name| *name != "events");
        Err(match unknown {
            Some(name) => Error::field(name.as_ref(), Code::UnknownField, "is not a known field; known are: events"),
            None => Error::field("events", Code::InvalidFormat, "must be a list of events"),
        })
    }
}

fn is_text(text: &str, max: usize) -> bool {
    !text.is_empty() && (text.len() <= max || text.chars().count() <= max) && !text.contains('\0')
}

fn is_key(text: &str) -> bool {
    is_text(text, IDEMPOTENCY_KEY_MAX)
}

fn read_instant(text: &str) -> Option<Instant> {
    let instant = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    (0..=9999).contains(&chrono::Datelike::year(&instant)).then(|| domain::clock::micros(instant.to_utc()))
}

/// A quantity from the text of the number, so that 0.1234567890123 is told from its float.
fn read_exact(field: Field<'_>, raw: Option<&&RawValue>) -> domain::input::FieldResult<Quantity> {
    let text = raw.map_or("", |raw| raw.get());
    if !field.raw().is_number() {
        return field.quantity();
    }
    match Quantity::parse(text) {
        Ok(quantity) => Ok(quantity),
        Err(error) => field.refuse(Code::OutOfRange, error.to_string()),
    }
}

const VARS_MAX: usize = 50;
const VAR_TEXT_MAX: usize = 255;

fn is_var_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn quick_vars(raw: Option<BTreeMap<Cow<'_, str>, &RawValue>>) -> Option<Vars> {
    let Some(raw) = raw else { return Some(Vars::new()) };
    if raw.len() > VARS_MAX {
        return None;
    }
    raw.into_iter()
        .map(|(name, value)| is_var_name(&name).then(|| Some((name.into_owned(), quick_var(value.get())?)))?)
        .collect()
}

fn quick_var(raw: &str) -> Option<VarValue> {
    match raw.as_bytes().first()? {
        b'"' => {
            let text: Cow<'_, str> = serde_json::from_str(raw).ok()?;
            (text.chars().count() <= VAR_TEXT_MAX && !text.contains('\0')).then(|| VarValue::Text(text.into_owned()))
        }
        b't' => Some(VarValue::Bool(true)),
        b'f' => Some(VarValue::Bool(false)),
        b'-' | b'0'..=b'9' => Quantity::parse(raw).ok().map(VarValue::Number),
        _ => None,
    }
}

/// Variables of a body that was read as a tree of values.
pub(crate) fn read_var_map(field: Field<'_>) -> domain::input::FieldResult<Vars> {
    let text = field.raw().to_string();
    read_vars(field, serde_json::from_str(&text).ok())
}

fn read_vars(field: Field<'_>, exact: Option<BTreeMap<Cow<'_, str>, &RawValue>>) -> domain::input::FieldResult<Vars> {
    let Some(members) = exact else { return field.refuse(Code::InvalidFormat, "must be an object") };
    if members.len() > VARS_MAX {
        return field.refuse(Code::TooLong, format!("must have at most {VARS_MAX} keys"));
    }
    let mut vars = Vars::new();
    for (name, value) in members {
        if !is_var_name(&name) {
            return field.refuse(Code::InvalidFormat, format!("the key {name:?} must match ^[a-z0-9_]{{1,64}}$"));
        }
        let Some(value) = quick_var(value.get()) else {
            let allowed =
                "must be a string of up to 255 characters, a number of 15 integer and 12 fraction digits, or a boolean";
            return field.refuse(Code::InvalidFormat, format!("the value of {name:?} {allowed}"));
        };
        vars.insert(name.into_owned(), value);
    }
    Ok(vars)
}

/// The event as the API takes it: what a kept rejection shows, and what its replay sends again.
#[must_use]
pub fn to_json(event: &domain::UsageEvent) -> serde_json::Value {
    let mut json = serde_json::json!({
        "customer_id": event.customer_id, "subscription_id": event.subscription_id, "product_id": event.product_id,
        "metric_key": event.metric_key, "quantity": event.quantity, "timestamp": event.timestamp,
        "idempotency_key": event.idempotency_key,
    });
    let mut put = |name: &str, value: serde_json::Value| {
        if let Some(object) = json.as_object_mut() {
            object.insert(name.to_owned(), value);
        }
    };
    if let Some(key) = &event.price_key {
        put("price_key", key.as_str().into());
    }
    if let Some((amount, currency)) = &event.external_cost {
        put("external_cost_amount", amount.to_string().into());
        put("external_cost_currency", currency.as_str().into());
    }
    if let Some(currency) = &event.wallet_currency {
        put("wallet_currency", currency.as_str().into());
    }
    if let Some(hold) = &event.hold_id {
        put("hold_id", hold.to_string().into());
    }
    for (name, vars) in [("dimension_vars", &event.dimension_vars), ("pricing_vars", &event.pricing_vars)] {
        if !vars.is_empty() {
            put(name, vars_to_json(vars));
        }
    }
    json
}

/// Variables as JSON; numbers become numbers again when a float carries them exactly, else strings.
#[must_use]
pub fn vars_to_json(vars: &Vars) -> serde_json::Value {
    vars.iter()
        .map(|(name, value)| {
            let value = match value {
                VarValue::Bool(value) => (*value).into(),
                VarValue::Text(value) => value.as_str().into(),
                VarValue::Number(value) => {
                    let text = value.to_string();
                    serde_json::from_str::<serde_json::Number>(&text)
                        .ok()
                        .filter(|number| number.to_string() == text)
                        .map_or_else(|| text.clone().into(), serde_json::Value::Number)
                }
            };
            (name.clone(), value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"customer_id":"01890000-0000-7000-8000-000000000001","subscription_id":"01890000-0000-7000-8000-000000000002",
        "product_id":"01890000-0000-7000-8000-000000000003","metric_key":"tokens","quantity":QUANTITY,
        "timestamp":"2026-01-31T12:00:00.123456789+01:00","idempotency_key":"k1","dimension_vars":{"model":"m\u00e9","n":1.5,"b":true}}"#;

    fn good(quantity: &str) -> String {
        GOOD.replace("QUANTITY", quantity)
    }

    #[test]
    fn both_readers_agree() {
        for quantity in ["\"2.5\"", "2.5", "12", "0.123456789012", "1e3", "\"999999999999999.999999999999\""] {
            let json = good(quantity);
            let quick = serde_json::from_str(&json).ok().and_then(NewEvent::quick).expect("well-formed");
            assert_eq!(quick, NewEvent::read_thoroughly(&json).expect("well-formed"), "{quantity}");
            assert_eq!(quick.timestamp.to_rfc3339(), "2026-01-31T11:00:00.123456+00:00");
        }
    }

    #[test]
    fn every_bad_field_is_named() {
        let json = r#"{"customer_id":"x","product_id":"01890000-0000-7000-8000-000000000003","metric_key":"","quantity":"abc",
            "timestamp":"yesterday","idempotency_key":"k","dimension_vars":{"Bad":1},"external_cost_amount":"1","color":1}"#;
        let Err(Error::Validation(fields)) = NewEvent::read(json) else { panic!("must be refused") };
        let names: Vec<_> = fields.iter().map(|field| field.field.as_str()).collect();
        assert_eq!(
            names,
            [
                "customer_id",
                "subscription_id",
                "metric_key",
                "quantity",
                "timestamp",
                "dimension_vars",
                "external_cost_currency",
                "color"
            ]
        );
        for (json, code) in [("[]", "BAD_REQUEST"), ("{", "BAD_REQUEST"), ("7", "BAD_REQUEST"), ("{}", "VALIDATION")] {
            assert_eq!(NewEvent::read(json).expect_err("refused").code(), code, "{json}");
        }
        for quantity in ["0.1234567890123", "1000000000000000", "1e40", "true", "null", "\"1,5\""] {
            assert_eq!(NewEvent::read(&good(quantity)).expect_err("refused").code(), "VALIDATION", "{quantity}");
        }
    }

    #[test]
    fn a_batch_is_told_from_a_single_event() {
        assert!(matches!(Submission::read(&good("1")), Ok(Submission::Single(_))));
        assert!(
            matches!(Submission::read(r#"{"events":[{},7]}"#), Ok(Submission::Batch(events)) if events == ["{}", "7"])
        );
        let many = format!(r#"{{"events":[{}]}}"#, vec!["{}"; 1001].join(","));
        for wrong in [r#"{"events":[]}"#, r#"{"events":{}}"#, r#"{"events":[{}],"x":1}"#, many.as_str()] {
            assert_eq!(
                Submission::read(wrong).expect_err("refused").code(),
                "VALIDATION",
                "{}",
                &wrong[..20.min(wrong.len())]
            );
        }
        assert_eq!(Submission::read("[]").expect_err("refused").code(), "BAD_REQUEST");
    }
}
