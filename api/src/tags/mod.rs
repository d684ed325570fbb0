//! One file per tag of the reference. A new tag: write its file with `routes()`, name it here twice.

use utoipa_axum::router::OpenApiRouter;

use crate::App;

pub mod api_keys;
pub mod bindings;
pub mod committed_use_plans;
pub mod costs;
pub mod credit_notes;
pub mod currencies;
pub mod customers;
pub mod fx;
pub mod invoice_payments;
pub mod invoices;
pub mod meters;
pub mod organization_settings;
pub mod payment_gateways;
pub mod payment_methods;
pub mod plans;
pub mod price_formulas;
pub mod prices;
pub mod products;
pub mod rate_tables;
pub mod settlements;
pub mod subscriptions;
pub mod test_clocks;
pub mod test_payment_simulations;
pub mod transactions;
pub mod usage;
pub mod wallets;

/// Every operation.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .merge(api_keys::routes())
        .merge(bindings::routes())
        .merge(committed_use_plans::routes())
        .merge(costs::routes())
        .merge(credit_notes::routes())
        .merge(currencies::routes())
        .merge(customers::routes())
        .merge(fx::routes())
        .merge(invoice_payments::routes())
        .merge(invoices::routes())
        .merge(meters::routes())
        .merge(organization_settings::routes())
        .merge(payment_gateways::routes())
        .merge(payment_methods::routes())
        .merge(plans::routes())
        .merge(price_formulas::routes())
        .merge(prices::routes())
        .merge(products::routes())
        .merge(rate_tables::routes())
        .merge(settlements::routes())
        .merge(subscriptions::routes())
        .merge(test_clocks::routes())
        .merge(test_payment_simulations::routes())
        .merge(transactions::routes())
        .merge(usage::routes())
        .merge(wallets::routes())
}
