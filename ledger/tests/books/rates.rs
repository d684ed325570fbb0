//! What wallet operations cost: one transaction each, and in groups.
//!
//! `cargo test --release -p ledger --test books rates -- --ignored --nocapture`

use std::sync::Arc;
use std::time::Instant as Moment;

use domain::WalletMode::Prepaid;
use domain::{TransferId, WalletId};
use ledger::wallet::{CreditRequest, WalletDesk, WalletOperation, WalletRequest};
use serde_json::json;
use store::Groups;

use crate::fixture::{Books, eur};

/// Callers that each wait for their answer.
const CALLERS: usize = 500;
/// Of them with transactions of their own: as many as there are connections.
const CONNECTIONS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn rates_of_wallet_operations() {
    let books = Arc::new(Books::new().await);
    let mut many = Vec::new();
    for _ in 0..1_000 {
        many.push(books.euro_wallet(Prepaid, None).await);
    }
    let one = vec![books.euro_wallet(Prepaid, None).await];
    println!("{} cores, PostgreSQL with fsync", std::thread::available_parallelism().unwrap());
    for (name, wallets, alone, grouped) in [("1,000 wallets", many, 10_000, 60_000), ("one wallet", one, 3_000, 60_000)]
    {
        let alone = one_by_one(&books, &wallets, alone).await;
        let grouped = in_groups(&books, &wallets, grouped).await;
        println!("{name}: {alone:.0}/s one transaction each, {grouped:.0}/s in groups, {:.1} times", grouped / alone);
    }
    books.assert_verified().await;
}

fn credit(wallet_id: WalletId) -> WalletOperation {
    let request = WalletRequest::Credit(CreditRequest::read(&json!({"amount": eur("1.00")})).unwrap());
    WalletOperation { transfer_id: TransferId::generate(), wallet_id, request }
}

async fn one_by_one(books: &Arc<Books>, wallets: &[WalletId], operations: usize) -> f64 {
    let begun = Moment::now();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CONNECTIONS {
        let (books, wallets) = (books.clone(), wallets.to_vec());
        callers.spawn(async move {
            for n in (caller..operations).step_by(CONNECTIONS) {
                let operation = credit(wallets[n % wallets.len()]);
                books.ask(operation.wallet_id, operation.request).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    operations as f64 / begun.elapsed().as_secs_f64()
}

async fn in_groups(books: &Arc<Books>, wallets: &[WalletId], operations: usize) -> f64 {
    let groups = Groups::new(&books.store, WalletDesk);
    let begun = Moment::now();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let (scope, groups, wallets) = (books.scope, groups.clone(), wallets.to_vec());
        callers.spawn(async move {
            for n in (caller..operations).step_by(CALLERS) {
                groups.submit(&scope, credit(wallets[n % wallets.len()])).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    operations as f64 / begun.elapsed().as_secs_f64()
}
