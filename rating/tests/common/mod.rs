//! Builders for the tests of this crate: one subscription, a few products, small ids.
#![allow(dead_code, reason = "each test file uses some of the builders")]

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::TimeDelta;
use domain::event::VarValue;
use domain::period::Period;
use domain::{
    BindingId, BindingRole, Currency, CustomerId, Instant, LateEventPolicy, MeterFunction, MeterId, PriceId,
    PricingModel, ProductId, Quantity, SubscriptionId, ThresholdBasis, ThresholdComparator, UsageEvent, UsageEventId,
    VersionId, WorkspaceId,
};
use rating::{
    BindingDefinition, Bindings, CompiledBinding, CompiledMeter, CompiledPrice, MeterDefinition, PeriodFacts,
    PriceDefinition, RateTable, Span, Target, Threshold, ThresholdAction, Tier, Versions,
};
use rust_decimal::Decimal;
use uuid::Uuid;

pub fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub fn quantity(text: &str) -> Quantity {
    Quantity::parse(text).expect("a quantity")
}

pub fn decimal(text: &str) -> Decimal {
    text.parse().expect("a decimal")
}

/// Minutes after the start of the window.
pub fn at(minutes: i64) -> Instant {
    Instant::from_timestamp(1_777_593_600, 0).expect("May 2026") + TimeDelta::minutes(minutes)
}

/// The billing period that counts the events of a test.
pub fn month() -> Period {
    Period { start: at(0), end: at(31 * 24 * 60) }
}

pub fn event(number: u128, amount: &str) -> UsageEvent {
    UsageEvent {
        id: UsageEventId(id(number)),
        workspace_id: WorkspaceId(id(1)),
        customer_id: CustomerId(id(2)),
        subscription_id: SubscriptionId(id(3)),
        product_id: ProductId(id(10)),
        metric_key: "calls".into(),
        quantity: quantity(amount),
        timestamp: at(i64::try_from(number).expect("small")),
        idempotency_key: format!("key-{number}"),
        price_key: None,
        price_key_remapped: false,
        external_cost: None,
        wallet_currency: None,
        hold_id: None,
        dimension_vars: BTreeMap::new(),
        pricing_vars: BTreeMap::new(),
        accepted_at: at(100_000),
        catalog_revision: 1,
    }
}

pub fn with_dimension(mut event: UsageEvent, key: &str, value: &str) -> UsageEvent {
    event.dimension_vars.insert(key.into(), VarValue::Text(value.into()));
    event
}

pub fn meter_definition(function: MeterFunction) -> MeterDefinition {
    MeterDefinition {
        meter_id: MeterId(id(20)),
        version_id: VersionId(id(21)),
        effective_from: at(0),
        key: "calls".into(),
        metric_key: "calls".into(),
        function,
        value_field: None,
        unique_by_field: (function == MeterFunction::UniqueCount).then(|| "dimension_vars.user".into()),
        filter: None,
        negative_allowed: false,
        late_event_policy: LateEventPolicy::NextPeriod,
        thresholds: Vec::new(),
        window: Span::BillingPeriod,
        dedup_key_path: None,
        unit_currency_field: None,
    }
}

pub fn binding_definition(meter: MeterDefinition) -> BindingDefinition {
    BindingDefinition {
        binding_id: BindingId(id(30)),
        version_id: VersionId(id(31)),
        effective_from: at(0),
        product_id: ProductId(id(10)),
        meter: Arc::new(CompiledMeter::compile(meter).expect("a good meter")),
        role: BindingRole::Primary,
        filter: None,
        multiplier: Decimal::ONE,
        thresholds: Vec::new(),
        window: None,
        variable: None,
        formula_bindings: Bindings::new(),
    }
}

pub fn compile(definition: BindingDefinition) -> Arc<CompiledBinding> {
    Arc::new(CompiledBinding::compile(definition).expect("a good binding"))
}

pub fn binding(function: MeterFunction) -> Arc<CompiledBinding> {
    compile(binding_definition(meter_definition(function)))
}

/// Tiers of (upper bound or "" for open, unit amount, flat amount).
pub fn tiers(steps: &[(&str, &str, &str)]) -> Vec<Tier> {
    let tier = |(index, (up_to, unit, flat)): (usize, &(&str, &str, &str))| Tier {
        tier_order: u32::try_from(index).expect("small") + 1,
        up_to: (!up_to.is_empty()).then(|| quantity(up_to)),
        unit_amount: decimal(unit),
        flat_amount: decimal(flat),
        rate_expression: None,
    };
    steps.iter().enumerate().map(tier).collect()
}

/// The tiers of pricing-models.md.
pub fn reference_tiers() -> Vec<Tier> {
    tiers(&[("1000", "0.10", "0"), ("10000", "0.08", "0"), ("", "0.05", "0")])
}

pub fn price_definition(model: PricingModel, tiers: Vec<Tier>) -> PriceDefinition {
    PriceDefinition {
        price_id: PriceId(id(40)),
        version_id: VersionId(id(41)),
        product_id: ProductId(id(10)),
        price_key: None,
        currency: Currency::EUR,
        model,
        tiers,
        list_price: None,
        formula: None,
    }
}

pub fn price(model: PricingModel, tiers: Vec<Tier>) -> Arc<CompiledPrice> {
    Arc::new(CompiledPrice::compile(price_definition(model, tiers)).expect("a good price"))
}

pub fn threshold(name: &str, value: &str) -> Threshold {
    Threshold {
        name: name.into(),
        comparator: ThresholdComparator::Gte,
        value: quantity(value),
        basis: ThresholdBasis::Absolute,
        actions: vec![ThresholdAction::default_webhook()],
        rearm: false,
    }
}

pub fn target<'a>(binding: &'a Arc<CompiledBinding>, price: &'a Arc<CompiledPrice>) -> Target<'a> {
    Target {
        binding,
        price: Some(price),
        segment_start: at(0),
        allowance: None,
        window: month(),
        timezone: chrono_tz::Tz::UTC,
        tables: &(),
        period: PeriodFacts::default(),
    }
}

/// A catalog of what a test made.
#[derive(Default)]
pub struct Catalog {
    pub bindings: Vec<Arc<CompiledBinding>>,
    pub prices: Vec<Arc<CompiledPrice>>,
    pub tables: Vec<Arc<RateTable>>,
}

impl Versions for Catalog {
    fn binding(&self, binding_version: VersionId, meter_version: VersionId) -> Option<Arc<CompiledBinding>> {
        let same = |b: &&Arc<CompiledBinding>| b.version_id == binding_version && b.meter.version_id == meter_version;
        self.bindings.iter().find(same).cloned()
    }

    fn price(&self, price_version: VersionId) -> Option<Arc<CompiledPrice>> {
        self.prices.iter().find(|price| price.version_id == price_version).cloned()
    }

    fn rate_table(&self, version: VersionId) -> Option<Arc<RateTable>> {
        self.tables.iter().find(|table| table.version_id() == version).cloned()
    }
}
