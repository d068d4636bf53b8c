//! Owns the checked views of bytes from outside; its files know offsets and lengths, and nothing of peers.
//!
//! A view is made by a `parse` that checks every length once. What it promises afterwards:
//!
//! - Every accessor stays inside the bytes the view was made from, and none panics.
//! - Fields are read where they lie; nothing is copied or allocated.
//! - A view says what a packet states, not that it is true: checksums are not verified and addresses not judged.

pub mod checksum;
pub mod icmp;
pub mod ip;
pub mod message;
pub mod tcp;

pub use ip::IpPacket;
pub use message::Message;
