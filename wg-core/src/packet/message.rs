//! Owns the shapes of the four WireGuard messages: lengths, offsets, indices. Knows no cryptography, and no session.
//! Integers are little-endian. \[W\] 5.4.

/// Length of an initiation in bytes. \[W\] 5.4.2.
pub const INITIATION_LEN: usize = 148;
/// Length of a response in bytes. \[W\] 5.4.3.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply in bytes. \[W\] 5.4.7.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length of the shortest transport data, a keepalive, in bytes. \[W\] 5.4.6.
pub const DATA_MIN_LEN: usize = DATA_HEADER_LEN + 16;
/// Length in bytes of what precedes the ciphertext of transport data. \[W\] 5.4.6.
pub const DATA_HEADER_LEN: usize = 16;
/// Length in bytes of MAC1 and of MAC2. \[W\] 5.4.4.
pub const MAC_LEN: usize = 16;

/// The type field, one byte, with the three reserved zero bytes behind it. \[W\] 5.4.
pub const INITIATION_TYPE: u32 = 1;
/// As [`INITIATION_TYPE`], of a response.
pub const RESPONSE_TYPE: u32 = 2;
/// As [`INITIATION_TYPE`], of a cookie reply.
pub const COOKIE_REPLY_TYPE: u32 = 3;
/// As [`INITIATION_TYPE`], of transport data.
pub const DATA_TYPE: u32 = 4;

/// A datagram that has the type and length of a WireGuard message; whether it is authentic is another's question.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// The first message of a handshake.
    Initiation(Initiation<'a>),
    /// The second message of a handshake.
    Response(Response<'a>),
    /// The answer of a peer that is under load.
    CookieReply(CookieReply<'a>),
    /// An encrypted packet, or a keepalive.
    TransportData(TransportData<'a>),
}

/// The first message of a handshake. \[W\] 5.4.2.
#[derive(Clone, Copy, Debug)]
pub struct Initiation<'a>(&'a [u8; INITIATION_LEN]);

/// The second message of a handshake. \[W\] 5.4.3.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a>(&'a [u8; RESPONSE_LEN]);

/// The answer of a peer that is under load. \[W\] 5.4.7.
#[derive(Clone, Copy, Debug)]
pub struct CookieReply<'a>(&'a [u8; COOKIE_REPLY_LEN]);

/// An encrypted packet, or a keepalive. \[W\] 5.4.6.
#[derive(Clone, Copy, Debug)]
pub struct TransportData<'a> {
    header: &'a [u8; DATA_HEADER_LEN],
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The message that `datagram` is, from its first to its last byte.
    ///
    /// `None` if the type is unknown, a reserved byte is not zero, or the length is not the type's: exactly 148, 92 or
    /// 64 bytes, or at least 32 for transport data.
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        match u32::from_le_bytes(*datagram.first_chunk()?) {
            DATA_TYPE if datagram.len() >= DATA_MIN_LEN => {
                let header = datagram.first_chunk()?;
                Some(Message::TransportData(TransportData { header, bytes: datagram }))
            }
            INITIATION_TYPE => Some(Message::Initiation(Initiation(datagram.try_into().ok()?))),
            RESPONSE_TYPE => Some(Message::Response(Response(datagram.try_into().ok()?))),
            COOKIE_REPLY_TYPE => Some(Message::CookieReply(CookieReply(datagram.try_into().ok()?))),
            _ => None,
        }
    }
}

impl<'a> Initiation<'a> {
    /// The receiver index by which the initiator wants to be answered.
    #[inline]
    pub fn sender_index(&self) -> u32 {
        word(self.0, 4)
    }

    /// The initiator's unencrypted ephemeral public key.
    #[inline]
    pub fn ephemeral(&self) -> &'a [u8; 32] {
        field(self.0, 8)
    }

    /// What MAC1 covers: everything before it. \[W\] 5.4.4.
    #[inline]
    pub fn before_mac1(&self) -> &'a [u8] {
        &self.0[..INITIATION_LEN - 2 * MAC_LEN]
    }

    /// MAC1: shows that the sender knows our public key. \[W\] 5.4.4.
    #[inline]
    pub fn mac1(&self) -> &'a [u8; MAC_LEN] {
        field(self.0, INITIATION_LEN - 2 * MAC_LEN)
    }

    /// MAC2: shows that the sender got our cookie; zeros if it has none. \[W\] 5.4.4.
    #[inline]
    pub fn mac2(&self) -> &'a [u8; MAC_LEN] {
        field(self.0, INITIATION_LEN - MAC_LEN)
    }

    /// The whole message.
    #[inline]
    pub fn bytes(&self) -> &'a [u8; INITIATION_LEN] {
        self.0
    }
}

impl<'a> Response<'a> {
    /// The receiver index by which the responder wants to be addressed.
    #[inline]
    pub fn sender_index(&self) -> u32 {
        word(self.0, 4)
    }

    /// The index of the initiation that is answered.
    #[inline]
    pub fn receiver_index(&self) -> u32 {
        word(self.0, 8)
    }

    /// The responder's unencrypted ephemeral public key.
    #[inline]
    pub fn ephemeral(&self) -> &'a [u8; 32] {
        field(self.0, 12)
    }

    /// What MAC1 covers: everything before it. \[W\] 5.4.4.
    #[inline]
    pub fn before_mac1(&self) -> &'a [u8] {
        &self.0[..RESPONSE_LEN - 2 * MAC_LEN]
    }

    /// MAC1: shows that the sender knows our public key. \[W\] 5.4.4.
    #[inline]
    pub fn mac1(&self) -> &'a [u8; MAC_LEN] {
        field(self.0, RESPONSE_LEN - 2 * MAC_LEN)
    }

    /// MAC2: shows that the sender got our cookie; zeros if it has none. \[W\] 5.4.4.
    #[inline]
    pub fn mac2(&self) -> &'a [u8; MAC_LEN] {
        field(self.0, RESPONSE_LEN - MAC_LEN)
    }

    /// The whole message.
    #[inline]
    pub fn bytes(&self) -> &'a [u8; RESPONSE_LEN] {
        self.0
    }
}

impl<'a> CookieReply<'a> {
    /// The index of the handshake message that is answered.
    #[inline]
    pub fn receiver_index(&self) -> u32 {
        word(self.0, 4)
    }

    /// The nonce of the encrypted cookie.
    #[inline]
    pub fn nonce(&self) -> &'a [u8; 24] {
        field(self.0, 8)
    }

    /// The cookie, encrypted, with its tag.
    #[inline]
    pub fn encrypted_cookie(&self) -> &'a [u8; 32] {
        field(self.0, 32)
    }

    /// The whole message.
    #[inline]
    pub fn bytes(&self) -> &'a [u8; COOKIE_REPLY_LEN] {
        self.0
    }
}

impl<'a> TransportData<'a> {
    /// The index of the session at its receiver.
    #[inline]
    pub fn receiver_index(&self) -> u32 {
        word(self.header, 4)
    }

    /// The number of this message within its session, which is also its nonce.
    #[inline]
    pub fn counter(&self) -> u64 {
        u64::from_le_bytes(*field(self.header, 8))
    }

    /// The encrypted packet with its tag of 16 bytes.
    #[inline]
    pub fn ciphertext(&self) -> &'a [u8] {
        // `parse` saw to it that the header is there.
        self.bytes.get(DATA_HEADER_LEN..).unwrap_or_default()
    }

    /// Whether the encrypted packet is empty.
    #[inline]
    pub fn is_keepalive(&self) -> bool {
        self.bytes.len() == DATA_MIN_LEN
    }

    /// The whole message.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

#[inline]
fn word<const LEN: usize>(message: &[u8; LEN], at: usize) -> u32 {
    u32::from_le_bytes(*field(message, at))
}

#[inline]
fn field<const LEN: usize, const N: usize>(message: &[u8; LEN], at: usize) -> &[u8; N] {
    message[at..at + N].try_into().expect("every caller names a field within its message")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [(u8, usize); 4] = [(1, INITIATION_LEN), (2, RESPONSE_LEN), (3, COOKIE_REPLY_LEN), (4, 48)];

    /// Every byte from the fourth on is its own offset.
    fn message(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        bytes
    }

    fn offsets(from: u8, to: u8) -> Vec<u8> {
        (from..to).collect()
    }

    fn kind_of(bytes: &[u8]) -> Option<u8> {
        Some(match Message::parse(bytes)? {
            Message::Initiation(_) => 1,
            Message::Response(_) => 2,
            Message::CookieReply(_) => 3,
            Message::TransportData(_) => 4,
        })
    }

    #[test]
    fn an_initiation_has_its_fields_where_the_paper_puts_them() {
        let bytes = message(1, 148);
        let Some(Message::Initiation(initiation)) = Message::parse(&bytes) else { panic!("an initiation") };
        assert_eq!(initiation.sender_index(), 0x0706_0504);
        assert_eq!(initiation.ephemeral()[..], offsets(8, 40));
        assert_eq!(initiation.before_mac1(), &bytes[..116]);
        assert_eq!(initiation.mac1()[..], offsets(116, 132));
        assert_eq!(initiation.mac2()[..], offsets(132, 148));
        assert_eq!(initiation.bytes()[..], bytes);
    }

    #[test]
    fn a_response_has_its_fields_where_the_paper_puts_them() {
        let bytes = message(2, 92);
        let Some(Message::Response(response)) = Message::parse(&bytes) else { panic!("a response") };
        assert_eq!((response.sender_index(), response.receiver_index()), (0x0706_0504, 0x0b0a_0908));
        assert_eq!(response.ephemeral()[..], offsets(12, 44));
        assert_eq!(response.before_mac1(), &bytes[..60]);
        assert_eq!(response.mac1()[..], offsets(60, 76));
        assert_eq!(response.mac2()[..], offsets(76, 92));
        assert_eq!(response.bytes()[..], bytes);
    }

    #[test]
    fn a_cookie_reply_has_its_fields_where_the_paper_puts_them() {
        let bytes = message(3, 64);
        let Some(Message::CookieReply(reply)) = Message::parse(&bytes) else { panic!("a cookie reply") };
        assert_eq!(reply.receiver_index(), 0x0706_0504);
        assert_eq!(reply.nonce()[..], offsets(8, 32));
        assert_eq!(reply.encrypted_cookie()[..], offsets(32, 64));
        assert_eq!(reply.bytes()[..], bytes);
    }

    #[test]
    fn transport_data_has_its_fields_where_the_paper_puts_them() {
        let bytes = message(4, 48);
        let Some(Message::TransportData(data)) = Message::parse(&bytes) else { panic!("transport data") };
        assert_eq!((data.receiver_index(), data.counter()), (0x0706_0504, 0x0f0e_0d0c_0b0a_0908));
        assert_eq!((data.ciphertext(), data.bytes()), (&bytes[16..], &bytes[..]));
        assert!(!data.is_keepalive());
        let Some(Message::TransportData(data)) = Message::parse(&bytes[..32]) else { panic!("a keepalive") };
        assert!(data.is_keepalive());
        assert_eq!(data.ciphertext().len(), 16);
    }

    #[test]
    fn handshake_messages_have_one_length_and_transport_data_a_least_one() {
        for kind in 1..=4 {
            for len in 4..2000 {
                let is_message = match kind {
                    1 => len == 148,
                    2 => len == 92,
                    3 => len == 64,
                    _ => len >= 32,
                };
                assert_eq!(kind_of(&message(kind, len)), is_message.then_some(kind), "type {kind} of {len} bytes");
            }
        }
        for len in 0..4 {
            assert_eq!(kind_of(&[4, 0, 0, 0][..len]), None);
        }
    }

    #[test]
    fn an_unknown_type_or_a_reserved_byte_that_is_not_zero_is_no_message() {
        for (kind, len) in LENGTHS {
            for at in 0..4 {
                for value in 0..=u8::MAX {
                    let mut bytes = message(kind, len);
                    bytes[at] = value;
                    let same = bytes[..4] == [kind, 0, 0, 0];
                    let grown_into_data = bytes[..4] == [4, 0, 0, 0];
                    let expected = if same { Some(kind) } else { grown_into_data.then_some(4) };
                    assert_eq!(kind_of(&bytes), expected, "type {kind}, byte {at} is {value}");
                }
            }
        }
    }

    #[test]
    fn no_change_of_one_byte_behind_the_type_matters() {
        for (kind, len) in LENGTHS {
            for at in 4..len {
                let mut bytes = message(kind, len);
                bytes[at] ^= 0xff;
                assert_eq!(kind_of(&bytes), Some(kind));
            }
        }
    }
}
