//! `kontorion ledger …`: the books, read and closed beside a working server or without one.

mod closing;
mod statement;
mod trial_balance;
mod verify;

use chrono_tz::Tz;
use domain::{Actor, Clock, Instant, OrganizationId, Scope, WorkspaceId, WorkspaceMode};
use rust_decimal::Decimal;
use store::{Store, StoreError};

use crate::cli::{LedgerCommand, When, WorkspaceOption};
use crate::failure::Failure;

/// Does what the command says.
///
/// # Errors
/// When the database does not answer, a promise of the books is broken, or the command cannot be meant.
pub async fn run(store: &Store, command: &LedgerCommand) -> Result<(), Failure> {
    match command {
        LedgerCommand::Verify { json } => verify::run(store, *json).await,
        LedgerCommand::TrialBalance { workspace, before, json } => {
            let workspace = Workspace::find(store, *workspace).await?;
            trial_balance::run(store, &workspace, *before, *json).await
        }
        LedgerCommand::Account { account, wallet, currency, workspace, from, to, json } => {
            let account = statement::account(account, *wallet, *currency)?;
            let workspace = Workspace::find(store, *workspace).await?;
            statement::run(store, &workspace, account, (*from, *to), *json).await
        }
        LedgerCommand::Close { workspace, before, note } => {
            closing::close(store, &Workspace::find(store, *workspace).await?, *before, note.as_deref()).await
        }
        LedgerCommand::Reopen { workspace, note } => {
            closing::reopen(store, &Workspace::find(store, *workspace).await?, note.as_deref()).await
        }
        LedgerCommand::Closings { workspace, json } => {
            closing::list(store, &Workspace::find(store, *workspace).await?, *json).await
        }
    }
}

/// The workspace that a command is about.
struct Workspace {
    name: String,
    timezone: Tz,
    scope: Scope,
}

#[derive(sqlx::FromRow)]
struct WorkspaceRow {
    id: WorkspaceId,
    organization_id: OrganizationId,
    organization: String,
    mode: WorkspaceMode,
    timezone: String,
}

/// Workspaces that a refusal lists.
const LISTED: usize = 20;

impl Workspace {
    async fn find(store: &Store, wanted: WorkspaceOption) -> Result<Self, Failure> {
        let rows: Vec<WorkspaceRow> = sqlx::query_as(
            "SELECT w.id, w.organization_id, o.name AS organization, w.mode, o.timezone
             FROM workspace w JOIN organization o ON o.id = w.organization_id
             WHERE CASE WHEN $1::uuid IS NULL THEN w.mode = 'live' ELSE w.id = $1 END ORDER BY o.name, w.id",
        )
        .bind(wanted.id)
        .fetch_all(store.pool())
        .await
        .context("reading the workspaces")
        .map_err(|error| Failure::work("looking for the workspace", error))?;
        match (rows.as_slice(), wanted.id) {
            ([row], _) => Ok(Self::of(row)),
            (_, Some(id)) => Err(Failure::usage(format!("--workspace: there is no workspace {id}"))),
            ([], None) => Err(Failure::usage("there is no live workspace: name one with --workspace")),
            (several, None) => {
                let listed = several.iter().take(LISTED).map(|row| format!("\n  {}  {}", row.id, row.organization));
                let listed: String = listed.collect();
                Err(Failure::usage(format!(
                    "there are {} live workspaces: name one with --workspace{listed}",
                    several.len()
                )))
            }
        }
    }

    fn of(row: &WorkspaceRow) -> Self {
        Self {
            name: format!("{} ({})", row.organization, row.mode),
            // Only names of the database of time zones are stored.
            timezone: row.timezone.parse().unwrap_or(Tz::UTC),
            scope: Scope {
                organization_id: row.organization_id,
                workspace_id: row.id,
                mode: row.mode,
                actor: Actor::System,
                clock: Clock::System,
            },
        }
    }

    fn instant(&self, when: When) -> Instant {
        match when {
            When::Day(day) => domain::period::midnight(day, self.timezone),
            When::Instant(instant) => instant,
        }
    }

    /// An instant as the organization's people write it.
    fn local(&self, instant: Instant) -> String {
        instant.with_timezone(&self.timezone).format("%Y-%m-%d %H:%M:%S").to_string()
    }
}

/// A balance with the side on which it stands.
fn sided(balance: Decimal) -> String {
    let side = match balance {
        zero if zero.is_zero() => "  ",
        credit if credit.is_sign_negative() => "Cr",
        _ => "Dr",
    };
    format!("{} {side}", crate::table::grouped(balance.abs()))
}
