//! From log records to events: our own in binary, foreign ones as signed JSON (rule A7).

use std::sync::Arc;

use chrono::{DateTime, Utc};
use dashmap::DashMap;
use domain::{
    Clock, Error, Instant, OrganizationId, Position, Result, Scope, UsageEvent, UsageEventId, WorkspaceId,
    WorkspaceMode,
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sqlx::Row;
use store::{Store, StoreError};

use crate::log::{ForeignHeaders, LogIdentity, LogRecord, Origin};
use crate::record::{CatalogChange, Control, Record, RecordError};

/// A record, as far as it can be read without a query.
#[derive(Debug)]
pub enum Decoded {
    /// One of ours.
    Usage {
        /// Place.
        position: Position,
        /// Hash of its content.
        payload_hash: u64,
        /// The event.
        event: Box<UsageEvent>,
    },
    /// The end of a window.
    Control {
        /// Place.
        position: Position,
        /// What it says.
        control: Control,
    },
    /// Usage that is counted already may be judged anew (rule B6).
    CatalogChange {
        /// Place.
        position: Position,
        /// What it says.
        change: CatalogChange,
    },
    /// A foreign producer's.
    Foreign {
        /// Place.
        position: Position,
        /// When the log took it: the instant of its acceptance (rule B6).
        accepted_at: Instant,
        /// What the producer says of itself.
        headers: ForeignHeaders,
        /// JSON, perhaps.
        payload: bytes::Bytes,
    },
    /// Cannot be read (rule A4): a deterministic failure of this offset.
    Bad {
        /// Place.
        position: Position,
        /// Why.
        error: RecordError,
        /// As it was.
        payload: bytes::Bytes,
    },
}

impl Decoded {
    /// Place of the record.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            Self::Usage { position, .. }
            | Self::Control { position, .. }
            | Self::CatalogChange { position, .. }
            | Self::Foreign { position, .. }
            | Self::Bad { position, .. } => *position,
        }
    }

    /// Whether it speaks of windows, and not of an event.
    #[must_use]
    pub fn is_control(&self) -> bool {
        matches!(self, Self::Control { .. } | Self::CatalogChange { .. })
    }
}

/// Reads a record.
#[must_use]
pub fn decode(log: &LogIdentity, record: LogRecord) -> Decoded {
    let position = log.position(record.offset);
    match record.origin {
        Origin::Own => {}
        Origin::Foreign(headers) => {
            let accepted_at = record.logged_at_ms.and_then(DateTime::<Utc>::from_timestamp_millis).unwrap_or_default();
            return Decoded::Foreign { position, accepted_at, headers, payload: record.payload };
        }
        Origin::Forged => return Decoded::Bad { position, error: RecordError::Forged, payload: record.payload },
    }
    match Record::decode(&record.payload) {
        Ok(Record::Usage(event)) => Decoded::Usage { position, payload_hash: event.payload_hash(), event },
        Ok(Record::Control(control)) => Decoded::Control { position, control },
        Ok(Record::CatalogChange(change)) => Decoded::CatalogChange { position, change },
        Err(error) => Decoded::Bad { position, error, payload: record.payload },
    }
}

/// What a workspace's foreign producers sign with, and whose it is.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Tenant.
    pub organization_id: OrganizationId,
    /// Live or sandbox.
    pub mode: WorkspaceMode,
    secret: Vec<u8>,
}

/// Tenants by workspace, read once.
#[derive(Debug, Default)]
pub struct Secrets {
    tenants: DashMap<WorkspaceId, Arc<Tenant>>,
}

impl Secrets {
    /// The tenant of a workspace; `None` when there is no such workspace.
    ///
    /// # Errors
    /// As every statement.
    pub async fn tenant(&self, store: &Store, workspace_id: WorkspaceId) -> Result<Option<Arc<Tenant>>> {
        if let Some(found) = self.tenants.get(&workspace_id) {
            return Ok(Some(found.clone()));
        }
        let row = sqlx::query("SELECT organization_id, mode, ingest_secret FROM workspace WHERE id = $1")
            .bind(workspace_id)
            .fetch_optional(store.pool())
            .await
            .context("reading a workspace")?;
        let Some(row) = row else { return Ok(None) };
        let tenant = Arc::new(Tenant {
            organization_id: row.try_get("organization_id").context("reading a workspace")?,
            mode: row.try_get("mode").context("reading a workspace")?,
            secret: row.try_get("ingest_secret").context("reading a workspace")?,
        });
        self.tenants.insert(workspace_id, tenant.clone());
        Ok(Some(tenant))
    }

    /// Whose record it is: the workspace that the header names, if the signature is its own.
    ///
    /// # Errors
    /// `Unauthorized` for a missing or wrong signature; as every statement.
    pub async fn authenticate(
        &self,
        store: &Store,
        headers: &ForeignHeaders,
        payload: &[u8],
        trust: bool,
        at: Instant,
    ) -> Result<Scope> {
        let workspace_id = headers
            .workspace
            .as_deref()
            .and_then(|text| std::str::from_utf8(text).ok())
            .and_then(|text| text.trim().parse::<WorkspaceId>().ok())
            .ok_or(Error::Unauthorized("the header kontorion-workspace must name a workspace"))?;
        let tenant = self
            .tenant(store, workspace_id)
            .await?
            .ok_or(Error::Unauthorized("the header kontorion-workspace names no workspace"))?;
        if !trust {
            verify(&tenant.secret, headers.signature.as_deref(), payload)?;
        }
        Ok(Scope {
            organization_id: tenant.organization_id,
            workspace_id,
            mode: tenant.mode,
            actor: domain::Actor::System,
            clock: Clock::At(at),
        })
    }
}

/// HMAC-SHA256 of the value under the workspace's ingest secret, in hex, compared in constant time.
fn verify(secret: &[u8], signature: Option<&[u8]>, payload: &[u8]) -> Result<()> {
    let wrong = Error::Unauthorized("the header kontorion-signature is not the HMAC-SHA256 of the value");
    let given = signature.and_then(|text| hex::decode(text).ok());
    let (Some(given), Ok(mut mac)) = (given, Hmac::<Sha256>::new_from_slice(secret)) else { return Err(wrong) };
    mac.update(payload);
    mac.verify_slice(&given).map_err(|_| wrong)
}

/// The id of a foreign record that has none: its place, so that a replay of the log keeps it once.
#[must_use]
pub fn id_of_unreadable(workspace_id: WorkspaceId, partition: u32, position: Position) -> UsageEventId {
    UsageEventId::of(workspace_id, &format!("\0{partition}:{}", position.as_i64()))
}
