//! The ways out of this process, all over the broker's socket: frames, calls, TLS to KMS and to the store.

pub mod broker_client;
pub mod kms;
pub mod server;
pub mod store;
pub mod tls;
