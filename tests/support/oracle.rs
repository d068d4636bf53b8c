//! Slow, obvious models: a WireGuard peer written from the paper, which shares no code with the crates.
//!
//! The model does what no honest implementation does: it chooses ephemeral keys, timestamps, indices, counters and
//! plaintexts freely, so that everything an engine must refuse can be put to it with valid cryptography around it.
//!
//! [W] 5.4: messages and key derivation. The names are the paper's.

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305, XNonce};
use wg_core::{PrivateKey, PublicKey};
use x25519_dalek::StaticSecret;

use super::link::Random;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// A private key, or a public key whose every shared secret is zero.
#[derive(Clone)]
pub enum Secret {
    Honest([u8; 32]),
    LowOrder([u8; 32]),
}

impl Secret {
    pub fn of(key: &PrivateKey) -> Self {
        Secret::Honest(*key.as_bytes())
    }

    pub fn public(&self) -> [u8; 32] {
        match self {
            Secret::Honest(bytes) => x25519_dalek::PublicKey::from(&StaticSecret::from(*bytes)).to_bytes(),
            Secret::LowOrder(public) => *public,
        }
    }

    fn dh(&self, public: &[u8; 32]) -> [u8; 32] {
        match self {
            Secret::Honest(bytes) => {
                StaticSecret::from(*bytes).diffie_hellman(&x25519_dalek::PublicKey::from(*public)).to_bytes()
            }
            Secret::LowOrder(_) => [0; 32],
        }
    }
}

/// A peer of the engine under test.
#[derive(Clone)]
pub struct Model {
    pub secret: Secret,
    /// The engine's public key.
    pub theirs: [u8; 32],
    pub psk: [u8; 32],
}

/// What an initiation is made of.
pub struct InitiationParts {
    pub ephemeral: Secret,
    pub timestamp: [u8; 12],
    pub sender_index: u32,
    pub cookie: Option<[u8; 16]>,
    /// Whose public key to write into the message, if not the sender's own.
    pub claims: Option<PublicKey>,
}

/// An initiator that waits for the response.
pub struct Waiting {
    pub message: Vec<u8>,
    chain: [u8; 32],
    hash: [u8; 32],
    ephemeral: Secret,
    sender_index: u32,
}

/// A session with the engine, whose counters are the caller's choice.
#[derive(Clone)]
pub struct Session {
    sending: [u8; 32],
    receiving: [u8; 32],
    pub our_index: u32,
    pub their_index: u32,
}

impl Model {
    pub fn new(secret: Secret, theirs: PublicKey) -> Self {
        Model { secret, theirs: *theirs.as_bytes(), psk: [0; 32] }
    }

    /// The first message. [W] 5.4.2.
    pub fn initiate(&self, parts: InitiationParts) -> Waiting {
        let (mut chain, mut hash) = start(&self.theirs);
        let public = parts.ephemeral.public();
        chain = kdf1(&chain, &public);
        hash = hash_of(&[&hash, &public]);
        let (next, key) = kdf2(&chain, &parts.ephemeral.dh(&self.theirs));
        chain = next;
        let claimed = parts.claims.map_or(self.secret.public(), |key| *key.as_bytes());
        let sealed_static = aead(&key, 0, &claimed, &hash);
        hash = hash_of(&[&hash, &sealed_static]);
        let (next, key) = kdf2(&chain, &self.secret.dh(&self.theirs));
        chain = next;
        let sealed_timestamp = aead(&key, 0, &parts.timestamp, &hash);
        hash = hash_of(&[&hash, &sealed_timestamp]);

        let mut message = vec![1, 0, 0, 0];
        message.extend(parts.sender_index.to_le_bytes());
        message.extend(public);
        message.extend(sealed_static);
        message.extend(sealed_timestamp);
        append_macs(&mut message, &self.theirs, parts.cookie);
        Waiting { message, chain, hash, ephemeral: parts.ephemeral, sender_index: parts.sender_index }
    }

    /// An honest initiation; `second` and `random` make it differ from others.
    pub fn initiate_at(&self, second: u64, random: &mut Random) -> Waiting {
        self.initiate(InitiationParts {
            ephemeral: Secret::Honest(random.bytes()),
            timestamp: tai64n(second),
            sender_index: random.next() as u32,
            cookie: None,
            claims: None,
        })
    }

    /// The session that the engine's response makes, if it is authentic.
    pub fn finish(&self, waiting: &Waiting, response: &[u8]) -> Option<Session> {
        assert_eq!((response[0], response.len()), (2, 92), "a response");
        assert_eq!(le32(response, 8), waiting.sender_index, "the response is to this initiation");
        let theirs: [u8; 32] = response[12..44].try_into().expect("32 bytes");
        let mut chain = kdf1(&waiting.chain, &theirs);
        let hash = hash_of(&[&waiting.hash, &theirs]);
        chain = kdf1(&chain, &waiting.ephemeral.dh(&theirs));
        chain = kdf1(&chain, &self.secret.dh(&theirs));
        let (chain, tau, key) = kdf3(&chain, &self.psk);
        let hash = hash_of(&[&hash, &tau]);
        open(&key, 0, &response[44..60], &hash)?;
        let (sending, receiving) = kdf2(&chain, &[]);
        Some(Session { sending, receiving, our_index: waiting.sender_index, their_index: le32(response, 4) })
    }

    /// Answers the engine's initiation with `ephemeral`. [W] 5.4.3.
    pub fn respond(&self, initiation: &[u8], our_index: u32, ephemeral: Secret) -> (Vec<u8>, Session) {
        assert_eq!((initiation[0], initiation.len()), (1, 148), "an initiation");
        let (mut chain, mut hash) = start(&self.secret.public());
        let theirs: [u8; 32] = initiation[8..40].try_into().expect("32 bytes");
        chain = kdf1(&chain, &theirs);
        hash = hash_of(&[&hash, &theirs]);
        let (next, key) = kdf2(&chain, &self.secret.dh(&theirs));
        chain = next;
        let their_static = open(&key, 0, &initiation[40..88], &hash).expect("the engine knows our key");
        assert_eq!(their_static, self.theirs, "the engine sends its own key");
        hash = hash_of(&[&hash, &initiation[40..88]]);
        let (next, key) = kdf2(&chain, &self.secret.dh(&self.theirs));
        chain = next;
        open(&key, 0, &initiation[88..116], &hash).expect("the engine has its private key");
        hash = hash_of(&[&hash, &initiation[88..116]]);

        let public = ephemeral.public();
        chain = kdf1(&chain, &public);
        hash = hash_of(&[&hash, &public]);
        let (ee, es) = match &ephemeral {
            Secret::Honest(_) => (ephemeral.dh(&theirs), ephemeral.dh(&self.theirs)),
            Secret::LowOrder(_) => ([0; 32], [0; 32]),
        };
        chain = kdf1(&chain, &ee);
        chain = kdf1(&chain, &es);
        let (chain, tau, key) = kdf3(&chain, &self.psk);
        hash = hash_of(&[&hash, &tau]);
        let nothing = aead(&key, 0, &[], &hash);

        let mut message = vec![2, 0, 0, 0];
        message.extend(our_index.to_le_bytes());
        message.extend(&initiation[4..8]);
        message.extend(public);
        message.extend(nothing);
        append_macs(&mut message, &self.theirs, None);
        let (receiving, sending) = kdf2(&chain, &[]);
        (message, Session { sending, receiving, our_index, their_index: le32(initiation, 4) })
    }

    /// A cookie reply to a message of the engine. [W] 5.4.7.
    pub fn cookie_reply(&self, to: &[u8], cookie: [u8; 16], nonce: [u8; 24]) -> Vec<u8> {
        let key = hash_of(&[b"cookie--", &self.secret.public()]);
        let mac1 = &to[to.len() - 32..to.len() - 16];
        let sealed = XChaCha20Poly1305::new_from_slice(&key)
            .expect("32 bytes")
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: &cookie, aad: mac1 })
            .expect("no limit is near");
        let mut message = vec![3, 0, 0, 0];
        message.extend(&to[4..8]);
        message.extend(nonce);
        message.extend(sealed);
        message
    }

    /// The cookie in the engine's reply to a message of ours.
    pub fn open_cookie_reply(&self, reply: &[u8], to: &[u8]) -> Option<[u8; 16]> {
        assert_eq!((reply[0], reply.len()), (3, 64), "a cookie reply");
        assert_eq!(reply[4..8], to[4..8], "the reply is to this message");
        let key = hash_of(&[b"cookie--", &self.theirs]);
        let mac1 = &to[to.len() - 32..to.len() - 16];
        let cipher = XChaCha20Poly1305::new_from_slice(&key).expect("32 bytes");
        let opened = cipher.decrypt(XNonce::from_slice(&reply[8..32]), Payload { msg: &reply[32..], aad: mac1 });
        opened.ok()?.try_into().ok()
    }
}

impl Session {
    /// Transport data with any counter and any plaintext, padded or not as the caller likes. [W] 5.4.6.
    pub fn seal(&self, counter: u64, plaintext: &[u8]) -> Vec<u8> {
        let mut message = vec![4, 0, 0, 0];
        message.extend(self.their_index.to_le_bytes());
        message.extend(counter.to_le_bytes());
        message.extend(aead(&self.sending, counter, plaintext, &[]));
        message
    }

    /// Counter and plaintext of the engine's transport data, if it belongs to this session.
    pub fn open(&self, message: &[u8]) -> Option<(u64, Vec<u8>)> {
        assert!(message[0] == 4 && message.len() >= 32, "transport data");
        if le32(message, 4) != self.our_index {
            return None;
        }
        let counter = u64::from_le_bytes(message[8..16].try_into().expect("eight bytes"));
        Some((counter, open(&self.receiving, counter, &message[16..], &[])?))
    }
}

/// A timestamp at a whole second.
pub fn tai64n(second: u64) -> [u8; 12] {
    let mut stamp = [0; 12];
    stamp[..8].copy_from_slice(&((1 << 62) + 37 + second).to_be_bytes());
    stamp
}

/// Computes MAC1 and MAC2 of a handshake message anew, after a change to it.
pub fn remac(message: &mut Vec<u8>, receiver: &PublicKey, cookie: Option<[u8; 16]>) {
    message.truncate(message.len() - 32);
    append_macs(message, receiver.as_bytes(), cookie);
}

pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn start(responder: &[u8; 32]) -> ([u8; 32], [u8; 32]) {
    let chain = hash_of(&[CONSTRUCTION]);
    (chain, hash_of(&[&hash_of(&[&chain, IDENTIFIER]), responder]))
}

fn append_macs(message: &mut Vec<u8>, receiver: &[u8; 32], cookie: Option<[u8; 16]>) {
    let mac1 = mac(&hash_of(&[b"mac1----", receiver]), message);
    message.extend(mac1);
    let mac2 = cookie.map_or([0; 16], |cookie| mac(&cookie, message));
    message.extend(mac2);
}

fn mac(key: &[u8], input: &[u8]) -> [u8; 16] {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("at most 32 bytes");
    mac.update(input);
    mac.finalize().into_bytes().into()
}

fn hash_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    for part in parts {
        Digest::update(&mut hash, part);
    }
    hash.finalize().into()
}

/// HMAC over BLAKE2s, whose blocks have 64 bytes. RFC 2104 2.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let inner = block.map(|byte| byte ^ 0x36);
    let outer = block.map(|byte| byte ^ 0x5c);
    let mut all = vec![inner.as_slice()];
    all.extend(parts);
    hash_of(&[&outer, &hash_of(&all)])
}

fn kdf3(chain: &[u8; 32], input: &[u8]) -> ([u8; 32], [u8; 32], [u8; 32]) {
    let secret = hmac(chain, &[input]);
    let first = hmac(&secret, &[&[1]]);
    let second = hmac(&secret, &[&first, &[2]]);
    let third = hmac(&secret, &[&second, &[3]]);
    (first, second, third)
}

fn kdf2(chain: &[u8; 32], input: &[u8]) -> ([u8; 32], [u8; 32]) {
    let (first, second, _) = kdf3(chain, input);
    (first, second)
}

fn kdf1(chain: &[u8; 32], input: &[u8]) -> [u8; 32] {
    kdf3(chain, input).0
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

fn aead(key: &[u8; 32], counter: u64, plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
    let cipher = ChaCha20Poly1305::new_from_slice(key).expect("32 bytes");
    cipher.encrypt(&nonce(counter).into(), Payload { msg: plaintext, aad }).expect("no limit is near")
}

fn open(key: &[u8; 32], counter: u64, sealed: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
    let cipher = ChaCha20Poly1305::new_from_slice(key).expect("32 bytes");
    cipher.decrypt(&nonce(counter).into(), Payload { msg: sealed, aad }).ok()
}
