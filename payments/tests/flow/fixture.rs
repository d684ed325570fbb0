//! A tenant with a live and a sandbox workspace, a customer with a card, and a bank.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::TimeDelta;
use domain::{
    Actor, Clock, Currency, CustomerId, InvoiceId, Money, PaymentGatewayId, PaymentMethodId, ProviderID, Result, Scope,
    TransactionId, TransferId, WalletId, WorkspaceMode,
};
use engines::testing::TestDatabase;
use ledger::wallet::{self, DebitRequest, NewWallet, WalletDefaults, WalletOperation, WalletRequest};
use parking_lot::Mutex;
use payments::charge::Attempt;
use payments::gateway::{self, CreatePaymentGatewayConfigRequest};
use payments::method::{self, CreatePaymentMethodRequest};
use payments::provider::{Account, ChargeOrder, Decline, Gateway, Gateways, Outcome, RefundOrder, Subject};
use payments::topup::{Opened, TopupRequest};
use payments::transaction::{self, Transaction};
use payments::words::FailureCode;
use payments::{Endpoints, Payments, Vault};
use serde_json::{Value, json};
use store::Store;
use tokio::sync::Notify;

use crate::invoice::{self, Line};

/// What the bank does with the next order that it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Takes the money and says so.
    Take,
    /// Takes the money; the answer is lost.
    TakeAndLose,
    /// Takes the money and never answers.
    TakeAndHang,
    /// Has the order and decides later; it decides well.
    TakeLater,
    /// Has the order and decides later; it decides badly.
    RefuseLater,
    /// Does not get the order, and nobody knows.
    Miss,
    /// Does not get the order, and the sender knows.
    Unreachable,
    /// Says no.
    Refuse(FailureCode),
}

/// A provider that remembers idempotency keys for ever and counts what it takes and what it gives back.
#[derive(Default)]
pub struct Bank {
    taken: Mutex<BTreeMap<TransactionId, Money>>,
    returned: Mutex<BTreeMap<TransactionId, Money>>,
    steps: Mutex<VecDeque<Step>>,
    /// Rings when an order hangs.
    pub hanging: Notify,
}

impl Bank {
    pub fn will(&self, steps: impl IntoIterator<Item = Step>) {
        self.steps.lock().extend(steps);
    }

    /// How often money was really taken.
    pub fn charges(&self) -> usize {
        self.taken.lock().len()
    }

    /// What was really given back, in the order of the refunds.
    pub fn returned(&self) -> Vec<String> {
        self.returned.lock().values().map(|money| money.amount().to_string()).collect()
    }

    /// What becomes of an order that moves money into a drawer.
    async fn decide(
        &self,
        drawer: &Mutex<BTreeMap<TransactionId, Money>>,
        id: TransactionId,
        amount: Money,
    ) -> Outcome {
        let reference = format!("bank_{id}");
        if drawer.lock().contains_key(&id) {
            return Outcome::Succeeded { reference };
        }
        let step = self.steps.lock().pop_front().unwrap_or(Step::Take);
        if matches!(step, Step::Take | Step::TakeAndLose | Step::TakeAndHang | Step::TakeLater) {
            drawer.lock().insert(id, amount);
        }
        match step {
            Step::Take => Outcome::Succeeded { reference },
            Step::TakeAndLose => Outcome::Unknown { detail: "the answer was lost".into() },
            Step::TakeAndHang => {
                self.hanging.notify_one();
                std::future::pending().await
            }
            Step::TakeLater | Step::RefuseLater => Outcome::Pending { reference },
            Step::Miss => Outcome::Unknown { detail: "nothing came back".into() },
            Step::Unreachable => Outcome::NotSent { detail: "connection refused".into() },
            Step::Refuse(code) => Outcome::Declined(Decline { code, message: "no".into(), reference: Some(reference) }),
        }
    }
}

#[async_trait]
impl Gateway for Bank {
    async fn charge(&self, order: &ChargeOrder) -> Outcome {
        self.decide(&self.taken, order.transaction_id, order.amount).await
    }

    async fn refund(&self, order: &RefundOrder) -> Outcome {
        assert!(order.charge_reference.starts_with("bank_"), "of a charge of this bank");
        self.decide(&self.returned, order.transaction_id, order.amount).await
    }

    async fn status(&self, subject: Subject, reference: &str) -> Outcome {
        let drawer = match subject {
            Subject::Charge => &self.taken,
            Subject::Refund => &self.returned,
        };
        let reference = reference.to_owned();
        match drawer.lock().keys().any(|id| reference == format!("bank_{id}")) {
            true => Outcome::Succeeded { reference },
            false => {
                let (code, message) = (FailureCode::Decline, "no, after all".into());
                Outcome::Declined(Decline { code, message, reference: Some(reference) })
            }
        }
    }
}

struct OneBank(Arc<Bank>);

impl Gateways for OneBank {
    fn can_charge(&self, _: WorkspaceMode, _: ProviderID) -> bool {
        true
    }

    fn open(&self, account: &Account) -> Result<Arc<dyn Gateway>> {
        assert!(account.mode == WorkspaceMode::Sandbox || account.secrets["api_key"].starts_with("sk_"));
        Ok(self.0.clone())
    }
}

pub struct Shop {
    pub store: Store,
    pub payments: Payments,
    pub bank: Arc<Bank>,
    pub live: Scope,
    pub sandbox: Scope,
    // Dropped last: the database goes with it.
    _database: TestDatabase,
}

/// A customer with a wallet and a card.
#[derive(Clone, Copy, Debug)]
pub struct Payer {
    pub customer: CustomerId,
    pub wallet: WalletId,
    pub gateway: PaymentGatewayId,
    pub method: PaymentMethodId,
}

impl Shop {
    /// Whose payments go through the bank.
    pub async fn open() -> Self {
        let mut shop = Self::with_adapters().await;
        shop.payments = shop.payments.with_gateways(Arc::new(OneBank(shop.bank.clone())));
        shop
    }

    /// Whose payments go through the providers of the house.
    pub async fn with_adapters() -> Self {
        let database = engines::testing::database().await;
        let store = Store::connect(database.url(), 20).await.unwrap();
        let mut tx = store.begin("bootstrap").await.unwrap();
        let organization = access::NewOrganization::named("Shop");
        let tenant = access::bootstrap(&mut tx, Clock::System.now(), &organization).await.unwrap();
        tx.commit().await.unwrap();
        let scope = |workspace: &access::NewWorkspace| Scope {
            organization_id: tenant.organization_id,
            workspace_id: workspace.id,
            mode: workspace.mode,
            actor: Actor::System,
            clock: Clock::System,
        };
        let payments = Payments::new(store.clone(), Vault::ephemeral().unwrap(), Endpoints::default());
        Self {
            live: scope(&tenant.live),
            sandbox: scope(&tenant.sandbox),
            payments,
            bank: Arc::default(),
            store,
            _database: database,
        }
    }

    pub async fn customer(&self, scope: &Scope, defaults: WalletDefaults) -> (CustomerId, WalletId) {
        let customer_id = CustomerId::generate();
        sqlx::query(
            "INSERT INTO customer (id, organization_id, workspace_id, email, name, customer_type, billing_model, mode,
                 status, created_at, updated_at)
             VALUES ($1, $2, $3, 'a@b.example', 'A', 'BUSINESS', 'PREPAID', 'PREPAID', 'ACTIVE', now(), now())",
        )
        .bind(customer_id)
        .bind(scope.organization_id)
        .bind(scope.workspace_id)
        .execute(self.store.pool())
        .await
        .unwrap();
        let mut tx = self.store.begin("wallet").await.unwrap();
        let new = NewWallet { customer_id, currency: Currency::EUR, defaults };
        let wallet = wallet::create_primary(scope, &mut tx, new).await.unwrap().wallet.id;
        tx.commit().await.unwrap();
        (customer_id, wallet)
    }

    pub async fn payer(&self, scope: &Scope) -> Payer {
        self.payer_with(scope, WalletDefaults::default()).await
    }

    pub async fn payer_with(&self, scope: &Scope, defaults: WalletDefaults) -> Payer {
        let (customer, wallet) = self.customer(scope, defaults).await;
        let gateway = self.gateway(scope, "stripe").await;
        let method = self.method(scope, customer, "stripe", &format!("pm_{customer}")).await;
        Payer { customer, wallet, gateway, method }
    }

    pub async fn gateway(&self, scope: &Scope, provider: &str) -> PaymentGatewayId {
        let mode = if scope.mode == WorkspaceMode::Live { "live" } else { "test" };
        let config = json!({"api_key": "sk_1", "webhook_secret": "whsec_1"});
        let name = uuid::Uuid::now_v7().to_string();
        let body = json!({"provider": provider, "mode": mode, "config": config, "display_name": name});
        let request = CreatePaymentGatewayConfigRequest::read(&body).unwrap();
        let mut tx = self.store.begin("gateway").await.unwrap();
        let made = gateway::create(scope, &mut tx, &self.payments.vault, &request).await.unwrap();
        tx.commit().await.unwrap();
        made.id
    }

    pub async fn method(&self, scope: &Scope, customer: CustomerId, provider: &str, token: &str) -> PaymentMethodId {
        let body = json!({"customer_id": customer, "type": "CREDIT_CARD", "provider": provider, "provider_id": token});
        let mut tx = self.store.begin("method").await.unwrap();
        let request = CreatePaymentMethodRequest::read(&body).unwrap();
        let made = method::create(scope, &mut tx, &request).await.unwrap();
        tx.commit().await.unwrap();
        made.id
    }

    /// Step 1 of a top-up.
    pub async fn order(&self, scope: &Scope, wallet: WalletId, value: &str) -> Result<Opened> {
        let request = TopupRequest::read(&json!({"amount": eur(value)}))?;
        let mut tx = self.store.begin("topup").await?;
        let opened = self.payments.topup(scope, &mut tx, wallet, &request).await;
        Ok(tx.end(opened).await?.value)
    }

    /// All steps of a top-up.
    pub async fn topup(&self, scope: &Scope, wallet: WalletId, value: &str) -> Result<Transaction> {
        let opened = self.order(scope, wallet, value).await?;
        self.payments.proceed(scope, opened.transaction_id, Attempt::First).await
    }

    /// Breaks every transaction that tells of this, at that point.
    pub async fn fail_at(&self, event_type: &str) {
        let sql = format!(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'killed'; END $$;
             CREATE TRIGGER die BEFORE INSERT ON outbox FOR EACH ROW WHEN (NEW.event_type = '{event_type}')
                 EXECUTE FUNCTION die()"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(self.store.pool()).await.unwrap();
    }

    /// The reverse of [`Shop::fail_at`].
    pub async fn fail_no_more(&self) {
        sqlx::raw_sql("DROP TRIGGER die ON outbox").execute(self.store.pool()).await.unwrap();
    }

    /// Sweeps at an instant that lies so many minutes ahead.
    pub async fn sweep_in(&self, minutes: i64) -> payments::sweep::Swept {
        self.payments.sweep(Clock::System.now() + TimeDelta::minutes(minutes)).await.unwrap()
    }

    pub async fn debit(&self, scope: &Scope, wallet: WalletId, value: &str) {
        let request = WalletRequest::Debit(DebitRequest::read(&json!({"amount": eur(value)})).unwrap());
        let operation = WalletOperation { transfer_id: TransferId::generate(), wallet_id: wallet, request };
        let mut tx = self.store.begin("debit").await.unwrap();
        let _ = wallet::perform(scope, &mut tx, operation).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub async fn cash(&self, scope: &Scope, wallet: WalletId) -> String {
        wallet::get(scope, &self.store, wallet).await.unwrap().wallet.cash_balance.amount().to_string()
    }

    pub async fn get(&self, scope: &Scope, id: TransactionId) -> Transaction {
        let mut conn = self.store.pool().acquire().await.unwrap();
        transaction::get(scope, &mut conn, id).await.unwrap()
    }

    /// `status amount` of every transaction, oldest first.
    pub async fn transactions(&self, scope: &Scope) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT kind || ' ' || status || ' ' || amount FROM payment_transaction WHERE workspace_id = $1 ORDER BY id",
        )
        .bind(scope.workspace_id)
        .fetch_all(self.store.pool())
        .await
        .unwrap()
    }

    /// How often each event about payments was announced.
    pub async fn events(&self, scope: &Scope) -> BTreeMap<String, i64> {
        let mut events = self.events_like(scope, "payment.%").await;
        events.extend(self.events_like(scope, "wallet.topup%").await);
        events
    }

    /// How often each event whose name is like this was announced.
    pub async fn events_like(&self, scope: &Scope, name: &str) -> BTreeMap<String, i64> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT event_type, count(*) FROM outbox WHERE workspace_id = $1 AND event_type LIKE $2 GROUP BY 1",
        )
        .bind(scope.workspace_id)
        .bind(name)
        .fetch_all(self.store.pool())
        .await
        .unwrap();
        rows.into_iter().collect()
    }

    /// A finalized invoice.
    pub async fn invoice(&self, scope: &Scope, customer: CustomerId, lines: &[Line<'_>]) -> InvoiceId {
        invoice::finalized(&self.store, scope, customer, lines).await
    }

    /// Status of an invoice, what is paid of it and what is due.
    pub async fn bill(&self, id: InvoiceId) -> String {
        sqlx::query_scalar(
            "SELECT status || ' paid ' || round(amount_paid, 2) || ' due ' || round(amount_due, 2) FROM invoice WHERE id = $1",
        )
        .bind(id)
        .fetch_one(self.store.pool())
        .await
        .unwrap()
    }

    /// The books must be as promised.
    pub async fn assert_verified(&self) {
        let report = ledger::verify(&self.store, &mut |_| {}).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.differences);
    }

    /// Balance of an account of the workspace in euro: debits less credits.
    pub async fn balance(&self, scope: &Scope, kind: &str) -> String {
        let rows = ledger::trial_balance(&self.store, scope, None, &mut |_| {}).await.unwrap();
        let balance = rows.into_iter().find(|row| row.kind == kind).map(|row| row.balance).unwrap_or_default();
        Money::new(balance, Currency::EUR).unwrap().amount().to_string()
    }
}

pub fn eur(value: &str) -> Value {
    json!({"value": value, "currency": "EUR"})
}

pub fn decimal(text: &str) -> rust_decimal::Decimal {
    domain::money::parse_decimal(text).unwrap()
}
