//! Changes of an engine's settings: its key, its peers and theirs. Nothing is sent here; what a change makes necessary
//! (a handshake, a keepalive) is queued for the handshake thread, so the driver wakes it after each change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Engine, Slot, Wish};
use crate::config::MAX_PEERS;
use crate::error::{ConfigError, DropReason};
use crate::handshake_load::mix;
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::peer::{Hot, Peer};
use crate::peer_id::PeerId;
use crate::prefix::Prefix;
use crate::time::Instant;
use crate::tunnel::Identity;

/// A wall clock that runs ahead of what it showed by more than this was set, not adjusted.
const CLOCK_STEP: Duration = Duration::from_secs(1);

impl Engine {
    /// Tells the engine that it is `unix` since the Unix epoch at `now`.
    ///
    /// Call it at the start and about once a second. When the clock was set forward, the next handshakes carry new
    /// timestamps; when it was set back they go on from the old ones for as long as a peer's keys live, because peers
    /// refuse smaller ones. \[W\] 5.1.
    pub fn set_wall_clock(&self, unix: Duration, now: Instant) {
        let epoch = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX).wrapping_sub(now.as_nanos());
        let known = self.unix_epoch.swap(epoch, Ordering::Relaxed);
        let ahead = epoch.wrapping_sub(known) as i64;
        if known != 0 && ahead > CLOCK_STEP.as_nanos() as i64 {
            self.clock_epoch.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sets or removes the private key. All sessions end; peers that need one begin a new handshake.
    ///
    /// A peer with our own public key is removed.
    pub fn set_private_key(&self, key: Option<PrivateKey>, now: Instant) {
        if self.private_key() == key {
            return;
        }
        let identity = key.map(|key| Arc::new(Identity::new(key, self.address_key())));
        let own = identity.as_ref().map(|identity| identity.public_key());
        *self.identity.write() = identity;
        self.load.lock().clear();
        if let Some(own) = own.and_then(|own| self.peer(&own)) {
            self.remove_peer(own);
        }
        let has_key = own.is_some();
        self.for_each_peer(|peer, hot| {
            hot.end_sessions();
            if has_key && (hot.staged_len() > 0 || hot.persistent_keepalive > 0) {
                self.want(peer, hot, Wish::Handshake, now);
            }
        });
    }

    /// Sets the MTU of the TUN device in bytes; padding does not go beyond it.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// The interface is up: packets pass, and peers with a persistent keepalive get one.
    pub fn bring_up(&self, now: Instant) {
        if self.is_up.swap(true, Ordering::Relaxed) {
            return;
        }
        self.for_each_peer(|peer, hot| {
            if hot.persistent_keepalive > 0 || hot.staged_len() > 0 {
                self.want(peer, hot, Wish::Keepalive, now);
            }
        });
    }

    /// The interface is down: sessions end, staged packets are dropped, nothing is sent any more.
    pub fn bring_down(&self, _now: Instant) {
        if !self.is_up.swap(false, Ordering::Relaxed) {
            return;
        }
        self.load.lock().clear();
        self.for_each_peer(|_, hot| {
            hot.end_sessions();
            self.drop_staged(hot);
        });
    }

    /// Adds the peer with this key, without endpoint, keys or prefixes. If it is there already, returns its id.
    pub fn add_peer(&self, key: PublicKey) -> Result<PeerId, ConfigError> {
        if self.public_key() == Some(key) {
            return Err(ConfigError::OwnKey);
        }
        let mut tables = self.tables.write();
        if let Some(peer) = tables.by_key(&key) {
            return Ok(peer.id);
        }
        let slot = match tables.free_slots.pop() {
            Some(slot) => slot,
            None if tables.slots.len() >= MAX_PEERS => return Err(ConfigError::TooManyPeers { limit: MAX_PEERS }),
            None => {
                tables.slots.push(Slot::default());
                (tables.slots.len() - 1) as u32
            }
        };
        let order = tables.next_order;
        tables.next_order += 1;
        tables.by_key.insert(key, slot);
        let place = &mut tables.slots[slot as usize];
        let id = PeerId::new(slot, place.generation);
        place.peer = Some(Arc::new(Peer::new(id, key, order, place.receiver_generation)));
        Ok(id)
    }

    /// The peer with this key.
    pub fn peer(&self, key: &PublicKey) -> Option<PeerId> {
        self.tables.read().by_key(key).map(|peer| peer.id)
    }

    /// Removes the peer, its prefixes, sessions and staged packets. Returns whether there was one.
    ///
    /// Once this returns, nothing is received from the peer or sealed for it any more.
    pub fn remove_peer(&self, id: PeerId) -> bool {
        let mut tables = self.tables.write();
        let Some(peer) = tables.peer(id).cloned() else { return false };
        tables.allowed_ips.remove_owner(id);
        tables.by_key.remove(&peer.key);
        tables.free_slots.push(id.slot());
        let mut hot = peer.hot.lock();
        let place = &mut tables.slots[id.slot() as usize];
        place.peer = None;
        place.generation = place.generation.wrapping_add(1);
        place.receiver_generation = hot.generation;
        drop(tables);
        hot.removed = true;
        hot.end_sessions();
        self.drop_staged(&mut hot);
        if let Some(node) = hot.wheel.take() {
            self.wheel.lock().disarm(node);
        }
        true
    }

    /// Removes all peers.
    pub fn remove_all_peers(&self) {
        let ids: Vec<_> = self.tables.read().slots.iter().filter_map(|slot| Some(slot.peer.as_ref()?.id)).collect();
        for id in ids {
            self.remove_peer(id);
        }
    }

    /// Sets or removes the pre-shared key. The session stays; the next handshake uses the new key, as in Linux.
    pub fn set_preshared_key(&self, id: PeerId, key: Option<PresharedKey>) -> Result<(), ConfigError> {
        self.with_peer(id, |_, hot| {
            if hot.psk.as_deref() != key.as_ref() {
                hot.psk = key.map(Box::new);
                if let Some(live) = &mut hot.live {
                    live.tunnel.retire();
                }
            }
        })
    }

    /// Sets where the peer is. Its sessions stay; our source address is chosen anew.
    pub fn set_endpoint(&self, id: PeerId, remote: SocketAddr, now: Instant) -> Result<(), ConfigError> {
        self.with_peer(id, |peer, hot| {
            let was_unknown = hot.remote.replace(remote).is_none();
            hot.forget_source();
            if was_unknown && hot.persistent_keepalive > 0 {
                self.want(peer, hot, Wish::Keepalive, now);
            }
        })
    }

    /// Sets the interval of the persistent keepalive in seconds; 0 turns it off. Turned on, one is sent at once.
    pub fn set_persistent_keepalive(&self, id: PeerId, seconds: u16, now: Instant) -> Result<(), ConfigError> {
        self.with_peer(id, |peer, hot| {
            let was_off = hot.persistent_keepalive == 0;
            hot.persistent_keepalive = seconds;
            if was_off && seconds > 0 {
                self.want(peer, hot, Wish::Keepalive, now);
            }
        })
    }

    /// Gives the prefix to the peer. Returns its previous owner, who loses it.
    pub fn add_allowed_ip(&self, id: PeerId, prefix: Prefix) -> Result<Option<PeerId>, ConfigError> {
        let mut tables = self.tables.write();
        tables.peer(id).ok_or(ConfigError::NoSuchPeer)?;
        Ok(tables.allowed_ips.insert(prefix, id))
    }

    /// Takes the prefix away from the peer, if it owns exactly this one. Returns whether it did.
    pub fn remove_allowed_ip(&self, id: PeerId, prefix: Prefix) -> bool {
        self.tables.write().allowed_ips.remove(prefix, id)
    }

    /// Takes all prefixes away from the peer.
    pub fn clear_allowed_ips(&self, id: PeerId) {
        self.tables.write().allowed_ips.remove_owner(id);
    }

    /// Begins a handshake if packets are staged for the peer. Call it after its settings have changed.
    pub fn send_staged(&self, id: PeerId, now: Instant) {
        let _ = self.with_peer(id, |peer, hot| {
            if hot.staged_len() > 0 {
                self.want(peer, hot, Wish::Keepalive, now);
            }
        });
    }

    /// Forgets our source address towards every peer: after a new port or mark, or a change of routes.
    pub fn forget_sources(&self) {
        self.for_each_peer(|_, hot| hot.forget_source());
    }

    /// Forgets our source address towards these endpoints, because it does not lead there any more.
    ///
    /// Cost: one pass over all peers, however many endpoints there are.
    pub fn forget_sources_of(&self, remotes: &[SocketAddr]) {
        self.for_each_peer(|_, hot| {
            if hot.remote.is_some_and(|remote| remotes.contains(&remote)) {
                hot.forget_source();
            }
        });
    }

    pub(super) fn drop_staged(&self, hot: &mut Hot) {
        let count = hot.take_staged().map_or(0, |staged| staged.len());
        if count > 0 {
            self.drop_for(hot, DropReason::StagedExpired, count as u64);
        }
    }

    fn with_peer(&self, id: PeerId, change: impl FnOnce(&Peer, &mut Hot)) -> Result<(), ConfigError> {
        let tables = self.tables.read();
        let peer = tables.peer(id).ok_or(ConfigError::NoSuchPeer)?;
        change(peer, &mut peer.hot.lock());
        Ok(())
    }

    fn for_each_peer(&self, mut change: impl FnMut(&Peer, &mut Hot)) {
        let peers: Vec<_> = self.tables.read().slots.iter().filter_map(|slot| slot.peer.clone()).collect();
        for peer in peers {
            change(&peer, &mut peer.hot.lock());
        }
    }

    fn address_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        for (chunk, word) in key.chunks_exact_mut(8).zip(self.seed) {
            chunk.copy_from_slice(&mix(word ^ 0x636f_6f6b_6965).to_le_bytes());
        }
        key
    }
}
