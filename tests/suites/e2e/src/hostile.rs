//! The client that wants a key slashed: it asks every enclave, past the proxy, for duties that conflict. And the judge of what came out.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casemate_protocol::frame::{self, MAX_FRAME_LEN};
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, Bytes, Checkpoint, Duty, Epoch, ForkInfo, PublicKey, Reply, Request,
    RequestFrame, Root, SignRequest, Slot, Version,
};

/// The chain's clock.
#[derive(Clone, Copy)]
pub struct Chain {
    pub genesis_ms: u64,
    pub slot_ms: u64,
    pub slots_per_epoch: u64,
    pub root: Root,
    pub version: Version,
}

impl Chain {
    /// Slot and epoch now.
    pub fn now(&self) -> (u64, u64) {
        let slot = now_ms().saturating_sub(self.genesis_ms) / self.slot_ms;
        (slot, slot / self.slots_per_epoch)
    }
}

pub fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// A message that was signed: what differs conflicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    Block { slot: u64, variant: u8 },
    Vote { source: u64, target: u64, variant: u8 },
}

/// A signature that came out.
#[derive(Clone, Copy, Debug)]
pub struct Released {
    /// Number of the key.
    pub key: usize,
    pub message: Message,
    /// When it was asked for.
    pub asked: Instant,
}

/// Whether two messages of one key get it slashed.
pub fn slashable(a: Message, b: Message) -> bool {
    match (a, b) {
        (Message::Block { slot: s1, .. }, Message::Block { slot: s2, .. }) => s1 == s2 && a != b,
        (Message::Vote { source: s1, target: t1, .. }, Message::Vote { source: s2, target: t2, .. }) => {
            (t1 == t2 && a != b) || (s1 < s2 && t2 < t1) || (s2 < s1 && t1 < t2)
        }
        _ => false,
    }
}

/// Pairs of different messages that get the key slashed.
pub fn slashable_pairs(released: &[Released]) -> Vec<(usize, Message, Message)> {
    let mut by_key: BTreeMap<usize, Vec<Message>> = BTreeMap::new();
    for one in released {
        by_key.entry(one.key).or_default().push(one.message);
    }
    let mut found = Vec::new();
    for (key, mut messages) in by_key {
        messages.sort_unstable();
        messages.dedup();
        for (number, a) in messages.iter().enumerate() {
            found.extend(messages[..number].iter().filter(|b| slashable(*a, **b)).map(|b| (key, *a, *b)));
        }
    }
    found
}

/// Of an interop key.
pub fn interop_key(number: usize) -> PublicKey {
    let secret = casemate_dev::interop::secret_key(u32::try_from(number).unwrap());
    Bytes(blst::min_pk::SecretKey::from_bytes(secret.as_slice()).unwrap().sk_to_pk().to_bytes())
}

pub fn duty(chain: Chain, message: Message) -> Duty {
    match message {
        Message::Block { slot, variant } => Duty::Block(BeaconBlockHeader {
            slot: Slot(slot),
            proposer_index: 1,
            parent_root: Bytes([1; 32]),
            state_root: Bytes([2; 32]),
            body_root: Bytes([variant; 32]),
        }),
        Message::Vote { source, target, variant } => {
            let checkpoint = |epoch| Checkpoint { epoch: Epoch(epoch), root: Bytes([variant; 32]) };
            Duty::Attestation(AttestationData {
                slot: Slot(target * chain.slots_per_epoch),
                index: 0,
                beacon_block_root: Bytes([variant; 32]),
                source: checkpoint(source),
                target: checkpoint(target),
            })
        }
    }
}

pub fn request(chain: Chain, public_key: PublicKey, message: Message) -> SignRequest {
    let version = chain.version;
    let fork_info = ForkInfo {
        previous_version: version,
        current_version: version,
        epoch: Epoch(0),
        genesis_validators_root: chain.root,
    };
    SignRequest {
        public_key,
        duty: duty(chain, message),
        fork_info: Some(fork_info),
        signing_root: None,
        proofs: Vec::new(),
    }
}

/// One question to one enclave; nothing where it is away.
pub fn ask_one(stream: &mut Option<UnixStream>, socket: &Path, request: Request) -> Option<Reply> {
    if stream.is_none() {
        let new = UnixStream::connect(socket).ok()?;
        new.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        *stream = Some(new);
    }
    let connection = stream.as_mut()?;
    let exchange = || -> Option<Reply> {
        let mut bytes = Vec::new();
        frame::encode_request(&RequestFrame::new(1, request), &mut bytes);
        connection.write_all(&bytes).ok()?;
        let (mut buffer, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            let len = connection.read(&mut chunk).ok().filter(|len| *len > 0)?;
            buffer.extend_from_slice(&chunk[..len]);
            if let Some((frame, _)) = frame::split(&buffer, MAX_FRAME_LEN).ok()? {
                return Some(frame::decode_reply(frame).ok()?.reply);
            }
        }
    };
    let reply = exchange();
    if reply.is_none() {
        *stream = None;
    }
    reply
}

/// Asks until it is told to stop; what was signed. Each enclave is asked for other variants, the first one from `first` on.
pub fn ask(
    chain: Chain,
    keys: &[PublicKey],
    sockets: &[PathBuf],
    first: u8,
    seed: u64,
    stop: &AtomicBool,
) -> Vec<Released> {
    let released = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (number, socket) in (0_u64..).zip(sockets) {
            let released = &released;
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(0x9e37_79b9).wrapping_add(number + 1));
                let mut stream = None;
                while !stop.load(Ordering::Relaxed) {
                    // The first is the prober's: what it is refused tells about the fence alone.
                    let key = 1 + usize::try_from(random.below(u64::try_from(keys.len()).unwrap() - 1)).unwrap();
                    let (slot, epoch) = chain.now();
                    // Each enclave is asked for something else at the same height.
                    let variant = first + u8::try_from(number).unwrap() * 8 + u8::try_from(random.below(2)).unwrap();
                    let message = if random.below(2) == 0 {
                        Message::Block { slot: (slot + random.below(4)).saturating_sub(2), variant }
                    } else {
                        let target = (epoch + random.below(3)).saturating_sub(1);
                        Message::Vote { source: target.saturating_sub(1 + random.below(4)), target, variant }
                    };
                    let asked = Instant::now();
                    match ask_one(&mut stream, socket, Request::Sign(request(chain, keys[key], message))) {
                        Some(Reply::Signature(_)) => released.lock().unwrap().push(Released { key, message, asked }),
                        Some(_) => {}
                        None => std::thread::sleep(Duration::from_millis(50)),
                    }
                    std::thread::sleep(Duration::from_millis(random.below(10)));
                }
            });
        }
    });
    released.into_inner().unwrap()
}
