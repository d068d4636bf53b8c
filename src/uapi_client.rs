//! Owns the client's side of the configuration protocol: asks a running daemon for its state. Works with any
//! implementation's socket; prints nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wg_core::{PresharedKey, PrivateKey, PublicKey};
use wg_router::InstanceName;
use zeroize::Zeroizing;

use crate::control_socket::path_of;

/// What a daemon says of its interface.
#[derive(Debug, Default)]
pub struct InterfaceState {
    /// Its private key.
    pub private_key: Option<PrivateKey>,
    /// The public key that belongs to it, or that the daemon says belongs to it.
    pub public_key: Option<PublicKey>,
    /// Its UDP port; 0 if none.
    pub listen_port: u16,
    /// The mark of its datagrams; 0 if none.
    pub fwmark: u32,
    /// Its peers, in the daemon's order.
    pub peers: Vec<PeerState>,
    /// What it dropped, by reason, if the daemon tells: wgd does.
    pub drops: Option<BTreeMap<String, u64>>,
    /// boringtun-cli tells how long ago a handshake was, everybody else when it was.
    tells_ages: bool,
}

/// What a daemon says of a peer.
#[derive(Debug)]
pub struct PeerState {
    /// Its public key.
    pub public_key: PublicKey,
    /// The preshared key, if there is one.
    pub preshared_key: Option<PresharedKey>,
    /// Where it is, as text.
    pub endpoint: Option<String>,
    /// When the last handshake was completed, since the Unix epoch.
    pub last_handshake: Option<Duration>,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Seconds between persistent keepalives; 0 if off.
    pub persistent_keepalive: u16,
    /// Its prefixes, as text.
    pub allowed_ips: Vec<String>,
    /// What was dropped on its account, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// Why nothing is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No socket, or a dead one.
    #[error(
        "no userspace WireGuard answers for interface {name} ({path}: {source}); is it running? `wg show` also knows the kernel's"
    )]
    Connect {
        /// The interface.
        name: InstanceName,
        /// Its socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It listens, but does not answer like a WireGuard.
    #[error("the daemon behind {path} does not answer as it should: {source}")]
    Talk {
        /// Its socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The directory of sockets cannot be read.
    #[error("cannot list {0}: {1}")]
    List(PathBuf, io::Error),
}

/// The names of all interfaces in `directory` behind whose socket somebody answers, sorted.
pub fn list(directory: &Path) -> Result<Vec<InstanceName>, ClientError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ClientError::List(directory.to_owned(), error)),
    };
    let mut names: Vec<InstanceName> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .filter(|entry| UnixStream::connect(entry.path()).is_ok())
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".sock")?.parse().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Asks the daemon behind the socket of `name` in `directory` for everything it will tell.
pub fn fetch(directory: &Path, name: &InstanceName, now: Duration) -> Result<InterfaceState, ClientError> {
    let path = path_of(directory, name);
    let mut stream = UnixStream::connect(&path).map_err(|source| ClientError::Connect {
        name: name.clone(),
        path: path.clone(),
        source,
    })?;
    ask(&mut stream, now).map_err(|source| ClientError::Talk { path, source })
}

fn ask(stream: &mut UnixStream, now: Duration) -> io::Result<InterfaceState> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(b"get=1\n\n")?;
    let mut state = read_state(BufReader::new(&mut *stream), now)?;
    // A second request, because other implementations close the connection on it.
    let drops = stream.write_all(b"get=drops\n\n").and_then(|()| read_state(BufReader::new(stream), now));
    if let Ok(told) = drops {
        state.drops = Some(told.drops.unwrap_or_default());
        let mut of_peers: BTreeMap<PublicKey, BTreeMap<String, u64>> =
            told.peers.into_iter().map(|peer| (peer.public_key, peer.drops)).collect();
        for peer in &mut state.peers {
            peer.drops = of_peers.remove(&peer.public_key).unwrap_or_default();
        }
    }
    Ok(state)
}

/// Reads a reply up to its error number.
fn read_state(mut reply: impl BufRead, now: Duration) -> io::Result<InterfaceState> {
    let mut state = InterfaceState::default();
    let mut line = Zeroizing::new(String::new());
    loop {
        line.clear();
        if reply.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        let text = line.trim_end_matches('\n');
        if text.is_empty() {
            continue;
        }
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "a line that is not understood");
        let (key, value) = text.split_once('=').ok_or_else(bad)?;
        if key == "errno" {
            return match value {
                "0" => Ok(state.finish(now)),
                other => Err(io::Error::other(format!("it reports error number {other}"))),
            };
        }
        state.take(key, value).ok_or_else(bad)?;
    }
}

impl InterfaceState {
    /// Takes one line; keys that are not known are skipped, a value that cannot be is `None`.
    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        if key == "public_key" {
            self.peers.push(PeerState::new(PublicKey::from_hex(value).ok()?));
            return Some(());
        }
        if let Some(peer) = self.peers.last_mut() {
            return peer.take(key, value);
        }
        match key {
            "private_key" => {
                self.private_key = PrivateKey::from_hex(value).ok()?;
                self.public_key = self.private_key.as_ref().map(PrivateKey::public_key);
            }
            "own_public_key" => {
                self.public_key = Some(PublicKey::from_hex(value).ok()?);
                self.tells_ages = true;
            }
            "listen_port" => self.listen_port = value.parse().ok()?,
            "fwmark" => self.fwmark = value.parse().ok()?,
            _ if key.starts_with(DROP) => count_drop(key, value, self.drops.get_or_insert_default())?,
            _ => {}
        }
        Some(())
    }

    fn finish(mut self, now: Duration) -> Self {
        for peer in &mut self.peers {
            let told = peer.last_handshake.filter(|told| !told.is_zero());
            peer.last_handshake = if self.tells_ages { told.map(|age| now.saturating_sub(age)) } else { told };
        }
        self
    }
}

impl PeerState {
    fn new(public_key: PublicKey) -> Self {
        PeerState {
            public_key,
            preshared_key: None,
            endpoint: None,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
            drops: BTreeMap::new(),
        }
    }

    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "preshared_key" => self.preshared_key = PresharedKey::from_hex(value).ok()?,
            "endpoint" => self.endpoint = Some(value.to_owned()),
            "last_handshake_time_sec" => self.add_to_handshake(Duration::from_secs(value.parse().ok()?)),
            "last_handshake_time_nsec" => self.add_to_handshake(Duration::from_nanos(value.parse().ok()?)),
            "tx_bytes" => self.tx_bytes = value.parse().ok()?,
            "rx_bytes" => self.rx_bytes = value.parse().ok()?,
            "persistent_keepalive_interval" => self.persistent_keepalive = value.parse().ok()?,
            "allowed_ip" => self.allowed_ips.push(value.to_owned()),
            _ if key.starts_with(DROP) => count_drop(key, value, &mut self.drops)?,
            _ => {}
        }
        Some(())
    }

    fn add_to_handshake(&mut self, part: Duration) {
        self.last_handshake = Some(self.last_handshake.unwrap_or_default().saturating_add(part));
    }
}

fn count_drop(key: &str, value: &str, drops: &mut BTreeMap<String, u64>) -> Option<()> {
    drops.insert(key.strip_prefix(DROP)?.to_owned(), value.parse().ok()?);
    Some(())
}

/// What the keys begin with that count drops by reason.
const DROP: &str = "drop_";

/// How long a daemon may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn a_complete_reply_is_understood_and_unknown_keys_are_skipped() {
        let key = "11".repeat(32);
        let reply = format!(
            "private_key={key}\nlisten_port=51820\nfwmark=7\nnew_thing=1\npublic_key={key}\npreshared_key={zeros}\n\
             protocol_version=1\nendpoint=[fe80::1%3]:9\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\n\
             tx_bytes=7\nrx_bytes=8\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=::/0\n\
             rtt=3\nerrno=0\n\n",
            zeros = "0".repeat(64)
        );
        let state = read_state(reply.as_bytes(), NOW).expect("valid");
        assert_eq!((state.listen_port, state.fwmark), (51820, 7));
        assert_eq!(state.public_key, state.private_key.as_ref().map(PrivateKey::public_key));
        let peer = &state.peers[0];
        assert!(peer.preshared_key.is_none());
        assert_eq!(peer.endpoint.as_deref(), Some("[fe80::1%3]:9"));
        assert_eq!(peer.last_handshake, Some(Duration::new(5, 6)));
        assert_eq!((peer.tx_bytes, peer.rx_bytes, peer.persistent_keepalive), (7, 8, 25));
        assert_eq!(peer.allowed_ips, ["10.0.0.0/8", "::/0"]);
    }

    #[test]
    fn zero_means_no_handshake_yet_and_ages_of_boringtun_become_times() {
        let key = "22".repeat(32);
        let peer = format!("public_key={key}\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\nerrno=0\n\n");
        assert_eq!(read_state(peer.as_bytes(), NOW).expect("valid").peers[0].last_handshake, None);
        let aged = format!("own_public_key={key}\npublic_key={key}\nlast_handshake_time_sec=60\nerrno=0\n\n");
        let state = read_state(aged.as_bytes(), NOW).expect("valid");
        assert_eq!(state.peers[0].last_handshake, Some(NOW - Duration::from_secs(60)));
        assert!(state.private_key.is_none() && state.public_key.is_some());
    }

    #[test]
    fn a_reply_that_is_cut_off_or_reports_an_error_is_an_error() {
        for reply in ["", "listen_port=1\n", "errno=5\n\n", "nonsense\n", "listen_port=x\n", "public_key=zz\n"] {
            assert!(read_state(reply.as_bytes(), NOW).is_err(), "{reply:?}");
        }
    }
}
