//! Keys in a file. The file is written anew and renamed for each change, so it is whole at every moment.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use serde::{Deserialize, Serialize};

use crate::policy::Policy;

const ID_LEN: usize = 16;
const VERSION: u8 = 1;

/// What is in the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    keys: BTreeMap<String, StoredKey>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    /// 32 bytes, hex.
    material: String,
    description: String,
    /// The key policy as it was given; none allows everything.
    policy: Option<String>,
    created: i64,
}

/// A key.
#[derive(Clone)]
pub struct Key {
    /// A UUID.
    pub id: String,
    /// With region and account.
    pub arn: String,
    /// As it was given.
    pub description: String,
    /// The judge of every use.
    pub policy: Option<Policy>,
    /// Unix seconds.
    pub created: i64,
    material: [u8; 32],
}

/// All keys.
pub struct State {
    path: PathBuf,
    prefix: String,
    stored: Stored,
}

/// A ciphertext that no key here made, or not in this context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidCiphertext;

impl State {
    /// Opens the file, or begins with no keys.
    pub fn open(path: &Path, region: &str, account: &str) -> Result<Self> {
        let stored = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("in {}", path.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Stored::default(),
            Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
        };
        Ok(Self { path: path.to_owned(), prefix: format!("arn:aws:kms:{region}:{account}:key/"), stored })
    }

    /// Makes a key.
    pub fn create(&mut self, description: &str, policy: Option<&str>, now: i64) -> Result<Key> {
        let mut random = [0; 48];
        aws_lc_rs::rand::fill(&mut random).context("no random bytes")?;
        let (id, material) = random.split_at(ID_LEN);
        let id = uuid(id);
        let key = StoredKey {
            material: const_hex::encode(material),
            description: description.to_owned(),
            policy: policy.map(ToOwned::to_owned),
            created: now,
        };
        let mut stored = self.stored.clone();
        stored.keys.insert(id.clone(), key);
        write(&self.path, &stored)?;
        self.stored = stored;
        self.key(&id)?.context("the key that was just made")
    }

    /// A key's policy as it was given.
    pub fn policy_text(&self, id: &str) -> Option<String> {
        self.stored.keys.get(id)?.policy.clone()
    }

    /// Gives a key another policy.
    pub fn set_policy(&mut self, id: &str, policy: &str) -> Result<()> {
        let mut stored = self.stored.clone();
        stored.keys.get_mut(id).context("no such key")?.policy = Some(policy.to_owned());
        write(&self.path, &stored)?;
        self.stored = stored;
        Ok(())
    }

    /// A key by its id or ARN.
    pub fn key(&self, name: &str) -> Result<Option<Key>> {
        let id = name.strip_prefix(&self.prefix).unwrap_or(name);
        let Some(stored) = self.stored.keys.get(id) else { return Ok(None) };
        Ok(Some(Key {
            id: id.to_owned(),
            arn: format!("{}{id}", self.prefix),
            description: stored.description.clone(),
            policy: stored.policy.as_deref().map(Policy::parse).transpose()?,
            created: stored.created,
            material: const_hex::decode_to_array(&stored.material).context("key material")?,
        }))
    }

    /// The key that made a ciphertext.
    pub fn key_of(&self, ciphertext: &[u8]) -> Result<Option<Key>> {
        match ciphertext.split_first() {
            Some((&VERSION, rest)) if rest.len() > ID_LEN => {
                let (id, _) = rest.split_at(ID_LEN);
                self.key(&uuid(id))
            }
            _ => Ok(None),
        }
    }
}

impl Key {
    /// `CiphertextBlob`: version, key id, nonce, AES-256-GCM with the encryption context as additional data.
    pub fn encrypt(&self, plaintext: &[u8], context: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        let mut sealed = plaintext.to_vec();
        let key = RandomizedNonceKey::new(&AES_256_GCM, &self.material).map_err(|_| anyhow!("AES-256-GCM"))?;
        let nonce =
            key.seal_in_place_append_tag(Aad::from(aad(context)), &mut sealed).map_err(|_| anyhow!("AES-256-GCM"))?;
        let id = const_hex::decode(self.id.replace('-', "")).context("a key's id")?;
        Ok([&[VERSION], id.as_slice(), nonce.as_ref(), &sealed].concat())
    }

    /// The plaintext of a ciphertext of this key.
    pub fn decrypt(&self, blob: &[u8], context: &BTreeMap<String, String>) -> Result<Vec<u8>, InvalidCiphertext> {
        let (nonce, sealed) =
            blob.get(1 + ID_LEN..).and_then(|rest| rest.split_first_chunk::<NONCE_LEN>()).ok_or(InvalidCiphertext)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &self.material).map_err(|_| InvalidCiphertext)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        key.open_in_place(nonce, Aad::from(aad(context)), &mut sealed)
            .map(|plaintext| plaintext.to_vec())
            .map_err(|_| InvalidCiphertext)
    }
}

/// Every context has one form: in the order of its names.
fn aad(context: &BTreeMap<String, String>) -> Vec<u8> {
    serde_json::to_vec(context).unwrap_or_default()
}

fn uuid(id: &[u8]) -> String {
    let mut text = const_hex::encode(id);
    for at in [8, 13, 18, 23] {
        if at <= text.len() {
            text.insert(at, '-');
        }
    }
    text
}

fn write(path: &Path, stored: &Stored) -> Result<()> {
    let part = path.with_extension("part");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(&serde_json::to_vec_pretty(stored)?).and_then(|()| file.sync_all())?;
    fs::rename(&part, path).with_context(|| format!("writing {}", path.display()))
}
