//! Envelopes name the component of the reference instead of repeating it.

use serde_json::Value;

#[test]
fn envelopes_refer_to_components() {
    let document: Value = serde_json::from_str(&api::document().to_json().unwrap()).unwrap();
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["Data_WalletDTO"]["properties"]["data"]["$ref"], "#/components/schemas/WalletDTO");
    assert_eq!(schemas["PageOf_Customer"]["properties"]["data"]["items"]["$ref"], "#/components/schemas/Customer");
    for component in ["WalletDTO", "Wallet", "Customer", "WalletTransaction", "PageResponse"] {
        assert_eq!(
            schemas[component]["type"].as_str().or(schemas[component]["allOf"][1]["type"].as_str()),
            Some("object")
        );
    }
}
