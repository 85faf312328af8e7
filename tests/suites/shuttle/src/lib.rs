//! The vault's gate and key locks under a scheduler of threads: everything is in `tests/gate.rs`.
#![forbid(unsafe_code)]
