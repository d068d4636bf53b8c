//! The configuration protocol: any bytes in any pieces get the same answer, and what is printed can be set again.
//!
//! Input: one byte for the size of the pieces, then what a client says.

use std::cell::Cell;
use std::io;

use wg_core::{Engine, EngineConfig, Instant};
use wgd::uapi::{Conversation, Interface, Progress};

use super::memory::START;

/// An interface without a device.
struct Memory {
    engine: Engine,
    listen_port: Cell<u16>,
    fwmark: Cell<u32>,
}

impl Memory {
    fn new() -> Self {
        let engine = Engine::new(EngineConfig::new([1; 32]), START);
        Memory { engine, listen_port: Cell::new(0), fwmark: Cell::new(0) }
    }
}

impl Interface for Memory {
    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn configure<R>(&self, change: impl FnOnce(&Engine, Instant) -> R) -> R {
        change(&self.engine, START)
    }

    fn listen_port(&self) -> u16 {
        self.listen_port.get()
    }

    fn set_listen_port(&self, port: u16) -> io::Result<()> {
        self.listen_port.set(port);
        Ok(())
    }

    fn fwmark(&self) -> u32 {
        self.fwmark.get()
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.fwmark.set(mark);
        Ok(())
    }

    fn is_up(&self) -> bool {
        false
    }

    fn zone_index(&self, zone: &str) -> Option<u32> {
        zone.parse().ok()
    }
}

/// Says `text` in pieces of `piece` bytes and then that there is no more; returns all that comes back.
fn talk(interface: &Memory, text: &[u8], piece: usize) -> String {
    let mut conversation = Conversation::new();
    let mut answer = String::new();
    let mut pieces = text.chunks(piece);
    let mut is_ended = false;
    loop {
        match conversation.advance(interface) {
            Progress::NeedInput => match pieces.next() {
                Some(bytes) => conversation.receive(bytes),
                None => {
                    assert!(!is_ended, "it was told that there is no more");
                    is_ended = true;
                    conversation.end_of_input();
                }
            },
            Progress::Reply(mut reply) => while reply.next_piece(&mut answer, usize::MAX) {},
            Progress::Close => return answer,
        }
    }
}

/// Says the input whole and in pieces, then copies what came of it to another interface.
pub fn check(bytes: &[u8]) {
    let (piece, text) = bytes.split_first().unwrap_or((&0, &[]));
    let (whole, pieced) = (Memory::new(), Memory::new());
    let answer = talk(&whole, text, usize::MAX);
    assert_eq!(talk(&pieced, text, usize::from(*piece % 64) + 1), answer);
    let printed = talk(&whole, b"get=1\n\n", usize::MAX);
    assert!(printed.ends_with("errno=0\n\n"));
    assert_eq!(talk(&pieced, b"get=1\n\n", usize::MAX), printed);

    // A zero time stamp and zero counters are state, not settings; everything else can be set as it was printed.
    let is_setting = |line: &&str| {
        !["last_handshake", "tx_bytes", "rx_bytes", "errno"].iter().any(|state| line.starts_with(state))
            && !line.is_empty()
    };
    let settings: Vec<_> = printed.lines().filter(is_setting).collect();
    let copy = Memory::new();
    let answer = talk(&copy, format!("set=1\n{}\n\n", settings.join("\n")).as_bytes(), usize::MAX);
    assert_eq!(answer, "errno=0\n\n");
    assert_eq!(talk(&copy, b"get=1\n\n", usize::MAX), printed);
}
