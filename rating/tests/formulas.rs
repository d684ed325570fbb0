//! The language of price formulas against every rule and number of price-formulas.md and rate-tables.md. A wrong one is a
//! rate that nobody agreed to.

use std::collections::BTreeMap;

use domain::error::FieldErrorCode;
use domain::{FormulaVarType, Quantity, RateTableType, VersionId};
use rating::formula::{
    DEPTH_MAX, EXPRESSION_MAX, Environment, NODES_MAX, Number, Place, Result, Source, Supplied, Value, Variable,
};
use rating::rate_table::{BracketEntry, Entries, LookupEntry, RateTable, RateTableDefinition};
use rating::{Formula, FormulaFailure, FormulaVariable};
use serde_json::{Value as Json, json};
use uuid::Uuid;

/// Values by name, and two rate tables.
#[derive(Default)]
struct Bound {
    values: BTreeMap<&'static str, Json>,
    tables: Vec<RateTable>,
}

impl Environment for Bound {
    fn variable(&self, variable: &Variable) -> Option<Value<'_>> {
        self.values.get(variable.name.as_str()).and_then(Value::from_json)
    }

    fn table(&self, slug: &str) -> Option<&RateTable> {
        self.tables.iter().find(|table| table.slug() == slug)
    }
}

fn quantity(text: &str) -> Quantity {
    Quantity::parse(text).expect("a quantity")
}

fn lookup(slug: &str, entries: &[(&str, &str)], when_missing: Option<&str>) -> RateTable {
    let entry = |(key, value): &(&str, &str)| LookupEntry { key: (*key).into(), value: quantity(value) };
    RateTable::compile(RateTableDefinition {
        slug: slug.into(),
        version_id: VersionId(Uuid::from_u128(1)),
        when_missing: when_missing.map(quantity),
        entries: Entries::Lookup(entries.iter().map(entry).collect()),
    })
    .expect("compiles")
}

/// Lower and upper bound, and the value.
type Bounds<'t> = (Option<&'t str>, Option<&'t str>, &'t str);

fn brackets(bounds: &[Bounds<'_>]) -> Entries {
    let entry = |(lower, upper, value): &Bounds<'_>| BracketEntry {
        lower_bound: lower.map(quantity),
        upper_bound: upper.map(quantity),
        value: quantity(value),
    };
    Entries::Bracket(bounds.iter().map(entry).collect())
}

fn bracket(slug: &str, bounds: &[Bounds<'_>]) -> RateTable {
    RateTable::compile(RateTableDefinition {
        slug: slug.into(),
        version_id: VersionId(Uuid::from_u128(2)),
        when_missing: None,
        entries: brackets(bounds),
    })
    .expect("compiles")
}

fn bound(values: &[(&'static str, Json)]) -> Bound {
    Bound {
        values: values.iter().cloned().collect(),
        tables: vec![
            lookup("vat", &[("de", "1.9"), ("fr", "2.1"), ("de|eu|5", "7")], None),
            bracket(
                "volume",
                &[(Some("100"), Some("1000"), "0.08"), (None, Some("100"), "0.10"), (Some("1000"), None, "0.05")],
            ),
        ],
    }
}

fn evaluate(text: &str, values: &[(&'static str, Json)]) -> Result<String> {
    let formula = Formula::compile(text, Place::Tier, &[]).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
    formula.evaluate(&bound(values)).map(|number| number.to_string())
}

#[track_caller]
fn gives(text: &str, values: &[(&'static str, Json)], expected: &str) {
    assert_eq!(evaluate(text, values).as_deref(), Ok(expected), "{text} with {values:?}");
}

#[track_caller]
fn fails(text: &str, values: &[(&'static str, Json)], code: &str) {
    assert_eq!(evaluate(text, values).map_err(|failure| failure.code()), Err(code), "{text} with {values:?}");
}

fn variable(name: &str, var_type: FormulaVarType, default: Option<Json>) -> FormulaVariable {
    FormulaVariable { name: name.into(), var_type, default, required: false, description: None }
}

/// price-formulas.md, Vectors and rule 8.
#[test]
fn vectors_of_the_reference() {
    gives("if(quantity > 1000, 0.08, 0.10)", &[("quantity", json!(1000))], "0.1");
    gives("if(quantity > 1000, 0.08, 0.10)", &[("quantity", json!("1001"))], "0.08");
    gives("round(2.345, 2)", &[], "2.35");
    gives("ceil(2500 / 1000) * 5", &[], "15");
    gives("min(quantity * 0.01, 50)", &[("quantity", json!(4000))], "40");
    gives("min(quantity * 0.01, 50)", &[("quantity", json!(9000))], "50");
    gives("cost.amount * 1.2", &[("cost.amount", json!("10.00"))], "12");
    gives("-2 ^ 2", &[], "-4");
    gives("2 ^ 3 ^ 2", &[], "512");
    fails("1 / 0", &[], "FORMULA_DIVISION_BY_ZERO");
    gives(
        "base_price * (1 - volume_discount)",
        &[("base_price", json!("100")), ("volume_discount", json!(0.15))],
        "85",
    );
}

#[test]
fn operators_bind_as_the_grammar_says() {
    for (text, expected) in [
        ("1 + 2 * 3 - 4 / 2", "5"),
        ("2 - 3 - 4", "-5"),
        ("100 / 10 / 5", "2"),
        ("2 - -3", "5"),
        ("2 ^ -1", "0.5"),
        ("-(2 + 3) % 3", "-2"),
        ("7.5 % 2", "1.5"),
        ("-7 % 3", "-1"),
        ("7 % -3", "1"),
        ("2 ^ 0.5 ^ 0 * 3", "6"),
        ("1 < 2 ? 10 : 20", "10"),
        ("1 > 2 ? 10 : 2 > 1 ? 20 : 30", "20"),
        ("if(1 == 1.0 and 'a' == \"a\" && !false, 1, 0)", "1"),
        ("if(not 1 == 2 && 2 >= 2, 1, 0)", "1"),
        ("if(false && true or true, 1, 0)", "1"),
        ("if(true || false && false, 1, 0)", "1"),
        ("if(false == (1 > 2), 1, 0)", "1"),
        ("if('de' != 'DE', 1, 0)", "1"),
    ] {
        gives(text, &[], expected);
    }
}

#[test]
fn functions_of_numbers() {
    for (text, expected) in [
        ("min(3, 1, 2)", "1"),
        ("max(3, 10, 2)", "10"),
        ("min(4)", "4"),
        ("abs(-2.5) + abs(2.5)", "5"),
        ("floor(-2.5)", "-3"),
        ("floor(2.5)", "2"),
        ("ceil(-2.5)", "-2"),
        ("ceil(2.000)", "2"),
        ("round(2.5)", "3"),
        ("round(-2.5)", "-3"),
        ("round(2.4999)", "2"),
        ("round(1250, -2)", "1300"),
        ("round(-1249.99, -2)", "-1200"),
        ("round(0.001, 5)", "0.001"),
        ("clamp(5, 1, 3)", "3"),
        ("clamp(0, 1, 3)", "1"),
        ("clamp(2, 1, 3)", "2"),
        ("4 ^ 0.5", "2"),
        ("0.25 ^ 1.5", "0.125"),
        ("100 ^ -0.5", "0.1"),
        ("0 ^ 0", "1"),
        ("0 ^ 5", "0"),
        ("(-1) ^ 1000001", "-1"),
        ("(-2) ^ 3", "-8"),
        ("1 ^ 0.3", "1"),
    ] {
        gives(text, &[], expected);
    }
    fails("0 ^ -1", &[], "FORMULA_DIVISION_BY_ZERO");
    fails("5 % (1 - 1)", &[], "FORMULA_DIVISION_BY_ZERO");
    fails("2 ^ 0.5", &[], "FORMULA_LIMIT_EXCEEDED");
    fails("(-4) ^ 0.5", &[], "FORMULA_LIMIT_EXCEEDED");
    fails("round(1, 0.5)", &[], "FORMULA_TYPE_MISMATCH");
    fails("round(1, 2000)", &[], "FORMULA_TYPE_MISMATCH");
}

/// Division at 28 significant digits, half-even; everything else exact.
#[test]
fn numbers_are_exact() {
    for (text, expected) in [
        ("0.1 + 0.2", "0.3"),
        ("1 / 3", "0.3333333333333333333333333333"),
        ("2 / 3", "0.6666666666666666666666666667"),
        ("1 / 30", "0.03333333333333333333333333333"),
        ("1000000 / 3", "333333.3333333333333333333333"),
        ("1 / 8", "0.125"),
        ("-1 / 3", "-0.3333333333333333333333333333"),
        ("10 ^ 40 / 3", "3333333333333333333333333333000000000000"),
        // 28 digits and a half: to the even neighbour
        ("20000000000000000000000000005 / 10", "2000000000000000000000000000"),
        ("20000000000000000000000000015 / 10", "2000000000000000000000000002"),
        ("20000000000000000000000000005.1 / 10", "2000000000000000000000000001"),
        ("99999999999999999999999999999 / 1", "100000000000000000000000000000"),
        (
            "123456789012345678901234567890 * 987654321098765432109876543210",
            "121932631137021795226185032733622923332237463801111263526900",
        ),
        ("10 ^ 100 - 10 ^ 100 + 0.5", "0.5"),
        ("170141183460469231731687303715884105727 + 1", "170141183460469231731687303715884105728"),
        ("0.000000000001 ^ 3", "0.000000000000000000000000000000000001"),
    ] {
        gives(text, &[], expected);
    }
}

#[test]
fn only_the_branch_that_is_taken_is_evaluated() {
    gives("if(quantity == 0, 0, 5 / quantity)", &[("quantity", json!(0))], "0");
    gives("true ? 1 : 1 / 0", &[], "1");
    gives("if(false && 1 / 0 > 1, 1, 2)", &[], "2");
    gives("if(true || 1 / 0 > 1, 1, 2)", &[], "1");
    fails("if(true && 1 / 0 > 1, 1, 2)", &[], "FORMULA_DIVISION_BY_ZERO");
    fails("if(false || 1 / 0 > 1, 1, 2)", &[], "FORMULA_DIVISION_BY_ZERO");
    gives("coalesce(a, b, 3)", &[("b", json!(2))], "2");
    gives("coalesce(a, b, 3)", &[], "3");
    gives("coalesce((a), 1 + 1, 1 / 0)", &[], "2");
    fails("coalesce(a, b)", &[], "FORMULA_UNBOUND_VARIABLE");
}

#[test]
fn values_have_the_type_of_their_variable() {
    gives("if(dim.level == '5', 1, 2)", &[("dim.level", json!(5))], "1");
    gives("if(dim.on == 'true', 1, 2)", &[("dim.on", json!(true))], "1");
    gives("factor * 2", &[("factor", json!("1.25"))], "2.5");
    fails("factor * 2", &[("factor", json!("much"))], "FORMULA_TYPE_MISMATCH");
    fails("factor * 2", &[("factor", json!(true))], "FORMULA_TYPE_MISMATCH");
    fails("factor * 2", &[], "FORMULA_UNBOUND_VARIABLE");
    gives("if(cost.currency == 'EUR', 1, 2)", &[("cost.currency", json!("EUR"))], "1");
}

#[test]
fn defaults_come_last() {
    let declared = [
        variable("markup", FormulaVarType::Number, Some(json!("1.2"))),
        variable("urgent", FormulaVarType::Boolean, Some(json!(false))),
        variable("dim.region", FormulaVarType::String, Some(json!("eu"))),
        variable("usage.in", FormulaVarType::Number, None),
    ];
    let text = "if(urgent, 2, 1) * markup * if(dim.region == 'eu', 10, 20) + coalesce(usage.in, 0)";
    let formula = Formula::compile(text, Place::Price, &declared).expect("compiles");
    let result = |values: &[(&'static str, Json)]| formula.evaluate(&bound(values)).map(|n| n.to_string());
    assert_eq!(result(&[]).as_deref(), Ok("12"));
    let values = [("urgent", json!(true)), ("markup", json!(1)), ("dim.region", json!("us")), ("usage.in", json!(3))];
    assert_eq!(result(&values).as_deref(), Ok("43"));
}

#[test]
fn a_rate_is_not_negative() {
    let formula = Formula::compile("quantity - 5", Place::Tier, &[]).expect("compiles");
    let rate = |quantity: i64| formula.evaluate_rate(&bound(&[("quantity", json!(quantity))]));
    assert_eq!(rate(5), Ok(Number::ZERO));
    assert_eq!(rate(4), Err(FormulaFailure::NegativeResult("-1".into())));
    assert_eq!(rate(4).map_err(|failure| failure.code()), Err("FORMULA_NEGATIVE_RESULT"));
}

/// rate-tables.md, Vectors.
#[test]
fn rate_tables() {
    for (number, expected) in [("100", "0.1"), ("100.01", "0.08"), ("1000", "0.08"), ("1001", "0.05"), ("-5", "0.1")] {
        gives("bracket('volume', quantity)", &[("quantity", json!(number))], expected);
    }
    gives("lookup('vat', dim.country)", &[("dim.country", json!("fr"))], "2.1");
    gives("lookup('vat', dim.country, 'eu', 2 + 3)", &[("dim.country", json!("de"))], "7");
    fails("lookup('vat', 'it')", &[], "RATE_TABLE_KEY_MISSING");
    fails("lookup('vat', 'DE')", &[], "RATE_TABLE_KEY_MISSING");
    fails("lookup('nowhere', 'de')", &[], "RATE_TABLE_KEY_MISSING");
    fails("lookup('volume', 'de')", &[], "RATE_TABLE_KEY_MISSING"); // of the other kind
    for (when_missing, expected) in [(None, None), (Some("0"), Some("0")), (Some("1.5"), Some("1.5"))] {
        let table = lookup("t", &[("de", "1.9")], when_missing);
        assert_eq!(table.look_up("it").map(ToString::to_string).as_deref(), expected);
    }
    let gap = bracket("gap", &[(Some("0"), Some("10"), "1"), (Some("20"), Some("30"), "2")]);
    for (number, expected) in
        [("0", None), ("10", Some("1")), ("15", None), ("20", None), ("20.1", Some("2")), ("31", None)]
    {
        let number = Number::parse(number).expect("a number");
        assert_eq!(gap.bracket(&number).map(ToString::to_string).as_deref(), expected, "{number}");
    }
}

#[test]
fn entries_are_checked() {
    let fields = |entries: Entries| {
        let errors = entries.check();
        errors.iter().map(|error| error.field.clone()).collect::<Vec<_>>()
    };
    let entry = |key: &str| LookupEntry { key: key.into(), value: Quantity::ONE };
    assert_eq!(fields(Entries::Lookup(vec![entry("a"), entry("b"), entry("a")])), ["lookup_entries[2].key"]);
    assert_eq!(fields(Entries::Lookup(Vec::new())), ["lookup_entries"]);
    let many = (0..=10_000).map(|number| entry(&number.to_string())).collect();
    assert_eq!(Entries::Lookup(many).check()[0].code, FieldErrorCode::OutOfRange);
    let sets: [(&[Bounds<'_>], &[&str]); 6] = [
        (&[(Some("5"), Some("5"), "1")], &["bracket_entries[0].upper_bound"]),
        (&[(Some("5"), Some("9"), "1"), (None, Some("6"), "1")], &["bracket_entries[0].lower_bound"]),
        (&[(None, None, "1"), (Some("3"), Some("4"), "1")], &["bracket_entries[1].lower_bound"]),
        (&[(None, Some("1"), "1"), (None, Some("2"), "1")], &["bracket_entries[1].lower_bound"]),
        (&[(Some("1"), None, "1"), (Some("0"), Some("1"), "1")], &[]),
        (&[(Some("7"), Some("8"), "1"), (None, Some("-3"), "1")], &[]),
    ];
    for (bounds, expected) in sets {
        assert_eq!(fields(brackets(bounds)), expected, "{bounds:?}");
    }
}

#[track_caller]
fn refused(text: &str, place: Place, position: usize, message: &str) {
    let errors = Formula::compile(text, place, &[]).expect_err(text);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!((errors[0].position, errors[0].message.contains(message)), (position, true), "{text}: {errors:?}");
}

#[test]
fn errors_have_a_place_and_a_reason() {
    for (text, position, message) in [
        ("", 0, "expected a value, found the end"),
        ("1 +", 3, "expected a value, found the end"),
        ("1 2", 2, "expected an operator or the end, found `2`"),
        ("(1", 2, "expected `)`"),
        ("'ä' == 1 # 2", 9, "unexpected character `#`"),
        ("1 = 2", 2, "unexpected character `=`"),
        ("1.", 1, "unexpected character `.`"),
        ("'open", 0, "no closing quote"),
        ("--1", 1, "expected a value"),
        ("!!true", 1, "expected a value"),
        ("1 < 2 < 3", 6, "expected an operator or the end"),
        ("and", 0, "expected a value"),
        ("power(2)", 0, "no function `power`"),
        ("round(1, 2, 3)", 0, "takes 1 to 2 argument(s), not 3"),
        ("abs()", 0, "takes 1 argument(s), not 0"),
        ("clamp(1, 2)", 0, "takes 3 argument(s), not 2"),
        ("if(true)", 0, "takes 3 argument(s)"),
        ("if(true, 1)", 10, "expected `,`"),
        ("lookup('t')", 0, "at least 2"),
        ("bracket('t', 1, 2)", 0, "takes 2 argument(s), not 3"),
        ("lookup(dim.table, 1)", 7, "the slug of a rate table"),
        ("lookup('No Slug', 1)", 7, "the slug of a rate table"),
        ("bracket('t', 'de')", 13, "a NUMBER is needed here, this is a STRING"),
        ("1 + 'a'", 4, "a NUMBER is needed here, this is a STRING"),
        ("1 == 'a' ? 1 : 2", 5, "a NUMBER is needed here, this is a STRING"),
        ("'a' < 1 ? 1 : 2", 0, "a NUMBER"),
        ("1 ? 2 : 3", 0, "a BOOLEAN is needed here"),
        ("if(true, 1, 'a')", 12, "a NUMBER is needed here"),
        ("quantity and true ? 1 : 2", 0, "a BOOLEAN"),
        ("true", 0, "the result must be a NUMBER"),
        ("dim.country", 0, "the result must be a NUMBER"),
        ("cost.total", 0, "no supplied variable"),
        ("Factor * 2", 0, "no key of pricing_vars"),
        ("dim.Country == 'de' ? 1 : 2", 0, "no supplied variable"),
    ] {
        refused(text, Place::Tier, position, message);
    }
    refused("factor * 2", Place::Price, 0, "`factor` is not declared");
    let errors = Formula::compile("'a' * (1 + true) - nope(b)", Place::Price, &[]).expect_err("wrong");
    assert_eq!(errors.iter().map(|error| error.position).collect::<Vec<_>>(), [0, 11, 24, 19], "{errors:?}");
}

#[test]
fn declarations_are_checked() {
    let wrong = |variables: &[FormulaVariable]| {
        let errors = Formula::compile("1", Place::Price, variables).expect_err("wrong");
        errors.iter().map(|error| (error.variable, error.message.clone())).collect::<Vec<_>>()
    };
    let number = FormulaVarType::Number;
    let twice = [variable("a", number, None), variable("a", number, None)];
    assert_eq!(wrong(&twice), [(Some(1), "the variable `a` is declared twice".into())]);
    for name in ["", "1a", "true", "and", "a b", "ä", "cost.total", "dim."] {
        assert_eq!(wrong(&[variable(name, number, None)])[0].1, format!("`{name}` cannot name a variable"));
    }
    for (name, fixed) in [("dim.region", "STRING"), ("quantity", "NUMBER")] {
        let errors = wrong(&[variable(name, FormulaVarType::Boolean, None)]);
        assert_eq!(errors[0].1, format!("the type of `{name}` is {fixed}"));
    }
    assert_eq!(wrong(&[variable("a", number, Some(json!("x")))])[0].1, "the default of `a` is no NUMBER");
    assert_eq!(
        wrong(&[variable("a", FormulaVarType::Boolean, Some(json!("true")))])[0].1,
        "the default of `a` is no BOOLEAN"
    );
}

/// price-formulas.md, Limits.
#[test]
fn limits() {
    let long = format!("1{}", " ".repeat(EXPRESSION_MAX));
    refused(&long, Place::Tier, 0, "at most 4096 characters");
    assert!(Formula::compile(&long[..EXPRESSION_MAX], Place::Tier, &[]).is_ok());
    let nested = |levels: usize| format!("{}1{}", "(".repeat(levels), ")".repeat(levels));
    assert!(Formula::compile(&nested(DEPTH_MAX - 1), Place::Tier, &[]).is_ok());
    refused(&nested(DEPTH_MAX), Place::Tier, DEPTH_MAX, "64 levels");
    refused(&"2^".repeat(100), Place::Tier, 2 * DEPTH_MAX, "64 levels");
    refused(&"(".repeat(EXPRESSION_MAX), Place::Tier, DEPTH_MAX, "64 levels");
    let sum = |terms: usize| vec!["1"; terms].join("+");
    gives(&sum(NODES_MAX / 2), &[], "500");
    let errors = Formula::compile(&sum(NODES_MAX / 2 + 1), Place::Tier, &[]).expect_err("too many");
    assert!(errors[0].message.contains("at most 1000 literals"), "{errors:?}");
    gives(&vec!["1.0"; 500].join("*"), &[], "1"); // trailing zeros are no digits
    fails(&format!("{}0", "9 ^ 99 * ".repeat(20)), &[], "FORMULA_LIMIT_EXCEEDED");
    fails("2 ^ 1000000000000", &[], "FORMULA_LIMIT_EXCEEDED");
    fails("0.1 ^ 1001", &[], "FORMULA_LIMIT_EXCEEDED");
    gives("0.1 ^ 1000 * 10 ^ 999", &[], "0.1");
    refused(&"9".repeat(1_002), Place::Tier, 0, "1,000 digits");
}

/// What the rating key is built from (rule C1).
#[test]
fn a_formula_tells_what_it_reads() {
    let text = "if(quantity > free and dim.region == 'eu', lookup('a', dim.region, dim.plan), bracket('b', cost.amount)) * free";
    let formula = Formula::compile(text, Place::Tier, &[]).expect("compiles");
    let events: Vec<_> = formula.event_variables().into_iter().collect();
    assert_eq!(events, ["cost.amount", "dim.plan", "dim.region", "free"]);
    let tables: Vec<_> = formula.tables().iter().map(|table| (table.slug.as_str(), table.table_type)).collect();
    assert_eq!(tables, [("a", RateTableType::Lookup), ("b", RateTableType::Bracket)]);
    assert!(formula.reads_quantity() && formula.reads_cost());
    let plain = Formula::compile("unit_amount * 2", Place::Tier, &[]).expect("compiles");
    assert!(!plain.reads_quantity() && !plain.reads_cost() && plain.event_variables().is_empty());
    assert_eq!(plain.variables()[0].source, Source::Supplied(Supplied::UnitAmount));
    // A declared name of the engine can be bound by the event, an undeclared one cannot.
    let declared = [variable("base_price", FormulaVarType::Number, None)];
    let formula = Formula::compile("base_price + list_price", Place::Price, &declared).expect("compiles");
    assert_eq!(formula.variables()[0].source, Source::Named(Some(Supplied::ListPrice)));
    assert_eq!(formula.variables()[1].source, Source::Supplied(Supplied::ListPrice));
}
