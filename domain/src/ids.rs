//! Typed ids. Every id is a UUID; ids made here are version 7 (time-ordered), ids of usage events version 5.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

fn uuid_schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
    use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
    ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))).into()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new time-ordered id (UUID version 7).
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                uuid_schema()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
        }
    )+};
}

ids! {
    /// Top-level tenant.
    OrganizationId,
    /// Live or sandbox data space of an organization.
    WorkspaceId,
    /// API key.
    ApiKeyId,
    /// Billed party.
    CustomerId,
    /// Catalog entry that everything billable points at.
    ProductId,
    /// Named bundle of products.
    PlanId,
    /// Attachment of a product to a plan.
    PlanProductId,
    /// Price of a product.
    PriceId,
    /// Expression that computes a price.
    PriceFormulaId,
    /// Table that expressions consult.
    RateTableId,
    /// Definition of a quantity.
    MeterId,
    /// Tie of a meter to a product.
    BindingId,
    /// Version of any catalog entity.
    VersionId,
    /// Agreement between a customer and a plan.
    SubscriptionId,
    /// Charged item of a subscription.
    SubscriptionItemId,
    /// Phase of a subscription.
    PhaseId,
    /// Commitment of a customer to a quantity per period.
    CommittedUsePlanId,
    /// Quantity that was granted on top of an allowance.
    AllowanceGrantId,
    /// Metering window of one subscription.
    WindowId,
    /// Usage event: UUID version 5 of the workspace and the idempotency key.
    UsageEventId,
    /// Refused usage event that is kept with its reason.
    RejectionId,
    /// Threshold crossing.
    BreachId,
    /// Invoice.
    InvoiceId,
    /// Line of an invoice.
    InvoiceLineId,
    /// Credit note.
    CreditNoteId,
    /// Line of a credit note.
    CreditNoteLineId,
    /// Wallet of a customer in one currency.
    WalletId,
    /// Movement of a wallet.
    WalletTransactionId,
    /// Reservation on a wallet.
    HoldId,
    /// Ledger account.
    AccountId,
    /// Ledger transfer.
    TransferId,
    /// Exchange rate that a workspace has set.
    FxOverrideId,
    /// Exchange rate that was published.
    FxSnapshotId,
    /// Test clock of a sandbox.
    TestClockId,
    /// Row of the ledger of payments: money between a customer and the organization.
    TransactionId,
    /// Stored instrument of a customer.
    PaymentMethodId,
    /// Configuration of an outside processor.
    PaymentGatewayId,
    /// What happens to the payments with one method of a sandbox.
    PaymentSimulationId,
    /// Statement of what is owed to a counterparty.
    SettlementId,
    /// Line of one.
    SettlementLineId,
}

impl UsageEventId {
    /// The id of the event with this idempotency key (usage.md 3.1): a replay gets the same id.
    #[must_use]
    pub fn of(workspace: WorkspaceId, idempotency_key: &str) -> Self {
        Self(Uuid::new_v5(&workspace.0, idempotency_key.as_bytes()))
    }

    /// The id of the event that the capture of a hold writes: known before it is written, and never one of a key.
    #[must_use]
    pub fn of_capture(hold: HoldId) -> Self {
        const CAPTURES: Uuid = Uuid::from_u128(0x6f8b_3a52_94d1_4c0e_8f57_2d9a_c1e4_7b36);
        Self(Uuid::new_v5(&CAPTURES, hold.0.as_bytes()))
    }
}
