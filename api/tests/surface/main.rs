//! The mechanisms of the API, its keys and its catalog, through the router on a real database.

mod catalog;
mod costs;
mod currencies;
mod document;
mod exchange_rates;
mod formulas;
mod keys;
mod lists;
mod mechanisms;
mod meter_formulas;
mod organization_settings;
mod rate_tables;
mod repeats;
mod tenancy;
mod version_kinds;
mod versions;
