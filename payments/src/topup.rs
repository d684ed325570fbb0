//! Top-ups of wallets (wallets.md): step 1 of a payment for a wallet, asked for by a caller or wanted by the wallet itself.

use billing::invoice::{self, InvoiceStatus};
use domain::input::Field;
use domain::{
    Clock, Currency, CustomerId, Error, Input, Instant, InvoiceId, Money, PaymentMethodId, Result, Scope,
    TransactionId, WalletId, WorkspaceId,
};
use ledger::wallet::{self, CreditKind, Details, Wallet, WalletTransactionSource, topup};
use ledger::{Outcome, lock_wallets, wallet_for};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{BodyKey, StoreError, Tx};
use utoipa::ToSchema;

use crate::charge::{Attempt, TOPUP_PAUSE, announce_success};
use crate::transaction::{self, ByHand, NewTransaction, Transaction, Way};
use crate::words::{TransactionKind, TransactionStatus};
use crate::{Payments, at_customer};

domain::wire_enum! {
    /// Where the money of a top-up comes from (`handler.walletTopupMode`).
    pub enum WalletTopupMode {
        /// A gateway is charged now.
        Charge = "CHARGE",
        /// An invoice asks for it.
        Invoice = "INVOICE",
        /// It is there already.
        Manual = "MANUAL",
    }
}

/// `domain.TopupRequest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TopupRequest {
    /// What is charged and credited; above zero.
    pub amount: Money,
    /// Default: the customer's default method.
    pub payment_method_id: Option<PaymentMethodId>,
    /// A repeat with the same key answers 200 with how far the first is.
    pub idempotency_key: Option<String>,
}

/// `handler.walletTopupRequest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct WalletTopupRequest {
    /// What is credited; above zero. Its currency names the wallet.
    pub amount: Money,
    /// Default CHARGE.
    #[schema(required = false)]
    pub mode: WalletTopupMode,
    /// Default: the customer's default method. With CHARGE only.
    pub payment_method_id: Option<PaymentMethodId>,
    /// The caller's name of the money. With MANUAL only.
    pub reference: Option<String>,
    /// A repeat with the same key answers 200 with how far the first is.
    pub idempotency_key: Option<String>,
}

/// `handler.topupResponse`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TopupResponse {
    /// The wallet as it is now.
    pub wallet: Wallet,
    /// The payment.
    pub transaction_id: TransactionId,
    /// How far it is.
    pub status: TransactionStatus,
}

/// `handler.walletTopupResponse`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct WalletTopupResponse {
    /// The wallet.
    pub wallet_id: WalletId,
    /// Where the money comes from.
    pub mode: WalletTopupMode,
    /// How far the payment is; of an invoice, whether it is paid.
    pub status: TransactionStatus,
    /// The invoice that asks for it.
    #[schema(required)]
    pub invoice_id: Option<InvoiceId>,
    /// The payment.
    #[schema(required)]
    pub transaction_id: Option<TransactionId>,
}

/// A top-up whose payment is written down: what its idempotency key remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The wallet.
    pub wallet_id: WalletId,
    /// Where the money comes from.
    pub mode: WalletTopupMode,
    /// The payment.
    pub transaction_id: TransactionId,
}

/// A top-up of a customer's wallet that is written down: what its idempotency key remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OpenedOfCustomer {
    /// By a payment.
    Paid(Opened),
    /// By an invoice.
    Invoiced {
        /// The wallet.
        wallet_id: WalletId,
        /// What asks for the money.
        invoice_id: InvoiceId,
    },
}

impl TopupRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let amount = input.required("amount", Field::money_positive);
        let payment_method_id = input.optional("payment_method_id", Field::id);
        let idempotency_key = input.optional("idempotency_key", |v| v.text(1, 255));
        input.finish()?;
        let amount = amount.ok_or_else(|| Error::invariant("a required member passed unread"))?;
        Ok(Self { amount, payment_method_id, idempotency_key })
    }
}

impl WalletTopupRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field, also for members of another mode.
    pub fn read(body: &Value) -> Result<Self> {
        use domain::error::FieldErrorCode::NotAllowed;
        let mut input = Input::new(body)?;
        let amount = input.required("amount", Field::money_positive);
        let mode = input.optional("mode", Field::word).unwrap_or(WalletTopupMode::Charge);
        let payment_method_id = input.optional("payment_method_id", Field::id);
        let reference = input.optional("reference", |v| v.text(1, 255));
        let idempotency_key = input.optional("idempotency_key", |v| v.text(1, 255));
        if payment_method_id.is_some() && mode != WalletTopupMode::Charge {
            input.error("payment_method_id", NotAllowed, "only mode CHARGE charges a payment method");
        }
        if reference.is_some() && mode != WalletTopupMode::Manual {
            input.error("reference", NotAllowed, "only mode MANUAL has a reference of yours");
        }
        input.finish()?;
        let amount = amount.ok_or_else(|| Error::invariant("a required member passed unread"))?;
        Ok(Self { amount, mode, payment_method_id, reference, idempotency_key })
    }
}

impl Payments {
    /// Step 1 of `POST /v1/wallets/{id}/topup`; after the commit comes [`Payments::proceed`].
    ///
    /// # Errors
    /// `NotFound` for the wallet or the method; `CURRENCY_MISMATCH`; the caps of credits; `NO_PAYMENT_METHOD`,
    /// `NO_GATEWAY_AVAILABLE`; `IDEMPOTENCY_CONFLICT`.
    pub async fn topup(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: WalletId,
        request: &TopupRequest,
    ) -> Result<Outcome<Opened>> {
        let key = BodyKey::new(scope, "wallet.topup", id, request.idempotency_key.as_deref(), request)?;
        if let Some(earlier) = key.claim(scope, tx).await? {
            return Ok(Outcome::replayed(earlier));
        }
        let opened = self.open(scope, tx, id, request.amount, request.payment_method_id).await?;
        key.complete(tx, &opened).await?;
        Ok(Outcome::first(opened))
    }

    /// Step 1 of `POST /v1/customers/{id}/wallets/topup`, and all of it in the modes MANUAL and INVOICE; after the commit comes
    /// [`Payments::proceed_with_topup`]. The wallet in the amount's currency is made when it is missing.
    ///
    /// # Errors
    /// As [`Payments::topup`]; `CURRENCY_NOT_ENABLED`.
    pub async fn topup_customer(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        customer: CustomerId,
        request: &WalletTopupRequest,
    ) -> Result<Outcome<OpenedOfCustomer>> {
        let key = BodyKey::new(scope, "customer.topup", customer, request.idempotency_key.as_deref(), request)?;
        if let Some(earlier) = key.claim(scope, tx).await? {
            return Ok(Outcome::replayed(earlier));
        }
        let (wallet, amount) = (wallet_of(scope, tx, customer, request.amount.currency()).await?, request.amount);
        let opened = match request.mode {
            WalletTopupMode::Manual => OpenedOfCustomer::Paid(received(scope, tx, wallet, request).await?),
            WalletTopupMode::Charge => {
                OpenedOfCustomer::Paid(self.open(scope, tx, wallet, amount, request.payment_method_id).await?)
            }
            WalletTopupMode::Invoice => invoiced(scope, tx, wallet, amount).await?,
        };
        key.complete(tx, &opened).await?;
        Ok(Outcome::first(opened))
    }

    /// Steps 2 and 3 of a customer's top-up, where a payment has to be asked for, and how far it is then. One that an invoice asks
    /// for is PENDING until that is paid, and CANCELLED when that is void.
    ///
    /// # Errors
    /// As [`Payments::proceed`] and [`Transaction::refusal`].
    pub async fn proceed_with_topup(
        &self,
        scope: &Scope,
        opened: &OpenedOfCustomer,
        attempt: Attempt,
    ) -> Result<WalletTopupResponse> {
        match *opened {
            OpenedOfCustomer::Paid(Opened { wallet_id, mode, transaction_id }) => {
                let payment = self.proceed(scope, transaction_id, attempt).await?;
                payment.refusal()?;
                let (status, transaction_id) = (payment.status, Some(payment.id));
                Ok(WalletTopupResponse { wallet_id, mode, status, invoice_id: None, transaction_id })
            }
            OpenedOfCustomer::Invoiced { wallet_id, invoice_id } => {
                let mut conn = self.store.pool().acquire().await.context("waiting for a database connection")?;
                let status = match invoice::read::get(scope, &mut conn, invoice_id).await?.invoice.status {
                    InvoiceStatus::Paid => TransactionStatus::Succeeded,
                    InvoiceStatus::Void => TransactionStatus::Cancelled,
                    _ => TransactionStatus::Pending,
                };
                let (mode, invoice_id) = (WalletTopupMode::Invoice, Some(invoice_id));
                Ok(WalletTopupResponse { wallet_id, mode, status, invoice_id, transaction_id: None })
            }
        }
    }

    async fn open(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        id: WalletId,
        amount: Money,
        named: Option<PaymentMethodId>,
    ) -> Result<Opened> {
        let batch = lock_wallets(tx, scope, &[id]).await?;
        batch.check_topup(id, amount)?;
        let customer = batch.wallet(id)?.wallet.customer_id;
        let opened = self.order(scope, tx, (customer, id), amount, named, false).await?;
        Ok(Opened { wallet_id: id, mode: WalletTopupMode::Charge, transaction_id: opened.id })
    }

    /// Writes the payment of a locked wallet.
    async fn order(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        (customer_id, wallet): (CustomerId, WalletId),
        amount: Money,
        named: Option<PaymentMethodId>,
        is_automatic: bool,
    ) -> Result<Transaction> {
        let way = self.route(scope, tx.conn(), customer_id, amount.currency(), named).await?;
        let scope = at_customer(scope, tx.conn(), customer_id).await?;
        let new = NewTransaction::new(customer_id, TransactionKind::WalletTopup, amount, way).of_wallet(wallet);
        let new = NewTransaction { is_automatic, ..new };
        let row = transaction::insert(&scope, tx, &new, Clock::System.now()).await?;
        tx.emit(&scope, "payment.initiated", "transaction", row.id, row.payload()).await?;
        Ok(row)
    }

    /// Starts the automatic top-up that a wallet wants, if it still does, and asks for it; false when it does not.
    ///
    /// One that cannot be started (no method, no gateway, a cap) is announced like one that failed.
    pub(crate) async fn auto_topup(&self, workspace: WorkspaceId, id: WalletId, real: Instant) -> Result<bool> {
        let scope = self.system_scope(workspace).await?;
        let mut tx = self.store.begin("auto_topup").await?;
        let started = self.start(&scope, &mut tx, id, real).await;
        let Some(row) = tx.end(started).await? else { return Ok(false) };
        self.proceed(&scope, row.id, Attempt::First).await?;
        Ok(true)
    }

    async fn start(&self, scope: &Scope, tx: &mut Tx, id: WalletId, real: Instant) -> Result<Option<Transaction>> {
        let batch = lock_wallets(tx, scope, &[id]).await?;
        if !topup::take_wish(tx, id, real).await? {
            return Ok(None);
        }
        let wallet = batch.wallet(id)?.wallet;
        let is_low = wallet.low_balance_threshold.is_some_and(|limit| wallet.cash_balance.amount() < limit.amount());
        let Some(amount) = wallet.auto_topup_amount.filter(|_| wallet.auto_topup_enabled && is_low) else {
            return Ok(None);
        };
        let ordered = match batch.check_topup(id, amount) {
            Ok(()) => self.order(scope, tx, (wallet.customer_id, id), amount, None, true).await,
            Err(refused) => Err(refused),
        };
        match ordered {
            Ok(row) => Ok(Some(row)),
            Err(refused @ Error::Rule { .. }) => {
                topup::pause(tx, id, real + TOPUP_PAUSE, false).await?;
                let scope = at_customer(scope, tx.conn(), wallet.customer_id).await?;
                let payload = json!({
                    "wallet_id": id, "customer_id": wallet.customer_id, "transaction_id": null, "amount": amount,
                    "is_automatic": true, "failure_code": refused.code(), "failure_message": refused.to_string(),
                });
                let payload = payload.as_object().cloned().unwrap_or_default();
                tx.emit(&scope, "wallet.topup_failed", "wallet", id, payload).await?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What a caller is told of a top-up whose payment has gone so far.
    ///
    /// # Errors
    /// As [`Transaction::refusal`].
    pub async fn answer(&self, scope: &Scope, row: &Transaction) -> Result<TopupResponse> {
        row.refusal()?;
        let id = row.wallet_id.ok_or_else(|| Error::invariant("a top-up without a wallet"))?;
        let wallet = wallet::get(scope, &self.store, id).await?.wallet;
        Ok(TopupResponse { wallet, transaction_id: row.id, status: row.status })
    }
}

/// The customer's wallet in a currency, made when it is missing.
pub(crate) async fn wallet_of(
    scope: &Scope,
    tx: &mut Tx,
    customer: CustomerId,
    currency: Currency,
) -> Result<WalletId> {
    if let Some(id) = wallet_for(scope, tx, customer, currency).await? {
        return Ok(id);
    }
    let request = wallet::CreateWalletRequest::read(&json!({ "currency": currency }))?;
    Ok(wallet::create_secondary(scope, tx, Some(customer), &request).await?.wallet.id)
}

/// An invoice asks for the money. The caps of credits are asked now: what is paid of the invoice is credited in any case.
async fn invoiced(scope: &Scope, tx: &mut Tx, id: WalletId, amount: Money) -> Result<OpenedOfCustomer> {
    let batch = lock_wallets(tx, scope, &[id]).await?;
    batch.check_topup(id, amount)?;
    let customer_id = batch.wallet(id)?.wallet.customer_id;
    let scope = at_customer(scope, tx.conn(), customer_id).await?;
    let invoice_id = invoice::topup::issue_topup(&scope, tx, customer_id, id, amount).await?;
    Ok(OpenedOfCustomer::Invoiced { wallet_id: id, invoice_id })
}

/// Money that is there already: credited at once, within the caps of credits.
async fn received(scope: &Scope, tx: &mut Tx, id: WalletId, request: &WalletTopupRequest) -> Result<Opened> {
    let mut batch = lock_wallets(tx, scope, &[id]).await?;
    let customer_id = batch.wallet(id)?.wallet.customer_id;
    batch.check_topup(id, request.amount)?;
    let scope = at_customer(scope, tx.conn(), customer_id).await?;
    let way = Way::Hand(ByHand { reference: request.reference.clone(), ..ByHand::default() });
    let new = NewTransaction::new(customer_id, TransactionKind::WalletTopup, request.amount, way).of_wallet(id);
    let row = transaction::insert(&scope, tx, &new, Clock::System.now()).await?;
    let details = Details::of(WalletTransactionSource::Manual).reference("transaction", row.id);
    batch.credit(id, domain::TransferId(row.id.0), request.amount, CreditKind::Cash, &details)?;
    batch.write(tx, &scope).await?;
    announce_success(&scope, tx, &row).await?;
    Ok(Opened { wallet_id: id, mode: WalletTopupMode::Manual, transaction_id: row.id })
}
