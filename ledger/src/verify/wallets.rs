//! Balances against entries, movements and holds.

use domain::{Result, WalletId};
use rust_decimal::Decimal;
use store::{Store, StoreError};
use uuid::Uuid;

use super::{Check, Progress, Report};

const CHUNK: i64 = 500;

/// One row per stored balance that differs from what it is recomputed from.
const BALANCES: &str = "
SELECT wallet.id, b.name, b.stored, b.recomputed
FROM wallet CROSS JOIN LATERAL (VALUES
    ('cash_balance, by entries', cash_balance, (
        SELECT coalesce(-sum(e.amount), 0) FROM ledger_account a JOIN ledger_entry e ON e.account_id = a.id
        WHERE a.wallet_id = wallet.id AND a.kind = 'wallet_cash')),
    ('promotional_balance, by entries', promotional_balance, (
        SELECT coalesce(-sum(e.amount), 0) FROM ledger_account a JOIN ledger_entry e ON e.account_id = a.id
        WHERE a.wallet_id = wallet.id AND a.kind = 'wallet_promotional')),
    ('held_balance, by entries', held_balance, (
        SELECT coalesce(-sum(e.amount), 0) FROM ledger_account a JOIN ledger_entry e ON e.account_id = a.id
        WHERE a.wallet_id = wallet.id AND a.kind = 'wallet_held')),
    ('cash_balance, by movements', cash_balance, (
        SELECT coalesce(sum(t.amount), 0) FROM wallet_transaction t
        WHERE t.wallet_id = wallet.id AND t.balance_kind = 'CASH')),
    ('promotional_balance, by movements', promotional_balance, (
        SELECT coalesce(sum(t.amount), 0) FROM wallet_transaction t
        WHERE t.wallet_id = wallet.id AND t.balance_kind = 'PROMOTIONAL')),
    ('held_balance, by holds', held_balance, (
        SELECT coalesce(sum(h.amount), 0) FROM wallet_hold h
        WHERE h.wallet_id = wallet.id AND h.status = 'PENDING'))
) AS b (name, stored, recomputed)
WHERE wallet.id = ANY($1) AND b.stored <> b.recomputed
ORDER BY wallet.id, b.name";

/// The first movement of each wallet whose balances do not follow from those before it.
const STEPS: &str = "
SELECT DISTINCT ON (wallet_id) id, wallet_id, cash, cash_balance_after, promotional, promotional_balance_after
FROM (
    SELECT id, wallet_id, created_at, cash_balance_after, promotional_balance_after,
        coalesce(sum(amount) FILTER (WHERE balance_kind = 'CASH') OVER steps, 0) AS cash,
        coalesce(sum(amount) FILTER (WHERE balance_kind = 'PROMOTIONAL') OVER steps, 0) AS promotional
    FROM wallet_transaction WHERE wallet_id = ANY($1)
    WINDOW steps AS (PARTITION BY wallet_id ORDER BY created_at, id)
) AS movement
WHERE cash <> cash_balance_after OR promotional <> promotional_balance_after
ORDER BY wallet_id, created_at, id";

const UNBOOKED: &str = "
SELECT t.id, t.wallet_id, t.transfer_id FROM wallet_transaction t
WHERE t.wallet_id = ANY($1) AND NOT EXISTS (SELECT FROM ledger_transfer WHERE ledger_transfer.id = t.transfer_id)";

pub(super) async fn check(
    store: &Store,
    report: &mut Report,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let ids: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM wallet WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after)
            .bind(CHUNK)
            .fetch_all(store.pool())
            .await
            .context("walking wallets")?;
        let Some(last) = ids.last().copied() else { return Ok(()) };
        check_balances(store, report, &ids).await?;
        check_steps(store, report, &ids).await?;
        report.wallets += ids.len() as u64;
        progress(Progress { check: Check::Balance, done: report.wallets });
        after = last;
    }
}

async fn check_balances(store: &Store, report: &mut Report, ids: &[Uuid]) -> Result<()> {
    let differences: Vec<(WalletId, String, Decimal, Decimal)> =
        sqlx::query_as(BALANCES).bind(ids).fetch_all(store.pool()).await.context("recomputing balances")?;
    for (wallet, name, stored, recomputed) in differences {
        let check = if name.ends_with("entries") { Check::Balance } else { Check::Movement };
        report.add(check, format!("wallet {wallet} {name}"), recomputed, stored);
    }
    Ok(())
}

async fn check_steps(store: &Store, report: &mut Report, ids: &[Uuid]) -> Result<()> {
    let differences: Vec<(Uuid, WalletId, Decimal, Decimal, Decimal, Decimal)> =
        sqlx::query_as(STEPS).bind(ids).fetch_all(store.pool()).await.context("following movements")?;
    for (movement, wallet, cash, cash_after, promotional, promotional_after) in differences {
        report.add(
            Check::Movement,
            format!("wallet {wallet} movement {movement}, cash and promotional balance after it"),
            format!("{cash} and {promotional}"),
            format!("{cash_after} and {promotional_after}"),
        );
    }
    let unbooked: Vec<(Uuid, WalletId, Uuid)> =
        sqlx::query_as(UNBOOKED).bind(ids).fetch_all(store.pool()).await.context("looking for unbooked movements")?;
    for (movement, wallet, transfer) in unbooked {
        report.add(
            Check::Movement,
            format!("wallet {wallet} movement {movement}"),
            format!("transfer {transfer}"),
            "none",
        );
    }
    Ok(())
}
