//! Incoming messages: LISTEN, order, attachments, and the rooms that a message addresses.

pub mod attachment;
pub mod channels;
pub mod echo;
pub mod intake;
pub mod lanes;
pub mod listener;
pub mod membership;
pub mod rooms;
pub mod sequence;
