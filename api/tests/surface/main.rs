//! The mechanisms of the API, its keys and its catalog, through the router on a real database.

mod catalog;
mod costs;
mod document;
mod formulas;
mod keys;
mod lists;
mod mechanisms;
mod meter_formulas;
mod rate_tables;
mod repeats;
mod tenancy;
mod version_kinds;
mod versions;
