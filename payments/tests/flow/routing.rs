//! Guards: a payment through a gateway that is no more, which nobody could ask or give back.

use domain::Scope;
use payments::gateway;
use store::Tx;

use crate::fixture::Shop;

impl Shop {
    /// A transaction that has removed a gateway and is not committed.
    async fn removing(&self, scope: &Scope, id: domain::PaymentGatewayId) -> Tx {
        let mut tx = self.store.begin("remove_gateway").await.unwrap();
        gateway::delete(scope, &mut tx, id).await.unwrap();
        tx
    }

    /// Returns once a statement waits for a lock.
    async fn until_blocked(&self) {
        let mut is_blocked = false;
        while !is_blocked {
            is_blocked = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')",
            )
            .fetch_one(self.store.pool())
            .await
            .unwrap();
            tokio::task::yield_now().await;
        }
    }
}

/// The gateway is removed between the choice and the row of the payment: another takes it, and without another nobody.
#[tokio::test]
async fn a_gateway_that_is_removed_meanwhile_takes_no_payment() {
    for other in [true, false] {
        let shop = Shop::open().await;
        let scope = shop.live;
        let payer = shop.payer(&scope).await;
        let invoice = shop.invoice(&scope, payer.customer, crate::invoice::PLAIN).await;
        // Its provider keeps a gateway, so that the method does not need this one.
        let second = shop.gateway(&scope, "stripe").await;
        if !other {
            sqlx::query("UPDATE payment_gateway SET is_enabled = false WHERE id = $1")
                .bind(second)
                .execute(shop.store.pool())
                .await
                .unwrap();
        }
        let removing = shop.removing(&scope, payer.gateway).await;
        let payments = async { (shop.topup(&scope, payer.wallet, "50.00").await, shop.charge(&scope, invoice).await) };
        let mut payments = std::pin::pin!(payments);
        tokio::select! {
            done = &mut payments => panic!("the gateway was not held: {done:?}"),
            () = shop.until_blocked() => removing.commit().await.unwrap(),
        }
        let (topup, charge) = payments.await;
        if other {
            assert_eq!((topup.unwrap().gateway_id, charge.unwrap().gateway_id), (Some(second), Some(second)));
        } else {
            let codes = [topup.unwrap_err().code(), charge.unwrap_err().code()];
            assert_eq!(codes, ["NO_GATEWAY_AVAILABLE"; 2]);
            assert_eq!(shop.transactions(&scope).await, Vec::<String>::new());
        }
    }
}
