//! Operators: their commands, and what comes of them.

pub mod command;
pub mod reported;
