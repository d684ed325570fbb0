//! Time is a parameter: the only place below `server` that may ask the machine for the time.

use chrono::{DurationRound, TimeDelta, Utc};

use crate::Instant;

/// What time it is for an operation: the machine's clock, or the fixed instant of a test clock or a due work item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// A fixed instant.
    At(Instant),
}

impl Clock {
    /// The present instant of this clock, at microsecond precision (what PostgreSQL stores).
    #[must_use]
    pub fn now(&self) -> Instant {
        match self {
            #[allow(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
            Self::System => micros(Utc::now()),
            Self::At(instant) => *instant,
        }
    }
}

/// Cuts an instant to microseconds, the precision of the wire and of PostgreSQL.
#[must_use]
pub fn micros(instant: Instant) -> Instant {
    instant.duration_trunc(TimeDelta::microseconds(1)).unwrap_or(instant)
}

/// A duration in Go syntax with whole numbers: `1h`, `90m`, `1h30m`, `500ms`, `0` (conventions.md, Durations).
#[must_use]
pub fn duration(text: &str) -> Option<TimeDelta> {
    if text == "0" {
        return Some(TimeDelta::zero());
    }
    let (mut rest, mut total) = (text, TimeDelta::zero());
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
        let (number, unit_first) = rest.split_at(digits);
        let unit_end = unit_first.find(|c: char| c.is_ascii_digit()).unwrap_or(unit_first.len());
        let (unit, after) = unit_first.split_at(unit_end);
        let number: i64 = number.parse().ok()?;
        let part = match unit {
            "h" => TimeDelta::try_hours(number),
            "m" => TimeDelta::try_minutes(number),
            "s" => TimeDelta::try_seconds(number),
            "ms" => TimeDelta::try_milliseconds(number),
            _ => None,
        };
        total = total.checked_add(&part?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_go_syntax() {
        for (text, seconds) in
            [("1h", Some(3600)), ("1h30m", Some(5400)), ("90s", Some(90)), ("0", Some(0)), ("24h", Some(86_400))]
        {
            assert_eq!(duration(text).map(|d| d.num_seconds()), seconds, "{text}");
        }
        for wrong in ["", "h", "1", "1d", "-1h", "1h x"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
