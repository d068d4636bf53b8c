//! Half an hour of mixed traffic with silences between, against wireguard-go and a real kernel, each side as initiator.
//!
//! Left out of the normal run: `cargo test --release --test netns_soak -- --ignored --test-threads 4`. All four take
//! `WGD_SOAK_MINUTES` (30 unless set) side by side, and print what they counted.
#![cfg(not(virtual_time))]

#[path = "support/interop.rs"]
mod interop;
#[path = "support/netns.rs"]
mod netns;

use std::thread;
use std::time::{Duration, Instant};

use interop::{Family, Kind, Rig, Side, Terms};
use netns::{Running, SOON, needs_namespaces, wait_until};

#[test]
#[ignore = "takes half an hour"]
fn wgd_begins_with_wireguard_go() {
    soak(Kind::WireguardGo, Side::Near);
}

#[test]
#[ignore = "takes half an hour"]
fn wireguard_go_begins_with_wgd() {
    soak(Kind::WireguardGo, Side::Far);
}

#[test]
#[ignore = "takes half an hour"]
fn wgd_begins_with_the_kernel() {
    soak(Kind::Kernel, Side::Near);
}

#[test]
#[ignore = "takes half an hour"]
fn the_kernel_begins_with_wgd() {
    soak(Kind::Kernel, Side::Far);
}

fn soak(kind: Kind, initiator: Side) {
    needs_namespaces!();
    if let Some(reason) = kind.skip() {
        netns::say(&format!("skipped: {reason}"));
        return;
    }
    let mut soak = Soak::new(kind, initiator);
    let minutes: u64 = std::env::var("WGD_SOAK_MINUTES").map_or(30, |text| text.parse().expect("a number of minutes"));
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    for silence in SILENCES.into_iter().cycle() {
        soak.talk();
        if Instant::now() + silence > end {
            break;
        }
        thread::sleep(silence);
    }
    soak.finish();
}

/// Shorter and longer than a keepalive, a rekey and a dead session.
const SILENCES: [Duration; 4] =
    [Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(130), Duration::from_secs(200)];

struct Soak {
    title: String,
    _capture: Running,
    rig: Rig,
    initiator: Side,
    start: Instant,
    talks: Vec<(Duration, Duration)>,
    sent: u32,
    lost: u32,
    bulk_bytes: u64,
    rss_after_first_talk: Option<u64>,
}

impl Soak {
    fn new(kind: Kind, initiator: Side) -> Soak {
        let rig = Rig::new(kind);
        rig.agree(&Terms { initiator, family: Family::V4, preshared: None });
        // Handshake messages alone: types 1 to 3 with their reserved zeros.
        let filter = "udp and udp[8] < 4 and udp[9:2] = 0 and udp[11] = 0";
        let script =
            format!("exec tcpdump -i {} -U -w /run/handshakes -Z root '{filter}' 2>/run/tcpdump", rig.near_device());
        let capture = rig.near.spawn("bash", &["-c", &script]);
        wait_until("tcpdump listens", SOON, || {
            rig.near.try_sh("grep -q listening /run/tcpdump").status.success().then_some(())
        });
        Soak {
            title: format!("{kind:?}, {initiator:?} begins"),
            _capture: capture,
            rig,
            initiator,
            start: Instant::now(),
            talks: Vec::new(),
            sent: 0,
            lost: 0,
            bulk_bytes: 0,
            rss_after_first_talk: None,
        }
    }

    /// Echoes from both sides and TCP both ways; the initiator has the first and the last word.
    fn talk(&mut self) {
        let began = self.start.elapsed();
        self.echoes(self.initiator, 10);
        for reverse in ["", "-R"] {
            self.bulk(reverse);
        }
        self.echoes(self.initiator.other(), 5);
        self.echoes(self.initiator, 2);
        self.talks.push((began, self.start.elapsed()));
        let rss = self.rig.daemon.rss_bytes();
        self.rss_after_first_talk.get_or_insert(rss);
    }

    fn echoes(&mut self, side: Side, seconds: u32) {
        let tally = self.rig.start_traffic(side, seconds).finish();
        if tally.lost > 0 {
            netns::say(&format!(
                "{}, {:?}: {side:?} lost {} of {} echoes",
                self.title,
                self.start.elapsed(),
                tally.lost,
                tally.sent
            ));
        }
        self.sent += tally.sent;
        self.lost += tally.lost;
    }

    fn bulk(&mut self, reverse: &str) {
        // Not faster than an emulated kernel can take: what is asked here is whether it goes on, not how fast it is.
        let report = self.rig.iperf(&format!("-t 3 -b 5M {reverse}"), &Side::Far.inner(Family::V4));
        self.bulk_bytes +=
            report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_else(|| panic!("{}: {report}", self.title));
    }

    /// How many handshakes the traffic that took place calls for: one for every word said two minutes or more after the
    /// last one. The initiator's passive keepalive ten seconds after a talk is a word, too.
    fn expected_handshakes(&self) -> usize {
        let mut words: Vec<Duration> = Vec::new();
        for &(began, ended) in &self.talks {
            let tenths = (ended - began).as_millis() / 100;
            words.extend((0..=tenths as u32).map(|tenth| began + Duration::from_millis(100) * tenth));
            words.push(ended + Duration::from_secs(10));
        }
        let mut session: Option<Duration> = None;
        words
            .into_iter()
            .filter(|&word| {
                let is_due = session.is_none_or(|since| word >= since + Duration::from_secs(120));
                if is_due {
                    session = Some(word);
                }
                is_due
            })
            .count()
    }

    fn finish(self) {
        // The keepalive after the last talk.
        thread::sleep(Duration::from_secs(12));
        let seen = self.rig.near.sh("tcpdump -n -r /run/handshakes 2>/dev/null");
        let count = |side: Side, len: usize| {
            let from = format!("IP {} > ", self.rig.outer(side, Family::V4).replace(':', "."));
            let end = format!("length {len}");
            seen.lines().filter(|line| line.contains(&from) && line.ends_with(&end)).count()
        };
        let initiations = [count(Side::Near, 148), count(Side::Far, 148)];
        let responses = [count(Side::Near, 92), count(Side::Far, 92)];
        let expected = self.expected_handshakes();
        let dead_sessions =
            self.talks.windows(2).filter(|pair| pair[1].0 - pair[0].1 > Duration::from_secs(180)).count() as u32;
        netns::say(&format!(
            "{}: {:?}, {} talks, {} dead sessions; echoes sent {}, lost {}; bulk {} MB; \
             initiations by wgd {}, by the other {}; responses {} and {}; handshakes expected {expected}; \
             resident {} kB after the first talk, {} kB now; processor {} ms",
            self.title,
            self.start.elapsed(),
            self.talks.len(),
            dead_sessions,
            self.sent,
            self.lost,
            self.bulk_bytes / 1_000_000,
            initiations[0],
            initiations[1],
            responses[0],
            responses[1],
            self.rss_after_first_talk.unwrap_or_default() / 1024,
            self.rig.daemon.rss_bytes() / 1024,
            self.rig.daemon.cpu_ticks() * 10,
        ));
        if std::env::var("WGD_SOAK_SHOW").is_ok() {
            netns::say(&seen);
        }
        assert!(self.lost <= dead_sessions, "{} lost, {dead_sessions} sessions died of silence", self.lost);
        let made = initiations[0] + initiations[1];
        assert!(made.abs_diff(expected) <= 1, "{made} initiations, {expected} expected\n{seen}");
    }
}
