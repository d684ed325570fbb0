//! Fetches the reference rates of the European Central Bank, once they are published: about 16:00 in Frankfurt, on working
//! days. Which documents there are: [`currency::feed`].
//!
//! When to ask next stands in `fx_feed`; any scheduler claims it. The usual document is that of the day, asked for only if
//! it has changed. Where more than a day is missing (the first start, or a week offline) it is that of the last ninety days.
//! What was fetched stays in the database: without a connection the rates go on as they are, and the log says how old.

use std::time::Duration;

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, TimeDelta, Weekday};
use chrono_tz::Europe::Berlin;
use currency::{feed, snapshot};
use domain::{Clock, Instant, Result};
use sqlx::FromRow;
use store::{Store, StoreError};
use tokio::sync::watch;
use ureq::Agent;

/// Who publishes them.
const SOURCE: &str = "ECB";
/// The rates of one day.
const DAILY: &str = "eurofxref-daily.xml";
/// The rates of the last ninety days.
const NINETY_DAYS: &str = "eurofxref-hist-90d.xml";
/// Largest document: the usual ones have 2 and 150 KB.
const BYTES_MAX: u64 = 4 << 20;
/// Time between two looks whether it is time to ask.
const LOOK: Duration = Duration::from_secs(30);
/// A claim that nobody came back from is free again.
const CLAIM: TimeDelta = TimeDelta::minutes(5);
/// Time between two questions while the day's rates are awaited.
const AWAITING: TimeDelta = TimeDelta::minutes(15);
/// When rates are published in Frankfurt, with some minutes to spare, and when nobody waits for them any more.
const PUBLISHED: (u32, u32) = (16, 5);
const GIVEN_UP: (u32, u32) = (19, 0);

/// Where rates are fetched from, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RatesOptions {
    /// Directory of the documents, e.g. `https://www.ecb.europa.eu/stats/eurofxref`.
    pub url: String,
    /// Longest time for a connection.
    pub connect_timeout: Duration,
    /// Longest time for a whole document.
    pub timeout: Duration,
}

impl RatesOptions {
    /// The usual patience.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), connect_timeout: Duration::from_secs(10), timeout: Duration::from_secs(30) }
    }
}

/// What a look led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is not time, or somebody else asks.
    NotDue,
    /// The document is the one that was taken before.
    Unchanged,
    /// Rates were taken, so many of them new.
    Taken(u64),
    /// Nothing was taken, and why.
    Failed(String),
}

/// The feed of exchange rates.
#[derive(Clone, Debug)]
pub struct RatesFeed {
    store: Store,
    agent: Agent,
    url: String,
}

/// What a claim knows.
#[derive(FromRow)]
struct Claimed {
    etag: Option<String>,
    last_modified: Option<String>,
    failures: i32,
}

/// A document, or that it is the one that was taken before.
enum Fetched {
    Unchanged,
    Document { text: String, etag: Option<String>, last_modified: Option<String> },
}

impl RatesFeed {
    /// A feed with a client of its own.
    #[must_use]
    pub fn new(store: Store, options: &RatesOptions) -> Self {
        let agent = Agent::config_builder()
            .user_agent(concat!("kontorion/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_global(Some(options.timeout))
            .http_status_as_error(false)
            .build()
            .new_agent();
        Self { store, agent, url: options.url.trim_end_matches('/').to_owned() }
    }

    /// Looks again and again until `shutdown` turns true.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        match self.age(Clock::System.now()).await {
            Ok(age) => tracing::info!("exchange rates: {age}"),
            Err(error) => tracing::warn!(error = %error, "exchange rates cannot be looked for"),
        }
        while !*shutdown.borrow() {
            if let Err(error) = self.look_and_tell(Clock::System.now()).await {
                tracing::warn!(error = %error, "the next look for exchange rates makes it good");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                changed = shutdown.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn look_and_tell(&self, now: Instant) -> Result<()> {
        match self.look(now).await? {
            Look::NotDue | Look::Unchanged => {}
            Look::Taken(rates_new) => tracing::info!(rates_new, "took exchange rates: {}", self.age(now).await?),
            Look::Failed(why) => {
                tracing::warn!("exchange rates could not be fetched ({why}): {}", self.age(now).await?)
            }
        }
        Ok(())
    }

    /// How old the newest rates are, for people.
    ///
    /// # Errors
    /// As every statement.
    pub async fn age(&self, now: Instant) -> Result<String> {
        let mut conn = self.store.pool().acquire().await.context("looking for exchange rates")?;
        Ok(match snapshot::latest(&mut conn).await? {
            None => "none are known yet".to_owned(),
            Some(day) => match (now.date_naive() - day).num_days() {
                ..=0 => format!("the newest are of {day}"),
                days => format!("the newest are of {day}, {days} day(s) old"),
            },
        })
    }

    /// Asks if it is time. What the feed has to say against it is in the answer and in `fx_feed`.
    ///
    /// # Errors
    /// As every statement.
    pub async fn look(&self, now: Instant) -> Result<Look> {
        let Some(claimed) = self.claim(now).await? else { return Ok(Look::NotDue) };
        let latest = {
            let mut conn = self.store.pool().acquire().await.context("looking for exchange rates")?;
            snapshot::latest(&mut conn).await?
        };
        let local = now.with_timezone(&Berlin).date_naive();
        let is_behind = latest.is_none_or(|latest| latest < working_day_before(local));
        let document = if is_behind { NINETY_DAYS } else { DAILY };
        let fetched = self.fetch(document, (!is_behind).then_some(&claimed)).await;
        let read = fetched.and_then(|fetched| match fetched {
            Fetched::Unchanged => Ok(None),
            Fetched::Document { text, etag, last_modified } => {
                let days = feed::read(&text, now.date_naive()).map_err(|error| format!("{document}: {error}"))?;
                Ok(Some((days, if is_behind { (None, None) } else { (etag, last_modified) })))
            }
        });
        match read {
            Ok(Some((days, validators))) => self.take(now, &days, validators).await.map(Look::Taken),
            Ok(None) => {
                self.unchanged(now, latest).await?;
                Ok(Look::Unchanged)
            }
            Err(why) => {
                self.failed(now, claimed.failures, &why).await?;
                Ok(Look::Failed(why))
            }
        }
    }

    async fn claim(&self, now: Instant) -> Result<Option<Claimed>> {
        sqlx::query_as(
            "UPDATE fx_feed SET next_at = $3, asked_at = $2 WHERE source = (
                 SELECT source FROM fx_feed WHERE source = $1 AND next_at <= $2 FOR UPDATE SKIP LOCKED)
             RETURNING etag, last_modified, failures",
        )
        .bind(SOURCE)
        .bind(now)
        .bind(now + CLAIM)
        .fetch_optional(self.store.pool())
        .await
        .context("claiming the feed of exchange rates")
    }

    /// A document, unless it is still the one that is known. Errors are for people.
    async fn fetch(&self, document: &str, known: Option<&Claimed>) -> std::result::Result<Fetched, String> {
        let url = format!("{}/{document}", self.url);
        let mut request = self.agent.get(&url);
        if let Some(etag) = known.and_then(|known| known.etag.as_ref()) {
            request = request.header("If-None-Match", etag);
        }
        if let Some(last_modified) = known.and_then(|known| known.last_modified.as_ref()) {
            request = request.header("If-Modified-Since", last_modified);
        }
        // Once a day, for a moment: a thread of its own is simpler than another asynchronous client.
        let fetched = tokio::task::spawn_blocking(move || call(request)).await;
        fetched.map_err(|error| error.to_string())?.map_err(|why| format!("{url}: {why}"))
    }

    /// Rates and what the document is known by, in one transaction.
    async fn take(
        &self,
        now: Instant,
        days: &[feed::Day],
        (etag, last_modified): (Option<String>, Option<String>),
    ) -> Result<u64> {
        let mut tx = self.store.begin("taking exchange rates").await?;
        let kept = snapshot::keep(tx.conn(), SOURCE, days, now).await?;
        let next_at = next_look(now, snapshot::latest(tx.conn()).await?);
        sqlx::query(
            "UPDATE fx_feed SET next_at = $2, etag = $3, last_modified = $4, failures = 0, last_error = NULL, taken_at = $5
             WHERE source = $1",
        )
        .bind(SOURCE)
        .bind(next_at)
        .bind(etag)
        .bind(last_modified)
        .bind(now)
        .execute(tx.conn())
        .await
        .context("noting the exchange rates that were taken")?;
        tx.commit().await?;
        Ok(kept)
    }

    async fn unchanged(&self, now: Instant, latest: Option<NaiveDate>) -> Result<()> {
        sqlx::query("UPDATE fx_feed SET next_at = $2, failures = 0, last_error = NULL WHERE source = $1")
            .bind(SOURCE)
            .bind(next_look(now, latest))
            .execute(self.store.pool())
            .await
            .context("noting that exchange rates have not changed")?;
        Ok(())
    }

    /// Asks again after 1, 2, 4 … minutes, at most an hour.
    async fn failed(&self, now: Instant, failures: i32, why: &str) -> Result<()> {
        let minutes = 1_i64.checked_shl(failures.clamp(0, 30).unsigned_abs()).unwrap_or(60).min(60);
        sqlx::query("UPDATE fx_feed SET next_at = $2, failures = failures + 1, last_error = $3 WHERE source = $1")
            .bind(SOURCE)
            .bind(now + TimeDelta::minutes(minutes))
            .bind(why)
            .execute(self.store.pool())
            .await
            .context("noting that exchange rates could not be fetched")?;
        Ok(())
    }
}

fn call(request: ureq::RequestBuilder<ureq::typestate::WithoutBody>) -> std::result::Result<Fetched, String> {
    let mut response = request.call().map_err(|error| error.to_string())?;
    match response.status().as_u16() {
        304 => return Ok(Fetched::Unchanged),
        200 => {}
        status => return Err(format!("status {status}")),
    }
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (etag, last_modified) = (header("etag"), header("last-modified"));
    let text = response.body_mut().with_config().limit(BYTES_MAX).read_to_string();
    Ok(Fetched::Document { text: text.map_err(|error| error.to_string())?, etag, last_modified })
}

fn is_working_day(day: NaiveDate) -> bool {
    !matches!(day.weekday(), Weekday::Sat | Weekday::Sun)
}

fn working_day_before(day: NaiveDate) -> NaiveDate {
    let days = std::iter::successors(day.pred_opt(), NaiveDate::pred_opt);
    days.into_iter().find(|day| is_working_day(*day)).unwrap_or(day)
}

/// When to ask next: after the next publication; again soon while the rates of today are awaited. Holidays without rates
/// pass like that, too.
fn next_look(now: Instant, latest: Option<NaiveDate>) -> Instant {
    let local = now.with_timezone(&Berlin);
    let today = local.date_naive();
    let at = |day: NaiveDate, (hour, minute): (u32, u32)| -> Option<DateTime<_>> {
        day.and_time(NaiveTime::from_hms_opt(hour, minute, 0)?).and_local_timezone(Berlin).earliest()
    };
    let awaited = is_working_day(today) && latest.is_none_or(|latest| latest < today);
    if awaited {
        if let Some(published) = at(today, PUBLISHED).filter(|published| local < *published) {
            return published.to_utc();
        }
        if at(today, GIVEN_UP).is_some_and(|given_up| local < given_up) {
            return now + AWAITING;
        }
    }
    let mut days = (1..=7).filter_map(|days| today.checked_add_days(Days::new(days)));
    let next = days.find(|day| is_working_day(*day)).and_then(|day| at(day, PUBLISHED));
    next.map_or(now + TimeDelta::days(1), |next| next.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_follows_the_publication() {
        let at = |text: &str| text.parse::<Instant>().expect("an instant");
        for (now, latest, next) in [
            // Friday in winter: before, while awaited, taken, given up.
            ("2026-02-27T09:00:00Z", Some("2026-02-26"), "2026-02-27T15:05:00Z"),
            ("2026-02-27T15:05:00Z", Some("2026-02-26"), "2026-02-27T15:20:00Z"),
            ("2026-02-27T15:05:00Z", Some("2026-02-27"), "2026-03-02T15:05:00Z"),
            ("2026-02-27T18:00:00Z", Some("2026-02-26"), "2026-03-02T15:05:00Z"),
            ("2026-02-28T12:00:00Z", Some("2026-02-26"), "2026-03-02T15:05:00Z"),
            ("2026-02-28T12:00:00Z", None, "2026-03-02T15:05:00Z"),
            // Summer time: 16:05 in Frankfurt is 14:05 in UTC.
            ("2026-06-30T09:00:00Z", Some("2026-06-29"), "2026-06-30T14:05:00Z"),
            ("2026-06-30T14:10:00Z", Some("2026-06-30"), "2026-07-01T14:05:00Z"),
        ] {
            let latest = latest.map(|day| day.parse().expect("a day"));
            assert_eq!(next_look(at(now), latest), at(next), "{now} {latest:?}");
        }
    }

    #[test]
    fn the_working_day_before_skips_the_weekend() {
        for (day, before) in [("2026-03-02", "2026-02-27"), ("2026-03-01", "2026-02-27"), ("2026-03-04", "2026-03-03")]
        {
            assert_eq!(working_day_before(day.parse().expect("a day")), before.parse().expect("a day"), "{day}");
        }
    }
}
