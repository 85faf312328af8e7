//! The fence on a real etcd: Debian's, one node and three, killed, frozen, cut off from the others, its answers cut short. Each test
//! holds every signature that was released against every other.
#![allow(
    missing_docs,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use casemate_fence::{Record, StoreOp, StoreResponse};
use casemate_local_etcd::{Certificates, Cluster};
use casemate_protocol::BoundedBytes;
use casemate_protocol::Bytes;
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::configuration::StoreEndpoint;
use casemate_protocol::refusal::{NotHolder, Refusal, StoreTrouble};
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::store::{ClusterId, KeyPrefix};
use casemate_slashing::Ceilings;
use casemate_vault::fence::store::Store;
use casemate_vault::fence::store::etcd::{Etcd, Which};
use common::Bench;
use common::fence::{
    Direct, Member, Memory, Outcome, block, eventually_signs, first_record, judge, network, now_ms, place, siege,
};
use common::linearizable::{Book, check};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// A cluster with the record as operators make it; nothing where etcd is not installed.
fn cluster(nodes: usize) -> Option<(tempfile::TempDir, Cluster)> {
    let folder = tempfile::tempdir().unwrap();
    let Some(cluster) = Cluster::start(folder.path(), nodes).unwrap() else {
        println!("SKIPPED: etcd is not installed (apt-get install etcd-server etcd-client)");
        return None;
    };
    let heard = store(&cluster).ask(&StoreOp::Create(first_record()));
    assert_eq!(heard, (StoreResponse::Swapped, None));
    Some((folder, cluster))
}

fn credentials(certificates: &Certificates) -> StoreCredentials {
    let client = CertificateDer::from_pem_slice(certificates.client.as_bytes()).unwrap();
    let key = PrivatePkcs8KeyDer::from_pem_slice(certificates.client_key.as_bytes()).unwrap();
    StoreCredentials::Etcd {
        certificates: vec![BoundedBytes::new(client.to_vec()).unwrap()],
        key: BoundedBytes::new(key.secret_pkcs8_der().to_vec()).unwrap(),
    }
}

fn id(cluster: &Cluster) -> ClusterId {
    ClusterId::from(cluster.id().unwrap())
}

fn store_at(cluster: &Cluster, ports: &[u16]) -> Etcd<Direct> {
    let root = CertificateDer::from_pem_slice(cluster.certificates.root.as_bytes()).unwrap();
    let endpoint = |port: &u16| StoreEndpoint { host: "localhost".into(), port: *port };
    let endpoints: Vec<StoreEndpoint> = ports.iter().map(endpoint).collect();
    let prefix = KeyPrefix::default();
    let which = Which { endpoints: &endpoints, root: &root, cluster: id(cluster), prefix: &prefix };
    let mut store = Etcd::new(Arc::new(Direct), place(), &which).unwrap();
    assert!(!store.is_open());
    assert!(store.open(&credentials(&cluster.certificates)));
    store
}

fn ports(cluster: &Cluster) -> Vec<u16> {
    cluster.endpoints().iter().map(|(_, port)| *port).collect()
}

fn store(cluster: &Cluster) -> Etcd<Direct> {
    store_at(cluster, &ports(cluster))
}

fn start(bench: &Bench, network: &casemate_protocol::Network, cluster: &Cluster, first: usize) -> Member {
    let mut ports = ports(cluster);
    let count = ports.len();
    ports.rotate_left(first % count);
    Member::start(bench, network, Box::new(store_at(cluster, &ports)))
}

#[test]
fn a_swap_takes_place_once_and_from_the_very_record() {
    let Some((_folder, cluster)) = cluster(1) else { return };
    let (mut one, mut two) = (store(&cluster), store(&cluster));
    let first = first_record();
    assert_eq!(one.ask(&StoreOp::Create(first)), (StoreResponse::Conflict, None), "there is one");
    assert_eq!(one.ask(&StoreOp::Read), (StoreResponse::Record(Some(first)), None));
    assert_eq!(two.ask(&StoreOp::Read), (StoreResponse::Record(Some(first)), None));
    let by = |byte: u8| Record { version: 2, holder: Bytes([byte; 32]), term: 1, ..first };
    assert_eq!(one.ask(&StoreOp::Swap { old: first, new: by(1) }), (StoreResponse::Swapped, None));
    assert_eq!(two.ask(&StoreOp::Swap { old: first, new: by(2) }), (StoreResponse::Conflict, None));
    assert_eq!(two.ask(&StoreOp::Read), (StoreResponse::Record(Some(by(1))), None));
    // A record of the same version and other content is another record.
    assert_eq!(one.ask(&StoreOp::Swap { old: by(2), new: by(3) }), (StoreResponse::Conflict, None));
    // Without having read it first: by its value alone.
    let mut fresh = store(&cluster);
    assert_eq!(
        fresh.ask(&StoreOp::Swap { old: by(1), new: Record { version: 3, ..by(1) } }),
        (StoreResponse::Swapped, None)
    );
    // Put back to what it was: it is not what was read any more.
    assert_eq!(two.ask(&StoreOp::Swap { old: by(1), new: by(4) }), (StoreResponse::Conflict, None));
    cluster.wipe().unwrap();
    assert_eq!(one.ask(&StoreOp::Read), (StoreResponse::Record(None), None));
    assert_eq!(one.ask(&StoreOp::Swap { old: by(1), new: by(5) }), (StoreResponse::Conflict, None));
}

#[test]
fn of_many_swaps_at_once_one_takes_place() {
    let Some((_folder, cluster)) = cluster(1) else { return };
    for round in 1..15_u64 {
        let old = match store(&cluster).ask(&StoreOp::Read) {
            (StoreResponse::Record(Some(record)), None) => record,
            other => panic!("{other:?}"),
        };
        let swapped = Mutex::new(0);
        std::thread::scope(|scope| {
            for number in 0..4_u8 {
                let (cluster, swapped) = (&cluster, &swapped);
                scope.spawn(move || {
                    let new = Record { version: round + 1, holder: Bytes([number + 1; 32]), ..old };
                    if store(cluster).ask(&StoreOp::Swap { old, new }).0 == StoreResponse::Swapped {
                        *swapped.lock().unwrap() += 1;
                    }
                });
            }
        });
        assert_eq!(swapped.into_inner().unwrap(), 1);
    }
}

#[test]
fn whoever_has_no_certificate_of_the_root_hears_nothing() {
    let Some((_folder, cluster)) = cluster(1) else { return };
    let other = tempfile::tempdir().unwrap();
    let foreign = Cluster::start(other.path(), 1).unwrap().unwrap();
    // The client of another root: the server ends TLS.
    let mut stranger = store(&cluster);
    assert!(stranger.open(&credentials(&foreign.certificates)));
    assert_eq!(stranger.ask(&StoreOp::Read).0, StoreResponse::Unclear);
    // A server of another root: the vault ends TLS.
    let mut misled = store_at(&cluster, &ports(&foreign));
    assert_eq!(misled.ask(&StoreOp::Read), (StoreResponse::Unclear, Some(StoreTrouble::Tls)));
    let dynamodb = StoreCredentials::Dynamodb { access_key_id: "A".into(), secret_access_key: "s".into() };
    assert!(!misled.open(&dynamodb), "credentials of another kind of store");
}

/// TLS takes the second cluster: it has the same root. It has a copy of the record besides, as somebody makes it who wants the past
/// forgotten.
#[test]
fn another_cluster_under_the_same_root_with_a_copy_of_the_record_is_not_taken() {
    let Some((folder, cluster)) = cluster(1) else { return };
    let twin_folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            std::fs::copy(&path, twin_folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let twin = Cluster::start(twin_folder.path(), 1).unwrap().unwrap();
    assert_eq!(twin.certificates.root, cluster.certificates.root);
    assert_ne!(id(&twin), id(&cluster));
    assert_eq!(store(&twin).ask(&StoreOp::Create(first_record())), (StoreResponse::Swapped, None));
    let mut misled = store_at(&cluster, &ports(&twin));
    let other = (StoreResponse::Unclear, Some(StoreTrouble::OtherStore));
    assert_eq!(misled.ask(&StoreOp::Read), other);
    let new = Record { version: 2, holder: Bytes([1; 32]), term: 1, ..first_record() };
    assert_eq!(misled.ask(&StoreOp::Swap { old: first_record(), new }), other);
    // Nothing is signed on it, and the reason is told.
    let (bench, network) = (Bench::new(), network(100));
    let member = Member::start(&bench, &network, Box::new(store_at(&cluster, &ports(&twin))));
    let begun = Instant::now();
    loop {
        let refused = member.sign(&block(network.slot_at(now_ms()).0, 1)).unwrap_err();
        if refused == Refusal::NotHolder(NotHolder::StoreUnknown(StoreTrouble::OtherStore)) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{refused}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(member.standing(), StatedStatus::Unknown);
    let stated = member.statement().fence.store.unwrap();
    assert!(stated.starts_with(&format!("{}/casemate/#root-sha256=", id(&cluster))), "{stated}");
    drop(member);
    // Where one of the servers is of another cluster, the next one is asked.
    let mut mixed = store_at(&cluster, &[ports(&twin), ports(&cluster)].concat());
    assert_eq!(mixed.ask(&StoreOp::Read), other);
    assert_eq!(mixed.ask(&StoreOp::Read), (StoreResponse::Record(Some(first_record())), None));
}

#[test]
fn clones_on_one_node_that_is_killed_and_frozen_for_longer_than_the_ceilings() {
    let Some((_folder, mut cluster)) = cluster(1) else { return };
    let (bench, network) = (Bench::new(), network(80));
    let members = RwLock::new((0..3).map(|n| start(&bench, &network, &cluster, n)).collect::<Vec<_>>());
    let mut step = 0;
    let outcome = siege(&network, &members, Duration::from_secs(14), 0xe7cd, |random| {
        step += 1;
        std::thread::sleep(Duration::from_millis(300 + random.below(300)));
        match step % 4 {
            0 => {
                cluster.freeze(0, true).unwrap();
                // Ceilings lie three slots ahead.
                std::thread::sleep(Duration::from_millis(600));
                cluster.freeze(0, false).unwrap();
            }
            1 => {
                cluster.kill(0).unwrap();
                std::thread::sleep(Duration::from_millis(100));
                cluster.start_node(0).unwrap();
            }
            _ => {
                let number = usize::try_from(random.below(3)).unwrap();
                let new = start(&bench, &network, &cluster, number);
                drop(std::mem::replace(&mut members.write().unwrap()[number], new));
            }
        }
    });
    println!("{} of {} signed", outcome.released.len(), outcome.asked);
    assert!(outcome.released.len() > 10, "{} signed", outcome.released.len());
}

#[test]
fn clones_on_three_nodes_whose_leader_is_killed_frozen_and_cut_off() {
    let Some((_folder, mut cluster)) = cluster(3) else { return };
    let (bench, network) = (Bench::new(), network(150));
    let members = RwLock::new((0..3).map(|n| start(&bench, &network, &cluster, n)).collect::<Vec<_>>());
    let (mut step, mut leaders) = (0, Vec::new());
    let outcome = siege(&network, &members, Duration::from_secs(24), 0x3_e7cd, |random| {
        step += 1;
        std::thread::sleep(Duration::from_millis(400 + random.below(400)));
        let Some(leader) = cluster.leader() else { return };
        leaders.push(leader);
        match step % 4 {
            0 => {
                cluster.kill(leader).unwrap();
                std::thread::sleep(Duration::from_millis(900));
                cluster.start_node(leader).unwrap();
            }
            1 => {
                // It leads, and nobody hears it: what it is told there must not count.
                cluster.cut_off(leader, true);
                std::thread::sleep(Duration::from_millis(1500));
                cluster.cut_off(leader, false);
            }
            2 => {
                cluster.freeze(leader, true).unwrap();
                std::thread::sleep(Duration::from_millis(1200));
                cluster.freeze(leader, false).unwrap();
            }
            _ => {
                let number = usize::try_from(random.below(3)).unwrap();
                let new = start(&bench, &network, &cluster, number);
                drop(std::mem::replace(&mut members.write().unwrap()[number], new));
            }
        }
    });
    println!("{} of {} signed; leaders {leaders:?}", outcome.released.len(), outcome.asked);
    assert!(outcome.released.len() > 10, "{} signed", outcome.released.len());
    assert!(leaders.windows(2).any(|pair| pair[0] != pair[1]), "the leader was always the same: {leaders:?}");
}

/// Which node leads. A question may fall into an election.
fn leader(cluster: &Cluster) -> usize {
    let begun = Instant::now();
    loop {
        if let Some(leader) = cluster.leader() {
            return leader;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody leads");
    }
}

#[test]
fn a_holder_on_the_wrong_side_of_a_partition_cannot_extend_and_its_successor_can() {
    let Some((_folder, cluster)) = cluster(3) else { return };
    let (bench, network) = (Bench::new(), network(200));
    let lonely = leader(&cluster);
    let all = ports(&cluster);
    let first = Member::start(&bench, &network, Box::new(store_at(&cluster, &all[lonely..=lonely])));
    first.await_standing(StatedStatus::Holding);
    let mut released = vec![eventually_signs(&first, &network, Duration::from_secs(20))];
    cluster.cut_off(lonely, true);
    let others: Vec<u16> = (0..3).filter(|n| *n != lonely).map(|n| all[n]).collect();
    let second = Member::start(&bench, &network, Box::new(store_at(&cluster, &others)));
    second.await_standing(StatedStatus::Holding);
    let begun = Instant::now();
    // Both are asked for the same slots.
    while begun.elapsed() < Duration::from_secs(4) {
        let slot = network.slot_at(now_ms()).0;
        for (member, variant) in [(&first, 1), (&second, 2)] {
            if member.sign(&block(slot, variant)).is_ok() {
                released.push(block(slot, variant));
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // The store may take its time once, so that the ceilings lie behind.
    let begun = Instant::now();
    loop {
        let next = block(network.slot_at(now_ms()).0 + 1, 2);
        match second.sign(&next) {
            Ok(()) => {
                released.push(next);
                break;
            }
            Err(refusal) => assert!(begun.elapsed() < Duration::from_secs(10), "{refusal}"),
        }
    }
    judge(&released);
    let refused = first.sign(&block(network.slot_at(now_ms()).0 + 1, 1));
    assert!(refused.is_err(), "{refused:?}");
    cluster.cut_off(lonely, false);
    // Together again, it learns that it has a successor.
    first.await_standing(StatedStatus::Standby);
}

/// In front of etcd: passes everything on, and ends every so many-th answer in the middle.
fn cutting_proxy(to: u16, every: u64) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let cut = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&cut);
    std::thread::spawn(move || {
        for (number, client) in (1..).zip(listener.incoming().flatten()) {
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { return };
                let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let up = std::thread::spawn(move || drop(std::io::copy(&mut up_from, &mut up_to)));
                let (mut client, mut server) = (client, server);
                // Somewhere behind the first bytes of TLS: in the handshake or in the answer.
                let (mut buffer, mut passed) = ([0; 4096], 0);
                while let Ok(len) = server.read(&mut buffer) {
                    passed += len;
                    let cuts = number % every == 0 && passed > 400;
                    if len == 0 || client.write_all(&buffer[..if cuts { len / 2 } else { len }]).is_err() || cuts {
                        counted.fetch_add(u64::from(cuts), Ordering::SeqCst);
                        break;
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
                let _ = server.shutdown(Shutdown::Both);
                let _ = up.join();
            });
        }
    });
    (port, cut)
}

#[test]
fn answers_that_are_cut_in_the_middle_count_for_nothing() {
    let Some((_folder, cluster)) = cluster(1) else { return };
    let (port, cut) = cutting_proxy(ports(&cluster)[0], 3);
    let (bench, network) = (Bench::new(), network(100));
    let start = || Member::start(&bench, &network, Box::new(store_at(&cluster, &[port])));
    let members = RwLock::new((0..2).map(|_| start()).collect::<Vec<_>>());
    let outcome = siege(&network, &members, Duration::from_secs(8), 0xc07, |random| {
        std::thread::sleep(Duration::from_millis(500));
        if random.below(3) == 0 {
            let number = usize::try_from(random.below(2)).unwrap();
            let new = start();
            drop(std::mem::replace(&mut members.write().unwrap()[number], new));
        }
    });
    let cut = cut.load(Ordering::SeqCst);
    println!("{} of {} signed, {cut} answers cut", outcome.released.len(), outcome.asked);
    assert!(cut > 5, "{cut} answers were cut");
    assert!(outcome.released.len() > 10, "{} signed", outcome.released.len());
}

#[test]
fn a_record_that_somebody_deletes_or_restores_ends_the_signing() {
    let Some((_folder, cluster)) = cluster(1) else { return };
    let (bench, network) = (Bench::new(), network(100));
    let member = start(&bench, &network, &cluster, 0);
    member.await_standing(StatedStatus::Holding);
    cluster.wipe().unwrap();
    member.await_standing(StatedStatus::RolledBack);
    // One that starts now finds none, and makes none.
    let second = start(&bench, &network, &cluster, 0);
    second.await_standing(StatedStatus::NoRecord);
    assert_eq!(Ceilings::ZERO, first_record().ceilings);
}

/// The disk of the only node is full: it reads on, and takes no change any more. The holder signs up to its ceilings and not beyond, and
/// everybody sees the reason; with room again it goes on by itself.
#[test]
fn an_etcd_whose_disk_is_full_holds_the_ceilings_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    // Room for a little: what fills it is a key of somebody else's.
    let started = Cluster::start_with(folder.path(), 1, &["--quota-backend-bytes", "500000"]).unwrap();
    let Some(cluster) = started else { return };
    let heard = store(&cluster).ask(&StoreOp::Create(first_record()));
    assert_eq!(heard, (StoreResponse::Swapped, None));
    let (bench, network) = (Bench::new(), network(200));
    let member = start(&bench, &network, &cluster, 0);
    member.await_standing(StatedStatus::Holding);
    let mut released = vec![eventually_signs(&member, &network, Duration::from_secs(20))];
    let large = "x".repeat(100_000);
    while cluster.etcdctl(0, &["put", "filler", &large]).is_ok() {}
    assert!(cluster.etcdctl(0, &["alarm", "list"]).unwrap().contains("NOSPACE"));
    let StoreResponse::Record(Some(record)) = store(&cluster).ask(&StoreOp::Read).0 else { panic!("it does not read") };
    let refused = await_refusal(&member, &network, &mut released);
    assert!(matches!(refused, Refusal::BlockAboveCeiling { .. }), "{refused:?}");
    let StoreResponse::Record(Some(after)) = store(&cluster).ask(&StoreOp::Read).0 else { panic!("it does not read") };
    assert_eq!(after.version, record.version, "a change was taken");
    let new = Record { version: after.version + 1, ..after };
    assert_eq!(
        store(&cluster).ask(&StoreOp::Swap { old: after, new }).0,
        StoreResponse::Unclear,
        "no is not the answer"
    );
    // Somebody makes room.
    let told = cluster.etcdctl(0, &["endpoint", "status", "-w", "json"]).unwrap();
    let revision = told.split("\"revision\":").nth(1).and_then(|rest| rest.split([',', '}']).next()).unwrap();
    cluster.etcdctl(0, &["compact", revision]).unwrap();
    cluster.etcdctl(0, &["defrag"]).unwrap();
    cluster.etcdctl(0, &["alarm", "disarm"]).unwrap();
    released.push(eventually_signs_block(&member, &network));
    judge(&released);
}

/// Signs blocks for as long as it may; the refusal that ends it.
fn await_refusal(
    member: &Member,
    network: &casemate_protocol::Network,
    released: &mut Vec<casemate_protocol::Duty>,
) -> Refusal {
    let begun = Instant::now();
    loop {
        let next = block(network.slot_at(now_ms()).0, 1);
        match member.sign(&next) {
            Ok(()) => released.push(next),
            Err(refusal @ Refusal::BlockAboveCeiling { .. }) => return refusal,
            Err(refusal) => assert!(begun.elapsed() < Duration::from_secs(20), "{refusal}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it signs on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn eventually_signs_block(member: &Member, network: &casemate_protocol::Network) -> casemate_protocol::Duty {
    let begun = Instant::now();
    loop {
        let next = block(network.slot_at(now_ms()).0, 1);
        match member.sign(&next) {
            Ok(()) => return next,
            Err(refusal) => assert!(begun.elapsed() < Duration::from_secs(30), "{refusal}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One node hears nobody, and everybody hears it; or nobody hears it, and it hears everybody. Such a leader must not go on alone.
#[test]
fn clones_on_three_nodes_of_which_one_direction_is_lost() {
    let Some((_folder, cluster)) = cluster(3) else { return };
    let (bench, network) = (Bench::new(), network(150));
    let book = Book::default();
    let new = |first: usize| {
        let mut ports = ports(&cluster);
        ports.rotate_left(first);
        Member::start(&bench, &network, book.of(Box::new(store_at(&cluster, &ports))))
    };
    let members = RwLock::new((0..3).map(new).collect::<Vec<_>>());
    let (mut step, mut lost) = (0, 0);
    let outcome = siege(&network, &members, Duration::from_secs(16), 0x0a51, |random| {
        step += 1;
        std::thread::sleep(Duration::from_millis(300 + random.below(300)));
        let Some(leader) = cluster.leader() else { return };
        let others = (0..3).filter(|number| *number != leader);
        let directions: Vec<(usize, usize)> = match step % 4 {
            0 => others.map(|other| (leader, other)).collect(),
            1 => others.map(|other| (other, leader)).collect(),
            2 => others.take(1).map(|other| (leader, other)).collect(),
            _ => {
                let number = usize::try_from(random.below(3)).unwrap();
                drop(std::mem::replace(&mut members.write().unwrap()[number], new(number)));
                return;
            }
        };
        lost += 1;
        for (from, to) in &directions {
            cluster.drop_direction(*from, *to, true);
        }
        std::thread::sleep(Duration::from_millis(1500));
        for (from, to) in &directions {
            cluster.drop_direction(*from, *to, false);
        }
    });
    members.into_inner().unwrap().clear();
    told(&outcome, &book);
    assert!(lost > 3, "{lost} directions lost");
    check(&book.events(), Some(first_record())).unwrap();
}

/// The disk of a node is lost, twice: another member takes its place, without data, while enclaves sign.
#[test]
fn clones_on_three_nodes_whose_members_are_replaced() {
    let Some((_folder, mut cluster)) = cluster(3) else { return };
    let (bench, network) = (Bench::new(), network(150));
    let book = Book::default();
    let new = |cluster: &Cluster| Member::start(&bench, &network, book.of(Box::new(store(cluster))));
    let members = RwLock::new((0..2).map(|_| new(&cluster)).collect::<Vec<_>>());
    let mut replaced = 0;
    let outcome = siege(&network, &members, Duration::from_secs(12), 0x0d15c, |random| {
        std::thread::sleep(Duration::from_millis(500 + random.below(300)));
        if replaced < 2
            && let Some(leader) = cluster.leader()
        {
            // The leader's first, and then another's.
            cluster.replace(if replaced == 0 { leader } else { (leader + 1) % 3 }).unwrap();
            replaced += 1;
        } else {
            let number = usize::try_from(random.below(2)).unwrap();
            drop(std::mem::replace(&mut members.write().unwrap()[number], new(&cluster)));
        }
    });
    members.into_inner().unwrap().clear();
    told(&outcome, &book);
    assert!(replaced > 0, "{replaced} members were replaced");
    check(&book.events(), Some(first_record())).unwrap();
}

fn told(outcome: &Outcome, book: &Book) {
    let unclear = book.events().iter().filter(|event| event.heard == StoreResponse::Unclear).count();
    println!(
        "{} of {} signed; {} questions, {unclear} unclear",
        outcome.released.len(),
        outcome.asked,
        book.events().len()
    );
    assert!(outcome.released.len() > 10, "{} signed", outcome.released.len());
}

/// In front of etcd: while it holds back, what clients say from their request on arrives long after they have given up, and then all
/// at once.
fn holding_proxy(to: u16) -> (u16, Arc<AtomicBool>, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (holds, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (shared, counted) = (Arc::clone(&holds), Arc::clone(&late));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (holds, late) = (Arc::clone(&shared), Arc::clone(&counted));
            std::thread::spawn(move || {
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)) else { return };
                let (mut back_from, mut back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let back = std::thread::spawn(move || drop(std::io::copy(&mut back_from, &mut back_to)));
                let (mut client, mut buffer, mut flight) = (client, [0; 16 * 1024], 0);
                while let Ok(len) = client.read(&mut buffer) {
                    if len == 0 {
                        break;
                    }
                    // The first flight is TLS's hello; the request comes with the second.
                    flight += 1;
                    let mut held = false;
                    while flight > 1 && holds.load(Ordering::SeqCst) {
                        held = true;
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    late.fetch_add(u64::from(held), Ordering::SeqCst);
                    if server.write_all(&buffer[..len]).is_err() {
                        break;
                    }
                }
                // It may still be at work on what was late.
                std::thread::sleep(Duration::from_millis(500));
                let _ = server.shutdown(Shutdown::Both);
                let _ = client.shutdown(Shutdown::Both);
                let _ = back.join();
            });
        }
    });
    (port, holds, late)
}

/// Swaps that were given up come true long after: at most one of those that an enclave has asked for, and never over a newer record.
#[test]
fn requests_that_arrive_long_after_they_were_given_up_leave_one_history() {
    let Some((_folder, cluster)) = cluster(1) else { return };
    let (port, holds, late) = holding_proxy(ports(&cluster)[0]);
    let (bench, network) = (Bench::new(), network(150));
    let book = Book::default();
    // One way is slow now and then, the other never.
    let new = |number: usize| {
        let port = if number == 0 { port } else { ports(&cluster)[0] };
        Member::start(&bench, &network, book.of(Box::new(store_at(&cluster, &[port]))))
    };
    let members = RwLock::new((0..2).map(new).collect::<Vec<_>>());
    let mut step = 0;
    let outcome = siege(&network, &members, Duration::from_secs(20), 0x1a7e, |random| {
        step += 1;
        std::thread::sleep(Duration::from_millis(600 + random.below(400)));
        if step % 2 == 0 {
            holds.store(true, Ordering::SeqCst);
            // The client gives up after two seconds, and asks anew.
            std::thread::sleep(Duration::from_millis(4500));
            holds.store(false, Ordering::SeqCst);
        } else if step % 3 == 0 {
            drop(std::mem::replace(&mut members.write().unwrap()[1], new(1)));
        }
    });
    holds.store(false, Ordering::SeqCst);
    members.into_inner().unwrap().clear();
    told(&outcome, &book);
    let late = late.load(Ordering::SeqCst);
    println!("{late} requests were late");
    assert!(late > 2, "{late} requests were late");
    check(&book.events(), Some(first_record())).unwrap();
}

#[test]
fn the_record_on_a_cluster_that_breaks_has_one_history() {
    let Some((_folder, mut cluster)) = cluster(3) else { return };
    let (bench, network) = (Bench::new(), network(150));
    let book = Book::default();
    let new = |cluster: &Cluster, first: usize| {
        let mut ports = ports(cluster);
        ports.rotate_left(first);
        Member::start(&bench, &network, book.of(Box::new(store_at(cluster, &ports))))
    };
    let members = RwLock::new((0..4).map(|n| new(&cluster, n % 3)).collect::<Vec<_>>());
    let mut step = 0;
    let outcome = siege(&network, &members, Duration::from_secs(14), 0x11ea2, |random| {
        step += 1;
        std::thread::sleep(Duration::from_millis(200 + random.below(300)));
        let Some(leader) = cluster.leader() else { return };
        match step % 3 {
            0 => {
                cluster.kill(leader).unwrap();
                std::thread::sleep(Duration::from_millis(700));
                cluster.start_node(leader).unwrap();
            }
            1 => {
                cluster.cut_off(leader, true);
                std::thread::sleep(Duration::from_secs(1));
                cluster.cut_off(leader, false);
            }
            _ => {
                let number = usize::try_from(random.below(4)).unwrap();
                let new = new(&cluster, number % 3);
                drop(std::mem::replace(&mut members.write().unwrap()[number], new));
            }
        }
    });
    members.into_inner().unwrap().clear();
    told(&outcome, &book);
    check(&book.events(), Some(first_record())).unwrap();
}

/// A store that lies as a broken one would: the check must find it.
struct Broken {
    memory: Memory,
    how: How,
    asked: u64,
    stale: Option<Record>,
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// Some reads are answered as the one before was.
    ReadsStale,
    /// Some swaps look at nothing.
    SwapsBlindly,
    /// Some swaps are confirmed and forgotten.
    Forgets,
    /// It is not broken.
    Not,
}

impl Store for Broken {
    fn kind(&self) -> casemate_protocol::statement::RecordKind {
        self.memory.kind()
    }

    fn identity(&self) -> Option<String> {
        self.memory.identity()
    }

    fn ask(&mut self, question: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        self.asked += 1;
        let odd = self.asked.is_multiple_of(5);
        match (self.how, question) {
            (How::ReadsStale, StoreOp::Read) => {
                let heard = self.memory.ask(question);
                let stale = self.stale;
                if let (StoreResponse::Record(found), _) = heard {
                    self.stale = found;
                }
                if odd && stale.is_some() { (StoreResponse::Record(stale), None) } else { heard }
            }
            (How::SwapsBlindly, StoreOp::Swap { new, .. }) if odd => {
                *self.memory.record.lock().unwrap() = Some(*new);
                (StoreResponse::Swapped, None)
            }
            (How::Forgets, StoreOp::Swap { .. }) if odd => (StoreResponse::Swapped, None),
            _ => self.memory.ask(question),
        }
    }

    fn open(&mut self, credentials: &StoreCredentials) -> bool {
        self.memory.open(credentials)
    }

    fn is_open(&self) -> bool {
        true
    }
}

/// Askers that swap whatever they read, on a store of this kind; what they saw.
fn history_of(how: How) -> Book {
    let (memory, book) = (Memory::default(), Book::default());
    *memory.record.lock().unwrap() = Some(first_record());
    // Some answers get lost, as they do.
    memory.losses.store(9, Ordering::SeqCst);
    std::thread::scope(|scope| {
        for number in 1..=4_u8 {
            let (memory, book) = (memory.clone(), book.clone());
            scope.spawn(move || {
                let mut store = book.of(Box::new(Broken { memory, how, asked: u64::from(number), stale: None }));
                let mut known = None;
                for round in 0..120_u8 {
                    if let (StoreResponse::Record(Some(found)), _) = store.ask(&StoreOp::Read) {
                        known = Some(found);
                    }
                    std::thread::yield_now();
                    let Some(old) = known else { continue };
                    let holder = Bytes([[number, round]; 16].concat().try_into().unwrap());
                    let new = Record { version: old.version + 1, holder, ..old };
                    store.ask(&StoreOp::Swap { old, new });
                }
            });
        }
    });
    book
}

#[test]
fn a_store_that_reads_stale_swaps_blindly_or_forgets_is_found_out() {
    let begun = Instant::now();
    check(&history_of(How::Not).events(), Some(first_record())).unwrap();
    for how in [How::ReadsStale, How::SwapsBlindly, How::Forgets] {
        let found = check(&history_of(how).events(), Some(first_record()));
        println!("{how:?}: {found:?}");
        assert!(found.is_err(), "{how:?}");
    }
    println!("judged in {:?}", begun.elapsed());
}
