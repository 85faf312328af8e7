//! What operators order: commands are verified, carried out, and their outcome is stated.

pub(crate) mod command;
