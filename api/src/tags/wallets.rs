//! Wallets (wallets.md).

use axum::http::StatusCode;
use domain::{CustomerId, HoldId, Result, TransferId, WalletId};
use ledger::wallet::{
    self, AdjustRequest, CaptureHoldRequest, CreateWalletRequest, CreditRequest, DebitRequest, HoldRequest,
    TransferRequest, UpdateWalletSettingsRequest, WalletAnswer, WalletOperation, WalletRequest, WalletTransferResult,
};
use ledger::{Outcome, WalletDTO, WalletHold, WalletTransaction};
use payments::topup::{TopupRequest, TopupResponse, WalletTopupRequest, WalletTopupResponse};
use serde::Serialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::begun::Begun;
use crate::write::to_the_end;
use crate::{Answer, App, Ctx, Data, PageOf, Refusal, answer};

const TAG: &str = "Wallets";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_wallets, create_wallet))
        .routes(routes!(list_customer_wallets, create_customer_wallet))
        .routes(routes!(get_wallet))
        .routes(routes!(update_wallet_settings))
        .routes(routes!(credit_wallet))
        .routes(routes!(debit_wallet))
        .routes(routes!(adjust_wallet))
        .routes(routes!(transfer_between_wallets))
        .routes(routes!(topup_wallet))
        .routes(routes!(topup_customer_wallet))
        .routes(routes!(list_wallet_holds, create_wallet_hold))
        .routes(routes!(get_wallet_hold))
        .routes(routes!(capture_wallet_hold))
        .routes(routes!(release_wallet_hold))
        .routes(routes!(list_wallet_transactions))
}

/// Does an operation on the wallet of the path.
async fn operate<T: Serialize>(
    ctx: Ctx,
    name: &'static str,
    read: impl FnOnce(&Ctx) -> Result<WalletRequest, Refusal>,
    reply: impl FnOnce(WalletAnswer) -> Result<(StatusCode, Data<T>)>,
) -> Answer {
    let read = |ctx: &Ctx| {
        let (transfer_id, wallet_id) = (TransferId::generate(), ctx.path_id("id")?);
        Ok(WalletOperation { transfer_id, wallet_id, request: read(ctx)? })
    };
    ctx.operate(&ctx.app.wallets, name, read, reply).await
}

/// 201 for what this call did, 200 for what an earlier one did under the same key in the body.
fn once<T>(outcome: Outcome<T>) -> (StatusCode, Data<T>) {
    (if outcome.replayed { StatusCode::OK } else { StatusCode::CREATED }, Data(outcome.value))
}

/// List wallets, newest first
#[utoipa::path(
    get, path = "/v1/wallets", operation_id = "list_wallets", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("customer_id" = Option<CustomerId>, Query, description = "Owner"),
        ("currency" = Option<String>, Query, description = "ISO 4217; repeatable or comma-separated: any of them"),
        ("is_primary" = Option<bool>, Query, description = "Primary or secondary wallets only"),
        ("auto_topup_enabled" = Option<bool>, Query, description = "With or without automatic top-up"),
        ("created_after" = Option<String>, Query, description = "RFC 3339, inclusive"),
        ("created_before" = Option<String>, Query, description = "RFC 3339, exclusive"),
    ),
    responses((status = 200, description = "One page", body = PageOf<WalletDTO>))
)]
async fn list_wallets(ctx: Ctx) -> Answer {
    ctx.require("wallets:read")?;
    answer::page(wallet::list(&ctx.scope, &ctx.app.store, ctx.query()).await?)
}

/// Create a secondary wallet
#[utoipa::path(
    post, path = "/v1/wallets", operation_id = "create_wallet", tag = TAG, request_body = CreateWalletRequest,
    responses((status = 201, description = "The wallet", body = Data<WalletDTO>))
)]
async fn create_wallet(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let mut write = ctx.write("create_wallet").await?;
    let request = ctx.body(CreateWalletRequest::read)?;
    let created = wallet::create_secondary(&ctx.scope, write.tx(), None, &request).await?;
    write.created(Data(created)).await
}

/// Wallets of one customer
#[utoipa::path(
    get, path = "/v1/customers/{id}/wallets", operation_id = "list_customer_wallets", tag = TAG,
    params(
        ("id" = CustomerId, Path, description = "Customer"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
    ),
    responses((status = 200, description = "One page", body = PageOf<WalletDTO>))
)]
async fn list_customer_wallets(ctx: Ctx) -> Answer {
    ctx.require("wallets:read")?;
    let customer = ctx.path_id("id")?;
    answer::page(wallet::list_of_customer(&ctx.scope, &ctx.app.store, customer, ctx.query()).await?)
}

/// Create a secondary wallet of this customer
#[utoipa::path(
    post, path = "/v1/customers/{id}/wallets", operation_id = "create_customer_wallet", tag = TAG,
    request_body = CreateWalletRequest,
    params(("id" = CustomerId, Path, description = "Customer")),
    responses((status = 201, description = "The wallet", body = Data<WalletDTO>))
)]
async fn create_customer_wallet(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let mut write = ctx.write("create_customer_wallet").await?;
    let customer = ctx.path_id("id")?;
    let request = ctx.body(CreateWalletRequest::read)?;
    let created = wallet::create_secondary(&ctx.scope, write.tx(), Some(customer), &request).await?;
    write.created(Data(created)).await
}

/// Read one wallet
#[utoipa::path(
    get, path = "/v1/wallets/{id}", operation_id = "get_wallet", tag = TAG,
    params(("id" = WalletId, Path, description = "Wallet")),
    responses((status = 200, description = "The wallet", body = Data<WalletDTO>))
)]
async fn get_wallet(ctx: Ctx) -> Answer {
    ctx.require("wallets:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(wallet::get(&ctx.scope, &ctx.app.store, id).await?))
}

/// Change limits and automatic top-up
#[utoipa::path(
    patch, path = "/v1/wallets/{id}/settings", operation_id = "update_wallet_settings", tag = TAG,
    request_body = UpdateWalletSettingsRequest,
    params(("id" = WalletId, Path, description = "Wallet")),
    responses((status = 200, description = "The wallet", body = Data<WalletDTO>))
)]
async fn update_wallet_settings(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let mut write = ctx.write("update_wallet_settings").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateWalletSettingsRequest::read)?;
    let changed = wallet::update_settings(&ctx.scope, write.tx(), id, &request).await?;
    write.ok(Data(changed)).await
}

/// Add cash or promotional credit
#[utoipa::path(
    post, path = "/v1/wallets/{id}/credit", operation_id = "credit_wallet", tag = TAG, request_body = CreditRequest,
    params(("id" = WalletId, Path, description = "Wallet")),
    responses(
        (status = 200, description = "What an earlier call with the same idempotency_key did", body = Data<WalletTransaction>),
        (status = 201, description = "The movement", body = Data<WalletTransaction>),
    )
)]
async fn credit_wallet(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let read = |ctx: &Ctx| Ok(WalletRequest::Credit(ctx.body(CreditRequest::read)?));
    operate(ctx, "credit_wallet", read, |answer| Ok(once(answer.movement()?))).await
}

/// Take money from a wallet
#[utoipa::path(
    post, path = "/v1/wallets/{id}/debit", operation_id = "debit_wallet", tag = TAG, request_body = DebitRequest,
    params(("id" = WalletId, Path, description = "Wallet")),
    responses(
        (status = 200, description = "What an earlier call with the same idempotency_key did", body = Data<WalletTransaction>),
        (status = 201, description = "The last movement", body = Data<WalletTransaction>),
    )
)]
async fn debit_wallet(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let read = |ctx: &Ctx| Ok(WalletRequest::Debit(ctx.body(DebitRequest::read)?));
    operate(ctx, "debit_wallet", read, |answer| Ok(once(answer.movement()?))).await
}

/// Correct a balance with a reason
#[utoipa::path(
    post, path = "/v1/wallets/{id}/adjust", operation_id = "adjust_wallet", tag = TAG, request_body = AdjustRequest,
    params(("id" = WalletId, Path, description = "Wallet")),
    responses(
        (status = 200, description = "What an earlier call with the same idempotency_key did", body = Data<WalletTransaction>),
        (status = 201, description = "The movement", body = Data<WalletTransaction>),
    )
)]
async fn adjust_wallet(ctx: Ctx) -> Answer {
    ctx.require("wallets:adjust")?;
    let read = |ctx: &Ctx| Ok(WalletRequest::Adjust(ctx.body(AdjustRequest::read)?));
    operate(ctx, "adjust_wallet", read, |answer| Ok(once(answer.movement()?))).await
}

/// Move money to another wallet of the customer
#[utoipa::path(
    post, path = "/v1/wallets/{id}/transfer", operation_id = "transfer_between_wallets", tag = TAG,
    request_body = TransferRequest,
    params(("id" = WalletId, Path, description = "Source")),
    responses(
        (status = 200, description = "What an earlier call with the same idempotency_key did", body = Data<WalletTransferResult>),
        (status = 201, description = "Both movements", body = Data<WalletTransferResult>),
    )
)]
async fn transfer_between_wallets(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let read = |ctx: &Ctx| Ok(WalletRequest::Transfer(ctx.body(TransferRequest::read)?));
    operate(ctx, "transfer_between_wallets", read, |answer| Ok(once(answer.transfer()?))).await
}

/// Steps 2 and 3 of a top-up.
/// Charge a payment method and credit the wallet
///
/// A payment that its provider has not decided answers with status PENDING or PROCESSING; the credit follows by itself, and
/// `wallet.topup_succeeded` or `wallet.topup_failed` tells of it. A repeat under the same key answers how far the first is.
#[utoipa::path(
    post, path = "/v1/wallets/{id}/topup", operation_id = "topup_wallet", tag = TAG, request_body = TopupRequest,
    params(("id" = WalletId, Path, description = "Wallet")),
    responses(
        (status = 200, description = "How far the top-up of an earlier call with the same idempotency_key is", body = Data<TopupResponse>),
        (status = 201, description = "The wallet and how far the payment is", body = Data<TopupResponse>),
    )
)]
async fn topup_wallet(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let begun = match ctx.write("topup_wallet").await {
        Ok(mut write) => {
            let id = ctx.path_id("id")?;
            let request = ctx.body(TopupRequest::read)?;
            let opened = ctx.app.payments.topup(&ctx.scope, write.tx(), id, &request).await?;
            Begun::commit(write, opened).await?
        }
        Err(refusal) => Begun::repeated(refusal)?,
    };
    let (payments, scope, id, attempt) =
        (ctx.app.payments.clone(), ctx.scope, begun.opened.transaction_id, begun.attempt());
    let payment = to_the_end(async move { payments.proceed(&scope, id, attempt).await }).await?;
    begun.answer(StatusCode::CREATED, ctx.app.payments.answer(&ctx.scope, &payment).await?)
}

/// Fill the customer's wallet in the currency of the amount, which is made when it is missing
///
/// In mode INVOICE a finalized invoice asks for the money, and its payment in full fills the wallet.
#[utoipa::path(
    post, path = "/v1/customers/{id}/wallets/topup", operation_id = "topup_customer_wallet", tag = TAG,
    request_body = WalletTopupRequest,
    params(("id" = CustomerId, Path, description = "Customer")),
    responses(
        (status = 200, description = "How far the top-up of an earlier call with the same idempotency_key is", body = Data<WalletTopupResponse>),
        (status = 201, description = "How far the payment is", body = Data<WalletTopupResponse>),
    )
)]
async fn topup_customer_wallet(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let begun = match ctx.write("topup_customer_wallet").await {
        Ok(mut write) => {
            let customer = ctx.path_id("id")?;
            let request = ctx.body(WalletTopupRequest::read)?;
            let opened = ctx.app.payments.topup_customer(&ctx.scope, write.tx(), customer, &request).await?;
            Begun::commit(write, opened).await?
        }
        Err(refusal) => Begun::repeated(refusal)?,
    };
    let (payments, scope, opened, attempt) = (ctx.app.payments.clone(), ctx.scope, begun.opened, begun.attempt());
    let answer = to_the_end(async move { payments.proceed_with_topup(&scope, &opened, attempt).await }).await?;
    begun.answer(StatusCode::CREATED, answer)
}

/// Hold an amount
#[utoipa::path(
    post, path = "/v1/wallets/{id}/holds", operation_id = "create_wallet_hold", tag = TAG, request_body = HoldRequest,
    params(("id" = WalletId, Path, description = "Wallet")),
    responses(
        (status = 200, description = "What an earlier call with the same idempotency_key did", body = Data<WalletHold>),
        (status = 201, description = "The hold", body = Data<WalletHold>),
    )
)]
async fn create_wallet_hold(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let read = |ctx: &Ctx| Ok(WalletRequest::Hold(ctx.body(HoldRequest::read)?));
    operate(ctx, "create_wallet_hold", read, |answer| Ok(once(answer.hold()?))).await
}

/// Holds of a wallet
#[utoipa::path(
    get, path = "/v1/wallets/{id}/holds", operation_id = "list_wallet_holds", tag = TAG,
    params(
        ("id" = WalletId, Path, description = "Wallet"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "PENDING, CAPTURED, RELEASED or EXPIRED"),
    ),
    responses((status = 200, description = "One page", body = PageOf<WalletHold>))
)]
async fn list_wallet_holds(ctx: Ctx) -> Answer {
    ctx.require("wallets:read")?;
    let id = ctx.path_id("id")?;
    answer::page(wallet::list_holds(&ctx.scope, &ctx.app.store, id, ctx.query()).await?)
}

/// Read one hold
#[utoipa::path(
    get, path = "/v1/wallets/{id}/holds/{hold_id}", operation_id = "get_wallet_hold", tag = TAG,
    params(("id" = WalletId, Path, description = "Wallet"), ("hold_id" = HoldId, Path, description = "Hold")),
    responses((status = 200, description = "The hold", body = Data<WalletHold>))
)]
async fn get_wallet_hold(ctx: Ctx) -> Answer {
    ctx.require("wallets:read")?;
    let (id, hold) = (ctx.path_id("id")?, ctx.path_id("hold_id")?);
    answer::ok(Data(wallet::get_hold(&ctx.scope, &ctx.app.store, id, hold).await?))
}

/// Charge a hold in full or in part
#[utoipa::path(
    post, path = "/v1/wallets/{id}/holds/{hold_id}/capture", operation_id = "capture_wallet_hold", tag = TAG,
    request_body = CaptureHoldRequest,
    params(("id" = WalletId, Path, description = "Wallet"), ("hold_id" = HoldId, Path, description = "Hold")),
    responses((status = 200, description = "The hold", body = Data<WalletHold>))
)]
async fn capture_wallet_hold(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    let read = |ctx: &Ctx| {
        let hold = ctx.path_id("hold_id")?;
        Ok(WalletRequest::CaptureHold(hold, ctx.body_or_empty(CaptureHoldRequest::read)?))
    };
    operate(ctx, "capture_wallet_hold", read, ended).await
}

fn ended(answer: WalletAnswer) -> Result<(StatusCode, Data<WalletHold>)> {
    Ok((StatusCode::OK, Data(answer.hold()?.value)))
}

/// Release a hold
#[utoipa::path(
    post, path = "/v1/wallets/{id}/holds/{hold_id}/release", operation_id = "release_wallet_hold", tag = TAG,
    params(("id" = WalletId, Path, description = "Wallet"), ("hold_id" = HoldId, Path, description = "Hold")),
    responses((status = 200, description = "The hold", body = Data<WalletHold>))
)]
async fn release_wallet_hold(ctx: Ctx) -> Answer {
    ctx.require("wallets:write")?;
    operate(ctx, "release_wallet_hold", |ctx| Ok(WalletRequest::ReleaseHold(ctx.path_id("hold_id")?)), ended).await
}

/// Movements of a wallet, newest first
#[utoipa::path(
    get, path = "/v1/wallets/{id}/transactions", operation_id = "list_wallet_transactions", tag = TAG,
    params(
        ("id" = WalletId, Path, description = "Wallet"),
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("type" = Option<String>, Query, description = "Kind of movement"),
        ("source" = Option<String>, Query, description = "Cause of the movement"),
        ("created_after" = Option<String>, Query, description = "RFC 3339, inclusive"),
        ("created_before" = Option<String>, Query, description = "RFC 3339, exclusive"),
    ),
    responses((status = 200, description = "One page", body = PageOf<WalletTransaction>))
)]
async fn list_wallet_transactions(ctx: Ctx) -> Answer {
    ctx.require("wallets:read")?;
    let id = ctx.path_id("id")?;
    answer::page(wallet::list_transactions(&ctx.scope, &ctx.app.store, id, ctx.query()).await?)
}
