//! Issues credit notes over usage that its invoices charged too high: the totals of a window that is billed again cost less
//! (a unit price that falls with the volume, usage that was taken back).

use domain::{InvoiceId, JsonMap, Money, Result, Scope};
use ledger::WorkspaceAccount;
use store::Tx;

use super::words::CreditNoteReasonCode;
use super::write::{Note, Taken, issue_all};
use crate::invoice::draft::DraftLine;
use crate::invoice::draft::difference::has_charged;
use crate::invoice::invoiced::Invoiced;
use crate::invoice::save::Computed;

const REASON: &str = "the usage of the period costs less than was charged";

/// Issues what these runs owe, one credit note for each invoice that is taken back a part of: numbered and booked at once, in
/// the caller's transaction. The number row is the last lock.
///
/// # Errors
/// What booking says; then nothing may be committed.
pub(crate) async fn issue(scope: &Scope, tx: &mut Tx, computed: &[Computed<'_>]) -> Result<()> {
    let mut notes: Vec<Note> = Vec::new();
    for Computed { subscription, credits, invoiced, .. } in computed {
        for (invoice_id, taken) in take_back(credits, invoiced)? {
            match notes.iter_mut().find(|note| note.invoice_id == invoice_id) {
                Some(note) => note.lines.push(taken),
                None => notes.push(Note {
                    customer_id: subscription.customer_id,
                    subscription_id: Some(subscription.id),
                    invoice_id,
                    against: WorkspaceAccount::Revenue,
                    reason_code: CreditNoteReasonCode::BillingError,
                    reason: REASON.to_owned(),
                    refund_transaction_id: None,
                    metadata: JsonMap::new(),
                    lines: vec![taken],
                }),
            }
        }
    }
    issue_all(scope, tx, &notes).await.map(drop)
}

/// What negative lines take back of which earlier lines: the latest first, of each at most what stands of it.
fn take_back(credits: &[DraftLine], invoiced: &[Invoiced]) -> Result<Vec<(InvoiceId, Taken)>> {
    let mut taken = Vec::new();
    for credit in credits {
        let mut open = credit.amount.negate();
        for earlier in invoiced.iter().rev().filter(|earlier| has_charged(earlier, credit)) {
            let standing = earlier.standing()?;
            let net = if standing.amount() <= open.amount() { standing } else { open };
            if net.is_zero() || net.is_negative() {
                continue;
            }
            taken.push((earlier.invoice_id, part_of(earlier, net, net == standing)?));
            open = open.sub(net)?;
        }
    }
    Ok(taken)
}

/// The last credit of a line takes the remaining cents of its tax, so that both together leave exactly none (credit-notes.md
/// 4, Tax).
fn part_of(earlier: &Invoiced, net: Money, is_last: bool) -> Result<Taken> {
    let rest = earlier.tax_amount.sub(earlier.tax_credited)?;
    let tax = if is_last {
        rest
    } else {
        let share = Money::round(earlier.tax_amount.amount() * net.amount() / earlier.amount.amount(), net.currency())?;
        if share.amount() <= rest.amount() { share } else { rest }
    };
    Ok(Taken {
        line_id: earlier.line_id,
        description: earlier.description.clone(),
        net,
        tax,
        tax_rate: earlier.tax_rate,
        tax_category: earlier.tax_category,
    })
}
