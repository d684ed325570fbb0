//! Fifty callers at once: nothing is overspent, nothing is lost, nobody deadlocks.

use std::sync::Arc;

use domain::WalletMode::{Postpaid, Prepaid};
use domain::{Error, TransferId};
use ledger::wallet::{CreditKind, Details, WalletTransactionSource, lock_wallets};
use serde_json::json;

use crate::fixture::{Books, eur, euro};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_debits_never_overspend() {
    let books = Arc::new(Books::new().await);
    for (wallet, limit) in
        [(books.euro_wallet(Prepaid, None).await, 20), (books.euro_wallet(Postpaid, Some("30.00")).await, 30)]
    {
        books.cash(wallet, "15.00").await;
        books.promotional(wallet, "5.00").await;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let books = books.clone();
            calls.spawn(async move { books.debit(wallet, json!({"amount": eur("1.00")})).await });
        }
        let outcomes = calls.join_all().await;
        let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let affordable = if limit == 20 { 20 } else { 50 };
        assert_eq!(done, affordable);
        assert!(outcomes.iter().all(|o| !matches!(o, Err(e) if e.code() != "INSUFFICIENT_FUNDS")), "{outcomes:?}");
    }
    books.assert_verified().await;
}

/// Groups that name the same wallets in different orders wait for each other and do not deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn groups_lock_in_one_order() {
    let books = Arc::new(Books::new().await);
    let mut wallets = Vec::new();
    for _ in 0..5 {
        wallets.push(books.euro_wallet(Prepaid, None).await);
    }
    let mut calls = tokio::task::JoinSet::new();
    for round in 0..50 {
        let (books, mut order) = (books.clone(), wallets.clone());
        order.rotate_left(round % 5);
        if round % 2 == 0 {
            order.reverse();
        }
        calls.spawn(async move {
            let mut tx = books.store.begin("group").await?;
            let mut batch = lock_wallets(&mut tx, &books.scope, &order).await?;
            let details = Details::of(WalletTransactionSource::Manual);
            for id in &order {
                batch.credit(*id, TransferId::generate(), euro("1.00"), CreditKind::Cash, &details)?;
            }
            batch.write(&mut tx, &books.scope).await?;
            tx.commit().await?;
            Ok::<_, Error>(())
        });
    }
    calls.join_all().await.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    for wallet in wallets {
        assert_eq!(books.balances(wallet).await, "50.00 / 0.00 / 0.00, 50.00");
    }
    books.assert_verified().await;
}

/// One operation of a group that is refused leaves the others as they are.
#[tokio::test]
async fn each_operation_of_a_group_has_its_own_outcome() {
    let books = Books::new().await;
    let (rich, poor) = (books.euro_wallet(Prepaid, None).await, books.euro_wallet(Prepaid, None).await);
    books.cash(rich, "10.00").await;
    let details = Details::of(WalletTransactionSource::Manual);
    let mut tx = books.store.begin("group").await.unwrap();
    let mut batch = lock_wallets(&mut tx, &books.scope, &[rich, poor]).await.unwrap();
    assert!(batch.debit(poor, TransferId::generate(), euro("1.00"), &details).is_err());
    assert!(batch.debit(rich, TransferId::generate(), euro("6.00"), &details).is_ok());
    assert!(batch.debit(rich, TransferId::generate(), euro("6.00"), &details).is_err());
    batch.write(&mut tx, &books.scope).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(books.balances(rich).await, "4.00 / 0.00 / 0.00, 4.00");
    assert_eq!(books.balances(poor).await, "0.00 / 0.00 / 0.00, 0.00");
    books.assert_verified().await;
}
