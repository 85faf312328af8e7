//! The benchmark is under benches/.
