//! Messages on their way in: LISTEN, order, attachments, and who is meant.

pub mod attachment;
pub mod channels;
pub mod echo;
pub mod intake;
pub mod lanes;
pub mod listener;
pub mod membership;
pub mod rooms;
pub mod sequence;
