//! The etcd of the stack, with `--fence etcd`.

use std::path::Path;

use anyhow::{Context, Result};
use casemate_local_etcd::{Cluster, HOST};
use casemate_protocol::command::StoreCredentials;

/// One node.
pub struct Etcd {
    cluster: Cluster,
    pub port: u16,
}

impl Etcd {
    /// Starts the one of this folder, with what it kept before.
    pub fn start(folder: &Path) -> Result<Self> {
        let launcher = ["/proc/self/exe", crate::ETCD].map(Into::into);
        let cluster = Cluster::start_by(folder, 1, &launcher)?;
        let cluster = cluster.context("--fence etcd needs etcd: apt-get install etcd-server etcd-client")?;
        let (_, port) = cluster.endpoints().first().copied().context("the port of etcd")?;
        Ok(Self { cluster, port })
    }

    /// As the measured configuration has it: with the id that the running cluster says of itself.
    pub fn table(&self) -> Result<toml::Table> {
        let mut table = toml::Table::new();
        table.insert("endpoints".to_owned(), vec![format!("{HOST}:{}", self.port)].into());
        table.insert("root".to_owned(), self.cluster.certificates.root.clone().into());
        table.insert("cluster".to_owned(), format!("{:016x}", self.cluster.id()?).into());
        Ok(table)
    }

    /// The client's certificate.
    pub fn credentials(&self) -> Result<StoreCredentials> {
        casemate::etcd_credentials(&self.cluster.certificates.client, &self.cluster.certificates.client_key)
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.cluster.pids().first().copied()
    }
}
