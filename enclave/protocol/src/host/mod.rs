//! What lies outside the vault: the broker, the services of the host, and the stores that they lead to.

pub mod arn;
pub mod broker;
pub mod host_services;
pub mod store;
