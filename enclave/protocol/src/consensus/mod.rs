//! What the chain's specification says: slots and epochs, a network's parameters, duties, and which of them are of now.

pub mod duty;
pub mod network;
pub mod slot_clock;
pub mod time;
pub mod window;
