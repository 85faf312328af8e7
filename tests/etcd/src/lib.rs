//! etcd clusters of one or three nodes on this machine, from Debian's package `etcd-server`: TLS with client certificates, as the
//! fence asks for it. Nodes can be stopped, killed and cut off from the others.
#![forbid(unsafe_code)]

mod partition;
mod ports;

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::partition::Peers;
pub use crate::ports::{free_port, listen};

/// Whose name the servers' certificates have.
pub const HOST: &str = "localhost";

/// Where Debian's package puts it.
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/bin")])
        .map(|dir| dir.join("etcd"))
        .find(|path| path.is_file())
}

/// Certificates of a cluster and of its one client, PEM.
#[derive(Clone)]
pub struct Certificates {
    /// Root of the servers and the client.
    pub root: String,
    server: String,
    server_key: String,
    /// The client's.
    pub client: String,
    /// Its private key.
    pub client_key: String,
}

impl Certificates {
    fn new() -> Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new([])?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "casemate-local-etcd");
        let root = params.self_signed(&key)?;
        let issuer = rcgen::Issuer::new(params, key);
        let leaf = |name: &str, names: Vec<String>| -> Result<(String, String)> {
            let key = rcgen::KeyPair::generate()?;
            let mut params = rcgen::CertificateParams::new(names)?;
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        // etcd's gateway dials its own server, with the server's certificate.
        let (server, server_key) = leaf("server", vec![HOST.to_owned(), Ipv4Addr::LOCALHOST.to_string()])?;
        let (client, client_key) = leaf("enclave", vec!["enclave".to_owned()])?;
        Ok(Self { root: root.pem(), server, server_key, client, client_key })
    }

    const FILES: [&str; 5] = ["root.pem", "server.pem", "server-key.pem", "client.pem", "client-key.pem"];

    /// Those in this folder; new ones where there are none.
    fn keep(folder: &Path) -> Result<Self> {
        let [root, server, server_key, client, client_key] = Self::FILES.map(|name| folder.join(name));
        if !client_key.exists() {
            let new = Self::new()?;
            let parts = [&new.root, &new.server, &new.server_key, &new.client, &new.client_key];
            for (name, text) in Self::FILES.iter().zip(parts) {
                fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))?;
            }
        }
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
        Ok(Self {
            root: read(&root)?,
            server: read(&server)?,
            server_key: read(&server_key)?,
            client: read(&client)?,
            client_key: read(&client_key)?,
        })
    }
}

/// How long a cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster that runs.
pub struct Cluster {
    folder: PathBuf,
    program: PathBuf,
    launcher: Vec<OsString>,
    nodes: Vec<Node>,
    peers: Peers,
    /// Its certificates.
    pub certificates: Certificates,
}

struct Node {
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

impl Cluster {
    /// Starts a cluster in this folder, or the one that was there before. Nothing where etcd is not installed.
    pub fn start(folder: &Path, nodes: usize) -> Result<Option<Self>> {
        Self::start_by(folder, nodes, &[])
    }

    /// The same, with each node started by this command line, which is to end in [`run`].
    pub fn start_by(folder: &Path, nodes: usize, launcher: &[OsString]) -> Result<Option<Self>> {
        let Some(program) = program() else { return Ok(None) };
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let certificates = Certificates::keep(folder)?;
        let ports = ports::of(folder, nodes)?;
        let pairs: Vec<(u16, u16)> = ports.iter().map(|[_, peer, front]| (*front, *peer)).collect();
        let peers = Peers::start(&pairs)?;
        let nodes = ports.iter().map(|[client, peer, _]| Node { client_port: *client, peer_port: *peer, child: None });
        let mut cluster = Self {
            folder: folder.to_owned(),
            program,
            launcher: launcher.to_vec(),
            nodes: nodes.collect(),
            peers,
            certificates,
        };
        for number in 0..cluster.nodes.len() {
            cluster.start_node(number)?;
        }
        cluster.wait()?;
        Ok(Some(cluster))
    }

    /// Where the nodes serve clients.
    pub fn endpoints(&self) -> Vec<(&'static str, u16)> {
        self.nodes.iter().map(|node| (HOST, node.client_port)).collect()
    }

    /// Ids of the processes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| Some(node.child.as_ref()?.id())).collect()
    }

    /// Starts a node that is not running, and waits until it listens.
    pub fn start_node(&mut self, number: usize) -> Result<()> {
        let begun = Instant::now();
        self.spawn(number)?;
        loop {
            if self.has_ended(number)? {
                if begun.elapsed() > PATIENCE {
                    bail!("a port of etcd's node {number} is in use, for {} s now", PATIENCE.as_secs());
                }
                self.spawn(number)?;
            }
            let node = self.nodes.get(number).context("no such node")?;
            if [node.client_port, node.peer_port]
                .iter()
                .all(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).is_ok())
            {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("etcd's node {number} does not listen after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether a node has ended because somebody has its port; an error where it has ended for another reason.
    fn has_ended(&mut self, number: usize) -> Result<bool> {
        let node = self.nodes.get_mut(number).context("no such node")?;
        let Some(status) = node.child.as_mut().map(Child::try_wait).transpose()?.flatten() else { return Ok(false) };
        let log = fs::read_to_string(self.folder.join(format!("node-{number}.log"))).unwrap_or_default();
        if log.contains("address already in use") {
            return Ok(true);
        }
        bail!("etcd has ended: {status}\n{log}")
    }

    fn spawn(&mut self, number: usize) -> Result<()> {
        let member = |number: usize| format!("node-{number}");
        let members: Vec<String> = (0..self.nodes.len())
            .map(|number| format!("{}=http://127.0.0.1:{}", member(number), self.peers.port(number)))
            .collect();
        let node = self.nodes.get_mut(number).context("no such node")?;
        let log = fs::File::create(self.folder.join(format!("{}.log", member(number)))).context("etcd's log")?;
        let file = |name: &str| self.folder.join(name);
        let mut command = Command::new(self.launcher.first().unwrap_or(&self.program.clone().into_os_string()));
        command
            .args(self.launcher.iter().skip(1))
            // Ctrl-C goes to whoever started the cluster alone: it ends last.
            .process_group(0)
            .arg("--name")
            .arg(member(number))
            .arg("--data-dir")
            .arg(self.folder.join(member(number)))
            .args(["--listen-client-urls", &format!("https://127.0.0.1:{}", node.client_port)])
            .args(["--advertise-client-urls", &format!("https://{HOST}:{}", node.client_port)])
            .args(["--listen-peer-urls", &format!("http://127.0.0.1:{}", node.peer_port)])
            .args(["--initial-advertise-peer-urls", &format!("http://127.0.0.1:{}", self.peers.port(number))])
            .args(["--initial-cluster", &members.join(",")])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--log-level", "error"])
            .arg("--client-cert-auth")
            .arg("--trusted-ca-file")
            .arg(file("root.pem"))
            .arg("--cert-file")
            .arg(file("server.pem"))
            .arg("--key-file")
            .arg(file("server-key.pem"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        node.child = Some(command.spawn().context("starting etcd")?);
        Ok(())
    }

    /// Kills a node as a power cut does.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        if let Some(mut child) = self.nodes.get_mut(number).and_then(|node| node.child.take()) {
            child.kill().context("killing etcd")?;
            child.wait().context("waiting for etcd")?;
        }
        Ok(())
    }

    /// Stops a node (SIGSTOP), or lets it go on.
    pub fn freeze(&self, number: usize, frozen: bool) -> Result<()> {
        let child = self.nodes.get(number).and_then(|node| node.child.as_ref()).context("the node does not run")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, if frozen { Signal::STOP } else { Signal::CONT }).context("signalling etcd")
    }

    /// Cuts a node off from the others, both ways; clients still reach it.
    pub fn cut_off(&self, number: usize, cut: bool) {
        self.peers.cut_off(number, cut);
    }

    /// Which node leads, as far as a node that answers knows.
    pub fn leader(&self) -> Option<usize> {
        let endpoints: Vec<String> =
            self.nodes.iter().map(|node| format!("https://{HOST}:{}", node.client_port)).collect();
        (0..self.nodes.len()).find(|number| {
            let Some(text) = self.status(endpoints.get(*number).map_or("", String::as_str)) else { return false };
            let (member, leader) = (field(&text, "\"MemberID\""), field(&text, "\"Leader\""));
            member.is_some() && member == leader
        })
    }

    /// The cluster's id, as its first node that answers says it.
    pub fn id(&self) -> Result<u64> {
        let answered = |node: &Node| self.status(&format!("https://{HOST}:{}", node.client_port));
        let status = self.nodes.iter().find_map(answered).context("no node of etcd answers")?;
        let id = field(&status, "\"ClusterID\"").context("etcd's status has no ClusterID")?;
        id.parse().with_context(|| format!("etcd's ClusterID {id:?}"))
    }

    fn status(&self, endpoint: &str) -> Option<String> {
        self.ctl(endpoint, &["endpoint", "status", "-w", "fields"])
    }

    fn ctl(&self, endpoint: &str, arguments: &[&str]) -> Option<String> {
        let file = |name: &str| self.folder.join(name);
        let output = Command::new(self.program.with_file_name("etcdctl"))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", endpoint, "--command-timeout", "2s", "--dial-timeout", "1s"])
            .arg("--cacert")
            .arg(file("root.pem"))
            .arg("--cert")
            .arg(file("client.pem"))
            .arg("--key")
            .arg(file("client-key.pem"))
            .args(arguments)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Deletes everything that the cluster keeps: as somebody does who may write it.
    pub fn wipe(&self) -> Result<()> {
        let endpoint = format!("https://{HOST}:{}", self.nodes.first().context("no node")?.client_port);
        self.ctl(&endpoint, &["del", "", "--prefix"]).map(drop).context("deleting the keys")
    }

    fn wait(&mut self) -> Result<()> {
        let begun = Instant::now();
        while self.leader().is_none() {
            for number in 0..self.nodes.len() {
                if self.has_ended(number)? {
                    self.start_node(number)?;
                }
            }
            if begun.elapsed() > PATIENCE {
                bail!("the cluster has no leader after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// A value out of what etcdctl writes with `-w fields`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches([' ', ':']).trim().to_owned())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Becomes etcd, which ends with the process that has started this one.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM)).context("the parent's death signal")?;
    let program = program().context("etcd is not installed")?;
    Err(Command::new(program).args(arguments).exec()).context("starting etcd")
}
