//! The client that wants a key slashed: it asks every enclave, past the proxy, for duties that conflict.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casemate_protocol::frame::{self, MAX_FRAME_LEN};
use casemate_protocol::{
    AttestationData, BeaconBlockHeader, Bytes, Checkpoint, Duty, Epoch, ForkInfo, PublicKey, Reply, Request,
    RequestFrame, SignRequest, Slot,
};

use crate::judge::{Message, Released};
use crate::world::{Chain, Random};

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
fn ask_one(stream: &mut Option<UnixStream>, socket: &PathBuf, request: SignRequest) -> Option<Reply> {
    if stream.is_none() {
        let new = UnixStream::connect(socket).ok()?;
        new.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        *stream = Some(new);
    }
    let connection = stream.as_mut()?;
    let exchange = || -> Option<Reply> {
        let mut bytes = Vec::new();
        frame::encode_request(&RequestFrame::new(1, Request::Sign(request)), &mut bytes);
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

/// Asks until it is told to stop; what was signed.
pub fn ask(chain: Chain, keys: &[PublicKey], sockets: &[PathBuf], seed: u64, stop: &AtomicBool) -> Vec<Released> {
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
                    let variant = u8::try_from(number).unwrap() * 8 + u8::try_from(random.below(2)).unwrap();
                    let message = if random.below(2) == 0 {
                        Message::Block { slot: (slot + random.below(4)).saturating_sub(2), variant }
                    } else {
                        let target = (epoch + random.below(3)).saturating_sub(1);
                        Message::Vote { source: target.saturating_sub(1 + random.below(4)), target, variant }
                    };
                    let asked = Instant::now();
                    match ask_one(&mut stream, socket, request(chain, keys[key], message)) {
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
