//! How payments of a sandbox end (test-payment-simulations.md): the newest simulation of a method decides.

use chrono::{DateTime, Utc};
use domain::input::Field;
use domain::{Error, Input, PaymentMethodId, PaymentSimulationId, Result, Scope, WorkspaceId};
use serde::Serialize;
use serde_json::Value;
use sqlx::{FromRow, PgConnection};
use store::list::PageResponse;
use store::{ListField, ListKind, ListQuery, ListSpec, StoreError, Tx};
use utoipa::ToSchema;

use crate::method;
use crate::words::PaymentOutcome;

/// A simulation (`domain.TestPaymentSimulation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema, FromRow)]
pub struct TestPaymentSimulation {
    /// Identity.
    pub id: PaymentSimulationId,
    /// Data space.
    pub workspace_id: WorkspaceId,
    /// Whose payments it decides.
    pub payment_method_id: PaymentMethodId,
    /// How they end.
    pub outcome: PaymentOutcome,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// `domain.CreateTestPaymentSimulationRequest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
pub struct CreateTestPaymentSimulationRequest {
    /// Whose payments it decides.
    pub payment_method_id: PaymentMethodId,
    /// How they end.
    pub outcome: PaymentOutcome,
}

impl CreateTestPaymentSimulationRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// `Validation` with every bad field.
    pub fn read(body: &Value) -> Result<Self> {
        let mut input = Input::new(body)?;
        let payment_method_id = input.required("payment_method_id", Field::id);
        let outcome = input.required("outcome", Field::word);
        input.finish()?;
        let missing = || Error::invariant("a required member passed unread");
        Ok(Self { payment_method_id: payment_method_id.ok_or_else(missing)?, outcome: outcome.ok_or_else(missing)? })
    }
}

/// `handler.testPaymentSimulationListResponse`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TestPaymentSimulationListResponse {
    /// The simulations.
    pub data: Vec<TestPaymentSimulation>,
    /// How to go on.
    pub pagination: PageResponse,
}

/// How simulations are listed.
pub const LIST: ListSpec = ListSpec {
    name: "test_payment_simulations",
    columns: "*",
    from: "test_payment_simulation",
    workspace_column: "workspace_id",
    condition: "true",
    fields: &[
        ListField::new("id", ListKind::Id),
        ListField::new("payment_method_id", ListKind::Id),
        ListField::new(
            "outcome",
            ListKind::Word(&[
                "success",
                "decline",
                "insufficient_funds",
                "expired_card",
                "fraud",
                "processing_error",
                "network_error",
            ]),
        ),
        ListField::new("created_at", ListKind::Instant).sortable(),
    ],
    shorthands: &[],
    order: "created_at",
    id: "id",
};

/// `GET /v1/test-payment-simulations`, newest first.
///
/// # Errors
/// As every statement.
pub async fn list(
    scope: &Scope,
    conn: &mut PgConnection,
    query: &ListQuery,
) -> Result<TestPaymentSimulationListResponse> {
    let page = query.fetch(conn, scope).await?;
    Ok(TestPaymentSimulationListResponse { data: page.data, pagination: page.pagination })
}

/// `GET /v1/test-payment-simulations/{id}`.
///
/// # Errors
/// `NotFound`.
pub async fn get(scope: &Scope, conn: &mut PgConnection, id: PaymentSimulationId) -> Result<TestPaymentSimulation> {
    sqlx::query_as("SELECT * FROM test_payment_simulation WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .fetch_optional(conn)
        .await
        .context("reading a payment simulation")?
        .ok_or_else(|| Error::not_found("test_payment_simulation", id))
}

/// `POST /v1/test-payment-simulations`.
///
/// # Errors
/// `NotFound` for the payment method.
pub async fn create(
    scope: &Scope,
    tx: &mut Tx,
    request: &CreateTestPaymentSimulationRequest,
) -> Result<TestPaymentSimulation> {
    let method = method::get(scope, tx.conn(), request.payment_method_id).await?;
    sqlx::query_as(
        "INSERT INTO test_payment_simulation (id, workspace_id, payment_method_id, outcome, created_at)
         VALUES ($1, $2, $3, $4, $5) RETURNING *",
    )
    .bind(PaymentSimulationId::generate())
    .bind(scope.workspace_id)
    .bind(method.id)
    .bind(request.outcome)
    .bind(scope.now())
    .fetch_one(tx.conn())
    .await
    .context("making a payment simulation")
}

/// `DELETE /v1/test-payment-simulations/{id}`.
///
/// # Errors
/// `NotFound`.
pub async fn delete(scope: &Scope, tx: &mut Tx, id: PaymentSimulationId) -> Result<()> {
    let deleted = sqlx::query("DELETE FROM test_payment_simulation WHERE workspace_id = $1 AND id = $2")
        .bind(scope.workspace_id)
        .bind(id)
        .execute(tx.conn())
        .await
        .context("removing a payment simulation")?;
    if deleted.rows_affected() == 1 { Ok(()) } else { Err(Error::not_found("test_payment_simulation", id)) }
}

/// How a payment with this method ends now.
pub(crate) async fn outcome_of(conn: &mut PgConnection, method: PaymentMethodId) -> Result<PaymentOutcome> {
    let newest: Option<PaymentOutcome> = sqlx::query_scalar(
        "SELECT outcome FROM test_payment_simulation WHERE payment_method_id = $1 ORDER BY created_at DESC, id DESC LIMIT 1",
    )
    .bind(method)
    .fetch_optional(conn)
    .await
    .context("reading the simulation of a payment method")?;
    Ok(newest.unwrap_or(PaymentOutcome::Success))
}
