//! Threads of which exactly one runs: the driver hands the turn to an actor, and the actor gives it back wherever it would wait.
//!
//! So the production code runs as it is, on threads of its own, and what happens is still one sequence that a seed repeats. An actor
//! that is killed unwinds from where it waits: nothing of it runs any more but destructors.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use casemate_vault::platform::runtime::{Bell, Runtime};

/// An actor that keeps its turn for so long waits for something that the driver does not know of.
const STUCK: Duration = Duration::from_mins(1);

/// Simulated time: it moves when the driver says so.
#[derive(Default)]
pub struct Time(AtomicU64);

impl Time {
    /// Milliseconds since the episode has begun.
    pub fn ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Never back.
    pub fn advance_to(&self, ms: u64) {
        self.0.fetch_max(ms, Ordering::Relaxed);
    }
}

/// What an actor waits for.
#[derive(Clone)]
pub enum Wait {
    /// Only for its turn.
    Turn,
    /// For a time.
    Until(u64),
    /// For a ring, or for a time.
    Bell(Arc<AtomicBool>, u64),
    /// For nothing any more.
    Ended,
}

/// What unwinds an actor that is killed.
struct Killed;

/// A thread that runs when it has the turn.
pub struct Actor {
    has_turn: AtomicBool,
    killed: AtomicBool,
    wait: Mutex<Wait>,
    thread: OnceLock<Thread>,
    driver: Thread,
    joined: Mutex<Option<JoinHandle<()>>>,
    /// What it said where it ended by a panic of its own.
    panicked: Mutex<Option<String>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Actor>>> = const { RefCell::new(None) };
}

/// Gives the turn back until `wait` is over and the driver hands it over again. The driver itself never waits.
pub fn pause(wait: Wait) {
    let actor = CURRENT.with(|current| current.borrow().clone());
    if let Some(actor) = actor {
        actor.pause(wait);
    }
}

impl Actor {
    /// A thread that has not begun yet.
    pub fn start(name: &str, body: impl FnOnce() + Send + 'static) -> Arc<Self> {
        let actor = Arc::new(Self {
            has_turn: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            wait: Mutex::new(Wait::Turn),
            thread: OnceLock::new(),
            driver: std::thread::current(),
            joined: Mutex::default(),
            panicked: Mutex::default(),
        });
        let itself = Arc::clone(&actor);
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(1 << 20);
        let joined = thread.spawn(move || itself.run(body)).unwrap();
        actor.thread.set(joined.thread().clone()).unwrap();
        *actor.joined.lock().unwrap() = Some(joined);
        actor
    }

    fn run(self: Arc<Self>, body: impl FnOnce()) {
        CURRENT.with(|current| *current.borrow_mut() = Some(Arc::clone(&self)));
        let ended = catch_unwind(AssertUnwindSafe(|| {
            self.await_turn();
            body();
        }));
        if let Err(payload) = ended
            && !payload.is::<Killed>()
        {
            let said = payload.downcast_ref::<String>().cloned();
            let said = said.or_else(|| payload.downcast_ref::<&str>().map(|said| (*said).to_owned()));
            *self.panicked.lock().unwrap() = Some(said.unwrap_or_default());
        }
        CURRENT.with(|current| *current.borrow_mut() = None);
        *self.wait.lock().unwrap() = Wait::Ended;
        self.give_back();
    }

    fn give_back(&self) {
        self.has_turn.store(false, Ordering::Release);
        self.driver.unpark();
    }

    fn await_turn(&self) {
        while !self.has_turn.load(Ordering::Acquire) {
            std::thread::park();
        }
        if self.killed.load(Ordering::Relaxed) {
            resume_unwind(Box::new(Killed));
        }
    }

    fn pause(&self, wait: Wait) {
        // Destructors of one that is killed wait for nothing.
        if std::thread::panicking() {
            return;
        }
        *self.wait.lock().unwrap() = wait;
        self.give_back();
        self.await_turn();
    }

    /// Whether its wait is over.
    pub fn is_ready(&self, now: u64) -> bool {
        match &*self.wait.lock().unwrap() {
            Wait::Turn => true,
            Wait::Until(until) => *until <= now,
            Wait::Bell(rung, until) => rung.load(Ordering::Relaxed) || *until <= now,
            Wait::Ended => false,
        }
    }

    /// When its wait is over at the latest.
    pub fn due(&self) -> Option<u64> {
        match &*self.wait.lock().unwrap() {
            Wait::Turn => Some(0),
            Wait::Until(until) | Wait::Bell(_, until) => Some(*until),
            Wait::Ended => None,
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        matches!(*self.wait.lock().unwrap(), Wait::Ended)
    }

    /// What it said where it ended by a panic.
    pub fn panicked(&self) -> Option<String> {
        self.panicked.lock().unwrap().clone()
    }

    /// Hands it the turn, and waits until it comes back.
    pub fn resume(&self) {
        if self.has_ended() {
            return;
        }
        self.has_turn.store(true, Ordering::Release);
        self.thread.get().unwrap().unpark();
        let mut waited = Duration::ZERO;
        while self.has_turn.load(Ordering::Acquire) {
            let begun = std::time::Instant::now();
            std::thread::park_timeout(STUCK);
            waited += begun.elapsed();
            assert!(waited < STUCK, "an actor keeps its turn: it waits for what the simulator does not know of");
        }
    }

    /// Ends it where it waits, as SIGKILL does.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        self.resume();
        if let Some(joined) = self.joined.lock().unwrap().take() {
            joined.join().unwrap();
        }
    }
}

/// The simulated time as production code reads it.
pub struct SimRuntime(pub Arc<Time>);

impl Runtime for SimRuntime {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.ms())
    }

    fn sleep(&self, length: Duration) {
        pause(Wait::Until(self.0.ms() + millis(length)));
    }

    fn bell(&self) -> Arc<dyn Bell> {
        Arc::new(SimBell { rung: Arc::default(), time: Arc::clone(&self.0) })
    }
}

/// A bell of the simulated time.
pub struct SimBell {
    rung: Arc<AtomicBool>,
    time: Arc<Time>,
}

impl SimBell {
    /// One that has not rung.
    pub fn new(time: &Arc<Time>) -> Self {
        Self { rung: Arc::default(), time: Arc::clone(time) }
    }
}

impl Bell for SimBell {
    fn ring(&self) {
        self.rung.store(true, Ordering::Relaxed);
    }

    fn wait(&self, at_most: Duration) {
        pause(Wait::Bell(Arc::clone(&self.rung), self.time.ms() + millis(at_most)));
        self.rung.store(false, Ordering::Relaxed);
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap()
}
