//! What a change does to a customer, and what no change may do.

use domain::{Error, Result, WalletMode};

use super::model::{BillingModel, Customer, CustomerStatus};
use super::request::UpdateCustomerRequest;

/// Applies the sent members.
///
/// # Errors
/// A rule for a status that is not set by hand, a billing model that contradicts the mode, or custom fields that no
/// definition has; `INVALID_TRANSITION` for the status of an archived or merged customer.
pub(super) fn apply(customer: &mut Customer, request: UpdateCustomerRequest) -> Result<()> {
    catalog::texts::check_custom_fields(request.custom_fields.as_ref())?;
    apply_status(customer, request.status)?;
    apply_billing_model(customer, request.billing_model)?;
    let r = request;
    set(&mut customer.name, r.name);
    set(&mut customer.email, r.email);
    set(&mut customer.tax_identifiers, r.tax_identifiers);
    set(&mut customer.prefer_einvoice, r.prefer_einvoice);
    set(&mut customer.disabled_providers, r.disabled_providers);
    set(&mut customer.vat_validation_disabled, r.vat_validation_disabled);
    customer.external_id = r.external_id.apply(customer.external_id.take());
    customer.billing_address = r.billing_address.apply(customer.billing_address.take());
    customer.preferred_currency = r.preferred_currency.apply(customer.preferred_currency);
    customer.locale = r.locale.apply(customer.locale.take());
    customer.payment_terms_days = r.payment_terms_days.apply(customer.payment_terms_days);
    customer.peppol_id = r.peppol_id.apply(customer.peppol_id.take());
    customer.einvoice_email = r.einvoice_email.apply(customer.einvoice_email.take());
    customer.preferred_provider = r.preferred_provider.apply(customer.preferred_provider);
    customer.default_auto_topup_enabled = r.default_auto_topup_enabled.apply(customer.default_auto_topup_enabled);
    customer.default_auto_topup_amount = r.default_auto_topup_amount.apply(customer.default_auto_topup_amount);
    customer.default_credit_limit = r.default_credit_limit.apply(customer.default_credit_limit);
    customer.default_low_balance_threshold =
        r.default_low_balance_threshold.apply(customer.default_low_balance_threshold);
    customer.default_max_balance = r.default_max_balance.apply(customer.default_max_balance);
    customer.default_max_single_credit = r.default_max_single_credit.apply(customer.default_max_single_credit);
    customer.vat_validation_disabled_reason =
        r.vat_validation_disabled_reason.apply(customer.vat_validation_disabled_reason.take());
    domain::input::merge_metadata(&mut customer.metadata, r.metadata.unwrap_or_default())
}

fn set<T>(member: &mut T, sent: Option<T>) {
    if let Some(value) = sent {
        *member = value;
    }
}

fn apply_status(customer: &mut Customer, status: Option<CustomerStatus>) -> Result<()> {
    let Some(status) = status.filter(|status| *status != customer.status) else { return Ok(()) };
    let by_hand = |status| matches!(status, CustomerStatus::Active | CustomerStatus::Inactive);
    if !by_hand(status) {
        return Err(Error::business_rule("status may be set to ACTIVE or INACTIVE"));
    }
    if !by_hand(customer.status) {
        let from = customer.status.as_str();
        return Err(Error::invalid_transition("customer", customer.id, from, status.as_str(), &[]));
    }
    customer.status = status;
    Ok(())
}

/// `PREPAID` ⇔ mode PREPAID, `POSTPAID` ⇔ mode POSTPAID; `HYBRID` goes with either (customers.md, Rules).
fn apply_billing_model(customer: &mut Customer, model: Option<BillingModel>) -> Result<()> {
    let Some(model) = model else { return Ok(()) };
    let fits = match model {
        BillingModel::Hybrid => true,
        BillingModel::Prepaid => customer.mode == WalletMode::Prepaid,
        BillingModel::Postpaid => customer.mode == WalletMode::Postpaid,
    };
    if !fits {
        let detail = format!("the wallets are {}: billing_model may be HYBRID or {0}", customer.mode);
        return Err(Error::business_rule(detail));
    }
    customer.billing_model = model;
    Ok(())
}
