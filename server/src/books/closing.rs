//! `kontorion ledger close`, `reopen` and `closings`.

use ledger::Closing;
use store::{Store, Tx};

use super::Workspace;
use crate::cli::When;
use crate::failure::Failure;
use crate::table::{print_json, table};

/// Closes everything before an instant.
///
/// # Errors
/// When the period has not ended or is closed, or the database does not answer.
pub async fn close(store: &Store, workspace: &Workspace, before: When, note: Option<&str>) -> Result<(), Failure> {
    let doing = "closing the books";
    let mut tx = begin(store, doing).await?;
    let closed = ledger::close(&workspace.scope, &mut tx, workspace.instant(before), note).await;
    let closed = tx.end(closed).await.map_err(|error| Failure::work(doing, error))?;
    println!("{}: closed before {}", workspace.name, workspace.local(closed.closed_before));
    Ok(())
}

/// Opens the last closed period again.
///
/// # Errors
/// When nothing is closed, or the database does not answer.
pub async fn reopen(store: &Store, workspace: &Workspace, note: Option<&str>) -> Result<(), Failure> {
    let doing = "opening the books";
    let mut tx = begin(store, doing).await?;
    let reopened = ledger::reopen(&workspace.scope, &mut tx, note).await;
    let reopened = tx.end(reopened).await.map_err(|error| Failure::work(doing, error))?;
    println!(
        "{}: the closing before {} has no effect any more",
        workspace.name,
        workspace.local(reopened.closed_before)
    );
    Ok(())
}

/// Prints all closings, newest first.
///
/// # Errors
/// When the database does not answer.
pub async fn list(store: &Store, workspace: &Workspace, json: bool) -> Result<(), Failure> {
    let doing = "reading the closings";
    let mut tx = begin(store, doing).await?;
    let closings = ledger::closings(&workspace.scope, &mut tx).await;
    let closings: Vec<Closing> = tx.end(closings).await.map_err(|error| Failure::work(doing, error))?;
    if json {
        return print_json(&closings);
    }
    let header = ["closed before", "closed at", "note", "opened again", "note"];
    let mut shown = table(&header, header.len());
    for closing in &closings {
        shown.add_row([
            workspace.local(closing.closed_before),
            workspace.local(closing.closed_at),
            closing.note.clone().unwrap_or_default(),
            closing.reopened_at.map(|at| workspace.local(at)).unwrap_or_default(),
            closing.reopened_note.clone().unwrap_or_default(),
        ]);
    }
    println!("{}\n{shown}", workspace.name);
    Ok(())
}

async fn begin(store: &Store, doing: &'static str) -> Result<Tx, Failure> {
    store.begin(doing).await.map_err(|error| Failure::work(doing, error))
}
