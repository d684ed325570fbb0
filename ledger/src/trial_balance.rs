//! The trial balance of a workspace: what stands on each kind of account.

use domain::{Currency, Result, Scope};
use rust_decimal::Decimal;
use sqlx::PgConnection;
use store::StoreError;

/// Balance of all accounts of one kind in one currency.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct TrialBalanceRow {
    /// Kind of account (crate documentation).
    pub kind: String,
    /// Currency.
    pub currency: Currency,
    /// Debits minus credits: below zero on liabilities and income. The rows of a currency add up to zero.
    pub balance: Decimal,
}

/// Sums the entries of a workspace, stripes together. It reads every entry: for accountants and tests.
///
/// # Errors
/// `Unavailable` when the books are too large for the statement's time limit; use [`crate::verify()`], which walks.
pub async fn trial_balance(scope: &Scope, conn: &mut PgConnection) -> Result<Vec<TrialBalanceRow>> {
    sqlx::query_as(
        "SELECT account.kind, account.currency, sum(entry.amount) AS balance
         FROM ledger_account account JOIN ledger_entry entry ON entry.account_id = account.id
         WHERE account.workspace_id = $1
         GROUP BY account.kind, account.currency ORDER BY account.currency, account.kind",
    )
    .bind(scope.workspace_id)
    .fetch_all(conn)
    .await
    .context("summing the trial balance")
}
