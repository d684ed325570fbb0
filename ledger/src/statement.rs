//! Statements: what moved on one account in a period, with the balance after each entry.

use domain::{AccountId, Currency, Error, Instant, Result, Scope, TransferId, WalletId};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow};
use store::{Store, StoreError};
use uuid::Uuid;

use crate::account::{STRIPES, WalletAccount, WorkspaceAccount};
use crate::picture::{Picture, stood, sum_entries};

/// Entries that one statement reads.
const PAGE: i64 = 5_000;

/// An account as people name it: the stripes of a workspace account are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementAccount {
    /// One of the three of a wallet.
    Wallet(WalletId, WalletAccount),
    /// One of the workspace, in one currency.
    Workspace(WorkspaceAccount, Currency),
}

/// Instants between which entries are shown; open ends take everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First instant.
    pub from: Option<Instant>,
    /// End, exclusive.
    pub to: Option<Instant>,
}

/// What moved on an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// Kind of account.
    pub kind: String,
    /// Currency.
    pub currency: Currency,
    /// Debits minus credits booked before the period.
    pub opening: Decimal,
    /// Entries of the period, by the instant of their booking.
    pub lines: Vec<StatementLine>,
    /// Debits minus credits at its end.
    pub closing: Decimal,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatementLine {
    /// When its transfer is booked.
    pub booked_at: Instant,
    /// The transfer.
    pub transfer_id: TransferId,
    /// What the transfer is for.
    pub kind: String,
    /// What it belongs to, e.g. `invoice`.
    pub reference_type: Option<String>,
    /// Which.
    pub reference_id: Option<Uuid>,
    /// Text for people.
    pub description: Option<String>,
    /// A debit when positive, a credit when negative.
    pub amount: Decimal,
    /// Debits minus credits after it.
    pub balance: Decimal,
}

#[derive(FromRow)]
struct Row {
    seq: i16,
    transfer_id: TransferId,
    amount: Decimal,
    kind: String,
    reference_type: Option<String>,
    reference_id: Option<Uuid>,
    description: Option<String>,
    booked_at: Instant,
}

impl Statement {
    /// Reads it as of one instant, in short statements; its lines are kept in memory.
    ///
    /// # Errors
    /// `NotFound` for a wallet of somebody else; as every statement.
    pub async fn read(store: &Store, scope: &Scope, account: StatementAccount, span: Span) -> Result<Self> {
        let (kind, currency, ids) = accounts_of(store, scope, account).await?;
        let picture = Picture::take(store.pool()).await?;
        let opening = match span.from {
            None => Decimal::ZERO,
            Some(_) => {
                let sums = sum_entries(store.pool(), &picture, &ids, span.from, &mut |_| {}).await?;
                sums.values().map(crate::picture::Turnover::balance).sum()
            }
        };
        let mut rows = Vec::new();
        for id in ids {
            read_entries(store, &picture, id, span, &mut rows).await?;
        }
        rows.sort_by_key(|row| (row.booked_at, row.transfer_id, row.seq));
        let mut balance = opening;
        let lines: Vec<StatementLine> = rows.into_iter().map(|row| row.into_line(&mut balance)).collect();
        Ok(Self { kind: kind.to_owned(), currency, opening, lines, closing: balance })
    }
}

impl Row {
    fn into_line(self, balance: &mut Decimal) -> StatementLine {
        *balance += self.amount;
        StatementLine {
            booked_at: self.booked_at,
            transfer_id: self.transfer_id,
            kind: self.kind,
            reference_type: self.reference_type,
            reference_id: self.reference_id,
            description: self.description,
            amount: self.amount,
            balance: *balance,
        }
    }
}

async fn accounts_of(
    store: &Store,
    scope: &Scope,
    account: StatementAccount,
) -> Result<(&'static str, Currency, Vec<AccountId>)> {
    match account {
        StatementAccount::Workspace(kind, currency) => {
            let ids = (0..STRIPES).map(|stripe| kind.id(scope.workspace_id, currency, stripe)).collect();
            Ok((kind.as_str(), currency, ids))
        }
        StatementAccount::Wallet(wallet, kind) => {
            let currency: Option<Currency> =
                sqlx::query_scalar("SELECT currency FROM wallet WHERE id = $1 AND workspace_id = $2")
                    .bind(wallet)
                    .bind(scope.workspace_id)
                    .fetch_optional(store.pool())
                    .await
                    .context("reading the wallet of a statement")?;
            let currency = currency.ok_or_else(|| Error::not_found("wallet", wallet))?;
            Ok((kind.as_str(), currency, vec![kind.id(wallet)]))
        }
    }
}

/// The entries of an account in a period, in any order.
async fn read_entries(
    store: &Store,
    picture: &Picture,
    account: AccountId,
    span: Span,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let sql = format!(
        "SELECT entry.transfer_id, entry.seq, entry.amount, t.kind, t.reference_type, t.reference_id, t.description, t.booked_at
         FROM (SELECT e.transfer_id, e.seq, e.amount FROM ledger_entry e
               WHERE e.account_id = $3 AND e.transfer_id > $4 AND {}
               ORDER BY e.transfer_id FETCH FIRST {PAGE} ROWS WITH TIES) AS entry
         JOIN ledger_transfer t ON t.id = entry.transfer_id
         ORDER BY entry.transfer_id",
        stood("e")
    );
    let mut after = TransferId(Uuid::nil());
    loop {
        let page: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql.clone()))
            .bind(picture.next())
            .bind(picture.open())
            .bind(account)
            .bind(after)
            .fetch_all(store.pool())
            .await
            .context("reading the entries of an account")?;
        let is_last = (page.len() as i64) < PAGE;
        if let Some(last) = page.last() {
            after = last.transfer_id;
        }
        rows.extend(page.into_iter().filter(|row| span.contains(row.booked_at)));
        if is_last {
            return Ok(());
        }
    }
}

impl Span {
    fn contains(self, at: Instant) -> bool {
        self.from.is_none_or(|from| from <= at) && self.to.is_none_or(|to| at < to)
    }
}
