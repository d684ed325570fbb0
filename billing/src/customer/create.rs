//! Creation, with the primary wallet, and upsert by the caller's own id.

use domain::{Clock, CustomerId, Error, Instant, JsonMap, Patch, Result, Scope, WalletMode, WorkspaceMode};
use ledger::NewWallet;
use ledger::wallet::create_primary;
use sqlx::types::Json;
use store::{StoreError, Tx};
use uuid::Uuid;

use super::model::{BillingModel, CreateCustomerResponse, Customer, CustomerStatus, CustomerType, VatValidationStatus};
use super::read::find_by_external_id;
use super::request::CreateCustomerRequest;
use super::rules::apply;
use super::update::update_locked;

/// `POST /v1/customers`: makes a customer and its primary wallet, in its preferred currency or else the workspace's default.
///
/// # Errors
/// `DUPLICATE` for a taken `external_id`; `NotFound` for the test clock, `Forbidden` for one in a live workspace; a rule
/// for tags and custom fields that do not exist, and a clock that has ended; `CURRENCY_NOT_ENABLED`.
pub async fn create(scope: &Scope, tx: &mut Tx, request: CreateCustomerRequest) -> Result<CreateCustomerResponse> {
    let now = created_at(scope, tx, &request).await?;
    let mut customer = blank(scope, &request, now)?;
    let billing_model = request.members.billing_model;
    apply(&mut customer, request.into_update())?;
    customer.billing_model = billing_model.unwrap_or(BillingModel::Postpaid);
    insert(scope, tx, &customer).await?;
    let currency = match customer.preferred_currency {
        Some(currency) => currency,
        None => currency::default_currency(scope, tx.conn()).await?,
    };
    let new = NewWallet { customer_id: customer.id, currency, defaults: customer.wallet_defaults() };
    let wallet = create_primary(scope, tx, new).await?;
    tx.emit(scope, "customer.created", "customer", customer.id, store::payload(&customer)?).await?;
    Ok(CreateCustomerResponse { customer, wallet })
}

/// What an upsert did.
#[derive(Clone, Debug, PartialEq)]
pub struct Upserted {
    /// The customer.
    pub customer: Customer,
    /// Whether it is new: 201 instead of 200.
    pub created: bool,
}

/// `PUT /v1/customers/by-external-id/{external_id}`: creates, or changes what is sent.
///
/// # Errors
/// As creation and change; a rule when the body names another `external_id`, `customer_type` or `test_clock_id` than the
/// customer has.
pub async fn upsert(
    scope: &Scope,
    tx: &mut Tx,
    external_id: &str,
    mut request: CreateCustomerRequest,
) -> Result<Upserted> {
    match &request.members.external_id {
        Patch::Keep => request.members.external_id = Patch::Set(external_id.to_owned()),
        Patch::Set(same) if same == external_id => {}
        _ => return Err(Error::business_rule("external_id must be that of the path")),
    }
    // Two upserts of one id: the second waits here and then finds what the first made.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('customer ' || $1::text || ' ' || $2, 0))")
        .bind(scope.workspace_id)
        .bind(external_id)
        .execute(tx.conn())
        .await
        .context("locking an external id")?;
    let Some(customer) = find_by_external_id(scope, tx.conn(), external_id, true).await? else {
        let customer = create(scope, tx, request).await?.customer;
        return Ok(Upserted { customer, created: true });
    };
    if request.customer_type.is_some_and(|sent| sent != customer.customer_type) {
        return Err(Error::business_rule("customer_type is changed by change-type"));
    }
    if request.test_clock_id.is_some() && request.test_clock_id != customer.test_clock_id {
        return Err(Error::business_rule("test_clock_id is set at creation only"));
    }
    check_tags(&request.tag_ids)?;
    let customer = update_locked(scope, tx, customer, request.into_update()).await?;
    Ok(Upserted { customer, created: false })
}

/// The instant of creation: a test clock stands in for the machine's. Refuses a clock that cannot be joined.
async fn created_at(scope: &Scope, tx: &mut Tx, request: &CreateCustomerRequest) -> Result<Instant> {
    let Some(clock) = request.test_clock_id else { return Ok(scope.now()) };
    if scope.mode == WorkspaceMode::Live {
        let detail = "test clocks need a key of a sandbox workspace".to_owned();
        return Err(Error::Forbidden { detail, required_permission: None });
    }
    let found: Option<(Instant, String)> =
        sqlx::query_as("SELECT frozen_at, status FROM test_clock WHERE workspace_id = $1 AND id = $2 FOR SHARE")
            .bind(scope.workspace_id)
            .bind(clock)
            .fetch_optional(tx.conn())
            .await
            .context("reading a test clock")?;
    let (frozen_at, status) = found.ok_or_else(|| Error::not_found("test_clock", clock))?;
    if status == "completed" {
        return Err(Error::business_rule("the test clock has ended"));
    }
    match scope.clock {
        Clock::System => Ok(frozen_at),
        Clock::At(instant) => Ok(instant),
    }
}

/// Tags cannot be made yet, so that every id is an unknown one.
fn check_tags(tag_ids: &[Uuid]) -> Result<()> {
    match tag_ids {
        [] => Ok(()),
        [first, ..] => Err(Error::business_rule(format!("tag {first} does not exist"))),
    }
}

fn blank(scope: &Scope, request: &CreateCustomerRequest, now: Instant) -> Result<Customer> {
    check_tags(&request.tag_ids)?;
    let mode = match request.members.billing_model {
        Some(BillingModel::Prepaid) => WalletMode::Prepaid,
        _ => WalletMode::Postpaid,
    };
    Ok(Customer {
        id: CustomerId::generate(),
        organization_id: scope.organization_id,
        external_id: None,
        email: String::new(),
        name: String::new(),
        customer_type: request.customer_type.unwrap_or(CustomerType::Unknown),
        billing_model: BillingModel::Hybrid,
        mode,
        status: CustomerStatus::Active,
        billing_address: None,
        tax_identifiers: Default::default(),
        preferred_currency: None,
        locale: None,
        payment_terms_days: None,
        peppol_id: None,
        einvoice_email: None,
        prefer_einvoice: false,
        preferred_provider: None,
        disabled_providers: Vec::new(),
        default_auto_topup_enabled: None,
        default_auto_topup_amount: None,
        default_credit_limit: None,
        default_low_balance_threshold: None,
        default_max_balance: None,
        default_max_single_credit: None,
        vat_validation_status: VatValidationStatus::Unvalidated,
        vat_validation_disabled: false,
        vat_validation_disabled_reason: None,
        tag_ids: Vec::new(),
        test_clock_id: request.test_clock_id,
        merged_into_id: None,
        custom_fields: JsonMap::new(),
        metadata: JsonMap::new(),
        created_at: now,
        updated_at: now,
        deleted_at: None,
    })
}

async fn insert(scope: &Scope, tx: &mut Tx, customer: &Customer) -> Result<()> {
    let mut row = store::payload(customer)?;
    row.insert("workspace_id".to_owned(), scope.workspace_id.0.to_string().into());
    let inserted = sqlx::query(
        "INSERT INTO customer SELECT * FROM jsonb_populate_record(NULL::customer, $1)
         ON CONFLICT (workspace_id, external_id) WHERE deleted_at IS NULL DO NOTHING",
    )
    .bind(Json(row))
    .execute(tx.conn())
    .await
    .context("making a customer")?;
    if inserted.rows_affected() == 1 {
        return Ok(());
    }
    let external_id = customer.external_id.as_deref().unwrap_or_default();
    let existing = find_by_external_id(scope, tx.conn(), external_id, false).await?;
    Err(Error::duplicate("external_id", existing.map(|existing| existing.id.to_string())))
}
