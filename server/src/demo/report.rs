//! What the demo prints: totals, breaches, the wallet, the invoices, and the comparison with the plain sum.

use client::plain_sum::invoice_cents;
use client::sample::{METRICS, title};
use client::views::{Breach, Invoice};
use rust_decimal::Decimal;

use super::feed::Fed;
use super::used::Used;
use super::world::World;
use crate::table::{grouped, table};

/// Customers whose running totals are shown.
const CUSTOMERS_SHOWN: usize = 3;

/// Rows of longer tables that are shown.
const ROWS_SHOWN: usize = 20;

/// Usage of a few customers before the period's end.
pub fn running_totals(fed: &Fed) {
    println!("\nRunning totals of the first customers, before the month is over:");
    let mut table = table(&["customer", "metric", "events", "quantity", "included", "beyond", "costs so far"], 2);
    for (customer, usage) in fed.usage.iter().enumerate().take(CUSTOMERS_SHOWN) {
        for (index, metric) in METRICS.iter().enumerate() {
            let Some(row) = usage.metrics.iter().find(|row| row.metric_key == *metric) else { continue };
            table.add_row([
                format!("Customer {customer}"),
                title(index).to_owned(),
                grouped(row.event_count),
                grouped(row.quantity.normalize()),
                grouped(row.included_quantity.normalize()),
                grouped(row.overage_quantity.normalize()),
                row.estimated_amount.to_string(),
            ]);
        }
    }
    println!("{table}");
}

/// Thresholds that were crossed.
pub fn breaches(world: &World, breaches: &[Breach]) {
    println!("\nThresholds crossed on input tokens: {}", breaches.len());
    let mut table = table(&["customer", "threshold", "limit", "observed", "when"], 2);
    for breach in breaches.iter().rev().take(5) {
        let customer = world.subscribers.iter().position(|row| row.subscription_id == breach.subscription_id);
        table.add_row([
            customer.map_or_else(|| breach.subscription_id.to_string(), |number| format!("Customer {number}")),
            breach.threshold_name.clone(),
            grouped(breach.threshold_value.normalize()),
            grouped(breach.observed_value.normalize()),
            breach.occurred_at.format("%Y-%m-%d %H:%M:%S").to_string(),
        ]);
    }
    if !breaches.is_empty() {
        println!("{table}");
    }
}

/// The prepaid wallet, before, during and after.
pub fn wallet(fed: &Fed) {
    println!("\nThe prepaid wallet of Customer 0 draws down while usage is counted:");
    let mut table = table(&["events sent", "cash", "accrued by usage", "available"], 0);
    for look in &fed.looks {
        table.add_row([
            grouped(look.sent),
            look.wallet.cash_balance.to_string(),
            look.wallet.accrued_balance.to_string(),
            look.wallet.available_balance.to_string(),
        ]);
    }
    println!("{table}");
}

/// How fast it went.
pub fn speed(fed: &Fed) {
    let rate = |seconds: f64| grouped((fed.events as f64 / seconds.max(1e-9)).round());
    println!(
        "\n{} events ({} of them sent twice): acknowledged in {:.2} s ({} events/s), counted in {:.2} s ({} events/s)",
        grouped(fed.events),
        grouped(fed.repeats),
        fed.accepted_in.as_secs_f64(),
        rate(fed.accepted_in.as_secs_f64()),
        fed.counted_in.as_secs_f64(),
        rate(fed.counted_in.as_secs_f64()),
    );
}

/// Prints the invoices and compares each with the plain sum of the input. Returns whether all agree.
pub fn invoices(world: &World, invoices: &[Invoice], targets: &[Used]) -> bool {
    let mut table = table(
        &["customer", "invoice", "status", "input tokens", "output tokens", "requests", "total", "due", "plain sum"],
        3,
    );
    let mut differences = Vec::new();
    let (mut billed, mut expected) = (Decimal::ZERO, Decimal::ZERO);
    for (customer, (subscriber, used)) in world.subscribers.iter().zip(targets).enumerate() {
        let plain = euros(invoice_cents(&used.quantities));
        expected += plain;
        let mut theirs = invoices.iter().filter(|invoice| invoice.customer_id == subscriber.customer_id);
        let (Some(invoice), None) = (theirs.next(), theirs.next()) else {
            differences.push(format!("Customer {customer} must have exactly one invoice"));
            continue;
        };
        billed += invoice.total.value;
        if let Some(difference) = difference(invoice, plain) {
            differences.push(format!("Customer {customer}: {difference}"));
        }
        if customer < ROWS_SHOWN {
            let mut row = vec![format!("Customer {customer}"), number(invoice), invoice.status.clone()];
            row.extend(used.quantities.iter().map(grouped));
            row.extend([invoice.total.to_string(), invoice.amount_due.to_string(), format!("{plain} EUR")]);
            table.add_row(row);
        }
    }
    if let Some(gap) = gap_in_numbers(invoices) {
        differences.push(gap);
    }
    println!("\n{table}");
    if targets.len() > ROWS_SHOWN {
        println!("and {} more", targets.len() - ROWS_SHOWN);
    }
    println!(
        "\n{} invoices over {} EUR; the plain sum of the input is {} EUR",
        invoices.len(),
        grouped(billed),
        grouped(expected)
    );
    for line in differences.iter().take(ROWS_SHOWN) {
        println!("DIFFERENCE  {line}");
    }
    differences.is_empty()
}

fn difference(invoice: &Invoice, plain: Decimal) -> Option<String> {
    if !matches!(invoice.status.as_str(), "finalized" | "paid") {
        return Some(format!("invoice {} is {}, not final", number(invoice), invoice.status));
    }
    // No tax rule applies in the demo, so net and gross are both the plain sum.
    let right = invoice.total.value == plain && invoice.subtotal.value == plain && invoice.total.currency == "EUR";
    (!right).then(|| format!("invoice {} is over {}, the plain sum is {plain}", number(invoice), invoice.total))
}

fn number(invoice: &Invoice) -> String {
    invoice.invoice_number.clone().unwrap_or_default()
}

/// The numbers of final invoices run from 1 without a gap (invoices.md, Numbering).
fn gap_in_numbers(invoices: &[Invoice]) -> Option<String> {
    let digits = |invoice: &Invoice| number(invoice).trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<usize>();
    let mut numbers: Vec<usize> = invoices.iter().filter_map(|invoice| digits(invoice).ok()).collect();
    numbers.sort_unstable();
    let gapless =
        numbers.len() == invoices.len() && numbers.iter().enumerate().all(|(index, number)| *number == index + 1);
    (!gapless).then(|| "the invoice numbers have a gap".to_owned())
}

fn euros(cents: u64) -> Decimal {
    Decimal::from(cents) / Decimal::ONE_HUNDRED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invoice(number: &str) -> Invoice {
        serde_json::from_value(serde_json::json!({
            "id": uuid::Uuid::nil(), "customer_id": uuid::Uuid::nil(), "subscription_id": null,
            "invoice_number": number, "status": "finalized",
            "subtotal": {"value": "49.05", "currency": "EUR"}, "tax_amount": {"value": "0.00", "currency": "EUR"},
            "total": {"value": "49.05", "currency": "EUR"}, "amount_due": {"value": "49.05", "currency": "EUR"},
            "billing_period_start": null,
        }))
        .unwrap()
    }

    #[test]
    fn a_cent_or_a_missing_number_is_seen() {
        assert_eq!(difference(&invoice("INV-000001"), euros(4_905)), None);
        assert!(difference(&invoice("INV-000001"), euros(4_906)).is_some());
        assert_eq!(gap_in_numbers(&[invoice("INV-000002"), invoice("INV-000001")]), None);
        assert!(gap_in_numbers(&[invoice("INV-000003"), invoice("INV-000001")]).is_some());
        assert!(gap_in_numbers(&[invoice("INV-000001"), invoice("INV-000001")]).is_some());
        assert!(gap_in_numbers(&[invoice("")]).is_some());
    }
}
