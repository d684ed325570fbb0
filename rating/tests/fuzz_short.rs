//! The fuzz targets of this crate on stable Rust: the same bodies on pseudo-random and mutated inputs from a fixed seed.
//! A panic here would stop a partition; a difference would be a bill that depends on luck.

#[path = "../../fuzz/bodies/filter.rs"]
mod filter;
#[path = "../../fuzz/bodies/formula.rs"]
mod formula;
#[path = "../../fuzz/bodies/mutate.rs"]
mod mutate;

#[test]
fn formulas() {
    let seeds: &[&[u8]] = &[
        b"if(quantity > 1000 and dim.region == 'eu', 0.08, 0.10) * coalesce(a, b, 2 ^ 3 ^ 2)",
        b"lookup('t', dim.country, c) + bracket('tt', cost.amount / 3) % 7 - round(-2.345, 2)",
        b"clamp(max(a, 1, 2), -1, min(b, 4) ^ 0.5) ? 1 : not (true || false) ? 99999999999999999999999999999999999 : 2",
        b"a*a*a*a*a*a*a*a^b/b%a-(((((((a)))))))",
    ];
    mutate::drive(0x0F0A_11A5, 300_000, seeds, formula::run);
}

#[test]
fn filters() {
    let seeds: &[&[u8]] = &[
        br#"{"root": {"op": "AND", "children": [{"field": "quantity", "operator": "GT", "value": "5"}]}}                    "#,
        br#"{"root": {"op": "NOT", "children": [{"field": "dimension_vars.a", "operator": "IN", "value": [1, "2", true]}]}}  "#,
        br#"{"root": {"field": "pricing_vars.c", "operator": "STARTS_WITH", "value": "abc"}}                                "#,
        br#"{"root": {"field": "price_key", "operator": "NOT_EXISTS"}}                                                      "#,
    ];
    mutate::drive(0xF117_E450, 300_000, seeds, filter::run);
}
