//! Period arithmetic of billing cycles (billing-cycles.md 3.2): pure functions of a subscription's schedule.

use chrono::{Datelike, Days, LocalResult, Months, NaiveDate, NaiveTime, TimeZone};
use chrono_tz::Tz;

use crate::{BillingIntervalUnit, Instant};

/// A half-open span of time `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Period {
    /// First instant.
    pub start: Instant,
    /// First instant after it.
    pub end: Instant,
}

impl Period {
    /// Whether the instant lies in it.
    #[must_use]
    pub fn contains(&self, instant: Instant) -> bool {
        self.start <= instant && instant < self.end
    }

    /// Its length in whole seconds.
    #[must_use]
    pub fn seconds(&self) -> i64 {
        (self.end - self.start).num_seconds()
    }
}

/// What fixes the charged periods of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Start of the first charged period: `started_at`, or the end of the trial.
    pub first_start: Instant,
    /// Unit of the interval.
    pub unit: BillingIntervalUnit,
    /// Multiplier of the unit, at least 1.
    pub count: u32,
    /// Day of month 1 to 28 on which monthly and yearly periods begin.
    pub anchor_day: u32,
    /// Whether the anchor day was asked for: then a start on any other day begins with a stub, also on the 29th to 31st
    /// (rule 3).
    pub is_anchor_explicit: bool,
    /// Instants at which it began anew after a pause, in order: each ends the period that it falls into, and a stub up to
    /// the anchor day follows (3.4 rule 5).
    pub restarts: Vec<Instant>,
    /// Time zone of the organization: boundaries are at its midnight.
    pub timezone: Tz,
}

/// End of time for a `one_time` subscription, whose only period does not end by itself.
pub const FAR_FUTURE: Instant = match chrono::DateTime::from_timestamp(253_402_214_400, 0) {
    Some(instant) => instant, // 9999-12-31T00:00:00Z
    None => unreachable!(),
};

/// Default anchor: the day on which the first charged period starts, at most 28 (rule 2).
#[must_use]
pub fn default_anchor_day(first_start: Instant, timezone: Tz) -> u32 {
    first_start.with_timezone(&timezone).day().min(28)
}

impl Schedule {
    /// The charged period that contains the instant; `None` before the first.
    #[must_use]
    pub fn containing(&self, instant: Instant) -> Option<Period> {
        self.stretch(instant).map(|stretch| stretch.containing(instant))
    }

    /// The charged periods from the first, without end unless it is a `one_time` subscription's.
    pub fn periods(&self) -> impl Iterator<Item = Period> {
        let next = |period: &Period| (period.end < FAR_FUTURE).then(|| self.containing(period.end)).flatten();
        std::iter::successors(self.containing(self.first_start), next)
    }

    /// The interval whose full price a charged period costs: itself, or, for a stub, the full interval that ends with it
    /// (rule 3). The share of a period is its seconds over those of this interval.
    #[must_use]
    pub fn whole(&self, period: Period) -> Period {
        match self.stretch(period.start) {
            Some(stretch) if stretch.start == period.start && stretch.begins_with_stub() => {
                stretch.full_interval_ending(period.end)
            }
            _ => period,
        }
    }

    fn stretch(&self, instant: Instant) -> Option<Stretch<'_>> {
        if instant < self.first_start {
            return None;
        }
        let passed = self.restarts.partition_point(|restart| *restart <= instant);
        let last = passed.checked_sub(1).and_then(|last| self.restarts.get(last));
        Some(Stretch {
            schedule: self,
            start: last.copied().unwrap_or(self.first_start),
            end: self.restarts.get(passed).copied(),
            is_anchored: last.is_some() || self.is_anchor_explicit,
        })
    }
}

/// The part of a schedule between two restarts.
struct Stretch<'a> {
    schedule: &'a Schedule,
    start: Instant,
    /// The restart that ends it.
    end: Option<Instant>,
    /// Whether it runs to the anchor day from any other day.
    is_anchored: bool,
}

impl Stretch<'_> {
    fn containing(&self, instant: Instant) -> Period {
        let mut index = self.estimate(instant);
        while self.boundary(index) > instant {
            index -= 1; // boundary(0) = start <= instant ends this
        }
        while self.boundary(index + 1) <= instant {
            index += 1;
        }
        let scheduled = self.boundary(index + 1);
        Period { start: self.boundary(index), end: self.end.map_or(scheduled, |end| end.min(scheduled)) }
    }

    /// The full interval that ends where the first, shorter period ends: the denominator of its proration.
    fn full_interval_ending(&self, end: Instant) -> Period {
        let Schedule { unit, count, timezone, .. } = *self.schedule;
        let date = end.with_timezone(&timezone).date_naive();
        let start = match unit {
            BillingIntervalUnit::Monthly => date.checked_sub_months(Months::new(count)),
            BillingIntervalUnit::Yearly => date.checked_sub_months(Months::new(12 * count)),
            BillingIntervalUnit::Weekly => date.checked_sub_days(Days::new(7 * u64::from(count))),
            BillingIntervalUnit::Daily => date.checked_sub_days(Days::new(u64::from(count))),
            BillingIntervalUnit::OneTime => None,
        };
        Period { start: start.map_or(self.start, |date| midnight(date, timezone)), end }
    }

    /// Whether the first period runs from another day to the anchor day.
    fn begins_with_stub(&self) -> bool {
        let start = self.start.with_timezone(&self.schedule.timezone).date_naive();
        matches!(self.schedule.unit, BillingIntervalUnit::Monthly | BillingIntervalUnit::Yearly)
            && !self.begins_with_full_interval(start)
    }

    /// The default anchor of a start on the 29th to 31st is 28 (rule 2): that is a full first interval. When 28 was asked
    /// for, it is another day than the start's, and the first period a stub (rule 3).
    fn begins_with_full_interval(&self, start: NaiveDate) -> bool {
        let anchor = self.schedule.anchor_day;
        start.day() == anchor || (start.day() > 28 && anchor == 28 && !self.is_anchored)
    }

    fn estimate(&self, instant: Instant) -> u32 {
        let days = (instant - self.start).num_days().max(0);
        let length = match self.schedule.unit {
            BillingIntervalUnit::Daily => 1,
            BillingIntervalUnit::Weekly => 7,
            BillingIntervalUnit::Monthly => 31,
            BillingIntervalUnit::Yearly => 366,
            BillingIntervalUnit::OneTime => return 0,
        };
        u32::try_from(days / (length * i64::from(self.schedule.count))).unwrap_or(u32::MAX / 2)
    }

    /// Start of its period `index`.
    fn boundary(&self, index: u32) -> Instant {
        if index == 0 {
            return self.start;
        }
        let Schedule { unit, count, timezone, .. } = *self.schedule;
        let local = self.start.with_timezone(&timezone).date_naive();
        let date = match unit {
            BillingIntervalUnit::OneTime => return FAR_FUTURE,
            BillingIntervalUnit::Daily => local.checked_add_days(Days::new(u64::from(index) * u64::from(count))),
            BillingIntervalUnit::Weekly => local.checked_add_days(Days::new(7 * u64::from(index) * u64::from(count))),
            BillingIntervalUnit::Monthly => self.anchored(local, index, count),
            BillingIntervalUnit::Yearly => self.anchored(local, index, 12 * count),
        };
        date.map_or(FAR_FUTURE, |date| midnight(date, timezone))
    }

    /// Boundary `index >= 1` of an anchored interval of `months`.
    fn anchored(&self, start: NaiveDate, index: u32, months: u32) -> Option<NaiveDate> {
        let in_start_month = start.with_day(self.schedule.anchor_day)?;
        if self.begins_with_full_interval(start) {
            return in_start_month.checked_add_months(Months::new(months.checked_mul(index)?));
        }
        let first =
            if in_start_month > start { in_start_month } else { in_start_month.checked_add_months(Months::new(1))? };
        first.checked_add_months(Months::new(months.checked_mul(index - 1)?))
    }
}

/// Local midnight of a date as an instant; where a clock change removes midnight, the first instant after it.
#[must_use]
pub fn midnight(date: NaiveDate, timezone: Tz) -> Instant {
    let local = date.and_time(NaiveTime::MIN);
    match timezone.from_local_datetime(&local) {
        LocalResult::Single(instant) | LocalResult::Ambiguous(instant, _) => instant.to_utc(),
        LocalResult::None => (0..4)
            .find_map(|hour| timezone.from_local_datetime(&(local + chrono::TimeDelta::hours(hour))).earliest())
            .map_or_else(|| local.and_utc(), |instant| instant.to_utc()),
    }
}

/// The same time of day on the same day of the month, `months` later in a time zone; the last day of a shorter month. Where a
/// clock change removes that time, the first hour after it.
#[must_use]
pub fn plus_months(instant: Instant, months: u32, timezone: Tz) -> Instant {
    let local = instant.with_timezone(&timezone).naive_local();
    let Some(local) = local.checked_add_months(Months::new(months)) else { return FAR_FUTURE };
    let at = |hours| timezone.from_local_datetime(&(local + chrono::TimeDelta::hours(hours))).earliest();
    (0..4).find_map(at).map_or_else(|| local.and_utc(), |instant| instant.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BillingIntervalUnit::{Daily, Monthly, Weekly, Yearly};
    use proptest::prelude::*;

    fn at(text: &str) -> Instant {
        let text = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
        chrono::DateTime::parse_from_rfc3339(&text).expect("a timestamp").to_utc()
    }

    fn schedule(start: &str, unit: BillingIntervalUnit, count: u32, anchor: Option<u32>, timezone: Tz) -> Schedule {
        let first_start = at(start);
        let anchor_day = anchor.unwrap_or_else(|| default_anchor_day(first_start, timezone));
        let is_anchor_explicit = anchor.is_some();
        Schedule { first_start, unit, count, anchor_day, is_anchor_explicit, restarts: Vec::new(), timezone }
    }

    /// Vectors C1 to C5, C7, C7b, C9 of billing-cycles.md 3.5.
    #[test]
    fn boundaries_follow_the_vectors() {
        let berlin = chrono_tz::Europe::Berlin;
        for (name, schedule, boundaries) in [
            (
                "C1",
                schedule("2026-01-15", Monthly, 1, Some(15), Tz::UTC),
                vec!["2026-01-15", "2026-02-15", "2026-03-15"],
            ),
            (
                "C2",
                schedule("2026-01-20", Monthly, 1, Some(1), Tz::UTC),
                vec!["2026-01-20", "2026-02-01", "2026-03-01"],
            ),
            (
                "C3",
                schedule("2026-01-01", Monthly, 3, Some(1), Tz::UTC),
                vec!["2026-01-01", "2026-04-01", "2026-07-01", "2026-10-01", "2027-01-01"],
            ),
            ("C4", schedule("2028-02-29", Yearly, 1, None, Tz::UTC), vec!["2028-02-29", "2029-02-28", "2030-02-28"]),
            ("C5", schedule("2026-01-31", Monthly, 1, None, Tz::UTC), vec!["2026-01-31", "2026-02-28", "2026-03-28"]),
            ("C7", schedule("2026-03-15", Monthly, 1, None, Tz::UTC), vec!["2026-03-15", "2026-04-15"]),
            (
                "C7b",
                schedule("2026-03-15", Monthly, 1, Some(1), Tz::UTC),
                vec!["2026-03-15", "2026-04-01", "2026-05-01"],
            ),
            (
                "C9",
                schedule("2026-02-28T23:00:00Z", Monthly, 1, Some(1), berlin),
                vec!["2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z", "2026-04-30T22:00:00Z"],
            ),
            (
                "weekly",
                schedule("2026-01-31", Weekly, 2, None, Tz::UTC),
                vec!["2026-01-31", "2026-02-14", "2026-02-28"],
            ),
            ("daily", schedule("2026-02-28", Daily, 1, None, Tz::UTC), vec!["2026-02-28", "2026-03-01"]),
        ] {
            let found: Vec<_> = schedule.periods().take(boundaries.len()).map(|period| period.start).collect();
            assert_eq!(found, boundaries.iter().map(|b| at(b)).collect::<Vec<_>>(), "{name}");
        }
    }

    /// C2 and C7b are stubs, and so is a start on the 31st when anchor 28 was asked for (rule 3); C5 is shorter than the
    /// interval before it and nevertheless full.
    #[test]
    fn only_a_stub_has_another_interval_as_its_whole() {
        for (start, anchor, days) in [
            ("2026-01-20", Some(1), (12, 31)), // C2: 31.00 * 12 / 31 = 12.00
            ("2026-03-15", Some(1), (17, 31)),
            ("2026-01-31", None, (28, 28)),
            ("2026-01-31", Some(28), (28, 31)),
        ] {
            let schedule = schedule(start, Monthly, 1, anchor, Tz::UTC);
            let periods: Vec<_> = schedule.periods().take(2).collect();
            let whole = schedule.whole(periods[0]);
            assert_eq!((periods[0].seconds() / 86_400, whole.seconds() / 86_400), days, "{start} {anchor:?}");
            assert_eq!(schedule.whole(periods[1]), periods[1], "{start}");
        }
    }

    /// A restart cuts the period that it falls into and begins with a stub; what was before it stays as it was.
    #[test]
    fn a_restart_leaves_earlier_periods_as_they_were() {
        let mut schedule = schedule("2026-01-30", Monthly, 1, None, Tz::UTC);
        schedule.restarts = vec![at("2026-04-30"), at("2026-06-10")];
        let starts: Vec<_> = schedule.periods().take(7).map(|period| period.start).collect();
        let expected =
            ["2026-01-30", "2026-02-28", "2026-03-28", "2026-04-28", "2026-04-30", "2026-05-28", "2026-06-10"];
        assert_eq!(starts, expected.map(at));
        let stub = schedule.containing(at("2026-04-30")).expect("after the start");
        assert_eq!((stub.seconds() / 86_400, schedule.whole(stub).seconds() / 86_400), (28, 30));
        let before = schedule.containing(at("2026-04-29")).expect("after the start");
        assert_eq!((before.end, schedule.containing(at("2026-01-29"))), (at("2026-04-30"), None));
    }

    proptest! {
        #[test]
        fn periods_tile_time(
            day in 0_i64..20_000, seconds in 0_i64..86_400, unit in 0_usize..4, count in 1_u32..13, anchor in 1_u32..=28,
            later in 0_i64..3_000_000_000, zone in 0_usize..chrono_tz::TZ_VARIANTS.len(), is_anchor_explicit: bool,
            restart in 0_i64..3_000_000_000,
        ) {
            let first_start = Instant::UNIX_EPOCH + chrono::TimeDelta::seconds(day * 86_400 + seconds);
            let schedule = Schedule {
                first_start, unit: [Daily, Weekly, Monthly, Yearly][unit], count, anchor_day: anchor, is_anchor_explicit,
                restarts: vec![first_start + chrono::TimeDelta::seconds(restart)],
                timezone: chrono_tz::TZ_VARIANTS[zone],
            };
            let instant = first_start + chrono::TimeDelta::seconds(later);
            let period = schedule.containing(instant).expect("not before the start");
            prop_assert!(period.contains(instant));
            prop_assert_eq!(schedule.containing(period.end).map(|next| next.start), Some(period.end));
            prop_assert_eq!(schedule.containing(period.start), Some(period));
            prop_assert!(period.start < period.end);
        }
    }
}
