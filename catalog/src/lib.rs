//! The versioned catalog: products, plans, prices, meters and bindings, and the compiled snapshots that rating reads.

pub mod compiled;
