//! What lies between the nodes: a front for each node's peer port, which can refuse a node, as a network does that has parted.
//!
//! Which node makes a connection is told by its process: the one that has the connection also listens on a node's peer port.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ports::listen;

/// The fronts of all nodes.
pub struct Peers {
    ports: Vec<u16>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cut: BTreeSet<usize>,
    /// Directions in which nothing arrives: from a node, to a node.
    dropped: BTreeSet<(usize, usize)>,
    /// Connections that are open, from which node (where known) to which.
    open: Vec<(Option<usize>, usize, TcpStream)>,
    /// The peer port of each node, by which its own connections are told.
    peer_ports: Vec<u16>,
}

impl Peers {
    /// Listens on the first of each pair and passes on to the second.
    pub fn start(pairs: &[(u16, u16)]) -> Result<Self> {
        let peer_ports = pairs.iter().map(|(_, peer)| *peer).collect();
        let state = Arc::new(Mutex::new(State { peer_ports, ..State::default() }));
        for (number, (front, peer)) in pairs.iter().copied().enumerate() {
            let listener = listen(front).context("in front of a peer")?;
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    thread::spawn(move || pass(&stream, number, peer, &state));
                }
            });
        }
        Ok(Self { ports: pairs.iter().map(|(front, _)| *front).collect(), state })
    }

    /// The front of a node.
    pub fn port(&self, number: usize) -> u16 {
        self.ports.get(number).copied().unwrap_or_default()
    }

    /// From now on nothing goes from or to this node.
    pub fn cut_off(&self, number: usize, cut: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if cut {
            state.cut.insert(number);
            state.open.retain(|(from, to, stream)| {
                let ours = *from == Some(number) || *to == number;
                if ours {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                !ours
            });
        } else {
            state.cut.remove(&number);
        }
    }

    /// From now on nothing arrives of what `from` says to `to`, no matter who made the connection; or all does again.
    pub fn drop_direction(&self, from: usize, to: usize, dropped: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if dropped {
            state.dropped.insert((from, to));
        } else {
            state.dropped.remove(&(from, to));
        }
    }
}

fn pass(from: &TcpStream, to: usize, peer: u16, state: &Arc<Mutex<State>>) {
    let Ok(address) = from.peer_addr() else { return };
    let source = {
        let ports = state.lock().unwrap_or_else(PoisonError::into_inner).peer_ports.clone();
        node_of(address.port(), &ports)
    };
    let Ok(onward) = TcpStream::connect((Ipv4Addr::LOCALHOST, peer)) else { return };
    {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = state.cut.contains(&to) || source.is_none_or(|source| state.cut.contains(&source));
        let Ok(copy) = from.try_clone() else { return };
        // Whose connection nobody knows is refused while any node is cut off.
        if refused && !state.cut.is_empty() {
            return;
        }
        state.open.push((source, to, copy));
    }
    let (Ok(from_copy), Ok(onward_copy)) = (from.try_clone(), onward.try_clone()) else { return };
    // Who made the connection is not always known: then no direction of it is dropped.
    let there = source.map(|source| (source, to));
    let back_again = there.map(|(source, to)| (to, source));
    let shared = Arc::clone(state);
    let back = thread::spawn(move || copy(&onward_copy, &from_copy, back_again, &shared));
    copy(from, &onward, there, state);
    let _ = back.join();
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, direction: Option<(usize, usize)>, state: &Mutex<State>) {
    let is_dropped = || {
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        direction.is_some_and(|direction| state.dropped.contains(&direction))
    };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            // What was lost is lost: once something arrives again, the connection has a gap, and ends.
            Ok(len) if len > 0 && is_dropped() => {
                while is_dropped() {
                    thread::sleep(Duration::from_millis(10));
                }
                break;
            }
            Ok(len) if len > 0 => {
                if to.write_all(buffer.get(..len).unwrap_or_default()).is_err() {
                    break;
                }
            }
            _ => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Which node has made the connection from this port: the process that has it also listens on one of the peer ports.
fn node_of(port: u16, peer_ports: &[u16]) -> Option<usize> {
    // The connection is in the kernel's table before it is accepted; its process may take a moment to show.
    for _ in 0..20 {
        let (mut of_port, mut of_peers) = (None, vec![None; peer_ports.len()]);
        for line in fs::read_to_string("/proc/net/tcp").ok()?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(inode)) = (fields.get(1), fields.get(9)) else { continue };
            let local = local.split(':').nth(1).and_then(|hex| u16::from_str_radix(hex, 16).ok());
            let listens = fields.get(3) == Some(&"0A");
            if local == Some(port) && !listens {
                of_port = Some((*inode).to_owned());
            }
            for (peer, found) in peer_ports.iter().zip(&mut of_peers) {
                if local == Some(*peer) && listens {
                    *found = Some((*inode).to_owned());
                }
            }
        }
        if let Some(inode) = of_port.filter(|inode| inode != "0") {
            for entry in fs::read_dir("/proc").ok()?.flatten() {
                let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
                let held: BTreeSet<String> = descriptors
                    .flatten()
                    .filter_map(|fd| {
                        fs::read_link(fd.path())
                            .ok()?
                            .to_str()?
                            .strip_prefix("socket:[")?
                            .strip_suffix(']')
                            .map(str::to_owned)
                    })
                    .collect();
                if held.contains(&inode) {
                    let number = of_peers.iter().position(|peer| peer.as_ref().is_some_and(|peer| held.contains(peer)));
                    if number.is_some() {
                        return number;
                    }
                }
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}
