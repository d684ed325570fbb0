//! Random concurrent histories: workers move money of a few wallets through groups while connections are cut and, in one test,
//! the process is killed. Each history must be one that some serial order explains: movement by movement the wallets
//! are replayed by a model of a few lines, every answer must stand in that replay, and every refusal must name a limit that
//! the wallet had at some moment.
//!
//! Operations are a function of seed, worker and index, so that whoever lost an answer can ask again, and a killed history can
//! be repeated as a whole. `KONTORION_HISTORIES=10` runs ten times as many.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::Arc;

use domain::WalletMode::Prepaid;
use domain::{Currency, Error, HoldId, Result, Scope, TransferId, WalletId};
use ledger::wallet::{
    AdjustRequest, CaptureHoldRequest, CreditRequest, DebitRequest, HoldRequest, TransferRequest, WalletAnswer,
    WalletDefaults, WalletDesk, WalletOperation, WalletRequest, WalletTransactionType,
};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use store::{Groups, Store};
use uuid::Uuid;

use crate::fixture::Books;

const WORKERS: usize = 16;

#[derive(Clone, Copy)]
struct History {
    seed: Uuid,
    /// Three wallets of one customer in three currencies, and one of another customer.
    wallets: [WalletId; 4],
    operations_each: usize,
}

const CURRENCIES: [&str; 4] = ["EUR", "USD", "GBP", "EUR"];

impl History {
    fn roll(&self, worker: usize, index: usize) -> Roll {
        Roll(Uuid::new_v5(&self.seed, format!("{worker}/{index}").as_bytes()))
    }

    /// The operation of a worker at an index.
    fn operation(&self, worker: usize, index: usize) -> WalletOperation {
        let roll = self.roll(worker, index);
        let (wallet, money) = (roll.wallet(), |cents| money(cents, CURRENCIES[roll.wallet()]));
        let amount = money(roll.cents());
        let with_key = |mut body: Value| {
            if roll.die(2).is_multiple_of(2) {
                body["idempotency_key"] = json!(roll.0.to_string());
            }
            body
        };
        let target = (wallet + 1) % 3;
        let held = (0..index).rev().take(12).map(|before| self.roll(worker, before)).find(Roll::is_hold);
        let (wallet, request) = match (roll.kind(), held) {
            (0..=4, _) => {
                let body = with_key(json!({"amount": amount, "is_promotional": roll.die(5).is_multiple_of(3)}));
                (wallet, WalletRequest::Credit(CreditRequest::read(&body).unwrap()))
            }
            (9, _) => {
                let body = with_key(json!({"amount": money(roll.cents() - 900), "reason": "a correction"}));
                (wallet, WalletRequest::Adjust(AdjustRequest::read(&body).unwrap()))
            }
            (10, _) if wallet < 3 => {
                let to = self.wallets[target];
                let body = with_key(json!({"to_wallet_id": to, "amount": amount, "fx_rate": "1.25"}));
                (wallet, WalletRequest::Transfer(TransferRequest::read(&body).unwrap()))
            }
            (11 | 12, Some(hold)) => {
                let part = hold.cents() * i64::from(1 + roll.die(5) % 4) / 4;
                let amount = self::money(part.max(1), CURRENCIES[hold.wallet()]);
                let request = CaptureHoldRequest::read(&with_key(json!({"amount": amount}))).unwrap();
                (hold.wallet(), WalletRequest::CaptureHold(HoldId(hold.0), request))
            }
            (13, Some(hold)) => (hold.wallet(), WalletRequest::ReleaseHold(HoldId(hold.0))),
            _ if roll.is_hold() => {
                (wallet, WalletRequest::Hold(HoldRequest::read(&with_key(json!({"amount": amount}))).unwrap()))
            }
            _ => (wallet, WalletRequest::Debit(DebitRequest::read(&with_key(json!({"amount": amount}))).unwrap())),
        };
        WalletOperation { transfer_id: TransferId(roll.0), wallet_id: self.wallets[wallet], request }
    }

    async fn prepare(books: &Books, operations_each: usize) -> Self {
        let first = books.wallet(Prepaid, Currency::EUR, WalletDefaults::default()).await.wallet;
        let mut wallets = vec![first.id];
        for currency in ["USD", "GBP"] {
            let body = json!({"customer_id": first.customer_id, "currency": currency});
            let request = ledger::wallet::CreateWalletRequest::read(&body).unwrap();
            let mut tx = books.store.begin("a secondary wallet").await.unwrap();
            let made = ledger::wallet::create_secondary(&books.scope, &mut tx, None, &request).await.unwrap();
            tx.commit().await.unwrap();
            wallets.push(made.wallet.id);
        }
        wallets.push(books.euro_wallet(Prepaid, None).await);
        Self { seed: Uuid::now_v7(), wallets: wallets.try_into().unwrap(), operations_each }
    }

    /// Does everything, repeating what has no definite outcome.
    async fn run(&self, store: &Store, scope: &Scope, cuts: Option<&str>, told: fn(usize, usize)) -> Outcomes {
        let groups = Groups::new(store, WalletDesk);
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..WORKERS {
            let (history, groups, scope, cuts) = (*self, groups.clone(), *scope, cuts.map(str::to_owned));
            workers.spawn(async move {
                let mut outcomes = Vec::with_capacity(history.operations_each);
                for index in 0..history.operations_each {
                    let operation = history.operation(worker, index);
                    if let Some(url) = cuts.as_ref().filter(|_| index % 25 == worker) {
                        cut_a_connection(url).await;
                    }
                    let outcome = definite(&groups, &scope, &operation).await;
                    if outcome.is_ok() {
                        told(worker, index);
                    }
                    outcomes.push((operation, outcome));
                }
                outcomes
            });
        }
        workers.join_all().await.into_iter().flatten().collect()
    }
}

type Outcomes = Vec<(WalletOperation, Result<WalletAnswer>)>;

/// What chance says of one operation.
struct Roll(Uuid);

impl Roll {
    fn die(&self, n: usize) -> u8 {
        self.0.as_bytes()[n]
    }
    fn wallet(&self) -> usize {
        usize::from(self.die(0)) % 4
    }
    fn cents(&self) -> i64 {
        1 + i64::from(self.die(1)) * 7
    }
    fn kind(&self) -> u8 {
        self.die(4) % 16
    }
    fn is_hold(&self) -> bool {
        self.kind() >= 14
    }
}

fn money(cents: i64, currency: &str) -> Value {
    json!({"value": Decimal::new(cents, 2).to_string(), "currency": currency})
}

/// Asks until the outcome is known: a lost connection says nothing about what was committed.
async fn definite(
    groups: &Arc<Groups<WalletDesk>>,
    scope: &Scope,
    operation: &WalletOperation,
) -> Result<WalletAnswer> {
    loop {
        match groups.submit(scope, operation.clone()).await {
            Err(Error::Unavailable { .. } | Error::Internal { .. }) => tokio::task::yield_now().await,
            outcome => return outcome,
        }
    }
}

/// Ends a session in the middle of whatever it does.
async fn cut_a_connection(url: &str) {
    let mut conn = PgConnection::connect(url).await.unwrap();
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'kontorion' ORDER BY state = 'active' DESC LIMIT 1",
    )
    .execute(&mut conn)
    .await
    .unwrap();
}

/// A wallet as its movements leave it, in cents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Model {
    cash: i64,
    promotional: i64,
    held: i64,
}

impl Model {
    fn available(self) -> i64 {
        self.cash + self.promotional - self.held
    }

    /// Limits that a refusal may name.
    fn limits(self) -> [i64; 4] {
        [self.available(), self.available().min(self.cash), self.cash, self.cash + self.promotional]
    }

    fn take(&mut self, cents: i64) {
        let promotional = cents.min(self.promotional);
        self.promotional -= promotional;
        self.cash -= cents - promotional;
        assert!(self.cash >= 0, "overspent: {self:?}");
    }

    /// Does an operation that was carried out.
    fn apply(&mut self, operation: &WalletOperation, held: i64, is_target: bool) {
        match &operation.request {
            WalletRequest::Credit(request) if request.is_promotional => self.promotional += cents(request.amount),
            WalletRequest::Credit(request) => self.cash += cents(request.amount),
            WalletRequest::Debit(request) => {
                assert!(cents(request.amount) <= self.available(), "{self:?}");
                self.take(cents(request.amount));
            }
            WalletRequest::Adjust(request) => {
                self.cash += cents(request.amount);
                assert!(self.cash >= 0, "{self:?}");
            }
            // 1.25 of the other currency, half a cent away from zero.
            WalletRequest::Transfer(request) if is_target => self.cash += (cents(request.amount) * 125 + 50) / 100,
            WalletRequest::Transfer(request) => {
                assert!(cents(request.amount) <= self.available().min(self.cash), "{self:?}");
                self.cash -= cents(request.amount);
            }
            WalletRequest::Hold(request) => {
                assert!(cents(request.amount) <= self.available(), "{self:?}");
                self.held += cents(request.amount);
            }
            WalletRequest::CaptureHold(_, request) => {
                self.held -= held;
                self.take(request.amount.map_or(held, cents));
            }
            WalletRequest::ReleaseHold(_) => self.held -= held,
        }
    }
}

fn cents(money: domain::Money) -> i64 {
    (money.amount() * Decimal::ONE_HUNDRED).to_i64().unwrap()
}

/// Finds a serial order, that of the movements, in which every answer is right.
async fn explain(books: &Books, history: &History, outcomes: &Outcomes) {
    let by_transfer: HashMap<Uuid, &(WalletOperation, Result<WalletAnswer>)> =
        outcomes.iter().map(|one| (one.0.transfer_id.0, one)).collect();
    let (mut done, mut limits) = (std::collections::HashSet::new(), HashMap::new());
    for wallet in history.wallets {
        let mut model = Model::default();
        let states: &mut Vec<Model> = limits.entry(wallet).or_insert_with(|| vec![model]);
        let movements: Vec<(Uuid, WalletTransactionType, Decimal, Decimal, Option<Uuid>)> = sqlx::query_as(
            "SELECT transfer_id, type, cash_balance_after, promotional_balance_after, hold_id FROM wallet_transaction
             WHERE wallet_id = $1 ORDER BY created_at, id",
        )
        .bind(wallet)
        .fetch_all(books.store.pool())
        .await
        .unwrap();
        for (at, (transfer, kind, cash, promotional, hold)) in movements.iter().enumerate() {
            let (operation, outcome) = by_transfer[transfer];
            // A debit that takes from both balances makes two movements: the second one bears the balances after it.
            if movements.get(at + 1).is_some_and(|next| next.0 == *transfer) {
                continue;
            }
            assert!(outcome.is_ok(), "refused and done: {operation:?} {outcome:?}");
            let held = hold.and_then(|hold| by_transfer.get(&hold)).map_or(0, |(placed, _)| match &placed.request {
                WalletRequest::Hold(request) => cents(request.amount),
                _ => 0,
            });
            model.apply(operation, held, *kind == WalletTransactionType::TransferIn);
            let found = (*cash * Decimal::ONE_HUNDRED, *promotional * Decimal::ONE_HUNDRED);
            assert_eq!(found, (model.cash.into(), model.promotional.into()), "{operation:?}");
            states.push(model);
            done.insert(*transfer);
        }
        let wallet = books.get(wallet).await.wallet;
        let found = Model {
            cash: cents(wallet.cash_balance),
            promotional: cents(wallet.promotional_balance),
            held: cents(wallet.held_balance),
        };
        assert_eq!(found, model);
    }
    for (operation, outcome) in outcomes {
        match outcome {
            Ok(_) => assert!(done.contains(&operation.transfer_id.0), "answered and not done: {operation:?}"),
            Err(error) => assert_explained(operation, error, &limits[&operation.wallet_id]),
        }
    }
    assert!(done.len() * 2 > outcomes.len(), "most operations are carried out");
    books.assert_verified().await;
}

/// A refusal names what the wallet had at some moment, and that was too little.
fn assert_explained(operation: &WalletOperation, error: &Error, states: &[Model]) {
    let is_end = matches!(operation.request, WalletRequest::CaptureHold(..) | WalletRequest::ReleaseHold(_));
    match error {
        Error::Rule { code: "INSUFFICIENT_FUNDS", extensions, .. } => {
            let named = |name: &str| {
                let value = extensions[name]["value"].as_str().unwrap();
                (domain::money::parse_decimal(value).unwrap() * Decimal::ONE_HUNDRED).to_i64().unwrap()
            };
            let (available, requested) = (named("available"), named("requested"));
            assert!(available < requested, "{error:?}");
            let is_known = states.iter().any(|state| state.limits().contains(&available));
            assert!(is_known, "the wallet never had {available}: {operation:?}");
        }
        // Of a hold that was refused, or that has ended.
        Error::NotFound { .. } | Error::Conflict { code: "INVALID_TRANSITION", .. } if is_end => {}
        other => panic!("{operation:?}: {other:?}"),
    }
}

fn times() -> usize {
    std::env::var("KONTORION_HISTORIES").map_or(1, |times| times.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_histories_are_serializable() {
    let books = Books::new().await;
    for _ in 0..3 * times() {
        let history = History::prepare(&books, 125).await;
        let outcomes = history.run(&books.store, &books.scope, None, |_, _| ()).await;
        explain(&books, &history, &outcomes).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn d5_histories_survive_cut_connections() {
    let mut books = Books::new().await;
    for _ in 0..3 * times() {
        let history = History::prepare(&books, 125).await;
        let outcomes = history.run(&books.store, &books.scope, Some(books.url()), |_, _| ()).await;
        // Those that were cut while they were idle must not be what the reader finds.
        books.store = Store::connect(books.url(), 20).await.unwrap();
        explain(&books, &history, &outcomes).await;
    }
}

/// What the child of the next test does, with the history of its parent.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "the child of another test"]
async fn child_of_a_killed_history() {
    let Ok(given) = std::env::var("KONTORION_TEST_HISTORY") else { return };
    let given: Value = serde_json::from_str(&given).unwrap();
    let id = |member: &Value| Uuid::parse_str(member.as_str().unwrap()).unwrap();
    let store = Store::connect(given["url"].as_str().unwrap(), 5).await.unwrap();
    let wallets: Vec<WalletId> = given["wallets"].as_array().unwrap().iter().map(|one| WalletId(id(one))).collect();
    let history = History { seed: id(&given["seed"]), wallets: wallets.try_into().unwrap(), operations_each: 10_000 };
    let mut scope = workspace_of(&store, history.wallets[0]).await;
    scope.clock = domain::Clock::System;
    history.run(&store, &scope, None, |worker, index| println!("done {worker} {index}")).await;
}

async fn workspace_of(store: &Store, wallet: WalletId) -> Scope {
    let (organization_id, workspace_id) =
        sqlx::query_as("SELECT organization_id, workspace_id FROM wallet WHERE id = $1")
            .bind(wallet)
            .fetch_one(store.pool())
            .await
            .unwrap();
    let (mode, actor) = (domain::WorkspaceMode::Live, domain::Actor::System);
    Scope { organization_id, workspace_id, mode, actor, clock: domain::Clock::System }
}

/// Killed while groups are committed; whoever lost an answer asks again. What was answered before the kill is done, what was
/// asked twice is done once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn d5_a_killed_history_is_repeated_exactly() {
    use std::io::{BufRead, BufReader};
    let books = Books::new().await;
    for _ in 0..2 * times() {
        let mut history = History::prepare(&books, 0).await;
        let given = json!({"url": books.url(), "seed": history.seed, "wallets": history.wallets});
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "histories::child_of_a_killed_history"])
            .env("KONTORION_TEST_HISTORY", given.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut done: Vec<(usize, usize)> = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::io::Result::ok) {
            let Some((worker, index)) = line.strip_prefix("done ").and_then(|rest| rest.split_once(' ')) else {
                continue;
            };
            done.push((worker.parse().unwrap(), index.parse().unwrap()));
            if done.len() == 600 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(done.len() >= 600, "the child ended early");
        // Refusals and what was never answered reach a little further.
        history.operations_each = done.iter().map(|(_, index)| index + 1).max().unwrap() + 20;
        let outcomes = history.run(&books.store, &books.scope, None, |_, _| ()).await;
        explain(&books, &history, &outcomes).await;
        let carried_out: std::collections::HashSet<Uuid> =
            outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(one, _)| one.transfer_id.0).collect();
        for (worker, index) in done {
            assert!(carried_out.contains(&history.roll(worker, index).0), "answered and not done: {worker}/{index}");
        }
    }
}
