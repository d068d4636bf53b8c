//! Whatever is read from the TUN device, splitting does not panic and invents nothing: a packet that is no super-packet
//! comes out as it went in but for its checksum, and the packets of a super-packet are those that its headers describe.
//!
//! Input: a byte for the length of virtio headers, then frames: a byte of choices, a virtio header, a length, a packet.
//! Choices let a frame be described as its own bytes say, so that it is worth splitting.

use wg_core::{PADDING_SLACK, PacketSource};
use wg_tun::offload::{HEADER_LEN, LONG_HEADER_LEN, NEEDS_CHECKSUM, SplitBatch, VirtioHeader, for_each_packet};

use super::input::Input;
use super::segments::{complete, segments, sum};

/// Frames looked at, so that an input costs milliseconds.
const MAX_FRAMES: usize = 8;

/// Splits the frames and compares with a model that builds each segment from its definition.
pub fn check(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let header_len = [HEADER_LEN, LONG_HEADER_LEN][usize::from(input.byte() % 2)];
    let mut batch = SplitBatch::new(header_len);
    let mut expected: Vec<Vec<u8>> = Vec::new();
    let mut malformed = 0;
    for _ in 0..MAX_FRAMES {
        if input.is_empty() {
            break;
        }
        let (header, packet) = frame(&mut input);
        let Some(space) = batch.space() else { break };
        space[..header_len + packet.len() + PADDING_SLACK].fill(0xa5);
        header.write(&mut space[..header_len]);
        space[header_len..header_len + packet.len()].copy_from_slice(&packet);
        batch.push(header_len + packet.len());

        let model = model(header, &packet);
        let mut singly = Vec::new();
        for_each_packet(&mut packet.clone(), header, |packet| singly.push(packet.to_vec()));
        assert_eq!(Some(singly).filter(|packets| !packets.is_empty()), model, "{header:?}");
        match model {
            Some(packets) => expected.extend(packets),
            None => malformed += 1,
        }
    }
    let mut packets = Vec::new();
    while !batch.is_exhausted() {
        while let Some(slot) = batch.next_packet() {
            packets.push(slot.buffer[..slot.len].to_vec());
            // As the engine does.
            slot.buffer[slot.len..slot.len + PADDING_SLACK].fill(0);
        }
    }
    assert_eq!(packets, expected);
    assert_eq!(batch.take_malformed(), malformed);
}

/// The next frame of the input.
fn frame(input: &mut Input<'_>) -> (VirtioHeader, Vec<u8>) {
    let choices = input.byte();
    let mut header = VirtioHeader {
        flags: input.byte(),
        gso_type: input.byte(),
        header_len: input.word(),
        segment_len: input.word(),
        checksum_start: input.word(),
        checksum_offset: input.word(),
    };
    let len = usize::from(input.word() % 4096);
    let mut packet = input.take(len).to_vec();
    if choices & 1 != 0 {
        // Most of it is there without being in the input.
        packet.resize(len, choices);
    }
    if choices & 2 != 0 {
        describe(&mut header, &packet);
    }
    (header, packet)
}

/// Says of the packet what its own bytes say: the kernel would.
fn describe(header: &mut VirtioHeader, packet: &[u8]) {
    let byte = |at: usize| packet.get(at).copied().unwrap_or(0);
    let is_v4 = byte(0) >> 4 == 4;
    let (protocol, start) = if is_v4 { (byte(9), u16::from(byte(0) & 15) * 4) } else { (byte(6), 40) };
    header.flags |= NEEDS_CHECKSUM;
    header.gso_type = match (protocol, is_v4) {
        (6, true) => 1,
        (6, false) => 4,
        _ => 5,
    };
    header.checksum_start = start;
    header.checksum_offset = if protocol == 6 { 16 } else { 6 };
}

/// The packets that a frame stands for, or `None` if it contradicts itself.
fn model(header: VirtioHeader, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let version = packet.first()? >> 4;
    let start = usize::from(header.checksum_start);
    match (header.gso_type & 0x7f, version) {
        (0, 4 | 6) if header.flags & NEEDS_CHECKSUM != 0 => {
            complete(packet, start, usize::from(header.checksum_offset)).map(|packet| vec![packet])
        }
        (0, 4 | 6) => Some(vec![packet.to_vec()]),
        (kind @ 1, 4) | (kind @ 4, 6) | (kind @ 5, 4 | 6) => {
            let (is_tcp, is_v4) = (kind != 5, version == 4);
            let segment_len = usize::from(header.segment_len);
            if header.flags & NEEDS_CHECKSUM != 0 {
                return segments(packet, start, is_tcp, segment_len);
            }
            // Whoever joined it has looked at the checksums, and does not say where they are: right behind the IP header.
            let (addresses, protocol_at, start) =
                if is_v4 { (12..20, 9, usize::from(packet[0] % 16) * 4) } else { (8..40, 6, 40) };
            let protocol = if is_tcp { 6 } else { 17 };
            if *packet.get(protocol_at)? != protocol {
                return None;
            }
            let checksum_at = start + if is_tcp { 16 } else { 6 };
            let whole_len = (packet.len().checked_sub(start)? as u16).to_be_bytes();
            let partial = sum(&[packet.get(addresses)?, &[0, protocol], &whole_len]);
            let mut packet = packet.to_vec();
            packet.get_mut(checksum_at..checksum_at + 2)?.copy_from_slice(&partial.to_be_bytes());
            segments(&packet, start, is_tcp, segment_len)
        }
        _ => None,
    }
}
