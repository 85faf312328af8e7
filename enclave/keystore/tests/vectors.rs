//! Keystores of the EIP, of the deposit tool and of other signers.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use casemate_keystore::{Keystore, KeystoreError, folder};
use casemate_testdata::{files, folder as data, json};

/// EIP-2335's password: letters that normalise to other ones, and a key.
const PASSWORD: &str = "𝔱𝔢𝔰𝔱𝔭𝔞𝔰𝔰𝔴𝔬𝔯𝔡🔑";
const SECRET: &str = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f";

#[test]
fn the_eips_own_keystores_open() {
    let Some(folder) = data("signing") else { return };
    for path in files(&folder.join("keystore/eip-2335"), ".json") {
        if path.file_name().unwrap() == "schema.json" {
            continue;
        }
        let keystore = Keystore::parse(&fs::read(&path).unwrap()).unwrap();
        let (secret, public_key) = keystore.decrypt(PASSWORD).unwrap();
        assert_eq!(hex(&secret[..]), SECRET, "{}", path.display());
        assert_eq!(keystore.public_key(), Some(public_key));
        // Control characters do not count (EIP-2335), other letters do.
        assert!(keystore.decrypt(&format!("{PASSWORD}\u{7f}\n")).is_ok());
        assert!(matches!(keystore.decrypt("testpassword"), Err(KeystoreError::WrongPassword(1))));
    }
}

/// Each file that may hold a key, with its password.
fn find(keystores: &Path, passwords: &Path) -> Result<Vec<folder::Entry>, folder::FolderError> {
    folder::find(keystores, passwords)?.complete()
}

/// A file as people have to keep it.
fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    const_hex::encode(bytes)
}

#[test]
fn keystores_of_nimbus_open_with_its_password() {
    let Some(folder) = data("client-requests") else { return };
    let constants = json(&folder.join("nimbus/constants.json"));
    let mut opened = 0;
    for path in files(&folder.join("nimbus"), ".json") {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let Some(number) = name.strip_prefix("ValidatorKeystore") else { continue };
        let keystore = Keystore::parse(&fs::read(&path).unwrap()).unwrap();
        let (secret, public_key) = keystore.decrypt(constants["KeystorePassword"].as_str().unwrap()).unwrap();
        if let Some(key) = constants[format!("ValidatorPrivateKey{number}")].as_str() {
            assert_eq!(format!("0x{}", hex(&secret[..])), key);
        }
        assert_eq!(public_key.to_string(), constants[format!("ValidatorPubKey{number}")].as_str().unwrap());
        opened += 1;
    }
    assert!(opened > 0);
}

#[test]
fn malformed_keystores_are_refused() {
    let Some(folder) = data("signing") else { return };
    let mut refused = 0;
    for path in files(&folder.join("keystore/web3signer"), ".json") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let parsed = Keystore::parse(&fs::read(&path).unwrap());
        if name.starts_with("missing") || name.starts_with("unsupported") || name.starts_with("v3") {
            assert!(parsed.is_err(), "{name} was accepted");
            refused += 1;
        } else {
            assert!(parsed.is_ok(), "{name}: {:?}", parsed.err());
        }
    }
    assert!(refused > 0);
}

#[test]
fn costs_that_would_stop_the_machine_are_refused() {
    let Some(folder) = data("signing") else { return };
    let text = fs::read_to_string(folder.join("keystore/eip-2335/test-scrypt.json")).unwrap();
    for (from, to) in [
        ("\"n\": 262144", "\"n\": 4294967296"),
        ("\"n\": 262144", "\"n\": 262143"),
        ("\"n\": 262144", "\"n\": 1"),
        ("\"r\": 8", "\"r\": 4000000000"),
        ("\"r\": 8", "\"r\": 0"),
        ("\"p\": 1", "\"p\": 1000"),
        ("\"dklen\": 32", "\"dklen\": 64"),
        ("\"dklen\": 32", "\"dklen\": -1"),
        ("\"version\": 4", "\"version\": 3"),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text);
        assert!(Keystore::parse(bad.as_bytes()).is_err(), "{to} was accepted");
    }
    assert!(matches!(Keystore::parse(&vec![b' '; 5_000_000]), Err(KeystoreError::TooLong(5_000_000))));
}

#[test]
fn a_keystore_of_another_key_is_refused() {
    let Some(folder) = data("signing") else { return };
    let text = fs::read_to_string(folder.join("keystore/eip-2335/test-pbkdf2.json")).unwrap();
    let bad = text.replacen("\"pubkey\": \"9612", "\"pubkey\": \"9613", 1);
    assert_ne!(bad, text);
    let keystore = Keystore::parse(bad.as_bytes()).unwrap();
    assert!(matches!(keystore.decrypt(PASSWORD), Err(KeystoreError::OtherPublicKey { .. })));
}

#[test]
fn passwords_are_found_in_the_clients_layouts() {
    let Some(data) = data("signing") else { return };
    let keystore = data.join("keystore/eip-2335/test-pbkdf2.json");
    let key = Keystore::parse(&fs::read(&keystore).unwrap()).unwrap().public_key().unwrap();
    let layout = |keystore_at: &str, password_at: &str| {
        let folder = tempfile::tempdir().unwrap();
        let (keystores, passwords) = (folder.path().join("keys"), folder.path().join("secrets"));
        let at = keystores.join(keystore_at);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::create_dir_all(&passwords).unwrap();
        fs::copy(&keystore, &at).unwrap();
        // What lies beside keystores and is none.
        fs::write(keystores.join("deposit_data-1.json"), "[]").unwrap();
        write_secret(&passwords.join(password_at), &format!("{PASSWORD}\r\n"));
        let entries = find(&keystores, &passwords).unwrap();
        assert_eq!(entries.len(), 1);
        assert!(entries[0].keystore.decrypt(&entries[0].password).is_ok());
    };
    layout("a.json", "a.txt");
    layout("a.json", "a");
    layout(&format!("{key}/voting-keystore.json"), &key.to_string());
    layout(&format!("{key}/keystore.json"), &format!("{key}.txt"));

    let folder = tempfile::tempdir().unwrap();
    assert!(find(folder.path(), folder.path()).is_err_and(|e| e.to_string().contains("no keystore")));
    fs::copy(&keystore, folder.path().join("a.json")).unwrap();
    let error = find(folder.path(), folder.path()).err().unwrap().to_string();
    assert!(error.contains("a.txt") && error.contains(&key.to_string()), "{error}");
    let all = folder.path().join("password");
    write_secret(&all, PASSWORD);
    assert_eq!(find(folder.path(), &all).unwrap().len(), 1);
}

/// A wallet as Prysm keeps it: all accounts in one keystore, whose secret is JSON of two lists.
#[test]
fn a_wallet_of_prysms_opens_whole() {
    use aes::cipher::{KeyIvInit, StreamCipher};
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use sha2::{Digest, Sha256};

    let wallet = |private: &[[u8; 32]], public: &[[u8; 48]]| {
        let base64 = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let clear = serde_json::json!({
            "private_keys": private.iter().map(|k| base64(k)).collect::<Vec<_>>(),
            "public_keys": public.iter().map(|k| base64(k)).collect::<Vec<_>>(),
        });
        let mut key = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(b"wallet password", &[7; 32], 2, &mut key);
        let mut message = clear.to_string().into_bytes();
        ctr::Ctr128BE::<aes::Aes128>::new_from_slices(&key[..16], &[9; 16]).unwrap().apply_keystream(&mut message);
        let checksum = Sha256::new().chain_update(&key[16..]).chain_update(&message).finalize();
        // Prysm's own order and names: no pubkey, no path.
        let file = serde_json::json!({
            "crypto": {
                "checksum": { "function": "sha256", "message": hex(&checksum), "params": {} },
                "cipher": { "function": "aes-128-ctr", "message": hex(&message), "params": { "iv": hex(&[9; 16]) } },
                "kdf": { "function": "pbkdf2", "message": "",
                    "params": { "c": 2, "dklen": 32, "prf": "hmac-sha256", "salt": hex(&[7; 32]) } },
            },
            "uuid": "b1f5a4c2-0000-0000-0000-000000000000", "version": 4, "name": "keystore",
        });
        Keystore::parse(file.to_string().as_bytes()).unwrap()
    };
    let secrets: Vec<[u8; 32]> = (1..=300_u16)
        .map(|n| {
            let mut s = [1; 32];
            s[..2].copy_from_slice(&n.to_be_bytes());
            s
        })
        .collect();
    let public = |secret: &[u8; 32]| blst::min_pk::SecretKey::from_bytes(secret).unwrap().sk_to_pk().to_bytes();
    let publics: Vec<[u8; 48]> = secrets.iter().map(public).collect();
    let opened = wallet(&secrets, &publics).decrypt_all("wallet password").unwrap();
    assert_eq!(opened.len(), 300);
    for (((secret, key), expected), public) in opened.iter().zip(&secrets).zip(&publics) {
        assert_eq!((**secret, key.0), (*expected, *public));
    }
    assert!(matches!(wallet(&secrets, &publics).decrypt("wallet password"), Err(KeystoreError::ManyKeys(300))));
    assert!(matches!(wallet(&secrets, &publics).decrypt_all("other"), Err(KeystoreError::WrongPassword(1))));
    let mut swapped = publics.clone();
    swapped.swap(0, 1);
    let error = wallet(&secrets, &swapped).decrypt_all("wallet password").unwrap_err();
    assert!(matches!(error, KeystoreError::OtherPublicKey { .. }), "{error}");
    assert!(matches!(
        wallet(&secrets, &publics[1..]).decrypt_all("wallet password"),
        Err(KeystoreError::InvalidSecret)
    ));
    assert!(matches!(
        wallet(&[[0; 32]], &publics[..1]).decrypt_all("wallet password"),
        Err(KeystoreError::InvalidSecret)
    ));
}

/// Lighthouse, Nimbus and Teku, each with keystores and passwords below one folder.
#[test]
fn passwords_are_found_in_the_layouts_of_the_clients() {
    let Some(data) = data("signing") else { return };
    let good = data.join("keystore/eip-2335/test-pbkdf2.json");
    let key = Keystore::parse(&fs::read(&good).unwrap()).unwrap().public_key().unwrap();
    let layouts = [
        (format!("validators/{key}/voting-keystore.json"), format!("secrets/{key}")),
        (format!("validators/{key}/keystore.json"), format!("secrets/{key}")),
        ("validator/key-managed/local/a.json".to_owned(), "validator/key-managed/local-password/a.txt".to_owned()),
        ("keys/a.json".to_owned(), "passwords/a.txt".to_owned()),
        ("keystore-m_12381_3600_0_0_0-1.json".to_owned(), "keystore-m_12381_3600_0_0_0-1.txt".to_owned()),
    ];
    for (keystore, secret) in layouts {
        let folder = tempfile::tempdir().unwrap();
        for path in [&keystore, &secret] {
            fs::create_dir_all(folder.path().join(path).parent().unwrap()).unwrap();
        }
        fs::copy(&good, folder.path().join(&keystore)).unwrap();
        write_secret(&folder.path().join(&secret), &format!("{PASSWORD}\n"));
        let found = find(folder.path(), folder.path()).unwrap_or_else(|e| panic!("{keystore}: {e}"));
        assert_eq!((found.len(), found[0].password.as_str()), (1, PASSWORD), "{keystore}");
        // And with the two folders told apart.
        let (keys, secrets) = (folder.path().join(&keystore), folder.path().join(&secret));
        assert_eq!(find(&keys, secrets.parent().unwrap()).unwrap().len(), 1);
        write_secret(&secrets, "\n");
        assert!(find(folder.path(), folder.path()).err().unwrap().to_string().contains("is empty"));
        fs::remove_file(&secrets).unwrap();
        assert!(find(folder.path(), folder.path()).err().unwrap().to_string().contains("no password"));
        assert!(find(folder.path(), &secrets).err().unwrap().to_string().contains("No such file"));
    }
    let no_keystore = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    let password = tempfile::NamedTempFile::new().unwrap();
    write_secret(password.path(), PASSWORD);
    assert!(find(no_keystore.path(), password.path()).err().unwrap().to_string().contains("it is empty"));
}
