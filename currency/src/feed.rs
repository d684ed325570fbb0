//! Reads the reference rates of the European Central Bank: units of a currency for one euro, a day or the last ninety.
//!
//! ```xml
//! <gesmes:Envelope xmlns:gesmes="…" xmlns="…">
//!   <gesmes:subject>Reference rates</gesmes:subject>
//!   <Cube>
//!     <Cube time='2026-03-02'>
//!       <Cube currency='USD' rate='1.0853'/>
//! ```
//!
//! A document is taken whole or not at all: one that breaks off, or has a rate that cannot be, is refused.

use chrono::{Days, NaiveDate};
use domain::Currency;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use rust_decimal::Decimal;

/// The rates of one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Day {
    /// The day.
    pub date: NaiveDate,
    /// Units of each currency for one euro, each currency once.
    pub rates: Vec<(Currency, Decimal)>,
}

/// Why a document is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// No XML.
    #[error("no XML: {0}")]
    Xml(String),
    /// It ends in the middle.
    #[error("the document breaks off")]
    BreaksOff,
    /// It is something else, or has nothing in it.
    #[error("no exchange rates in the document")]
    Empty,
    /// A value that cannot be.
    #[error("{0}")]
    Value(String),
}

/// Reads a document. Currencies that are not in use any more are left out.
///
/// # Errors
/// When it is not whole, or a day or rate in it cannot be; a day after `today` cannot.
pub fn read(document: &str, today: NaiveDate) -> Result<Vec<Day>, FeedError> {
    let mut reader = Reader::from_str(document);
    let (mut days, mut depth) = (Vec::new(), 0_usize);
    loop {
        match reader.read_event().map_err(|error| FeedError::Xml(error.to_string()))? {
            Event::Start(element) => {
                depth += 1;
                read_element(&element, &mut days, today)?;
            }
            Event::Empty(element) => read_element(&element, &mut days, today)?,
            Event::End(_) => depth = depth.saturating_sub(1),
            Event::Eof if depth > 0 => return Err(FeedError::BreaksOff),
            Event::Eof => break,
            _ => {}
        }
    }
    days.retain(|day| !day.rates.is_empty());
    if days.is_empty() { Err(FeedError::Empty) } else { Ok(days) }
}

/// `Cube` with a time begins a day, one with a currency belongs to the day that has begun.
fn read_element(element: &BytesStart<'_>, days: &mut Vec<Day>, today: NaiveDate) -> Result<(), FeedError> {
    if element.local_name().as_ref() != "Cube" {
        return Ok(());
    }
    if let Some(time) = attribute(element, "time")? {
        // A day ahead of us may have begun elsewhere.
        let latest = today.checked_add_days(Days::new(1)).unwrap_or(today);
        let date = NaiveDate::parse_from_str(&time, "%Y-%m-%d").ok().filter(|date| *date <= latest);
        let date = date.ok_or_else(|| FeedError::Value(format!("`{time}` is not a day of exchange rates")))?;
        if days.iter().any(|day| day.date == date) {
            return Err(FeedError::Value(format!("{date} stands twice")));
        }
        days.push(Day { date, rates: Vec::new() });
    }
    let Some(code) = attribute(element, "currency")? else { return Ok(()) };
    let rate = attribute(element, "rate")?.unwrap_or_default();
    let day = days.last_mut().ok_or_else(|| FeedError::Value(format!("{code} belongs to no day")))?;
    let value = domain::money::parse_decimal(&rate).filter(is_rate);
    let value =
        value.ok_or_else(|| FeedError::Value(format!("`{rate}` is not an exchange rate ({code}, {})", day.date)))?;
    let Some(currency) = Currency::parse(&code).filter(|currency| *currency != Currency::EUR) else { return Ok(()) };
    if day.rates.iter().any(|(known, _)| *known == currency) {
        return Err(FeedError::Value(format!("{currency} stands twice on {}", day.date)));
    }
    day.rates.push((currency, value));
    Ok(())
}

/// The range of every rate (fx.md 4).
fn is_rate(rate: &Decimal) -> bool {
    *rate > Decimal::ZERO && *rate < Decimal::from(1_000_000_000) && rate.normalize().scale() <= 10
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Result<Option<String>, FeedError> {
    let found = element.try_get_attribute(name).map_err(|error| FeedError::Xml(error.to_string()))?;
    Ok(found.map(|attribute| attribute.value.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: NaiveDate = NaiveDate::from_ymd_opt(2026, 3, 3).unwrap();

    fn document(cubes: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<gesmes:Envelope xmlns:gesmes=\"http://www.gesmes.org/xml/2002-08-01\" \
             xmlns=\"http://www.ecb.int/vocabulary/2002-08-01/eurofxref\">\n\t<gesmes:subject>Reference rates</gesmes:subject>\n\t\
             <gesmes:Sender>\n\t\t<gesmes:name>European Central Bank</gesmes:name>\n\t</gesmes:Sender>\n\t<Cube>{cubes}</Cube>\n</gesmes:Envelope>"
        )
    }

    fn day(date: &str, rates: &[(&str, &str)]) -> Day {
        let rate =
            |(code, rate): &(&str, &str)| (Currency::parse(code).expect("known"), rate.parse().expect("a decimal"));
        Day { date: date.parse().expect("a day"), rates: rates.iter().map(rate).collect() }
    }

    #[test]
    fn days_and_rates_are_read() {
        let cubes = "\n<Cube time='2026-03-03'>\n<Cube currency='USD' rate='1.0853'/>\n<Cube currency='JPY' rate='163.45'/>\n</Cube>\n\
            <Cube time=\"2026-03-02\"><Cube currency=\"USD\" rate=\"1.08\"/><Cube currency='HRK' rate='7.5'/></Cube>";
        let days = read(&document(cubes), TODAY).expect("good");
        let expected =
            [day("2026-03-03", &[("USD", "1.0853"), ("JPY", "163.45")]), day("2026-03-02", &[("USD", "1.08")])];
        assert_eq!(days, expected, "the kuna is gone");
    }

    #[test]
    fn a_document_is_taken_whole_or_not_at_all() {
        let good = document("<Cube time='2026-03-03'><Cube currency='USD' rate='1.0853'/></Cube>");
        for end in 1..good.len() {
            assert!(read(&good[..end], TODAY).is_err(), "cut at {end}: {}", &good[..end]);
        }
        for (cubes, why) in [
            ("", "no exchange rates in the document"),
            ("<Cube time='2026-03-03'></Cube>", "no exchange rates in the document"),
            (
                "<Cube time='2026-03-03'><Cube currency='USD' rate='0'/></Cube>",
                "`0` is not an exchange rate (USD, 2026-03-03)",
            ),
            (
                "<Cube time='2026-03-03'><Cube currency='USD' rate='-1'/></Cube>",
                "`-1` is not an exchange rate (USD, 2026-03-03)",
            ),
            (
                "<Cube time='2026-03-03'><Cube currency='USD' rate='N/A'/></Cube>",
                "`N/A` is not an exchange rate (USD, 2026-03-03)",
            ),
            ("<Cube time='2026-03-03'><Cube currency='USD'/></Cube>", "`` is not an exchange rate (USD, 2026-03-03)"),
            (
                "<Cube time='2026-03-05'><Cube currency='USD' rate='1'/></Cube>",
                "`2026-03-05` is not a day of exchange rates",
            ),
            ("<Cube time='today'><Cube currency='USD' rate='1'/></Cube>", "`today` is not a day of exchange rates"),
            ("<Cube currency='USD' rate='1'/>", "USD belongs to no day"),
            (
                "<Cube time='2026-03-03'><Cube currency='USD' rate='1'/><Cube currency='USD' rate='2'/></Cube>",
                "USD stands twice on 2026-03-03",
            ),
        ] {
            assert_eq!(
                read(&document(cubes), TODAY).map_err(|error| error.to_string()),
                Err(why.to_owned()),
                "{cubes}"
            );
        }
        for nonsense in ["", "nonsense", "{\"rates\": {\"USD\": 1.08}}", "<html><body>Moved</body></html>", "<a></b>"] {
            assert!(read(nonsense, TODAY).is_err(), "{nonsense}");
        }
    }
}
