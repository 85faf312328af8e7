//! An enclave of this machine, for programs that start one.

use std::path::Path;

use anyhow::Result;
use casemate_keystore::Secret;
use casemate_protocol::PublicKey;
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::statement::StatedStatus;
use casemate_slashing::interchange::Histories;

use crate::args::{Connection, PinOptions, Signing};
use crate::commands::fence::init;
use crate::commands::keys::import::{self, HistorySource};
use crate::exit::Exit;
use crate::sending;
use crate::session::Session;

/// An enclave that runs on this machine, for programs that start one.
pub struct Local<'a> {
    /// Where its proxy listens.
    pub url: &'a str,
    /// Authority of the proxy's certificate.
    pub tls_ca: Option<&'a Path>,
    /// Root of its documents.
    pub root: &'a Path,
    /// Its measurements.
    pub measurements: &'a Path,
    /// An operator's key.
    pub operator_key: &'a Path,
}

impl Local<'_> {
    fn open(&self) -> Result<Session> {
        let (tls_ca, url) = (self.tls_ca.map(Path::to_owned), self.url.to_owned());
        let connection = Connection { url, tls_ca, tls_certificate: None, tls_key: None, enclave: None };
        let (root, measurements) = (Some(self.root.to_owned()), Some(self.measurements.to_owned()));
        Session::open(connection, PinOptions { measurements, root, ..PinOptions::default() })
    }

    /// Makes the fence's record as `casemate fence init` does, where there is none yet; `credentials` for its store.
    pub fn begin_fence(&self, credentials: Option<&StoreCredentials>) -> Result<bool> {
        let mut session = self.open()?;
        let standing = session.statement.fence.standing;
        let needed = match standing {
            StatedStatus::NoRecord => true,
            // Without credentials it cannot know.
            StatedStatus::Unknown => credentials.is_some(),
            _ => false,
        };
        if needed {
            init::begin(&mut session, self.operator_key, credentials)?;
        }
        Ok(needed)
    }

    /// What it is to the fence.
    pub fn standing(&self) -> Result<StatedStatus> {
        Ok(self.open()?.statement.fence.standing)
    }

    /// The keys that its document proves.
    pub fn keys(&self) -> Result<Vec<PublicKey>> {
        self.open()?.keys()
    }

    /// Imports keys as `casemate keys import` does; with `unknown_accepted` also keys whose history is not known. How many came in
    /// anew.
    pub fn import(&self, keys: &[(Secret, PublicKey)], known: Histories, unknown_accepted: bool) -> Result<usize> {
        let mut session = self.open()?;
        let before = session.statement.public_keys.count;
        let source = HistorySource { known, unknown_accepted };
        let commands = import::commands(&session, keys, &source)?;
        let signing = Signing { operator_key: vec![self.operator_key.to_owned()], command_out: None };
        let (text, exit) = sending::give(&mut session, &commands, &signing, None)?;
        if exit != Exit::Accepted {
            anyhow::bail!("the enclave did not take all keys:\n{text}");
        }
        Ok(usize::try_from(session.statement.public_keys.count.saturating_sub(before)).unwrap_or(usize::MAX))
    }
}
