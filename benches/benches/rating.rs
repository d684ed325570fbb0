//! What rating costs in memory (PERFORMANCE section 3: one event with meter, allowance, five tiers and threshold below
//! 400 ns; a meter function below 300 ns, the total of five tiers below 200 ns).

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use domain::event::VarValue;
use domain::period::Period;
use domain::{
    BindingId, BindingRole, Currency, CustomerId, Instant, LateEventPolicy, MeterFunction, MeterId, PriceId,
    PricingModel, ProductId, Quantity, SubscriptionId, ThresholdBasis, ThresholdComparator, UsageEvent, UsageEventId,
    VersionId, WorkspaceId,
};
use rating::rate_table::{Entries, LookupEntry};
use rating::{
    BindingDefinition, Bindings, CompiledBinding, CompiledMeter, CompiledPrice, FilterTree, MeterDefinition,
    MeterState, PeriodFacts, PriceDefinition, PriceFormula, RateTable, RateTableDefinition, RateTables, RatingInput,
    Span, Target, Terms, Threshold, Tier, WindowRecord, WindowState, total, walk,
};
use rust_decimal::Decimal;
use serde_json::json;
use uuid::Uuid;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number)
}

/// The billing period that counts the event.
fn month() -> Period {
    let start = Instant::from_timestamp(1_777_593_600, 0).expect("in range");
    Period { start, end: start + chrono::TimeDelta::days(31) }
}

fn event() -> UsageEvent {
    let dimensions = [("region", "eu-west"), ("model", "large"), ("tier", "gold"), ("user", "user-1234567890")];
    let now = Instant::from_timestamp(1_777_593_600, 0).expect("in range");
    UsageEvent {
        id: UsageEventId(id(1)),
        workspace_id: WorkspaceId(id(2)),
        customer_id: CustomerId(id(3)),
        subscription_id: SubscriptionId(id(4)),
        product_id: ProductId(id(5)),
        metric_key: "tokens".into(),
        quantity: Quantity::from_int(1_234),
        timestamp: now,
        idempotency_key: "key-1".into(),
        price_key: None,
        price_key_remapped: false,
        external_cost: None,
        wallet_currency: None,
        hold_id: None,
        dimension_vars: dimensions.map(|(key, value)| (key.into(), VarValue::Text(value.into()))).into(),
        pricing_vars: BTreeMap::new(),
        accepted_at: now,
        catalog_revision: 1,
    }
}

fn filter() -> FilterTree {
    let leaf = |field: &str, operator: &str, value| json!({"field": field, "operator": operator, "value": value});
    let tree = json!({"root": {"op": "AND", "children": [
        leaf("dimension_vars.region", "STARTS_WITH", json!("eu")),
        leaf("dimension_vars.model", "IN", json!(["small", "medium", "large"])),
        leaf("dimension_vars.tier", "NE", json!("free")),
        leaf("quantity", "GT", json!("0")),
        leaf("dimension_vars.test", "NOT_EXISTS", json!(null)),
    ]}});
    FilterTree::from_json(&tree).expect("a good filter")
}

fn binding(function: MeterFunction, filter: Option<FilterTree>, limits: &[i64]) -> Arc<CompiledBinding> {
    let threshold = |limit: &i64| Threshold {
        name: format!("limit {limit}"),
        comparator: ThresholdComparator::Gte,
        value: Quantity::from_int(*limit),
        basis: ThresholdBasis::Absolute,
        actions: Vec::new(),
        rearm: false,
    };
    let meter = MeterDefinition {
        meter_id: MeterId(id(10)),
        version_id: VersionId(id(11)),
        effective_from: Instant::UNIX_EPOCH,
        key: "tokens".into(),
        metric_key: "tokens".into(),
        function,
        value_field: None,
        unique_by_field: Some("dimension_vars.user".into()),
        filter,
        negative_allowed: false,
        late_event_policy: LateEventPolicy::NextPeriod,
        thresholds: limits.iter().map(threshold).collect(),
        window: Span::BillingPeriod,
        dedup_key_path: None,
        unit_currency_field: None,
    };
    let binding = BindingDefinition {
        binding_id: BindingId(id(12)),
        version_id: VersionId(id(13)),
        effective_from: Instant::UNIX_EPOCH,
        product_id: ProductId(id(5)),
        meter: Arc::new(CompiledMeter::compile(meter).expect("a good meter")),
        role: BindingRole::Primary,
        filter: None,
        multiplier: Decimal::ONE,
        thresholds: Vec::new(),
        window: None,
        variable: None,
        formula_bindings: Bindings::new(),
    };
    Arc::new(CompiledBinding::compile(binding).expect("a good binding"))
}

fn price(model: PricingModel) -> Arc<CompiledPrice> {
    Arc::new(CompiledPrice::compile(price_definition(model)).expect("a good price"))
}

fn price_definition(model: PricingModel) -> PriceDefinition {
    let steps = [(Some(10_000), 10), (Some(100_000), 8), (Some(1_000_000), 6), (Some(10_000_000), 4), (None, 2)];
    let tier = |(index, (up_to, rate)): (usize, (Option<i64>, i64))| Tier {
        tier_order: u32::try_from(index).expect("small") + 1,
        up_to: up_to.map(Quantity::from_int),
        unit_amount: Decimal::new(rate, 6),
        flat_amount: Decimal::ZERO,
        rate_expression: None,
    };
    PriceDefinition {
        price_id: PriceId(id(20)),
        version_id: VersionId(id(21)),
        product_id: ProductId(id(5)),
        price_key: None,
        currency: Currency::EUR,
        model,
        tiers: steps.into_iter().enumerate().map(tier).collect(),
        list_price: None,
        formula: None,
    }
}

fn target<'a>(binding: &'a Arc<CompiledBinding>, price: &'a Arc<CompiledPrice>) -> Target<'a> {
    Target {
        binding,
        price: Some(price),
        segment_start: Instant::UNIX_EPOCH,
        allowance: None,
        window: month(),
        timezone: chrono_tz::Tz::UTC,
        tables: &(),
        period: PeriodFacts::default(),
    }
}

/// The state of one function, and the whole way of an event into a window.
fn meters(criterion: &mut Criterion) {
    let (event, price) = (event(), price(PricingModel::Staircase));
    for function in [
        MeterFunction::Count,
        MeterFunction::Sum,
        MeterFunction::Max,
        MeterFunction::Min,
        MeterFunction::Avg,
        MeterFunction::Last,
        MeterFunction::UniqueCount,
    ] {
        let binding = binding(function, None, &[]);
        let input = binding.meter.input(&event).expect("a value");
        let mut state = MeterState::new(function).expect("supported");
        criterion.bench_function(&format!("meter/state/{function}"), |bench| {
            bench.iter(|| state.apply(black_box(&input)));
        });
        let mut window = WindowState::new();
        criterion.bench_function(&format!("meter/window/{function}"), |bench| {
            bench.iter(|| window.apply(black_box(&event), target(&binding, &price)));
        });
    }
}

/// Reports of a window in one sitting: what is kept of each grows with their number.
const REPORTS: i64 = 1_000;

/// TIME_WEIGHTED keeps every report: each event has an instant and an id of its own, and a window has a thousand of them.
fn time_weighted(criterion: &mut Criterion) {
    let (binding, price) = (binding(MeterFunction::TimeWeighted, None, &[]), price(PricingModel::Staircase));
    let report = |number: i64| {
        let mut report = event();
        report.id = UsageEventId(id(1_000 + u128::from(number.unsigned_abs())));
        report.timestamp += chrono::TimeDelta::seconds(number);
        report
    };
    let in_order: Vec<UsageEvent> = (0..REPORTS).map(report).collect();
    // A fixed scatter: 389 and 1,000 have no common divisor.
    let scattered: Vec<UsageEvent> = (0..REPORTS).map(|number| report(number * 389 % REPORTS)).collect();
    for (name, reports) in [("in order", in_order), ("scattered", scattered)] {
        criterion.bench_function(&format!("meter/window/TIME_WEIGHTED, {name}"), |bench| {
            bench.iter_custom(|iterations| {
                let (mut left, mut spent) = (iterations, std::time::Duration::ZERO);
                while left > 0 {
                    let mut window = WindowState::new();
                    let reports = &reports[..usize::try_from(left).unwrap_or(usize::MAX).min(reports.len())];
                    let begun = std::time::Instant::now();
                    for report in reports {
                        drop(black_box(window.apply(black_box(report), target(&binding, &price))));
                    }
                    spent += begun.elapsed();
                    left -= reports.len() as u64;
                }
                spent
            });
        });
    }
}

/// One table, in effect since ever.
#[derive(Debug)]
struct OneTable(Arc<RateTable>);

impl RateTables for OneTable {
    fn table_at(&self, slug: &str, _: Instant) -> Option<&Arc<RateTable>> {
        (slug == self.0.slug()).then_some(&self.0)
    }
}

fn regions() -> OneTable {
    let entry = |number: i64| LookupEntry { key: format!("region-{number}|gold"), value: Quantity::from_int(number) };
    let of_event = LookupEntry { key: "eu-west|gold".into(), value: Quantity::from_int(2) };
    let definition = RateTableDefinition {
        slug: "regions".into(),
        version_id: VersionId(id(30)),
        when_missing: None,
        entries: Entries::Lookup((0..200).map(entry).chain([of_event]).collect()),
    };
    OneTable(Arc::new(RateTable::compile(definition).expect("a good table")))
}

/// Whole prices with expressions (target 1.5 µs): what an event adds to the work, and the amount of its window after it.
fn expression_prices(criterion: &mut Criterion) {
    let tables = regions();
    let mut with_formula = price_definition(PricingModel::Volume);
    with_formula.formula = Some(PriceFormula {
        version_id: VersionId(id(31)),
        expression: "min(billable_quantity * 0.00001 + if(billable_quantity > 1000, 5, 0), 50)".into(),
        variables: Vec::new(),
    });
    let mut with_table = price_definition(PricingModel::Volume);
    for tier in &mut with_table.tiers {
        tier.rate_expression = Some("lookup('regions', dim.region, dim.tier) * unit_amount".into());
    }
    let binding = binding(MeterFunction::Sum, None, &[]);
    let terms = [Terms::new(ProductId(id(5)), "tokens", Quantity::from_int(1_000))];
    let input = RatingInput { terms: &terms, until: None, period: PeriodFacts::default() };
    for (name, definition) in [("formula", with_formula), ("rate table", with_table)] {
        let price = Arc::new(CompiledPrice::compile(definition).expect("a good price"));
        // Quantities that stay within the range of money however long the bench runs.
        let event = UsageEvent { quantity: Quantity::parse("0.0001").expect("a quantity"), ..event() };
        let target = Target { tables: &tables, ..target(&binding, &price) };
        let mut window = WindowState::new();
        let first = UsageEvent { quantity: Quantity::from_int(5_432_109), ..event.clone() };
        window.apply(&first, target).expect("countable");
        assert!(!window.accrue(&input).expect("priced")[0].amount.is_zero());
        criterion.bench_function(&format!("price/{name}/amount of a window"), |bench| {
            bench.iter(|| black_box(&window).accrue(black_box(&input)).expect("priced"));
        });
        criterion.bench_function(&format!("price/{name}/rate one event"), |bench| {
            bench.iter(|| {
                window.apply(black_box(&event), target).expect("countable");
                window.accrue(&input).expect("priced")
            });
        });
    }
}

fn prices(criterion: &mut Criterion) {
    let quantity = Quantity::from_int(5_432_109);
    for model in [PricingModel::Volume, PricingModel::Staircase] {
        let price = price(model);
        criterion.bench_function(&format!("price/five tiers/total/{model}"), |bench| {
            bench.iter(|| total(black_box(&price), black_box(quantity)));
        });
        criterion.bench_function(&format!("price/five tiers/walk/{model}"), |bench| {
            bench.iter(|| walk(black_box(&price), black_box(quantity)));
        });
    }
}

fn filters(criterion: &mut Criterion) {
    let (event, filter) = (event(), filter());
    assert!(filter.matches(&event), "all five leaves are evaluated");
    criterion.bench_function("filter/five leaves", |bench| bench.iter(|| filter.matches(black_box(&event))));
}

/// The row of PERFORMANCE: meter, allowance, five tiers, threshold.
fn one_event(criterion: &mut Criterion) {
    let (event, price) = (event(), price(PricingModel::Staircase));
    let binding = binding(MeterFunction::Sum, None, &[1_000_000, i64::MAX / 2]);
    let terms = [Terms::new(ProductId(id(5)), "tokens", Quantity::from_int(100_000))];
    let input = RatingInput { terms: &terms, until: None, period: PeriodFacts::default() };
    let mut window = WindowState::new();
    criterion.bench_function("rate one event", |bench| {
        bench.iter(|| {
            drop(black_box(window.apply(black_box(&event), target(&binding, &price))));
            window.accrue(&input)
        });
    });
    criterion.bench_function("rate one window with breakdown", |bench| bench.iter(|| window.rate(black_box(&input))));
}

fn states(criterion: &mut Criterion) {
    let (event, price) = (event(), price(PricingModel::Staircase));
    let binding = binding(MeterFunction::Sum, None, &[1_000_000]);
    let mut window = WindowState::new();
    for currency in [None, Some(Currency::EUR), Some(Currency::USD)] {
        let event = UsageEvent { wallet_currency: currency, ..event.clone() };
        drop(window.apply(&event, target(&binding, &price)));
    }
    let bytes = window.encode();
    criterion.bench_function("state/encode three", |bench| bench.iter(|| window.encode()));
    criterion.bench_function("state/decode three", |bench| {
        bench.iter_batched(|| &bytes, |bytes| WindowRecord::decode(bytes), BatchSize::SmallInput);
    });
}

criterion_group!(benches, meters, time_weighted, prices, expression_prices, filters, one_event, states);
criterion_main!(benches);
