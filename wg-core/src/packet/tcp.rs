//! Owns the view of a TCP header and the walk over its options. Edits nothing and knows no connection. RFC 9293 3.1.

/// Length in bytes of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;
/// The protocol number of TCP in an IP header.
pub const TCP_PROTOCOL: u8 = 6;

/// Sender is done.
pub const FIN: u8 = 0x01;
/// Connection begins.
pub const SYN: u8 = 0x02;
/// Connection is reset.
pub const RST: u8 = 0x04;
/// Deliver at once.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// The urgent pointer counts.
pub const URG: u8 = 0x20;
/// Congestion echo. RFC 3168 6.1.
pub const ECE: u8 = 0x40;
/// Congestion window reduced. RFC 3168 6.1.
pub const CWR: u8 = 0x80;

/// Option kind: end of the list.
pub const OPTION_END: u8 = 0;
/// Option kind: padding of one byte.
pub const OPTION_NOP: u8 = 1;
/// Option kind: maximum segment size, two bytes. RFC 9293 3.7.1.
pub const OPTION_MSS: u8 = 2;

/// A view of a TCP header and what follows it; the data offset lies within the bytes. Checksums are not verified.
#[derive(Clone, Copy, Debug)]
pub struct TcpSegment<'a> {
    header: &'a [u8; TCP_HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

/// One option of a TCP header, other than padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOption<'a> {
    /// Kind of the option.
    pub kind: u8,
    /// The option's data, without kind and length.
    pub data: &'a [u8],
    /// Where the data starts, in bytes from the start of the TCP header.
    pub data_at: usize,
}

/// Walks over the options of a TCP header, in order, without padding.
///
/// Ends at the end-of-list option, at the end of the header, and at the first option whose length is less than 2 or
/// overruns the header; what was yielded before stands.
#[derive(Clone, Debug)]
pub struct TcpOptions<'a> {
    options: &'a [u8],
    at: usize,
}

impl<'a> TcpSegment<'a> {
    /// The segment in `bytes`, the whole payload of an IP packet that is not a later fragment.
    ///
    /// `None` unless 20 <= data offset <= `bytes.len()`.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header: &[u8; TCP_HEADER_LEN] = bytes.first_chunk()?;
        let header_len = usize::from(header[12] >> 4) * 4;
        let (whole_header, payload) = bytes.split_at_checked(header_len)?;
        Some(TcpSegment { header, options: whole_header.get(TCP_HEADER_LEN..)?, payload })
    }

    /// The source port.
    #[inline]
    pub fn source_port(&self) -> u16 {
        self.half(0)
    }

    /// The destination port.
    #[inline]
    pub fn destination_port(&self) -> u16 {
        self.half(2)
    }

    /// The sequence number of the first byte of the payload.
    #[inline]
    pub fn sequence(&self) -> u32 {
        self.word(4)
    }

    /// The acknowledgement number; it counts if [`ACK`] is set.
    #[inline]
    pub fn acknowledgement(&self) -> u32 {
        self.word(8)
    }

    /// The data offset: length of the header with its options, in bytes.
    #[inline]
    pub fn header_len(&self) -> usize {
        TCP_HEADER_LEN + self.options.len()
    }

    /// The eight flags, from [`FIN`] to [`CWR`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.header[13]
    }

    /// The four bits between data offset and flags; senders leave them zero, except for AccECN. RFC 9293 3.1.
    #[inline]
    pub fn reserved(&self) -> u8 {
        self.header[12] & 0x0f
    }

    /// Whether this is the first segment of one direction, the one that carries the MSS option.
    #[inline]
    pub fn is_syn(&self) -> bool {
        self.flags() & SYN != 0
    }

    /// The window, not scaled.
    #[inline]
    pub fn window(&self) -> u16 {
        self.half(14)
    }

    /// The checksum, as it stands.
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.half(16)
    }

    /// The urgent pointer; it counts if [`URG`] is set.
    #[inline]
    pub fn urgent(&self) -> u16 {
        self.half(18)
    }

    /// The bytes of all options, with padding.
    #[inline]
    pub fn option_bytes(&self) -> &'a [u8] {
        self.options
    }

    /// The options, one by one.
    #[inline]
    pub fn options(&self) -> TcpOptions<'a> {
        TcpOptions { options: self.options, at: 0 }
    }

    /// What follows the header.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    #[inline]
    fn half(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.header[at], self.header[at + 1]])
    }

    #[inline]
    fn word(&self, at: usize) -> u32 {
        u32::from(self.half(at)) << 16 | u32::from(self.half(at + 2))
    }
}

impl<'a> Iterator for TcpOptions<'a> {
    type Item = TcpOption<'a>;

    fn next(&mut self) -> Option<TcpOption<'a>> {
        let padding = self.options.get(self.at..)?.iter().take_while(|&&kind| kind == OPTION_NOP).count();
        let start = self.at + padding;
        let kind = *self.options.get(start)?;
        if kind == OPTION_END {
            return None;
        }
        let end = start + usize::from(*self.options.get(start + 1)?);
        // A length below 2 makes the range run backwards, which `get` refuses like an overrun. Only a whole option
        // moves the mark, so that what ends the walk ends it for good.
        let data = self.options.get(start + 2..end)?;
        self.at = end;
        Some(TcpOption { kind, data, data_at: TCP_HEADER_LEN + start + 2 })
    }
}

impl std::iter::FusedIterator for TcpOptions<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN with an MSS of 1460, SACK permitted, timestamps, padding, a window scale, and three bytes of payload.
    fn segment() -> Vec<u8> {
        let mut bytes = vec![0x1f, 0x90, 0x01, 0xbb, 1, 2, 3, 4, 5, 6, 7, 8, 0xa0, 0x42, 0xfa, 0xf0, 0xbe, 0xef, 0, 9];
        bytes.extend([2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 3, 3, 7]);
        bytes.extend([0x70, 0x71, 0x72]);
        bytes
    }

    fn options(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut segment = vec![0; TCP_HEADER_LEN];
        segment.extend(bytes);
        segment[12] = (segment.len() as u8 / 4) << 4;
        let options = TcpSegment::parse(&segment).expect("a segment").options();
        options.map(|option| (option.kind, option.data.to_vec())).collect()
    }

    #[test]
    fn a_segment_says_what_its_header_says() {
        let bytes = segment();
        let tcp = TcpSegment::parse(&bytes).expect("a segment");
        assert_eq!((tcp.source_port(), tcp.destination_port()), (8080, 443));
        assert_eq!((tcp.sequence(), tcp.acknowledgement()), (0x0102_0304, 0x0506_0708));
        assert_eq!((tcp.header_len(), tcp.flags(), tcp.reserved()), (40, SYN | ECE, 0));
        assert_eq!((tcp.window(), tcp.checksum(), tcp.urgent()), (0xfaf0, 0xbeef, 9));
        assert_eq!((tcp.option_bytes(), tcp.payload()), (&bytes[20..40], &bytes[40..]));
        assert!(tcp.is_syn());
    }

    #[test]
    fn options_come_in_order_without_padding_and_say_where_they_are() {
        let bytes = segment();
        let found: Vec<_> = TcpSegment::parse(&bytes).expect("a segment").options().collect();
        let kinds: Vec<_> = found.iter().map(|option| (option.kind, option.data.len(), option.data_at)).collect();
        assert_eq!(kinds, [(OPTION_MSS, 2, 22), (4, 0, 26), (8, 8, 28), (3, 1, 39)]);
        for option in found {
            assert_eq!(option.data, &bytes[option.data_at..option.data_at + option.data.len()]);
        }
    }

    #[test]
    fn a_data_offset_below_the_header_or_beyond_the_bytes_is_refused() {
        let mut bytes = segment();
        for words in 0..16 {
            bytes[12] = words << 4;
            let header_len = TcpSegment::parse(&bytes).map(|tcp| tcp.header_len());
            assert_eq!(header_len, (5..=10).contains(&words).then_some(usize::from(words) * 4));
        }
        let bytes = segment();
        for len in 0..bytes.len() {
            assert_eq!(TcpSegment::parse(&bytes[..len]).is_some(), len >= 40, "{len}");
        }
    }

    #[test]
    fn the_walk_ends_at_the_end_of_the_list() {
        assert_eq!(options(&[4, 2, 0, 0, 2, 4, 5, 6]), [(4, vec![])]);
        assert_eq!(options(&[0, 2, 4, 5]), []);
        assert_eq!(options(&[]), []);
        assert_eq!(options(&[1, 1, 1, 1]), []);
        assert_eq!(options(&[1, 1, 4, 2]), [(4, vec![])]);
    }

    #[test]
    fn the_walk_ends_at_a_length_below_two_or_beyond_the_header() {
        for bad in [[2, 0, 4, 2], [2, 1, 4, 2], [2, 5, 5, 5], [2, 255, 5, 5], [1, 1, 1, 2]] {
            assert_eq!(options(&bad), [], "{bad:?}");
            let after_a_good_one = [[4, 2, 1, 1], bad].concat();
            assert_eq!(options(&after_a_good_one), [(4, vec![])], "{bad:?}");
        }
        assert_eq!(options(&[2, 4, 5, 6]), [(2, vec![5, 6])], "up to the last byte is not beyond");
    }

    #[test]
    fn the_walk_does_not_go_on_after_its_end() {
        let mut segment = vec![0; 28];
        segment[12] = 0x70;
        segment[20..28].copy_from_slice(&[2, 1, 4, 2, 4, 2, 4, 2]);
        let mut options = TcpSegment::parse(&segment).expect("a segment").options();
        assert_eq!((options.next(), options.next(), options.next()), (None, None, None));
    }

    #[test]
    fn no_truncation_and_no_change_of_one_byte_breaks_a_promise() {
        let check = |bytes: &[u8]| {
            let Some(tcp) = TcpSegment::parse(bytes) else { return };
            assert_eq!(tcp.header_len() + tcp.payload().len(), bytes.len());
            let mut end = TCP_HEADER_LEN;
            for option in tcp.options() {
                assert!(option.data_at >= end + 2 && option.kind > OPTION_NOP);
                assert_eq!(option.data, &bytes[option.data_at..option.data_at + option.data.len()]);
                end = option.data_at + option.data.len();
            }
            assert!(end <= tcp.header_len());
        };
        let valid = segment();
        for len in 0..=valid.len() {
            check(&valid[..len]);
        }
        for at in 0..valid.len() {
            for value in 0..=u8::MAX {
                let mut bytes = valid.clone();
                bytes[at] = value;
                check(&bytes);
            }
        }
    }
}
