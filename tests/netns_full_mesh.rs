//! Four nodes, every pair peers: one in the cloud, three at home behind a router that translates addresses.
//!
//! ```text
//!   ctb-edge-1 198.51.100.25 -- internet 198.51.100.1 203.0.113.1 -- 203.0.113.10 router 192.168.15.1
//!                                                                                          |
//!                                                     +--------------+--------------+------+
//!                                              192.168.15.3   192.168.15.2   192.168.15.4
//!                                                   wk-1           ms-1           wk-2
//! ```
//! The router forwards UDP 51820, 51821 and 51822 to port 51820 of wk-1, ms-1 and wk-2.
#![cfg(not(virtual_time))]

#[path = "support/netns.rs"]
mod netns;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netns::{Daemon, Host, Keys, SOON, cable, needs_namespaces, wait_until};

#[test]
fn all_twelve_directions_work_with_one_route_per_peer() {
    needs_namespaces!();
    let mesh = Mesh::new(Forwards::Set);
    mesh.up();
    mesh.reach_all();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    for (place, node) in mesh.nodes.iter().enumerate() {
        let others: BTreeSet<String> = (0..4).filter(|&other| other != place).map(Mesh::inner).collect();
        let routes = node.host.sh("ip -4 route show dev wg0 | awk '{print $1}'");
        assert_eq!(
            routes.lines().map(str::to_owned).collect::<BTreeSet<_>>(),
            others,
            "routes of {}",
            node.host.name()
        );
        assert_eq!(node.host.sh("wg show wg0 public-key"), node.keys.public);
        for other in (0..4).filter(|&other| other != place) {
            let peer = node.host.peer("wg0", &mesh.nodes[other].keys.public);
            assert!(now.abs_diff(peer.handshake) < 60, "{} - {other}: {peer:?}", node.host.name());
            assert!(peer.rx_bytes > 0 && peer.tx_bytes > 0);
            assert_eq!(peer.allowed_ips, format!("{}/32", Mesh::inner(other)));
        }
    }
}

#[test]
fn keepalives_hold_the_mapping_of_a_router_that_forgets_after_30_seconds() {
    needs_namespaces!();
    let mesh = Mesh::new(Forwards::None);
    mesh.router
        .sh("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=30 net.netfilter.nf_conntrack_udp_timeout_stream=30");
    mesh.up();
    let edge = &mesh.nodes[EDGE];
    // Without forwards the edge can answer through the mapping, and only there.
    for home in HOME {
        mesh.nodes[home].host.reach(&Mesh::inner(EDGE));
    }
    let quiet = Duration::from_secs(silence_seconds());
    thread::sleep(quiet);
    for home in HOME {
        assert!(edge.host.ping(&Mesh::inner(home), Duration::from_secs(4)), "node {home} after {quiet:?} of silence");
    }

    // The negative twin: without keepalives the mapping is gone after the same silence.
    let silent = &mesh.nodes[HOME[0]];
    silent.host.sh(&format!("wg set wg0 peer {} persistent-keepalive 0", edge.keys.public));
    thread::sleep(Duration::from_secs(45));
    assert!(
        !edge.host.ping(&Mesh::inner(HOME[0]), Duration::from_secs(2)),
        "the router keeps mappings without traffic"
    );
}

/// How long the mapping test is silent; `WGD_TEST_SILENCE` makes it the hour of the story.
fn silence_seconds() -> u64 {
    std::env::var("WGD_TEST_SILENCE").map_or(70, |seconds| seconds.parse().expect("WGD_TEST_SILENCE is in seconds"))
}

#[test]
fn any_node_may_restart_without_the_others_being_touched() {
    needs_namespaces!();
    let mesh = Mesh::new(Forwards::Set);
    mesh.up();
    mesh.reach_all();
    for place in 0..4 {
        let untouched = |of: &Mesh| -> Vec<u64> {
            let pairs = (0..4).flat_map(|left| (0..4).map(move |right| (left, right)));
            pairs
                .filter(|&(left, right)| left != right && left != place && right != place)
                .map(|(left, right)| of.nodes[left].host.peer("wg0", &of.nodes[right].keys.public).handshake)
                .collect()
        };
        let before = untouched(&mesh);
        let node = &mesh.nodes[place].host;
        let daemon = node.processes(&Daemon::Wgd.process_name())[0];
        if place % 2 == 0 {
            node.wg_quick(Daemon::Wgd, "down", "wg0");
        } else {
            daemon.signal("KILL");
        }
        daemon.ends_within(SOON);
        wait_until("the link is gone", SOON, || (!node.try_sh("ip link show wg0").status.success()).then_some(()));
        node.wg_quick(Daemon::Wgd, "up", "wg0");
        // The node that came back speaks first; the others still hold a session that is gone.
        for other in (0..4).filter(|&other| other != place) {
            node.reach(&Mesh::inner(other));
        }
        mesh.reach_all();
        assert_eq!(untouched(&mesh), before, "sessions between the others after the restart of {}", node.name());
    }
}

#[test]
fn the_mesh_heals_when_outer_addresses_and_ports_change() {
    needs_namespaces!();
    let mesh = Mesh::new(Forwards::Set);
    mesh.up();
    mesh.reach_all();

    // A home node moves to another address of the LAN.
    let node = &mesh.nodes[HOME[0]].host;
    node.sh("ip addr del 192.168.15.3/24 dev eth0 && ip addr add 192.168.15.33/24 dev eth0");
    node.sh("ip route replace default via 192.168.15.1");
    for other in [EDGE, HOME[1], HOME[2]] {
        node.reach(&Mesh::inner(other));
    }
    mesh.reach_all();
    let seen = mesh.nodes[HOME[1]].host.peer("wg0", &mesh.nodes[HOME[0]].keys.public).endpoint;
    assert_eq!(seen, "192.168.15.33:51820");

    // Another one listens on another port.
    mesh.nodes[HOME[1]].host.sh("wg set wg0 listen-port 40404");
    for other in [EDGE, HOME[0], HOME[2]] {
        mesh.nodes[HOME[1]].host.reach(&Mesh::inner(other));
    }
    mesh.reach_all();

    // The provider gives the router another address and all its mappings are gone.
    mesh.router.sh("ip addr del 203.0.113.10/24 dev wan && ip addr add 203.0.113.77/24 dev wan");
    mesh.router.sh("ip route replace default via 203.0.113.1; nft flush table ip home");
    mesh.translate(Forwards::Set);
    for home in HOME {
        mesh.nodes[home].host.reach(&Mesh::inner(EDGE));
    }
    mesh.reach_all();
    for home in HOME {
        let seen = mesh.nodes[EDGE].host.peer("wg0", &mesh.nodes[home].keys.public).endpoint;
        assert!(seen.starts_with("203.0.113.77:"), "the edge sees {seen}");
    }
}

#[test]
fn the_edge_may_move_as_long_as_it_speaks_first() {
    needs_namespaces!();
    let mesh = Mesh::new(Forwards::Set);
    mesh.up();
    mesh.reach_all();
    let edge = &mesh.nodes[EDGE].host;
    edge.sh("ip addr del 198.51.100.25/24 dev eth0 && ip addr add 198.51.100.66/24 dev eth0");
    edge.sh("ip route replace default via 198.51.100.1");
    // Mappings belong to the old address: back to the forwarded ports of the file.
    edge.sh("wg syncconf wg0 <(wg-quick strip wg0)");
    for home in HOME {
        edge.reach(&Mesh::inner(home));
    }
    mesh.reach_all();
    for home in HOME {
        let seen = mesh.nodes[home].host.peer("wg0", &mesh.nodes[EDGE].keys.public).endpoint;
        assert_eq!(seen, "198.51.100.66:51820");
    }
}

// ---------------------------------------------------------------------------------------------------------- the mesh

/// Places in [`Mesh::nodes`].
const EDGE: usize = 0;
const HOME: [usize; 3] = [1, 2, 3];

/// Name, last number of the tunnel address, outer address, and where the others find it from outside.
const NODES: [(&str, u8, &str, &str); 4] = [
    ("ctb-edge-1", 31, "198.51.100.25", "198.51.100.25:51820"),
    ("wk-1", 11, "192.168.15.3", "203.0.113.10:51820"),
    ("ms-1", 12, "192.168.15.2", "203.0.113.10:51821"),
    ("wk-2", 13, "192.168.15.4", "203.0.113.10:51822"),
];

struct Mesh {
    nodes: Vec<Node>,
    router: Host,
    _internet: Host,
}

struct Node {
    host: Host,
    keys: Keys,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Forwards {
    Set,
    None,
}

impl Mesh {
    fn new(forwards: Forwards) -> Mesh {
        let nodes: Vec<Node> = NODES.iter().map(|node| Node { host: Host::new(node.0), keys: Keys::new() }).collect();
        let mesh = Mesh { nodes, router: Host::new("router"), _internet: Host::new("internet") };
        mesh.connect();
        mesh.translate(forwards);
        for place in 0..4 {
            mesh.nodes[place].host.write_conf("wg0", &mesh.conf(place));
        }
        mesh
    }

    /// Cables, addresses and routes of the picture above.
    fn connect(&self) {
        let internet = &self._internet;
        cable((&self.nodes[EDGE].host, "eth0"), (internet, "cloud"));
        cable((&self.router, "wan"), (internet, "isp"));
        internet.sh("sysctl -qw net.ipv4.ip_forward=1; ip addr add 198.51.100.1/24 dev cloud; ip addr add 203.0.113.1/24 dev isp");
        self.router.sh("sysctl -qw net.ipv4.ip_forward=1; ip addr add 203.0.113.10/24 dev wan; ip route add default via 203.0.113.1");
        self.router.sh("ip link add lan type bridge; ip addr add 192.168.15.1/24 dev lan; ip link set lan up");
        for home in HOME {
            let port = format!("port{home}");
            cable((&self.nodes[home].host, "eth0"), (&self.router, &port));
            self.router.sh(&format!("ip link set {port} master lan"));
        }
        for (place, node) in self.nodes.iter().enumerate() {
            let gateway = if place == EDGE { "198.51.100.1" } else { "192.168.15.1" };
            node.host.sh("sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.default.rp_filter=2");
            node.host.sh(&format!("ip addr add {}/24 dev eth0; ip route add default via {gateway}", NODES[place].2));
        }
    }

    /// The router's rules: masquerading, port forwards if any, and nothing else gets in.
    fn translate(&self, forwards: Forwards) {
        let mut rules = String::from(
            "table ip home {
               chain out { type nat hook postrouting priority srcnat; oifname wan masquerade; }
               chain forward { type filter hook forward priority filter; policy drop;
                 ct state established,related accept
                 ct status dnat accept
                 iifname lan accept
               }
             }\n",
        );
        if forwards == Forwards::Set {
            rules += "table ip home { chain in { type nat hook prerouting priority dstnat;\n";
            for (place, home) in HOME.into_iter().enumerate() {
                let target = self.nodes[home].host.sh("ip -4 -br addr show dev eth0 | awk '{print $3}' | cut -d/ -f1");
                let listening = self.nodes[home].host.try_sh("wg show wg0 listen-port");
                let port = match String::from_utf8_lossy(&listening.stdout).trim() {
                    "" => "51820".to_owned(),
                    port => port.to_owned(),
                };
                rules += &format!("iifname wan udp dport {} dnat to {target}:{port}\n", 51_820 + place);
            }
            rules += "}\n}\n";
        }
        self.router.sh(&format!("conntrack -F 2>/dev/null || :; nft -f - <<'END'\n{rules}END"));
    }

    /// The node's `wg0.conf`: endpoints on the LAN between home nodes, public ones between home and edge.
    fn conf(&self, place: usize) -> String {
        let mut conf = format!(
            "[Interface]\nAddress = {}/32\nListenPort = 51820\nPrivateKey = {}\nMTU = 1420\nSaveConfig = false\n",
            Mesh::inner(place),
            self.nodes[place].keys.private
        );
        for other in (0..4).filter(|&other| other != place) {
            let both_at_home = place != EDGE && other != EDGE;
            let endpoint = if both_at_home { format!("{}:51820", NODES[other].2) } else { NODES[other].3.into() };
            let (key, prefix) = (&self.nodes[other].keys.public, Mesh::inner(other));
            conf += &format!(
                "\n# {}\n[Peer]\nPublicKey = {key}\nAllowedIPs = {prefix}/32\nEndpoint = {endpoint}\n",
                NODES[other].0
            );
            if place != EDGE && other == EDGE {
                conf += "PersistentKeepalive = 25\n";
            }
        }
        conf
    }

    fn inner(place: usize) -> String {
        format!("172.27.15.{}", NODES[place].1)
    }

    #[track_caller]
    fn up(&self) {
        for node in &self.nodes {
            node.host.wg_quick(Daemon::Wgd, "up", "wg0");
        }
        for home in HOME {
            // Keepalives begin at once; the mappings are there when the edge has heard them.
            let key = &self.nodes[home].keys.public;
            wait_until("the edge hears the home nodes", SOON, || {
                (self.nodes[EDGE].host.peer("wg0", key).handshake > 0).then_some(())
            });
        }
    }

    /// Every node reaches every other one.
    #[track_caller]
    fn reach_all(&self) {
        thread::scope(|scope| {
            for (place, node) in self.nodes.iter().enumerate() {
                scope.spawn(move || {
                    (0..4).filter(|&other| other != place).for_each(|other| node.host.reach(&Mesh::inner(other)))
                });
            }
        });
    }
}
