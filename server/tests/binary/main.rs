//! End to end through the real `kontorion` binary: processes over HTTP and Kafka, against real engines. What rooms prove of
//! themselves is proved in their own tests; here the risk is in what lies between them: wiring, roles, signals, the command
//! line.

mod command_line;
mod demo;
mod foreign;
mod hung_up;
mod keyed;
mod killed;
mod readiness;
mod roles;
mod site;
mod stopping;
mod tenant;
