//! The state of an episode: what operators, plots and the world around them share.

use std::sync::Arc;

use casemate_protocol::command::{ClosedRecord, LastState};
use casemate_protocol::watermarks::Watermarks;
use casemate_protocol::{Network, PublicKey, Request};
use casemate_vault::Policy;
use casemate_vault::keys::cms::RecipientKey;

use crate::actor::Time;
use crate::enclave::Enclave;
use crate::judge::Signed;
use crate::world::{Shared, Stats};

/// Slots of an epoch.
pub const SLOTS_PER_EPOCH: u64 = 4;
/// Keys of the world. The last one is only brought in where nothing else is left to sign with.
pub const KEYS: usize = 4;
/// With those that plots are about.
pub const ALL_KEYS: usize = 7;

/// What an episode is made from.
#[derive(Clone)]
pub struct Options {
    /// The run's seed.
    pub seed: u64,
    /// Print every line of the story.
    pub is_loud: bool,
    /// Stores forget now and then what they have kept: a negative control, which must end in a violation.
    pub is_forgetful: bool,
    /// The parent shows every blob that it has: what goes wrong then goes wrong without any rollback.
    pub has_honest_disk: bool,
    /// The key for KMS's answers.
    pub recipient: Arc<RecipientKey>,
}

impl Options {
    /// Of a seed.
    pub fn new(seed: u64) -> Self {
        let recipient = Arc::new(RecipientKey::generate().unwrap());
        Self { seed, is_loud: false, is_forgetful: false, has_honest_disk: false, recipient }
    }
}

/// What came of an episode.
pub struct Outcome {
    /// What was counted.
    pub stats: Stats,
    /// Digest of all that happened.
    pub digest: u64,
    /// What must never happen, where it did.
    pub violation: Option<String>,
    /// The last lines of the story.
    pub trace: Vec<String>,
}

/// Where a key is, as operators have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// At the foreign signer.
    Foreign,
    /// On its way here: it signs nowhere else, whatever becomes of the commands.
    Entering {
        /// What it had signed when it left the foreign signer; given again and again as it was then.
        history: Option<Watermarks>,
        /// Whether an import may have been carried out.
        perhaps: bool,
    },
    /// Its import was acknowledged.
    Here {
        /// As above.
        history: Option<Watermarks>,
    },
    /// A deletion was ordered, and nobody knows what became of it.
    Leaving {
        /// As above.
        history: Option<Watermarks>,
    },
    /// Its deletion was acknowledged; it signs nowhere.
    Gone {
        /// As above.
        history: Option<Watermarks>,
        /// The term that has acknowledged it.
        term: u64,
    },
}

/// A validator's key.
pub struct Key {
    /// Its secret.
    pub secret: [u8; 32],
    /// Its public key.
    pub public: PublicKey,
    /// All that was signed with it, anywhere.
    pub signed: Signed,
    /// What the foreign signer has signed with it.
    pub foreign: Signed,
    /// What the foreign signer was told by an export.
    pub told: Watermarks,
    /// Where it is.
    pub place: Whereabouts,
    /// The term in which its deletion was acknowledged, until it is brought in again.
    pub deleted: Option<u64>,
}

/// A command that the parent has had in its hands: it may deliver it, or deliver it again, whenever it likes.
pub struct KeptCommand {
    /// For this enclave.
    pub enclave: u32,
    /// Its counter; 0 for what nobody has signed, which does without.
    pub counter: u64,
    /// The command, as it is sent.
    pub request: Request,
    /// The key that it brings in.
    pub imports: Option<usize>,
    /// The key that it deletes.
    pub deletes: Option<usize>,
}

/// Something must never happen, and did.
pub struct Violation(pub String);

/// See the module.
pub struct Episode {
    /// The world.
    pub world: Shared,
    pub(crate) time: Arc<Time>,
    pub(crate) network: Network,
    pub(crate) options: Options,
    pub(crate) policy: Policy,
    pub(crate) enclaves: Vec<Enclave>,
    pub(crate) keys: Vec<Key>,
    pub(crate) kept: Vec<KeptCommand>,
    pub(crate) job: Option<Job>,
    pub(crate) next_enclave: u32,
    pub(crate) next_order: u64,
    pub(crate) next_counter: u64,
    pub(crate) next_credentials: u64,
    /// The store that operators have chosen.
    pub(crate) store: usize,
    /// A record was made there.
    pub(crate) made: bool,
    /// The record that has ended, until the next one is made.
    pub(crate) closed: Option<ClosedRecord>,
    /// Version of the newest record that operators know to have ended.
    pub(crate) ended: u64,
    /// What the last holder has stated of its state, in this term.
    pub(crate) last_stated: Option<(u64, LastState)>,
    /// Commands that may have changed the keys since.
    pub(crate) is_stale: bool,
    /// Nothing goes wrong, and the parent carries everything.
    pub(crate) is_calm: bool,
    /// Brought in where there is nothing to sign with.
    pub(crate) spare: usize,
    /// How often operators had to bring older states, because the newest were not what the last holder has stated.
    pub(crate) older: usize,
    /// How often, of a thousand, an enclave is cut off as it gets a command, and everything is killed after one that did not go well.
    pub(crate) spite: (u64, u64),
    /// How often, of a hundred, operators move to another store and have fences handed over, besides everything else.
    pub(crate) bent: (u64, u64),
    /// What somebody is about who knows the protocol.
    pub(crate) plot: Option<Plot>,
    /// How often, of a thousand steps, that one does something.
    pub(crate) plots: u64,
    /// How late who waits is woken, at most.
    pub(crate) lateness: u64,
    /// How much of what may break does.
    pub(crate) wildness: u64,
    pub(crate) slot_ms: u64,
}

/// What operators want done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Bring a key in.
    Import(usize),
    /// Take a key out.
    Delete(usize),
    /// The same through the key manager API, which nobody has to sign.
    DeleteUnsigned(usize),
    /// Where the fees of a key go.
    FeeRecipient(usize),
    /// An exit of a key is signed.
    Exit(usize),
    /// A key is to have signed more.
    Raise(usize),
    /// Learn what a deleted key has signed, and let it sign elsewhere.
    MoveAway(usize),
    /// The holder leaves in order.
    Handover,
    /// Another one claims at once.
    Takeover,
    /// The first record.
    New,
    /// The record anew.
    Lost(LastState),
    /// Other credentials.
    Credentials,
    /// The record ends.
    Close,
    /// The next one.
    After,
}

/// What operators wait for.
pub struct Job {
    pub(crate) task: Task,
    pub(crate) enclave: u32,
    /// Nothing where the parent has kept it back, or drops the answer.
    pub(crate) order: Option<u64>,
    pub(crate) until: u64,
    /// Where the key was when it was ordered.
    pub(crate) was: Option<Whereabouts>,
}

impl Job {
    /// The key that it is about.
    pub(crate) fn key(&self) -> Option<usize> {
        match self.task {
            Task::Import(key) | Task::Delete(key) | Task::DeleteUnsigned(key) | Task::MoveAway(key) => Some(key),
            _ => None,
        }
    }
}

/// A plot that is under way.
#[derive(Clone, Copy)]
pub struct Plot {
    pub(crate) kind: Kind,
    pub(crate) stage: Stage,
    /// The key that it is about.
    pub(crate) key: usize,
    /// Who held the fence when it began.
    pub(crate) holder: u32,
    /// When its step is given up.
    pub(crate) until: u64,
    /// Whether the state before is what is shown afterwards.
    pub(crate) rolls_back: bool,
    /// Whether the one who holds the fence then hands it over.
    pub(crate) hands_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A key is imported where the store does not hear of it, and imported again elsewhere with the history of the first time.
    ImportedTwice,
    /// The same, and then it is taken back to where it was, above what an export tells.
    TakenBack,
    /// The record ends while its holder does not look, and goes on in another store.
    Moved,
    /// A key's import is kept and denied, and offered once operators have been told that nothing has changed.
    Denied,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Begin,
    /// The command is carried out.
    Ordered,
    /// Another one is to hold the fence.
    Succession,
    /// It hands over, and somebody holds it again.
    Exact,
    /// The second command is carried out.
    Again,
    /// The export.
    Exported,
    /// Conflicting messages are asked for.
    Questions(u32),
}
