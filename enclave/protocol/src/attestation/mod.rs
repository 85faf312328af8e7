//! What an attestation document binds: the statement, and the configuration that was measured.

pub mod configuration;
pub mod may_sign;
pub mod statement;
