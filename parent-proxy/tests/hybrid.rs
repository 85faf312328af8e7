//! The hybrid form of vsock: `CONNECT PORT\n`, `OK …\n`, then frames.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use casemate_protocol::frame::{self, Info, Reply, ReplyFrame};
use casemate_protocol::statement::StatedStatus;
use casemate_proxy::enclave::Enclave;

/// A device that lets one connection through to an enclave without keys; returns what it was asked first.
fn device(path: &Path, answer: &'static str) -> std::thread::JoinHandle<String> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        stream.get_mut().write_all(answer.as_bytes()).unwrap();
        let mut len = [0; 4];
        if stream.read_exact(&mut len).is_ok() {
            let mut bytes = vec![0; usize::try_from(u32::from_be_bytes(len)).unwrap()];
            stream.read_exact(&mut bytes).unwrap();
            let asked = frame::decode_request(&bytes).unwrap();
            let network = casemate_config::named("hoodi").unwrap().unwrap();
            let info = Info {
                network,
                keys: 3,
                keys_without_history: 0,
                standing: StatedStatus::NoStore,
                key_manager_delete: false,
            };
            let mut reply = Vec::new();
            frame::encode_reply(&ReplyFrame::new(asked.id, Reply::Info(info)), &mut reply);
            stream.get_mut().write_all(&reply).unwrap();
            // Until the proxy goes.
            let _ = stream.read(&mut [0; 1]);
        }
        line
    })
}

fn keys_through(answer: &'static str) -> (Option<u32>, String) {
    let folder = std::env::temp_dir().join(format!("casemate-hybrid-{}-{}", std::process::id(), answer.len()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("vm.vsock");
    let device = device(&path, answer);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let keys = runtime.block_on(async {
        let address = format!("hybrid:{}:5005", path.display()).parse().unwrap();
        let enclave = Enclave::connect(&address, 1, 8, Duration::from_secs(1));
        let _ = tokio::time::timeout(Duration::from_secs(2), enclave.connected()).await;
        enclave.info().map(|info| info.keys)
    });
    drop(runtime);
    let line = device.join().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    (keys, line)
}

#[test]
fn the_proxy_reaches_an_enclave_behind_a_hybrid_socket() {
    assert_eq!(keys_through("OK 1073741824\n"), (Some(3), "CONNECT 5005\n".to_owned()));
}

#[test]
fn a_device_that_says_no_is_no_enclave() {
    assert_eq!(keys_through("NO such port\n").0, None);
}
