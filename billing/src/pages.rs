//! Pages of lists that are computed whole: the cursor is a place in the list.

use domain::error::FieldErrorCode as Code;
use domain::{Error, Result};
use store::Page;
use store::list::PageResponse;

/// Cuts one page out of a list; `name` binds the cursor to it. Parameters are `limit` and `cursor`.
///
/// # Errors
/// `Validation`, `INVALID_CURSOR`.
pub(crate) fn cut<T>(name: &str, items: Vec<T>, parameters: &[(String, String)]) -> Result<Page<T>> {
    let (mut limit, mut start) = (25_u32, 0_usize);
    for (parameter, value) in parameters {
        match parameter.as_str() {
            "limit" => match value.parse() {
                Ok(asked @ 1..=100) => limit = asked,
                _ => return Err(Error::field("limit", Code::OutOfRange, "must be a whole number from 1 to 100")),
            },
            "cursor" => {
                let place =
                    value.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')).and_then(|n| n.parse().ok());
                let detail = "the cursor belongs to another list".to_owned();
                start = place.ok_or(Error::BadRequest { code: "INVALID_CURSOR", detail })?;
            }
            _ => {
                let message = "is not a known parameter; known are limit, cursor";
                return Err(Error::field(parameter.clone(), Code::UnknownField, message));
            }
        }
    }
    let end = start.saturating_add(limit as usize);
    let has_more = items.len() > end;
    let cursor = has_more.then(|| format!("{name}.{end}"));
    let data = items.into_iter().skip(start).take(limit as usize).collect();
    Ok(Page { data, pagination: PageResponse { cursor, has_more, limit } })
}
