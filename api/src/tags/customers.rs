//! Customers (customers.md).

use billing::customer::{self, CreateCustomerRequest, CreateCustomerResponse, Customer, UpdateCustomerRequest};
use domain::CustomerId;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Answer, App, Ctx, Data, PageOf, answer};

const TAG: &str = "Customers";

/// Routes of the tag.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list_customers, create_customer))
        .routes(routes!(get_customer, update_customer, delete_customer))
        .routes(routes!(get_customer_by_external_id, upsert_customer_by_external_id))
}

/// List customers with filters and cursor pagination
#[utoipa::path(
    get, path = "/v1/customers", operation_id = "list_customers", tag = TAG,
    params(
        ("limit" = Option<u32>, Query, description = "1 to 100, default 25"),
        ("cursor" = Option<String>, Query, description = "Of the page before"),
        ("status" = Option<String>, Query, description = "ACTIVE, INACTIVE, ARCHIVED or MERGED"),
        ("tags" = Option<String>, Query, description = "Tags that the customer carries, comma-separated"),
        ("tag" = Option<String>, Query, description = "Id or name of a tag; repeatable"),
        ("external_id" = Option<String>, Query, description = "The caller's own id"),
        ("email" = Option<String>, Query, description = "Main contact"),
        ("name" = Option<String>, Query, description = "Name; `name.contains` for a part of it"),
        ("customer_type" = Option<String>, Query, description = "BUSINESS, CONSUMER or UNKNOWN"),
        ("billing_model" = Option<String>, Query, description = "PREPAID, POSTPAID or HYBRID"),
        ("preferred_currency" = Option<String>, Query, description = "ISO 4217"),
        ("vat_validation_status" = Option<String>, Query, description = "Result of the VAT check"),
    ),
    responses((status = 200, description = "One page", body = PageOf<Customer>))
)]
async fn list_customers(ctx: Ctx) -> Answer {
    ctx.require("customers:read")?;
    answer::page(customer::list(&ctx.scope, &mut *ctx.conn().await?, ctx.query()).await?)
}

/// Create a customer and its primary wallet
#[utoipa::path(
    post, path = "/v1/customers", operation_id = "create_customer", tag = TAG, request_body = CreateCustomerRequest,
    responses((status = 201, description = "The customer with its wallet", body = Data<CreateCustomerResponse>))
)]
async fn create_customer(ctx: Ctx) -> Answer {
    ctx.require("customers:write")?;
    let mut write = ctx.write("create_customer").await?;
    let request = ctx.body(CreateCustomerRequest::read)?;
    let created = customer::create(&ctx.scope, write.tx(), request).await?;
    write.created(Data(created)).await
}

/// Read one customer
#[utoipa::path(
    get, path = "/v1/customers/{id}", operation_id = "get_customer", tag = TAG,
    params(("id" = CustomerId, Path, description = "Customer")),
    responses((status = 200, description = "The customer", body = Data<Customer>))
)]
async fn get_customer(ctx: Ctx) -> Answer {
    ctx.require("customers:read")?;
    let id = ctx.path_id("id")?;
    answer::ok(Data(customer::get(&ctx.scope, &mut *ctx.conn().await?, id).await?))
}

/// Change the sent fields of a customer
#[utoipa::path(
    patch, path = "/v1/customers/{id}", operation_id = "update_customer", tag = TAG,
    request_body = UpdateCustomerRequest,
    params(("id" = CustomerId, Path, description = "Customer")),
    responses((status = 200, description = "The customer", body = Data<Customer>))
)]
async fn update_customer(ctx: Ctx) -> Answer {
    ctx.require("customers:write")?;
    let mut write = ctx.write("update_customer").await?;
    let id = ctx.path_id("id")?;
    let request = ctx.body(UpdateCustomerRequest::read)?;
    let customer = customer::update(&ctx.scope, write.tx(), id, request).await?;
    write.ok(Data(customer)).await
}

/// Soft-delete a customer without running subscriptions
#[utoipa::path(
    delete, path = "/v1/customers/{id}", operation_id = "delete_customer", tag = TAG,
    params(("id" = CustomerId, Path, description = "Customer")),
    responses((status = 204, description = "Deleted"))
)]
async fn delete_customer(ctx: Ctx) -> Answer {
    ctx.require("customers:delete")?;
    let mut write = ctx.write("delete_customer").await?;
    let id = ctx.path_id("id")?;
    customer::delete(&ctx.scope, write.tx(), id).await?;
    write.no_content().await
}

/// Read a customer by the caller's own id
#[utoipa::path(
    get, path = "/v1/customers/by-external-id/{external_id}", operation_id = "get_customer_by_external_id", tag = TAG,
    params(("external_id" = String, Path, description = "The caller's own id")),
    responses((status = 200, description = "The customer", body = Data<Customer>))
)]
async fn get_customer_by_external_id(ctx: Ctx) -> Answer {
    ctx.require("customers:read")?;
    let external_id = ctx.path_text("external_id")?;
    answer::ok(Data(customer::get_by_external_id(&ctx.scope, &mut *ctx.conn().await?, external_id).await?))
}

/// Create or update a customer by external id
#[utoipa::path(
    put, path = "/v1/customers/by-external-id/{external_id}", operation_id = "upsert_customer_by_external_id",
    tag = TAG, request_body = CreateCustomerRequest,
    params(("external_id" = String, Path, description = "The caller's own id")),
    responses(
        (status = 200, description = "Changed", body = Data<Customer>),
        (status = 201, description = "Created", body = Data<Customer>),
    )
)]
async fn upsert_customer_by_external_id(ctx: Ctx) -> Answer {
    ctx.require("customers:write")?;
    let mut write = ctx.write("upsert_customer_by_external_id").await?;
    let request = ctx.body(CreateCustomerRequest::read)?;
    let upserted = customer::upsert(&ctx.scope, write.tx(), ctx.path_text("external_id")?, request).await?;
    match upserted.created {
        true => write.created(Data(upserted.customer)).await,
        false => write.ok(Data(upserted.customer)).await,
    }
}
