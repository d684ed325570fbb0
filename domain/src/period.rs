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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Start of the first charged period: `started_at`, or the end of the trial.
    pub first_start: Instant,
    /// Unit of the interval.
    pub unit: BillingIntervalUnit,
    /// Multiplier of the unit, at least 1.
    pub count: u32,
    /// Day of month 1 to 28 on which monthly and yearly periods begin.
    pub anchor_day: u32,
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
    /// Number `index` of the charged periods, from 0.
    ///
    /// The first period is a stub up to the first anchor day after the start when the start day is not the anchor day
    /// (and the start day is not beyond 28 with the anchor at 28, rule 2); full intervals follow.
    #[must_use]
    pub fn period(&self, index: u32) -> Period {
        Period { start: self.boundary(index), end: self.boundary(index + 1) }
    }

    /// The charged period that contains the instant; `None` before the first.
    #[must_use]
    pub fn containing(&self, instant: Instant) -> Option<(u32, Period)> {
        if instant < self.first_start {
            return None;
        }
        let mut index = self.estimate(instant);
        while self.boundary(index) > instant {
            index -= 1; // boundary(0) = first_start <= instant ends this
        }
        while self.boundary(index + 1) <= instant {
            index += 1;
        }
        Some((index, self.period(index)))
    }

    /// The full interval that ends where the first, possibly shorter, period ends: the denominator of its proration.
    #[must_use]
    pub fn full_interval_ending(&self, end: Instant) -> Period {
        let date = end.with_timezone(&self.timezone).date_naive();
        let start = match self.unit {
            BillingIntervalUnit::Monthly => date.checked_sub_months(Months::new(self.count)),
            BillingIntervalUnit::Yearly => date.checked_sub_months(Months::new(12 * self.count)),
            BillingIntervalUnit::Weekly => date.checked_sub_days(Days::new(7 * u64::from(self.count))),
            BillingIntervalUnit::Daily => date.checked_sub_days(Days::new(u64::from(self.count))),
            BillingIntervalUnit::OneTime => None,
        };
        Period { start: start.map_or(self.first_start, |date| self.midnight(date)), end }
    }

    /// The interval whose full price a charged period costs: itself, or, for a first stub, the full interval that ends
    /// with it (rule 3). The share of a period is its seconds over those of this interval.
    #[must_use]
    pub fn whole(&self, period: Period) -> Period {
        if period.start != self.first_start || !self.begins_with_stub() {
            return period;
        }
        self.full_interval_ending(period.end)
    }

    /// Whether the first period runs from another day to the anchor day.
    fn begins_with_stub(&self) -> bool {
        let day = self.first_start.with_timezone(&self.timezone).day();
        // Rule 2 puts a start on the 29th to 31st onto the anchor 28: that is a full first interval, not a stub.
        let full = day == self.anchor_day || (day > 28 && self.anchor_day == 28);
        matches!(self.unit, BillingIntervalUnit::Monthly | BillingIntervalUnit::Yearly) && !full
    }

    fn estimate(&self, instant: Instant) -> u32 {
        let days = (instant - self.first_start).num_days().max(0);
        let length = match self.unit {
            BillingIntervalUnit::Daily => 1,
            BillingIntervalUnit::Weekly => 7,
            BillingIntervalUnit::Monthly => 31,
            BillingIntervalUnit::Yearly => 366,
            BillingIntervalUnit::OneTime => return 0,
        };
        u32::try_from(days / (length * i64::from(self.count))).unwrap_or(u32::MAX / 2)
    }

    /// Start of period `index`.
    fn boundary(&self, index: u32) -> Instant {
        if index == 0 {
            return self.first_start;
        }
        let local = self.first_start.with_timezone(&self.timezone).date_naive();
        let date = match self.unit {
            BillingIntervalUnit::OneTime => return FAR_FUTURE,
            BillingIntervalUnit::Daily => local.checked_add_days(Days::new(u64::from(index) * u64::from(self.count))),
            BillingIntervalUnit::Weekly => {
                local.checked_add_days(Days::new(7 * u64::from(index) * u64::from(self.count)))
            }
            BillingIntervalUnit::Monthly => self.anchored(local, index, self.count),
            BillingIntervalUnit::Yearly => self.anchored(local, index, 12 * self.count),
        };
        date.map_or(FAR_FUTURE, |date| self.midnight(date))
    }

    /// Boundary `index >= 1` of an anchored interval of `months`.
    fn anchored(&self, start: NaiveDate, index: u32, months: u32) -> Option<NaiveDate> {
        let in_start_month = start.with_day(self.anchor_day)?;
        // Rule 2 puts a start on the 29th to 31st onto the anchor 28: that is a full first interval, not a stub.
        let full = start.day() == self.anchor_day || (start.day() > 28 && self.anchor_day == 28);
        if full {
            return in_start_month.checked_add_months(Months::new(months.checked_mul(index)?));
        }
        let first =
            if in_start_month > start { in_start_month } else { in_start_month.checked_add_months(Months::new(1))? };
        first.checked_add_months(Months::new(months.checked_mul(index - 1)?))
    }

    /// Local midnight of a date as an instant; where a clock change removes midnight, the first instant after it.
    fn midnight(&self, date: NaiveDate) -> Instant {
        let local = date.and_time(NaiveTime::MIN);
        match self.timezone.from_local_datetime(&local) {
            LocalResult::Single(instant) | LocalResult::Ambiguous(instant, _) => instant.to_utc(),
            LocalResult::None => (0..4)
                .find_map(|hour| {
                    self.timezone.from_local_datetime(&(local + chrono::TimeDelta::hours(hour))).earliest()
                })
                .map_or_else(|| local.and_utc(), |instant| instant.to_utc()),
        }
    }
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
        Schedule { first_start, unit, count, anchor_day, timezone }
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
            let found: Vec<_> =
                (0..boundaries.len()).map(|i| schedule.boundary(u32::try_from(i).expect("small"))).collect();
            assert_eq!(found, boundaries.iter().map(|b| at(b)).collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn a_stub_is_prorated_against_the_interval_that_ends_with_it() {
        let schedule = schedule("2026-01-20", Monthly, 1, Some(1), Tz::UTC);
        let stub = schedule.period(0);
        let full = schedule.full_interval_ending(stub.end);
        assert_eq!((stub.seconds() / 86_400, full.seconds() / 86_400), (12, 31)); // C2: 31.00 * 12 / 31 = 12.00
    }

    /// C2 and C7b are stubs; C5 is shorter than the interval before it and nevertheless full.
    #[test]
    fn only_a_stub_has_another_interval_as_its_whole() {
        for (start, anchor, days) in
            [("2026-01-20", 1, (12, 31)), ("2026-03-15", 1, (17, 31)), ("2026-01-31", 28, (28, 28))]
        {
            let schedule = schedule(start, Monthly, 1, Some(anchor), Tz::UTC);
            let first = schedule.period(0);
            assert_eq!((first.seconds() / 86_400, schedule.whole(first).seconds() / 86_400), days, "{start}");
            assert_eq!(schedule.whole(schedule.period(1)), schedule.period(1), "{start}");
        }
    }

    proptest! {
        #[test]
        fn periods_tile_time(
            day in 0_i64..20_000, seconds in 0_i64..86_400, unit in 0_usize..4, count in 1_u32..13, anchor in 1_u32..=28,
            later in 0_i64..3_000_000_000, zone in 0_usize..chrono_tz::TZ_VARIANTS.len(),
        ) {
            let first_start = Instant::UNIX_EPOCH + chrono::TimeDelta::seconds(day * 86_400 + seconds);
            let schedule = Schedule {
                first_start, unit: [Daily, Weekly, Monthly, Yearly][unit], count, anchor_day: anchor,
                timezone: chrono_tz::TZ_VARIANTS[zone],
            };
            let instant = first_start + chrono::TimeDelta::seconds(later);
            let (index, period) = schedule.containing(instant).expect("not before the start");
            prop_assert!(period.contains(instant));
            prop_assert_eq!(schedule.period(index + 1).start, period.end);
            prop_assert!(period.start < period.end);
        }
    }
}
