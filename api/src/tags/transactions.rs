//! Transactions: usage that is authorized before it is delivered (reserve.md), and the ledger of payments (transactions.md).

use axum::http::StatusCode;
use domain::{HoldId, InvoiceId, Result, TransactionId};
use ingest::reserve::{
    ReleaseReservationRequest, ReservationAnswer, ReservationOperation, ReservationOutcome, ReserveRequest,
    ReserveResponse, ReserveStatus,
};
use ledger::wallet::CaptureHoldRequest;
use payments::transaction::{self, Transaction};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::write::to_the_end;
use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Transactions";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_transactions))
        .routes(routes!(get_transaction))
        .routes(routes!(list_invoice_transactions))
        .routes(routes!(reserve_transaction))
        .routes(routes!(capture_transaction))
        .routes(routes!(release_transaction))
}

/// List payments, newest first
#[utoipa::path(
    get, path = "/v1/transactions", operation_id = "list_transactions", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("sort" = Option<String>, Query, description = "amount, created_at or updated_at, after `-` descending"),
        ("id" = Option<String>, Query, description = "eq, ne, in"),
        ("customer_id" = Option<String>, Query, description = "eq, ne, in"),
        ("invoice_id" = Option<String>, Query, description = "eq, ne, in"),
        ("payment_method_id" = Option<String>, Query, description = "eq, ne, in"),
        ("direction" = Option<String>, Query, description = "eq, ne, in"),
        ("kind" = Option<String>, Query, description = "eq, ne, in"),
        ("status" = Option<String>, Query, description = "eq, ne, in"),
        ("currency" = Option<String>, Query, description = "eq, ne, in, contains"),
        ("amount" = Option<String>, Query, description = "eq, ne, gt, gte, lt, lte"),
        ("created_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
        ("updated_at" = Option<String>, Query, description = "eq, gt, gte, lt, lte"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Transaction>))
)]
async fn list_transactions(ctx: Ctx) -> Answer {
    ctx.require("payments:read")?;
    let query = ctx.list(&transaction::LIST)?;
    let mut conn = ctx.conn().await?;
    answer::page(transaction::list(&ctx.scope, &mut conn, &query).await?)
}

/// Read one payment
#[utoipa::path(
    get, path = "/v1/transactions/{id}", operation_id = "get_transaction", tag = TAG,
    params(("id" = TransactionId, Path, description = "Transaction")),
    responses((status = 200, description = "The payment", body = Data<Transaction>))
)]
async fn get_transaction(ctx: Ctx) -> Answer {
    ctx.require("payments:read")?;
    let mut conn = ctx.conn().await?;
    answer::ok(Data(transaction::get(&ctx.scope, &mut conn, ctx.path_id("id")?).await?))
}

/// List the payments of one invoice, newest first
#[utoipa::path(
    get, path = "/v1/invoices/{id}/transactions", operation_id = "list_invoice_transactions", tag = TAG,
    params(
        ("id" = InvoiceId, Path, description = "Invoice"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Transaction>))
)]
async fn list_invoice_transactions(ctx: Ctx) -> Answer {
    ctx.require("payments:read")?;
    let id = ctx.path_id("id")?;
    let mut conn = ctx.conn().await?;
    answer::page(transaction::list_of_invoice(&ctx.scope, &mut conn, id, None, ctx.query()).await?)
}

/// Price usage and hold what it costs on the wallet
#[utoipa::path(
    post, path = "/v1/transaction/reserve", operation_id = "reserve_transaction", tag = TAG,
    request_body = ReserveRequest,
    responses(
        (status = 201, description = "Hold placed", body = ReserveResponse),
        (status = 200, description = "Blocked, or what an earlier call with the same idempotency_key did", body = ReserveResponse),
        (status = 202, description = "Dropped: the product's policy drops usage of this key", body = ReserveResponse),
    )
)]
async fn reserve_transaction(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let read = |ctx: &Ctx| Ok(ReservationOperation::Reserve(ctx.body(ReserveRequest::read)?));
    let reply = |done: ReservationAnswer| {
        let done = done.reserved()?;
        let status = match done.value.status {
            _ if done.replayed => StatusCode::OK,
            ReserveStatus::Held => StatusCode::CREATED,
            ReserveStatus::Blocked => StatusCode::OK,
            ReserveStatus::Dropped => StatusCode::ACCEPTED,
        };
        Ok((status, done.value))
    };
    // The door has to hear of the hold, also when the client does not wait for it.
    to_the_end(async move {
        let engine = ctx.app.engine()?;
        let answer = ctx.operate(&engine.reservations, "reserve_transaction", read, reply).await;
        engine.door.expect_holds(ctx.scope.workspace_id);
        answer
    })
    .await
}

/// Charge a hold for what was delivered
#[utoipa::path(
    post, path = "/v1/transaction/{id}/capture", operation_id = "capture_transaction", tag = TAG,
    params(("id" = HoldId, Path, description = "The `hold_id`")), request_body = CaptureHoldRequest,
    responses((status = 200, description = "Charged", body = Data<ReservationOutcome>))
)]
async fn capture_transaction(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let engine = ctx.app.engine()?;
    let read = |ctx: &Ctx| {
        Ok(ReservationOperation::Capture(ctx.path_id("id")?, ctx.body_or_empty(CaptureHoldRequest::read_usage)?))
    };
    let answer = ctx.operate(&engine.reservations, "capture_transaction", read, ended).await;
    engine.relay.nudge();
    answer
}

/// Give a hold back
#[utoipa::path(
    post, path = "/v1/transaction/{id}/release", operation_id = "release_transaction", tag = TAG,
    params(("id" = HoldId, Path, description = "The `hold_id`")), request_body = ReleaseReservationRequest,
    responses((status = 200, description = "Given back", body = Data<ReservationOutcome>))
)]
async fn release_transaction(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let engine = ctx.app.engine()?;
    let read = |ctx: &Ctx| {
        Ok(ReservationOperation::Release(ctx.path_id("id")?, ctx.body_or_empty(ReleaseReservationRequest::read)?))
    };
    ctx.operate(&engine.reservations, "release_transaction", read, ended).await
}

fn ended(done: ReservationAnswer) -> Result<(StatusCode, Data<ReservationOutcome>)> {
    Ok((StatusCode::OK, Data(done.ended()?.value)))
}
