//! A database with one organization, and shorthand for what tests say often.

use domain::{
    Actor, Clock, Currency, CustomerId, Instant, Money, OrganizationId, Result, Scope, TransferId, WalletId,
    WalletMode, WorkspaceId, WorkspaceMode,
};
use engines::testing::TestDatabase;
use ledger::wallet::{
    self, CreditRequest, DebitRequest, HoldRequest, NewWallet, WalletAnswer, WalletDefaults, WalletOperation,
    WalletRequest,
};
use ledger::{Outcome, WalletDTO, WalletTransaction};
use serde_json::{Value, json};
use store::Store;

pub struct Books {
    pub store: Store,
    pub scope: Scope,
    // Dropped last: the database goes with it.
    database: TestDatabase,
}

impl Books {
    pub async fn new() -> Self {
        let database = engines::testing::database().await;
        let store = Store::connect(database.url(), 20).await.unwrap();
        let scope = workspace(&store).await;
        Self { store, scope, database }
    }

    /// Where the database is.
    pub fn url(&self) -> &str {
        self.database.url()
    }

    /// A customer with a primary wallet, as `billing` makes them.
    pub async fn wallet(&self, mode: WalletMode, currency: Currency, defaults: WalletDefaults) -> WalletDTO {
        let customer_id = self.db_customer(mode, None).await;
        self.primary(customer_id, currency, defaults).await
    }

    pub async fn euro_wallet(&self, mode: WalletMode, credit_limit: Option<&str>) -> WalletId {
        let defaults = WalletDefaults { credit_limit: credit_limit.map(decimal), ..WalletDefaults::default() };
        self.wallet(mode, Currency::EUR, defaults).await.wallet.id
    }

    pub async fn primary(&self, customer_id: CustomerId, currency: Currency, defaults: WalletDefaults) -> WalletDTO {
        let mut tx = self.store.begin("make a wallet").await.unwrap();
        let new = NewWallet { customer_id, currency, defaults };
        let wallet = wallet::create_primary(&self.scope, &mut tx, new).await.unwrap();
        tx.commit().await.unwrap();
        wallet
    }

    pub async fn db_customer(&self, mode: WalletMode, clock: Option<uuid::Uuid>) -> CustomerId {
        let id = CustomerId::generate();
        sqlx::query(
            "INSERT INTO customer (id, organization_id, workspace_id, email, name, customer_type, billing_model, mode,
                 status, test_clock_id, created_at, updated_at)
             VALUES ($1, $2, $3, 'a@b.example', 'A', 'BUSINESS', $4, $4, 'ACTIVE', $5, now(), now())",
        )
        .bind(id)
        .bind(self.scope.organization_id)
        .bind(self.scope.workspace_id)
        .bind(mode)
        .bind(clock)
        .execute(self.store.pool())
        .await
        .unwrap();
        id
    }

    pub async fn db_clock(&self, frozen_at: Instant) -> uuid::Uuid {
        let id = uuid::Uuid::now_v7();
        sqlx::query(
            "INSERT INTO test_clock (id, workspace_id, frozen_at, status, created_at, updated_at)
             VALUES ($1, $2, $3, 'active', now(), now())",
        )
        .bind(id)
        .bind(self.scope.workspace_id)
        .bind(frozen_at)
        .execute(self.store.pool())
        .await
        .unwrap();
        id
    }

    pub async fn db_accrual(&self, wallet: &WalletDTO, accrued: &str, closed: bool) {
        sqlx::query(
            "INSERT INTO usage_accrual (subscription_id, window_start, wallet_currency, workspace_id, customer_id,
                 wallet_id, currency, net, accrued, closed)
             VALUES ($1, now(), '', $2, $3, $4, $5, $6, $6, $7)",
        )
        .bind(uuid::Uuid::now_v7())
        .bind(self.scope.workspace_id)
        .bind(wallet.wallet.customer_id)
        .bind(wallet.wallet.id)
        .bind(wallet.wallet.currency)
        .bind(decimal(accrued))
        .bind(closed)
        .execute(self.store.pool())
        .await
        .unwrap();
    }

    /// Does an operation in a transaction of its own.
    pub async fn ask(&self, id: WalletId, request: WalletRequest) -> Result<WalletAnswer> {
        self.ask_as(&self.scope, id, request).await
    }

    pub async fn ask_as(&self, scope: &Scope, id: WalletId, request: WalletRequest) -> Result<WalletAnswer> {
        let mut tx = self.store.begin("a wallet operation").await?;
        let operation = WalletOperation { transfer_id: TransferId::generate(), wallet_id: id, request };
        let outcome = wallet::perform(scope, &mut tx, operation).await;
        tx.end(outcome).await
    }

    pub async fn credit(&self, id: WalletId, body: Value) -> Result<Outcome<WalletTransaction>> {
        self.ask(id, WalletRequest::Credit(CreditRequest::read(&body)?)).await?.movement()
    }

    pub async fn debit(&self, id: WalletId, body: Value) -> Result<Outcome<WalletTransaction>> {
        self.ask(id, WalletRequest::Debit(DebitRequest::read(&body)?)).await?.movement()
    }

    pub async fn hold(&self, id: WalletId, body: Value) -> Result<Outcome<ledger::WalletHold>> {
        self.ask(id, WalletRequest::Hold(HoldRequest::read(&body)?)).await?.hold()
    }

    pub async fn cash(&self, id: WalletId, value: &str) {
        self.credit(id, json!({"amount": eur(value)})).await.unwrap();
    }

    pub async fn promotional(&self, id: WalletId, value: &str) {
        self.credit(id, json!({"amount": eur(value), "is_promotional": true})).await.unwrap();
    }

    pub async fn get(&self, id: WalletId) -> WalletDTO {
        wallet::get(&self.scope, &self.store, id).await.unwrap()
    }

    /// `cash / promotional / held, available`.
    pub async fn balances(&self, id: WalletId) -> String {
        let dto = self.get(id).await;
        let wallet = &dto.wallet;
        let amounts = [wallet.cash_balance, wallet.promotional_balance, wallet.held_balance, dto.available_balance];
        let [cash, promotional, held, available] = amounts.map(|money| money.amount());
        format!("{cash} / {promotional} / {held}, {available}")
    }

    pub async fn movements(&self, id: WalletId) -> Vec<WalletTransaction> {
        let mut newest_first =
            wallet::list_transactions(&self.scope, &self.store, id, &[("limit".into(), "100".into())])
                .await
                .unwrap()
                .data;
        newest_first.reverse();
        newest_first
    }

    /// The books must be as promised.
    pub async fn assert_verified(&self) {
        let report = ledger::verify(&self.store, &mut |_| {}).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.differences);
        let mut sums = std::collections::BTreeMap::<Currency, rust_decimal::Decimal>::new();
        for row in ledger::trial_balance(&self.store, &self.scope, None, &mut |_| {}).await.unwrap() {
            *sums.entry(row.currency).or_default() += row.balance;
        }
        assert!(sums.values().all(rust_decimal::Decimal::is_zero), "{sums:?}");
    }

    /// Balance of a workspace account in euro, by the trial balance.
    pub async fn account(&self, kind: &str) -> String {
        let rows = ledger::trial_balance(&self.store, &self.scope, None, &mut |_| {}).await.unwrap();
        let row = rows.into_iter().find(|row| row.kind == kind && row.currency == Currency::EUR);
        let balance = row.map(|row| row.balance).unwrap_or_default();
        Money::new(balance, Currency::EUR).unwrap().amount().to_string()
    }
}

/// An organization with one live workspace.
pub async fn workspace(store: &Store) -> Scope {
    let (organization_id, workspace_id) = (OrganizationId::generate(), WorkspaceId::generate());
    sqlx::query("INSERT INTO organization (id, name, created_at, updated_at) VALUES ($1, 'O', now(), now())")
        .bind(organization_id)
        .execute(store.pool())
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO workspace (id, organization_id, name, mode, ingest_secret, created_at)
         VALUES ($1, $2, 'W', 'live', '\\x00', now())",
    )
    .bind(workspace_id)
    .bind(organization_id)
    .execute(store.pool())
    .await
    .unwrap();
    // Beside the default, which the database gives every workspace.
    sqlx::query(
        "INSERT INTO workspace_currency (workspace_id, currency_code, billing_enabled, catalog_enabled, created_at, updated_at)
         SELECT $1, unnest(ARRAY['USD', 'GBP', 'JPY', 'KWD']), true, true, now(), now()",
    )
    .bind(workspace_id)
    .execute(store.pool())
    .await
    .unwrap();
    Scope { organization_id, workspace_id, mode: WorkspaceMode::Live, actor: Actor::System, clock: Clock::System }
}

pub fn decimal(text: &str) -> rust_decimal::Decimal {
    domain::money::parse_decimal(text).unwrap()
}

pub fn eur(value: &str) -> Value {
    json!({"value": value, "currency": "EUR"})
}

pub fn euro(value: &str) -> Money {
    Money::new(decimal(value), Currency::EUR).unwrap()
}

/// The stable code of a refusal.
pub fn code<T: std::fmt::Debug>(result: Result<T>) -> &'static str {
    result.expect_err("must be refused").code()
}

/// The paths of bad fields.
pub fn bad_fields<T: std::fmt::Debug>(result: Result<T>) -> Vec<(String, &'static str)> {
    match result {
        Err(domain::Error::Validation(fields)) => fields.into_iter().map(|f| (f.field, f.code.as_str())).collect(),
        other => panic!("must be a validation error, is {other:?}"),
    }
}
