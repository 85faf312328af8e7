//! Starts the processes, keeps them running, ends them in order.
//!
//! KMS and the proxy (which serves the way to it) come first, then the enclave, then the keys that it does not hold yet are
//! imported, through a proxy of their own, as an operator does it. Vault and broker live and die together, as in an enclave: where one ends, the other is ended and both start again, with
//! the watermarks of the file. The proxy re-makes its connections and answers 503 meanwhile.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use casemate_nitro_vm::Machine;
use casemate_protocol::address::Address;
use casemate_protocol::command::OperatorKey;
use casemate_protocol::frame::{self, Info, MAX_FRAME_LEN};
use casemate_protocol::statement::StatedStatus;
use casemate_protocol::{Network, Reply, Request, RequestFrame};
use casemate_vault::{Clock, SystemClock};
use clap::Parser;
use indicatif::ProgressBar;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::banner::{self, Part};
use crate::boot::{Boot, BootKeys};
use crate::cli::{FenceKind, Options};
use crate::etcd::Etcd;
use crate::keys::ToImport;
use crate::kms::LocalKms;
use crate::machines::Machines;
use crate::profile::Profile;
use crate::{BARE, BROKER, KMS, PROXY, VAULT, keys, kms, nsm};

/// How often the children are looked at.
const TICK: Duration = Duration::from_millis(20);
/// First wait before something that ended is started again; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Longest wait before something that ended is started again.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// What runs this long counts as started well.
const SETTLED: Duration = Duration::from_secs(10);
/// Longest wait for the fence: the ceilings of a holder that has died lie a few slots ahead.
const FENCE_TIMEOUT: Duration = Duration::from_mins(2);
/// Longest wait for a child to end when told to, beyond the proxy's own time.
const END_TIMEOUT: Duration = Duration::from_secs(40);

/// How long the stack waits for that once the proxy listens.
const PROXY_HEARS: Duration = Duration::from_secs(10);

/// Of the measured policy: what `--any-age` lifts.
const ANY_AGE: [&str; 2] = ["max_block_age_slots", "max_target_age_epochs"];

/// Whether the proxy says that it has reached the enclave. True also where it does not say it to us: it may speak TLS, or to certain
/// hosts alone.
fn has_reached_the_enclave(listen: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(listen) else { return false };
    let mut ask = || {
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(stream, "GET /healthcheck HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        (&mut stream).take(64 * 1024).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer: std::io::Result<String> = ask();
    let text = match answer {
        Ok(text) => text,
        Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    };
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let health: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let enclave = health.pointer("/checks/0/status").and_then(serde_json::Value::as_str);
    enclave.is_none_or(|status| status == "UP")
}

/// Runs the stack until SIGINT or SIGTERM.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let options = Options::parse_from(arguments);
    let network = options.network()?;
    let stop = Stop::listen()?;
    let data_dir = data_dir(&options, &network)?;
    let _lock = lock(&data_dir)?;
    // The socket's path must be short, whatever the data directory is called.
    let run_dir = tempfile::Builder::new().prefix("casemate-dev-").tempdir().context("a folder for the socket")?;
    fs::set_permissions(run_dir.path(), fs::Permissions::from_mode(0o700)).context("the socket's folder")?;
    // Better told now than by a proxy that cannot start.
    drop(TcpListener::bind(options.listen).with_context(|| format!("listening on {}", options.listen))?);

    let workers = options.workers.or(std::thread::available_parallelism().ok()).map_or(1, usize::from);
    // Every part is this very program, whatever lies at its path by then; and this is what is measured.
    let executable = PathBuf::from("/proc/self/exe");
    let nsm_folder = data_dir.join("nsm");
    let journal = options.journals().then(|| data_dir.join("watermarks"));
    let (mut etcd, mut machines) = (None, None);
    let fixed_time_ms = options.fixed_time_ms;
    let (boot, custody) = if options.plain {
        let keys = keys::plain(&options, &network)?;
        let toml = toml_of(&options)?;
        // A clock that stands still is no signer's clock: it must not be measured as one.
        let clock = fixed_time_ms.map(|ms| format!("fixed_time_ms = {ms}\n")).unwrap_or_default();
        let (proof_of_validation, any_age) = (options.proof_of_validation, options.signs_any_age());
        let window = if any_age { ANY_AGE.map(|line| format!("{line} = \"any\"\n")).concat() } else { String::new() };
        let measured = format!("{toml}\n[policy]\nproof_of_validation = {proof_of_validation}\n{window}{clock}");
        let nsm = nsm::measure(nsm_folder, &executable, &measured)?;
        let keys = BootKeys::Plain { network: toml, proof_of_validation, any_age, keys, bare: options.bare };
        (Boot { keys, journal, number: 0, workers, fixed_time_ms, nsm }, None)
    } else {
        for address in &options.withdrawal_address {
            casemate::execution_address(address).context("--withdrawal-address")?;
        }
        let tools = options.vm.then(Machines::tools).transpose()?;
        let kms = LocalKms::prepare(&data_dir, &nsm::root(&nsm_folder)?, options.vm)?;
        let operator_key = data_dir.join("operator.pem");
        if !operator_key.exists() {
            casemate::make_operator_key(&operator_key)?;
        }
        if options.fence == FenceKind::Etcd {
            etcd = Some(Etcd::start(&data_dir.join(&options.etcd_folder))?);
        }
        let operator = casemate::operator_key(&operator_key)?;
        let configuration = configuration(&options, &kms.key_arn, operator, etcd.as_ref())?;
        casemate_config::configuration(&configuration, nsm::sha256(&configuration))?;
        let nsm = match tools {
            None => nsm::measure(nsm_folder, &executable, &configuration)?,
            Some(tools) => {
                machines = Some(Machines::build(tools, &configuration, &data_dir, &nsm_folder)?);
                nsm::of_image(nsm_folder, &configuration)?
            }
        };
        if kms.allow(&nsm.folder.join("measurements.json"), nsm::GROUP)? {
            eprintln!(
                "casemate-dev: the program or its configuration is another than at the last start; the local KMS's key \
                 policy names it from now on, as an administrator would do it for an image that was verified"
            );
        }
        let keys = BootKeys::Sealed { configuration, kms: kms.for_vault() };
        (Boot { keys, journal, number: 0, workers, fixed_time_ms, nsm }, Some(Custody { kms, operator_key }))
    };
    let place = |number| {
        let folder = run_dir.path().join(format!("enclave-{number}"));
        if options.vm {
            Address::Hybrid { path: folder.join("vm.vsock"), port: casemate_nitro_vm::PORT }
        } else {
            Address::Unix(folder.with_extension("sock"))
        }
    };
    let sockets = (0..options.enclaves).map(place).collect();
    let egress = run_dir.path().join("egress.sock");
    let mut stack = Stack { executable, sockets, egress, boot, options, stop, custody, data_dir, etcd, machines };
    stack.run(&network)
}

struct Stack {
    executable: PathBuf,
    /// Of each enclave.
    sockets: Vec<Address>,
    egress: PathBuf,
    boot: Boot,
    options: Options,
    stop: Stop,
    /// Nothing where keys come in clear.
    custody: Option<Custody>,
    data_dir: PathBuf,
    etcd: Option<Etcd>,
    /// With `--vm`.
    machines: Option<Machines>,
}

/// Where keys are sealed.
struct Custody {
    kms: LocalKms,
    operator_key: PathBuf,
}

/// A part of its own, without the enclave.
struct Running {
    child: Child,
    since: Instant,
    backoff: Duration,
}

impl Running {
    fn new(child: Child) -> Self {
        Self { child, since: Instant::now(), backoff: MIN_BACKOFF }
    }
}

/// One of the group's enclaves.
struct Enclave {
    number: u8,
    backoff: Duration,
    body: Body,
    since: Instant,
}

/// What an enclave runs as.
enum Body {
    /// Two processes of this machine.
    Processes { vault: Child, broker: Child },
    /// A machine of its own.
    Machine(Box<Machine>),
}

impl Stack {
    /// Runs until it is told to stop.
    fn run(&mut self, network: &Network) -> Result<()> {
        let mut kms = self.start_kms()?.map(Running::new);
        let ended = self.run_on_kms(network, &mut kms);
        let kms_ended = kms.map_or(Ok(()), |mut kms| end(&mut kms.child));
        ended.and(kms_ended)
    }

    fn run_on_kms(&mut self, network: &Network, kms: &mut Option<Running>) -> Result<()> {
        let mut proxy = Running::new(self.start_proxy()?);
        let mut enclaves = Vec::new();
        let begun = self.begin(network, &mut enclaves, &mut proxy.child, kms.as_ref());
        if begun.is_ok() && !self.stop.asked() {
            return self.supervise(enclaves, proxy, kms);
        }
        let ended = end(&mut proxy.child).and(end_all(enclaves));
        if self.stop.asked() { ended } else { begun.and(ended) }
    }

    /// Waits for the parts, brings keys in, and says what runs.
    fn begin(
        &self,
        network: &Network,
        enclaves: &mut Vec<Enclave>,
        proxy: &mut Child,
        kms: Option<&Running>,
    ) -> Result<()> {
        enclaves.push(self.start_enclave(0)?);
        let what = if self.custody.is_some() { "the vault unseals its keys" } else { "the vault derives public keys" };
        let waiting = ProgressBar::new_spinner().with_message(what);
        waiting.enable_steady_tick(Duration::from_millis(100));
        let info = self.await_enclave(enclaves, proxy);
        waiting.finish_and_clear();
        let mut info = info?;
        let mut left_out = 0;
        if let Some(custody) = self.custody.as_ref().filter(|_| !self.options.as_it_is) {
            left_out = self.import(custody, network)?;
            info = self.await_enclave(enclaves, proxy)?;
        }
        // The others find what the first one has sealed.
        for number in 1..self.options.enclaves {
            enclaves.push(self.start_enclave(number)?);
        }
        info.keys_without_history =
            info.keys_without_history.saturating_add(u32::try_from(left_out).unwrap_or(u32::MAX));
        self.await_proxy(proxy)?;
        let profiles = self.write_profile(network)?;
        print!("{}", self.banner(network, &info, enclaves, proxy, kms, profiles.display().to_string()));
        std::io::stdout().flush().context("writing to standard output")
    }

    /// Brings keys in as `casemate keys import` does. How many are left out, because nobody knows their past.
    fn import(&self, custody: &Custody, network: &Network) -> Result<usize> {
        // A proxy of its own: the other one may want certificates that only its clients have.
        let port = casemate_local_etcd::free_port()?;
        let mut proxy = self
            .part("casemate-import-proxy", PROXY)
            .args(["--listen", &format!("127.0.0.1:{port}"), "--log-level", "error", "--keep-fence", "--enclave"])
            .arg(self.socket(0)?)
            .env_clear()
            .stdin(Stdio::null())
            .spawn()
            .context("starting the proxy for the import")?;
        let imported = self.import_through(custody, network, port, &mut proxy);
        end(&mut proxy).and(imported)
    }

    fn import_through(&self, custody: &Custody, network: &Network, port: u16, proxy: &mut Child) -> Result<usize> {
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = proxy.try_wait()? {
                bail!("the proxy for the import ended at once: {status}");
            }
            sleep(TICK);
        }
        let url = format!("http://127.0.0.1:{port}");
        let nsm = &self.boot.nsm.folder;
        let (root, measurements) = (nsm.join("root.pem"), nsm.join("measurements.json"));
        let enclave = casemate::Local {
            url: &url,
            tls_ca: None,
            root: &root,
            measurements: &measurements,
            operator_key: &custody.operator_key,
        };
        let credentials = self.etcd.as_ref().map(Etcd::credentials).transpose()?;
        if enclave.begin_fence(credentials.as_ref()).context("making the fence's record")? {
            eprintln!("casemate-dev: the fence has its first record, by order of the operator");
        }
        let begun = Instant::now();
        // A record whose holder has died is claimed once its ceilings have passed: without it no key can be imported.
        loop {
            match enclave.standing()? {
                standing if standing.signs() => break,
                StatedStatus::OldState => bail!(
                    "the sealed states in {} are older than the fence's record allows: the newest is missing",
                    self.data_dir.join("blobs").display()
                ),
                StatedStatus::RolledBack => bail!("the fence's record is older than the sealed state has seen it"),
                StatedStatus::NoRecord => bail!("the fence's record is gone: casemate fence init --record-lost"),
                StatedStatus::Closed => bail!("the fence's record has ended: casemate fence init --after"),
                _ => {}
            }
            if self.stop.asked() {
                bail!("stopped");
            }
            if begun.elapsed() > FENCE_TIMEOUT {
                bail!("the enclave does not hold the fence after {} s", FENCE_TIMEOUT.as_secs());
            }
            sleep(Duration::from_millis(600));
        }
        let ToImport { keys, known, waived, without_history } =
            keys::to_import(&self.options, network, &enclave.keys().context("listing the enclave's keys")?)?;
        if !keys.is_empty() {
            let new = enclave.import(&keys, known, waived).context("importing keys")?;
            eprintln!("casemate-dev: {new} keys imported and sealed");
        }
        Ok(without_history)
    }

    fn start_kms(&self) -> Result<Option<Child>> {
        let Some(custody) = &self.custody else { return Ok(None) };
        let mut child = self
            .part("casemate-kms", KMS)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("starting KMS")?;
        if let Some(pipe) = child.stdin.take() {
            serde_json::to_writer(std::io::BufWriter::new(pipe), &custody.kms.boot).context("telling KMS its key")?;
        }
        Ok(Some(child))
    }

    fn part(&self, name: &str, part: &str) -> Command {
        let mut command = Command::new(&self.executable);
        // A group of their own: Ctrl-C goes to the stack alone, which ends them in order.
        command.arg0(name).arg(part).process_group(0);
        command
    }

    fn socket(&self, number: u8) -> Result<String> {
        Ok(self.sockets.get(usize::from(number)).context("no such enclave")?.to_string())
    }

    fn start_enclave(&self, number: u8) -> Result<Enclave> {
        let started = |body| Enclave { number, backoff: MIN_BACKOFF, body, since: Instant::now() };
        let socket = match (self.sockets.get(usize::from(number)).context("no such enclave")?, &self.machines) {
            (Address::Hybrid { path, .. }, Some(machines)) => {
                let folder = path.parent().context("the machine's folder")?;
                let machine = machines.boot(folder, number, &self.boot.nsm, &self.egress)?;
                return Ok(started(Body::Machine(Box::new(machine))));
            }
            (Address::Unix(path), _) => path,
            (other, _) => bail!("{other} is no place for an enclave here"),
        };
        let (vault_end, broker_end) = UnixStream::pair().context("a socket pair")?;
        let mut vault = self
            .part("casemate-vault", VAULT)
            .stdin(Stdio::piped())
            .stdout(OwnedFd::from(vault_end))
            .spawn()
            .context("starting the vault")?;
        let _ = fs::remove_file(socket);
        let broker = self
            .part("casemate-broker", BROKER)
            .arg(self.socket(number)?)
            .args(
                self.custody
                    .iter()
                    .flat_map(|custody| [format!("unix:{}", self.egress.display()), custody.kms.boot.port.to_string()]),
            )
            .args(matches!(self.boot.keys, BootKeys::Plain { bare: true, .. }).then_some(BARE))
            .stdin(OwnedFd::from(broker_end))
            .stdout(Stdio::null())
            .spawn()
            .context("starting the broker")?;
        if let Some(pipe) = vault.stdin.take() {
            let boot = Boot { number, ..self.boot.clone() };
            let written = serde_json::to_writer(std::io::BufWriter::new(pipe), &boot);
            // A vault that has died already says why itself.
            if let Err(error) = written.map_err(anyhow::Error::from) {
                started(Body::Processes { vault, broker }).end()?;
                return Err(error.context("handing the keys to the vault"));
            }
        }
        Ok(started(Body::Processes { vault, broker }))
    }

    /// Waits until the first vault answers through its broker.
    fn await_enclave(&self, enclaves: &mut [Enclave], proxy: &mut Child) -> Result<Info> {
        loop {
            if self.stop.asked() {
                bail!("stopped");
            }
            if let Some(status) = proxy.try_wait()? {
                bail!("the proxy ended at once: {status}");
            }
            for enclave in &mut *enclaves {
                if let Some(who) = enclave.ended()? {
                    bail!("the {who} ended at once");
                }
            }
            // Deriving public keys takes 86 µs a key: a hundred thousand may take their time.
            if let Some(Ok(info)) = self.sockets.first().map(|socket| ask_info(socket, Duration::from_mins(1))) {
                return Ok(info);
            }
            sleep(TICK);
        }
    }

    /// Where the enclaves may go.
    fn allowed(&self, custody: &Custody) -> String {
        let port = custody.kms.boot.port;
        let mut allowed = match self.machines {
            None => format!("{}:{port}", kms::HOST),
            Some(_) => format!("{}:443={}:{port}", kms::AWS, kms::HOST),
        };
        if let Some(etcd) = &self.etcd {
            allowed.extend([",", casemate_local_etcd::HOST, ":", &etcd.port.to_string()]);
        }
        allowed
    }

    fn start_proxy(&self) -> Result<Child> {
        let addresses = (0..self.options.enclaves).map(|number| self.socket(number)).collect::<Result<Vec<_>>>()?;
        let mut command = self.part("casemate-proxy", PROXY);
        if let Some(custody) = &self.custody {
            command
                .arg("--egress")
                .arg(format!("unix:{}", self.egress.display()))
                .args(["--egress-allow", &self.allowed(custody)])
                .arg("--fence-files")
                .arg(self.data_dir.join("fence"))
                .arg("--blobs")
                .arg(self.data_dir.join("blobs"))
                .args(["--credentials", "environment"])
                .env("AWS_ACCESS_KEY_ID", kms::ACCESS_KEY)
                .env("AWS_SECRET_ACCESS_KEY", kms::SECRET_KEY)
                .env_remove("AWS_SESSION_TOKEN");
        }
        command
            .arg("--listen")
            .arg(self.options.listen.to_string())
            .arg("--enclave")
            .arg(addresses.join(","))
            .args(&self.options.proxy)
            .stdin(Stdio::null())
            .spawn()
            .context("starting the proxy")
    }

    /// Until the proxy serves, and has heard from the enclave what the stack has heard: it asks by itself, now and then.
    fn await_proxy(&self, proxy: &mut Child) -> Result<()> {
        let begun = Instant::now();
        loop {
            if self.stop.asked() {
                bail!("stopped");
            }
            if let Some(status) = proxy.try_wait()? {
                bail!("the proxy ended at once: {status}");
            }
            let waited = begun.elapsed() > PROXY_HEARS && TcpStream::connect(self.options.listen).is_ok();
            if waited || has_reached_the_enclave(self.options.listen) {
                return Ok(());
            }
            sleep(TICK);
        }
    }

    fn url(&self) -> String {
        let tls = self.options.proxy.iter().any(|o| o.starts_with("--tls-certificate"));
        format!("{}://{}", if tls { "https" } else { "http" }, self.options.listen)
    }

    /// What `casemate` needs to be this stack's operator; where it is written.
    fn write_profile(&self, network: &Network) -> Result<PathBuf> {
        let configuration = match &self.boot.keys {
            BootKeys::Sealed { configuration, .. } => {
                let path = self.data_dir.join("casemate.toml");
                fs::write(&path, configuration).with_context(|| format!("writing {}", path.display()))?;
                Some(path)
            }
            BootKeys::Plain { .. } => None,
        };
        let fence = self.custody.is_some().then(|| self.options.fence.name());
        let profile = Profile {
            url: &self.url(),
            nsm: &self.boot.nsm.folder,
            group: nsm::GROUP,
            network: network.name(),
            fence,
            operator_key: self.custody.as_ref().map(|custody| custody.operator_key.as_path()),
            configuration: configuration.as_deref(),
        };
        profile.write(&self.data_dir)
    }

    fn banner(
        &self,
        network: &Network,
        info: &Info,
        enclaves: &[Enclave],
        proxy: &Child,
        kms: Option<&Running>,
        profiles: String,
    ) -> String {
        let part = |name, child: &Child, does: String| Part { name, pid: child.id(), does };
        let mut parts = Vec::new();
        for (enclave, socket) in enclaves.iter().zip(&self.sockets) {
            match &enclave.body {
                Body::Processes { vault, broker } => {
                    parts.push(part(
                        "vault",
                        vault,
                        format!("holds the keys, {} threads that sign", self.boot.workers),
                    ));
                    parts.push(part("broker", broker, socket.to_string()));
                }
                Body::Machine(machine) => {
                    parts.push(Part { name: "enclave", pid: machine.pid(), does: socket.to_string() });
                }
            }
        }
        parts.push(part("proxy", proxy, self.options.listen.to_string()));
        if let Some(etcd) = &self.etcd {
            let does = format!("https://{}:{}", casemate_local_etcd::HOST, etcd.port);
            parts.push(Part { name: "etcd", pid: etcd.pid().unwrap_or_default(), does });
        }
        if let (Some(kms), Some(custody)) = (kms, &self.custody) {
            let does = format!("https://{}:{}", kms::HOST, custody.kms.boot.port);
            parts.push(part("kms", &kms.child, does));
        }
        let text = if self.options.verbose_banner { banner::verbose } else { banner::short };
        text(&banner::Running {
            network,
            now_ms: self.options.fixed_time_ms.or_else(|| SystemClock.unix_ms()).unwrap_or_default(),
            url: self.url(),
            keys: info.keys,
            keys_without_history: info.keys_without_history,
            first_key: self.sockets.first().and_then(first_key),
            interop: self.options.keystores.is_none(),
            any_age: self.options.signs_any_age(),
            parts,
            data_dir: self.data_dir.display().to_string(),
            nsm: self.boot.nsm.folder.display().to_string(),
            mutual_tls: self.options.proxy.iter().any(|o| o.starts_with("--tls-client-ca")),
            fence: self.custody.is_some().then_some(self.options.fence),
            enclaves: self.options.enclaves,
            vm: self.options.vm,
            operator_key: self.custody.as_ref().map(|custody| custody.operator_key.display().to_string()),
            profiles,
        })
    }

    /// Starts an enclave in the place of one that has ended.
    fn start_enclave_after(&self, ended: &mut Enclave) -> Result<Enclave> {
        ended.end_both()?;
        self.start_enclave(ended.number)
    }

    /// Keeps everything running until told to stop.
    fn supervise(&mut self, mut enclaves: Vec<Enclave>, mut proxy: Running, kms: &mut Option<Running>) -> Result<()> {
        while !self.stop.asked() {
            sleep(TICK);
            for place in &mut enclaves {
                if let Some(who) = place.ended()? {
                    eprintln!("casemate-dev: the {who} has ended; the enclave starts again");
                    backoff(&mut place.backoff, place.since);
                    let new = Enclave { backoff: place.backoff, ..self.start_enclave_after(place)? };
                    *place = new;
                }
            }
            again("proxy", &mut proxy, || self.start_proxy())?;
            if let Some(kms) = kms {
                again("local KMS", kms, || self.start_kms()?.context("there is no local KMS"))?;
            }
        }
        eprintln!("\ncasemate-dev: ending; requests in flight are answered first");
        // The proxy first: while it answers what is in flight, the enclave is needed.
        let proxy_ended = end(&mut proxy.child);
        end_all(enclaves).and(proxy_ended)
    }
}

/// Starts a part again where it has ended.
fn again(name: &str, part: &mut Running, start: impl FnOnce() -> Result<Child>) -> Result<()> {
    if let Some(status) = part.child.try_wait()? {
        eprintln!("casemate-dev: the {name} has ended ({status}) and starts again");
        backoff(&mut part.backoff, part.since);
        part.child = start()?;
        part.since = Instant::now();
    }
    Ok(())
}

impl Enclave {
    /// Which of the two has ended; of both, the one that was killed.
    fn ended(&mut self) -> Result<Option<&'static str>> {
        let (vault, broker) = match &mut self.body {
            Body::Processes { vault, broker } => (vault.try_wait()?, broker.try_wait()?),
            Body::Machine(machine) => {
                let ended = machine.ended()?;
                if ended {
                    eprintln!("casemate-dev: the machine's console:\n{}", machine.console());
                }
                return Ok(ended.then_some("machine"));
            }
        };
        let killed = |status: Option<ExitStatus>| status.is_some_and(|status| status.signal().is_some());
        Ok(match (vault, broker) {
            (None, None) => None,
            (_, broker) if killed(broker) => Some("broker"),
            (Some(_), _) => Some("vault"),
            (None, Some(_)) => Some("broker"),
        })
    }

    /// Ends the broker, and with it the vault, which closes its file in order.
    fn end(mut self) -> Result<()> {
        self.end_both()
    }

    fn end_both(&mut self) -> Result<()> {
        let (vault, broker) = match &mut self.body {
            Body::Processes { vault, broker } => (vault, broker),
            Body::Machine(machine) => {
                machine.power_off();
                return Ok(());
            }
        };
        let ended = end(broker);
        let deadline = Instant::now() + END_TIMEOUT;
        while vault.try_wait()?.is_none() {
            if Instant::now() > deadline {
                vault.kill().context("killing the vault")?;
            }
            sleep(TICK);
        }
        ended
    }
}

fn end_all(enclaves: Vec<Enclave>) -> Result<()> {
    enclaves.into_iter().map(Enclave::end).fold(Ok(()), Result::and)
}

/// SIGTERM, and SIGKILL if that does not help.
fn end(child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + END_TIMEOUT;
    if child.try_wait()?.is_none()
        && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
    {
        kill_process(pid, Signal::TERM).context("sending SIGTERM")?;
    }
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill().context("sending SIGKILL")?;
        }
        sleep(TICK);
    }
    Ok(())
}

fn backoff(wait: &mut Duration, since: Instant) {
    if since.elapsed() > SETTLED {
        *wait = MIN_BACKOFF;
    }
    sleep(*wait);
    *wait = wait.saturating_mul(2).min(MAX_BACKOFF);
}

fn ask(socket: &Address, request: Request, wait: Duration) -> Result<Reply> {
    let mut stream = match socket {
        Address::Unix(path) => UnixStream::connect(path)?,
        Address::Hybrid { path, port } => casemate_nitro_vm::connect(path, *port)?,
        Address::Vsock { .. } => bail!("{socket} is no place for an enclave here"),
    };
    stream.set_read_timeout(Some(wait))?;
    let mut bytes = Vec::new();
    frame::encode_request(&RequestFrame::new(1, request), &mut bytes);
    stream.write_all(&bytes)?;
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let n = stream.read(&mut chunk)?;
        if n == 0 {
            bail!("the enclave closed the connection");
        }
        buffer.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if let Some((frame, _)) = frame::split(&buffer, MAX_FRAME_LEN)? {
            return Ok(frame::decode_reply(frame)?.reply);
        }
    }
}

fn ask_info(socket: &Address, wait: Duration) -> Result<Info> {
    match ask(socket, Request::Info, wait)? {
        Reply::Info(info) => Ok(info),
        other => bail!("the enclave answered {other:?}"),
    }
}

fn first_key(socket: &Address) -> Option<casemate_protocol::PublicKey> {
    match ask(socket, Request::PublicKeys { start: 0 }, Duration::from_secs(5)) {
        Ok(Reply::PublicKeys { keys, .. }) => keys.first().copied(),
        _ => None,
    }
}

/// The measured configuration of the stack, as an image has it.
fn configuration(options: &Options, key_arn: &str, operator: OperatorKey, etcd: Option<&Etcd>) -> Result<String> {
    let network = if casemate_config::NAMED.iter().any(|(name, _)| *name == options.network) {
        toml::Value::String(options.network.clone())
    } else {
        toml::Value::Table(toml_of(options)?.parse().context("the network's file")?)
    };
    let texts = |texts: Vec<String>| toml::Value::Array(texts.into_iter().map(toml::Value::String).collect());
    let mut table = toml::Table::new();
    table.insert("group".to_owned(), nsm::GROUP.to_owned().into());
    table.insert("kms_key_arn".to_owned(), key_arn.to_owned().into());
    table.insert("network".to_owned(), network);
    let mut operators = toml::Table::new();
    operators.insert("threshold".to_owned(), 1.into());
    operators.insert("keys".to_owned(), texts(vec![operator.to_string()]));
    table.insert("operators".to_owned(), operators.into());
    let mut policy = toml::Table::new();
    policy.insert("proof_of_validation".to_owned(), options.proof_of_validation.into());
    // Test keys may leave; where their deposits withdraw to is measured all the same.
    policy.insert("voluntary_exits".to_owned(), true.into());
    policy.insert("withdrawal_addresses".to_owned(), texts(options.withdrawal_address.clone()));
    // A test chain's clients say where fees go, and builders of one have nothing to lose.
    policy.insert("fee_recipient".to_owned(), "any".into());
    policy.insert("builder_bids".to_owned(), true.into());
    if options.any_age {
        policy.extend(ANY_AGE.map(|line| (line.to_owned(), "any".into())));
    }
    if let Some(path) = &options.policy {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let given: toml::Table = text.parse().with_context(|| format!("in {}", path.display()))?;
        policy.extend(given);
    }
    table.insert("policy".to_owned(), policy.into());
    let mut fence = etcd.map(Etcd::table).transpose()?.unwrap_or_default();
    fence.insert("kind".to_owned(), options.fence.name().to_owned().into());
    table.insert("fence".to_owned(), fence.into());
    toml::to_string(&table).context("writing the configuration")
}

/// The network's TOML, as the vault gets it.
fn toml_of(options: &Options) -> Result<String> {
    let named = casemate_config::NAMED.iter().find(|(name, _)| *name == options.network);
    named.map_or_else(
        || fs::read_to_string(&options.network).with_context(|| format!("reading {}", options.network)),
        |(_, text)| Ok((*text).to_owned()),
    )
}

/// One folder for each chain, whatever the network is called: watermarks of different chains never meet, and those of one
/// are always found.
fn data_dir(options: &Options, network: &Network) -> Result<PathBuf> {
    let folder = options.data_dir.join(network.genesis_validators_root().to_string());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("making {}", folder.display()))?;
    fs::canonicalize(&folder).with_context(|| format!("finding {}", folder.display()))
}

/// Two stacks on one folder would sign from the same watermarks without knowing of each other.
fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!("{} is in use by another stack; give this one another --data-dir", data_dir.display());
    }
    Ok(file)
}

/// SIGINT and SIGTERM ask the stack to end.
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn listen() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&asked)).context("listening for signals")?;
        }
        Ok(Self(asked))
    }

    fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
