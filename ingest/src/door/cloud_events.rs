//! CloudEvents 1.0 in JSON: how an envelope becomes a usage event.
//!
//! | usage event | from |
//! |---|---|
//! | `idempotency_key` | `data.idempotency_key`, else `source` + `#` + `id` (together unique by the standard) |
//! | `timestamp` | `data.timestamp`, else `time` |
//! | `metric_key` | `data.metric_key`, else `type` |
//! | `subscription_id` | `data.subscription_id`, else `subject` |
//! | everything else | `data`, a JSON object with the members of a usage event |
//!
//! Extension attributes of the envelope are ignored, as the standard allows.

use std::borrow::Cow;
use std::collections::BTreeMap;

use domain::error::FieldErrorCode as Code;
use domain::{Error, FieldError, Result};
use serde_json::value::RawValue;

/// Media type of one event.
pub const SINGLE: &str = "application/cloudevents+json";
/// Media type of a list of events.
pub const BATCH: &str = "application/cloudevents-batch+json";

/// Turns one envelope into the JSON of a usage event.
///
/// # Errors
/// `Validation` with every bad attribute; `BadRequest` when it is no JSON object.
pub fn to_usage_event(json: &str) -> Result<String> {
    let envelope: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(json).map_err(|error| {
        Error::BadRequest { code: "BAD_REQUEST", detail: format!("a CloudEvent must be a JSON object: {error}") }
    })?;
    let mut errors = Vec::new();
    let mut refuse = |field: &str, code, message: &str| {
        errors.push(FieldError { field: field.to_owned(), code, message: message.to_owned() });
    };
    let text = |name: &str| envelope.get(name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    match text("specversion").as_deref() {
        Some("1.0") => {}
        _ => refuse("specversion", Code::InvalidEnum, "must be \"1.0\""),
    }
    for name in ["id", "source", "type"] {
        if text(name).is_none_or(|text| text.is_empty()) {
            refuse(name, Code::Required, "is required: a string that is not empty");
        }
    }
    if envelope.contains_key("data_base64") {
        refuse("data_base64", Code::NotAllowed, "must be absent: data is JSON");
    }
    if text("datacontenttype").is_some_and(|media| !media.to_ascii_lowercase().contains("json")) {
        refuse("datacontenttype", Code::InvalidEnum, "must be application/json");
    }
    let data: Option<BTreeMap<Cow<'_, str>, &RawValue>> =
        envelope.get("data").and_then(|raw| serde_json::from_str(raw.get()).ok());
    let Some(data) = data else {
        refuse("data", Code::Required, "is required: an object with the members of a usage event");
        return Err(Error::Validation(errors));
    };
    if !errors.is_empty() {
        return Err(Error::Validation(errors));
    }
    let key = text("source").zip(text("id")).map(|(source, id)| format!("{source}#{id}"));
    merge(
        data,
        [
            ("idempotency_key", key),
            ("timestamp", text("time")),
            ("metric_key", text("type")),
            ("subscription_id", text("subject")),
        ],
    )
}

/// Adds what the data leaves out; numbers keep their text.
fn merge(data: BTreeMap<Cow<'_, str>, &RawValue>, defaults: [(&str, Option<String>); 4]) -> Result<String> {
    let failed = |error| Error::internal("writing a usage event as JSON", error);
    let mut members: BTreeMap<&str, Cow<'_, str>> =
        data.iter().map(|(name, raw)| (name.as_ref(), raw.get().into())).collect();
    for (name, value) in defaults {
        if let Some(value) = value {
            members.entry(name).or_insert(serde_json::to_string(&value).map_err(failed)?.into());
        }
    }
    let mut json = String::from("{");
    for (name, value) in members {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&serde_json::to_string(name).map_err(failed)?);
        json.push(':');
        json.push_str(&value);
    }
    json.push('}');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_fills_what_the_data_leaves_out() {
        let json = r#"{"specversion":"1.0","id":"7","source":"/gateway","type":"tokens","subject":"s","time":"2026-01-01T00:00:00Z",
            "traceparent":"x","data":{"quantity":0.123456789012,"metric_key":"own"}}"#;
        let event = to_usage_event(json).expect("good");
        assert_eq!(
            event,
            r#"{"idempotency_key":"/gateway#7","metric_key":"own","quantity":0.123456789012,"subscription_id":"s","timestamp":"2026-01-01T00:00:00Z"}"#
        );
    }

    #[test]
    fn every_bad_attribute_is_named() {
        let Err(Error::Validation(fields)) = to_usage_event(r#"{"specversion":"0.3","id":"","data_base64":"eA=="}"#)
        else {
            panic!("must be refused")
        };
        let names: Vec<_> = fields.iter().map(|field| field.field.as_str()).collect();
        assert_eq!(names, ["specversion", "id", "source", "type", "data_base64", "data"]);
        assert!(matches!(to_usage_event("[]"), Err(Error::BadRequest { .. })));
    }
}
