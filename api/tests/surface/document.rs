//! Guards: a document that differs from the router, and operations without their refusals.

use serde_json::Value;

fn document() -> Value {
    serde_json::to_value(api::document()).expect("JSON")
}

#[test]
fn every_operation_is_described_whole() {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let mut ids = std::collections::HashSet::new();
    for (path, item) in paths {
        for (method, operation) in item.as_object().expect("operations") {
            let name = format!("{method} {path}");
            assert!(ids.insert(operation["operationId"].to_string()), "{name}: the operation id stands twice");
            assert!(operation["tags"].as_array().is_some_and(|tags| !tags.is_empty()), "{name}: no tag");
            assert!(operation["summary"].is_string(), "{name}: no summary");
            let problem = &operation["responses"]["404"]["content"]["application/problem+json"]["schema"]["$ref"];
            assert_eq!(problem, "#/components/schemas/Problem", "{name}");
            let parameters: Vec<_> = operation["parameters"].as_array().into_iter().flatten().collect();
            for placeholder in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                let described = |p: &&Value| p["name"] == placeholder && p["in"] == "path";
                assert!(parameters.iter().any(described), "{name}: {placeholder} is not described");
            }
        }
    }
    assert!(document["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer");
}

#[test]
fn every_reference_of_the_document_resolves() {
    fn references(node: &Value, found: &mut Vec<String>) {
        match node {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(entries) => entries.iter().for_each(|entry| references(entry, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    references(&document, &mut found);
    for reference in found {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}
