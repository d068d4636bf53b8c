//! Owns what is known of our own addresses: whether datagrams from one still leave by the interface a peer was heard on.

use std::collections::HashMap;
use std::net::SocketAddr;

use wg_core::SourceAddr;

use crate::link::RouteQuery;

/// Source addresses remembered as looked at: a few megabytes, if there are as many peers. The next one makes room by
/// forgetting all, which costs one look at a route each.
const MAX_VERDICTS: usize = 1 << 16;

/// Which source addresses were looked at since routes last changed, and what was found.
#[derive(Debug, Default)]
pub(super) struct SourceCheck {
    query: Option<RouteQuery>,
    /// The version of the routes and the mark that the verdicts are about.
    asked: (u32, u32),
    pub(super) verdicts: HashMap<(SocketAddr, SourceAddr), Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It leads there by the interface the peer was heard on.
    Current,
    /// It does not, as was just found.
    NewlyOutdated,
    /// It does not, as is known: where the way back is another one, a peer is heard at such an address again and again.
    KnownOutdated,
}

impl SourceCheck {
    /// Forgets what was found with other routes or another mark.
    pub(super) fn begin(&mut self, routes_version: u32, mark: u32) {
        if self.asked != (routes_version, mark) {
            self.asked = (routes_version, mark);
            self.verdicts.clear();
        }
    }

    /// Whether datagrams from the source address still leave by the interface the peer was heard on. Linux's own
    /// WireGuard asks this of every route it looks up; one of ours is looked up once after each change of routes.
    pub(super) fn verdict(&mut self, remote: SocketAddr, source: SourceAddr, mark: u32) -> Verdict {
        if let Some(&verdict) = self.verdicts.get(&(remote, source)) {
            return verdict;
        }
        if self.query.is_none() {
            self.query = RouteQuery::here().ok();
        }
        let Some(query) = &self.query else { return Verdict::Current };
        let (now, later) = match query.interface(remote, source.ip, mark) == Some(source.ifindex) {
            true => (Verdict::Current, Verdict::Current),
            false => (Verdict::NewlyOutdated, Verdict::KnownOutdated),
        };
        if self.verdicts.len() >= MAX_VERDICTS {
            self.verdicts.clear();
        }
        self.verdicts.insert((remote, source), later);
        now
    }
}
