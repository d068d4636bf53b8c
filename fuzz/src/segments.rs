//! What segmentation is, from its definition: slow, obvious, and without a line of the code it is compared with.

/// Ones' complement sum of the pieces, each of which but the last has an even length. RFC 1071 1.
pub fn sum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for pair in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        sum += u64::from(pair[0]) * 256 + pair.get(1).map_or(0, |&low| u64::from(low));
    }
    while sum > 0xffff {
        sum = sum % 0x1_0000 + sum / 0x1_0000;
    }
    sum as u16
}

/// The packet with the checksum that begins at `start` completed; `None` if it would lie outside.
pub fn complete(packet: &[u8], start: usize, offset: usize) -> Option<Vec<u8>> {
    let mut packet = packet.to_vec();
    if start + offset + 2 > packet.len() {
        return None;
    }
    let mut checksum = !sum(&[&packet[start..]]);
    if checksum == 0 && offset == 6 {
        // UDP has no zero. RFC 768.
        checksum = 0xffff;
    }
    packet[start + offset..start + offset + 2].copy_from_slice(&checksum.to_be_bytes());
    Some(packet)
}

/// What a network card sends for a super-packet whose transport header is at `start`: each packet with its part of the
/// payload, and headers that are right for it. `None` if headers and payload are not there, or not whole.
pub fn segments(packet: &[u8], start: usize, is_tcp: bool, segment_len: usize) -> Option<Vec<Vec<u8>>> {
    const LONGEST_HEADERS: usize = 256;
    let is_v4 = packet.first()? >> 4 == 4;
    let is_in_place = match is_v4 {
        true => start >= 20 && start == usize::from(packet[0] % 16) * 4,
        false => start >= 40,
    };
    let transport_len = if is_tcp { usize::from(*packet.get(start + 12)? / 16) * 4 } else { 8 };
    let headers_len = start + transport_len;
    if !is_in_place
        || segment_len == 0
        || transport_len < if is_tcp { 20 } else { 8 }
        || headers_len > LONGEST_HEADERS
        || headers_len >= packet.len()
    {
        return None;
    }
    let pieces: Vec<_> = packet[headers_len..].chunks(segment_len).collect();
    let segment = |(index, piece): (usize, &&[u8])| {
        let mut segment = packet[..headers_len].to_vec();
        segment.extend_from_slice(piece);
        let len = segment.len();
        if is_v4 {
            segment[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            let identification = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(index as u16);
            segment[4..6].copy_from_slice(&identification.to_be_bytes());
            segment[10..12].fill(0);
            let checksum = !sum(&[&segment[..start]]);
            segment[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            segment[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        let transport_len = (len - start) as u32;
        let checksum_at = start + if is_tcp { 16 } else { 6 };
        if is_tcp {
            let sequence = u32::from_be_bytes(segment[start + 4..start + 8].try_into().expect("four bytes"));
            let sequence = sequence.wrapping_add((index * segment_len) as u32);
            segment[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
            // Congestion window reduced once, push and end where the data ends. RFC 3168 6.1.2.
            let only_first = if index == 0 { 0 } else { 0x80 };
            let only_last = if index + 1 == pieces.len() { 0 } else { 0x09 };
            segment[start + 13] &= !(only_first | only_last);
        } else {
            segment[start + 4..start + 6].copy_from_slice(&(transport_len as u16).to_be_bytes());
        }
        segment[checksum_at..checksum_at + 2].fill(0);
        let pseudo_header = if start == if is_v4 { 20 } else { 40 } {
            let addresses = if is_v4 { 12..20 } else { 8..40 };
            [&segment[addresses], &[0, if is_tcp { 6 } else { 17 }]].concat()
        } else {
            // Behind options or extension headers, which may hold another destination, only the sum that came with the
            // packet knows the addresses. It has the length of the whole.
            let whole_len = (packet.len() - start) as u16;
            [&packet[checksum_at..checksum_at + 2], &(!whole_len).to_be_bytes()].concat()
        };
        let mut checksum = !sum(&[&pseudo_header, &transport_len.to_be_bytes(), &segment[start..]]);
        if checksum == 0 && !is_tcp {
            checksum = 0xffff;
        }
        segment[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        segment
    };
    Some(pieces.iter().enumerate().map(segment).collect())
}
