//! The fence on a DynamoDB that we did not write: moto's. `tests/fakes/kms/moto.py` starts it and says where it is; without it this test
//! says that it was skipped.
#![allow(
    missing_docs,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use casemate_fence::{Record, StoreOp, StoreResponse};
use casemate_protocol::Bytes;
use casemate_protocol::arn::TableArn;
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::refusal::StoreTrouble;
use casemate_vault::SystemClock;
use casemate_vault::fence::store::Store;
use casemate_vault::fence::store::dynamodb::Dynamodb;
use casemate_vault::link::tls::Endpoint;
use common::Bench;
use common::fence::{Direct, Member, first_record, network, place, siege};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// A table of its own in moto; nothing without moto.
fn store(table: &str) -> Option<Dynamodb<Direct>> {
    store_in("123456789012", table)
}

/// The same in an account of one's choice. moto's own is 123456789012.
fn store_in(account: &str, table: &str) -> Option<Dynamodb<Direct>> {
    let (Ok(port), Ok(root)) = (std::env::var("CASEMATE_MOTO_PORT"), std::env::var("CASEMATE_MOTO_ROOT")) else {
        println!("SKIPPED: no moto here (tests/run starts it: tests/fakes/kms/moto.py)");
        return None;
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root).unwrap()).unwrap();
    let endpoint = Endpoint::new("localhost", port.parse().unwrap(), roots).unwrap();
    let arn = format!("arn:aws:dynamodb:eu-central-1:{account}:table/{table}");
    let table = TableArn::parse(&arn).unwrap();
    let mut store = Dynamodb::new(Arc::new(Direct), Arc::new(SystemClock), place(), endpoint, table);
    assert_eq!(store.identity(), Some(arn));
    assert_eq!(store.ask(&StoreOp::Read), (StoreResponse::Unclear, Some(StoreTrouble::NoCredentials)));
    let credentials =
        StoreCredentials::Dynamodb { access_key_id: "AKIDFENCE".into(), secret_access_key: "secret".into() };
    assert!(store.open(&credentials));
    Some(store)
}

#[test]
fn an_items_condition_lets_one_swap_through() {
    let Some(mut one) = store("casemate-fence-1") else { return };
    let mut two = store("casemate-fence-1").unwrap();
    let first = first_record();
    assert_eq!(one.ask(&StoreOp::Read), (StoreResponse::Record(None), None));
    assert_eq!(one.ask(&StoreOp::Swap { old: first, new: first }), (StoreResponse::Conflict, None), "there is none");
    assert_eq!(one.ask(&StoreOp::Create(first)), (StoreResponse::Swapped, None));
    assert_eq!(two.ask(&StoreOp::Create(first)), (StoreResponse::Conflict, None));
    assert_eq!(two.ask(&StoreOp::Read), (StoreResponse::Record(Some(first)), None));
    let by = |byte: u8| Record { version: 2, holder: Bytes([byte; 32]), term: 1, ..first };
    assert_eq!(one.ask(&StoreOp::Swap { old: first, new: by(1) }), (StoreResponse::Swapped, None));
    assert_eq!(two.ask(&StoreOp::Swap { old: first, new: by(2) }), (StoreResponse::Conflict, None));
    // The same version and term, another holder: the record itself is compared too.
    assert_eq!(two.ask(&StoreOp::Swap { old: by(2), new: by(3) }), (StoreResponse::Conflict, None));
    assert_eq!(two.ask(&StoreOp::Read), (StoreResponse::Record(Some(by(1))), None));
    for round in 2..12_u64 {
        let (StoreResponse::Record(Some(old)), None) = one.ask(&StoreOp::Read) else { panic!() };
        let swapped = Mutex::new(0);
        std::thread::scope(|scope| {
            for number in 0..4_u8 {
                let swapped = &swapped;
                scope.spawn(move || {
                    let new = Record { version: round + 1, holder: Bytes([number + 1; 32]), ..old };
                    let heard = store("casemate-fence-1").unwrap().ask(&StoreOp::Swap { old, new });
                    *swapped.lock().unwrap() += u64::from(heard.0 == StoreResponse::Swapped);
                });
            }
        });
        assert_eq!(swapped.into_inner().unwrap(), 1);
    }
    // A table that is not there; and one of the same name in another account, whatever account the credentials are of.
    for mut elsewhere in [store("no-such-table").unwrap(), store_in("999999999999", "casemate-fence-1").unwrap()] {
        let refused = (StoreResponse::Unclear, Some(StoreTrouble::Status { status: 400 }));
        assert_eq!(elsewhere.ask(&StoreOp::Read), refused);
        assert_eq!(elsewhere.ask(&StoreOp::Create(first)), refused);
    }
}

#[test]
fn clones_on_one_item_sign_no_two_conflicting_messages() {
    let Some(mut first) = store("casemate-fence-2") else { return };
    assert_eq!(first.ask(&StoreOp::Create(first_record())), (StoreResponse::Swapped, None));
    let (bench, network) = (Bench::new(), network(200));
    let start = || Member::start(&bench, &network, Box::new(store("casemate-fence-2").unwrap()));
    let members = RwLock::new((0..3).map(|_| start()).collect::<Vec<_>>());
    let outcome = siege(&network, &members, Duration::from_secs(12), 0xd1, |random| {
        std::thread::sleep(Duration::from_millis(700 + random.below(700)));
        let number = usize::try_from(random.below(3)).unwrap();
        let new = start();
        drop(std::mem::replace(&mut members.write().unwrap()[number], new));
    });
    println!("{} of {} signed", outcome.released.len(), outcome.asked);
    assert!(outcome.released.len() > 5, "{} signed", outcome.released.len());
}
