//! Windows of meters (meters.md 5, Window): which part of a billing period an event belongs to.
//!
//! A window that is shorter than the billing period cuts it into sub-windows; each is evaluated alone and the results are
//! summed. Sub-windows are clipped to the billing period, so that its first and last may be shorter.

use chrono::{DateTime, Datelike, Days, NaiveDate, TimeDelta, Timelike};
use chrono_tz::Tz;
use domain::error::FieldErrorCode as Code;
use domain::period::{FAR_FUTURE, Period, midnight};
use domain::{FieldError, Instant, WindowKind, WindowUnit};

use crate::running::step_of;

/// Shortest TUMBLING or SLIDING window: a month has at most 44,640 of them.
const SIZE_MIN: TimeDelta = TimeDelta::minutes(1);
/// Longest TUMBLING or SLIDING window.
const SIZE_MAX: TimeDelta = TimeDelta::days(366);

/// The window of a meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The billing period of the subscription.
    BillingPeriod,
    /// Calendar units, in a given time zone or else in that of the subscription.
    Calendar {
        /// Unit.
        unit: WindowUnit,
        /// Given time zone.
        timezone: Option<Tz>,
    },
    /// Back to back, aligned to 1970-01-01T00:00:00Z.
    Tumbling {
        /// Length of one.
        size: TimeDelta,
    },
    /// The `size` before each event; thresholds only.
    Sliding {
        /// Length.
        size: TimeDelta,
    },
    /// From the start of the subscription on.
    Lifetime,
}

impl Span {
    /// Reads a window as the API has it; `size` is a duration in Go syntax.
    ///
    /// # Errors
    /// What is missing or out of range, under `window.<member>`.
    pub fn new(
        kind: WindowKind,
        size: Option<&str>,
        unit: Option<WindowUnit>,
        timezone: Option<&str>,
    ) -> Result<Self, Vec<FieldError>> {
        let refuse =
            |field: &str, code, message: String| vec![FieldError { field: format!("window.{field}"), code, message }];
        let size_of = || match size.map(parse_duration) {
            None => Err(refuse("size", Code::Required, format!("is required by {kind}"))),
            Some(Some(size)) if (SIZE_MIN..=SIZE_MAX).contains(&size) => Ok(size),
            Some(_) => {
                let message = "must be a duration of 1m to 8784h, such as \"15m\" or \"1h30m\"".into();
                Err(refuse("size", Code::InvalidFormat, message))
            }
        };
        Ok(match kind {
            WindowKind::BillingPeriod => Self::BillingPeriod,
            WindowKind::Lifetime => Self::Lifetime,
            WindowKind::Tumbling => Self::Tumbling { size: size_of()? },
            WindowKind::Sliding => Self::Sliding { size: size_of()? },
            WindowKind::Calendar => {
                let timezone = match timezone.map(str::parse::<Tz>).transpose() {
                    Ok(timezone) => timezone,
                    Err(_) => return Err(refuse("timezone", Code::InvalidFormat, "must be an IANA time zone".into())),
                };
                match unit {
                    Some(unit) => Self::Calendar { unit, timezone },
                    None => return Err(refuse("unit", Code::Required, format!("is required by {kind}"))),
                }
            }
        })
    }

    /// Whether it goes on over billing periods.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Self::Sliding { .. } | Self::Lifetime)
    }

    /// Whether it cuts a billing period into sub-windows.
    #[must_use]
    pub fn is_cut(self) -> bool {
        matches!(self, Self::Calendar { .. } | Self::Tumbling { .. })
    }

    /// Whether there are parts of it that are counted apart: sub-windows, or steps.
    #[must_use]
    pub fn has_parts(self) -> bool {
        self.is_cut() || matches!(self, Self::Sliding { .. })
    }

    /// The sub-window of `window` in which an instant lies; `None` where the window is not cut. An instant outside, of late
    /// usage, belongs to the first or last one. A SLIDING window has steps instead, which know no billing period.
    #[must_use]
    pub fn part(self, at: Instant, window: Period, subscription_timezone: Tz) -> Option<Period> {
        if let Self::Sliding { size } = self {
            return Some(tumbling(at, step_of(size)));
        }
        // Not `clamp`: a window that a cancellation has left empty has no last instant.
        let at = at.min(window.end - TimeDelta::microseconds(1)).max(window.start);
        let whole = match self {
            Self::BillingPeriod | Self::Lifetime | Self::Sliding { .. } => return None,
            Self::Tumbling { size } => tumbling(at, size),
            Self::Calendar { unit, timezone } => calendar(at, unit, timezone.unwrap_or(subscription_timezone)),
        };
        Some(Period { start: whole.start.max(window.start), end: whole.end.min(window.end) })
    }
}

/// The step of `size` since 1970 that contains the instant.
fn tumbling(at: Instant, size: TimeDelta) -> Period {
    let size = size.num_microseconds().unwrap_or(i64::MAX); // at most 366 days
    let start = at.timestamp_micros().div_euclid(size).saturating_mul(size);
    let instant = |micros: i64| DateTime::from_timestamp_micros(micros).unwrap_or(FAR_FUTURE);
    Period { start: instant(start), end: instant(start.saturating_add(size)) }
}

/// The calendar unit that contains the instant. Hours follow the clock on the wall, so that the hour that a clock change
/// repeats is two; days, weeks and months run from local midnight to local midnight, however long that is.
fn calendar(at: Instant, unit: WindowUnit, timezone: Tz) -> Period {
    let local = at.with_timezone(&timezone);
    if unit == WindowUnit::Hour {
        let into = TimeDelta::seconds((local.minute() * 60 + local.second()).into())
            + TimeDelta::microseconds((local.nanosecond() / 1_000).into());
        let start = at - into;
        return Period { start, end: start + TimeDelta::hours(1) };
    }
    let date = local.date_naive();
    let (first, next) = match unit {
        WindowUnit::Hour | WindowUnit::Day => (Some(date), date.checked_add_days(Days::new(1))),
        WindowUnit::Week => {
            let monday = date.checked_sub_days(Days::new(date.weekday().num_days_from_monday().into()));
            (monday, monday.and_then(|monday| monday.checked_add_days(Days::new(7))))
        }
        WindowUnit::Month => {
            let first = date.with_day(1);
            (first, first.and_then(|first| first.checked_add_months(chrono::Months::new(1))))
        }
    };
    let instant = |date: Option<NaiveDate>| date.map_or(FAR_FUTURE, |date| midnight(date, timezone));
    Period { start: instant(first), end: instant(next) }
}

/// A duration in Go syntax: whole numbers with the units `h`, `m`, `s`, `ms`, `us`, one after the other.
#[must_use]
pub fn parse_duration(text: &str) -> Option<TimeDelta> {
    let mut rest = text;
    let mut total: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let micros: i64 = match unit {
            "h" => 3_600_000_000,
            "m" => 60_000_000,
            "s" => 1_000_000,
            "ms" => 1_000,
            "us" => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(micros)?)?;
        rest = after;
    }
    Some(TimeDelta::microseconds(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Instant {
        DateTime::parse_from_rfc3339(text).expect("a timestamp").to_utc()
    }

    fn year() -> Period {
        Period { start: at("2026-01-01T00:00:00Z"), end: at("2027-01-01T00:00:00Z") }
    }

    #[test]
    fn durations_are_read_in_go_syntax() {
        for (text, seconds) in [("15m", 900), ("1h", 3_600), ("1h30m", 5_400), ("24h", 86_400), ("90s", 90)] {
            assert_eq!(parse_duration(text), Some(TimeDelta::seconds(seconds)), "{text}");
        }
        for wrong in ["", "h", "1", "1d", "-1h", "1.5h", "1h 30m", "99999999999999999999h"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bad_windows_say_which_member() {
        for (kind, size, unit, field) in [
            (WindowKind::Tumbling, None, None, "window.size"),
            (WindowKind::Tumbling, Some("10s"), None, "window.size"),
            (WindowKind::Sliding, Some("9000h"), None, "window.size"),
            (WindowKind::Calendar, None, None, "window.unit"),
        ] {
            let errors = Span::new(kind, size, unit, None).expect_err("a bad window");
            assert_eq!(errors[0].field, field);
        }
    }

    /// Berlin moves its clocks on 2026-03-29 at 01:00Z and on 2026-10-25 at 01:00Z.
    #[test]
    fn calendar_days_follow_the_clocks_of_their_zone() {
        let span = |unit| Span::Calendar { unit, timezone: Some(chrono_tz::Europe::Berlin) };
        for (unit, instant, start, end) in [
            (WindowUnit::Day, "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"), // 23 hours
            (WindowUnit::Day, "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"), // 25 hours
            (WindowUnit::Hour, "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"), // 02:30 summer
            (WindowUnit::Hour, "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"), // 02:30 winter
            (WindowUnit::Week, "2026-03-29T12:00:00Z", "2026-03-22T23:00:00Z", "2026-03-29T22:00:00Z"),
            (WindowUnit::Month, "2026-03-31T22:30:00Z", "2026-03-31T22:00:00Z", "2026-04-30T22:00:00Z"),
        ] {
            let part = span(unit).part(at(instant), year(), Tz::UTC);
            assert_eq!(part, Some(Period { start: at(start), end: at(end) }), "{unit} of {instant}");
        }
    }

    #[test]
    fn sub_windows_are_clipped_to_the_billing_period_and_take_in_late_usage() {
        let window = Period { start: at("2026-05-15T10:30:00Z"), end: at("2026-06-15T10:30:00Z") };
        let day = Span::Calendar { unit: WindowUnit::Day, timezone: None };
        let first = Period { start: window.start, end: at("2026-05-16T00:00:00Z") };
        assert_eq!(day.part(window.start, window, Tz::UTC), Some(first));
        assert_eq!(day.part(at("2026-04-01T00:00:00Z"), window, Tz::UTC), Some(first));
        let last = Period { start: at("2026-06-15T00:00:00Z"), end: window.end };
        assert_eq!(day.part(at("2026-06-15T09:00:00Z"), window, Tz::UTC), Some(last));
        assert_eq!(Span::BillingPeriod.part(window.start, window, Tz::UTC), None);
        let empty = Period { start: window.start, end: window.start };
        for span in [Span::BillingPeriod, day] {
            assert_eq!(
                span.part(window.start, empty, Tz::UTC).map(|part| part.start),
                span.is_cut().then_some(window.start)
            );
        }
    }

    proptest! {
        #[test]
        fn sub_windows_tile_the_period(
            second in 0_i64..31_536_000, zone in 0_usize..chrono_tz::TZ_VARIANTS.len(), which in 0_usize..5,
        ) {
            let timezone = chrono_tz::TZ_VARIANTS[zone];
            let span = [
                Span::Tumbling { size: TimeDelta::minutes(15) },
                Span::Calendar { unit: WindowUnit::Hour, timezone: None },
                Span::Calendar { unit: WindowUnit::Day, timezone: None },
                Span::Calendar { unit: WindowUnit::Week, timezone: None },
                Span::Calendar { unit: WindowUnit::Month, timezone: None },
            ][which];
            let instant = year().start + TimeDelta::seconds(second);
            let part = span.part(instant, year(), timezone).expect("cut");
            prop_assert!(part.contains(instant));
            let same = span.part(part.start, year(), timezone);
            let last = span.part(part.end - TimeDelta::microseconds(1), year(), timezone);
            // Where a zone moves its clocks by less than an hour, one hour on the wall is shorter or longer.
            if which != 1 {
                prop_assert_eq!((same, last), (Some(part), Some(part)));
            }
        }
    }
}
