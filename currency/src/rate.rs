//! What one currency is worth in another: one function for every conversion (fx.md 4).
//!
//! For a pair and an instant, the first of these that there is:
//!
//! | kind | rate |
//! |---|---|
//! | `IDENTITY` | 1, within one currency |
//! | `OVERRIDE` | what the workspace has set: the latest `valid_from`, then the latest made |
//! | `SNAPSHOT` | what was published for that day or one of the seven before it |
//! | `INVERSE` | 1 ÷ the override or snapshot of the pair the other way round |
//! | `CROSS` | over the euro: each half by the rules above |
//!
//! Inverses and crosses have 10 decimal places, half up. A cross is rounded once and not for each half, so that small
//! currencies keep their digits. Every rate comes with the id to pin where there is one row behind it.

use chrono::{DateTime, NaiveDate, Utc};
use domain::wide::{U256, div_half_up, power_of_ten};
use domain::{Currency, Error, Instant, Money, Result, RoundingMode, WorkspaceId};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection};
use store::StoreError;
use utoipa::ToSchema;
use uuid::Uuid;

domain::wire_enum! {
    /// Where a rate comes from.
    pub enum FxRateKind {
        /// Set by the workspace.
        Override = "OVERRIDE",
        /// Published.
        Snapshot = "SNAPSHOT",
        /// The other way round.
        Inverse = "INVERSE",
        /// Over the euro.
        Cross = "CROSS",
        /// One currency.
        Identity = "IDENTITY",
    }
}

/// Two currencies in the order of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// What is converted.
    pub source: Currency,
    /// Into what.
    pub target: Currency,
}

/// A rate that is in effect at an instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FxRate {
    /// What is converted.
    #[schema(value_type = String)]
    pub source_currency: Currency,
    /// Into what.
    #[schema(value_type = String)]
    pub target_currency: Currency,
    /// Units of the target for one of the source.
    #[schema(value_type = String)]
    pub rate: Decimal,
    /// Where it comes from.
    pub kind: FxRateKind,
    /// Override or snapshot behind it; null where there is none or more than one.
    #[schema(required)]
    pub id: Option<Uuid>,
    /// Day of the snapshot behind it, of two the earlier.
    #[schema(required)]
    pub snapshot_date: Option<NaiveDate>,
    /// The instant at which it is in effect.
    pub as_of: DateTime<Utc>,
    /// How amounts in the target are rounded.
    #[serde(skip, default = "half_up")]
    #[schema(ignore)]
    pub rounding: RoundingMode,
}

fn half_up() -> RoundingMode {
    RoundingMode::HalfUp
}

impl FxRate {
    /// A rate that the caller names for one conversion: an override without a row.
    ///
    /// # Errors
    /// As every statement.
    pub async fn given(
        conn: &mut PgConnection,
        workspace: WorkspaceId,
        (pair, at): (Pair, Instant),
        rate: Decimal,
    ) -> Result<Self> {
        let modes = crate::allowlist::rounding_modes(conn, workspace, &[pair.target]).await?;
        Ok(Self {
            source_currency: pair.source,
            target_currency: pair.target,
            rate,
            kind: FxRateKind::Override,
            id: None,
            snapshot_date: None,
            as_of: at,
            rounding: modes.get(&pair.target).copied().unwrap_or(RoundingMode::HalfUp),
        })
    }

    /// The amount in the target currency, from the exact product, rounded once.
    ///
    /// # Errors
    /// `CURRENCY_MISMATCH` for an amount that is not in the source currency; a rule beyond 20 integer digits.
    pub fn convert(&self, amount: Money) -> Result<Money> {
        Money::zero(self.source_currency).add(amount)?;
        if self.kind == FxRateKind::Identity {
            return Ok(amount);
        }
        Ok(amount.convert(self.rate, self.target_currency, self.rounding)?)
    }
}

/// Decimal places of rates that are computed.
const PLACES: u32 = 10;

/// An override or snapshot of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRow)]
struct Quote {
    id: Uuid,
    rate: Decimal,
    is_override: bool,
    snapshot_date: Option<NaiveDate>,
}

/// One half of a conversion: as it was quoted, or the other way round.
#[derive(Clone, Copy, Debug)]
enum Leg {
    There(Quote),
    Back(Quote),
}

impl Leg {
    fn of(there: Option<Quote>, back: Option<Quote>) -> Option<Self> {
        there.map(Self::There).or(back.map(Self::Back))
    }

    fn quote(self) -> Quote {
        match self {
            Self::There(quote) | Self::Back(quote) => quote,
        }
    }
}

/// The product of the legs at [`PLACES`] decimal places, half up. None when it is zero or out of range.
fn product(legs: &[Leg]) -> Option<Decimal> {
    let (mut numerator, mut divisor, mut exponent) = (1_u128, 1_u128, i64::from(PLACES));
    for leg in legs {
        let rate = leg.quote().rate.normalize();
        let side = match leg {
            Leg::There(_) => {
                exponent -= i64::from(rate.scale());
                &mut numerator
            }
            Leg::Back(_) => {
                exponent += i64::from(rate.scale());
                &mut divisor
            }
        };
        // Rates have at most 19 digits: two of them fit.
        *side = side.checked_mul(rate.mantissa().unsigned_abs())?;
    }
    let power = power_of_ten(u32::try_from(exponent.unsigned_abs()).ok()?)?;
    let units = if exponent >= 0 {
        div_half_up(U256::product(numerator, power), divisor)?
    } else {
        div_half_up(U256::product(numerator, 1), divisor.checked_mul(power)?)?
    };
    let rate = Decimal::try_from_i128_with_scale(i128::try_from(units).ok()?, PLACES).ok()?;
    (!rate.is_zero()).then_some(rate)
}

/// What is asked of a pair at an instant, in the order of [`DIRECTIONS`].
type Quotes = [Option<Quote>; 6];

/// The directions from which the rate of a pair can come.
fn directions(pair: Pair) -> [(Currency, Currency); 6] {
    let (source, target, euro) = (pair.source, pair.target, Currency::EUR);
    [(source, target), (target, source), (source, euro), (euro, source), (euro, target), (target, euro)]
}

/// The rules of the table, in its order: everything but the look-up.
fn resolve(pair: Pair, at: Instant, rounding: RoundingMode, quotes: &Quotes) -> Option<FxRate> {
    let rate = |kind, rate, legs: &[Leg]| FxRate {
        source_currency: pair.source,
        target_currency: pair.target,
        rate,
        kind,
        id: if let [leg] = legs { Some(leg.quote().id) } else { None },
        snapshot_date: legs.iter().filter_map(|leg| leg.quote().snapshot_date).min(),
        as_of: at,
        rounding,
    };
    if pair.source == pair.target {
        return Some(rate(FxRateKind::Identity, Decimal::ONE, &[]));
    }
    let [there, back, source_there, source_back, target_there, target_back] = *quotes;
    match Leg::of(there, back) {
        Some(leg @ Leg::There(quote)) => {
            let kind = if quote.is_override { FxRateKind::Override } else { FxRateKind::Snapshot };
            Some(rate(kind, quote.rate, &[leg]))
        }
        Some(leg @ Leg::Back(_)) => Some(rate(FxRateKind::Inverse, product(&[leg])?, &[leg])),
        None => {
            let legs = [Leg::of(source_there, source_back)?, Leg::of(target_there, target_back)?];
            Some(rate(FxRateKind::Cross, product(&legs)?, &legs))
        }
    }
}

/// For each direction of each question the override in effect, else the latest snapshot of the week.
const QUOTES: &str = "
SELECT asked.question, asked.direction, quote.* FROM unnest($2::int[], $3::int[], $4::text[], $5::text[], $6::timestamptz[])
    AS asked (question, direction, source, target, at)
CROSS JOIN LATERAL (
    (SELECT id, rate, true AS is_override, snapshot_date FROM fx_override
     WHERE workspace_id = $1 AND source_currency = asked.source AND target_currency = asked.target AND deleted_at IS NULL
       AND active @> asked.at
     ORDER BY valid_from DESC, created_at DESC, id DESC LIMIT 1)
    UNION ALL
    (SELECT id, rate, false, snapshot_date FROM fx_snapshot
     WHERE source_currency = asked.source AND target_currency = asked.target
       AND snapshot_date BETWEEN (asked.at AT TIME ZONE 'UTC')::date - 7 AND (asked.at AT TIME ZONE 'UTC')::date
     ORDER BY snapshot_date DESC LIMIT 1)
    ORDER BY is_override DESC LIMIT 1) AS quote";

#[derive(FromRow)]
struct Found {
    question: i32,
    direction: i32,
    #[sqlx(flatten)]
    quote: Quote,
}

/// The rates of many pairs, each at its instant, in two statements; none for a pair of which no rate is known.
///
/// # Errors
/// As every statement.
pub async fn rates(
    conn: &mut PgConnection,
    workspace: WorkspaceId,
    asked: &[(Pair, Instant)],
) -> Result<Vec<Option<FxRate>>> {
    let mut quotes: Vec<Quotes> = vec![[None; 6]; asked.len()];
    for found in quotes_of(conn, workspace, asked).await? {
        let (question, direction) = (found.question.unsigned_abs(), found.direction.unsigned_abs());
        let slot = quotes.get_mut(question as usize).and_then(|quotes| quotes.get_mut(direction as usize));
        if let Some(slot) = slot {
            *slot = Some(found.quote);
        }
    }
    let targets: Vec<_> = asked.iter().map(|(pair, _)| pair.target).collect();
    let modes = crate::allowlist::rounding_modes(conn, workspace, &targets).await?;
    let resolved = asked.iter().zip(&quotes).map(|((pair, at), quotes)| {
        let rounding = modes.get(&pair.target).copied().unwrap_or(RoundingMode::HalfUp);
        resolve(*pair, *at, rounding, quotes)
    });
    Ok(resolved.collect())
}

async fn quotes_of(conn: &mut PgConnection, workspace: WorkspaceId, asked: &[(Pair, Instant)]) -> Result<Vec<Found>> {
    let (mut questions, mut numbers, mut at) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sources, mut targets) = (Vec::new(), Vec::new());
    for ((pair, instant), question) in asked.iter().zip(0_i32..) {
        for ((source, target), direction) in directions(*pair).into_iter().zip(0_i32..) {
            if source != target {
                questions.push(question);
                numbers.push(direction);
                sources.push(source);
                targets.push(target);
                at.push(*instant);
            }
        }
    }
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as(QUOTES)
        .bind(workspace)
        .bind(questions)
        .bind(numbers)
        .bind(sources)
        .bind(targets)
        .bind(at)
        .fetch_all(conn)
        .await
        .context("looking for exchange rates")
}

/// The rate of one pair at an instant.
///
/// # Errors
/// `FX_RATE_NOT_FOUND` where none is known.
pub async fn rate(conn: &mut PgConnection, workspace: WorkspaceId, pair: Pair, at: Instant) -> Result<FxRate> {
    let found = rates(conn, workspace, &[(pair, at)]).await?.into_iter().next().flatten();
    found.ok_or_else(|| not_found(pair, at))
}

/// The refusal where no rate is known.
#[must_use]
pub fn not_found(pair: Pair, at: Instant) -> Error {
    let Pair { source, target } = pair;
    let detail = format!(
        "no exchange rate from {source} to {target} is known for {}, nor one of the seven days before: set one with POST /v1/fx/overrides",
        at.date_naive()
    );
    Error::rule("FX_RATE_NOT_FOUND", detail)
        .with("source_currency", source)
        .with("target_currency", target)
        .with("at", at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_bigint::BigUint;
    use proptest::prelude::*;

    fn quote(text: &str) -> Option<Quote> {
        let rate = domain::money::parse_decimal(text)?;
        Some(Quote {
            id: Uuid::from_u128(rate.mantissa().unsigned_abs()),
            rate,
            is_override: false,
            snapshot_date: None,
        })
    }

    fn resolved(source: &str, target: &str, quotes: [&str; 6]) -> Option<String> {
        let currency = |code| Currency::parse(code).expect("known");
        let pair = Pair { source: currency(source), target: currency(target) };
        let rate = resolve(pair, Instant::UNIX_EPOCH, RoundingMode::HalfUp, &quotes.map(quote))?;
        assert_eq!(rate.id.is_some(), !matches!(rate.kind, FxRateKind::Cross | FxRateKind::Identity));
        Some(format!("{} {}", rate.kind, rate.rate))
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        for (source, target, quotes, expected) in [
            ("EUR", "EUR", ["", "", "", "", "", ""], Some("IDENTITY 1")),
            ("EUR", "USD", ["1.0853", "0.9", "", "1", "1.0853", ""], Some("SNAPSHOT 1.0853")),
            ("USD", "EUR", ["", "1.0853", "", "", "", ""], Some("INVERSE 0.9214042200")),
            ("JPY", "EUR", ["", "163.45", "", "", "", ""], Some("INVERSE 0.0061180789")),
            // Each half the other way round, as quoted, or both.
            ("USD", "GBP", ["", "", "", "1.0853", "0.8349", ""], Some("CROSS 0.7692803833")),
            ("USD", "GBP", ["", "", "0.92", "", "0.8349", ""], Some("CROSS 0.7681080000")),
            ("USD", "GBP", ["", "", "0.92", "1.0853", "", "1.2"], Some("CROSS 0.7666666667")),
            ("KRW", "IDR", ["", "", "", "1512.34", "17234.56", ""], Some("CROSS 11.3959559358")),
            ("USD", "GBP", ["", "", "0.92", "1.0853", "", ""], None),
            ("USD", "EUR", ["", "", "", "", "", ""], None),
            // A rate that leaves no digit is none.
            ("USD", "GBP", ["", "", "0.0000000001", "", "0.0000000001", ""], None),
        ] {
            assert_eq!(resolved(source, target, quotes).as_deref(), expected, "{source} {target} {quotes:?}");
        }
    }

    fn rate_of(kind: FxRateKind, rate: &str, to: &str) -> FxRate {
        let target_currency = Currency::parse(to).expect("known");
        FxRate {
            source_currency: Currency::EUR,
            target_currency,
            rate: rate.parse().expect("a decimal"),
            kind,
            id: None,
            snapshot_date: None,
            as_of: Instant::UNIX_EPOCH,
            rounding: RoundingMode::HalfEven,
        }
    }

    #[test]
    fn converts_in_the_mode_of_the_target_and_from_the_source_only() {
        let euro = Money::from_minor(1000, Currency::EUR).expect("small");
        let yen = rate_of(FxRateKind::Snapshot, "163.45", "JPY");
        assert_eq!(yen.convert(euro).expect("in range").to_string(), "1634 JPY", "1634.5 to the even one");
        let dollars = Money::from_minor(1000, Currency::USD).expect("small");
        assert_eq!(yen.convert(dollars).map_err(|error| error.code()), Err("CURRENCY_MISMATCH"));
        assert_eq!(rate_of(FxRateKind::Identity, "1", "EUR").convert(euro).expect("the same"), euro);
    }

    fn leg() -> impl Strategy<Value = Leg> {
        (any::<bool>(), 1_i64..i64::MAX, 0_u32..=10).prop_map(|(there, mantissa, scale)| {
            let rate = Decimal::new(mantissa, scale);
            let quote = Quote { id: Uuid::nil(), rate, is_override: false, snapshot_date: None };
            if there { Leg::There(quote) } else { Leg::Back(quote) }
        })
    }

    proptest! {
        #[test]
        fn products_agree_with_big_integers(legs in proptest::collection::vec(leg(), 1..=2)) {
            let ten = |exponent: u32| BigUint::from(10_u32).pow(exponent);
            let (mut numerator, mut divisor) = (ten(PLACES), BigUint::from(1_u32));
            for leg in &legs {
                let rate = leg.quote().rate;
                let (mantissa, scale) = (BigUint::from(rate.mantissa().unsigned_abs()), ten(rate.scale()));
                match leg {
                    Leg::There(_) => { numerator *= mantissa; divisor *= scale; }
                    Leg::Back(_) => { numerator *= scale; divisor *= mantissa; }
                }
            }
            let expected = (&numerator * 2_u32 + &divisor) / (&divisor * 2_u32);
            match product(&legs) {
                Some(rate) => prop_assert_eq!(BigUint::from(rate.mantissa().unsigned_abs()), expected),
                None => prop_assert!(expected == BigUint::ZERO || expected.bits() > 96),
            }
        }
    }
}
