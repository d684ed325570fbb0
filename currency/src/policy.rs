//! Which moment's rate counts: the organization's setting `fx_policy` (fx.md 4).

use domain::{Instant, Result, WorkspaceId, wire::Word};
use sqlx::PgConnection;
use store::StoreError;

domain::wire_enum! {
    /// Which moment's rate counts.
    pub enum FXPolicy {
        /// When the invoice is finalized.
        InvoiceIssue = "invoice_issue",
        /// The start of the billing period: one rate for all of an invoice.
        PeriodStart = "period_start",
        /// The start of each line's segment.
        PerSegment = "per_segment",
        /// Nothing is converted.
        None = "none",
    }
}

/// Key of the setting.
pub const SETTING: &str = "fx_policy";

/// The moments between which a policy chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// When the invoice is finalized.
    pub issue: Instant,
    /// Start of its billing period.
    pub period_start: Instant,
    /// Start of the line's segment.
    pub segment_start: Instant,
}

impl FXPolicy {
    /// The moment whose rate counts; none where nothing is converted.
    #[must_use]
    pub fn choose(self, moments: Moments) -> Option<Instant> {
        match self {
            Self::InvoiceIssue => Some(moments.issue),
            Self::PeriodStart => Some(moments.period_start),
            Self::PerSegment => Some(moments.segment_start),
            Self::None => None,
        }
    }

    /// The policy of a workspace's organization; `invoice_issue` where it has chosen none.
    ///
    /// # Errors
    /// As every statement.
    pub async fn of_workspace(conn: &mut PgConnection, workspace: WorkspaceId) -> Result<Self> {
        let text: Option<String> = sqlx::query_scalar(
            "SELECT settings ->> $2 FROM organization JOIN workspace ON workspace.organization_id = organization.id
             WHERE workspace.id = $1",
        )
        .bind(workspace)
        .bind(SETTING)
        .fetch_optional(conn)
        .await
        .context("reading the policy of exchange rates")?
        .flatten();
        Ok(text.and_then(|text| Self::from_wire(&text)).unwrap_or(Self::InvoiceIssue))
    }
}
