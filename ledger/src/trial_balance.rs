//! The trial balance of a workspace: what stands on each kind of account.

use std::collections::BTreeMap;

use domain::{AccountId, Currency, Instant, Result, Scope};
use rust_decimal::Decimal;
use serde::Serialize;
use store::{Store, StoreError};

use crate::picture::{Picture, Turnover, sum_entries};

/// All accounts of one kind in one currency: the stripes of a workspace account, or those of all wallets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrialBalanceRow {
    /// Kind of account (crate documentation).
    pub kind: String,
    /// Currency.
    pub currency: Currency,
    /// Everything that was ever debited.
    pub debits: Decimal,
    /// Everything that was ever credited, above zero.
    pub credits: Decimal,
    /// Debits minus credits: below zero on liabilities and income. The rows of a currency add up to zero.
    pub balance: Decimal,
}

/// Sums the entries of a workspace whose transfers are booked before an instant, or all, as of one instant and in short
/// statements. `told` hears how many more entries were read.
///
/// # Errors
/// As every statement.
pub async fn trial_balance(
    store: &Store,
    scope: &Scope,
    before: Option<Instant>,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<Vec<TrialBalanceRow>> {
    // Accounts that are opened after the picture have no entries in it.
    let picture = Picture::take(store.pool()).await?;
    let mut rows: BTreeMap<(Currency, String), Turnover> = BTreeMap::new();
    let mut after = AccountId(uuid::Uuid::nil());
    loop {
        let accounts: Vec<(AccountId, Currency, String)> = sqlx::query_as(
            "SELECT id, currency, kind FROM ledger_account WHERE workspace_id = $1 AND id > $2 ORDER BY id LIMIT 1000",
        )
        .bind(scope.workspace_id)
        .bind(after)
        .fetch_all(store.pool())
        .await
        .context("walking accounts")?;
        let Some((last, ..)) = accounts.last() else { break };
        after = *last;
        let ids: Vec<AccountId> = accounts.iter().map(|(id, ..)| *id).collect();
        let sums = sum_entries(store.pool(), &picture, &ids, before, told).await?;
        for (id, currency, kind) in accounts {
            let turnover = sums.get(&id).copied().unwrap_or_default();
            rows.entry((currency, kind)).or_default().add(turnover);
        }
    }
    let row = |((currency, kind), turnover): ((Currency, String), Turnover)| TrialBalanceRow {
        kind,
        currency,
        debits: turnover.debits,
        credits: turnover.credits,
        balance: turnover.balance(),
    };
    Ok(rows.into_iter().filter(|(_, turnover)| *turnover != Turnover::default()).map(row).collect())
}
