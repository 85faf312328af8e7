//! The local KMS of the stack: a process of its own, with a key whose policy names what is about to run.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use casemate_document::Anchor;
use casemate_local_etcd::free_port;
use casemate_local_kms::api::Kms;
use casemate_local_kms::server::{Access, Server, Tls};
use casemate_local_kms::state::State;

use crate::boot::{BootKms, KmsBoot, SecretHex};

pub const REGION: &str = "eu-central-1";
const ACCOUNT: &str = "000000000000";
/// What the stack's parent signs its requests with.
pub const ACCESS_KEY: &str = "AKIDCASEMATEDEV";
pub const SECRET_KEY: &str = "casemate-dev";
/// Whose name the certificate has, where the vault is told its address.
pub const HOST: &str = "localhost";
/// Where the vault of an image looks for it.
pub const AWS: &str = "kms.eu-central-1.amazonaws.com";

/// A KMS that is ready to be started.
pub struct LocalKms {
    pub boot: KmsBoot,
    /// Its only key.
    pub key_arn: String,
    /// Root of its certificate, PEM.
    root: String,
}

impl LocalKms {
    /// Finds the stack's key, or makes it.
    pub fn prepare(data_dir: &Path, attestation_root: &str, for_images: bool) -> Result<Self> {
        let state = data_dir.join("kms.json");
        let name = data_dir.join("kms-key");
        let mut keys = State::open(&state, REGION, ACCOUNT)?;
        let key_arn = match fs::read_to_string(&name) {
            Ok(arn) => arn.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
                let key = keys.create("casemate-dev", None, i64::try_from(now.as_secs()).unwrap_or(i64::MAX))?;
                fs::write(&name, format!("{}\n", key.arn)).with_context(|| format!("writing {}", name.display()))?;
                key.arn
            }
            Err(error) => return Err(error).with_context(|| format!("reading {}", name.display())),
        };
        if keys.key(&key_arn)?.is_none() {
            bail!("{} names a key that is not in {}: what was sealed with it is lost", name.display(), state.display());
        }
        let tls = if for_images { Tls::for_images(&[AWS.to_owned()])? } else { Tls::new(&[HOST.to_owned()])? };
        let port = free_port()?;
        let boot = KmsBoot {
            port,
            state,
            certificate: tls.chain_pem.clone(),
            key: SecretHex(tls.key_pem.clone()),
            attestation_root: attestation_root.to_owned(),
        };
        Ok(Self { boot, key_arn, root: tls.root_pem })
    }

    /// Gives the key the policy that `casemate kms-policy` writes for what was measured. Whether it had another.
    pub fn allow(&self, measurements: &Path, group: &str) -> Result<bool> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let parent = format!("arn:aws:iam::{ACCOUNT}:user/{ACCESS_KEY}");
        let administrator = format!("arn:aws:iam::{ACCOUNT}:role/nobody-here");
        let measurements = measurements.as_os_str();
        let mut arguments: Vec<std::ffi::OsString> =
            ["casemate", "kms-policy", "--account", ACCOUNT, "--parent-role", &parent].iter().map(Into::into).collect();
        arguments
            .extend(["--administrator", &administrator, "--group", group, "--measurements"].iter().map(Into::into));
        arguments.push(measurements.to_owned());
        if casemate::run(&arguments, &mut out, &mut err) != casemate::Exit::Accepted {
            bail!("the key policy: {}", String::from_utf8_lossy(&err));
        }
        let policy = String::from_utf8(out).context("the key policy")?;
        let mut keys = State::open(&self.boot.state, REGION, ACCOUNT)?;
        let key = keys.key(&self.key_arn)?.context("the stack's key")?;
        let before = keys.policy_text(&key.id);
        let changed = before.as_deref().is_some_and(|before| before != policy);
        keys.set_policy(&key.id, &policy)?;
        Ok(changed)
    }

    /// For the vault.
    pub fn for_vault(&self) -> BootKms {
        BootKms { port: self.boot.port, root: self.root.clone() }
    }
}

/// The process: its boot message comes on standard input.
pub fn run() -> Result<()> {
    crate::part_of_a_stack()?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("reading the boot message")?;
    let boot: KmsBoot = serde_json::from_str(&text).context("the boot message")?;
    let state = State::open(&boot.state, REGION, ACCOUNT)?;
    let root = pem::parse(boot.attestation_root).context("the attestation root")?;
    let kms = Kms { state, anchor: Some(Anchor::from_der(root.contents())?) };
    let tls = Tls::from_pem(&boot.certificate, &boot.key.0)?;
    let secrets = BTreeMap::from([(ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())]);
    let access = Access { region: REGION.to_owned(), secrets, account: ACCOUNT.to_owned() };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, boot.port));
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async { Server::bind(address, kms, access, Some(&tls)).await?.serve().await })
}
