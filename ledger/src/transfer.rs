//! Transfers: immutable, balanced by construction, booked once however often they are attempted (rule D5).

use std::collections::{BTreeMap, HashSet};

use domain::{Currency, Instant, Money, Result, Scope, TransferId, wire_enum};
use rust_decimal::Decimal;
use store::{StoreError, Tx};
use uuid::Uuid;

use crate::account::{Account, AccountRow};
use crate::closing;

wire_enum! {
    /// What a transfer is for.
    pub enum TransferKind {
        /// Credit of a wallet.
        WalletCredit = "wallet_credit",
        /// Debit of a wallet.
        WalletDebit = "wallet_debit",
        /// Correction of a wallet.
        WalletAdjustment = "wallet_adjustment",
        /// Money between two wallets.
        WalletTransfer = "wallet_transfer",
        /// Promotional credit that lapsed.
        PromotionalExpiry = "promotional_expiry",
        /// Reservation.
        Hold = "hold",
        /// End of a reservation without a charge.
        HoldRelease = "hold_release",
        /// Charge of a reservation.
        HoldCapture = "hold_capture",
        /// Finalized invoice.
        Invoice = "invoice",
        /// Money applied to an invoice: of a wallet, through a gateway, by hand.
        InvoicePayment = "invoice_payment",
        /// Captured usage that an invoice shows.
        UsageSettlement = "usage_settlement",
        /// Issued credit note.
        CreditNote = "credit_note",
        /// Money of a payment that was given back.
        PaymentRefund = "payment_refund",
        /// What a settlement adds to what is owed, or takes back of it.
        Settlement = "settlement",
        /// A settlement that was paid out.
        Payout = "payout",
    }
}

/// One side of a transfer: a debit when positive, a credit when negative; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is booked.
    pub account: Account,
    /// Signed amount.
    pub amount: Money,
}

/// A balanced set of entries. Only [`TransferDraft::balanced`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    id: TransferId,
    kind: TransferKind,
    reference: Option<(String, Uuid)>,
    description: Option<String>,
    booked_at: Instant,
    entries: Vec<Entry>,
}

/// Why entries are no transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Nothing but zeros.
    #[error("a transfer needs entries")]
    Empty,
    /// Debits and credits differ.
    #[error("debits exceed credits by {difference} {currency}")]
    Unbalanced {
        /// The currency that does not add up.
        currency: Currency,
        /// Debits minus credits.
        difference: Decimal,
    },
}

impl From<TransferError> for domain::Error {
    fn from(error: TransferError) -> Self {
        Self::internal("building a transfer", error)
    }
}

/// Entries on their way to a [`Transfer`].
#[derive(Clone, Debug)]
pub struct TransferDraft(Transfer);

impl Transfer {
    /// Starts a transfer. `id` is chosen before the first attempt, so that a repeat is seen (rule D5).
    #[must_use]
    pub fn draft(id: TransferId, kind: TransferKind, booked_at: Instant) -> TransferDraft {
        TransferDraft(Self { id, kind, reference: None, description: None, booked_at, entries: Vec::new() })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> TransferId {
        self.id
    }

    /// Its entries.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl TransferDraft {
    /// Adds a debit; zero is left out, a negative amount is a credit.
    #[must_use]
    pub fn debit(mut self, account: Account, amount: Money) -> Self {
        if !amount.is_zero() {
            self.0.entries.push(Entry { account, amount });
        }
        self
    }

    /// Adds a credit; zero is left out, a negative amount is a debit.
    #[must_use]
    pub fn credit(self, account: Account, amount: Money) -> Self {
        self.debit(account, amount.negate())
    }

    /// Names what the transfer belongs to.
    #[must_use]
    pub fn reference(mut self, reference_type: &str, reference_id: impl Into<Uuid>) -> Self {
        self.0.reference = Some((reference_type.to_owned(), reference_id.into()));
        self
    }

    /// Adds a text for people.
    #[must_use]
    pub fn description(mut self, description: Option<&str>) -> Self {
        self.0.description = description.map(str::to_owned);
        self
    }

    /// The transfer.
    ///
    /// # Errors
    /// `Unbalanced` when a currency does not add up to zero, `Empty` without an entry.
    pub fn balanced(self) -> Result<Transfer, TransferError> {
        let mut sums: BTreeMap<Currency, i128> = BTreeMap::new();
        for entry in &self.0.entries {
            // Exact: a Money is a whole number of minor units below 10^24, and i128 holds 10^38.
            *sums.entry(entry.amount.currency()).or_default() += entry.amount.amount().mantissa();
        }
        if sums.is_empty() {
            return Err(TransferError::Empty);
        }
        match sums.into_iter().find(|(_, sum)| *sum != 0) {
            None => Ok(self.0),
            Some((currency, sum)) => {
                let difference = Decimal::try_from_i128_with_scale(sum, currency.exponent()).unwrap_or(Decimal::MAX);
                Err(TransferError::Unbalanced { currency, difference })
            }
        }
    }
}

/// Which transfers of a group were booked by this call; the others had been booked by an earlier attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Posted(HashSet<TransferId>);

impl Posted {
    /// Whether this call booked it.
    #[must_use]
    pub fn is_new(&self, id: TransferId) -> bool {
        self.0.contains(&id)
    }

    /// How many this call booked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this call booked nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One statement for the whole group: accounts that are missing, transfers that are new, the entries of the new ones.
/// Everything is inserted in the order of its id, so that groups wait for one another and never in a circle.
const POST: &str = "
WITH opened AS (
    INSERT INTO ledger_account (id, workspace_id, kind, currency, wallet_id, stripe, created_at)
    SELECT a.id, $1, a.kind, a.currency, a.wallet_id, a.stripe, $2
    FROM unnest($3::uuid[], $4::text[], $5::text[], $6::uuid[], $7::int2[]) AS a (id, kind, currency, wallet_id, stripe)
    WHERE NOT EXISTS (SELECT FROM ledger_account known WHERE known.id = a.id)
    ORDER BY a.id
    ON CONFLICT DO NOTHING
), booked AS (
    INSERT INTO ledger_transfer (id, workspace_id, kind, reference_type, reference_id, description, booked_at, created_at)
    SELECT t.id, $1, t.kind, t.reference_type, t.reference_id, t.description, t.booked_at, $2
    FROM unnest($8::uuid[], $9::text[], $10::text[], $11::uuid[], $12::text[], $13::timestamptz[])
        AS t (id, kind, reference_type, reference_id, description, booked_at)
    ORDER BY t.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), entered AS (
    INSERT INTO ledger_entry (transfer_id, seq, workspace_id, account_id, currency, amount)
    SELECT e.transfer_id, e.seq, $1, e.account_id, e.currency, e.amount
    FROM unnest($14::uuid[], $15::int2[], $16::uuid[], $17::text[], $18::numeric[])
        AS e (transfer_id, seq, account_id, currency, amount)
    JOIN booked ON booked.id = e.transfer_id
)
SELECT id FROM booked";

/// Books a group of transfers of one workspace. A transfer whose id is already booked is left as it is.
///
/// # Errors
/// `PERIOD_CLOSED` when one is booked before the end of a closed period; as every statement; `Internal` when a group names one
/// id twice.
pub async fn post(tx: &mut Tx, scope: &Scope, transfers: &[Transfer]) -> Result<Posted> {
    if transfers.is_empty() {
        return Ok(Posted::default());
    }
    let columns = Columns::of(scope, transfers)?;
    let booked: Result<Vec<TransferId>, sqlx::Error> = sqlx::query_scalar(POST)
        .bind(scope.workspace_id)
        .bind(scope.now())
        .bind(columns.account_ids)
        .bind(columns.account_kinds)
        .bind(columns.account_currencies)
        .bind(columns.account_wallets)
        .bind(columns.account_stripes)
        .bind(columns.ids)
        .bind(columns.kinds)
        .bind(columns.reference_types)
        .bind(columns.reference_ids)
        .bind(columns.descriptions)
        .bind(columns.booked_at)
        .bind(columns.entry_transfers)
        .bind(columns.entry_seqs)
        .bind(columns.entry_accounts)
        .bind(columns.entry_currencies)
        .bind(columns.entry_amounts)
        .fetch_all(tx.conn())
        .await;
    match booked {
        Err(sqlx::Error::Database(refused)) if refused.constraint() == Some(closing::CONSTRAINT) => {
            Err(domain::Error::rule(closing::PERIOD_CLOSED, refused.message()))
        }
        booked => Ok(Posted(booked.context("booking transfers")?.into_iter().collect())),
    }
}

/// Books transfers none of which may be booked already: an earlier attempt was committed, nothing may be written again, and the
/// caller reads what it left.
///
/// # Errors
/// `Conflict`; as [`post`].
pub async fn post_new(tx: &mut Tx, scope: &Scope, transfers: &[Transfer]) -> Result<()> {
    match post(tx, scope, transfers).await?.len() == transfers.len() {
        true => Ok(()),
        false => Err(domain::Error::conflict("CONFLICT", "this operation has been booked already")),
    }
}

/// The group as one array per column.
#[derive(Default)]
struct Columns {
    account_ids: Vec<Uuid>,
    account_kinds: Vec<&'static str>,
    account_currencies: Vec<Currency>,
    account_wallets: Vec<Option<Uuid>>,
    account_stripes: Vec<i16>,
    ids: Vec<Uuid>,
    kinds: Vec<&'static str>,
    reference_types: Vec<Option<String>>,
    reference_ids: Vec<Option<Uuid>>,
    descriptions: Vec<Option<String>>,
    booked_at: Vec<Instant>,
    entry_transfers: Vec<Uuid>,
    entry_seqs: Vec<i16>,
    entry_accounts: Vec<Uuid>,
    entry_currencies: Vec<Currency>,
    entry_amounts: Vec<Decimal>,
}

impl Columns {
    fn of(scope: &Scope, transfers: &[Transfer]) -> Result<Self> {
        let mut columns = Self::default();
        let mut accounts: BTreeMap<Uuid, AccountRow> = BTreeMap::new();
        let mut seen = HashSet::new();
        for transfer in transfers {
            if !seen.insert(transfer.id) {
                return Err(domain::Error::invariant(format!("transfer {} stands twice in one group", transfer.id)));
            }
            columns.add_transfer(transfer);
            for (seq, entry) in (1_i16..).zip(&transfer.entries) {
                let account = entry.account.row(scope.workspace_id, entry.amount.currency(), transfer.id);
                accounts.insert(account.id.0, account);
                columns.add_entry(transfer.id, seq, &account, entry.amount);
            }
        }
        for account in accounts.values() {
            columns.account_ids.push(account.id.0);
            columns.account_kinds.push(account.kind);
            columns.account_currencies.push(account.currency);
            columns.account_wallets.push(account.wallet_id.map(Into::into));
            columns.account_stripes.push(account.stripe);
        }
        Ok(columns)
    }

    fn add_transfer(&mut self, transfer: &Transfer) {
        let (reference_type, reference_id) = transfer.reference.clone().unzip();
        self.ids.push(transfer.id.0);
        self.kinds.push(transfer.kind.as_str());
        self.reference_types.push(reference_type);
        self.reference_ids.push(reference_id);
        self.descriptions.push(transfer.description.clone());
        self.booked_at.push(transfer.booked_at);
    }

    fn add_entry(&mut self, transfer: TransferId, seq: i16, account: &AccountRow, amount: Money) {
        self.entry_transfers.push(transfer.0);
        self.entry_seqs.push(seq);
        self.entry_accounts.push(account.id.0);
        self.entry_currencies.push(amount.currency());
        self.entry_amounts.push(amount.amount());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::WorkspaceAccount::{Receivable, Revenue, TaxPayable};

    fn money(text: &str, currency: Currency) -> Money {
        Money::new(domain::money::parse_decimal(text).expect("a decimal"), currency).expect("an amount")
    }

    fn draft() -> TransferDraft {
        Transfer::draft(TransferId::generate(), TransferKind::Invoice, Instant::UNIX_EPOCH)
    }

    #[test]
    fn only_balanced_entries_become_a_transfer() {
        let euro = |text| money(text, Currency::EUR);
        let receivable = Account::Workspace(Receivable);
        let revenue = Account::Workspace(Revenue);
        let good = draft().debit(receivable, euro("119")).credit(revenue, euro("100"));
        assert_eq!(
            good.clone().balanced(),
            Err(TransferError::Unbalanced { currency: Currency::EUR, difference: euro("19").amount() })
        );
        let good = good.credit(Account::Workspace(TaxPayable), euro("19")).balanced().expect("balanced");
        assert_eq!(good.entries().len(), 3);
        let mixed = draft().debit(receivable, euro("5")).credit(revenue, money("5", Currency::USD));
        assert!(matches!(mixed.balanced(), Err(TransferError::Unbalanced { .. })));
        assert_eq!(draft().debit(receivable, euro("0")).balanced(), Err(TransferError::Empty));
    }
}
