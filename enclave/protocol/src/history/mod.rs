//! Slashing protection history: watermarks, and the pages in which the vault tells them.

pub mod history_page;
pub mod key_page;
pub mod watermarks;
