//! Replays the fuzz corpus with a stable compiler. The properties are those of the fuzz targets, in `fuzz/src`.
//!
//! `cargo fuzz run NAME` grows a corpus; see `fuzz/src/lib.rs` for what becomes of a crash.
#![cfg(not(virtual_time))]

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the fuzz targets")]
mod properties;

use std::fs;
use std::path::Path;

/// Puts every file of a corpus to its property, and every truncation of small ones.
fn replay(name: &str, least_files: usize, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a file of the corpus").path())
        .collect();
    files.sort();
    assert!(files.len() >= least_files, "the corpus of {name} has {} files", files.len());
    for file in files {
        println!("{}", file.display());
        let bytes = fs::read(&file).expect("a file of the corpus");
        check(&bytes);
        for len in 0..bytes.len().min(64) {
            check(&bytes[..len]);
        }
    }
    check(&[]);
}

#[test]
fn a_datagram_nobody_made_yields_nothing() {
    replay("datagram", 10, properties::datagram::check);
}

#[test]
fn the_view_of_a_packet_agrees_with_the_rfcs() {
    replay("ip_packet", 10, properties::ip_packet::check);
}

#[test]
fn the_trie_agrees_with_a_linear_scan() {
    replay("allowed_ips", 5, properties::allowed_ips::check);
}

#[test]
fn any_sequence_of_operations_leaves_the_engines_whole() {
    replay("engine", 5, properties::engine::check);
}

#[test]
fn the_configuration_protocol_answers_the_same_in_any_pieces() {
    replay("uapi", 8, properties::uapi::check);
}

#[test]
fn what_is_split_is_what_the_headers_describe() {
    replay("split", 8, properties::split::check);
}

#[test]
fn what_is_joined_comes_apart_as_it_came_in() {
    replay("coalesce", 8, properties::coalesce::check);
}
