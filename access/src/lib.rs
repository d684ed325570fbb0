//! Who may come in: organizations, workspaces, API keys and their permissions.
//!
//! * [`organization`] makes a tenant with its live and its sandbox workspace (`kontorion org create`).
//! * [`api_key`] mints, rotates, changes and revokes keys (api-keys.md).
//! * [`authenticator`] turns a bearer token into a [`Credential`], from a cache of a few seconds.
//! * [`settings`] is the catalog of settings and what organizations have written (organization-settings).
//! * [`permission`] is the closed catalog of names that guard operations (authorization.md).

pub mod allowlist;
pub mod api_key;
pub mod authenticator;
pub mod organization;
pub mod permission;
pub mod settings;
pub mod token;

pub use allowlist::Network;
pub use authenticator::{Authenticator, Credential};
pub use organization::{NewOrganization, NewTenant, NewWorkspace, bootstrap};
pub use token::{ApiKeyType, Token};
