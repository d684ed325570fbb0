//! Variables of an event as a usage store keeps them: one compact JSON object of flat values.
//!
//! Not the wire form: there a number may be a string, here it must come back as what it was, because a replay rates
//! the same event again (rule C1). So a number is a JSON number with its canonical digits, a text a JSON string.

use std::borrow::Cow;
use std::collections::BTreeMap;

use domain::event::{VarValue, Vars};
use domain::{Error, Quantity, Result};
use serde_json::value::RawValue;

/// The JSON object, or `None` when there are no variables.
pub(super) fn to_json(vars: &Vars) -> Option<String> {
    if vars.is_empty() {
        return None;
    }
    let mut json = String::with_capacity(vars.len() * 24);
    for (key, value) in vars {
        json.push(if json.is_empty() { '{' } else { ',' });
        push_text(&mut json, key);
        json.push(':');
        match value {
            VarValue::Text(text) => push_text(&mut json, text),
            VarValue::Bool(_) | VarValue::Number(_) => json.push_str(&value.to_string()),
        }
    }
    json.push('}');
    Some(json)
}

fn push_text(json: &mut String, text: &str) {
    json.push_str(&serde_json::Value::from(text).to_string());
}

/// Reads what [`to_json`] wrote; nothing or an empty text are no variables.
///
/// # Errors
/// `Internal` for anything else: the stored row is damaged.
pub(super) fn from_json(json: &str) -> Result<Vars> {
    if json.is_empty() {
        return Ok(Vars::new());
    }
    let damaged = |error: serde_json::Error| Error::internal("reading the variables of a stored event", error);
    let raw: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(json).map_err(damaged)?;
    raw.into_iter()
        .map(|(key, value)| {
            let value = match value.get() {
                "true" => VarValue::Bool(true),
                "false" => VarValue::Bool(false),
                text if text.starts_with('"') => VarValue::Text(serde_json::from_str(text).map_err(damaged)?),
                number => VarValue::Number(
                    Quantity::parse(number)
                        .map_err(|error| Error::internal("reading the variables of a stored event", error))?,
                ),
            };
            Ok((key.into_owned(), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_as_what_it_was() {
        let mut vars = Vars::new();
        for (key, value) in [
            ("bool", VarValue::Bool(true)),
            ("number", VarValue::Number(Quantity::parse("-123456789012345.123456789012").unwrap())),
            ("text_like_number", VarValue::Text("2.5".into())),
            ("text_like_bool", VarValue::Text("true".into())),
            ("empty", VarValue::Text(String::new())),
            ("hard", VarValue::Text("a\"b\\c\nd\te\u{1}ü\u{1F600},\"x\":1}".into())),
        ] {
            vars.insert(key.into(), value);
        }
        let json = to_json(&vars).unwrap();
        assert_eq!(from_json(&json).unwrap(), vars);
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
    }

    #[test]
    fn no_variables_are_nothing() {
        assert_eq!(to_json(&Vars::new()), None);
        assert_eq!(from_json("").unwrap(), Vars::new());
        assert!(from_json("{\"a\":[1]}").is_err());
    }
}
