//! Transfers and their entries. What foreign keys would guarantee is checked here: the append tables have none (P10).

use domain::{Instant, Result};
use rust_decimal::Decimal;
use store::{Store, StoreError};
use uuid::Uuid;

use super::{Check, Report, Tell};

const CHUNK: i64 = 5_000;

const EMPTY: &str = "
SELECT id FROM ledger_transfer t WHERE t.id > $1 AND t.id <= $2
    AND NOT EXISTS (SELECT FROM ledger_entry e WHERE e.transfer_id = t.id)";

const UNBALANCED: &str = "
SELECT transfer_id, currency, sum(amount) FROM ledger_entry WHERE transfer_id > $1 AND transfer_id <= $2
GROUP BY transfer_id, currency HAVING sum(amount) <> 0";

/// An entry that stands alone, with what it misses.
const STRAY: &str = "
SELECT e.transfer_id, e.seq,
    CASE WHEN t.id IS NULL THEN 'a transfer'
         WHEN t.workspace_id <> e.workspace_id THEN 'a transfer of its workspace'
         WHEN a.id IS NULL THEN 'an account'
         WHEN a.workspace_id <> e.workspace_id THEN 'an account of its workspace'
         WHEN a.currency <> e.currency THEN 'an account of its currency'
         ELSE 'a wallet of its workspace and currency' END
FROM ledger_entry e
LEFT JOIN ledger_transfer t ON t.id = e.transfer_id
LEFT JOIN ledger_account a ON a.id = e.account_id
LEFT JOIN wallet w ON w.id = a.wallet_id AND w.workspace_id = e.workspace_id AND w.currency = e.currency
WHERE e.transfer_id > $1 AND e.transfer_id <= $2
    AND (t.id IS NULL OR t.workspace_id <> e.workspace_id OR a.id IS NULL OR a.workspace_id <> e.workspace_id
        OR a.currency <> e.currency OR (a.wallet_id IS NOT NULL AND w.id IS NULL))";

/// A transfer that was booked in a period after its closing.
const LATE: &str = "
SELECT t.id, t.booked_at, max(c.closed_before) FROM ledger_transfer t JOIN ledger_closing c ON c.workspace_id = t.workspace_id
WHERE t.id > $1 AND t.id <= $2 AND c.reopened_at IS NULL AND t.booked_at < c.closed_before AND t.created_at > c.closed_at
GROUP BY t.id, t.booked_at";

pub(super) async fn check(store: &Store, report: &mut Report, progress: &mut Tell<'_>) -> Result<()> {
    let mut after = Uuid::nil();
    // The last chunk is open: entries whose transfer is missing may lie behind the last transfer.
    while after != Uuid::max() {
        let up_to: Option<Uuid> =
            sqlx::query_scalar("SELECT id FROM ledger_transfer WHERE id > $1 ORDER BY id OFFSET $2 LIMIT 1")
                .bind(after)
                .bind(CHUNK - 1)
                .fetch_optional(store.pool())
                .await
                .context("walking transfers")?;
        let up_to = up_to.unwrap_or(Uuid::max());
        check_range(store, report, after, up_to).await?;
        progress(Check::Transfer, report.transfers);
        after = up_to;
    }
    Ok(())
}

async fn check_range(store: &Store, report: &mut Report, after: Uuid, up_to: Uuid) -> Result<()> {
    let doing = "checking transfers";
    let (transfers, entries): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM ledger_transfer WHERE id > $1 AND id <= $2),
             (SELECT count(*) FROM ledger_entry WHERE transfer_id > $1 AND transfer_id <= $2)",
    )
    .bind(after)
    .bind(up_to)
    .fetch_one(store.pool())
    .await
    .context(doing)?;
    report.transfers += transfers.unsigned_abs();
    report.entries += entries.unsigned_abs();
    let empty: Vec<Uuid> =
        sqlx::query_scalar(EMPTY).bind(after).bind(up_to).fetch_all(store.pool()).await.context(doing)?;
    for id in empty {
        report.add(Check::Transfer, format!("transfer {id}"), "entries", "none");
    }
    let unbalanced: Vec<(Uuid, String, Decimal)> =
        sqlx::query_as(UNBALANCED).bind(after).bind(up_to).fetch_all(store.pool()).await.context(doing)?;
    for (id, currency, sum) in unbalanced {
        report.add(Check::Transfer, format!("transfer {id} sum of {currency}"), 0, sum);
    }
    let stray: Vec<(Uuid, i16, String)> =
        sqlx::query_as(STRAY).bind(after).bind(up_to).fetch_all(store.pool()).await.context(doing)?;
    for (id, seq, missing) in stray {
        report.add(Check::Entry, format!("entry {seq} of transfer {id}"), missing, "none");
    }
    let late: Vec<(Uuid, Instant, Instant)> =
        sqlx::query_as(LATE).bind(after).bind(up_to).fetch_all(store.pool()).await.context(doing)?;
    for (id, booked_at, closed_before) in late {
        let expected = format!("booked at {} or later", closed_before.to_rfc3339());
        report.add(Check::Closing, format!("transfer {id}"), expected, booked_at.to_rfc3339());
    }
    Ok(())
}
