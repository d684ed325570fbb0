//! The closed catalog of permissions (authorization.md): it changes with the code, never through the API.

/// Resources with the actions `read`, `write` and `delete`.
const RESOURCES: &[&str] = &[
    "customers",
    "subscriptions",
    "invoices",
    "credit_notes",
    "payments",
    "wallets",
    "products",
    "plans",
    "prices",
    "promotions",
    "meters",
    "usage",
    "committed_use_plans",
    "rate_tables",
    "costs",
    "taxes",
    "fx",
    "dunning",
    "milestones",
    "approvals",
    "webhooks",
    "audit",
    "analytics",
    "search",
    "tags",
    "custom_fields",
    "templates",
    "accounting",
    "einvoicing",
    "settlements",
    "segments",
    "portal",
    "notifications",
    "test_tools",
    "members",
    "roles",
    "api_keys",
    "identity_providers",
    "organization",
    "organization_settings",
    "workspaces",
];

const ACTIONS: &[&str] = &["read", "write", "delete"];

/// Special actions beside them.
const SPECIAL: &[&str] = &[
    "invoices:finalize",
    "invoices:void",
    "payments:refund",
    "wallets:adjust",
    "plans:publish",
    "usage:ingest",
    "approvals:decide",
];

/// Held by system administrators only; no key can have them.
const SYSTEM_ONLY: &[&str] = &["organizations:create", "organizations:suspend", "scim:manage"];

/// Whether a name is in the catalog and may be granted to roles and keys.
#[must_use]
pub fn is_assignable(name: &str) -> bool {
    SPECIAL.contains(&name)
        || name
            .split_once(':')
            .is_some_and(|(resource, action)| RESOURCES.contains(&resource) && ACTIONS.contains(&action))
}

/// Whether a name is in the catalog at all.
#[must_use]
pub fn exists(name: &str) -> bool {
    is_assignable(name) || SYSTEM_ONLY.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_is_closed() {
        for good in ["customers:read", "wallets:adjust", "usage:ingest", "api_keys:delete"] {
            assert!(is_assignable(good), "{good}");
        }
        for wrong in ["customers", "customers:destroy", "unknown:read", "", ":", "customers:read ", "scim:manage"] {
            assert!(!is_assignable(wrong), "{wrong}");
        }
        assert!(exists("scim:manage") && !exists("scim:read"));
    }
}
