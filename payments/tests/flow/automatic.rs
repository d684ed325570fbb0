//! Automatic top-ups (wallets.md, W9 and W10): one for each fall, one at a time, armed again when it has ended.

use ledger::wallet::WalletDefaults;
use payments::words::FailureCode;

use crate::fixture::{Payer, Shop, Step, decimal};

async fn armed(shop: &Shop, amount: &str) -> Payer {
    let defaults = WalletDefaults {
        auto_topup_enabled: Some(true),
        auto_topup_amount: Some(decimal(amount)),
        low_balance_threshold: Some(decimal("20.00")),
        ..WalletDefaults::default()
    };
    let payer = shop.payer_with(&shop.live, defaults).await;
    shop.topup(&shop.live, payer.wallet, "25.00").await.unwrap();
    payer
}

#[tokio::test]
async fn w9_w10_at_the_threshold_nothing_below_it_one() {
    let shop = Shop::open().await;
    let payer = armed(&shop, "100.00").await;
    shop.debit(&shop.live, payer.wallet, "5.00").await;
    assert_eq!(shop.sweep_in(0).await.topups, 0, "W9: 20.00 is not below 20.00");
    shop.debit(&shop.live, payer.wallet, "0.01").await;
    assert_eq!(shop.sweep_in(0).await.topups, 1, "W10");
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "119.99");
    assert_eq!(shop.sweep_in(60).await.topups, 0, "once");
    let source: String =
        sqlx::query_scalar("SELECT source FROM wallet_transaction WHERE wallet_id = $1 AND amount = 100")
            .bind(payer.wallet)
            .fetch_one(shop.store.pool())
            .await
            .unwrap();
    assert_eq!(source, "AUTO_TOPUP");
    shop.assert_verified().await;
}

#[tokio::test]
async fn exactly_one_is_under_way_and_it_arms_again() {
    let shop = Shop::open().await;
    let payer = armed(&shop, "10.00").await;
    shop.bank.will([Step::TakeLater]);
    shop.debit(&shop.live, payer.wallet, "20.00").await;
    // Four sweeps at once, and more operations while it is under way.
    let swept = tokio::join!(shop.sweep_in(0), shop.sweep_in(0), shop.sweep_in(0), shop.sweep_in(0));
    assert_eq!(swept.0.topups + swept.1.topups + swept.2.topups + swept.3.topups, 1);
    shop.debit(&shop.live, payer.wallet, "1.00").await;
    shop.debit(&shop.live, payer.wallet, "1.00").await;
    assert_eq!(shop.sweep_in(0).await.topups, 0, "one is under way");
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "3.00");
    // It ends; the operations meanwhile wanted another, and 13.00 is still below the threshold.
    assert_eq!(shop.sweep_in(16).await.asked, 1);
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "13.00");
    assert_eq!(shop.sweep_in(16).await.topups, 1);
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "23.00");
    assert_eq!(shop.sweep_in(60).await.topups, 0, "above the threshold");
    assert_eq!(shop.bank.charges(), 3, "the first 25.00 and two of 10.00");
    shop.assert_verified().await;
}

#[tokio::test]
async fn one_that_fails_pauses_and_then_tries_what_may_pass() {
    let shop = Shop::open().await;
    let payer = armed(&shop, "100.00").await;
    shop.bank.will([Step::Refuse(FailureCode::InsufficientFunds), Step::Refuse(FailureCode::Decline)]);
    shop.debit(&shop.live, payer.wallet, "10.00").await;
    assert_eq!(shop.sweep_in(0).await.topups, 1);
    assert_eq!(shop.sweep_in(9).await.topups, 0, "the pause");
    assert_eq!(shop.sweep_in(11).await.topups, 1, "not enough money may pass");
    assert_eq!(shop.sweep_in(30).await.topups, 0, "a hard decline is not tried again by itself");
    shop.debit(&shop.live, payer.wallet, "0.01").await;
    assert_eq!(shop.sweep_in(30).await.topups, 1, "the next operation arms it");
    assert_eq!(shop.cash(&shop.live, payer.wallet).await, "114.99");
    let events = shop.events(&shop.live).await;
    assert_eq!((events["wallet.topup_failed"], events["wallet.topup_succeeded"]), (2, 2));
}

#[tokio::test]
async fn one_that_cannot_start_is_announced() {
    let shop = Shop::open().await;
    let payer = armed(&shop, "100.00").await;
    let mut tx = shop.store.begin("remove").await.unwrap();
    payments::method::delete(&shop.live, &mut tx, payer.method).await.unwrap();
    tx.commit().await.unwrap();
    shop.debit(&shop.live, payer.wallet, "10.00").await;
    assert_eq!(shop.sweep_in(0).await.topups, 0);
    let payload: serde_json::Value =
        sqlx::query_scalar("SELECT payload FROM outbox WHERE event_type = 'wallet.topup_failed'")
            .fetch_one(shop.store.pool())
            .await
            .unwrap();
    assert_eq!(payload["failure_code"], "NO_PAYMENT_METHOD");
    assert_eq!(shop.sweep_in(60).await.topups, 0, "nothing new to try");
}
