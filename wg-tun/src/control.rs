//! Owns what is not on the packet path: handshake cryptography, the link's state and what follows from it (sockets are
//! bound only while it is up), requests of the facade, events for the log. One thread per interface, born in the network
//! namespace in which the sockets live.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use wg_core::{Engine, Event, Instant, PublicKey};

use crate::batch::OutBatch;
use crate::cmsg::{self, Epoll, LinkState, Ready};
use crate::device::{DeviceExit, Shared};
use crate::link::{self, LinkNews, LinkWatch, RouteWatch};
use crate::tun::Probe;
use crate::udp::UdpSockets;
use crate::worker::flush;

const WAKE: u64 = 0;
const LINK: u64 = 1;
const ROUTES: u64 = 2;

/// Handshakes between two looks at anything else: about two milliseconds of cryptography.
const HANDSHAKES_PER_TURN: usize = 8;
/// How often a link is looked at that does not tell, and a port tried that was taken.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long our own old sockets are waited for: longer than a worker's round with full sockets.
const CLOSING_PATIENCE: Duration = Duration::from_millis(20);
/// How often, and how far apart, a port is tried soon after it was taken: a program being started has a copy of every
/// descriptor, our old sockets among them, until it begins.
const QUICK_RETRIES: u32 = 20;
const QUICK_RETRY: Duration = Duration::from_millis(10);

/// What the facade asks of the control thread.
pub(crate) enum Request {
    /// Listen on another port, now or once the link is up.
    Listen { port: u16, reply: SyncSender<io::Result<()>> },
}

/// The state of the control thread.
pub(crate) struct Control {
    shared: Arc<Shared>,
    epoll: Epoll,
    out: OutBatch,
    /// `None` if the link is in a namespace where we may not listen.
    link: Option<LinkWatch>,
    routes: Option<RouteWatch>,
    link_is_up: bool,
    /// The port cannot be bound.
    retry: Option<Retry>,
    /// Sockets no longer published that somebody may still use.
    retired: Vec<Weak<UdpSockets>>,
    /// When a link was last looked at that does not tell.
    looked_at: Option<Instant>,
    routes_changed: bool,
    /// When a change of routes was last passed on.
    routes_at: Option<Instant>,
}

/// The next attempt to bind a port.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    attempts: u32,
}

impl Control {
    /// Begins to watch the link. To be called in the network namespace where the sockets are to live.
    pub(crate) fn new(shared: Arc<Shared>, name: &str) -> io::Result<Control> {
        let epoll = Epoll::new()?;
        epoll.add(shared.control_wake.as_fd(), WAKE)?;
        // An adopted descriptor's link may be elsewhere from the beginning.
        let followed = match shared.tun.is_made_here() {
            true => LinkWatch::here(name),
            // Never simply by name: the link of that name here may be a stranger's.
            false => LinkWatch::follow(&shared.tun),
        };
        let mut control = Control {
            shared,
            epoll,
            out: OutBatch::new(),
            link: None,
            routes: None,
            link_is_up: false,
            retry: None,
            retired: Vec::new(),
            looked_at: None,
            routes_changed: false,
            routes_at: None,
        };
        match followed {
            Ok((link, state)) => {
                control.epoll.add(link.as_fd(), LINK)?;
                control.link = Some(link);
                control.on_state(state);
            }
            Err(error) => tracing::warn!(%error, "no link events: the link is looked at once a second"),
        }
        match RouteWatch::here() {
            Ok(routes) => {
                control.epoll.add(routes.as_fd(), ROUTES)?;
                control.routes = Some(routes);
            }
            Err(error) => {
                tracing::warn!(%error, "no route events: source addresses stay until the kernel refuses them")
            }
        }
        Ok(control)
    }

    /// Runs until the device is dropped.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut ready = [Ready::default(); 8];
        let mut has_more = true;
        // The link may have come up before all workers were there.
        self.complete_pairs();
        while !self.shared.is_stopping.load(Ordering::Acquire) {
            for event in self.epoll.wait(&mut ready, self.timeout(has_more))? {
                match event.token {
                    WAKE => self.shared.control_wake.drain(),
                    ROUTES => self.on_routes(),
                    _ => self.on_link_news(),
                }
            }
            self.look();
            self.publish_routes();
            self.serve_requests();
            self.share_work();
            has_more = self.do_handshakes();
            log_events(&self.shared);
        }
        Ok(())
    }

    fn timeout(&self, has_more: bool) -> Option<Duration> {
        if has_more {
            return Some(Duration::ZERO);
        }
        let look = (self.link.is_none() || self.routes_changed).then_some(LOOK_EVERY);
        let retry = self.retry.map(|retry| retry.at.since(cmsg::boot_clock()));
        look.into_iter().chain(retry).min()
    }

    /// Does some handshakes; returns whether there are more.
    fn do_handshakes(&mut self) -> bool {
        let now = cmsg::boot_clock();
        tell_wall_clock(&self.shared.engine, now);
        let report = self.shared.engine.handle_handshakes(HANDSHAKES_PER_TURN, &mut self.out, now);
        if !self.out.is_empty() {
            flush(&self.shared, &mut self.out, self.shared.sockets.first().as_deref(), now);
        }
        if report.deadline_moved {
            self.shared.workers.wake_first();
        }
        report.still_waiting
    }

    fn serve_requests(&mut self) {
        let requests = std::mem::take(&mut *self.shared.requests.lock());
        for Request::Listen { port, reply } in requests {
            // Who asked may have gone away.
            let _ = reply.send(self.listen(port));
        }
    }

    fn listen(&mut self, port: u16) -> io::Result<()> {
        let bound = self.shared.sockets.first().map(|sockets| sockets.port());
        if bound.is_none() {
            // Also what is tried again, if it cannot be bound now.
            self.shared.settings.lock().port = port;
        }
        if self.link_is_up && (port == 0 || bound != Some(port)) {
            return self.bind(port);
        }
        Ok(())
    }

    /// Binds new sockets, then lets the old ones go. To be called while the link is up.
    fn bind(&mut self, port: u16) -> io::Result<()> {
        let mark = self.shared.settings.lock().mark;
        self.retired.retain(|sockets| sockets.strong_count() > 0);
        let sockets = UdpSockets::bind_after(&self.retired, port, mark, CLOSING_PATIENCE)?;
        tracing::debug!(port = sockets.port(), "listening");
        self.retry = None;
        let mut settings = self.shared.settings.lock();
        // A random port stays the same when the link goes down and up again, as in Linux.
        settings.port = sockets.port();
        // The mark may have changed meanwhile.
        if settings.mark != mark {
            sockets.set_mark(settings.mark)?;
        }
        let mut pairs = vec![Arc::new(sockets)];
        self.add_pairs(&mut pairs);
        let old = self.shared.sockets.publish(pairs);
        drop(settings);
        self.retire(&old);
        self.shared.engine.forget_sources();
        // It was down if this port is the first one that could be bound since the link came up.
        self.shared.engine.bring_up(cmsg::boot_clock());
        self.shared.workers.wake_all();
        Ok(())
    }

    /// Looks at what does not tell by itself.
    fn look(&mut self) {
        if self.shared.tun_ended.swap(false, Ordering::AcqRel) && self.shared.tun.probe() != Probe::Deleted {
            self.shared.end(DeviceExit::Failed("the TUN device can no longer be read".into()));
        }
        let now = cmsg::boot_clock();
        if self.link.is_none() && self.looked_at.is_none_or(|at| now.since(at) >= LOOK_EVERY) {
            self.looked_at = Some(now);
            self.look_at_link();
        }
        if self.retry.is_some_and(|retry| retry.at <= cmsg::boot_clock()) {
            self.bring_up();
        }
    }

    /// Looks at a link that does not tell.
    fn look_at_link(&mut self) {
        // It may have come home.
        if let Some((link, state)) = LinkWatch::at_home(&self.shared.tun)
            && self.epoll.add(link.as_fd(), LINK).is_ok()
        {
            tracing::info!("the link is in this network namespace again");
            self.link = Some(link);
            return self.on_state(state);
        }
        // The bare descriptor does not tell the MTU.
        if let Some(state) = link::state_elsewhere(&self.shared.tun) {
            return self.on_state(state);
        }
        match self.shared.tun.probe() {
            Probe::Deleted => self.on_link_deleted(),
            Probe::Up => self.set_up(true),
            Probe::Down => self.set_up(false),
        }
    }

    fn on_link_news(&mut self) {
        match self.link.as_ref().and_then(LinkWatch::poll) {
            Some(LinkNews::State { now, was_down }) => {
                // Whoever takes a link down and up again wants its sessions to end.
                if was_down {
                    self.set_up(false);
                }
                self.on_state(now);
            }
            Some(LinkNews::Left | LinkNews::Lost) => self.on_link_left(),
            None => {}
        }
    }

    /// The link is deleted, or elsewhere, or we lost sight of it.
    fn on_link_left(&mut self) {
        if let Some(link) = self.link.take() {
            self.epoll.remove(link.as_fd());
        }
        if self.shared.tun.probe() == Probe::Deleted {
            return self.on_link_deleted();
        }
        let followed = LinkWatch::follow(&self.shared.tun).and_then(|(link, state)| {
            self.epoll.add(link.as_fd(), LINK)?;
            Ok((link, state))
        });
        match followed {
            Ok((link, state)) => {
                tracing::info!("the link is in another network namespace now");
                self.link = Some(link);
                self.on_state(state);
            }
            Err(error) => {
                tracing::warn!(%error, "no link events from its network namespace: looked at once a second");
                self.looked_at = None;
            }
        }
    }

    fn on_link_deleted(&mut self) {
        self.set_up(false);
        self.shared.end(DeviceExit::LinkDeleted);
    }

    fn on_state(&mut self, state: LinkState) {
        let mtu = u16::try_from(state.mtu).unwrap_or(u16::MAX);
        if self.shared.mtu.swap(mtu, Ordering::Relaxed) != mtu {
            self.shared.engine.set_mtu(mtu);
        }
        self.set_up(state.is_up);
    }

    fn set_up(&mut self, is_up: bool) {
        if self.link_is_up == is_up {
            return;
        }
        self.link_is_up = is_up;
        if is_up {
            self.bring_up();
        } else {
            self.bring_down();
        }
        self.shared.is_up.store(is_up, Ordering::Release);
    }

    fn bring_up(&mut self) {
        let port = self.shared.settings.lock().port;
        match self.bind(port) {
            Ok(()) => tracing::info!("interface up"),
            Err(error) => {
                let attempts = self.retry.map_or(0, |retry| retry.attempts) + 1;
                if attempts == QUICK_RETRIES {
                    tracing::error!(port, %error, "the port cannot be bound; tried again every second");
                }
                let pause = if attempts < QUICK_RETRIES { QUICK_RETRY } else { LOOK_EVERY };
                self.retry = Some(Retry { at: cmsg::boot_clock() + pause, attempts });
            }
        }
    }

    fn bring_down(&mut self) {
        self.retry = None;
        self.shared.engine.bring_down(cmsg::boot_clock());
        let old = self.shared.sockets.publish(Vec::new());
        self.retire(&old);
        self.shared.workers.wake_all();
        tracing::info!("interface down");
    }

    fn retire(&mut self, sockets: &[Arc<UdpSockets>]) {
        self.retired.extend(sockets.iter().map(Arc::downgrade));
    }

    /// Adds pairs of sockets until every worker has one, or the host refuses.
    fn add_pairs(&self, pairs: &mut Vec<Arc<UdpSockets>>) {
        while pairs.len() < self.shared.workers.count() {
            match pairs[0].another() {
                Ok(pair) => pairs.push(Arc::new(pair)),
                Err(error) => {
                    tracing::warn!(%error, "the port cannot be shared between workers: some receive nothing");
                    return;
                }
            }
        }
    }

    /// Starts one more worker if those there are cannot keep up and there is something to share.
    fn share_work(&mut self) {
        let workers = &self.shared.workers;
        if !workers.is_busy.swap(false, Ordering::AcqRel) || workers.count() == workers.limit() {
            return;
        }
        let now = cmsg::boot_clock();
        // Each peer's sessions are one lock: with one peer there is nothing to share.
        if self.shared.engine.has_sessions(workers.count() + 1, now) && link::is_at_home(&self.shared.tun) {
            let added = self.shared.tun.another_queue().and_then(|queue| self.shared.start_worker(queue));
            match added {
                Ok(()) => tracing::debug!(workers = workers.count(), "the interface is busy: one more worker"),
                Err(error) => return tracing::debug!(%error, "no further worker"),
            }
            self.complete_pairs();
        }
    }

    /// Gives sockets to the workers that have none yet, if there are any.
    fn complete_pairs(&self) {
        {
            let _settings = self.shared.settings.lock();
            let mut pairs = self.shared.sockets.all();
            if pairs.is_empty() || pairs.len() >= self.shared.workers.count() {
                return;
            }
            self.add_pairs(&mut pairs);
            self.shared.sockets.publish(pairs);
        }
        self.shared.workers.wake_all();
    }

    /// A full table arriving from a routing daemon is one change a second, not thousands.
    fn on_routes(&mut self) {
        if self.routes.as_ref().is_some_and(RouteWatch::poll) {
            self.routes_changed = true;
        }
    }

    fn publish_routes(&mut self) {
        let now = cmsg::boot_clock();
        if self.routes_changed && self.routes_at.is_none_or(|at| now.since(at) >= LOOK_EVERY) {
            self.routes_changed = false;
            self.routes_at = Some(now);
            // Zero means that routes have never changed.
            let version = self.shared.routes_version.load(Ordering::Relaxed);
            self.shared.routes_version.store(version.wrapping_add(1).max(1), Ordering::Relaxed);
        }
    }
}

/// Tells the engine what time it is.
pub(crate) fn tell_wall_clock(engine: &Engine, now: Instant) {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    engine.set_wall_clock(unix, now);
}

/// Writes what happened to the log; of a flood of events, so many per second.
pub(crate) fn log_events(shared: &Shared) {
    while let Some(event) = shared.engine.poll_event() {
        if !shared.log_budget.lock().spend(cmsg::boot_clock()) {
            continue;
        }
        match event {
            Event::HandshakeCompleted { peer, initiator } => {
                tracing::debug!(peer = %Abbreviated(peer), initiator, "handshake completed");
            }
            Event::HandshakeGaveUp { peer } => {
                tracing::info!(peer = %Abbreviated(peer), "the peer does not answer; handshake given up");
            }
            Event::EndpointMoved { peer, to, .. } => {
                tracing::info!(peer = %Abbreviated(peer), %to, "the peer moved");
            }
            Event::KeysWiped { peer } => {
                tracing::debug!(peer = %Abbreviated(peer), "session ended");
            }
            _ => {}
        }
    }
}

/// Log lines about peers per second, so that a flood of peers does not become one of lines.
const LINES_PER_SECOND: u32 = 20;

/// How many lines may still be written this second.
#[derive(Debug, Default)]
pub(crate) struct LogBudget {
    since: Instant,
    spent: u32,
}

impl LogBudget {
    fn spend(&mut self, now: Instant) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            *self = LogBudget { since: now, spent: 0 };
        }
        self.spent += 1;
        if self.spent == LINES_PER_SECOND + 1 {
            tracing::info!("more about peers is left out of the log for this second");
        }
        self.spent <= LINES_PER_SECOND
    }
}

/// A public key as far as a log needs it.
struct Abbreviated(PublicKey);

impl std::fmt::Display for Abbreviated {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.0.to_string();
        match (text.get(..4), text.get(39..43)) {
            (Some(start), Some(end)) => write!(out, "{start}...{end}"),
            _ => out.write_str("a peer"),
        }
    }
}
