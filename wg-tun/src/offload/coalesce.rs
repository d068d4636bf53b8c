//! Owns what is to be written to the TUN device: decrypted packets, those of one flow joined to super-packets as Linux's
//! own GRO joins them.
//!
//! 1. `reserve` guesses that the next packet continues the run that was continued last, and lends room from where its
//!    payload would then already be in place: its headers lie over the last bytes of the run, which are saved.
//! 2. `commit` looks at the packet. If the guess was right, the saved bytes are put back and the run is longer, and
//!    nothing was copied. If not, the packet moves: behind the run it belongs to, or to a place of its own. A full
//!    segment behind others, as a bulk transfer has them, is recognised by a few comparisons with the run's headers.
//! 3. `next_frame` completes each run's headers and gives it out with a virtio header, in the order of their beginnings.
//!
//! A run is continued only by what segmentation would make of it again: same flow, same headers, no gap, the same
//! payload length but for the last, and a checksum that is right. Whatever else a flow sends ends its run.

use wg_core::packet::checksum::fold;
use wg_core::{Instant, PacketSink, SourceChecked};

use super::*;
use crate::batch::{MAX_RECEIVED, MAX_RECEIVED_LEN};
use crate::cmsg::{Pages, checksum_sum};

/// Bytes kept free in front of a packet, for the virtio header.
const HEAD_ROOM: usize = 32;
/// Runs that can grow at a time: flows joined in one batch.
const MAX_OPEN: usize = 16;
/// The longest super-packet: what an IPv4 header can state.
const MAX_SUPER_LEN: usize = 65_535;
/// The longest headers of a flow whose packets are joined: IPv6 and TCP with all options.
const MAX_HEADERS: usize = IPV6_HEADER_LEN + 60;
/// Segments of a UDP run; the kernel takes no more from a socket either.
const MAX_UDP_SEGMENTS: u32 = 64;
/// Room a run is given to grow.
const RUN_ROOM: usize = MAX_SUPER_LEN + MAX_HEADERS;
/// Room for a whole received batch of packets that nothing joins.
const SINGLE_ROOM: usize = MAX_RECEIVED_LEN + MAX_RECEIVED * (HEAD_ROOM + ALIGN) + RUN_ROOM;
const MEMORY_LEN: usize = MAX_OPEN * 2 * (RUN_ROOM + HEAD_ROOM + ALIGN) + SINGLE_ROOM;
/// Packets begin at multiples of this many bytes.
const ALIGN: usize = 16;
/// How long packets of a kind are not joined after the kernel refused them joined.
const SINGLY_FOR: std::time::Duration = std::time::Duration::from_secs(60);

/// Packets for the TUN device: the sink of the engine.
///
/// One batch at a time: [`clear`](Self::clear), then the engine, then [`next_frame`](Self::next_frame) until it is
/// empty, each frame written with one call. The packets of a flow come out in the order in which they went in; those of
/// different flows may pass each other. Address space for the largest batch is taken at once, memory only as it is used.
#[derive(Debug)]
pub struct CoalesceBatch {
    memory: Pages,
    runs: Vec<Run>,
    /// The runs that can still grow; the last one was continued last.
    open: Vec<Open>,
    /// Where free memory begins.
    top: usize,
    reserved: Option<Reserved>,
    saved: [u8; MAX_HEADERS],
    next: usize,
    /// Per kind, from when on its packets are joined; `None` never.
    joined_from: [Option<Instant>; 4],
    now: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Reserved {
    at: usize,
    len: usize,
    /// The run it may continue, over whose last bytes it lies.
    guess: Option<usize>,
}

/// A run that can still grow.
#[derive(Clone, Copy, Debug)]
struct Open {
    index: usize,
    tag: u64,
}

/// A packet, or several joined.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: usize,
    end: usize,
    /// How far it may grow.
    limit: usize,
    count: u32,
    /// Whether the first packet's checksums were looked at. They are when the second one comes.
    is_verified: bool,
    shape: Option<Shape>,
}

/// What a packet must have for others to be joined to it.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kind: Kind,
    /// Differs for most flows, so that few of them are compared byte by byte.
    tag: u64,
    transport: usize,
    headers_len: usize,
    /// 0 if nothing may be joined to it, nor it to anything.
    payload_len: usize,
    /// TCP: the sequence number behind it.
    next_sequence: u32,
    /// IPv4: identification; of the last packet, in a run.
    identification: u16,
    /// Nothing follows: a push, an end, or a shorter packet.
    is_last: bool,
}

/// One write to the TUN device.
#[derive(Debug)]
#[non_exhaustive]
pub struct CoalescedFrame<'a> {
    /// The virtio header, if there is one, and the packet.
    pub bytes: &'a mut [u8],
    /// The virtio header, also if the device has none.
    pub header: VirtioHeader,
    /// Packets in it.
    pub count: u32,
    /// The kind, if packets were joined.
    pub joined: Option<Kind>,
}

impl CoalesceBatch {
    /// Joins packets of the `kinds` given, those that the device takes as super-packets.
    pub fn new(kinds: &[Kind]) -> CoalesceBatch {
        let joined_from = Kind::EACH.map(|kind| kinds.contains(&kind).then_some(Instant::EPOCH));
        CoalesceBatch {
            memory: Pages::new(MEMORY_LEN),
            runs: Vec::with_capacity(MAX_RECEIVED),
            open: Vec::with_capacity(MAX_OPEN),
            top: 0,
            reserved: None,
            saved: [0; MAX_HEADERS],
            next: 0,
            joined_from,
            now: Instant::EPOCH,
        }
    }

    /// Forgets everything, and begins a batch at `now`.
    pub fn clear(&mut self, now: Instant) {
        self.runs.clear();
        self.open.clear();
        self.reserved = None;
        (self.top, self.next) = (0, 0);
        self.now = now;
    }

    /// Joins no packets of the kind for a while: the kernel refused them.
    pub fn suspend(&mut self, kind: Kind, now: Instant) {
        let from = &mut self.joined_from[kind as usize];
        *from = from.map(|_| now + SINGLY_FOR);
    }

    /// The next write, with a virtio header of `header_len` bytes, or none if that is 0. `None` when all are given out.
    ///
    /// Panics if no virtio header has that length.
    pub fn next_frame(&mut self, header_len: usize) -> Option<CoalescedFrame<'_>> {
        check_header_len(header_len);
        self.roll_back();
        let run = *self.runs.get(self.next)?;
        self.next += 1;
        let joined = run.shape.filter(|_| run.count > 1);
        let mut header = VirtioHeader::default();
        if let Some(shape) = joined {
            header = complete(&mut self.memory[run.start..run.end], &shape);
        }
        let bytes = &mut self.memory[run.start - header_len..run.end];
        if header_len > 0 {
            header.write(&mut bytes[..header_len]);
        }
        Some(CoalescedFrame { bytes, header, count: run.count, joined: joined.map(|shape| shape.kind) })
    }

    /// Keeps a packet whose source nobody checked.
    #[cfg(test)]
    pub(super) fn commit_for_test(&mut self, len: usize) {
        self.commit_len(len);
    }

    /// Keeps the first `len` bytes of the reservation as a packet.
    fn commit_len(&mut self, len: usize) {
        let Some(Reserved { at, guess, .. }) = self.reserved.take() else { return };
        if let Some(index) = guess
            && self.is_next_segment(index, at, len)
        {
            self.lengthen(index, at);
            return;
        }
        let packet = &self.memory[at..at + len];
        let shape = Shape::of(packet);
        let flow = match &shape {
            Some(shape) => self.run_of_flow(packet, shape, guess),
            None => {
                if may_hide_a_flow(packet) {
                    self.close_all();
                }
                None
            }
        };
        match (flow, shape) {
            (Some(index), Some(shape)) if self.continues(index, at, len, &shape) => {
                self.join(index, at, len, &shape, guess);
            }
            (flow, shape) => {
                if let Some(index) = flow {
                    self.close(index);
                }
                self.begin(at, len, shape, guess);
            }
        }
    }

    /// Whether the packet at `at` is one more full segment of the run, behind the second one, and belongs where it lies.
    #[inline]
    fn is_next_segment(&self, index: usize, at: usize, len: usize) -> bool {
        let run = &self.runs[index];
        let Some(first) = &run.shape else { return false };
        let end = run.end + first.payload_len;
        let fits = end <= run.limit && end - run.start <= MAX_SUPER_LEN;
        let has_room = first.kind.is_tcp() || run.count < MAX_UDP_SEGMENTS;
        if !run.is_verified || len != first.headers_len + first.payload_len || !fits || !has_room {
            return false;
        }
        let headers = &self.memory[run.start..run.start + first.headers_len];
        let packet = &self.memory[at..at + len];
        first.precedes(headers, packet) && first.is_checksum_right(packet)
    }

    /// Joins the packet at `at`, found to be the run's next segment, where it lies.
    #[inline]
    fn lengthen(&mut self, index: usize, at: usize) {
        let run = &mut self.runs[index];
        let (start, covered_to) = (run.start, run.end);
        let Some(first) = &mut run.shape else { return };
        let mut flags = 0;
        if first.kind.is_tcp() {
            first.next_sequence = first.next_sequence.wrapping_add(first.payload_len as u32);
            flags = self.memory[at + first.transport + TCP_FLAGS] & (FIN | PSH);
        }
        if first.kind.is_v4() {
            first.identification = u16_at(&self.memory[at..at + IPV4_HEADER_LEN], 4);
        }
        run.end += first.payload_len;
        run.count += 1;
        let flags_at = start + first.transport + TCP_FLAGS;
        copy_headers(&mut self.memory[at..covered_to], &self.saved[..covered_to - at]);
        if flags != 0 {
            self.memory[flags_at] |= flags;
            self.close(index);
        }
    }

    /// The open run of the packet's flow; the guess first.
    #[inline]
    fn run_of_flow(&self, packet: &[u8], shape: &Shape, guess: Option<usize>) -> Option<usize> {
        let is_flow = |&index: &usize| {
            let run = &self.runs[index];
            let first = &self.memory[run.start..];
            run.shape.is_some_and(|run| run.kind == shape.kind) && is_same_flow(first, packet, shape.kind)
        };
        // The packet may lie over the end of the guess, but never over its headers.
        let open = || self.open.iter().rev().filter(|open| open.tag == shape.tag).map(|open| open.index);
        guess.filter(is_flow).or_else(|| open().find(is_flow))
    }

    /// Whether the packet may be joined to the run.
    #[inline]
    fn continues(&mut self, index: usize, at: usize, len: usize, shape: &Shape) -> bool {
        let run = self.runs[index];
        let Some(first) = run.shape else { return false };
        let fits = run.end + shape.payload_len <= run.limit && run.end - run.start + shape.payload_len <= MAX_SUPER_LEN;
        let has_room = first.kind.is_tcp() || run.count < MAX_UDP_SEGMENTS;
        if !fits || !has_room || shape.payload_len == 0 || shape.payload_len > first.payload_len {
            return false;
        }
        let headers = &self.memory[run.start..run.start + first.headers_len];
        let packet = &self.memory[at..at + len];
        if !first.accepts(shape, headers, packet) || !shape.is_checksum_right(packet) {
            return false;
        }
        if !run.is_verified {
            // The bytes of a single packet that the guess covers are in `saved`; nobody else's are covered.
            if !self.is_first_right(index, at) {
                return false;
            }
            self.runs[index].is_verified = true;
        }
        true
    }

    /// Whether the only packet of a run has the right checksums; `at` is where the next one lies, maybe over its end.
    fn is_first_right(&mut self, index: usize, at: usize) -> bool {
        let run = self.runs[index];
        let Some(shape) = run.shape else { return false };
        if at >= run.end || at + shape.headers_len != run.end {
            return shape.is_checksum_right(&self.memory[run.start..run.end]);
        }
        self.swap_saved(at, shape.headers_len);
        let is_right = shape.is_checksum_right(&self.memory[run.start..run.end]);
        self.swap_saved(at, shape.headers_len);
        is_right
    }

    fn swap_saved(&mut self, at: usize, len: usize) {
        self.saved[..len].swap_with_slice(&mut self.memory[at..at + len]);
    }

    /// Joins the packet at `at` to the run.
    #[inline]
    fn join(&mut self, index: usize, at: usize, len: usize, shape: &Shape, guess: Option<usize>) {
        let flags = if shape.kind.is_tcp() { self.memory[at + shape.transport + TCP_FLAGS] } else { 0 };
        if guess != Some(index) {
            let to = self.runs[index].end;
            self.memory.copy_within(at + shape.headers_len..at + len, to);
        }
        if let Some(guess) = guess {
            self.restore(guess, at);
        }
        let run = &mut self.runs[index];
        run.end += shape.payload_len;
        run.count += 1;
        let Some(first) = &mut run.shape else { return };
        first.next_sequence = shape.next_sequence;
        first.identification = shape.identification;
        let is_last = shape.is_last || shape.payload_len < first.payload_len;
        if shape.kind.is_tcp() {
            self.memory[run.start + shape.transport + TCP_FLAGS] |= flags & (FIN | PSH);
        }
        if is_last {
            self.close(index);
        } else if self.open.last().is_none_or(|last| last.index != index) {
            self.open.retain(|open| open.index != index);
            self.open.push(Open { index, tag: shape.tag });
        }
    }

    /// Makes the packet at `at` a run of its own.
    fn begin(&mut self, at: usize, len: usize, shape: Option<Shape>, guess: Option<usize>) {
        let start = self.fresh();
        if start != at {
            self.memory.copy_within(at..at + len, start);
        }
        if let Some(guess) = guess {
            self.restore(guess, at);
        }
        let can_grow = shape.is_some_and(|shape| {
            let is_wanted = self.joined_from[shape.kind as usize].is_some_and(|from| self.now >= from);
            is_wanted && !shape.is_last && shape.payload_len > 0
        });
        // Of what is free, enough is kept for a batch that nothing joins.
        let has_room = self.open.len() < MAX_OPEN && start + RUN_ROOM + SINGLE_ROOM <= self.memory.len();
        let end = start + len;
        let limit = if can_grow && has_room { start + RUN_ROOM } else { end };
        let index = self.runs.len();
        self.runs.push(Run { start, end, limit, count: 1, is_verified: false, shape });
        self.top = limit;
        if limit > end {
            self.open.push(Open { index, tag: shape.map_or(0, |shape| shape.tag) });
        }
    }

    /// Lets the run grow no more; memory behind it becomes free if nothing lies there.
    fn close(&mut self, index: usize) {
        self.open.retain(|open| open.index != index);
        let run = &mut self.runs[index];
        if self.top == run.limit {
            self.top = run.end;
        }
        run.limit = run.end;
    }

    fn close_all(&mut self) {
        while let Some(open) = self.open.last() {
            self.close(open.index);
        }
    }

    /// Where the next packet goes if it continues nothing.
    fn fresh(&self) -> usize {
        (self.top + HEAD_ROOM).next_multiple_of(ALIGN)
    }

    /// Puts back the bytes of the guess that the packet at `at` covered.
    #[inline]
    fn restore(&mut self, guess: usize, at: usize) {
        let end = self.runs[guess].end;
        copy_headers(&mut self.memory[at..end], &self.saved[..end - at]);
    }

    fn roll_back(&mut self) {
        if let Some(Reserved { at, guess: Some(guess), .. }) = self.reserved.take() {
            self.restore(guess, at);
        }
    }
}

impl PacketSink for CoalesceBatch {
    #[inline]
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.roll_back();
        // Wherever it goes at first, there must be a place of its own left.
        let fresh = self.fresh();
        if fresh + len > self.memory.len() {
            return None;
        }
        let guess = self.open.last().map(|open| open.index).filter(|&index| {
            let run = &self.runs[index];
            // The packet must not come to lie over the headers of the run itself.
            run.shape.is_some_and(|shape| {
                run.end - run.start >= 2 * shape.headers_len && run.end - shape.headers_len + len <= run.limit
            })
        });
        let at = match guess {
            Some(index) => {
                let run = &self.runs[index];
                let headers_len = run.shape.map_or(0, |shape| shape.headers_len);
                let at = run.end - headers_len;
                copy_headers(&mut self.saved[..headers_len], &self.memory[at..run.end]);
                at
            }
            None => fresh,
        };
        self.reserved = Some(Reserved { at, len, guess });
        Some(&mut self.memory[at..at + len])
    }

    #[inline]
    fn commit(&mut self, packet: SourceChecked) {
        let most = self.reserved.map_or(0, |reserved| reserved.len);
        self.commit_len(packet.len().min(most));
    }
}

impl Shape {
    /// The shape of a packet that takes part in a flow; `None` for whatever is not plain TCP or UDP: fragments, IP
    /// options, extension headers. Without payload if it must be passed on alone.
    #[inline]
    fn of(packet: &[u8]) -> Option<Shape> {
        let (is_v4, transport, protocol) = match packet.first()? {
            0x45 if packet.len() >= IPV4_HEADER_LEN => {
                let is_fragment = u16_at(packet, 6) & 0x3fff != 0;
                if is_fragment || usize::from(u16_at(packet, 2)) != packet.len() {
                    return None;
                }
                (true, IPV4_HEADER_LEN, packet[9])
            }
            first if first >> 4 == 6 && packet.len() >= IPV6_HEADER_LEN => {
                if usize::from(u16_at(packet, 4)) + IPV6_HEADER_LEN != packet.len() {
                    return None;
                }
                (false, IPV6_HEADER_LEN, packet[6])
            }
            _ => return None,
        };
        let identification = if is_v4 { u16_at(packet, 4) } else { 0 };
        let mut shape = Shape {
            kind: match (protocol, is_v4) {
                (PROTOCOL_TCP, true) => Kind::Tcp4,
                (PROTOCOL_TCP, false) => Kind::Tcp6,
                (PROTOCOL_UDP, true) => Kind::Udp4,
                (PROTOCOL_UDP, false) => Kind::Udp6,
                _ => return None,
            },
            tag: 0,
            transport,
            headers_len: transport + UDP_HEADER_LEN,
            payload_len: 0,
            next_sequence: 0,
            identification,
            is_last: false,
        };
        // Both have their ports first. Whatever else is wrong, it is of the flow, and keeps its place in it.
        let header = packet.get(transport..).filter(|header| header.len() >= 4)?;
        shape.tag = flow_tag(packet, transport);
        if shape.kind.is_tcp() {
            shape.read_tcp(header);
        } else {
            shape.read_udp(header, is_v4);
        }
        Some(shape)
    }

    #[inline]
    fn read_tcp(&mut self, header: &[u8]) {
        let header_len = header.get(12).map_or(0, |offset| usize::from(offset >> 4) * 4);
        if header_len < TCP_HEADER_LEN || header_len > header.len() {
            return;
        }
        let flags = header[TCP_FLAGS];
        // What only concerns one segment is passed on alone.
        if flags & (SYN | RST | URG | CWR) != 0 {
            return;
        }
        self.headers_len = self.transport + header_len;
        self.payload_len = header.len() - header_len;
        self.next_sequence = u32_at(header, TCP_SEQUENCE).wrapping_add(self.payload_len as u32);
        self.is_last = flags & (FIN | PSH) != 0;
    }

    #[inline]
    fn read_udp(&mut self, header: &[u8], is_v4: bool) {
        if header.len() < UDP_HEADER_LEN || usize::from(u16_at(header, 4)) != header.len() {
            return;
        }
        // Without a checksum it is not a packet of IPv6. RFC 8200 8.1.
        if is_v4 || u16_at(header, UDP_CHECKSUM) != 0 {
            self.payload_len = header.len() - UDP_HEADER_LEN;
        }
    }

    /// Whether `packet` of shape `next` has the headers that segmentation would give it behind `headers`, the run's.
    #[inline]
    fn accepts(&self, next: &Shape, headers: &[u8], packet: &[u8]) -> bool {
        if next.headers_len != self.headers_len {
            return false;
        }
        let ip_agrees = if self.kind.is_v4() {
            let is_atomic = headers[6] & 0x40 != 0;
            // The identification of a packet that may not be fragmented says nothing. RFC 6864 4.1.
            headers[1] == packet[1]
                && headers[6] == packet[6]
                && headers[8] == packet[8]
                && (is_atomic || next.identification == self.identification.wrapping_add(1))
        } else {
            headers[..4] == packet[..4] && headers[7] == packet[7]
        };
        let (mine, theirs) = (&headers[self.transport..], &packet[next.transport..next.headers_len]);
        let transport_agrees = if self.kind.is_tcp() {
            // Acknowledgement; data offset and reserved bits; flags; window; all options. The run's flags have no push
            // or end, because it would be closed.
            u32_at(theirs, TCP_SEQUENCE) == self.next_sequence
                && mine[8..13] == theirs[8..13]
                && (mine[TCP_FLAGS] ^ theirs[TCP_FLAGS]) & !(FIN | PSH) == 0
                && mine[14..16] == theirs[14..16]
                && mine[18..] == theirs[18..]
        } else {
            (u16_at(mine, UDP_CHECKSUM) == 0) == (u16_at(theirs, UDP_CHECKSUM) == 0)
        };
        ip_agrees && transport_agrees
    }

    /// Whether `packet`, as long as the run's first, has the same headers but for what segmentation makes differ:
    /// identification, sequence number, push and end, checksums. Asked of headers that were looked at when the run began,
    /// so that what is equal is also sound.
    #[inline]
    fn precedes(&self, headers: &[u8], packet: &[u8]) -> bool {
        let (ip_differs, mine, theirs) = if self.kind.is_v4() {
            let (Some(mine), Some(theirs)) = (headers.first_chunk(), packet.first_chunk()) else { return false };
            (self.differs_v4(mine, theirs), &headers[IPV4_HEADER_LEN..], &packet[IPV4_HEADER_LEN..self.headers_len])
        } else {
            let (Some(mine), Some(theirs)) = (headers.first_chunk(), packet.first_chunk()) else { return false };
            (differs_v6(mine, theirs), &headers[IPV6_HEADER_LEN..], &packet[IPV6_HEADER_LEN..self.headers_len])
        };
        if self.kind.is_tcp() {
            let (Some((mine, my_options)), Some((theirs, their_options))) =
                (mine.split_first_chunk(), theirs.split_first_chunk())
            else {
                return false;
            };
            !ip_differs && !self.differs_tcp(mine, theirs) && is_equal(my_options, their_options)
        } else {
            let (Some(mine), Some(theirs)) = (mine.first_chunk(), theirs.first_chunk()) else { return false };
            !ip_differs && !differs_udp(mine, theirs)
        }
    }

    #[inline]
    fn differs_v4(&self, mine: &[u8; IPV4_HEADER_LEN], theirs: &[u8; IPV4_HEADER_LEN]) -> bool {
        // The identification of a packet that may not be fragmented says nothing. RFC 6864 4.1.
        let is_next = mine[6] & 0x40 != 0 || u16_at(theirs, 4) == self.identification.wrapping_add(1);
        // Version, traffic class, length; fragment; hop limit, protocol; addresses.
        let differs = u64::from(u32_at(mine, 0) ^ u32_at(theirs, 0))
            | u64::from(u16_at(mine, 6) ^ u16_at(theirs, 6))
            | u64::from(u16_at(mine, 8) ^ u16_at(theirs, 8))
            | (u64_at(mine, 12) ^ u64_at(theirs, 12));
        differs != 0 || !is_next
    }

    #[inline]
    fn differs_tcp(&self, mine: &[u8; TCP_HEADER_LEN], theirs: &[u8; TCP_HEADER_LEN]) -> bool {
        const MAY_END: u32 = ((FIN | PSH) as u32) << 16;
        // Ports; acknowledgement; data offset, flags, window; urgent pointer.
        let differs = (u32_at(mine, 0) ^ u32_at(theirs, 0))
            | (u32_at(mine, 8) ^ u32_at(theirs, 8))
            | (u32_at(mine, 12) ^ u32_at(theirs, 12)) & !MAY_END
            | u32::from(u16_at(mine, 18) ^ u16_at(theirs, 18));
        differs != 0 || u32_at(theirs, TCP_SEQUENCE) != self.next_sequence
    }

    /// Whether the checksums are right, so that new ones may be made for the joined packet.
    #[inline]
    fn is_checksum_right(&self, packet: &[u8]) -> bool {
        let is_v4 = self.kind.is_v4();
        if is_v4 && fold(word_sum::<IPV4_HEADER_LEN>(packet, 0)) != 0xffff {
            return false;
        }
        let transport_len = (packet.len() - self.transport) as u32;
        if !self.kind.is_tcp() && u16_at(packet, self.transport + UDP_CHECKSUM) == 0 {
            return true;
        }
        let protocol = if self.kind.is_tcp() { PROTOCOL_TCP } else { PROTOCOL_UDP };
        // The addresses are directly in front of the transport header.
        let addresses_at = if is_v4 { 12 } else { 8 };
        fold(checksum_sum(&packet[addresses_at..]) + u32::from(protocol) + transport_len) == 0xffff
    }
}

#[inline]
fn differs_v6(mine: &[u8; IPV6_HEADER_LEN], theirs: &[u8; IPV6_HEADER_LEN]) -> bool {
    // All of it; the length too, as packets of one length are compared.
    (0..IPV6_HEADER_LEN).step_by(8).fold(0, |differs, at| differs | (u64_at(mine, at) ^ u64_at(theirs, at))) != 0
}

#[inline]
fn differs_udp(mine: &[u8; UDP_HEADER_LEN], theirs: &[u8; UDP_HEADER_LEN]) -> bool {
    let has_checksum = |header: &[u8; UDP_HEADER_LEN]| u16_at(header, UDP_CHECKSUM) != 0;
    let differs = (u32_at(mine, 0) ^ u32_at(theirs, 0)) | u32::from(u16_at(mine, 4) ^ u16_at(theirs, 4));
    differs != 0 || has_checksum(mine) != has_checksum(theirs)
}

/// Equality of TCP options: mostly none, or a time stamp.
#[inline]
fn is_equal(mine: &[u8], theirs: &[u8]) -> bool {
    match (mine.as_array::<12>(), theirs.as_array::<12>()) {
        (Some(mine), Some(theirs)) => mine == theirs,
        _ => mine == theirs,
    }
}

/// Addresses and ports, mixed.
#[inline]
fn flow_tag(packet: &[u8], transport: usize) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let ports = u64::from(u32_at(packet, transport));
    let addresses = if transport == IPV4_HEADER_LEN {
        u64_at(packet, 12)
    } else {
        (8..40).step_by(8).fold(0, |mixed: u64, at| mixed.wrapping_mul(ODD) ^ u64_at(packet, at))
    };
    (addresses ^ ports << 16).wrapping_mul(ODD) ^ ports
}

/// Whether a packet without a shape may be of a flow nevertheless: a fragment, or one with IP options or extension headers.
/// What the flow sends afterwards must not overtake it.
fn may_hide_a_flow(packet: &[u8]) -> bool {
    const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];
    match packet.first() {
        Some(0x45) if packet.len() >= IPV4_HEADER_LEN => {
            u16_at(packet, 6) & 0x3fff != 0 || matches!(packet[9], PROTOCOL_TCP | PROTOCOL_UDP)
        }
        Some(first) if first >> 4 == 6 && packet.len() >= IPV6_HEADER_LEN => {
            matches!(packet[6], PROTOCOL_TCP | PROTOCOL_UDP) || EXTENSIONS.contains(&packet[6])
        }
        _ => true,
    }
}

/// Same addresses and ports, both of the kind given.
#[inline]
fn is_same_flow(first: &[u8], packet: &[u8], kind: Kind) -> bool {
    let names = if kind.is_v4() { 12..24 } else { 8..44 };
    first[names.clone()] == packet[names]
}

/// Makes the headers of a run those of one super-packet, and says so in a virtio header.
fn complete(packet: &mut [u8], shape: &Shape) -> VirtioHeader {
    let len = packet.len();
    let transport_len = len - shape.transport;
    let is_v4 = shape.kind.is_v4();
    if is_v4 {
        put_u16(packet, 2, len as u16);
        put_u16(packet, 10, 0);
        let checksum = !fold(word_sum::<IPV4_HEADER_LEN>(packet, 0));
        put_u16(packet, 10, checksum);
    } else {
        put_u16(packet, 4, (len - IPV6_HEADER_LEN) as u16);
    }
    let protocol = if shape.kind.is_tcp() {
        PROTOCOL_TCP
    } else {
        put_u16(packet, shape.transport + 4, transport_len as u16);
        PROTOCOL_UDP
    };
    let partial = fold(address_sum(packet, is_v4, protocol) + transport_len as u32);
    let checksum_offset = shape.kind.checksum_offset();
    put_u16(packet, shape.transport + checksum_offset, partial);
    VirtioHeader {
        flags: NEEDS_CHECKSUM,
        gso_type: shape.kind.gso_type(),
        header_len: shape.headers_len as u16,
        segment_len: shape.payload_len as u16,
        checksum_start: shape.transport as u16,
        checksum_offset: checksum_offset as u16,
    }
}
