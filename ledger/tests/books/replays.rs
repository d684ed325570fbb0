//! Rule D5: what is attempted twice is booked once, by the key in the body and by the id of the transfer.

use domain::WalletMode::Prepaid;
use domain::{Currency, TransferId};
use ledger::account::{Account, WorkspaceAccount};
use ledger::transfer::{Transfer, TransferKind, post};
use ledger::wallet::{CreditKind, CreditRequest, WalletOperation, WalletRequest, lock_wallets, perform};
use serde_json::json;

use crate::fixture::{Books, code, eur, euro};

#[tokio::test]
async fn a_repeated_key_answers_the_first_result() {
    let books = Books::new().await;
    let (wallet, other) = (books.euro_wallet(Prepaid, None).await, books.euro_wallet(Prepaid, None).await);
    let body = json!({"amount": eur("10.00"), "idempotency_key": "k1", "metadata": {"a": 1}});
    let first = books.credit(wallet, body.clone()).await.unwrap();
    books.cash(wallet, "5.00").await;
    let repeat = books.credit(wallet, body.clone()).await.unwrap();
    assert!(!first.replayed && repeat.replayed);
    assert_eq!(first.value, repeat.value);
    assert_eq!(books.balances(wallet).await, "15.00 / 0.00 / 0.00, 15.00");
    let changed = json!({"amount": eur("10.01"), "idempotency_key": "k1", "metadata": {"a": 1}});
    assert_eq!(code(books.credit(wallet, changed).await), "IDEMPOTENCY_CONFLICT");
    // The key belongs to this operation on this wallet.
    assert!(!books.credit(other, body).await.unwrap().replayed);
    assert!(!books.debit(wallet, json!({"amount": eur("1.00"), "idempotency_key": "k1"})).await.unwrap().replayed);
    books.assert_verified().await;
}

/// Rule D5: a crash releases the key, and so does a refusal.
#[tokio::test]
async fn d5_a_refused_operation_leaves_its_key_free() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    let body = json!({"amount": eur("10.00"), "idempotency_key": "k"});
    assert_eq!(code(books.debit(wallet, body.clone()).await), "INSUFFICIENT_FUNDS");
    books.cash(wallet, "10.00").await;
    assert!(!books.debit(wallet, body).await.unwrap().replayed);
}

#[tokio::test]
async fn d5_concurrent_repeats_book_once() {
    let books = std::sync::Arc::new(Books::new().await);
    let wallet = books.euro_wallet(Prepaid, None).await;
    let body = json!({"amount": eur("10.00"), "idempotency_key": "same"});
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (books, body) = (books.clone(), body.clone());
        calls.spawn(async move { books.credit(wallet, body).await.unwrap() });
    }
    let outcomes = calls.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| !outcome.replayed).count(), 1);
    assert!(outcomes.iter().all(|outcome| outcome.value == outcomes[0].value));
    assert_eq!(books.balances(wallet).await, "10.00 / 0.00 / 0.00, 10.00");
    books.assert_verified().await;
}

/// Rule D5: the answer to a COMMIT is lost, the caller repeats with the transfer id that it had chosen.
#[tokio::test]
async fn d5_a_lost_commit_answer_does_not_book_twice() {
    let books = Books::new().await;
    let wallet = books.euro_wallet(Prepaid, None).await;
    let request = CreditRequest::read(&json!({"amount": eur("10.00")})).unwrap();
    let transfer = TransferId::generate();
    let mut answers = Vec::new();
    for _ in 0..3 {
        let mut tx = books.store.begin("credit").await.unwrap();
        let operation = WalletOperation {
            transfer_id: transfer,
            wallet_id: wallet,
            request: WalletRequest::Credit(request.clone()),
        };
        answers.push(perform(&books.scope, &mut tx, operation).await.unwrap().movement().unwrap());
        tx.commit().await.unwrap();
    }
    assert_eq!(answers.iter().map(|answer| answer.replayed).collect::<Vec<_>>(), [false, true, true]);
    assert!(answers.iter().all(|answer| answer.value == answers[0].value));
    assert_eq!(books.balances(wallet).await, "10.00 / 0.00 / 0.00, 10.00");
    books.assert_verified().await;
}

/// A group that is repeated in part books what is missing, and a batch that would change balances twice is refused.
#[tokio::test]
async fn d5_a_repeated_group_books_what_is_new() {
    let books = Books::new().await;
    let transfer = |id| {
        Transfer::draft(id, TransferKind::WalletAdjustment, books.scope.now())
            .debit(Account::Workspace(WorkspaceAccount::WriteOff), euro("1.00"))
            .credit(Account::Workspace(WorkspaceAccount::Fx), euro("1.00"))
            .balanced()
            .unwrap()
    };
    let ids: Vec<_> = (0..5).map(|_| TransferId::generate()).collect();
    let mut tx = books.store.begin("first").await.unwrap();
    let some: Vec<_> = ids[..3].iter().copied().map(transfer).collect();
    assert_eq!(post(&mut tx, &books.scope, &some).await.unwrap().len(), 3);
    tx.commit().await.unwrap();
    let mut tx = books.store.begin("again").await.unwrap();
    let all: Vec<_> = ids.iter().copied().map(transfer).collect();
    let posted = post(&mut tx, &books.scope, &all).await.unwrap();
    assert_eq!(ids.iter().map(|id| posted.is_new(*id)).collect::<Vec<_>>(), [false, false, false, true, true]);
    tx.commit().await.unwrap();
    assert_eq!(books.account("write_off").await, "5.00");

    let wallet = books.euro_wallet(Prepaid, None).await;
    let mut tx = books.store.begin("a batch with a booked transfer").await.unwrap();
    let mut batch = lock_wallets(&mut tx, &books.scope, &[wallet]).await.unwrap();
    let details = ledger::wallet::Details::of(ledger::wallet::WalletTransactionSource::Manual);
    batch.credit(wallet, ids[0], euro("1.00"), CreditKind::Cash, &details).unwrap();
    assert_eq!(code(batch.write(&mut tx, &books.scope).await), "CONFLICT");
    drop(tx);
    books.assert_verified().await;
    assert_eq!(books.get(wallet).await.wallet.currency, Currency::EUR);
}
