//! Transactions (reserve.md): usage that is authorized before it is delivered.

use axum::http::StatusCode;
use domain::{HoldId, Result};
use ingest::reserve::{
    ReleaseReservationRequest, ReservationAnswer, ReservationOperation, ReservationOutcome, ReserveRequest,
    ReserveResponse, ReserveStatus,
};
use ledger::wallet::CaptureHoldRequest;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data};

const TAG: &str = "Transactions";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(reserve_transaction))
        .routes(routes!(capture_transaction))
        .routes(routes!(release_transaction))
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
    let engine = ctx.app.engine()?;
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
    let answer = ctx.operate(&engine.reservations, "reserve_transaction", read, reply).await;
    engine.door.expect_holds(ctx.scope.workspace_id);
    answer
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
