//! The harness of the scenarios on virtual time: two engines, the link between them, models and packets.
//!
//! Read `pair.rs` first. The harness of the namespace tests is `netns.rs`, which its targets name by path.

#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of the harness")]

pub mod link;
pub mod oracle;
pub mod packets;
pub mod pair;
