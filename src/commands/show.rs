//! `wgd show`: prints what userspace daemons say of their interfaces, like `wg show` for people, or as JSON.

use std::collections::BTreeMap;
use std::env;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use serde::Serialize;
use wg_router::{InstanceName, InstanceNameError};

use crate::cli::ShowArgs;
use crate::control_socket::DIRECTORY;
use crate::uapi_client::{self, ClientError, InterfaceState, PeerState};

/// Runs the command.
pub fn run(args: &ShowArgs) -> ExitCode {
    super::finish(show(args))
}

#[derive(Debug, thiserror::Error)]
enum ShowError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Name(#[from] InstanceNameError),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

fn show(args: &ShowArgs) -> Result<(), ShowError> {
    let directory = Path::new(DIRECTORY);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let names = match args.what.as_deref() {
        None | Some("all" | "interfaces") => uapi_client::list(directory)?,
        Some(name) => vec![name.parse()?],
    };
    if args.what.as_deref() == Some("interfaces") {
        return Ok(super::print(list_names(&names, args.json).as_bytes())?);
    }
    let mut states = Vec::with_capacity(names.len());
    for name in names {
        let mut state = uapi_client::fetch(directory, &name, now)?;
        for endpoint in state.peers.iter_mut().filter_map(|peer| peer.endpoint.as_mut()) {
            name_zone(endpoint, link_name);
        }
        states.push((name, state));
    }
    let secrets = if env::var_os("WG_HIDE_KEYS").is_some_and(|value| value == "never") {
        Secrets::Shown
    } else {
        Secrets::Hidden
    };
    let text = if args.json {
        let all: BTreeMap<&str, InterfaceJson> =
            states.iter().map(|(name, state)| (name.as_str(), InterfaceJson::new(state, secrets))).collect();
        to_json(&all)
    } else {
        let style = if is_colourful() { Style::COLOURS } else { Style::PLAIN };
        let blocks: Vec<String> =
            states.iter().map(|(name, state)| describe(name, state, now, style, secrets)).collect();
        blocks.join("\n")
    };
    Ok(super::print(text.as_bytes())?)
}

/// Replaces the number of an endpoint's IPv6 zone by the name of that link, as `wg` does. A number without a link stays.
fn name_zone(endpoint: &mut String, link_name: impl Fn(u32) -> Option<String>) {
    let named = endpoint.split_once('%').and_then(|(address, rest)| {
        let (zone, port) = rest.split_once("]:")?;
        Some(format!("{address}%{}]:{port}", link_name(zone.parse().ok()?)?))
    });
    if let Some(named) = named {
        *endpoint = named;
    }
}

/// The name of the link with that index in our network namespace.
fn link_name(index: u32) -> Option<String> {
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(any, index).ok()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrets {
    Hidden,
    Shown,
}

fn list_names(names: &[InstanceName], as_json: bool) -> String {
    let names: Vec<&str> = names.iter().map(InstanceName::as_str).collect();
    if as_json {
        to_json(&names)
    } else if names.is_empty() {
        String::new()
    } else {
        format!("{}\n", names.join(" "))
    }
}

fn to_json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("maps with string keys always have a JSON form");
    text.push('\n');
    text
}

/// Colours on a terminal, unless somebody decided otherwise: the variables are those of `wg` and of no-color.org.
fn is_colourful() -> bool {
    match env::var_os("WG_COLOR_MODE") {
        Some(mode) if mode == "always" => true,
        Some(mode) if mode == "never" => false,
        _ => io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    }
}

/// Escape sequences around words, or nothing.
#[derive(Clone, Copy)]
struct Style {
    interface: &'static str,
    peer: &'static str,
    label: &'static str,
    dim: &'static str,
    end: &'static str,
}

impl Style {
    const PLAIN: Style = Style { interface: "", peer: "", label: "", dim: "", end: "" };
    const COLOURS: Style = Style {
        interface: "\x1b[32m\x1b[1m",
        peer: "\x1b[33m\x1b[1m",
        label: "\x1b[1m",
        dim: "\x1b[36m",
        end: "\x1b[0m",
    };
}

/// One interface and its peers, those last heard of first.
fn describe(name: &InstanceName, state: &InterfaceState, now: Duration, style: Style, secrets: Secrets) -> String {
    let Style { interface, end, .. } = style;
    let mut text = format!("{interface}interface{end}: {interface}{name}{end}\n");
    if let Some(key) = &state.public_key {
        field(&mut text, style, "public key", key);
    }
    if let Some(key) = &state.private_key {
        field(&mut text, style, "private key", secret(&key.to_base64(), secrets));
    }
    if state.listen_port != 0 {
        field(&mut text, style, "listening port", state.listen_port);
    }
    if state.fwmark != 0 {
        field(&mut text, style, "fwmark", format_args!("{:#x}", state.fwmark));
    }
    let mut peers: Vec<&PeerState> = state.peers.iter().collect();
    peers.sort_by_key(|peer| std::cmp::Reverse(peer.last_handshake));
    for peer in peers {
        text.push('\n');
        describe_peer(&mut text, peer, now, style, secrets);
    }
    text
}

fn describe_peer(text: &mut String, peer: &PeerState, now: Duration, style: Style, secrets: Secrets) {
    let Style { peer: colour, end, .. } = style;
    // Writing to a string cannot fail; the same below.
    let _ = writeln!(text, "{colour}peer{end}: {colour}{}{end}", peer.public_key);
    if let Some(key) = &peer.preshared_key {
        field(text, style, "preshared key", secret(&key.to_base64(), secrets));
    }
    if let Some(endpoint) = &peer.endpoint {
        field(text, style, "endpoint", endpoint);
    }
    let allowed_ips = if peer.allowed_ips.is_empty() { "(none)".to_owned() } else { peer.allowed_ips.join(", ") };
    field(text, style, "allowed ips", allowed_ips);
    if let Some(last) = peer.last_handshake {
        field(text, style, "latest handshake", ago(last, now, style));
    }
    if peer.rx_bytes > 0 || peer.tx_bytes > 0 {
        let (received, sent) = (size(peer.rx_bytes, style), size(peer.tx_bytes, style));
        field(text, style, "transfer", format_args!("{received} received, {sent} sent"));
    }
    if peer.persistent_keepalive > 0 {
        let every = Duration::from_secs(peer.persistent_keepalive.into());
        field(text, style, "persistent keepalive", format_args!("every {}", length(every, style)));
    }
}

fn field(text: &mut String, style: Style, label: &str, value: impl fmt::Display) {
    let _ = writeln!(text, "  {}{label}{}: {value}", style.label, style.end);
}

fn secret(key: &str, secrets: Secrets) -> &str {
    match secrets {
        Secrets::Shown => key,
        Secrets::Hidden => "(hidden)",
    }
}

fn ago(then: Duration, now: Duration, style: Style) -> String {
    match now.as_secs().checked_sub(then.as_secs()) {
        None => "in the future; was the clock set back?".to_owned(),
        Some(0) => "now".to_owned(),
        Some(seconds) => format!("{} ago", length(Duration::from_secs(seconds), style)),
    }
}

/// `1 day, 2 hours, 1 second`.
fn length(length: Duration, style: Style) -> String {
    let mut left = length.as_secs();
    let mut parts = Vec::new();
    for (unit, seconds) in [("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)] {
        let count = left / seconds;
        left %= seconds;
        if count > 0 {
            let plural = if count == 1 { "" } else { "s" };
            parts.push(format!("{count} {}{unit}{plural}{}", style.dim, style.end));
        }
    }
    parts.join(", ")
}

/// `1.50 KiB`; bytes have no fraction.
fn size(bytes: u64, style: Style) -> String {
    let Style { dim, end, .. } = style;
    let mut unit = 0;
    let mut amount = bytes as f64;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} {dim}B{end}") } else { format!("{amount:.2} {dim}{}{end}", UNITS[unit]) }
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// The form that `wg-json` gave to this, which scripts know.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fwmark: Option<u32>,
    peers: BTreeMap<String, PeerJson<'a>>,
    /// Packets, datagrams and handshakes that went no further, by reason. Other daemons do not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    drops: Option<&'a BTreeMap<String, u64>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    preshared_key: Option<String>,
    has_preshared_key: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
    /// Seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    latest_handshake: Option<u64>,
    transfer_rx: u64,
    transfer_tx: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    persistent_keepalive: Option<u16>,
    allowed_ips: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    drops: &'a BTreeMap<String, u64>,
}

impl<'a> InterfaceJson<'a> {
    fn new(state: &'a InterfaceState, secrets: Secrets) -> Self {
        let peers =
            state.peers.iter().map(|peer| (peer.public_key.to_string(), PeerJson::new(peer, secrets))).collect();
        InterfaceJson {
            private_key: state
                .private_key
                .as_ref()
                .filter(|_| secrets == Secrets::Shown)
                .map(|key| key.to_base64().to_string()),
            public_key: state.public_key.map(|key| key.to_string()),
            listen_port: Some(state.listen_port).filter(|&port| port != 0),
            fwmark: Some(state.fwmark).filter(|&mark| mark != 0),
            peers,
            drops: state.drops.as_ref(),
        }
    }
}

impl<'a> PeerJson<'a> {
    fn new(peer: &'a PeerState, secrets: Secrets) -> Self {
        PeerJson {
            preshared_key: peer
                .preshared_key
                .as_ref()
                .filter(|_| secrets == Secrets::Shown)
                .map(|key| key.to_base64().to_string()),
            has_preshared_key: peer.preshared_key.is_some(),
            endpoint: peer.endpoint.as_deref(),
            latest_handshake: peer.last_handshake.map(|last| last.as_secs()),
            transfer_rx: peer.rx_bytes,
            transfer_tx: peer.tx_bytes,
            persistent_keepalive: Some(peer.persistent_keepalive).filter(|&seconds| seconds != 0),
            allowed_ips: &peer.allowed_ips,
            drops: &peer.drops,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_sizes_read_like_those_of_wg() {
        let plain = |seconds| length(Duration::from_secs(seconds), Style::PLAIN);
        assert_eq!(plain(1), "1 second");
        assert_eq!(plain(63), "1 minute, 3 seconds");
        assert_eq!(plain(90_061), "1 day, 1 hour, 1 minute, 1 second");
        assert_eq!(size(0, Style::PLAIN), "0 B");
        assert_eq!(size(1023, Style::PLAIN), "1023 B");
        assert_eq!(size(1536, Style::PLAIN), "1.50 KiB");
        assert_eq!(size(3 << 30, Style::PLAIN), "3.00 GiB");
    }

    #[test]
    fn a_zone_gets_the_name_of_its_link_if_there_is_one() {
        let named = |text: &str| {
            let mut endpoint = text.to_owned();
            name_zone(&mut endpoint, |index| (index == 3).then(|| "eth0".to_owned()));
            endpoint
        };
        assert_eq!(named("[fe80::1%3]:51820"), "[fe80::1%eth0]:51820");
        for text in ["[fe80::1%4]:51820", "[fe80::1%eth1]:51820", "[fe80::1]:51820", "192.0.2.1:51820", "%3", ""] {
            assert_eq!(named(text), text);
        }
    }

    #[test]
    fn a_handshake_in_the_future_is_said_to_be_one() {
        let at = Duration::from_secs;
        assert_eq!(ago(at(10), at(70), Style::PLAIN), "1 minute ago");
        assert_eq!(ago(at(10), at(10), Style::PLAIN), "now");
        assert!(ago(at(11), at(10), Style::PLAIN).contains("future"));
    }
}
