//! What payments and providers tell of a payment method: that it has expired, that its token is gone, how its card looks.

use domain::{PaymentMethodId, ProviderID, Result, Scope};
use store::{StoreError, Tx};

use super::write::{emit, get, lock_present, remove};
use crate::words::PaymentMethodStatus;

/// How a provider shows a card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CardDisplay {
    pub brand: Option<String>,
    pub last4: Option<String>,
    pub exp_month: Option<i32>,
    pub exp_year: Option<i32>,
}

/// Sets the status of a method that is not removed; announces an expiry.
pub(crate) async fn mark(scope: &Scope, tx: &mut Tx, id: PaymentMethodId, status: PaymentMethodStatus) -> Result<()> {
    let Some((method, now)) = lock_present(scope, tx, id).await? else { return Ok(()) };
    if method.status == status {
        return Ok(());
    }
    if status == PaymentMethodStatus::Removed {
        return remove(scope, tx, &method, now).await;
    }
    sqlx::query("UPDATE payment_method SET status = $2, updated_at = $3 WHERE id = $1")
        .bind(id)
        .bind(status)
        .bind(now)
        .execute(tx.conn())
        .await
        .context("marking a payment method")?;
    if status == PaymentMethodStatus::Expired {
        let marked = get(scope, tx.conn(), id).await?;
        emit(&scope.at(now), tx, "payment_method.expired", &marked).await?;
    }
    Ok(())
}

async fn by_token(scope: &Scope, tx: &mut Tx, provider: ProviderID, token: &str) -> Result<Option<PaymentMethodId>> {
    sqlx::query_scalar(
        "SELECT id FROM payment_method WHERE workspace_id = $1 AND provider = $2 AND provider_id = $3 AND status <> 'REMOVED'",
    )
    .bind(scope.workspace_id)
    .bind(provider)
    .bind(token)
    .fetch_optional(tx.conn())
    .await
    .context("looking for a token")
}

/// The provider says that a token can no longer be charged.
pub(crate) async fn token_ended(
    scope: &Scope,
    tx: &mut Tx,
    provider: ProviderID,
    token: &str,
    status: PaymentMethodStatus,
) -> Result<()> {
    match by_token(scope, tx, provider, token).await? {
        Some(id) => mark(scope, tx, id, status).await,
        None => Ok(()),
    }
}

/// The provider shows the card behind a token.
pub(crate) async fn token_shown(
    scope: &Scope,
    tx: &mut Tx,
    provider: ProviderID,
    token: &str,
    card: &CardDisplay,
) -> Result<()> {
    let Some(id) = by_token(scope, tx, provider, token).await? else { return Ok(()) };
    let Some((_, now)) = lock_present(scope, tx, id).await? else { return Ok(()) };
    sqlx::query(
        "UPDATE payment_method SET display_brand = coalesce($2, display_brand), last4 = coalesce($3, last4),
             exp_month = coalesce($4, exp_month), exp_year = coalesce($5, exp_year), updated_at = $6
         WHERE id = $1 AND type = 'CREDIT_CARD'",
    )
    .bind(id)
    .bind(&card.brand)
    .bind(&card.last4)
    .bind(card.exp_month)
    .bind(card.exp_year)
    .bind(now)
    .execute(tx.conn())
    .await
    .context("showing the card of a payment method")?;
    Ok(())
}
