//! An interface in memory: a real engine, and sockets that only remember what they were told.

use std::cell::Cell;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicUsize, Ordering};

use wg_core::{Engine, EngineConfig, Instant, PrivateKey};
use wgd::uapi::Interface;

pub(crate) struct Memory {
    engine: Engine,
    port: AtomicU16,
    mark: AtomicU32,
    are_sockets_refused: AtomicBool,
    has_fault: bool,
    socket_changes: Mutex<Vec<String>>,
    visits: AtomicUsize,
}

thread_local! {
    /// Whether this thread is inside `configure`.
    static IS_VISITING: Cell<bool> = const { Cell::new(false) };
}

#[allow(dead_code, reason = "each test target uses a part")]
impl Memory {
    pub(crate) fn new() -> Self {
        Memory {
            engine: Engine::new(EngineConfig::new([7; 32]), Instant::EPOCH),
            port: AtomicU16::new(0),
            mark: AtomicU32::new(0),
            are_sockets_refused: AtomicBool::new(false),
            has_fault: false,
            socket_changes: Mutex::new(Vec::new()),
            visits: AtomicUsize::new(0),
        }
    }

    /// The same, but to change a socket panics.
    pub(crate) fn with_fault(self) -> Self {
        Memory { has_fault: true, ..self }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.load(Ordering::Relaxed)
    }

    pub(crate) fn refuse_sockets(&self) {
        self.are_sockets_refused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn socket_changes(&self) -> Vec<String> {
        self.socket_changes.lock().expect("not poisoned").clone()
    }

    /// How often the engine was visited to change it.
    pub(crate) fn visits(&self) -> usize {
        self.visits.load(Ordering::Relaxed)
    }

    fn change_socket(&self, what: String) -> io::Result<()> {
        assert!(!self.has_fault, "the fault that was asked for");
        assert!(!IS_VISITING.get(), "the sockets are changed while the engine is held");
        if self.are_sockets_refused.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.socket_changes.lock().expect("not poisoned").push(what);
        Ok(())
    }
}

impl Interface for Memory {
    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn configure<R>(&self, change: impl FnOnce(&Engine, Instant) -> R) -> R {
        self.visits.fetch_add(1, Ordering::Relaxed);
        IS_VISITING.set(true);
        let result = change(&self.engine, Instant::EPOCH);
        IS_VISITING.set(false);
        result
    }

    fn listen_port(&self) -> u16 {
        self.port()
    }

    fn set_listen_port(&self, port: u16) -> io::Result<()> {
        self.change_socket(format!("port {port}"))?;
        self.port.store(port, Ordering::Relaxed);
        Ok(())
    }

    fn fwmark(&self) -> u32 {
        self.mark.load(Ordering::Relaxed)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.change_socket(format!("mark {mark}"))?;
        self.mark.store(mark, Ordering::Relaxed);
        Ok(())
    }

    fn is_up(&self) -> bool {
        false
    }

    fn zone_index(&self, zone: &str) -> Option<u32> {
        (zone == "eth7").then_some(77)
    }
}

/// 64 hex digits of one byte.
#[allow(dead_code, reason = "each test target uses a part")]
pub(crate) fn hex_key(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

/// The public key that belongs to the private key of that byte, or of that number for larger ones.
pub(crate) fn public_key(number: u32) -> String {
    let mut bytes = [number.to_le_bytes()[0]; 32];
    if number > 255 {
        bytes[..4].copy_from_slice(&number.to_le_bytes());
    }
    PrivateKey::from_bytes(bytes).public_key().to_hex()
}
