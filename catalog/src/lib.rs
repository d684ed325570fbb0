//! The versioned catalog: products, plans, prices, formulas, rate tables, meters and bindings, and the compiled snapshots that rating reads.
//!
//! Every resource has a file with its types (as on the wire) and its operations. Reads take a connection, writes a
//! transaction; every write marks the workspace's compiled catalog as changed.

pub mod binding;
pub mod breach;
pub mod compiled;
pub mod cost;
pub mod formula;
pub mod meter;
pub mod plan;
pub mod price;
pub mod product;
pub mod rate_table;
pub mod recount;
pub mod texts;
pub mod version;
