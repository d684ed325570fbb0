//! JSON bodies, read without losing anything.
//!
//! * A member that stands twice is refused: two readers would disagree about it.
//! * Nesting is bounded (serde_json: 128 levels).
//! * Numbers: strings are always exact. A JSON number passes through an `f64`, so it is accepted only if it survives
//!   that: whole numbers of 64 bits, or at most 15 significant digits. serde_json's `arbitrary_precision` would keep
//!   every digit, but changes the type of every number in the process and slows ingest; refusing is honest and rare.

use std::collections::HashSet;
use std::fmt;

use domain::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Significant digits that every `f64` carries through.
const F64_DIGITS: usize = 15;

/// Reads one JSON value.
///
/// # Errors
/// `BadRequest` for anything but one JSON value without repeated members and without inexact numbers.
pub fn parse(bytes: &[u8]) -> Result<Value> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(bad("a JSON body is required"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Unique.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    let value = value.map_err(|error| bad(format!("the body is not valid JSON: {error}")))?;
    match inexact_number(bytes) {
        Some(number) => Err(bad(format!(
            "the number {number} has more than {F64_DIGITS} significant digits; send it as a string to keep them all"
        ))),
        None => Ok(value),
    }
}

fn bad(detail: impl Into<String>) -> Error {
    Error::BadRequest { code: "BAD_REQUEST", detail: detail.into() }
}

/// The first number of valid JSON text that an `f64` or a 64-bit integer cannot carry.
fn inexact_number(json: &[u8]) -> Option<&str> {
    let mut rest = json;
    loop {
        let start = rest.iter().position(|b| *b == b'"' || *b == b'-' || b.is_ascii_digit())?;
        rest = &rest[start..];
        if rest[0] == b'"' {
            rest = &rest[string_length(rest)..];
            continue;
        }
        let length = rest.iter().position(|b| !is_number_byte(*b)).unwrap_or(rest.len());
        let number = std::str::from_utf8(&rest[..length]).unwrap_or_default();
        if !is_exact(number) {
            return Some(number);
        }
        rest = &rest[length..];
    }
}

fn is_number_byte(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E')
}

/// Length of the string that the text begins with, quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

fn is_exact(number: &str) -> bool {
    if number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok() {
        return true;
    }
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let significant = digits.trim_start_matches('0').trim_end_matches('0').len();
    // Subnormal numbers lose digits, too.
    let normal = number.parse::<f64>().is_ok_and(|value| value.is_normal() || significant == 0);
    significant <= F64_DIGITS && normal
}

/// Builds a [`Value`] and refuses repeated members.
struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> std::result::Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element_seed(Unique)? {
            list.push(entry);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> std::result::Result<Value, A::Error> {
        let (mut object, mut seen) = (Map::new(), HashSet::new());
        while let Some(name) = members.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("the member `{name}` stands twice")));
            }
            object.insert(name, members.next_value_seed(Unique)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_serde_json_reads() {
        let text =
            r#"{"a":[1,-2,3.5,1e3,null,true,"x\"1234567890123456789.5"],"b":{"c":18446744073709551615,"d":0.1}}"#;
        assert_eq!(parse(text.as_bytes()).expect("good"), serde_json::from_str::<Value>(text).expect("good"));
    }

    #[test]
    fn refuses_what_would_be_lost() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for text in [
            "",
            " ",
            "{",
            "{} {}",
            "nul",
            r#"{"a":1,"a":2}"#,
            r#"{"b":{"a":1,"a":1}}"#,
            r#"[0.1234567890123456]"#,
            "18446744073709551616",
            "1e400",
            "123456789012345678901234567890",
            "1e-320",
            &deep,
            "\u{feff}{}",
        ] {
            let found = parse(text.as_bytes());
            assert!(matches!(found, Err(Error::BadRequest { code: "BAD_REQUEST", .. })), "{text}: {found:?}");
        }
    }

    #[test]
    fn accepted_numbers_keep_their_digits() {
        for (text, digits) in [
            ("0.1", "0.1"),
            ("-999999999999999", "-999999999999999"),
            ("2.50", "2.5"),
            ("0.000001", "0.000001"),
            ("123456789.012345", "123456789.012345"),
            ("1e3", "1000"),
            ("0.0", "0"),
        ] {
            let Value::Number(number) = parse(text.as_bytes()).expect("good") else { panic!("a number") };
            assert_eq!(
                domain::Quantity::parse(&number.to_string()).map(|q| q.to_string()).as_deref(),
                Ok(digits),
                "{text}"
            );
        }
    }
}
