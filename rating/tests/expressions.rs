//! Prices with expressions: what they read of an event belongs to the rating key, what the product binds and the engine
//! supplies is looked up when the total is rated (price-formulas.md, rate-tables.md).

mod common;

use std::sync::Arc;

use common::*;
use domain::event::VarValue;
use domain::{BindingRole, Currency, Instant, MeterFunction, PricingModel, ProductId, Quantity, UsageEvent, VersionId};
use rating::formula::{FormulaVariable, Number};
use rating::rate_table::{BracketEntry, Entries, LookupEntry};
use rating::{
    Bound, CompiledBinding, CompiledPrice, Outcome, PriceFormula, RateTable, RateTableDefinition, RateTables,
    RatingError, RatingInput, Target, Terms, Tier, WindowRecord, WindowState,
};

fn with_rates(model: PricingModel, mut tiers: Vec<Tier>, expressions: &[&str]) -> Arc<CompiledPrice> {
    for (tier, expression) in tiers.iter_mut().zip(expressions) {
        tier.rate_expression = (!expression.is_empty()).then(|| (*expression).to_owned());
    }
    price(model, tiers)
}

fn formula_price(expression: &str, variables: &[&str]) -> Arc<CompiledPrice> {
    let mut definition = price_definition(PricingModel::Volume, tiers(&[("", "0", "0")]));
    definition.list_price = Some(decimal("100"));
    let variable = |name: &&str| FormulaVariable {
        name: (*name).to_owned(),
        var_type: domain::FormulaVarType::Number,
        default: None,
        required: true,
        description: None,
    };
    definition.formula = Some(PriceFormula {
        version_id: VersionId(id(70)),
        expression: expression.to_owned(),
        variables: variables.iter().map(variable).collect(),
    });
    Arc::new(CompiledPrice::compile(definition).expect("a good price"))
}

fn sum() -> Arc<CompiledBinding> {
    binding(MeterFunction::Sum)
}

/// (variables, amount) of each atom.
fn atoms(window: &WindowState, input: &RatingInput<'_>) -> Vec<(String, String)> {
    let rated = window.rate(input).expect("priced");
    assert_eq!(rated.totals, window.accrue(input).expect("priced"), "one figure");
    let shown = |atom: &rating::Atom| {
        let values =
            atom.variables.as_deref().map(|variables| variables.values().iter().map(|(n, v)| format!("{n}={v}")));
        (values.into_iter().flatten().collect::<Vec<_>>().join(","), atom.amount.to_string())
    };
    rated.lines.iter().flat_map(|line| &line.atoms).map(shown).collect()
}

fn owned(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

fn costing(number: u128, amount: &str, cost: &str) -> UsageEvent {
    UsageEvent { external_cost: Some((decimal(cost), Currency::EUR)), ..event(number, amount) }
}

/// price-formulas.md, vectors: `cost.amount * 1.2` with external cost 10.00 is 12.00; events of one cost are one key.
#[test]
fn costs_are_rated_per_value() {
    let (binding, price) = (sum(), with_rates(PricingModel::Volume, tiers(&[("", "0", "0")]), &["cost.amount * 1.2"]));
    assert!(price.reads_cost());
    let mut window = WindowState::new();
    for (number, amount, cost) in [(1, "1", "10.00"), (2, "2", "0.333"), (3, "1", "10.0"), (4, "3", "0.333")] {
        window.apply(&costing(number, amount, cost), target(&binding, &price)).expect("countable");
    }
    let expected = owned(&[
        ("cost.amount=0.333", "2.00 EUR"), // 5 × 0.3996
        ("cost.amount=10", "24.00 EUR"),
    ]);
    assert_eq!(atoms(&window, &RatingInput::default()), expected);
    assert_eq!(window.record().entries, [], "cost keys are rows");
    let refused = window.apply(&event(5, "1"), target(&binding, &price));
    let Err(RatingError::Formula(failure)) = refused else { panic!("{refused:?}") };
    assert_eq!(failure.code(), "FORMULA_UNBOUND_VARIABLE");
}

/// Tiers with and without an expression in one walk; a rate that depends on the quantity is that of the whole key.
#[test]
fn an_expression_takes_the_place_of_the_rate_of_its_tier() {
    let binding = sum();
    for (model, expressions, expected) in [
        (PricingModel::Staircase, ["", "if(quantity > 4000, 0.07, unit_amount)", ""], "380.00 EUR"), // 100 + 4,000 × 0.07
        (PricingModel::Volume, ["", "unit_amount / 2", ""], "200.00 EUR"),
        (PricingModel::Volume, ["", "tier_order * 0.01", ""], "100.00 EUR"),
        (PricingModel::Staircase, ["tier_quantity / 10000", "", ""], "420.00 EUR"), // 1,000 × 0.1 and 4,000 × 0.08
    ] {
        let price = with_rates(model, reference_tiers(), &expressions);
        let mut window = WindowState::new();
        window.apply(&event(1, "2000"), target(&binding, &price)).expect("countable");
        window.apply(&event(2, "3000"), target(&binding, &price)).expect("countable");
        assert_eq!(atoms(&window, &RatingInput::default()), owned(&[("", expected)]), "{expressions:?}");
    }
}

/// pricing-models.md: under PACKAGE an expression replaces the price of a package, and its size stays.
#[test]
fn an_expression_gives_the_price_of_a_package() {
    let (binding, price) =
        (sum(), with_rates(PricingModel::Package, tiers(&[("", "1000", "5")]), &["flat_amount + 1"]));
    let mut window = WindowState::new();
    window.apply(&event(1, "2500"), target(&binding, &price)).expect("countable");
    let rated = window.rate(&RatingInput::default()).expect("priced");
    let tier = &rated.lines[0].atoms[0].walk.tiers[0];
    assert_eq!(
        (tier.unit_amount, tier.flat_amount, tier.amount.to_string()),
        (decimal("1000"), decimal("6"), "18.00 EUR".into())
    );
}

/// A formula gives the amount of what is left after the allowance; it may read what the binding and the engine bind.
#[test]
fn a_formula_gives_the_amount() {
    let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
    let constant = Number::parse("1.5").expect("a number");
    definition.formula_bindings.insert("markup".into(), Bound::Constant(constant.into()));
    let binding = compile(definition);
    let terms = [Terms::new(ProductId(id(10)), "calls", quantity("100"))];
    let input = RatingInput { terms: &terms, ..RatingInput::default() };
    for (expression, variables, discount, expected) in [
        ("min(billable_quantity * 0.01, 50)", vec![], None, "9.00 EUR"),
        ("quantity - included_quantity - billable_quantity", vec![], None, "0.00 EUR"),
        ("base_price * (1 - volume_discount)", vec!["volume_discount"], Some("0.15"), "85.00 EUR"),
        ("billable_quantity * markup", vec!["markup"], None, "1350.00 EUR"),
        ("billable_quantity / days_in_period", vec![], None, "30.00 EUR"),
    ] {
        let price = formula_price(expression, &variables);
        let mut window = WindowState::new();
        let mut event = event(1, "1000");
        if let Some(discount) = discount {
            event.pricing_vars.insert("volume_discount".into(), VarValue::Number(quantity(discount)));
        }
        window.apply(&event, target(&binding, &price)).expect("countable");
        assert_eq!(atoms(&window, &input)[0].1, expected, "{expression}");
    }
    let price = formula_price("1 - quantity", &[]);
    let refused = WindowState::new().apply(&event(1, "1000"), target(&binding, &price));
    assert_eq!(refused.expect_err("negative").code(), "FORMULA_NEGATIVE_RESULT");
}

/// A FORMULA_INPUT binding gives its quantity to the price of the PRIMARY one; without an event it is 0.
#[test]
fn other_meters_are_variables() {
    let mut definition = binding_definition(meter_definition(MeterFunction::Sum));
    definition.formula_bindings.insert("seats".into(), Bound::Input);
    definition.formula_bindings.insert("calls".into(), Bound::Meter("calls".into()));
    let primary = compile(definition);
    let mut meter = meter_definition(MeterFunction::Max);
    (meter.key, meter.metric_key) = ("seats".into(), "seats".into());
    let mut definition = binding_definition(meter);
    definition.binding_id = domain::BindingId(id(33));
    definition.version_id = VersionId(id(34));
    (definition.role, definition.variable) = (BindingRole::FormulaInput, Some("seats".into()));
    let input = compile(definition);
    let price = formula_price("calls * 0.01 + seats * 2", &["seats", "calls"]);
    let mut window = WindowState::new();
    window.apply(&event(1, "500"), target(&primary, &price)).expect("countable");
    assert_eq!(atoms(&window, &RatingInput::default())[0].1, "5.00 EUR");
    for (number, seats) in [(2, "3"), (3, "7"), (4, "5")] {
        let event = UsageEvent { metric_key: "seats".into(), ..event(number, seats) };
        window.apply(&event, Target { price: None, ..target(&input, &price) }).expect("countable");
    }
    assert_eq!(atoms(&window, &RatingInput::default())[0].1, "19.00 EUR");
}

#[derive(Debug)]
struct Tables(Vec<(Instant, Arc<RateTable>)>);

impl RateTables for Tables {
    fn table_at(&self, slug: &str, at: Instant) -> Option<&Arc<RateTable>> {
        self.0.iter().rev().find(|(from, table)| table.slug() == slug && *from <= at).map(|(_, table)| table)
    }
}

fn table(version: u128, entries: Entries) -> Arc<RateTable> {
    let slug = if matches!(entries, Entries::Lookup(_)) { "roaming" } else { "volume" };
    let definition =
        RateTableDefinition { slug: slug.into(), version_id: VersionId(id(version)), when_missing: None, entries };
    Arc::new(RateTable::compile(definition).expect("a good table"))
}

fn lookup(version: u128, entries: &[(&str, &str)]) -> Arc<RateTable> {
    let entry = |(key, value): &(&str, &str)| LookupEntry { key: (*key).into(), value: quantity(value) };
    table(version, Entries::Lookup(entries.iter().map(entry).collect()))
}

/// usage.md 5, Rate tables in usage: the version live at the timestamp is read, and each rate is an atom of its own.
#[test]
fn rates_come_from_the_table_version_of_the_event() {
    let old = lookup(81, &[("de|voice", "0.10"), ("fr|voice", "0.20")]);
    let new = lookup(82, &[("de|voice", "0.15"), ("fr|voice", "0.20")]);
    let tables = Tables(vec![(at(0), old.clone()), (at(100), new.clone())]);
    let binding = sum();
    let rate = "lookup('roaming', dim.country, dim.service)";
    let price = with_rates(PricingModel::Volume, tiers(&[("", "0", "0")]), &[rate]);
    assert_eq!(price.tables(), ["roaming"]);
    let target = Target { tables: &tables, ..target(&binding, &price) };
    let of = |number: u128, country: &str, minute: i64| {
        let event = with_dimension(with_dimension(event(number, "10"), "country", country), "service", "voice");
        UsageEvent { timestamp: at(minute), ..event }
    };
    let mut window = WindowState::new();
    for (number, country, minute) in [(1, "de", 150), (2, "de", 50), (3, "fr", 60), (4, "de", 160), (5, "de", 70)] {
        let counted = window.apply(&of(number, country, minute), target).expect("countable");
        assert!(matches!(counted, Outcome::Counted(_)));
    }
    let refused = window.apply(&of(6, "it", 50), target).expect_err("no entry");
    assert_eq!(refused.code(), "RATE_TABLE_KEY_MISSING");
    let mut amounts: Vec<_> = atoms(&window, &RatingInput::default()).into_iter().map(|(_, amount)| amount).collect();
    amounts.sort();
    assert_eq!(amounts, ["2.00 EUR", "2.00 EUR", "3.00 EUR"], "20 × 0.10, 10 × 0.20, 20 × 0.15");

    // Read back, the versions are those of then.
    let catalog = Catalog { bindings: vec![binding.clone()], prices: vec![price.clone()], tables: vec![new, old] };
    let record = WindowRecord::decode(&window.encode()).expect("readable");
    let read = record.attach(&catalog, window.take_changed_rows()).expect("attached");
    assert_eq!(atoms(&read, &RatingInput::default()), atoms(&window, &RatingInput::default()));
}

/// rate-tables.md, vectors, through a price: the bracket of the quantity that the key has.
#[test]
fn a_bracket_is_read_with_the_running_quantity() {
    let range = |lower: Option<&str>, upper: Option<&str>, value: &str| BracketEntry {
        lower_bound: lower.map(quantity),
        upper_bound: upper.map(quantity),
        value: quantity(value),
    };
    let brackets = vec![
        range(None, Some("100"), "0.10"),
        range(Some("100"), Some("1000"), "0.08"),
        range(Some("1000"), None, "0.05"),
    ];
    let tables = Tables(vec![(at(0), table(83, Entries::Bracket(brackets)))]);
    let (binding, price) =
        (sum(), with_rates(PricingModel::Volume, tiers(&[("", "0", "0")]), &["bracket('volume', quantity)"]));
    let target = Target { tables: &tables, ..target(&binding, &price) };
    let mut window = WindowState::new();
    let mut seen = Vec::new();
    for (number, amount) in [(1, "100"), (2, "0.01"), (3, "899.99"), (4, "1")] {
        window.apply(&event(number, amount), target).expect("countable");
        seen.push(atoms(&window, &RatingInput::default())[0].1.clone());
    }
    assert_eq!(seen, ["10.00 EUR", "8.00 EUR", "80.00 EUR", "50.05 EUR"]);
    assert_eq!(window.entries()[0].quantity(None).expect("in range"), Quantity::from_int(1_001).into());
}

#[test]
fn expressions_that_do_not_compile_name_their_tier() {
    let mut definition = price_definition(PricingModel::Volume, reference_tiers());
    definition.tiers[1].rate_expression = Some("0.1 +".into());
    let Err(RatingError::Definition(fields)) = CompiledPrice::compile(definition) else { panic!("refused") };
    assert_eq!(fields[0].field, "tiers[1].rate_expression");
}
