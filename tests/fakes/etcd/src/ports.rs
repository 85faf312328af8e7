//! Ports for what tests start: programs that take a port's number and listen there themselves.
//!
//! A port that was found free can be taken for a moment, even by ourselves: a process that another thread is starting has all our
//! listeners until it becomes its program. Who listens therefore tries again.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many ports this process has looked at.
static NEXT: AtomicU32 = AtomicU32::new(0);
const FIRST_PORT: u32 = 10_000;
/// The most that are looked through.
const MOST_PORTS: u32 = 20_000;
const PATIENCE: Duration = Duration::from_secs(10);

/// One that nobody has now and that this process has not given out before. It lies below those that the kernel gives to connections
/// (as far as there are such): none of them takes it before its program listens there, nor between two starts.
pub fn free_port() -> Result<u16> {
    Ok(free()?.local_addr().context("the free port")?.port())
}

fn free() -> Result<TcpListener> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let of_connections: Option<u32> = range.split_whitespace().next().and_then(|first| first.parse().ok());
    let count = of_connections
        .and_then(|first| first.checked_sub(FIRST_PORT))
        .filter(|count| *count >= 1000)
        .map_or(MOST_PORTS, |count| count.min(MOST_PORTS));
    for _ in 0..count {
        // Each process starts elsewhere.
        let next = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(131));
        let port = u16::try_from(FIRST_PORT.saturating_add(next % count)).context("a port")?;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener);
        }
    }
    bail!("none of the {count} ports from {FIRST_PORT} on is free")
}

/// Listens on this port, also where it is taken for a moment.
pub fn listen(port: u16) -> Result<TcpListener> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            heard => return heard.with_context(|| format!("listening on port {port}")),
        }
    }
}

/// Client port, peer port and the port in front of it, for each node; the same ones for a folder that has some, where 0 stands for
/// however many there are.
pub(crate) fn of(folder: &Path, nodes: usize) -> Result<Vec<[u16; 3]>> {
    let path = folder.join("ports");
    if let Ok(text) = fs::read_to_string(&path) {
        let numbers: Vec<u16> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let ports: Vec<[u16; 3]> = numbers.chunks_exact(3).filter_map(|three| three.try_into().ok()).collect();
        if nodes > 0 && ports.len() != nodes {
            bail!("{} is of a cluster of {} nodes", path.display(), ports.len());
        }
        return Ok(ports);
    }
    // All are held at once, so that none is given out twice.
    let held = (0..nodes.saturating_mul(3)).map(|_| free()).collect::<Result<Vec<_>>>()?;
    let numbers = held.iter().map(|l| Ok(l.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    let text: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    fs::write(&path, text.join(" ")).with_context(|| format!("writing {}", path.display()))?;
    Ok(numbers.chunks_exact(3).filter_map(|three| three.try_into().ok()).collect())
}
