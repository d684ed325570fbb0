//! Filters decide which events are billed: their operators, the missing field, and what is refused when one is written.

mod common;

use common::*;
use domain::event::VarValue;
use domain::{Currency, UsageEvent};
use rating::FilterTree;
use serde_json::{Value, json};

fn sample() -> UsageEvent {
    let mut event = with_dimension(event(1, "12.5"), "region", "eu-west");
    event.price_key = Some("gpt".into());
    event.external_cost = Some((decimal("1"), Currency::EUR));
    event.dimension_vars.insert("size".into(), VarValue::Number(quantity("5")));
    event.dimension_vars.insert("level".into(), VarValue::Text("7.0".into()));
    event.pricing_vars.insert("cached".into(), VarValue::Bool(true));
    event
}

fn leaf(field: &str, operator: &str, value: Value) -> Value {
    json!({"field": field, "operator": operator, "value": value})
}

fn matches(node: Value) -> bool {
    FilterTree::from_json(&json!({"root": node})).expect("a good filter").matches(&sample())
}

#[test]
fn operators() {
    for (field, operator, value, expected) in [
        ("dimension_vars.region", "EQ", json!("eu-west"), true),
        ("dimension_vars.region", "EQ", json!("eu"), false),
        ("dimension_vars.region", "NE", json!("eu"), true),
        ("dimension_vars.region", "IN", json!(["us", "eu-west"]), true),
        ("dimension_vars.region", "NOT_IN", json!(["us", "eu-west"]), false),
        ("dimension_vars.region", "CONTAINS", json!("u-w"), true),
        ("dimension_vars.region", "STARTS_WITH", json!("eu"), true),
        ("dimension_vars.region", "STARTS_WITH", json!("west"), false),
        ("dimension_vars.region", "EXISTS", Value::Null, true),
        ("dimension_vars.region", "NOT_EXISTS", Value::Null, false),
        ("quantity", "GT", json!(12), true),
        ("quantity", "GTE", json!("12.5"), true),
        ("quantity", "LT", json!("12.5"), false),
        ("quantity", "LTE", json!(12.5), true),
        ("quantity", "EQ", json!("12.50"), true),
        ("dimension_vars.size", "EQ", json!(5), true),
        ("dimension_vars.size", "EQ", json!("5.0"), true),
        ("dimension_vars.level", "EQ", json!(7), true),
        ("dimension_vars.level", "EQ", json!("7"), false),
        ("dimension_vars.level", "GT", json!(6.5), true),
        ("dimension_vars.region", "GT", json!(1), false),
        ("pricing_vars.cached", "EQ", json!(true), true),
        ("pricing_vars.cached", "EQ", json!("true"), false),
        ("price_key", "EQ", json!("gpt"), true),
        ("external_cost_currency", "IN", json!(["EUR"]), true),
    ] {
        assert_eq!(matches(leaf(field, operator, value.clone())), expected, "{field} {operator} {value}");
    }
}

#[test]
fn a_missing_field_fails_every_comparison_but_the_negative_ones() {
    for (operator, value, expected) in [
        ("EQ", json!("x"), false),
        ("NE", json!("x"), true),
        ("IN", json!(["x"]), false),
        ("NOT_IN", json!(["x"]), true),
        ("GT", json!(0), false),
        ("GTE", json!(0), false),
        ("LT", json!(0), false),
        ("LTE", json!(0), false),
        ("CONTAINS", json!(""), false),
        ("STARTS_WITH", json!(""), false),
        ("EXISTS", Value::Null, false),
        ("NOT_EXISTS", Value::Null, true),
    ] {
        assert_eq!(matches(leaf("dimension_vars.absent", operator, value)), expected, "{operator}");
    }
}

#[test]
fn groups() {
    let (yes, no) = (leaf("price_key", "EQ", json!("gpt")), leaf("price_key", "EQ", json!("other")));
    let group = |op: &str, children: &[&Value]| json!({"op": op, "children": children});
    assert!(matches(group("AND", &[&yes, &yes])));
    assert!(!matches(group("AND", &[&yes, &no])));
    assert!(matches(group("OR", &[&no, &yes])));
    assert!(!matches(group("OR", &[&no, &no])));
    assert!(matches(group("NOT", &[&no, &no])));
    assert!(!matches(group("NOT", &[&no, &yes])));
    assert!(matches(group("NOT", &[&group("AND", &[&yes, &no])])));
}

fn errors(tree: Value) -> Vec<String> {
    let fields = FilterTree::from_json(&tree).expect_err("must be refused");
    fields.iter().map(|f| format!("{} {}", f.field, f.code)).collect()
}

#[test]
fn refuses_with_paths() {
    let good = leaf("price_key", "EQ", json!("a"));
    for (tree, expected) in [
        (json!({}), vec!["root REQUIRED"]),
        (json!({"root": good, "more": 1}), vec!["more UNKNOWN_FIELD"]),
        (json!({"root": {"op": "AND", "children": []}}), vec!["root.children OUT_OF_RANGE"]),
        (json!({"root": {"op": "XOR", "children": [good]}}), vec!["root.op INVALID_ENUM"]),
        (
            json!({"root": {"op": "OR", "children": [good, leaf("customer", "EQ", json!("a")), leaf("quantity", "GT", json!("x"))]}}),
            vec!["root.children[1].field INVALID_FORMAT", "root.children[2].value INVALID_FORMAT"],
        ),
        (json!({"root": leaf("price_key", "IN", json!([]))}), vec!["root.value OUT_OF_RANGE"]),
        (json!({"root": leaf("price_key", "IN", json!("a"))}), vec!["root.value INVALID_FORMAT"]),
        (json!({"root": leaf("price_key", "EQ", json!(["a"]))}), vec!["root.value INVALID_FORMAT"]),
        (json!({"root": leaf("price_key", "EQ", Value::Null)}), vec!["root.value REQUIRED"]),
        (json!({"root": leaf("price_key", "EXISTS", json!(true))}), vec!["root.value NOT_ALLOWED"]),
        (json!({"root": leaf("price_key", "CONTAINS", json!(1))}), vec!["root.value INVALID_FORMAT"]),
        (json!({"root": leaf("price_key", "EQ", json!("a\0"))}), vec!["root.value INVALID_FORMAT"]),
        (json!({"root": leaf("price_key", "CONTAINS", json!("\0"))}), vec!["root.value INVALID_FORMAT"]),
    ] {
        assert_eq!(errors(tree.clone()), expected, "{tree}");
    }
    assert!(FilterTree::from_json(&json!([])).is_err());
}

#[test]
fn limits_of_depth_and_leaves() {
    let nest = |levels: usize| {
        (1..levels).fold(leaf("price_key", "EQ", json!("a")), |inner, _| json!({"op": "AND", "children": [inner]}))
    };
    assert!(FilterTree::from_json(&json!({"root": nest(5)})).is_ok());
    assert_eq!(errors(json!({"root": nest(6)})), [format!("root{} OUT_OF_RANGE", ".children[0]".repeat(5))]);
    assert!(FilterTree::from_json(&json!({"root": nest(100)})).is_err());

    let half = |count: usize| json!({"op": "OR", "children": vec![leaf("price_key", "EQ", json!("a")); count]});
    let wide = |count| json!({"root": {"op": "OR", "children": [half(25), half(count)]}});
    assert!(FilterTree::from_json(&wide(25)).is_ok());
    assert_eq!(errors(wide(26)), ["root.children[1].children[25].field TOO_LONG"]);
}

#[test]
fn travels_unchanged() {
    let wire = json!({"root": {"op": "NOT", "children": [
        leaf("quantity", "GT", json!(2.5)),
        leaf("dimension_vars.a", "IN", json!(["x", 1, true])),
        {"field": "price_key", "operator": "EXISTS"},
    ]}});
    let tree: FilterTree = serde_json::from_value(wire.clone()).expect("a good filter");
    assert_eq!(serde_json::to_value(&tree).expect("serializes"), wire);
    let error = serde_json::from_value::<FilterTree>(json!({"root": {}})).expect_err("no filter").to_string();
    assert!(error.contains("root.field: is required"), "{error}");
}

/// The components `FilterTree`, `FilterNode`, `Threshold` and `ThresholdAction` of the OpenAPI document.
#[test]
fn schemas_have_the_names_and_members_of_the_reference() {
    use utoipa::{PartialSchema, ToSchema};
    let mut schemas = Vec::new();
    FilterTree::schemas(&mut schemas);
    rating::Threshold::schemas(&mut schemas);
    let mut names: Vec<_> = schemas.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in ["FilterNode", "FilterGroupOp", "FilterOperator", "ThresholdAction", "ThresholdBasis"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let threshold = serde_json::to_value(rating::Threshold::schema()).expect("serializes");
    assert_eq!(threshold["required"], json!(["name", "comparator", "value", "basis", "actions", "rearm"]));
    let action = serde_json::to_value(rating::ThresholdAction::schema()).expect("serializes");
    assert_eq!((&action["required"], &action["properties"]["target"]["type"]), (&json!(["kind"]), &json!("string")));
}
