//! `kontorion ledger account`: what moved on one account.

use domain::wire::Word;
use domain::{Currency, WalletId};
use ledger::{Span, Statement, StatementAccount, WalletAccount, WorkspaceAccount};
use rust_decimal::Decimal;
use store::Store;
use uuid::Uuid;

use super::{Workspace, sided};
use crate::cli::When;
use crate::failure::Failure;
use crate::table::{grouped, print_json, table};

/// The account that somebody names.
///
/// # Errors
/// For a kind that is not there, with those that are; when wallet or currency are missing.
pub fn account(kind: &str, wallet: Option<Uuid>, currency: Option<Currency>) -> Result<StatementAccount, Failure> {
    if let Some(of_wallet) = WalletAccount::from_wire(kind) {
        let wallet =
            wallet.ok_or_else(|| Failure::usage(format!("{kind} is an account of a wallet: name it with --wallet")))?;
        return Ok(StatementAccount::Wallet(WalletId(wallet), of_wallet));
    }
    let Some(of_workspace) = WorkspaceAccount::from_wire(kind) else {
        let known = format!("{}, {}", WalletAccount::allowed(), WorkspaceAccount::allowed());
        return Err(Failure::usage(format!("`{kind}` is not one of {known}")));
    };
    let currency = currency
        .ok_or_else(|| Failure::usage(format!("{kind} has one account per currency: name it with --currency")))?;
    Ok(StatementAccount::Workspace(of_workspace, currency))
}

/// Prints the entries of a period.
///
/// # Errors
/// When the wallet is not there or the database does not answer.
pub async fn run(
    store: &Store,
    workspace: &Workspace,
    account: StatementAccount,
    (from, to): (Option<When>, Option<When>),
    json: bool,
) -> Result<(), Failure> {
    let instant = |when: Option<When>| when.map(|when| workspace.instant(when));
    let span = Span { from: instant(from), to: instant(to) };
    let statement = Statement::read(store, &workspace.scope, account, span)
        .await
        .map_err(|error| Failure::work("reading the account", error))?;
    if json {
        return print_json(&statement);
    }
    println!("{}: {} in {}", workspace.name, statement.kind, statement.currency);
    print(workspace, &statement, span);
    Ok(())
}

fn print(workspace: &Workspace, statement: &Statement, span: Span) {
    let mut shown = table(&["booked", "transfer", "for", "reference", "debit", "credit", "balance"], 4);
    let edge = |at: Option<domain::Instant>, what: &str, balance| {
        let at = at.map(|at| workspace.local(at)).unwrap_or_default();
        [at, String::new(), what.to_owned(), String::new(), String::new(), String::new(), sided(balance)]
    };
    shown.add_row(edge(span.from, "opening balance", statement.opening));
    for line in &statement.lines {
        let reference = match (&line.reference_type, line.reference_id) {
            (Some(of), Some(id)) => format!("{of} {id}"),
            _ => line.description.clone().unwrap_or_default(),
        };
        let side = |amount: Decimal| if amount.is_sign_positive() { grouped(amount) } else { String::new() };
        shown.add_row([
            workspace.local(line.booked_at),
            line.transfer_id.to_string(),
            line.kind.clone(),
            reference,
            side(line.amount),
            side(-line.amount),
            sided(line.balance),
        ]);
    }
    shown.add_row(edge(span.to, "closing balance", statement.closing));
    println!("{shown}\n{} entries", statement.lines.len());
}
