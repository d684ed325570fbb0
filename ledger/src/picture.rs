//! The append-only tables as they were at one instant, read in as many short statements as it takes.
//!
//! A row that is never changed stood at that instant when the transaction that wrote it had been committed then. So a
//! walk over millions of entries needs no transaction that stays open (P13), and what is booked meanwhile is not in it.

use std::collections::BTreeMap;

use domain::{AccountId, Instant, Result, TransferId};
use rust_decimal::Decimal;
use sqlx::{AssertSqlSafe, FromRow, PgExecutor};
use store::StoreError;
use uuid::Uuid;

/// Entries of one account that one statement reads.
const PAGE: i64 = 5_000;

/// Accounts that one statement reads.
const ACCOUNTS: usize = 500;

/// Columns that a statement reads beside its own, in its own snapshot, to become a [`Picture`].
pub(crate) const TAKEN: &str = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next_transaction,
    ARRAY(SELECT id::text::bigint & 4294967295 FROM pg_snapshot_xip(pg_current_snapshot()) AS open (id)) AS open_transactions";

/// Which transactions had been committed at an instant.
///
/// Row versions carry the last 32 bits of their transaction's number. A row that is exactly 2^32 transactions older than one of the
/// walk's own is taken for newer, and rows of savepoints that were open are taken for older: who finds something wrong in a
/// picture looks again in another one.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub(crate) struct Picture {
    next_transaction: i64,
    open_transactions: Vec<i64>,
}

impl Picture {
    /// Of now.
    pub async fn take(db: impl PgExecutor<'_>) -> Result<Self> {
        sqlx::query_as(AssertSqlSafe(format!("SELECT {TAKEN}"))).fetch_one(db).await.context("taking a picture")
    }

    /// For `$1` of [`stood`].
    pub fn next(&self) -> i64 {
        self.next_transaction
    }

    /// For `$2` of [`stood`].
    pub fn open(&self) -> &[i64] {
        &self.open_transactions
    }
}

/// The condition that a row stood in the picture, whose halves are `$1` and `$2`.
pub(crate) fn stood(row: &str) -> String {
    format!(
        "(({row}.xmin::text::bigint - $1) & 4294967295) >=
            (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint) - $1
         AND {row}.xmin::text::bigint <> ALL ($2)"
    )
}

/// What has been booked on an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turnover {
    /// Sum of its debits.
    pub debits: Decimal,
    /// Sum of its credits, above zero.
    pub credits: Decimal,
}

impl Turnover {
    pub fn balance(&self) -> Decimal {
        self.debits - self.credits
    }

    pub fn add(&mut self, other: Self) {
        self.debits += other.debits;
        self.credits += other.credits;
    }
}

#[derive(FromRow)]
struct Page {
    account_id: AccountId,
    entries: i64,
    debits: Decimal,
    credits: Decimal,
    last: Option<TransferId>,
}

/// Sums what stood on accounts, of transfers that are booked before `before`; `told` hears of the entries of each statement.
pub(crate) async fn sum_entries<'e>(
    db: impl PgExecutor<'e> + Copy,
    picture: &Picture,
    accounts: &[AccountId],
    before: Option<Instant>,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<BTreeMap<AccountId, Turnover>> {
    let sql = format!(
        "SELECT account.id AS account_id, page.* FROM unnest($3::uuid[], $4::uuid[]) AS account (id, after)
         CROSS JOIN LATERAL (
             SELECT count(*) AS entries, coalesce(sum(amount) FILTER (WHERE amount > 0), 0) AS debits,
                 coalesce(-sum(amount) FILTER (WHERE amount < 0), 0) AS credits,
                 max(transfer_id::text COLLATE \"C\")::uuid AS last
             FROM (SELECT e.transfer_id, e.amount FROM ledger_entry e
                   WHERE e.account_id = account.id AND e.transfer_id > account.after AND {}
                       AND ($5::timestamptz IS NULL
                           OR EXISTS (SELECT FROM ledger_transfer t WHERE t.id = e.transfer_id AND t.booked_at < $5))
                   ORDER BY e.transfer_id FETCH FIRST {PAGE} ROWS WITH TIES) AS entry) AS page",
        stood("e")
    );
    let mut sums: BTreeMap<AccountId, Turnover> = BTreeMap::new();
    for accounts in accounts.chunks(ACCOUNTS) {
        let mut open: Vec<(Uuid, Uuid)> = accounts.iter().map(|id| (id.0, Uuid::nil())).collect();
        while !open.is_empty() {
            let (ids, after): (Vec<Uuid>, Vec<Uuid>) = open.iter().copied().unzip();
            let pages: Vec<Page> = sqlx::query_as(AssertSqlSafe(sql.clone()))
                .bind(picture.next())
                .bind(picture.open())
                .bind(ids)
                .bind(after)
                .bind(before)
                .fetch_all(db)
                .await
                .context("summing entries")?;
            told(pages.iter().map(|page| page.entries.unsigned_abs()).sum());
            open.clear();
            for page in pages {
                sums.entry(page.account_id).or_default().add(Turnover { debits: page.debits, credits: page.credits });
                open.extend(page.last.filter(|_| page.entries >= PAGE).map(|last| (page.account_id.0, last.0)));
            }
        }
    }
    Ok(sums)
}
