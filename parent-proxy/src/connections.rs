//! Who is connected, and how far each has got: what a crowd of strangers may take, and what may be ended at any moment.
//!
//! A place that is wanted by somebody new is taken from the one that has done nothing with it for the longest time. So sockets that say
//! nothing lock out nobody, however many they are; and at the end only requests that are complete are waited for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::sleep;

/// Connections that were told to go and are not gone yet, beyond the limit.
pub const EVICTING: usize = 32;
/// Longest time without a byte read or written: well above a slot, so that clients find their connections again, and yet
/// one that does not read its answers, or sends a head drop by drop, ends.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// At the end, the time for what is neither a request nor an answer: a body whose last byte is on its way.
const NOTHING: Duration = Duration::from_millis(100);
/// At the end, the time that a client has to take its answer.
const ANSWER: Duration = Duration::from_secs(2);

/// How far a connection has got.
mod phase {
    /// TLS is awaited, and no byte has come.
    pub const SILENT: u8 = 0;
    /// In the midst of the handshake.
    pub const SHAKING: u8 = 1;
    /// May ask, and has not finished its first request.
    pub const FRESH: u8 = 2;
    /// The head of a request is here, its body is not.
    pub const READING: u8 = 3;
    /// A whole request is here, and its answer is not.
    pub const ASKING: u8 = 4;
    /// The answer is being written.
    pub const ANSWERED: u8 = 5;
    /// The answer is out.
    pub const IDLE: u8 = 6;
    /// Somebody else has its place.
    pub const LEAVING: u8 = 7;

    /// The pool of handshakes; who has said nothing goes first.
    pub const HANDSHAKE: [u8; 2] = [SILENT, SHAKING];
    /// Who goes where all places are taken, one after the other. Not who waits for the enclave.
    pub const MAKES_ROOM: [u8; 6] = [FRESH, SILENT, SHAKING, IDLE, READING, ANSWERED];
}

/// How many of each kind there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub clients: usize,
    /// Of them in the midst of a TLS handshake.
    pub handshakes: usize,
    /// Of those from one address.
    pub handshakes_each: usize,
}

impl Limits {
    /// Half of all places for handshakes, and a quarter for those of one address.
    pub fn new(clients: usize) -> Self {
        Self { clients, handshakes: (clients / 2).max(1), handshakes_each: (clients / 4).max(1) }
    }
}

/// What comes from one address; from one /64 of IPv6.
#[derive(Default)]
struct Network {
    open: AtomicUsize,
    /// Of them in the midst of a handshake.
    shaking: AtomicUsize,
}

/// One connection.
pub struct Peer {
    /// Whose it is.
    pub address: SocketAddr,
    network: Arc<Network>,
    /// Counted in its network's handshakes.
    shakes: AtomicBool,
    phase: AtomicU8,
    /// Milliseconds between the listener's start and the last answer.
    idle_since: AtomicU64,
    /// Whether anything came or went since somebody looked: a flag, because this is noted several times a request.
    progress: AtomicBool,
    /// Told to make room.
    evicted: Notify,
    since: Instant,
}

impl Peer {
    fn new(address: SocketAddr, network: Arc<Network>, tls: bool, since: Instant) -> Self {
        network.open.fetch_add(1, Ordering::Relaxed);
        network.shaking.fetch_add(usize::from(tls), Ordering::Relaxed);
        let phase = if tls { phase::SILENT } else { phase::FRESH };
        Self {
            address,
            network,
            shakes: AtomicBool::new(tls),
            phase: AtomicU8::new(phase),
            idle_since: AtomicU64::new(0),
            progress: AtomicBool::new(false),
            evicted: Notify::new(),
            since,
        }
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }

    fn set(&self, phase: u8) {
        self.phase.store(phase, Ordering::Release);
    }

    /// The first byte of a handshake has come.
    pub fn speaks(&self) {
        self.set(phase::SHAKING);
    }

    /// Its handshake is over.
    fn shaken(&self) {
        if self.shakes.swap(false, Ordering::Relaxed) {
            self.network.shaking.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// It may ask from now on.
    pub fn may_ask(&self) {
        self.shaken();
        self.set(phase::FRESH);
    }

    /// The answer to its request is made.
    pub fn answered(&self) {
        self.set(phase::ANSWERED);
    }

    /// A request's head has come.
    pub fn asks(self: &Arc<Self>, body: Incoming) -> Arriving {
        self.set(if body.is_end_stream() { phase::ASKING } else { phase::READING });
        Arriving { body, peer: Arc::clone(self) }
    }

    fn flushed(&self) {
        if self.phase() == phase::ANSWERED {
            self.set(phase::IDLE);
            let millis = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.idle_since.store(millis, Ordering::Relaxed);
        }
    }

    fn evict(&self) {
        self.shaken();
        self.set(phase::LEAVING);
        self.evicted.notify_one();
    }

    /// Whether it has done nothing since it was told to make room.
    pub fn has_left(&self) -> bool {
        self.phase() == phase::LEAVING
    }

    /// Resolves when somebody else needs the place.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Resolves when nothing was read or written for [`IDLE_TIMEOUT`], or up to a third longer.
    pub async fn stall(&self) {
        let mut idle = Duration::ZERO;
        while idle < IDLE_TIMEOUT {
            sleep(IDLE_TIMEOUT / 3).await;
            idle = if self.progress.swap(false, Ordering::Relaxed) { Duration::ZERO } else { idle + IDLE_TIMEOUT / 3 };
        }
    }

    /// Resolves once nothing of this connection is worth waiting for: a request that is with the enclave is, a half one is not.
    pub async fn done(&self) {
        let mut last = Instant::now();
        loop {
            sleep(NOTHING / 5).await;
            let patience = match self.phase() {
                phase::ASKING => {
                    last = Instant::now();
                    continue;
                }
                phase::ANSWERED => ANSWER,
                _ => NOTHING,
            };
            if last.elapsed() >= patience {
                return;
            }
        }
    }
}

/// All connections of a listener.
pub struct Connections {
    limits: Limits,
    table: Mutex<Table>,
    since: Instant,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: BTreeMap<u64, Arc<Peer>>,
    networks: HashMap<IpAddr, Arc<Network>>,
}

impl Table {
    /// Of those who are as far as that: one of the network with most connections, and there the one that has waited longest. So a crowd
    /// makes room for others before they do for it.
    fn idler(&self, phase: u8) -> Option<&Arc<Peer>> {
        let waits = |peer: &&Arc<Peer>| {
            (Reverse(peer.network.open.load(Ordering::Relaxed)), peer.idle_since.load(Ordering::Relaxed))
        };
        self.open.values().filter(|peer| peer.phase() == phase).min_by_key(waits)
    }

    /// Of the handshakes that count: one of the network with most of them, and there the oldest, of those who have said nothing if there
    /// are any.
    fn handshake(&self, counts: impl Fn(&Peer) -> bool) -> Option<&Arc<Peer>> {
        let shakes = |peer: &&Arc<Peer>| phase::HANDSHAKE.contains(&peer.phase()) && counts(peer);
        let order = |peer: &&Arc<Peer>| (Reverse(peer.network.shaking.load(Ordering::Relaxed)), peer.phase());
        self.open.values().filter(shakes).min_by_key(order)
    }
}

/// A place, given back when it is dropped.
pub struct Place {
    connections: Arc<Connections>,
    number: u64,
    /// Whose it is.
    pub peer: Arc<Peer>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.connections.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.open.remove(&self.number);
        self.peer.shaken();
        if self.peer.network.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            table.networks.remove(&network(self.peer.address.ip()));
        }
    }
}

impl Connections {
    /// None yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, table: Mutex::default(), since: Instant::now() })
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).open.len()
    }

    /// Whether somebody must go before the next one comes.
    pub fn crowded(&self) -> bool {
        self.open() >= self.limits.clients
    }

    /// A place for somebody new; where there is none, that of the one who does least with it. Nothing where all have a request with the
    /// enclave.
    pub fn admit(self: &Arc<Self>, address: SocketAddr, tls: bool) -> Option<Place> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let own = table.networks.get(&network(address.ip())).cloned().unwrap_or_default();
        if tls {
            self.make_room_for_handshake(&table, &own);
        }
        if table.open.len() >= self.limits.clients {
            let last = table.open.len() >= self.limits.clients.saturating_add(EVICTING);
            let idler = phase::MAKES_ROOM.iter().find_map(|phase| table.idler(*phase));
            idler.filter(|_| !last)?.evict();
        }
        let number = table.next;
        table.next = table.next.wrapping_add(1);
        table.networks.insert(network(address.ip()), Arc::clone(&own));
        let peer = Arc::new(Peer::new(address, own, tls, self.since));
        table.open.insert(number, Arc::clone(&peer));
        Some(Place { connections: Arc::clone(self), number, peer })
    }

    /// Where the pool is full, or the share of this network, one in the midst of its handshake goes.
    fn make_room_for_handshake(&self, table: &Table, own: &Arc<Network>) {
        let all = || table.networks.values().map(|network| network.shaking.load(Ordering::Relaxed)).sum::<usize>();
        let idler = if own.shaking.load(Ordering::Relaxed) >= self.limits.handshakes_each {
            table.handshake(|peer| Arc::ptr_eq(&peer.network, own))
        } else if all() >= self.limits.handshakes {
            table.handshake(|_| true)
        } else {
            None
        };
        if let Some(idler) = idler {
            idler.evict();
        }
    }
}

/// Whose an address is: one customer has a whole /64 of IPv6.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// A body that tells when all of it has come.
pub struct Arriving {
    body: Incoming,
    peer: Arc<Peer>,
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let whole = match &frame {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            _ => false,
        };
        if whole {
            self.peer.set(phase::ASKING);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that notes its progress.
pub struct Watched<S> {
    stream: S,
    peer: Arc<Peer>,
}

impl<S> Watched<S> {
    /// Of this peer.
    pub fn new(stream: S, peer: Arc<Peer>) -> Self {
        Self { stream, peer }
    }

    fn note(&self) {
        self.peer.progress.store(true, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.note();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.note();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        if written.is_ready() {
            self.note();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        // hyper flushes once it has written all that it has.
        if flushed.is_ready() {
            self.peer.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn is_evicted(place: &Place) -> bool {
        use std::future::Future as _;
        let evicted = std::pin::pin!(place.peer.evicted());
        let is = evicted.poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready();
        if is {
            place.peer.evicted.notify_one();
        }
        is
    }

    #[test]
    fn sockets_that_say_nothing_make_room_and_requests_do_not() {
        let all = Connections::new(Limits::new(4));
        let admit = || all.admit(address("127.0.0.1:1"), false);
        let places: Vec<_> = (0..4).map(|_| admit().unwrap()).collect();
        places[0].peer.set(phase::ASKING);
        places[1].peer.set(phase::ANSWERED);
        places[1].peer.flushed();
        let newer = admit().unwrap();
        assert_eq!(places.iter().map(is_evicted).collect::<Vec<_>>(), [false, false, true, false]);
        drop((places, newer));
        let busy: Vec<_> = (0..4).map(|_| admit().unwrap()).collect();
        for place in &busy {
            place.peer.set(phase::ASKING);
        }
        assert!(admit().is_none());
        drop(busy);
        assert_eq!((all.open(), all.table.lock().unwrap().networks.len()), (0, 0));
    }

    #[test]
    fn a_crowd_makes_room_for_others_and_they_not_for_it() {
        let all = Connections::new(Limits::new(8));
        let client = all.admit(address("192.0.2.1:1"), false).unwrap();
        let crowd: Vec<_> = (0..7).map(|_| all.admit(address("192.0.2.9:1"), false).unwrap()).collect();
        let more: Vec<_> = (0..7).map(|_| all.admit(address("192.0.2.9:1"), false).unwrap()).collect();
        assert!(!is_evicted(&client) && crowd.iter().all(is_evicted) && !more.iter().any(is_evicted));
    }

    #[test]
    fn one_address_has_its_share_of_handshakes_and_pushes_out_its_own_alone() {
        let all = Connections::new(Limits { clients: 100, handshakes: 6, handshakes_each: 3 });
        let client = all.admit(address("192.0.2.1:1"), true).unwrap();
        let flood: Vec<_> = (0..3).map(|_| all.admit(address("[2001:db8::1]:1"), true).unwrap()).collect();
        flood[0].peer.speaks();
        let fourth = all.admit(address("[2001:db8::ffff]:1"), true).unwrap();
        assert_eq!(flood.iter().map(is_evicted).collect::<Vec<_>>(), [false, true, false]);
        // Who has said half a hello goes too, where nobody is left who has said nothing.
        flood[2].peer.speaks();
        fourth.peer.speaks();
        let fifth = all.admit(address("[2001:db8::2]:1"), true).unwrap();
        assert!(is_evicted(&flood[0]) && !is_evicted(&fifth) && !is_evicted(&client));
        // Many addresses fill the pool: the one with most gives.
        let others: Vec<_> = (1..=4).map(|n| all.admit(address(&format!("198.51.100.{n}:1")), true).unwrap()).collect();
        assert!(!is_evicted(&client) && !others.iter().any(is_evicted));
    }
}
