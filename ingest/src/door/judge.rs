//! Compares a well-formed event with the catalog (usage.md 3.1, "Rejected at the door"). The same checks serve foreign Kafka
//! records behind the door (rule A7).

use std::sync::Arc;

use catalog::compiled::{EventShape, ProductTerms, SubscriptionTerms, Unpriced, WorkspaceCatalog};
use chrono::TimeDelta;
use domain::error::FieldErrorCode as Code;
use domain::{
    BindingRole, Currency, Error, FieldError, Instant, ProductType, Result, Scope, UnmatchedPriceKeyPolicy, UsageEvent,
    UsageEventId,
};

use super::NewEvent;
use super::facts::Facts;

/// An event after the checks of the door.
#[derive(Debug)]
pub enum Judged {
    /// Goes to its home partition.
    Good {
        /// The event.
        event: Box<UsageEvent>,
        /// Home partition of its subscription.
        home: u32,
    },
    /// The product's policy drops it.
    Dropped {
        /// Id that it would have had.
        id: UsageEventId,
        /// For people.
        reason: String,
    },
    /// Refused by the product's policy: no price matches its key.
    Unmatched {
        /// Id that it would have had.
        id: UsageEventId,
        /// The refusal.
        error: Error,
    },
    /// Refused.
    Bad(Error),
}

/// What the checks found of an event.
#[derive(Debug)]
pub enum Verdict {
    /// It has a price, or needs none.
    Good {
        /// Home partition of its subscription.
        home: u32,
        /// Wallet to which it is pinned.
        wallet_currency: Option<Currency>,
        /// The price that it goes to.
        price_key: Option<String>,
        /// Whether that is the product's default, because its own key matches no price.
        price_key_remapped: bool,
    },
    /// The product's policy drops it.
    Dropped(String),
    /// Refused by the product's policy: no price matches its key.
    Unmatched(Error),
    /// Refused.
    Bad(Error),
}

impl Verdict {
    /// Whether a newer catalog could not find otherwise: what is not there may have been created a moment ago (rule B6).
    #[must_use]
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::Good { price_key_remapped: false, .. })
    }

    /// The last word on the event that it is about.
    #[must_use]
    pub fn on(self, scope: &Scope, event: NewEvent, catalog_revision: i64) -> Judged {
        let id = UsageEventId::of(scope.workspace_id, &event.idempotency_key);
        let (home, wallet_currency, price_key, price_key_remapped) = match self {
            Self::Good { home, wallet_currency, price_key, price_key_remapped } => {
                (home, wallet_currency, price_key, price_key_remapped)
            }
            Self::Dropped(reason) => return Judged::Dropped { id, reason },
            Self::Unmatched(error) => return Judged::Unmatched { id, error },
            Self::Bad(error) => return Judged::Bad(error),
        };
        let event = Box::new(UsageEvent {
            id,
            workspace_id: scope.workspace_id,
            customer_id: event.customer_id,
            subscription_id: event.subscription_id,
            product_id: event.product_id,
            metric_key: event.metric_key,
            quantity: event.quantity,
            timestamp: event.timestamp,
            idempotency_key: event.idempotency_key,
            price_key,
            price_key_remapped,
            external_cost: event.external_cost,
            wallet_currency,
            hold_id: event.hold_id,
            dimension_vars: event.dimension_vars,
            pricing_vars: event.pricing_vars,
            accepted_at: scope.now(),
            catalog_revision,
        });
        Judged::Good { event, home }
    }
}

/// How far ahead of the clock a timestamp may be (usage.md 5).
const FUTURE_MAX: TimeDelta = TimeDelta::minutes(5);

/// Checks one event; `terms` are those of its subscription, if it exists in the scope's workspace, and `facts` were read for
/// it.
#[must_use]
pub fn judge(
    scope: &Scope,
    catalog: &WorkspaceCatalog,
    terms: Option<&Arc<SubscriptionTerms>>,
    facts: &Facts,
    event: &NewEvent,
) -> Verdict {
    check(scope, catalog, terms, facts, event).unwrap_or_else(Verdict::Bad)
}

fn check(
    scope: &Scope,
    catalog: &WorkspaceCatalog,
    terms: Option<&Arc<SubscriptionTerms>>,
    facts: &Facts,
    event: &NewEvent,
) -> Result<Verdict> {
    let Some(terms) = terms else {
        require_customer(facts, event)?;
        return Err(Error::not_found("subscription", event.subscription_id));
    };
    if terms.customer_id != event.customer_id {
        require_customer(facts, event)?;
        let detail = format!("subscription {} belongs to another customer", event.subscription_id);
        return Err(Error::business_rule(detail));
    }
    let product = usage_product(catalog, event)?;
    check_time(scope, facts, terms, event.timestamp)?;
    check_meters(catalog, product, event)?;
    let wallet_currency = wallet_pin(facts, event)?;
    check_hold(facts, event)?;
    let home = terms.home_partition;
    Ok(match route_price_key(catalog, product, terms, event)? {
        Route::Key { key: price_key, remapped: price_key_remapped } => {
            Verdict::Good { home, wallet_currency, price_key, price_key_remapped }
        }
        Route::Drop(reason) => Verdict::Dropped(reason),
        Route::Refuse(error) => Verdict::Unmatched(error),
    })
}

/// A customer that is not there is named before the subscription.
fn require_customer(facts: &Facts, event: &NewEvent) -> Result<()> {
    if facts.has_customer(event.customer_id) { Ok(()) } else { Err(Error::not_found("customer", event.customer_id)) }
}

fn usage_product<'a>(catalog: &'a WorkspaceCatalog, event: &NewEvent) -> Result<&'a ProductTerms> {
    let product = catalog
        .product(event.product_id)
        .filter(|product| product.is_live)
        .ok_or_else(|| Error::not_found("product", event.product_id))?;
    if product.kind != ProductType::Usage {
        let detail = format!("product {} is of type {} and takes no usage events", product.id, product.kind);
        return Err(Error::business_rule(detail));
    }
    Ok(product)
}

fn check_time(scope: &Scope, facts: &Facts, terms: &SubscriptionTerms, timestamp: Instant) -> Result<()> {
    // Customers on a test clock live at its time, whether it is ahead of the machine's or behind.
    let now = match terms.test_clock_id {
        Some(clock) => facts.time_of(clock)?,
        None => scope.now(),
    };
    if timestamp > now.checked_add_signed(FUTURE_MAX).unwrap_or(now) {
        return Err(Error::field("timestamp", Code::OutOfRange, "must be at most 5 minutes in the future"));
    }
    if timestamp < terms.started_at {
        return Err(Error::business_rule("the subscription started after the timestamp"));
    }
    if terms.ended_at.is_some_and(|ended| ended <= timestamp) {
        return Err(Error::business_rule("the subscription ended before the timestamp"));
    }
    Ok(())
}

/// What the meters of the event's product and metric ask of it.
fn check_meters(catalog: &WorkspaceCatalog, product: &ProductTerms, event: &NewEvent) -> Result<()> {
    let mut bindings = catalog.bindings_of(product, &event.metric_key, event.timestamp).peekable();
    if bindings.peek().is_none() {
        let detail = format!("no meter is bound to product {} for metric {:?}", product.id, event.metric_key);
        return Err(Error::business_rule(detail));
    }
    for binding in bindings {
        if event.quantity.is_negative() && !binding.meter.negative_allowed {
            return Err(Error::business_rule("the quantity must not be negative on this meter"));
        }
        let NewEvent { quantity, dimension_vars, pricing_vars, .. } = event;
        let shape = EventShape { quantity: *quantity, dimension_vars, pricing_vars };
        let violations = catalog.schema_violations(binding, shape);
        if !violations.is_empty() {
            return Err(Error::rule_of_fields("the event breaks the event_schema of its meter", violations));
        }
    }
    Ok(())
}

/// `wallet_id` is turned into its currency; both must agree (usage.md 4).
fn wallet_pin(facts: &Facts, event: &NewEvent) -> Result<Option<Currency>> {
    let Some(wallet_id) = event.wallet_id else { return Ok(event.wallet_currency) };
    let (owner, currency) = facts.wallet(wallet_id).ok_or_else(|| Error::not_found("wallet", wallet_id))?;
    if owner != event.customer_id {
        return Err(Error::business_rule(format!("wallet {wallet_id} belongs to another customer")));
    }
    match event.wallet_currency {
        Some(other) if other != currency => {
            Err(Error::rule("CURRENCY_MISMATCH", format!("wallet {wallet_id} is in {currency}, not in {other}")))
        }
        _ => Ok(Some(currency)),
    }
}

/// A hold that is named must be an active hold of the subscription and metric (R7).
fn check_hold(facts: &Facts, event: &NewEvent) -> Result<()> {
    let Some(hold_id) = event.hold_id else { return Ok(()) };
    if facts.is_held_for(hold_id, event.subscription_id, &event.metric_key) {
        return Ok(());
    }
    Err(Error::business_rule(format!("hold {hold_id} is not active for this subscription and metric")))
}

/// R9: a price whose expressions read the external cost needs it.
fn require_cost(event: &NewEvent, price: &rating::CompiledPrice) -> Result<()> {
    if event.external_cost.is_some() || !price.reads_cost() {
        return Ok(());
    }
    let missing = |field: &str| FieldError {
        field: field.to_owned(),
        code: Code::Required,
        message: "is required: the price reads the external cost".to_owned(),
    };
    let fields = vec![missing("external_cost_amount"), missing("external_cost_currency")];
    Err(Error::rule_of_fields("the price reads the external cost", fields))
}

enum Route {
    Key { key: Option<String>, remapped: bool },
    Drop(String),
    Refuse(Error),
}

/// Rules R5 and R6: which price the event goes to.
fn route_price_key(
    catalog: &WorkspaceCatalog,
    product: &ProductTerms,
    terms: &SubscriptionTerms,
    event: &NewEvent,
) -> Result<Route> {
    match (product.is_keyed(), &event.price_key) {
        (true, None) => return Err(Error::field("price_key", Code::Required, "is required: the product is keyed")),
        (false, Some(_)) => {
            return Err(Error::field("price_key", Code::NotAllowed, "must be absent: the product is not keyed"));
        }
        _ => {}
    }
    let billed =
        catalog.bindings_of(product, &event.metric_key, event.timestamp).any(|b| b.role == BindingRole::Primary);
    if !billed {
        return Ok(Route::Key { key: event.price_key.clone(), remapped: false });
    }
    let price_of =
        |key: Option<&str>| catalog.resolve_for(terms, product.id, key, &event.dimension_vars, event.timestamp);
    match price_of(event.price_key.as_deref()) {
        Ok(resolved) => {
            require_cost(event, resolved.price).map(|()| Route::Key { key: event.price_key.clone(), remapped: false })
        }
        Err(Unpriced::NoPrice) if product.is_keyed() => match product.unmatched_price_key_policy {
            UnmatchedPriceKeyPolicy::Reject => {
                Ok(Route::Refuse(Error::field("price_key", Code::InvalidEnum, "matches no price of the product")))
            }
            UnmatchedPriceKeyPolicy::Drop => Ok(Route::Drop("price_key matches no price of the product".into())),
            UnmatchedPriceKeyPolicy::UseDefault => {
                let default = price_of(product.default_price_key.as_deref());
                require_cost(event, default.map_err(|error| error.into_error(product.id))?.price)?;
                Ok(Route::Key { key: product.default_price_key.clone(), remapped: true })
            }
        },
        Err(error) => Err(error.into_error(product.id)),
    }
}
