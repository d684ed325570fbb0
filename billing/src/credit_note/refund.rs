//! Credit notes that go with refunds (refunds.md 4): over the same gross amount, its lines in proportion, their tax at the rates
//! of the invoice.

use domain::{
    CreditNoteId, Currency, Error, InvoiceId, InvoiceLineId, JsonMap, Money, Result, Scope, TaxCategoryCode,
    TransactionId,
};
use rust_decimal::Decimal;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};
use store::{StoreError, Tx};

use super::words::CreditNoteReasonCode;
use super::write::{Note, Taken, issue_all};
use crate::invoice::Payable;
use crate::invoice::invoiced::CREDITED;
use store::money;

/// What a refund takes back of its invoice.
#[derive(Clone, Debug)]
pub struct RefundNote<'a> {
    /// The locked invoice.
    pub invoice: &'a Payable,
    /// Gross.
    pub gross: Money,
    /// Gross of single lines, which add up to `gross`; none: in proportion.
    pub lines: &'a [(InvoiceLineId, Money)],
    /// What it is for.
    pub reason_code: CreditNoteReasonCode,
    /// For people.
    pub reason: Option<String>,
    /// The first movement of the refund.
    pub refund_transaction_id: TransactionId,
    /// The caller's own.
    pub metadata: JsonMap,
}

/// An invoice line as far as credit notes have not taken it back.
#[derive(Clone, Debug)]
struct Standing {
    id: InvoiceLineId,
    description: String,
    net: Money,
    tax: Money,
    tax_rate: Decimal,
    tax_category: TaxCategoryCode,
}

/// Issues the credit note of a refund.
///
/// # Errors
/// `CREDIT_EXCEEDS_INVOICE` beyond what stands of the invoice or of a line; `NotFound` for a line that is not the invoice's.
pub async fn issue_refund(scope: &Scope, tx: &mut Tx, refund: RefundNote<'_>) -> Result<CreditNoteId> {
    let RefundNote { invoice, gross, lines, reason_code, reason, refund_transaction_id, metadata } = refund;
    let standing = standing(scope, tx.conn(), invoice.id).await?;
    let shares = match lines {
        [] => in_proportion(gross, &standing)?,
        lines => as_asked(lines, &standing)?,
    };
    let taken = standing.iter().zip(shares).filter(|(_, share)| !share.is_zero()).map(|(line, share)| line.take(share));
    let note = Note {
        customer_id: invoice.customer_id,
        subscription_id: invoice.subscription_id,
        invoice_id: invoice.id,
        against: invoice.booked_against(),
        reason_code,
        reason: reason.unwrap_or_else(|| "refund".to_owned()),
        refund_transaction_id: Some(refund_transaction_id),
        metadata,
        lines: taken.collect::<Result<_>>()?,
    };
    let issued = issue_all(scope, tx, &[note]).await?;
    issued.first().copied().ok_or_else(|| Error::invariant("a credit note was issued and has no id"))
}

/// Lines of which something stands, in their order.
async fn standing(scope: &Scope, conn: &mut PgConnection, id: InvoiceId) -> Result<Vec<Standing>> {
    let sql = format!(
        "SELECT line.id, line.description, line.amount - credit.net AS net, line.tax_amount - credit.tax AS tax, line.tax_rate,
             line.tax_category_code, invoice.currency
         FROM invoice_line line JOIN invoice ON invoice.id = line.invoice_id CROSS JOIN LATERAL ({CREDITED}) AS credit
         WHERE line.workspace_id = $1 AND line.invoice_id = $2 AND line.amount + line.tax_amount > credit.net + credit.tax
         ORDER BY line.position"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_all(conn)
        .await
        .context("reading what stands of an invoice")
}

/// Each line's share by its gross, rounded; the last line takes the rest. What a line has no room for, the lines before it take.
fn in_proportion(gross: Money, standing: &[Standing]) -> Result<Vec<Money>> {
    let zero = Money::zero(gross.currency());
    let all = standing.iter().try_fold(zero, |sum, line| Ok::<_, Error>(sum.add(line.gross()?)?))?;
    if gross.amount() > all.amount() {
        return Err(exceeds(all, None));
    }
    let (mut shares, mut rest) = (Vec::with_capacity(standing.len()), gross);
    for line in standing {
        let exact = Money::round(gross.amount() * line.gross()?.amount() / all.amount(), gross.currency())?;
        let share = smaller(smaller(exact, rest), line.gross()?);
        shares.push(share);
        rest = rest.sub(share)?;
    }
    for (share, line) in shares.iter_mut().zip(standing).rev() {
        let more = smaller(line.gross()?.sub(*share)?, rest);
        *share = share.add(more)?;
        rest = rest.sub(more)?;
    }
    Ok(shares)
}

/// The shares that were asked for.
fn as_asked(lines: &[(InvoiceLineId, Money)], standing: &[Standing]) -> Result<Vec<Money>> {
    for (id, amount) in lines {
        let found = standing.iter().find(|line| line.id == *id);
        let room = found.map_or(Ok(Money::zero(amount.currency())), Standing::gross)?;
        if amount.amount() > room.amount() {
            return Err(exceeds(room, Some(*id)));
        }
    }
    let share = |line: &Standing| {
        let asked = lines.iter().find(|(id, _)| *id == line.id);
        asked.map_or_else(|| Money::zero(line.net.currency()), |(_, amount)| *amount)
    };
    Ok(standing.iter().map(share).collect())
}

fn exceeds(room: Money, line: Option<InvoiceLineId>) -> Error {
    let of = line.map_or_else(|| "the invoice".to_owned(), |id| format!("line {id}"));
    let detail = format!(
        "credit notes may take back {room} more of {of}; create_credit_note false refunds without one, where one was issued before"
    );
    let error = Error::rule("CREDIT_EXCEEDS_INVOICE", detail).with("creditable", room);
    match line {
        Some(id) => error.with("invoice_line_id", id),
        None => error,
    }
}

fn smaller(one: Money, other: Money) -> Money {
    if one.amount() <= other.amount() { one } else { other }
}

impl Standing {
    fn gross(&self) -> Result<Money> {
        Ok(self.net.add(self.tax)?)
    }

    /// Splits a gross amount at the line's rate. The last credit of a line takes what is left of net and tax, so that both leave
    /// exactly none (credit-notes.md 4, Tax).
    fn take(&self, gross: Money) -> Result<Taken> {
        let net = Money::round(
            gross.amount() * Decimal::ONE_HUNDRED / (Decimal::ONE_HUNDRED + self.tax_rate),
            gross.currency(),
        )?;
        let least = gross.sub(self.tax)?; // more tax than is left cannot be taken back
        let net = smaller(if net.amount() < least.amount() { least } else { net }, self.net);
        Ok(Taken {
            line_id: self.id,
            description: self.description.clone(),
            net,
            tax: gross.sub(net)?,
            tax_rate: self.tax_rate,
            tax_category: self.tax_category,
        })
    }
}

impl FromRow<'_, PgRow> for Standing {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let currency: Currency = row.try_get("currency")?;
        Ok(Self {
            id: row.try_get("id")?,
            description: row.try_get("description")?,
            net: money(row, "net", currency)?,
            tax: money(row, "tax", currency)?,
            tax_rate: row.try_get("tax_rate")?,
            tax_category: row.try_get("tax_category_code")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn euro(cents: i128) -> Money {
        Money::from_minor(cents, Currency::EUR).expect("in range")
    }

    fn line(net: i128, tax: i128, rate: i64) -> Standing {
        Standing {
            id: InvoiceLineId::generate(),
            description: String::new(),
            net: euro(net),
            tax: euro(tax),
            tax_rate: Decimal::from(rate),
            tax_category: TaxCategoryCode::S,
        }
    }

    /// (gross, net and tax of each line) of credits one after another.
    fn credit(lines: &mut [Standing], gross: i128) -> Vec<(i128, i128)> {
        let shares = in_proportion(euro(gross), lines).expect("fits");
        let mut taken = Vec::new();
        for (line, share) in lines.iter_mut().zip(shares) {
            let part = line.take(share).expect("splits");
            line.net = line.net.sub(part.net).expect("in range");
            line.tax = line.tax.sub(part.tax).expect("in range");
            taken.push((minor(part.net), minor(part.tax)));
        }
        taken
    }

    /// refunds.md, test vectors: 19.00 of 119.00 is 15.97 and 3.03.
    #[test]
    fn a_part_of_one_line_is_split_at_its_rate() {
        let mut lines = vec![line(10_000, 1_900, 19)];
        assert_eq!(credit(&mut lines, 1_900), [(1_597, 303)]);
        assert_eq!(credit(&mut lines, 10_000), [(8_403, 1_597)], "the last takes the rest");
        assert_eq!((lines[0].net, lines[0].tax), (euro(0), euro(0)));
    }

    #[test]
    fn lines_share_in_proportion_and_the_last_takes_the_rest() {
        let mut lines = vec![line(1_000, 190, 19), line(1_000, 70, 7), line(1_000, 0, 0)];
        assert_eq!(credit(&mut lines, 1_000), [(307, 58), (307, 21), (307, 0)]);
        let mut thirds = vec![line(3_967, 0, 0), line(3_967, 0, 0), line(3_966, 0, 0)];
        assert_eq!(credit(&mut thirds, 1_900), [(633, 0), (633, 0), (634, 0)]);
        // Rounded up at each, nothing may be left that the last has no room for, and nothing may be below zero.
        let mut cents = vec![line(1, 0, 0); 5];
        let taken = credit(&mut cents, 3);
        assert_eq!(taken.iter().map(|(net, _)| net).sum::<i128>(), 3);
        assert!(taken.iter().all(|(net, _)| (0..=1).contains(net)), "{taken:?}");
        assert_eq!(in_proportion(euro(3), &cents).expect_err("2 cents stand").code(), "CREDIT_EXCEEDS_INVOICE");
    }

    /// However an invoice is refunded, the credit notes take back exactly its net and its tax, and never more of a line than stands.
    #[test]
    fn any_sequence_of_credits_leaves_nothing() {
        let mut seed = 20_260_307_u64;
        let mut next = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            i128::from((seed >> 33) % below)
        };
        for _ in 0..2_000 {
            let mut lines: Vec<_> = (0..=next(4))
                .map(|_| {
                    let (net, rate) = (1 + next(3_000), [0, 7, 19, 21][usize::try_from(next(4)).expect("small")]);
                    line(net, (net * rate + 50) / 100, i64::try_from(rate).expect("small"))
                })
                .collect();
            let mut left: i128 = lines.iter().map(|l| minor(l.gross().expect("in range"))).sum();
            while left > 0 {
                let gross = 1 + next(u64::try_from(left).expect("positive"));
                credit(&mut lines, gross);
                left -= gross;
                assert!(lines.iter().all(|l| !l.net.is_negative() && !l.tax.is_negative()), "{lines:?}");
                assert_eq!(lines.iter().map(|l| minor(l.gross().expect("in range"))).sum::<i128>(), left);
            }
        }
    }

    fn minor(money: Money) -> i128 {
        let cents = (money.amount() * Decimal::ONE_HUNDRED).normalize();
        assert_eq!(cents.scale(), 0);
        cents.mantissa()
    }
}
