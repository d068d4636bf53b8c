//! Owns the cross-platform configuration protocol that `wg` speaks, as parse and print: bytes of one connection in,
//! changes to an [`Interface`] and bytes of the reply out. Knows no socket; `control_socket.rs` carries the bytes.
//!
//! A connection is a [`Conversation`]:
//! 1. [`Conversation::receive`] takes what arrived, in pieces of any size;
//! 2. [`Conversation::advance`] applies every complete line and says what is next: more input, a [`Reply`], or the end;
//! 3. [`Conversation::end_of_input`] tells that the other side will say no more: an unfinished `set` counts as finished.
//!
//! Lines of a `set` are applied one by one as they come, not all or nothing: on an error the earlier ones stay, the
//! later ones up to the blank line are dropped, and the reply carries the error. That is how the protocol is defined
//! and how every other implementation behaves. <https://www.wireguard.com/xplatform/>
//!
//! What is refused is logged with its line number and the reason, because the protocol can only carry a number. Values
//! of secret keys are never part of a reason.

use std::fmt::{self, Write as _};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;
use std::time::Duration;
use std::vec;

use wg_core::{
    ConfigError, DropCounts, Engine, Instant, PeerId, PeerState, Prefix, PresharedKey, PrivateKey, PublicKey,
};
use zeroize::{Zeroize, Zeroizing};

/// What the protocol configures: an engine, and the few settings that belong to the sockets around it.
pub trait Interface {
    /// The engine, to read its state.
    fn engine(&self) -> &Engine;

    /// Changes the engine's configuration, then wakes whoever must act on the change.
    fn configure<R>(&self, change: impl FnOnce(&Engine, Instant) -> R) -> R;

    /// The UDP port, or 0 while none was chosen.
    fn listen_port(&self) -> u16;

    /// Listens on `port` from now on, or once the interface is up; 0 picks a free one.
    fn set_listen_port(&self, port: u16) -> io::Result<()>;

    /// The mark of outgoing datagrams; 0 means none.
    fn fwmark(&self) -> u32;

    /// Marks outgoing datagrams; 0 means not to.
    fn set_fwmark(&self, mark: u32) -> io::Result<()>;

    /// Whether the link is up.
    fn is_up(&self) -> bool;

    /// The index of the link that an IPv6 zone names, if there is such a link.
    fn zone_index(&self, zone: &str) -> Option<u32>;
}

/// One connection's side of the protocol: what arrived but is not a whole line yet, and where in a request we are.
pub struct Conversation {
    input: Input,
    state: State,
    line_number: usize,
}

/// What a [`Conversation`] needs next.
#[must_use]
pub enum Progress {
    /// Everything that arrived is done with; give it more, or tell it that there is no more.
    NeedInput,
    /// Send this, then call [`Conversation::advance`] again.
    Reply(Reply),
    /// Close the connection: no more input can be understood.
    Close,
}

/// The answer to one request, produced piece by piece so that ten thousand peers need not be one string.
pub struct Reply {
    head: Option<Zeroizing<String>>,
    peers: vec::IntoIter<PeerState>,
    print_peer: fn(&PeerState, &mut String),
    errno: i32,
    is_finished: bool,
}

/// Why a request was refused: the number for the client, the reason for the log.
#[derive(Debug)]
pub struct Refusal {
    errno: Errno,
    reason: String,
}

/// The error numbers of the protocol. Clients print the text of the negated number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// `EIO`: a line that is too long.
    Io,
    /// `EPROTO`: a line without `=`.
    Protocol,
    /// `EINVAL`: an unknown key, or a value that cannot be.
    Invalid,
    /// `EADDRINUSE`: the sockets refused the port or the mark.
    AddressInUse,
    /// `ENOMEM`: the interface holds as many peers as it can.
    TooManyPeers,
}

enum State {
    /// Between requests.
    Operation,
    /// After `get=`; a blank line must follow.
    GetEnd(Asked),
    /// Inside a `set`.
    Set(Target),
    /// Inside a `set` that failed; the rest of it is dropped before the reply.
    Failed(Errno),
    /// Inside a request that was answered early; the rest of it is dropped without another reply.
    Answered,
}

/// What a `get` is about.
#[derive(Clone, Copy)]
enum Asked {
    /// `get=1`: settings and state, as the protocol defines them.
    State,
    /// `get=drops`: what was dropped and why. Our own; other implementations close the connection, as we do for
    /// operations that we do not know. It is not part of `get=1` because nothing obliges a client to skip unknown keys.
    Drops,
}

/// Whom the lines of a `set` are about.
#[derive(Clone, Copy)]
enum Target {
    /// Nobody yet: lines before the first `public_key` are about the interface.
    Device,
    /// A configured peer, and whether its `public_key` line has just created it.
    Peer { id: PeerId, origin: Origin },
    /// Our own key, or a peer that is gone or must not be created: lines are checked, then dropped.
    Nobody,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Existing,
    Created,
}

/// One line of a `set`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `private_key`; `None` removes it.
    PrivateKey(Option<PrivateKey>),
    /// `replace_peers=true`.
    ReplacePeers,
    /// A line about the sockets.
    Socket(SocketSetting),
    /// `public_key`: the following lines are about this peer.
    Select(PublicKey),
    /// A line about the selected peer.
    Peer(PeerSetting),
}

/// A line about the interface's sockets, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketSetting {
    /// `listen_port`; 0 picks one.
    ListenPort(u16),
    /// `fwmark`; 0 is off.
    Fwmark(u32),
}

/// A line about one peer, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSetting {
    /// `update_only=true`: do not create the peer.
    UpdateOnly,
    /// `remove=true`.
    Remove,
    /// `preshared_key`; `None` removes it.
    PresharedKey(Option<PresharedKey>),
    /// `endpoint`.
    Endpoint(SocketAddr),
    /// `persistent_keepalive_interval` in seconds; 0 is off.
    PersistentKeepalive(u16),
    /// `replace_allowed_ips=true`.
    ReplaceAllowedIps,
    /// `allowed_ip`.
    AddAllowedIp(Prefix),
    /// `allowed_ip` with a leading minus.
    RemoveAllowedIp(Prefix),
    /// `protocol_version=1`, the only version there is.
    ProtocolVersion,
}

/// Which keys a line may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Before the first `public_key`.
    Device,
    /// After it.
    Peer,
}

impl Conversation {
    /// A connection on which nothing was said yet.
    pub fn new() -> Self {
        Conversation { input: Input::default(), state: State::Operation, line_number: 0 }
    }

    /// Takes bytes of the other side. Follow with [`Conversation::advance`] until it wants more.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.push(bytes);
    }

    /// Tells that the other side will send no more.
    pub fn end_of_input(&mut self) {
        self.input.is_ended = true;
    }

    /// Applies what arrived to `interface` and says what is next.
    pub fn advance(&mut self, interface: &impl Interface) -> Progress {
        loop {
            match self.state {
                State::Operation => match self.input.next_line() {
                    Line::Text(b"get=1") => self.state = State::GetEnd(Asked::State),
                    Line::Text(b"get=drops") => self.state = State::GetEnd(Asked::Drops),
                    Line::Text(b"set=1") => {
                        self.line_number = 0;
                        self.state = State::Set(Target::Device);
                    }
                    Line::Incomplete => return Progress::NeedInput,
                    Line::Ended => return Progress::Close,
                    Line::Text(other) => {
                        tracing::debug!(operation = %printable(other), "unknown operation, closing the connection");
                        return Progress::Close;
                    }
                    Line::TooLong => {
                        tracing::debug!("an operation of more than {MAX_LINE_LEN} bytes, closing the connection");
                        return Progress::Close;
                    }
                },
                State::GetEnd(asked) => match self.input.peek() {
                    Some(b'\n') => {
                        self.input.skip(1);
                        self.state = State::Operation;
                        return Progress::Reply(match asked {
                            Asked::State => Reply::state(interface),
                            Asked::Drops => Reply::drops(interface),
                        });
                    }
                    Some(_) => {
                        self.state = State::Answered;
                        tracing::error!("get must be followed by an empty line");
                        return Progress::Reply(Reply::status(Some(Errno::Invalid)));
                    }
                    None if self.input.is_ended => return Progress::Close,
                    None => return Progress::NeedInput,
                },
                State::Set(target) => match self.apply_lines(target, interface) {
                    Applied::NeedInput(target) => {
                        self.state = State::Set(target);
                        return Progress::NeedInput;
                    }
                    Applied::Finished => {
                        self.state = State::Operation;
                        return Progress::Reply(Reply::status(None));
                    }
                    Applied::Refused(refusal) => {
                        tracing::error!("set refused at line {}: {}", self.line_number, refusal.reason);
                        self.state = State::Failed(refusal.errno);
                    }
                },
                State::Failed(errno) => match self.input.next_line() {
                    Line::Text(b"" | b"\r") | Line::Ended => {
                        self.state = State::Operation;
                        return Progress::Reply(Reply::status(Some(errno)));
                    }
                    Line::Text(_) | Line::TooLong => {}
                    Line::Incomplete => return Progress::NeedInput,
                },
                State::Answered => match self.input.next_line() {
                    Line::Text(b"" | b"\r") => self.state = State::Operation,
                    Line::Text(_) | Line::TooLong => {}
                    Line::Incomplete => return Progress::NeedInput,
                    Line::Ended => return Progress::Close,
                },
            }
        }
    }

    /// Applies lines until the request ends, fails or has no whole line left. Lines about the engine are applied in one
    /// go, so that its workers are woken once per piece of input and not once per line.
    fn apply_lines(&mut self, mut target: Target, interface: &impl Interface) -> Applied {
        let is_up = interface.is_up();
        loop {
            if !self.input.has_line() {
                return Applied::NeedInput(target);
            }
            let stop = interface.configure(|engine, now| {
                let change = Change { engine, now, is_up };
                loop {
                    let line = match self.input.next_line() {
                        Line::Text(line) => without_carriage_return(line),
                        Line::Ended => b"",
                        Line::Incomplete => return Stop::At(Applied::NeedInput(target)),
                        Line::TooLong => {
                            self.line_number += 1;
                            return Stop::At(Applied::Refused(too_long()));
                        }
                    };
                    if line.is_empty() {
                        change.finish(target);
                        return Stop::At(Applied::Finished);
                    }
                    self.line_number += 1;
                    let setting = parse_line(line, target.section(), |zone| interface.zone_index(zone));
                    let next = match setting {
                        Ok(Setting::Socket(setting)) => return Stop::For(setting),
                        Ok(Setting::PrivateKey(key)) => {
                            engine.set_private_key(key, now);
                            Ok(target)
                        }
                        Ok(Setting::ReplacePeers) => {
                            engine.remove_all_peers();
                            Ok(target)
                        }
                        Ok(Setting::Select(key)) => {
                            change.finish(target);
                            change.select(key)
                        }
                        Ok(Setting::Peer(setting)) => Ok(change.apply_to_peer(setting, target)),
                        Err(refusal) => Err(refusal),
                    };
                    match next {
                        Ok(next) => target = next,
                        Err(refusal) => return Stop::At(Applied::Refused(refusal)),
                    }
                }
            });
            let setting = match stop {
                Stop::At(applied) => return applied,
                Stop::For(setting) => setting,
            };
            let result = match setting {
                SocketSetting::ListenPort(port) => interface.set_listen_port(port),
                SocketSetting::Fwmark(mark) => interface.set_fwmark(mark),
            };
            if let Err(error) = result {
                return Applied::Refused(refused_by_sockets(setting, &error));
            }
        }
    }
}

impl Default for Conversation {
    fn default() -> Self {
        Conversation::new()
    }
}

impl Reply {
    /// The answer to `get=1`: everything, as it is now.
    fn state(interface: &impl Interface) -> Self {
        let mut head = Zeroizing::new(String::with_capacity(128));
        if let Some(key) = interface.engine().private_key() {
            write_line(&mut head, "private_key", key.to_hex().as_str());
        }
        let (listen_port, fwmark) = (interface.listen_port(), interface.fwmark());
        if listen_port != 0 {
            write_line(&mut head, "listen_port", listen_port);
        }
        if fwmark != 0 {
            write_line(&mut head, "fwmark", fwmark);
        }
        Reply::of_peers(head, interface, print_peer)
    }

    /// The answer to `get=drops`: the interface's counts, then those of each peer that has any.
    fn drops(interface: &impl Interface) -> Self {
        let mut head = Zeroizing::new(String::new());
        print_drops(&interface.engine().counters().drops, &mut head);
        Reply::of_peers(head, interface, |peer, out| {
            if peer.drops.total() > 0 {
                write_line(out, "public_key", peer.public_key.to_hex());
                print_drops(&peer.drops, out);
            }
        })
    }

    fn of_peers(head: Zeroizing<String>, interface: &impl Interface, print_peer: fn(&PeerState, &mut String)) -> Self {
        let peers = interface.engine().peers().into_iter();
        Reply { head: Some(head), peers, print_peer, errno: 0, is_finished: false }
    }

    /// The answer to a `set`.
    fn status(errno: Option<Errno>) -> Self {
        let errno = errno.map_or(0, Errno::code);
        Reply { head: None, peers: Vec::new().into_iter(), print_peer, errno, is_finished: false }
    }

    /// Appends the next piece to `out` until it holds at least `enough` bytes or all is said. `false` once all is said.
    pub fn next_piece(&mut self, out: &mut String, enough: usize) -> bool {
        if self.is_finished {
            return false;
        }
        if let Some(head) = self.head.take() {
            out.push_str(&head);
        }
        while out.len() < enough {
            match self.peers.next() {
                Some(peer) => (self.print_peer)(&peer, out),
                None => {
                    let _ = write!(out, "errno={}\n\n", self.errno);
                    self.is_finished = true;
                    return true;
                }
            }
        }
        true
    }
}

impl Errno {
    /// The number on the wire: negative, because clients negate it to get the one of the operating system.
    pub const fn code(self) -> i32 {
        match self {
            Errno::Io => -libc::EIO,
            Errno::Protocol => -libc::EPROTO,
            Errno::Invalid => -libc::EINVAL,
            Errno::AddressInUse => -libc::EADDRINUSE,
            Errno::TooManyPeers => -libc::ENOMEM,
        }
    }
}

impl Refusal {
    fn invalid(reason: impl Into<String>) -> Self {
        Refusal { errno: Errno::Invalid, reason: reason.into() }
    }

    /// The number for the client.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.reason)
    }
}

impl std::error::Error for Refusal {}

impl Target {
    fn section(self) -> Section {
        match self {
            Target::Device => Section::Device,
            Target::Peer { .. } | Target::Nobody => Section::Peer,
        }
    }
}

/// Where applying lines stopped.
enum Applied {
    NeedInput(Target),
    Finished,
    Refused(Refusal),
}

/// Why the engine was let go: for good, or for a setting of the sockets, which must not be touched meanwhile.
enum Stop {
    At(Applied),
    For(SocketSetting),
}

/// One visit to the engine.
struct Change<'a> {
    engine: &'a Engine,
    now: Instant,
    is_up: bool,
}

impl Change<'_> {
    /// Finds or creates the peer that a `public_key` line names.
    fn select(&self, key: PublicKey) -> Result<Target, Refusal> {
        if let Some(id) = self.engine.peer(&key) {
            return Ok(Target::Peer { id, origin: Origin::Existing });
        }
        match self.engine.add_peer(key) {
            Ok(id) => Ok(Target::Peer { id, origin: Origin::Created }),
            Err(ConfigError::OwnKey) => Ok(Target::Nobody),
            Err(error @ ConfigError::TooManyPeers { .. }) => {
                Err(Refusal { errno: Errno::TooManyPeers, reason: format!("peer {key}: {error}") })
            }
            Err(error) => Err(Refusal::invalid(format!("peer {key}: {error}"))),
        }
    }

    /// Applies one line to the selected peer and says whom the next line is about.
    fn apply_to_peer(&self, setting: PeerSetting, target: Target) -> Target {
        let Target::Peer { id, origin } = target else { return Target::Nobody };
        let result = match setting {
            PeerSetting::UpdateOnly if origin == Origin::Existing => Ok(()),
            PeerSetting::UpdateOnly | PeerSetting::Remove => {
                self.engine.remove_peer(id);
                return Target::Nobody;
            }
            PeerSetting::PresharedKey(key) => self.engine.set_preshared_key(id, key),
            PeerSetting::Endpoint(endpoint) => self.engine.set_endpoint(id, endpoint, self.now),
            PeerSetting::PersistentKeepalive(seconds) => self.engine.set_persistent_keepalive(id, seconds, self.now),
            PeerSetting::ReplaceAllowedIps => {
                self.engine.clear_allowed_ips(id);
                Ok(())
            }
            PeerSetting::AddAllowedIp(prefix) => self.engine.add_allowed_ip(id, prefix).map(drop),
            PeerSetting::RemoveAllowedIp(prefix) => {
                self.engine.remove_allowed_ip(id, prefix);
                Ok(())
            }
            PeerSetting::ProtocolVersion => Ok(()),
        };
        match result {
            Ok(()) => target,
            // Another connection removed the peer while this request was under way: the rest of it is about nobody.
            Err(_) => Target::Nobody,
        }
    }

    /// What follows the last line about a peer: packets that wait for it may go.
    fn finish(&self, target: Target) {
        if let Target::Peer { id, .. } = target
            && self.is_up
        {
            self.engine.send_staged(id, self.now);
        }
    }
}

/// Reads one line of a `set`. `zone_index` finds the link an IPv6 zone names.
///
/// Accepts exactly what the protocol allows in this `section`; a refusal never quotes a secret.
pub fn parse_line(line: &[u8], section: Section, zone_index: impl Fn(&str) -> Option<u32>) -> Result<Setting, Refusal> {
    let Some(equals) = line.iter().position(|&byte| byte == b'=') else {
        let reason = "a line without `=`; lines are key=value, and a request ends with an empty line".to_owned();
        return Err(Refusal { errno: Errno::Protocol, reason });
    };
    let (key, value) = (&line[..equals], &line[equals + 1..]);
    let Ok(value) = std::str::from_utf8(value) else {
        return Err(Refusal::invalid(format!("{}: the value is not UTF-8", printable(key))));
    };
    match (section, key) {
        (_, b"public_key") => PublicKey::from_hex(value).map(Setting::Select).map_err(|_| bad_key("public_key")),
        (Section::Device, b"private_key") => {
            PrivateKey::from_hex(value).map(Setting::PrivateKey).map_err(|_| bad_key("private_key"))
        }
        (Section::Device, b"listen_port") => match decimal(value) {
            Some(port) => Ok(Setting::Socket(SocketSetting::ListenPort(port))),
            None => Err(bad_value("listen_port", value, "a number from 0 to 65535")),
        },
        (Section::Device, b"fwmark") => match decimal(value) {
            Some(mark) => Ok(Setting::Socket(SocketSetting::Fwmark(mark))),
            None => Err(bad_value("fwmark", value, "a decimal number below 2^32")),
        },
        (Section::Device, b"replace_peers") => match value {
            "true" => Ok(Setting::ReplacePeers),
            _ => Err(bad_value("replace_peers", value, ONLY_TRUE)),
        },
        (Section::Device, key) => Err(Refusal::invalid(format!("unknown interface key `{}`", printable(key)))),
        (Section::Peer, key) => parse_peer_line(key, value, zone_index).map(Setting::Peer),
    }
}

fn parse_peer_line(key: &[u8], value: &str, zone_index: impl Fn(&str) -> Option<u32>) -> Result<PeerSetting, Refusal> {
    match key {
        b"update_only" => match value {
            "true" => Ok(PeerSetting::UpdateOnly),
            _ => Err(bad_value("update_only", value, ONLY_TRUE)),
        },
        b"remove" => match value {
            "true" => Ok(PeerSetting::Remove),
            _ => Err(bad_value("remove", value, ONLY_TRUE)),
        },
        b"preshared_key" => {
            PresharedKey::from_hex(value).map(PeerSetting::PresharedKey).map_err(|_| bad_key("preshared_key"))
        }
        b"endpoint" => parse_endpoint(value, zone_index).map(PeerSetting::Endpoint).ok_or_else(|| {
            bad_value("endpoint", value, "a literal address and port: 192.0.2.1:51820 or [2001:db8::1]:51820")
        }),
        b"persistent_keepalive_interval" => decimal(value)
            .map(PeerSetting::PersistentKeepalive)
            .ok_or_else(|| bad_value("persistent_keepalive_interval", value, "seconds from 0 to 65535")),
        b"replace_allowed_ips" => match value {
            "true" => Ok(PeerSetting::ReplaceAllowedIps),
            _ => Err(bad_value("replace_allowed_ips", value, ONLY_TRUE)),
        },
        b"allowed_ip" => parse_allowed_ip(value)
            .ok_or_else(|| bad_value("allowed_ip", value, "an address with a prefix length: 192.0.2.0/24")),
        b"protocol_version" => match value {
            "1" => Ok(PeerSetting::ProtocolVersion),
            _ => Err(bad_value("protocol_version", value, "1")),
        },
        key => Err(Refusal::invalid(format!(
            "unknown peer key `{}`; keys of the interface come before the first public_key",
            printable(key)
        ))),
    }
}

/// Reads `address/length`; a leading minus takes the prefix away.
fn parse_allowed_ip(value: &str) -> Option<PeerSetting> {
    match value.strip_prefix('-') {
        Some(prefix) => prefix.parse().ok().map(PeerSetting::RemoveAllowedIp),
        None => value.parse().ok().map(PeerSetting::AddAllowedIp),
    }
}

/// Reads `address:port` with a literal address; an IPv6 address stands in brackets and may carry a zone.
fn parse_endpoint(text: &str, zone_index: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some(rest) = text.strip_prefix('[') else {
        let (address, port) = text.rsplit_once(':')?;
        return Some(SocketAddr::new(IpAddr::V4(address.parse().ok()?), decimal(port)?));
    };
    let (address, port) = rest.split_once("]:")?;
    let (address, scope_id) = match address.split_once('%') {
        Some((address, zone)) => (address, decimal(zone).or_else(|| zone_index(zone))?),
        None => (address, 0),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    Some(SocketAddr::V6(SocketAddrV6::new(address, decimal(port)?, 0, scope_id)))
}

/// Digits and nothing else; the standard library's parser would also take a plus sign.
fn decimal<N: FromStr>(text: &str) -> Option<N> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn without_carriage_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn bad_key(key: &str) -> Refusal {
    Refusal::invalid(format!("{key} must be 64 hex digits"))
}

fn bad_value(key: &str, value: &str, expected: &str) -> Refusal {
    Refusal::invalid(format!("{key}={}: expected {expected}", printable(value.as_bytes())))
}

fn too_long() -> Refusal {
    Refusal { errno: Errno::Io, reason: format!("a line of more than {MAX_LINE_LEN} bytes") }
}

fn refused_by_sockets(setting: SocketSetting, error: &io::Error) -> Refusal {
    let what = match setting {
        SocketSetting::ListenPort(port) => format!("listen_port {port}"),
        SocketSetting::Fwmark(mark) => format!("fwmark {mark:#x}"),
    };
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => format!("{what}: another socket of this host has it; choose another port"),
        io::ErrorKind::PermissionDenied => {
            format!("{what}: {error}; marks need CAP_NET_ADMIN, ports below 1024 need CAP_NET_BIND_SERVICE")
        }
        _ => format!("{what}: {error}"),
    };
    Refusal { errno: Errno::AddressInUse, reason }
}

/// A short piece of foreign text, fit for a log line.
fn printable(text: &[u8]) -> String {
    const MOST: usize = 64;
    let shown = String::from_utf8_lossy(&text[..text.len().min(MOST)]).escape_debug().to_string();
    if text.len() > MOST { format!("{shown}...") } else { shown }
}

fn print_peer(peer: &PeerState, out: &mut String) {
    write_line(out, "public_key", peer.public_key.to_hex());
    match &peer.preshared_key {
        Some(key) => write_line(out, "preshared_key", key.to_hex().as_str()),
        None => write_line(out, "preshared_key", NO_KEY),
    }
    write_line(out, "protocol_version", 1);
    if let Some(endpoint) = peer.endpoint {
        // The zone is printed as a number, which every resolver understands; names change.
        write_line(out, "endpoint", endpoint);
    }
    let last_handshake = peer.last_handshake.unwrap_or(Duration::ZERO);
    write_line(out, "last_handshake_time_sec", last_handshake.as_secs());
    write_line(out, "last_handshake_time_nsec", last_handshake.subsec_nanos());
    write_line(out, "tx_bytes", peer.tx_bytes);
    write_line(out, "rx_bytes", peer.rx_bytes);
    write_line(out, "persistent_keepalive_interval", peer.persistent_keepalive);
    for prefix in &peer.allowed_ips {
        write_line(out, "allowed_ip", prefix);
    }
}

fn print_drops(drops: &DropCounts, out: &mut String) {
    for (reason, count) in drops.iter() {
        write_line(out, &format!("drop_{reason}"), count);
    }
}

fn write_line(out: &mut String, key: &str, value: impl fmt::Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{key}={value}");
}

/// What arrived and is not consumed yet. Consumed bytes may be secrets and are overwritten.
#[derive(Default)]
struct Input {
    bytes: Zeroizing<Vec<u8>>,
    start: usize,
    /// Where the search for the next line's end goes on, so that a long line in small pieces costs linear time.
    searched: usize,
    /// Inside a line that is too long; the rest of it is dropped.
    is_skipping: bool,
    is_ended: bool,
}

enum Line<'a> {
    /// A line without its end.
    Text(&'a [u8]),
    /// A line over the limit begins here; it is dropped as it comes.
    TooLong,
    Incomplete,
    Ended,
}

impl Input {
    fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            let left = self.bytes.len() - self.start;
            self.bytes.copy_within(self.start.., 0);
            self.bytes[left..].zeroize();
            self.bytes.truncate(left);
            self.searched -= self.start;
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.start).copied()
    }

    fn skip(&mut self, count: usize) {
        self.start += count;
        self.searched = self.searched.max(self.start);
    }

    /// Whether [`Input::next_line`] has something other than `Incomplete` to say.
    fn has_line(&mut self) -> bool {
        self.is_ended || self.find_end().is_some() || self.bytes.len() - self.start > MAX_LINE_LEN
    }

    fn find_end(&mut self) -> Option<usize> {
        let found = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n');
        match found {
            Some(offset) => {
                self.searched += offset;
                Some(self.searched)
            }
            None => {
                self.searched = self.bytes.len();
                None
            }
        }
    }

    fn next_line(&mut self) -> Line<'_> {
        loop {
            let Some(end) = self.find_end() else { return self.unterminated() };
            let begin = self.start;
            self.skip(end + 1 - begin);
            if self.is_skipping {
                self.is_skipping = false;
                continue;
            }
            if end - begin > MAX_LINE_LEN {
                return Line::TooLong;
            }
            return Line::Text(&self.bytes[begin..end]);
        }
    }

    /// What to make of bytes that no line end follows.
    fn unterminated(&mut self) -> Line<'_> {
        let begin = self.start;
        let len = self.bytes.len() - begin;
        if self.is_skipping || len > MAX_LINE_LEN {
            let is_new = !self.is_skipping;
            self.skip(len);
            self.is_skipping = !self.is_ended;
            return match (is_new, self.is_ended) {
                (true, _) => Line::TooLong,
                (false, true) => Line::Ended,
                (false, false) => Line::Incomplete,
            };
        }
        if !self.is_ended {
            return Line::Incomplete;
        }
        if len == 0 {
            return Line::Ended;
        }
        self.skip(len);
        Line::Text(&self.bytes[begin..])
    }
}

/// Longest line taken. No line of the protocol comes near; 64 KiB is what other implementations take.
const MAX_LINE_LEN: usize = 64 * 1024;

/// Flags of the protocol have no other value.
const ONLY_TRUE: &str = "true, or no such line";

/// How "no key" is printed.
const NO_KEY: &str = "0000000000000000000000000000000000000000000000000000000000000000";
