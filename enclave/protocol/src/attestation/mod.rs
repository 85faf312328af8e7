//! What an attestation document binds: the statement, and the configuration that was measured.

pub mod configuration;
pub mod statement;
