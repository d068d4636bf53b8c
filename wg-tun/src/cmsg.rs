//! Owns every call into the kernel that std and socket2 cannot make: many messages per call, control messages, event
//! descriptors, TUN ioctls, the boot clock. The only file of this crate with `unsafe`; it decides nothing.
//!
//! Each wrapper takes safe types, and no pointer outlives the call it is made for.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use libc::c_int;
#[cfg(target_arch = "x86_64")]
use wg_core::packet::checksum::fold;
use wg_core::packet::checksum::sum;
use wg_core::{Endpoint, Instant, SourceAddr};

/// What the kernel takes at most in one call; more are sent in several.
const MESSAGES_PER_SEND: usize = 16;
/// Room for the control messages of one datagram, either way: packet info (40 at most), traffic class, segment size.
const CONTROL_LEN: usize = 128;
/// Receive buffer of a netlink socket in bytes: a thousand events, each of which is charged a kilobyte or two.
const NETLINK_BUFFER_LEN: c_int = 1 << 20;

/// The time since boot, suspended time included.
pub(crate) fn boot_clock() -> Instant {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that lives through the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
    Instant::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// A descriptor that becomes readable when it is notified, until it is drained.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    pub(crate) fn new() -> io::Result<EventFd> {
        // SAFETY: eventfd takes no pointers; the result is checked before it is owned.
        unsafe { own(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)) }.map(EventFd)
    }

    /// Makes it readable.
    pub(crate) fn notify(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes are read from `one`. A full counter refuses, and then it is readable already.
        unsafe { libc::write(self.0.as_raw_fd(), ptr::from_ref(&one).cast(), 8) };
    }

    /// Makes it unreadable again.
    pub(crate) fn drain(&self) {
        let mut count = 0_u64;
        // SAFETY: eight bytes are written to `count`. It refuses when it was not notified, which is as good.
        unsafe { libc::read(self.0.as_raw_fd(), ptr::from_mut(&mut count).cast(), 8) };
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor that becomes readable when a time has come.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    pub(crate) fn new() -> io::Result<Timer> {
        // SAFETY: timerfd_create takes no pointers; the result is checked before it is owned.
        unsafe { own(libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC)) }.map(Timer)
    }

    /// Becomes readable at `at`, and unreadable until then.
    pub(crate) fn set(&self, at: Instant) -> io::Result<()> {
        // Zero would disarm it.
        let nanos = at.as_nanos().max(1);
        let value = libc::timespec { tv_sec: (nanos / 1_000_000_000) as _, tv_nsec: (nanos % 1_000_000_000) as _ };
        let time = libc::itimerspec { it_interval: timespec(Duration::ZERO), it_value: value };
        // SAFETY: `time` lives through the call, and the old value is not asked for.
        check(unsafe { libc::timerfd_settime(self.0.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &time, ptr::null_mut()) })?;
        Ok(())
    }

    /// Makes it unreadable until it is set again.
    pub(crate) fn drain(&self) {
        let mut count = 0_u64;
        // SAFETY: eight bytes are written to `count`. It refuses when the time has not come, which is as good.
        unsafe { libc::read(self.0.as_raw_fd(), ptr::from_mut(&mut count).cast(), 8) };
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How the kernel chooses who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheduling {
    /// Every thread gets its share.
    Fair,
    /// Before every fair thread.
    Realtime,
}

/// Schedules the calling thread so from now on, but not those it starts. `Realtime` needs CAP_SYS_NICE or RLIMIT_RTPRIO.
pub(crate) fn set_scheduling(scheduling: Scheduling) -> io::Result<()> {
    let (policy, sched_priority) = match scheduling {
        // Who may go back to real time by a resource limit only may not take the other flag away.
        Scheduling::Fair => (libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK, 0),
        Scheduling::Realtime => (libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1),
    };
    // SAFETY: zero is a value of sched_param, which has more fields with some C libraries.
    let mut parameter: libc::sched_param = unsafe { mem::zeroed() };
    parameter.sched_priority = sched_priority;
    // The system call and not the library's function, which musl refuses to make.
    // SAFETY: `parameter` begins with the priority, which is all the kernel reads, and lives through the call; 0 is the
    // calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &parameter) };
    check(result as c_int)?;
    Ok(())
}

/// A set of descriptors to wait for, each under a number of the caller's choice. Level-triggered.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ready {
    /// The number it was added under.
    pub(crate) token: u64,
    /// It is in an error state, or its other end is gone.
    pub(crate) is_error: bool,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: epoll_create1 takes no pointers; the result is checked before it is owned.
        unsafe { own(libc::epoll_create1(libc::EPOLL_CLOEXEC)) }.map(Epoll)
    }

    /// Waits for `fd` to become readable. It leaves the set when its last duplicate is closed.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: `event` lives through the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // SAFETY: EPOLL_CTL_DEL ignores the event pointer.
        unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), ptr::null_mut()) };
    }

    /// Waits until something is ready or the time is over; `None` waits for ever. Returns the part of `ready` filled.
    pub(crate) fn wait<'a>(&self, ready: &'a mut [Ready; 8], timeout: Option<Duration>) -> io::Result<&'a [Ready]> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
        // Rounded up, so that a deadline has passed when the wait is over.
        let timeout =
            timeout.map_or(-1, |timeout| c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX));
        let room = events.len() as c_int;
        // SAFETY: `events` has `room` elements and lives through the call.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room, timeout) };
        let count = match check_len(count as isize) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for (ready, event) in ready.iter_mut().zip(&events[..count]) {
            let is_error = event.events & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
            *ready = Ready { token: event.u64, is_error };
        }
        Ok(&ready[..count])
    }
}

/// Zeroed memory that costs nothing until it is written to, page by page.
///
/// Batches are laid out for the worst case and seldom see it; an allocator may zero, and so touch, all of it, and huge
/// pages would make the first byte cost two megabytes.
#[derive(Debug)]
pub(crate) struct Pages {
    start: ptr::NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned like a boxed slice; nothing in it is tied to a thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Panics if the address space has no room for `len` bytes, as an allocation would.
    pub(crate) fn new(len: usize) -> Pages {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "no address space for {len} bytes");
        // SAFETY: the mapping was just made. Without huge pages in the kernel this fails and changes nothing.
        unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
        Pages { start: ptr::NonNull::new(start.cast()).expect("a mapping is not at address zero"), len }
    }
}

impl std::ops::Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has `len` bytes, zeroed at first, lives as long as `self`, and is borrowed through it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and no borrow of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// One's complement sum of `bytes` as big-endian words, folded to 16 bits, with the widest vectors the machine has.
/// Equals [`wg_core::packet::checksum::sum`], which is compiled for the least machine.
#[inline]
pub fn checksum_sum(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= mem::size_of::<__m512i>() {
        if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has these, and the kernel keeps their registers.
            return unsafe { sum_avx512(bytes) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { sum_avx2(bytes) };
        }
    }
    sum(bytes)
}

// In both, words of 64 bits are added with their overflow lost, and their high halves apart. That says what was lost:
// the sum of the low halves is the difference, modulo 2^64, and neither sum of halves can overflow. RFC 1071 2 (B), (C).

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn sum_avx512(bytes: &[u8]) -> u32 {
    let zero = _mm512_setzero_si512();
    // Two chains of additions, so that one need not wait for the other.
    let (mut all, mut high) = ([zero; 2], [zero; 2]);
    let mut add = |chain: usize, words: __m512i| {
        all[chain] = _mm512_add_epi64(all[chain], words);
        high[chain] = _mm512_add_epi64(high[chain], _mm512_srli_epi64::<32>(words));
    };
    let (pairs, rest) = bytes.as_chunks::<128>();
    for pair in pairs {
        // SAFETY: the pair has 128 bytes; loads need no alignment.
        let (first, second) =
            unsafe { (_mm512_loadu_si512(pair.as_ptr().cast()), _mm512_loadu_si512(pair.as_ptr().add(64).cast())) };
        add(0, first);
        add(1, second);
    }
    let (blocks, rest) = rest.as_chunks::<64>();
    for block in blocks {
        // SAFETY: the block has 64 bytes.
        add(0, unsafe { _mm512_loadu_si512(block.as_ptr().cast()) });
    }
    let is_there = (1_u64 << rest.len()) - 1;
    // SAFETY: only bytes that are there are read, the others are zero.
    add(1, unsafe { _mm512_maskz_loadu_epi8(is_there, rest.as_ptr().cast()) });
    let (all, high) = (_mm512_add_epi64(all[0], all[1]), _mm512_add_epi64(high[0], high[1]));
    let low = _mm512_sub_epi64(all, _mm512_slli_epi64::<32>(high));
    folded(_mm512_reduce_add_epi64(_mm512_add_epi64(low, high)) as u64)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u32 {
    let zero = _mm256_setzero_si256();
    let (mut all, mut high) = ([zero; 2], [zero; 2]);
    let (pairs, rest) = bytes.as_chunks::<64>();
    for pair in pairs {
        for chain in 0..2 {
            // SAFETY: the pair has 64 bytes, of which these are 32; loads need no alignment.
            let words = unsafe { _mm256_loadu_si256(pair.as_ptr().add(32 * chain).cast()) };
            all[chain] = _mm256_add_epi64(all[chain], words);
            high[chain] = _mm256_add_epi64(high[chain], _mm256_srli_epi64::<32>(words));
        }
    }
    let (all, high) = (_mm256_add_epi64(all[0], all[1]), _mm256_add_epi64(high[0], high[1]));
    let low = _mm256_sub_epi64(all, _mm256_slli_epi64::<32>(high));
    let total = _mm256_add_epi64(low, high);
    let total = _mm_add_epi64(_mm256_castsi256_si128(total), _mm256_extracti128_si256::<1>(total));
    let total = (_mm_cvtsi128_si64(total) as u64) + (_mm_extract_epi64::<1>(total) as u64);
    // What is left begins at an even place.
    u32::from(fold(folded(total) + sum(rest)))
}

/// The sum of words in the machine's byte order, less than 2^60, as a folded sum of big-endian ones.
#[cfg(target_arch = "x86_64")]
#[inline]
fn folded(total: u64) -> u32 {
    let half = (total >> 32) + (total & 0xffff_ffff);
    let half = (half >> 16) + (half & 0xffff);
    u32::from(u16::from_be(fold(half as u32)))
}

/// What `poll` says about one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Polled {
    pub(crate) is_writable: bool,
    pub(crate) is_error: bool,
}

/// Waits until `fd` can be written to, is in error, or the time is over.
pub(crate) fn poll_writable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<Polled> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    let timeout = timespec(timeout);
    // SAFETY: one entry and one timespec, both alive through the call; no signal mask.
    check(unsafe { libc::ppoll(&mut entry, 1, &timeout, ptr::null()) })?;
    Ok(Polled {
        is_writable: entry.revents & libc::POLLOUT != 0,
        is_error: entry.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0,
    })
}

/// One or many datagrams to one endpoint, as the kernel is to send them.
#[derive(Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    /// The datagrams, one behind the other.
    pub(crate) bytes: &'a [u8],
    /// Length of each but the last; 0 if `bytes` is a single datagram.
    pub(crate) segment_len: u16,
    /// Where to.
    pub(crate) remote: SocketAddr,
    /// Our own address to send from; `None` lets the kernel choose.
    pub(crate) source: Option<IpAddr>,
    /// TOS or traffic class.
    pub(crate) traffic_class: u8,
}

/// Sends the first of `messages`, as many as go into one call. Returns how many the kernel took, at least one; the
/// error is that of the first one.
pub(crate) fn send_messages<'a>(
    socket: BorrowedFd<'_>,
    messages: impl Iterator<Item = Outgoing<'a>>,
) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MESSAGES_PER_SEND];
    let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; MESSAGES_PER_SEND];
    let mut names = [const { MaybeUninit::<Name>::uninit() }; MESSAGES_PER_SEND];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; MESSAGES_PER_SEND];
    let mut count = 0;
    for (message, index) in messages.zip(0..MESSAGES_PER_SEND) {
        let (name, name_len) = Name::of(message.remote);
        let name = names[index].write(name);
        let vector = vectors[index]
            .write(libc::iovec { iov_base: message.bytes.as_ptr().cast_mut().cast(), iov_len: message.bytes.len() });
        let control = controls[index].write(Control([0; CONTROL_LEN]));
        let control_len = control.fill(&message);
        // SAFETY: msghdr is integers and pointers, for which zero is a value (padding on some targets has no name).
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_name = ptr::from_mut(name).cast();
        header.msg_namelen = name_len;
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        header.msg_control = if control_len == 0 { ptr::null_mut() } else { control.0.as_mut_ptr().cast() };
        header.msg_controllen = control_len as _;
        headers[index].write(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
        count = index + 1;
    }
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` headers are initialised, and so is all they point to, which lives through the call;
    // the kernel only reads the payload, so that it may stand behind a shared slice.
    let sent =
        unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr().cast(), count as u32, libc::MSG_DONTWAIT) };
    check_len(sent as isize)
}

/// A received run of datagrams from one sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// Bytes received.
    pub(crate) len: usize,
    /// Length of each datagram but the last; 0 if there is one only.
    pub(crate) segment_len: usize,
    /// The sender, and the address of ours that it used.
    pub(crate) from: Endpoint,
    /// The outer ECN field.
    pub(crate) ecn: u8,
}

/// Receives into the `chunk_len`-sized pieces of `buffer` what is there, one message each, and describes it in
/// `received`, which is emptied first. `WouldBlock` if there is nothing.
pub(crate) fn receive_messages(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    chunk_len: usize,
    received: &mut Vec<Received>,
) -> io::Result<()> {
    const MOST: usize = 16;
    received.clear();
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MOST];
    let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; MOST];
    let mut names = [const { MaybeUninit::<Name>::uninit() }; MOST];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; MOST];
    let mut count = 0;
    for (chunk, index) in buffer.chunks_exact_mut(chunk_len).zip(0..MOST) {
        let vector = vectors[index].write(libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() });
        // SAFETY: as above, zero is a value of msghdr.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_name = names[index].as_mut_ptr().cast();
        header.msg_namelen = mem::size_of::<Name>() as u32;
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        header.msg_control = controls[index].as_mut_ptr().cast();
        header.msg_controllen = CONTROL_LEN as _;
        headers[index].write(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
        count = index + 1;
    }
    // SAFETY: the first `count` headers are initialised; each points to room of the stated length that lives through
    // the call and that nothing else refers to.
    let got = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as u32,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
        )
    };
    let got = check_len(got as isize)?;
    for (header, name) in headers[..got].iter().zip(&names) {
        // SAFETY: the kernel filled the first `got` headers, all of which were initialised before.
        let header = unsafe { header.assume_init_ref() };
        // SAFETY: the kernel wrote the whole name of an AF_INET or AF_INET6 sender, of which `family` is the start;
        // `remote` reads no more than the family has. UDP always names the sender.
        let remote = unsafe { Name::remote(name.as_ptr(), header.msg_hdr.msg_namelen) };
        let Some(remote) = remote else { continue };
        let mut message =
            Received { len: header.msg_len as usize, segment_len: 0, from: Endpoint { remote, source: None }, ecn: 0 };
        // SAFETY: the header is the kernel's, and its control buffer is still alive.
        unsafe { read_control(&header.msg_hdr, &mut message) };
        received.push(message);
    }
    Ok(())
}

/// Sets a socket option whose value is an integer.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: four bytes are read from `value`.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), mem::size_of::<c_int>() as u32)
    })
    .map(drop)
}

/// Reads an integer socket option.
pub(crate) fn get_option(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: at most `len` bytes, its size, are written to `value`.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, ptr::from_mut(&mut value).cast(), &mut len) })?;
    Ok(value)
}

/// Reads once from a descriptor.
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: at most `buffer.len()` bytes are written to `buffer`.
    check_len(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

/// Writes once to a descriptor.
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: at most `bytes.len()` bytes are read from `bytes`.
    check_len(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// Makes a descriptor return `WouldBlock` instead of waiting, and not survive an exec.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let fd = fd.as_raw_fd();
    // SAFETY: these fcntl commands take and return integers.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))?;
        check(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC))?;
    }
    Ok(())
}

/// What a TUN descriptor says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TunFlags {
    /// The name of its link.
    pub(crate) name: String,
    /// It is layer 3, not Ethernet.
    pub(crate) is_tun: bool,
    /// Packets carry a virtio header.
    pub(crate) has_virtio_header: bool,
    pub(crate) has_many_queues: bool,
    /// It was there before us, or is meant to stay: somebody else's.
    pub(crate) is_persistent: bool,
}

/// Asks a TUN descriptor for its link. `EBADFD` if the link is deleted, another error if it is no TUN descriptor.
pub(crate) fn tun_flags(fd: BorrowedFd<'_>) -> io::Result<TunFlags> {
    // SAFETY: zero is a value of ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
    // SAFETY: TUNGETIFF fills the flags of the union, which is plain integers in any case.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let name = request.ifr_name.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
    Ok(TunFlags {
        name: String::from_utf8(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?,
        is_tun: flags & libc::IFF_TUN != 0,
        has_virtio_header: flags & libc::IFF_VNET_HDR != 0,
        has_many_queues: flags & libc::IFF_MULTI_QUEUE != 0,
        is_persistent: flags & libc::IFF_PERSIST != 0,
    })
}

/// Opens one more queue of the TUN device that `fd` is a queue of. Its link must be in the calling thread's network
/// namespace; the device must have been made for many queues.
pub(crate) fn open_tun_queue(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: zero is a value of ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path is a C string; the result is checked before it is owned.
    let queue = unsafe { own(libc::open(c"/dev/net/tun".as_ptr(), flags)) }?;
    // SAFETY: TUNGETIFF has filled the flags; those that tell of a queue's state are not for TUNSETIFF.
    unsafe { request.ifr_ifru.ifru_flags &= !(libc::IFF_PERSIST as libc::c_short) };
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    // Had the link been renamed meanwhile, this would be a queue of a new one.
    if tun_flags(queue.as_fd())?.name != tun_flags(fd)?.name {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    Ok(queue)
}

/// Length of the virtio header in front of every packet of a TUN descriptor.
pub(crate) fn tun_header_len(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut len: c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &mut len) })?;
    usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Changes the length of the virtio header in front of every packet, for all descriptors of the link.
pub(crate) fn set_tun_header_len(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let len = c_int::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len) }).map(drop)
}

/// Tells the kernel which super-packets we take from a TUN descriptor: TCP, and what else is said.
pub(crate) fn set_tun_offloads(fd: BorrowedFd<'_>, wanted: TunOffloads) -> io::Result<()> {
    /// `TUN_F_UDP_TUNNEL_GSO` and `TUN_F_UDP_TUNNEL_GSO_CSUM`, which libc does not have yet.
    const TUNNELS: libc::c_uint = 0x080 | 0x100;
    let mut offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    if wanted.udp {
        offloads |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    if wanted.tunnels {
        offloads |= TUNNELS;
    }
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) }).map(drop)
}

/// Super-packets that are wanted beside those of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TunOffloads {
    /// Of UDP. Linux 6.2 and later.
    pub(crate) udp: bool,
    /// Of either, within UDP tunnels. Linux 6.17 and later; the virtio header must have room.
    pub(crate) tunnels: bool,
}

/// The network namespace that a TUN descriptor's link is in now. Needs CAP_NET_ADMIN there.
pub(crate) fn tun_namespace(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: TUNGETDEVNETNS takes no argument and returns a new descriptor.
    unsafe { own(libc::ioctl(fd.as_raw_fd(), libc::TUNGETDEVNETNS)) }
}

/// Moves the calling thread into a network namespace.
pub(crate) fn enter_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes integers and changes this thread only.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Moves the calling thread into a new network namespace.
#[cfg(test)]
pub(crate) fn enter_new_namespace() -> io::Result<()> {
    // SAFETY: unshare takes an integer and changes this thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// A netlink socket that gets the routing events of `groups` (a mask) of the calling thread's network namespace.
pub(crate) fn netlink_socket(groups: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes integers; the result is checked before it is owned.
    let socket = unsafe { own(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE))? };
    // Without privileges it keeps the host's default, and more is lost.
    let _ = set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, NETLINK_BUFFER_LEN)
        .or_else(|_| set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, NETLINK_BUFFER_LEN));
    // SAFETY: zero is a value of sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = groups;
    // SAFETY: the address has the stated length and lives through the call.
    check(unsafe {
        libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), mem::size_of::<libc::sockaddr_nl>() as u32)
    })?;
    Ok(socket)
}

/// A link as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkState {
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    pub(crate) is_up: bool,
}

/// The state of the link `name` in the calling thread's network namespace.
pub(crate) fn link_state(name: &str) -> io::Result<LinkState> {
    // SAFETY: socket takes integers; the result is checked before it is owned.
    let socket = unsafe { own(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))? };
    // SAFETY: zero is a value of ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let fd = socket.as_raw_fd();
    // SAFETY: each call fills the member of the union that is read after it; all are plain integers.
    unsafe {
        check(libc::ioctl(fd, libc::SIOCGIFINDEX as _, &mut request))?;
        let index = request.ifr_ifru.ifru_ifindex as u32;
        check(libc::ioctl(fd, libc::SIOCGIFMTU as _, &mut request))?;
        let mtu = request.ifr_ifru.ifru_mtu as u32;
        check(libc::ioctl(fd, libc::SIOCGIFFLAGS as _, &mut request))?;
        let is_up = c_int::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP != 0;
        Ok(LinkState { index, mtu, is_up })
    }
}

/// A socket address of either family, aligned for the kernel.
#[repr(C)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    fn of(remote: SocketAddr) -> (Name, u32) {
        match remote {
            SocketAddr::V4(remote) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as u16,
                    sin_port: remote.port().to_be(),
                    sin_addr: in_addr(*remote.ip()),
                    sin_zero: [0; 8],
                };
                (Name { v4 }, mem::size_of::<libc::sockaddr_in>() as u32)
            }
            SocketAddr::V6(remote) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as u16,
                    sin6_port: remote.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: remote.ip().octets() },
                    sin6_scope_id: remote.scope_id(),
                };
                (Name { v6 }, mem::size_of::<libc::sockaddr_in6>() as u32)
            }
        }
    }

    /// Reads an address of `len` bytes.
    ///
    /// SAFETY: the caller vouches that the first `len` bytes at `name` are initialised.
    unsafe fn remote(name: *const Name, len: u32) -> Option<SocketAddr> {
        let len = len as usize;
        if len < mem::size_of::<libc::sockaddr_in>() {
            return None;
        }
        // SAFETY: every family's address begins with the family, within `len`; each arm checks the length it reads.
        unsafe {
            match c_int::from((*name).family) {
                libc::AF_INET => {
                    let v4 = (*name).v4;
                    let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                    Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
                }
                libc::AF_INET6 if len >= mem::size_of::<libc::sockaddr_in6>() => {
                    let v6 = (*name).v6;
                    let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                    // The flow label is not part of where somebody is.
                    Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
                }
                _ => None,
            }
        }
    }
}

/// Room for control messages, aligned as their headers are.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

impl Control {
    /// Writes the control messages of a datagram. Returns their length.
    fn fill(&mut self, message: &Outgoing<'_>) -> usize {
        let mut at = 0;
        if message.segment_len != 0 {
            self.put(&mut at, libc::SOL_UDP, libc::UDP_SEGMENT, message.segment_len);
        }
        let (level, kind) = match message.remote {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        if message.traffic_class != 0 {
            self.put(&mut at, level, kind, c_int::from(message.traffic_class));
        }
        // The route decides on the interface, as in Linux's own WireGuard: no index is asked for.
        match (message.remote, message.source) {
            (SocketAddr::V4(_), Some(IpAddr::V4(source))) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(source),
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.put(&mut at, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            (SocketAddr::V6(_), Some(IpAddr::V6(source))) => {
                let info =
                    libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 };
                self.put(&mut at, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            _ => {}
        }
        at
    }

    fn put<T: Copy>(&mut self, at: &mut usize, level: c_int, kind: c_int, value: T) {
        // SAFETY: these two only compute.
        let (len, space) = unsafe {
            (libc::CMSG_LEN(mem::size_of::<T>() as u32) as usize, libc::CMSG_SPACE(mem::size_of::<T>() as u32) as usize)
        };
        let room = &mut self.0[*at..*at + space];
        let header = libc::cmsghdr { cmsg_len: len as _, cmsg_level: level, cmsg_type: kind };
        // SAFETY: `room` holds a header and a value (the slice above would have panicked otherwise); every message
        // takes a multiple of eight bytes, so that the header is aligned; the value is written unaligned.
        unsafe {
            room.as_mut_ptr().cast::<libc::cmsghdr>().write(header);
            let data_at = len - mem::size_of::<T>();
            room.as_mut_ptr().add(data_at).cast::<T>().write_unaligned(value);
        }
        *at += space;
    }
}

/// Reads the control messages the kernel put behind a received message.
///
/// SAFETY: `header` must have been filled by recvmmsg, and its control buffer must be alive.
unsafe fn read_control(header: &libc::msghdr, message: &mut Received) {
    // SAFETY: the CMSG macros walk the buffer within the length the kernel wrote to the header.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while !at.is_null() {
            let len = ((*at).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let data = std::slice::from_raw_parts(libc::CMSG_DATA(at), len);
            match ((*at).cmsg_level, (*at).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => message.segment_len = integer(data) as usize,
                (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    message.ecn = integer(data) as u8 & 0b11;
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if len >= mem::size_of::<libc::in_pktinfo>() => {
                    let info: libc::in_pktinfo = data.as_ptr().cast::<libc::in_pktinfo>().read_unaligned();
                    let ip = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
                    message.from.source = Some(SourceAddr { ip: ip.into(), ifindex: info.ipi_ifindex as u32 });
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if len >= mem::size_of::<libc::in6_pktinfo>() => {
                    let info: libc::in6_pktinfo = data.as_ptr().cast::<libc::in6_pktinfo>().read_unaligned();
                    let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    message.from.source = Some(SourceAddr { ip: ip.into(), ifindex: info.ipi6_ifindex });
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
}

/// The kernel is not of one mind on how long an integer is.
fn integer(data: &[u8]) -> u32 {
    match *data {
        [a, b, c, d, ..] => u32::from_ne_bytes([a, b, c, d]),
        [a, b, ..] => u32::from(u16::from_ne_bytes([a, b])),
        [a] => u32::from(a),
        [] => 0,
    }
}

fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from(ip).to_be() }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec { tv_sec: duration.as_secs() as libc::time_t, tv_nsec: duration.subsec_nanos() as _ }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// SAFETY: `fd` must be the result of a call that returns a new descriptor or -1.
unsafe fn own(fd: RawFd) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the descriptor is open and, by the contract above, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
