//! The properties that the fuzz targets assert, one file and one `check` each. They are plain functions of bytes, so that
//! `tests/fuzz_corpus.rs` replays `corpus/` with a stable compiler and without libFuzzer.
//!
//! A crash becomes a file in `corpus/<target>/` whose name says what it is, in the same commit as the fix.

pub mod allowed_ips;
pub mod coalesce;
pub mod datagram;
pub mod engine;
pub mod input;
pub mod ip_packet;
pub mod memory;
pub mod segments;
pub mod split;
pub mod uapi;
