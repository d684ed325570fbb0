//! Amounts in rows, and rows as payloads.

use domain::{Currency, Error, JsonMap, Money, Result};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;

/// An amount column in its row's currency.
///
/// # Errors
/// `ColumnDecode` for an amount with more decimals than the currency has: a broken row is an error, never a panic.
pub fn money(row: &PgRow, column: &str, currency: Currency) -> sqlx::Result<Money> {
    amount_of(row.try_get(column)?, column, currency)
}

/// The same of a column that may be null.
///
/// # Errors
/// As [`money`].
pub fn optional_money(row: &PgRow, column: &str, currency: Currency) -> sqlx::Result<Option<Money>> {
    let amount: Option<Decimal> = row.try_get(column)?;
    amount.map(|amount| amount_of(amount, column, currency)).transpose()
}

fn amount_of(amount: Decimal, column: &str, currency: Currency) -> sqlx::Result<Money> {
    Money::new(amount, currency)
        .map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) })
}

/// What an event tells of something: its JSON.
///
/// # Errors
/// `Internal` for what is no object or cannot be written.
pub fn payload(value: &impl Serialize) -> Result<JsonMap> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::invariant("the payload of an event is no object")),
        Err(error) => Err(Error::internal("writing the payload of an event", error)),
    }
}
