//! Secrets of gateways at rest, and a process that comes with another key.

use payments::gateway;
use payments::{Endpoints, Payments, Vault};

use crate::fixture::Shop;

#[tokio::test]
async fn secrets_are_stored_sealed_and_only_their_key_opens_them() {
    let shop = Shop::open().await;
    let id = shop.gateway(&shop.live, "stripe").await;
    let row: String = sqlx::query_scalar("SELECT payment_gateway::text FROM payment_gateway WHERE id = $1")
        .bind(id)
        .fetch_one(shop.store.pool())
        .await
        .unwrap();
    assert!(!row.contains("whsec_1") && row.contains("webhook_secret"), "names only: {row}");
    let mut conn = shop.store.pool().acquire().await.unwrap();
    let secrets = gateway::secrets(&mut conn, &shop.payments.vault, id).await.unwrap();
    assert_eq!(secrets["webhook_secret"], "whsec_1");
    shop.payments.vault.check(&shop.store).await.unwrap();
    let other = Vault::ephemeral().unwrap();
    let refused = other.check(&shop.store).await.unwrap_err().to_string();
    assert!(refused.contains("encrypted with key") && refused.contains("secrets_key"), "{refused}");
    let refused = gateway::secrets(&mut conn, &other, id).await.unwrap_err().to_string();
    assert!(refused.contains("cannot be opened with key"), "{refused}");
}

#[tokio::test]
async fn a_process_with_another_key_writes_no_secret() {
    let shop = Shop::open().await;
    shop.gateway(&shop.live, "stripe").await;
    let other = Payments::new(shop.store.clone(), Vault::ephemeral().unwrap(), Endpoints::default());
    let body = serde_json::json!({"provider": "gocardless", "mode": "live", "config": {"api_key": "x"}});
    let request = gateway::CreatePaymentGatewayConfigRequest::read(&body).unwrap();
    let mut tx = shop.store.begin("gateway").await.unwrap();
    let refused = gateway::create(&shop.live, &mut tx, &other.vault, &request).await;
    assert!(tx.end(refused).await.unwrap_err().to_string().contains("encrypted with key"));
}
