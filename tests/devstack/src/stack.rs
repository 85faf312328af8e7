//! Starts the three processes, keeps them running, ends them in order.
//!
//! Vault and broker live and die together, as in an enclave: where one ends, the other is ended and both start again, with
//! the watermarks of the file. The proxy re-makes its connections and answers 503 meanwhile.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use casemate_protocol::frame::{self, Info, MAX_FRAME_LEN};
use casemate_protocol::{Network, Reply, Request, RequestFrame};
use casemate_vault::{Clock, SystemClock};
use clap::Parser;
use indicatif::ProgressBar;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::banner::{self, Part, Running};
use crate::boot::Boot;
use crate::cli::Options;
use crate::{BROKER, PROXY, VAULT, keys, nsm};

/// How often the children are looked at.
const TICK: Duration = Duration::from_millis(20);
/// First wait before something that ended is started again; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Longest wait before something that ended is started again.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// What runs this long counts as started well.
const SETTLED: Duration = Duration::from_secs(10);
/// Longest wait for a child to end when told to, beyond the proxy's own time.
const END_TIMEOUT: Duration = Duration::from_secs(40);

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

    let keys = keys::load(&options, &network)?;
    let count = keys.len();
    let workers = options.workers.or(std::thread::available_parallelism().ok()).map_or(1, usize::from);
    let configuration = toml_of(&options)?;
    // Every part is this very program, whatever lies at its path by then; and this is what is measured.
    let executable = PathBuf::from("/proc/self/exe");
    let policy = nsm::Policy { proof_of_validation: options.proof_of_validation, fixed_time_ms: options.fixed_time_ms };
    let nsm = nsm::measure(data_dir.join("nsm"), &executable, &configuration, policy)?;
    let boot = Boot {
        network: configuration,
        keys,
        journal: data_dir.join("watermarks"),
        workers,
        proof_of_validation: options.proof_of_validation,
        fixed_time_ms: options.fixed_time_ms,
        nsm,
    };
    let mut stack = Stack { executable, socket: run_dir.path().join("enclave.sock"), boot, options, stop };

    let mut enclave = stack.start_enclave()?;
    let waiting = ProgressBar::new_spinner().with_message(format!("the vault derives {count} public keys"));
    waiting.enable_steady_tick(Duration::from_millis(100));
    let info = stack.await_enclave(&mut enclave);
    waiting.finish_and_clear();
    let info = match info {
        Ok(info) => info,
        Err(_) if stack.stop.asked() => return enclave.end(),
        Err(error) => return enclave.end().and(Err(error)),
    };
    let mut proxy = stack.start_proxy()?;
    if let Err(error) = stack.await_proxy(&mut proxy) {
        enclave.end()?;
        return if stack.stop.asked() { Ok(()) } else { Err(error) };
    }
    print!("{}", stack.banner(&network, &info, &enclave, &proxy, &data_dir));
    std::io::stdout().flush().context("writing to standard output")?;
    stack.supervise(enclave, proxy)
}

struct Stack {
    executable: PathBuf,
    socket: PathBuf,
    boot: Boot,
    options: Options,
    stop: Stop,
}

/// Vault and broker.
struct Enclave {
    vault: Child,
    broker: Child,
    since: Instant,
}

impl Stack {
    fn part(&self, name: &str, part: &str) -> Command {
        let mut command = Command::new(&self.executable);
        // A group of their own: Ctrl-C goes to the stack alone, which ends them in order.
        command.arg0(name).arg(part).process_group(0);
        command
    }

    fn start_enclave(&self) -> Result<Enclave> {
        let (vault_end, broker_end) = UnixStream::pair().context("a socket pair")?;
        let mut vault = self
            .part("casemate-vault", VAULT)
            .stdin(Stdio::piped())
            .stdout(OwnedFd::from(vault_end))
            .spawn()
            .context("starting the vault")?;
        let _ = fs::remove_file(&self.socket);
        let broker = self
            .part("casemate-broker", BROKER)
            .arg("--listen")
            .arg(format!("unix:{}", self.socket.display()))
            .stdin(OwnedFd::from(broker_end))
            .stdout(Stdio::null())
            .spawn()
            .context("starting the broker")?;
        if let Some(pipe) = vault.stdin.take() {
            let written = serde_json::to_writer(std::io::BufWriter::new(pipe), &self.boot);
            // A vault that has died already says why itself.
            if let Err(error) = written.map_err(anyhow::Error::from) {
                let enclave = Enclave { vault, broker, since: Instant::now() };
                enclave.end()?;
                return Err(error.context("handing the keys to the vault"));
            }
        }
        Ok(Enclave { vault, broker, since: Instant::now() })
    }

    /// Waits until the vault answers through the broker.
    fn await_enclave(&self, enclave: &mut Enclave) -> Result<Info> {
        loop {
            if self.stop.asked() {
                bail!("stopped");
            }
            if let Some(who) = enclave.ended()? {
                bail!("the {who} ended at once");
            }
            // Deriving public keys takes 86 µs a key: a hundred thousand may take their time.
            if let Ok(info) = ask_info(&self.socket, Duration::from_mins(1)) {
                return Ok(info);
            }
            sleep(TICK);
        }
    }

    fn start_proxy(&self) -> Result<Child> {
        self.part("casemate-proxy", PROXY)
            .arg("--listen")
            .arg(self.options.listen.to_string())
            .arg("--enclave")
            .arg(format!("unix:{}", self.socket.display()))
            .args(&self.options.proxy)
            .stdin(Stdio::null())
            .spawn()
            .context("starting the proxy")
    }

    fn await_proxy(&self, proxy: &mut Child) -> Result<()> {
        loop {
            if self.stop.asked() {
                end(proxy)?;
                bail!("stopped");
            }
            if let Some(status) = proxy.try_wait()? {
                bail!("the proxy ended at once: {status}");
            }
            if std::net::TcpStream::connect(self.options.listen).is_ok() {
                return Ok(());
            }
            sleep(TICK);
        }
    }

    fn banner(&self, network: &Network, info: &Info, enclave: &Enclave, proxy: &Child, data_dir: &Path) -> String {
        let tls = self.options.proxy.iter().any(|o| o.starts_with("--tls-certificate"));
        let part = |name, child: &Child, does: String| Part { name, pid: child.id(), does };
        banner::text(&Running {
            network,
            now_ms: self.options.fixed_time_ms.unwrap_or_else(|| SystemClock.unix_ms()),
            url: format!("{}://{}", if tls { "https" } else { "http" }, self.options.listen),
            keys: info.keys,
            keys_without_history: info.keys_without_history,
            first_key: first_key(&self.socket),
            interop: self.options.keystores.is_none(),
            parts: vec![
                part("vault", &enclave.vault, format!("holds the keys, {} threads that sign", self.boot.workers)),
                part("broker", &enclave.broker, format!("unix:{}", self.socket.display())),
                part("proxy", proxy, self.options.listen.to_string()),
            ],
            data_dir: data_dir.display().to_string(),
            nsm: self.boot.nsm.folder.display().to_string(),
            mutual_tls: self.options.proxy.iter().any(|o| o.starts_with("--tls-client-ca")),
        })
    }

    /// Keeps everything running until told to stop.
    fn supervise(&mut self, mut enclave: Enclave, mut proxy: Child) -> Result<()> {
        let (mut enclave_backoff, mut proxy_backoff) = (MIN_BACKOFF, MIN_BACKOFF);
        let mut proxy_since = Instant::now();
        while !self.stop.asked() {
            sleep(TICK);
            if let Some(who) = enclave.ended()? {
                eprintln!("casemate-dev: the {who} has ended; the enclave starts again");
                backoff(&mut enclave_backoff, enclave.since);
                enclave.end()?;
                enclave = self.start_enclave()?;
            }
            if let Some(status) = proxy.try_wait()? {
                eprintln!("casemate-dev: the proxy has ended ({status}) and starts again");
                backoff(&mut proxy_backoff, proxy_since);
                proxy = self.start_proxy()?;
                proxy_since = Instant::now();
            }
        }
        eprintln!("\ncasemate-dev: ending; requests in flight are answered first");
        // The proxy first: while it answers what is in flight, the enclave is needed.
        let proxy_ended = end(&mut proxy);
        enclave.end().and(proxy_ended)
    }
}

impl Enclave {
    /// Which of the two has ended.
    fn ended(&mut self) -> Result<Option<&'static str>> {
        Ok(if self.vault.try_wait()?.is_some() {
            Some("vault")
        } else if self.broker.try_wait()?.is_some() {
            Some("broker")
        } else {
            None
        })
    }

    /// Ends the broker, and with it the vault, which closes its file in order.
    fn end(mut self) -> Result<()> {
        let broker = end(&mut self.broker);
        let deadline = Instant::now() + END_TIMEOUT;
        while self.vault.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.vault.kill().context("killing the vault")?;
            }
            sleep(TICK);
        }
        broker
    }
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

fn ask(socket: &Path, request: Request, wait: Duration) -> Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
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

fn ask_info(socket: &Path, wait: Duration) -> Result<Info> {
    match ask(socket, Request::Info, wait)? {
        Reply::Info(info) => Ok(info),
        other => bail!("the enclave answered {other:?}"),
    }
}

fn first_key(socket: &Path) -> Option<casemate_protocol::PublicKey> {
    match ask(socket, Request::PublicKeys { start: 0 }, Duration::from_secs(5)) {
        Ok(Reply::PublicKeys { keys, .. }) => keys.first().copied(),
        _ => None,
    }
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
