//! Owns the three kinds of key and their two spellings (base64 for people, hex for the configuration protocol).
//! Secret keys are wiped when dropped and never printed by `Debug`. Draws no randomness: the caller brings the bytes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length of every key in bytes.
pub const KEY_LEN: usize = 32;

/// The u-coordinates of small order, including non-canonical ones; bit 255 is ignored. RFC 7748 5, 6.1.
const LOW_ORDER: [[u8; 32]; 7] = {
    let mut points = [[0; 32]; 7];
    points[1][0] = 1;
    points[2] = [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ];
    points[3] = [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ];
    points[4] = [0xff; 32];
    points[5] = [0xff; 32];
    points[6] = [0xff; 32];
    points[4][0] = 0xec;
    points[5][0] = 0xed;
    points[6][0] = 0xee;
    points[4][31] = 0x7f;
    points[5][31] = 0x7f;
    points[6][31] = 0x7f;
    points
};

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is 32 bytes: 44 characters of base64 or 64 of hex")]
pub struct KeyError;

/// A Curve25519 public key; it names a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

/// A Curve25519 private key, clamped. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_LEN]);

/// A secret shared by two peers and mixed into each handshake. \[W\] 5.2. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_LEN]);

impl PublicKey {
    /// The key with these bytes. Any 32 bytes are a key; see [`PublicKey::is_low_order`] for those nobody can use.
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        PublicKey(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Whether every shared secret with this key is zero and thus known to everybody. RFC 7748 6.1.
    pub fn is_low_order(&self) -> bool {
        LOW_ORDER.iter().any(|bad| bad[..31] == self.0[..31] && bad[31] == self.0[31] & 0x7f)
    }

    /// 64 lower-case hex digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The key in 64 hex digits of either case.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Ok(PublicKey(*decode_hex(text)?))
    }
}

impl PrivateKey {
    /// The private key made of `bytes` by clamping. RFC 7748 5.
    pub fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        PrivateKey(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The public key that belongs to this one. Cost: one scalar multiplication.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }

    /// 64 lower-case hex digits, wiped when dropped.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0))
    }

    /// 44 characters of base64, wiped when dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    /// The key in 64 hex digits of either case, clamped; `None` for all zeros, which the protocol uses for "no key".
    pub fn from_hex(text: &str) -> Result<Option<Self>, KeyError> {
        let bytes = decode_hex(text)?;
        Ok((*bytes != [0; KEY_LEN]).then(|| PrivateKey::from_bytes(*bytes)))
    }
}

impl PresharedKey {
    /// The key with these bytes; `None` for all zeros, which stand for "no key".
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Option<Self> {
        (bytes != [0; KEY_LEN]).then_some(PresharedKey(bytes))
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// 64 lower-case hex digits, wiped when dropped.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0))
    }

    /// 44 characters of base64, wiped when dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    /// The key in 64 hex digits of either case; `None` for all zeros.
    pub fn from_hex(text: &str) -> Result<Option<Self>, KeyError> {
        Ok(PresharedKey::from_bytes(*decode_hex(text)?))
    }
}

fn decode_hex(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    hex::decode_to_slice(text, bytes.as_mut_slice()).map_err(|_| KeyError)?;
    Ok(bytes)
}

fn decode_base64(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let decoded = Zeroizing::new(STANDARD.decode(text).map_err(|_| KeyError)?);
    let bytes = decoded.as_slice().try_into().map_err(|_| KeyError)?;
    Ok(Zeroizing::new(bytes))
}

impl FromStr for PublicKey {
    type Err = KeyError;
    /// Reads 44 characters of base64.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(PublicKey(*decode_base64(text)?))
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;
    /// Reads 44 characters of base64 and clamps.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(PrivateKey::from_bytes(*decode_base64(text)?))
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;
    /// Reads 44 characters of base64.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(PresharedKey(*decode_base64(text)?))
    }
}

impl fmt::Display for PublicKey {
    /// Writes 44 characters of base64.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PublicKey({self})")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("PrivateKey(hidden)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("PresharedKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_come_back_and_wrong_lengths_do_not() {
        let key = PrivateKey::from_bytes([9; KEY_LEN]);
        assert_eq!(PrivateKey::from_hex(&key.to_hex()), Ok(Some(key.clone())));
        assert_eq!(key.to_base64().parse(), Ok(key.clone()));
        let public = key.public_key();
        assert_eq!(PublicKey::from_hex(&public.to_hex()), Ok(public));
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(PublicKey::from_hex(&public.to_hex()[1..]), Err(KeyError));
        assert_eq!("AAAA".parse::<PublicKey>(), Err(KeyError));
        assert_eq!("\u{e9}".repeat(32).parse::<PublicKey>(), Err(KeyError));
    }

    #[test]
    fn a_private_key_is_clamped_and_zeros_mean_none() {
        let key = PrivateKey::from_bytes([0xff; KEY_LEN]);
        assert_eq!((key.as_bytes()[0], key.as_bytes()[31]), (0xf8, 0x7f));
        assert_eq!(PrivateKey::from_hex(&"0".repeat(64)), Ok(None));
        assert_eq!(PresharedKey::from_hex(&"0".repeat(64)), Ok(None));
    }

    #[test]
    fn keys_of_low_order_are_those_whose_shared_secrets_are_zero() {
        let contributes = |bytes: [u8; KEY_LEN]| {
            StaticSecret::from([0x40; KEY_LEN]).diffie_hellman(&x25519_dalek::PublicKey::from(bytes)).was_contributory()
        };
        for mut point in LOW_ORDER {
            assert!(!contributes(point) && PublicKey::from_bytes(point).is_low_order(), "{point:?}");
            point[31] |= 0x80;
            assert!(!contributes(point) && PublicKey::from_bytes(point).is_low_order(), "{point:?}");
            point[7] ^= 1;
            assert!(contributes(point) && !PublicKey::from_bytes(point).is_low_order(), "{point:?}");
        }
        assert!(!PrivateKey::from_bytes([9; KEY_LEN]).public_key().is_low_order());
    }

    #[test]
    fn secret_keys_do_not_show_in_debug_output() {
        let private = PrivateKey::from_bytes([7; KEY_LEN]);
        assert_eq!(format!("{private:?}"), "PrivateKey(hidden)");
        let psk = PresharedKey::from_bytes([7; KEY_LEN]).expect("not zero");
        assert_eq!(format!("{psk:?}"), "PresharedKey(hidden)");
    }
}
