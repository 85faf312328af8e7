//! Ports that somebody else has for a moment.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use casemate_local_etcd::{Cluster, free_port, listen};

/// A process that is being started has all our listeners until it becomes its program.
#[test]
fn a_port_is_taken_again_while_other_threads_start_processes() {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    Command::new("true").status().unwrap();
                }
            });
        }
        for _ in 0..300 {
            let ports = [free_port().unwrap(), free_port().unwrap()];
            assert_ne!(ports[0], ports[1]);
            for port in ports {
                drop(listen(port).unwrap());
                drop(listen(port).unwrap());
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_cluster_waits_for_its_ports() {
    if casemate_local_etcd::program().is_none() {
        println!("SKIPPED: etcd is not installed (apt-get install etcd-server etcd-client)");
        return;
    }
    // Client port, peer port, the port in front of it: each in turn is somebody else's at first.
    for taken in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let ports = [free_port().unwrap(), free_port().unwrap(), free_port().unwrap()];
        std::fs::write(folder.path().join("ports"), ports.map(|port| port.to_string()).join(" ")).unwrap();
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, ports[taken])).unwrap();
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            drop(held);
        });
        let mut cluster = Cluster::start(folder.path(), 1).unwrap().unwrap();
        release.join().unwrap();
        assert_eq!(cluster.endpoints(), [("localhost", ports[0])]);
        assert!((0..20).any(|_| cluster.leader() == Some(0)));
        cluster.kill(0).unwrap();
        cluster.start_node(0).unwrap();
    }
}
