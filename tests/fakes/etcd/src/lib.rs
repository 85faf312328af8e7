//! etcd clusters of one or three nodes on this machine, from Debian's package `etcd-server`: TLS with client certificates, as the
//! fence asks for it. Nodes can be stopped, killed and cut off from the others.
#![forbid(unsafe_code)]

mod partition;
mod ports;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
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
    /// Root of the servers.
    pub root: String,
    server: String,
    server_key: String,
    /// Roots of the clients that it takes: the servers' own, because the JSON gateway is a client of its server, and the client's.
    clients: String,
    /// The client's.
    pub client: String,
    /// Its private key.
    pub client_key: String,
}

/// A root of its own.
fn authority(name: &str) -> Result<(String, rcgen::Issuer<'static, rcgen::KeyPair>)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new([])?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let root = params.self_signed(&key)?;
    Ok((root.pem(), rcgen::Issuer::new(params, key)))
}

/// A certificate and its key.
fn leaf(name: &str, names: Vec<String>, issuer: &rcgen::Issuer<'_, rcgen::KeyPair>) -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(names)?;
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

/// A client under a root of its own: that root, its certificate and its key.
fn client() -> Result<(String, String, String)> {
    let (root, issuer) = authority("casemate-local-etcd-clients")?;
    let (client, client_key) = leaf("enclave", vec!["enclave".to_owned()], &issuer)?;
    Ok((root, client, client_key))
}

impl Certificates {
    fn new() -> Result<Self> {
        let (root, issuer) = authority("casemate-local-etcd")?;
        let names = vec![HOST.to_owned(), Ipv4Addr::LOCALHOST.to_string()];
        // etcd's gateway dials its own server, with the server's certificate.
        let (server, server_key) = leaf("server", names, &issuer)?;
        let (client_root, client, client_key) = client()?;
        let clients = [root.as_str(), &client_root].concat();
        Ok(Self { root, server, server_key, clients, client, client_key })
    }

    const FILES: [&str; 6] =
        ["root.pem", "server.pem", "server-key.pem", "clients.pem", "client.pem", "client-key.pem"];

    /// Those in this folder; new ones where there are none.
    fn keep(folder: &Path) -> Result<Self> {
        let [root, server, server_key, clients, client, client_key] = Self::FILES.map(|name| folder.join(name));
        if !client_key.exists() {
            let new = Self::new()?;
            let parts = [&new.root, &new.server, &new.server_key, &new.clients, &new.client, &new.client_key];
            for (name, text) in Self::FILES.iter().zip(parts) {
                write(&folder.join(name), text).with_context(|| format!("writing {name}"))?;
            }
        }
        if !clients.exists() {
            // Of a folder from before clients had a root of their own.
            fs::copy(&root, &clients).context("writing clients.pem")?;
        }
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
        Ok(Self {
            root: read(&root)?,
            server: read(&server)?,
            server_key: read(&server_key)?,
            clients: read(&clients)?,
            client: read(&client)?,
            client_key: read(&client_key)?,
        })
    }
}

/// Puts a new client certificate, under another root, in the place of the one in this cluster's folder. From its next start on the
/// cluster refuses the old one.
pub fn replace_client(folder: &Path) -> Result<()> {
    let (client_root, client, client_key) = client()?;
    let root = fs::read_to_string(folder.join("root.pem")).context("reading root.pem")?;
    for (name, text) in [
        ("clients.pem", [root.as_str(), &client_root].concat()),
        ("client.pem", client),
        ("client-key.pem", client_key),
    ] {
        write(&folder.join(name), &text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}

/// For its owner alone: `casemate` takes no key that others can read.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    fs::write(path, "")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    fs::write(path, text)
}

/// etcdctl at the first node of the cluster of this folder, with its client's certificate; what it says.
pub fn ctl(folder: &Path, arguments: &[&str], input: &[u8]) -> Result<String> {
    let [port, ..] = *ports::of(folder, 0)?.first().context("a cluster without nodes")?;
    ctl_at(folder, &format!("https://{HOST}:{port}"), arguments, input)
}

fn ctl_at(folder: &Path, endpoint: &str, arguments: &[&str], input: &[u8]) -> Result<String> {
    let program = program().context("etcd is not installed")?.with_file_name("etcdctl");
    let file = |name: &str| folder.join(name);
    let mut child = Command::new(program)
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", endpoint, "--command-timeout", "2s", "--dial-timeout", "1s"])
        .arg("--cacert")
        .arg(file("root.pem"))
        .arg("--cert")
        .arg(file("client.pem"))
        .arg("--key")
        .arg(file("client-key.pem"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting etcdctl")?;
    if let Some(mut pipe) = child.stdin.take() {
        // One that does not read its input has ended before it was written.
        let _ = pipe.write_all(input);
    }
    let output = child.wait_with_output().context("waiting for etcdctl")?;
    if !output.status.success() {
        bail!("etcdctl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How long a cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster that runs.
pub struct Cluster {
    folder: PathBuf,
    program: PathBuf,
    launcher: Vec<OsString>,
    nodes: Vec<Node>,
    /// Nodes that have come to a cluster that was there.
    joins: BTreeSet<usize>,
    /// Options of every node besides.
    options: Vec<String>,
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

    /// The same, with options of etcd besides.
    pub fn start_with(folder: &Path, nodes: usize, options: &[&str]) -> Result<Option<Self>> {
        Self::begin(folder, nodes, &[], options)
    }

    /// The same, with each node started by this command line, which is to end in [`run`].
    pub fn start_by(folder: &Path, nodes: usize, launcher: &[OsString]) -> Result<Option<Self>> {
        Self::begin(folder, nodes, launcher, &[])
    }

    fn begin(folder: &Path, nodes: usize, launcher: &[OsString], options: &[&str]) -> Result<Option<Self>> {
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
            joins: BTreeSet::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
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
            // Ctrl-C goes to anyone who started the cluster alone: it ends last.
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
            .args(["--initial-cluster-state", if self.joins.contains(&number) { "existing" } else { "new" }])
            .args(&self.options)
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--log-level", "error"])
            .arg("--client-cert-auth")
            .arg("--trusted-ca-file")
            .arg(file("clients.pem"))
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

    /// From now on nothing of what one node says to another arrives, while the other is still heard; or all does again.
    pub fn drop_direction(&self, from: usize, to: usize, dropped: bool) {
        self.peers.drop_direction(from, to, dropped);
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
        ctl_at(&self.folder, endpoint, &["endpoint", "status", "-w", "fields"], &[]).ok()
    }

    /// etcdctl at this node; what it says.
    pub fn etcdctl(&self, number: usize, arguments: &[&str]) -> Result<String> {
        let port = self.nodes.get(number).context("no such node")?.client_port;
        ctl_at(&self.folder, &format!("https://{HOST}:{port}"), arguments, &[])
    }

    /// Deletes everything that the cluster keeps: as somebody does who may write it.
    pub fn wipe(&self) -> Result<()> {
        self.etcdctl(0, &["del", "", "--prefix"]).map(drop).context("deleting the keys")
    }

    /// Puts a node without data in the place of this one, as after the loss of its disk: the old member is removed, a new one added. The
    /// others take no such change before they have heard from each other for five seconds: it takes as long.
    pub fn replace(&mut self, number: usize) -> Result<()> {
        self.kill(number)?;
        let other = (0..self.nodes.len()).find(|other| *other != number).context("it is the only one")?;
        let name = format!("node-{number}");
        let members = self.persist(other, &["member", "list"])?;
        let id = members.lines().find(|line| line.contains(&name)).and_then(|line| line.split(',').next());
        self.persist(other, &["member", "remove", id.context("no such member")?])?;
        fs::remove_dir_all(self.folder.join(&name)).context("removing its data")?;
        let address = format!("--peer-urls=http://127.0.0.1:{}", self.peers.port(number));
        self.persist(other, &["member", "add", &name, &address])?;
        self.joins.insert(number);
        self.start_node(number)
    }

    /// etcdctl again and again, until it works.
    fn persist(&self, number: usize, arguments: &[&str]) -> Result<String> {
        let begun = Instant::now();
        loop {
            match self.etcdctl(number, arguments) {
                // A change that was made though its answer was lost.
                Err(error)
                    if error.to_string().contains("not found") || error.to_string().contains("already exist") =>
                {
                    return Ok(String::new());
                }
                Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
                Ok(told) => return Ok(told),
            }
        }
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
