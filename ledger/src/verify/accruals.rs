//! Accruals of windows that a finalized invoice has billed (rule D3).

use domain::{Result, SubscriptionId};
use rust_decimal::Decimal;
use store::{Store, StoreError};
use uuid::Uuid;

use super::{Check, Report, Tell};

const CHUNK: i64 = 5_000;

/// Open accruals whose window stands on a usage line of a finalized invoice that closes it: an interim invoice does not.
const BILLED: &str = "
SELECT a.subscription_id, a.window_start::text, a.accrued FROM usage_accrual a
WHERE a.subscription_id > $1 AND a.subscription_id <= $2 AND NOT a.closed AND EXISTS (
    SELECT FROM invoice i JOIN invoice_line l ON l.invoice_id = i.id
    WHERE i.subscription_id = a.subscription_id AND i.deleted_at IS NULL AND i.status IN ('finalized', 'overdue', 'paid')
        AND l.charge_kind = 'USAGE' AND l.period_start = a.window_start AND i.billing_reason NOT LIKE 'interim%')";

/// Accruals from which something else was taken off than interim invoices have charged.
const INVOICED: &str = "
SELECT a.subscription_id, a.window_start::text, a.invoiced, charged.gross FROM usage_accrual a CROSS JOIN LATERAL (
    SELECT coalesce(sum(l.total), 0) AS gross FROM invoice i JOIN invoice_line l ON l.invoice_id = i.id
    WHERE i.subscription_id = a.subscription_id AND i.deleted_at IS NULL AND i.status <> 'void'
        AND i.billing_reason LIKE 'interim%' AND l.charge_kind = 'USAGE' AND l.period_start = a.window_start
        AND coalesce(l.wallet_currency, '') = a.wallet_currency) AS charged
WHERE a.subscription_id > $1 AND a.subscription_id <= $2 AND a.invoiced <> 0 AND NOT a.closed
    AND a.invoiced <> charged.gross";

pub(super) async fn check(store: &Store, report: &mut Report, progress: &mut Tell<'_>) -> Result<()> {
    let mut after = Uuid::nil();
    while after != Uuid::max() {
        let up_to: Option<Uuid> = sqlx::query_scalar(
            "SELECT subscription_id FROM usage_accrual WHERE subscription_id > $1 ORDER BY subscription_id OFFSET $2 LIMIT 1",
        )
        .bind(after)
        .bind(CHUNK - 1)
        .fetch_optional(store.pool())
        .await
        .context("walking accruals")?;
        let up_to = up_to.unwrap_or(Uuid::max());
        check_range(store, report, after, up_to).await?;
        progress(Check::Accrual, report.accruals);
        after = up_to;
    }
    Ok(())
}

async fn check_range(store: &Store, report: &mut Report, after: Uuid, up_to: Uuid) -> Result<()> {
    let seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM usage_accrual WHERE subscription_id > $1 AND subscription_id <= $2")
            .bind(after)
            .bind(up_to)
            .fetch_one(store.pool())
            .await
            .context("counting accruals")?;
    report.accruals += seen.unsigned_abs();
    let open: Vec<(SubscriptionId, String, Decimal)> = sqlx::query_as(BILLED)
        .bind(after)
        .bind(up_to)
        .fetch_all(store.pool())
        .await
        .context("looking for accruals that were billed")?;
    for (subscription, window, accrued) in open {
        let subject = format!("accrual of subscription {subscription}, window of {window}");
        report.add(Check::Accrual, subject, "closed", format!("open with {accrued}"));
    }
    let invoiced: Vec<(SubscriptionId, String, Decimal, Decimal)> = sqlx::query_as(INVOICED)
        .bind(after)
        .bind(up_to)
        .fetch_all(store.pool())
        .await
        .context("looking for accruals that interim invoices have charged")?;
    for (subscription, window, noted, charged) in invoiced {
        let subject = format!("interim invoices of subscription {subscription}, window of {window}");
        report.add(Check::Accrual, subject, charged, noted);
    }
    Ok(())
}
