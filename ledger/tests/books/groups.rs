//! Operations that share a transaction (P10): each has its own outcome, and none waits for what another one waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::WalletMode::Prepaid;
use domain::{Currency, Error, HoldId, Result, Scope, TransferId, WalletId};
use futures::future::join_all;
use ledger::wallet::{
    CreditRequest, DebitRequest, WalletAnswer, WalletDefaults, WalletDesk, WalletOperation, WalletRequest,
};
use serde_json::{Value, json};
use store::{Desk, Groups, Patience, Served, StoreError, Tx};

use crate::fixture::{Books, code, eur};

fn operation(wallet_id: WalletId, request: WalletRequest) -> WalletOperation {
    WalletOperation { transfer_id: TransferId::generate(), wallet_id, request }
}

fn credit(wallet: WalletId, body: Value) -> WalletOperation {
    operation(wallet, WalletRequest::Credit(CreditRequest::read(&body).unwrap()))
}

fn debit(wallet: WalletId, body: Value) -> WalletOperation {
    operation(wallet, WalletRequest::Debit(DebitRequest::read(&body).unwrap()))
}

async fn transactions_on(books: &Books, wallets: &[WalletId]) -> i64 {
    sqlx::query_scalar("SELECT count(DISTINCT xmin::text) FROM wallet_transaction WHERE wallet_id = ANY($1)")
        .bind(wallets.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_one(books.store.pool())
        .await
        .unwrap()
}

/// On one thread all of them have arrived before the first group is taken.
#[tokio::test]
async fn what_arrives_together_is_one_transaction() {
    let books = Books::new().await;
    let groups = Groups::new(&books.store, WalletDesk);
    let mut wallets = Vec::new();
    for _ in 0..10 {
        wallets.push(books.euro_wallet(Prepaid, None).await);
    }
    let calls = (0..200).map(|n| groups.submit(&books.scope, credit(wallets[n % 10], json!({"amount": eur("1.00")}))));
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(transactions_on(&books, &wallets).await, 1);
    for wallet in wallets {
        assert_eq!(books.balances(wallet).await, "20.00 / 0.00 / 0.00, 20.00");
        let after: Vec<_> = books.movements(wallet).await.iter().map(|m| m.cash_balance_after.amount()).collect();
        assert!(after.is_sorted(), "each movement bears the balance after it: {after:?}");
    }
    books.assert_verified().await;
}

#[tokio::test]
async fn each_operation_has_its_own_outcome() {
    let books = Books::new().await;
    let groups = Groups::new(&books.store, WalletDesk);
    let wallet = books.euro_wallet(Prepaid, None).await;
    let keyed = |value: &str| json!({"amount": eur(value), "idempotency_key": "k"});
    let unknown = operation(wallet, WalletRequest::ReleaseHold(HoldId::generate()));
    let calls = [
        credit(wallet, keyed("10.00")),
        debit(wallet, json!({"amount": eur("10.01")})),
        debit(wallet, json!({"amount": eur("4.00")})),
        debit(WalletId::generate(), json!({"amount": eur("1.00")})),
        unknown,
        credit(wallet, keyed("10.00")),
        credit(wallet, keyed("11.00")),
    ];
    let outcomes = join_all(calls.map(|operation| groups.submit(&books.scope, operation))).await;
    let told: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| outcome.and_then(WalletAnswer::movement).map(|done| done.replayed).map_err(|e| e.code()))
        .collect();
    let refused = |code| Err(code);
    assert_eq!(
        told,
        [
            Ok(false),
            refused("INSUFFICIENT_FUNDS"),
            Ok(false),
            refused("NOT_FOUND"),
            refused("NOT_FOUND"),
            Ok(true),
            refused("IDEMPOTENCY_CONFLICT"),
        ]
    );
    assert_eq!(books.balances(wallet).await, "6.00 / 0.00 / 0.00, 6.00");
    books.assert_verified().await;
}

/// A refused operation leaves its key free, in a group as alone (rule D5).
#[tokio::test]
async fn d5_a_refusal_in_a_group_leaves_its_key_free() {
    let books = Books::new().await;
    let groups = Groups::new(&books.store, WalletDesk);
    let wallet = books.euro_wallet(Prepaid, None).await;
    let body = json!({"amount": eur("10.00"), "idempotency_key": "k"});
    let first = [debit(wallet, body.clone()), credit(wallet, json!({"amount": eur("5.00")}))];
    let outcomes = join_all(first.map(|operation| groups.submit(&books.scope, operation))).await;
    assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    books.cash(wallet, "5.00").await;
    let done = groups.submit(&books.scope, debit(wallet, body)).await.unwrap().movement().unwrap();
    assert!(!done.replayed);
    assert_eq!(books.balances(wallet).await, "0.00 / 0.00 / 0.00, 0.00");
}

/// Two nodes are asked the same at once: one does it, and everybody hears what it has answered (rule D5).
#[tokio::test]
async fn d5_what_two_nodes_are_asked_at_once_is_done_once() {
    let books = Books::new().await;
    let nodes = [Groups::new(&books.store, WalletDesk), Groups::new(&books.store, WalletDesk)];
    let wallets = [books.euro_wallet(Prepaid, None).await, books.euro_wallet(Prepaid, None).await];
    for round in 0..20 {
        let body = json!({"amount": eur("1.00"), "idempotency_key": format!("k{round}")});
        let ask = |place: usize| nodes[place % 2].submit(&books.scope, credit(wallets[place / 2 % 2], body.clone()));
        let outcomes = join_all((0..8).map(ask)).await;
        let ids: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap().movement().unwrap()).collect();
        assert_eq!(ids.iter().filter(|done| !done.replayed).count(), 2, "once for each wallet");
        for wallet in wallets {
            let own: Vec<_> =
                ids.iter().filter(|done| done.value.wallet_id == wallet).map(|done| done.value.id).collect();
            assert_eq!(own, [own[0]; 4]);
        }
    }
    for wallet in wallets {
        assert_eq!(books.balances(wallet).await, "20.00 / 0.00 / 0.00, 20.00");
    }
    books.assert_verified().await;
}

/// A repeat waits for a first call that is still on its way, however that ends. The other wallet has another currency: the first
/// transfer on an account of the workspace opens it, and whoever books there next waits for that.
#[tokio::test]
async fn d5_a_repeat_waits_for_the_first_call() {
    let books = Arc::new(Books::new().await);
    let groups = Groups::new(&books.store, WalletDesk);
    let wallet = books.euro_wallet(Prepaid, None).await;
    for (round, is_done) in [("given up", false), ("done", true)] {
        let body = json!({"amount": eur("1.00"), "idempotency_key": round});
        let mut first = books.store.begin("a first call").await.unwrap();
        ledger::wallet::perform(&books.scope, &mut first, credit(wallet, body.clone())).await.unwrap();
        let repeat = {
            let (books, groups, body) = (books.clone(), groups.clone(), body.clone());
            tokio::spawn(async move { groups.submit(&books.scope, credit(wallet, body)).await })
        };
        let other = books.wallet(Prepaid, Currency::USD, WalletDefaults::default()).await.wallet.id;
        let dollar = json!({"amount": {"value": "1.00", "currency": "USD"}});
        for _ in 0..5 {
            groups.submit(&books.scope, credit(other, dollar.clone())).await.unwrap();
        }
        assert!(!repeat.is_finished());
        if is_done {
            first.commit().await.unwrap()
        } else {
            first.rollback().await.unwrap()
        }
        assert_eq!(repeat.await.unwrap().unwrap().movement().unwrap().replayed, is_done, "{round}");
    }
    assert_eq!(books.balances(wallet).await, "2.00 / 0.00 / 0.00, 2.00");
    books.assert_verified().await;
}

/// Whoever holds one wallet for long (a finalizing invoice, another node) holds up what needs it, and nothing else.
#[tokio::test]
async fn a_locked_wallet_holds_up_its_own_operations_only() {
    let books = Arc::new(Books::new().await);
    let groups = Groups::new(&books.store, WalletDesk);
    let (busy, free) = (books.euro_wallet(Prepaid, None).await, books.euro_wallet(Prepaid, None).await);
    let mut other = books.store.begin("a long transaction").await.unwrap();
    sqlx::query("SELECT FROM wallet WHERE id = $1 FOR UPDATE").bind(busy).execute(other.conn()).await.unwrap();
    let one = || json!({"amount": eur("1.00")});
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (books, groups) = (books.clone(), groups.clone());
            tokio::spawn(async move { groups.submit(&books.scope, credit(busy, one())).await })
        })
        .collect();
    for _ in 0..20 {
        groups.submit(&books.scope, credit(free, one())).await.unwrap();
    }
    assert!(waiting.iter().all(|call| !call.is_finished()));
    other.rollback().await.unwrap();
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    assert_eq!(books.balances(free).await, "20.00 / 0.00 / 0.00, 20.00");
    assert_eq!(books.balances(busy).await, "3.00 / 0.00 / 0.00, 3.00");
    books.assert_verified().await;
}

/// The wallet desk with two flaws: a statement that fails, and a panic.
#[derive(Debug)]
struct Flawed;

impl Desk for Flawed {
    type Operation = WalletOperation;
    type Answer = WalletAnswer;
    const NAME: &'static str = "a flawed desk";

    async fn serve(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        operations: &[&WalletOperation],
        patience: Patience,
    ) -> Result<Vec<Served<WalletAnswer>>> {
        let has = |cents: &str| {
            operations
                .iter()
                .any(|one| matches!(&one.request, WalletRequest::Credit(c) if c.amount.amount().to_string() == cents))
        };
        assert!(!has("17.00"), "a desk may panic");
        let served = WalletDesk.serve(scope, tx, operations, patience).await?;
        if has("13.00") {
            sqlx::query("SELECT 1 / 0").execute(tx.conn()).await.context("dividing by zero")?;
        }
        Ok(served)
    }
}

#[tokio::test]
async fn what_breaks_a_group_breaks_alone() {
    let books = Books::new().await;
    let groups = Groups::new(&books.store, Flawed);
    let wallet = books.euro_wallet(Prepaid, None).await;
    let calls = ["1.00", "2.00", "13.00", "3.00"].map(|value| credit(wallet, json!({"amount": eur(value)})));
    let outcomes = join_all(calls.map(|operation| groups.submit(&books.scope, operation))).await;
    let codes: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().map(|_| ()).map_err(Error::code)).collect();
    assert_eq!(codes, [Ok(()), Ok(()), Err("INTERNAL_ERROR"), Ok(())]);
    assert_eq!(books.balances(wallet).await, "6.00 / 0.00 / 0.00, 6.00");
    // Whoever shares a group with a panic hears that it is not done, and the lane goes on.
    let broken = groups.submit(&books.scope, credit(wallet, json!({"amount": eur("17.00")}))).await;
    assert_eq!(code(broken), "INTERNAL_ERROR");
    groups.submit(&books.scope, credit(wallet, json!({"amount": eur("4.00")}))).await.unwrap();
    assert_eq!(books.balances(wallet).await, "10.00 / 0.00 / 0.00, 10.00");
    books.assert_verified().await;
}

/// The wallet desk; its first COMMIT is done, and the answer to it is lost.
#[derive(Debug)]
struct Unanswered {
    store: store::Store,
    is_lost: AtomicBool,
}

impl Desk for Unanswered {
    type Operation = WalletOperation;
    type Answer = WalletAnswer;
    const NAME: &'static str = "a desk that is not answered";

    async fn serve(
        &self,
        scope: &Scope,
        tx: &mut Tx,
        operations: &[&WalletOperation],
        patience: Patience,
    ) -> Result<Vec<Served<WalletAnswer>>> {
        if self.is_lost.swap(true, Ordering::Relaxed) {
            return WalletDesk.serve(scope, tx, operations, patience).await;
        }
        let mut own = self.store.begin("a first attempt").await?;
        WalletDesk.serve(scope, &mut own, operations, patience).await?;
        own.commit().await?;
        Err(Error::Unavailable { dependency: "database", detail: "COMMIT".to_owned(), retry_after_secs: 1 })
    }
}

/// Whoever hears "unavailable" asks again, with another id where the request has no key: so it is said only of what is not done.
#[tokio::test]
async fn d5_a_lost_answer_to_the_commit_of_one_operation_is_settled() {
    let books = Books::new().await;
    let desk = Unanswered { store: books.store.clone(), is_lost: AtomicBool::new(false) };
    let groups = Groups::new(&books.store, desk);
    let wallet = books.euro_wallet(Prepaid, None).await;
    let credited = groups.submit(&books.scope, credit(wallet, json!({"amount": eur("3.00")}))).await;
    assert!(credited.unwrap().movement().unwrap().replayed, "what the first attempt has done is found");
    assert_eq!(books.balances(wallet).await, "3.00 / 0.00 / 0.00, 3.00");
    books.assert_verified().await;
}
