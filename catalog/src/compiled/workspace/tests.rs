//! How the resolver chooses (prices.md).

use domain::event::Vars;
use rating::{PriceDefinition, Tier};
use rust_decimal::Decimal;

use super::super::SINCE_EVER;
use super::*;

/// A catalog with one product, its prices in the order of their ids, and for whom each is.
fn catalog(prices: &[(Option<PlanId>, Option<&str>, Option<CustomerId>)]) -> (WorkspaceCatalog, ProductId) {
    let id = ProductId::generate();
    let timeline = |(plan_id, country, customer_id): &(Option<PlanId>, Option<&str>, Option<CustomerId>)| {
        let price_id = PriceId::generate();
        let tier = Tier { tier_order: 1, unit_amount: Decimal::ONE, ..Tier::default() };
        let definition = PriceDefinition {
            price_id,
            version_id: VersionId::generate(),
            product_id: id,
            price_key: None,
            currency: Currency::EUR,
            model: PricingModel::Volume,
            tiers: vec![tier],
            list_price: None,
            formula: None,
        };
        let compiled = Arc::new(CompiledPrice::compile(definition).expect("one open tier"));
        PriceTimeline {
            id: price_id,
            plan_id: *plan_id,
            plan_version: None,
            customer_id: *customer_id,
            country_code: country.map(str::to_owned),
            custom_dimensions: Vec::new(),
            currency: Currency::EUR,
            price_key: None,
            interval: None,
            valid_from: None,
            valid_to: None,
            versions: vec![(SINCE_EVER, None, compiled)],
        }
    };
    let product = ProductTerms {
        id,
        name: "Units".into(),
        kind: ProductType::Usage,
        pricing_model: PricingModel::Volume,
        is_live: true,
        price_key_label: None,
        unmatched_price_key_policy: UnmatchedPriceKeyPolicy::Reject,
        default_price_key: None,
        tiers_on_total: false,
        tax_category: ProductTaxCategory::Default,
        supply_type: SupplyType::Services,
        bindings: Vec::new(),
        prices: prices.iter().map(timeline).collect(),
    };
    let catalog = WorkspaceCatalog {
        workspace_id: WorkspaceId::generate(),
        products: HashMap::from([(id, product)]),
        plan_versions: HashMap::new(),
        bindings: HashMap::new(),
        prices: HashMap::new(),
        schemas: HashMap::new(),
        tables: Tables::default(),
    };
    (catalog, id)
}

/// prices.md, resolver vectors: A base, B country DE, C plan P, D plan P and country DE, E customer K.
#[test]
fn the_most_specific_price_wins() {
    let (p, k) = (PlanId::generate(), CustomerId::generate());
    let [a, b, c, d, e] = [
        (None, None, None),
        (None, Some("DE"), None),
        (Some(p), None, None),
        (Some(p), Some("DE"), None),
        (None, None, Some(k)),
    ];
    for (rows, country, expected) in [
        (vec![a, b, c, d, e], "DE", Ok((4, PriceResolution::Customer))),
        (vec![a, b, c, d], "DE", Ok((3, PriceResolution::Plan))),
        (vec![a, b, c], "DE", Ok((2, PriceResolution::Plan))),
        (vec![a, b], "DE", Ok((1, PriceResolution::Country))),
        (vec![a, b], "FR", Ok((0, PriceResolution::Base))),
        (vec![b], "FR", Err(Unpriced::NoPrice)),
    ] {
        for is_reversed in [false, true] {
            let (mut catalog, product_id) = catalog(&rows);
            let product = catalog.products.get_mut(&product_id).expect("made above");
            let ids: Vec<_> = product.prices.iter().map(|price| price.id).collect();
            if is_reversed {
                product.prices.reverse();
            }
            let query = PriceQuery {
                product_id,
                price_key: None,
                plan_id: Some(p),
                plan_version_id: None,
                customer_id: Some(k),
                country: Some(country),
                currency: Some(Currency::EUR),
                interval: None,
                dimensions: &Vars::new(),
                at: SINCE_EVER,
            };
            let found = catalog.resolve(&query).map(|resolved| {
                (ids.iter().position(|id| *id == resolved.price.price_id).expect("of them"), resolved.resolved_by)
            });
            assert_eq!(found, expected, "{} rows, {country}", rows.len());
            let dollars = PriceQuery { currency: Some(Currency::USD), ..query };
            let refused = expected.map_or(Unpriced::NoPrice, |_| Unpriced::OtherCurrency(Currency::EUR));
            assert_eq!(catalog.resolve(&dollars).map(drop), Err(refused));
        }
    }
}
