//! Which gateway takes a payment: one ordered decision (payment-gateways.md 4).

use domain::{Currency, PaymentGatewayId, ProviderID};

use super::PaymentGatewayConfig;
use crate::words::{GatewayMode, PaymentMethodType};

/// What decides about a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The gateway.
    pub id: PaymentGatewayId,
    /// Its processor.
    pub provider: ProviderID,
    /// Its world.
    pub mode: GatewayMode,
    /// Whether payments may go through it.
    pub is_enabled: bool,
    /// Whether it is asked where no preference matches.
    pub is_default: bool,
    /// What it charges in; empty: anything.
    pub currencies: Vec<Currency>,
    /// What it can charge; empty: anything.
    pub methods: Vec<PaymentMethodType>,
}

impl From<&PaymentGatewayConfig> for Candidate {
    fn from(gateway: &PaymentGatewayConfig) -> Self {
        Self {
            id: gateway.id,
            provider: gateway.provider,
            mode: gateway.mode,
            is_enabled: gateway.is_enabled,
            is_default: gateway.is_default,
            currencies: gateway.supported_currencies.clone(),
            methods: gateway.supported_methods.clone(),
        }
    }
}

/// What a gateway is wanted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The world of the workspace.
    pub mode: GatewayMode,
    /// Currency of the payment.
    pub currency: Currency,
    /// Kind of the instrument.
    pub method_type: PaymentMethodType,
    /// Who holds its token.
    pub method_provider: ProviderID,
    /// Whom the customer prefers.
    pub preferred: Option<ProviderID>,
    /// Whom the customer does not want.
    pub disabled: &'a [ProviderID],
}

/// The gateway that takes the payment: among those that can, that of the method's provider, else that of the preferred
/// provider, else the default one. Of several gateways of one provider the default comes first, then the given order.
#[must_use]
pub fn choose<'a>(candidates: &'a [Candidate], wanted: &Wanted<'_>) -> Option<&'a Candidate> {
    let can = |candidate: &&Candidate| {
        candidate.is_enabled
            && candidate.mode == wanted.mode
            && !wanted.disabled.contains(&candidate.provider)
            && (candidate.currencies.is_empty() || candidate.currencies.contains(&wanted.currency))
            && (candidate.methods.is_empty() || candidate.methods.contains(&wanted.method_type))
    };
    let of_provider = |provider: ProviderID| {
        let mut able = candidates.iter().filter(can).filter(|candidate| candidate.provider == provider);
        able.clone().find(|candidate| candidate.is_default).or_else(|| able.next())
    };
    of_provider(wanted.method_provider)
        .or_else(|| wanted.preferred.and_then(of_provider))
        .or_else(|| candidates.iter().filter(can).find(|candidate| candidate.is_default))
}

#[cfg(test)]
mod tests {
    //! The order of payment-gateways.md 4, step by step.

    use super::*;
    use ProviderID::{Adyen, Gocardless, Mollie, Stripe};
    use uuid::Uuid;

    fn gateway(id: u128, provider: ProviderID, change: impl FnOnce(&mut Candidate)) -> Candidate {
        let mut candidate = Candidate {
            id: PaymentGatewayId(Uuid::from_u128(id)),
            provider,
            mode: GatewayMode::Live,
            is_enabled: true,
            is_default: false,
            currencies: Vec::new(),
            methods: Vec::new(),
        };
        change(&mut candidate);
        candidate
    }

    fn chosen(candidates: &[Candidate], preferred: Option<ProviderID>, disabled: &[ProviderID]) -> Option<u128> {
        let wanted = Wanted {
            mode: GatewayMode::Live,
            currency: Currency::EUR,
            method_type: PaymentMethodType::CreditCard,
            method_provider: Stripe,
            preferred,
            disabled,
        };
        choose(candidates, &wanted).map(|candidate| candidate.id.0.as_u128())
    }

    #[test]
    fn the_order_of_the_reference() {
        let stripe = || gateway(1, Stripe, |_| ());
        let preferred = || gateway(2, Mollie, |_| ());
        let default = || gateway(3, Adyen, |g| g.is_default = true);
        let all = || vec![default(), preferred(), stripe()];
        let without_stripe = |change: fn(&mut Candidate)| vec![default(), preferred(), gateway(1, Stripe, change)];
        type Case<'a> = (&'a str, Vec<Candidate>, Option<ProviderID>, &'a [ProviderID], Option<u128>);
        let cases: Vec<Case<'_>> = vec![
            ("1. the method's provider", all(), Some(Mollie), &[], Some(1)),
            ("left out when disabled by the customer", all(), Some(Mollie), &[Stripe], Some(2)),
            ("2. the preferred provider", vec![default(), preferred()], Some(Mollie), &[], Some(2)),
            ("3. the default", vec![default(), preferred()], None, &[], Some(3)),
            ("3. when the preferred one is not there", vec![default(), preferred()], Some(Gocardless), &[], Some(3)),
            ("not when it is left out, too", vec![default(), preferred()], None, &[Adyen], None),
            ("no default, no preference", vec![preferred()], None, &[], None),
            ("a row that is switched off", without_stripe(|g| g.is_enabled = false), Some(Mollie), &[], Some(2)),
            ("of the other mode", without_stripe(|g| g.mode = GatewayMode::Test), None, &[], Some(3)),
            ("another currency", without_stripe(|g| g.currencies = vec![Currency::USD]), None, &[], Some(3)),
            ("among others", without_stripe(|g| g.currencies = vec![Currency::USD, Currency::EUR]), None, &[], Some(1)),
            ("another method", without_stripe(|g| g.methods = vec![PaymentMethodType::Paypal]), None, &[], Some(3)),
            ("the method", without_stripe(|g| g.methods = vec![PaymentMethodType::CreditCard]), None, &[], Some(1)),
            ("of two, the default", vec![stripe(), gateway(4, Stripe, |g| g.is_default = true)], None, &[], Some(4)),
            ("of two, the first", vec![stripe(), gateway(4, Stripe, |_| ())], None, &[], Some(1)),
            ("nobody", vec![], Some(Stripe), &[], None),
        ];
        for (name, candidates, preferred, disabled, expected) in cases {
            assert_eq!(chosen(&candidates, preferred, disabled), expected, "{name}");
        }
    }
}
