//! The fence: a record in a store that only moves by compare-and-swap, and what it lets this enclave sign.
//!
//! No I/O and no clock: [`FenceStatement`] says what is to be asked of the store, hears what came of it, and tells the limits in force. The
//! model checker runs this very code (tests/model.rs).
//!
//! Why it is safe: a holder signs at most up to ceilings that were **acknowledged** under its own term, and ceilings never
//! fall. A successor claims by a swap, so its floors are at or above every ceiling that any holder before it can ever have had
//! acknowledged. Targets and slots of two terms are therefore disjoint (no double vote, no double proposal), a newer target
//! is above every older one (an older vote cannot surround a newer one), and a newer source is not below any older one (a newer
//! vote cannot surround an older one).
//!
//! A holder that leaves in order names the exact state that it leaves behind, by its digest; who has that very state needs no floors,
//! and nobody else does without. That state stands for the whole past, so the holder's own floors are in it
//! ([`Floors::watermarks`]), and the floor of keys that it does not list ([`casemate_slashing::group`]). A record that is made anew is no
//! exception: it is free of floors for the state that it names, if it names one.
//!
//! A record can be closed: it ends for good, and the next one, in whatever store, begins above it.

use casemate_protocol::{Bytes, Root};

use casemate_slashing::{Ceilings, Floors, Limits};

use crate::record::{Beginning, MAX_TERM, Record};

/// A record's version is believed up to so far above the newest that was seen: else anyone who can write to the store once could use
/// up all versions, for good. Changes are counted one by one; nobody makes so many.
pub const MAX_VERSION_STEP: u64 = 1 << 48;

/// Who holds a record: an enclave's boot nonce. Two starts never share it.
pub type Holder = Bytes<32>;

/// What is to be asked of the store, under a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreRequest {
    /// Answers to other numbers are not for this question.
    pub number: u64,
    /// The question.
    pub op: StoreOp,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreOp {
    /// The record as it is now.
    Read,
    /// Put the record where there is none, and only there.
    Create(Record),
    /// Put `new` where `old` is, and only there.
    Swap {
        /// What must be there.
        old: Record,
        /// What is put there.
        new: Record,
    },
}

/// What came of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreResponse {
    /// To a read; nothing where there is no record.
    Record(Option<Record>),
    /// The swap, or the creation, took place.
    Swapped,
    /// It did not, and never will: something else is there.
    Conflict,
    /// No answer, or none that is clear: it may have taken place, or may yet.
    Unclear,
}

/// What this enclave is to the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FenceStatus {
    /// It has not asked yet.
    Unknown,
    /// There is no record: operators make it, never an enclave by itself.
    NoRecord,
    /// An operators' command has it made.
    Creating,
    /// It has seen the record, and may claim it.
    Standby(Record),
    /// Its claim is under way.
    Acquiring,
    /// It holds the record: as it was last acknowledged.
    Holding(Record),
    /// It signs no more, and is writing down that it has left in order.
    Releasing,
    /// It has left; the record as it left it.
    Released(Record),
    /// Another enclave has claimed the record, or somebody has removed it.
    Superseded,
    /// The record has ended for good.
    Closed(Record),
    /// The record has a version that nobody can have reached ([`MAX_VERSION_STEP`]): it is not believed.
    Implausible {
        /// Version that is there.
        found: u64,
    },
    /// The store shows a record older than one that this enclave has seen, or none any more: somebody has restored it. Nothing is signed any more in
    /// this boot.
    RolledBack {
        /// Version of the newest that was seen.
        seen: u64,
        /// Version that is there now; 0 for none.
        found: u64,
    },
}

/// The fence of one enclave, for one boot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FenceMachine {
    me: Holder,
    state: State,
    /// The question that is out.
    asked: Option<StoreRequest>,
    numbers: u64,
    /// Version of the newest record that was seen; the store never shows an older one.
    seen: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Unknown,
    NoRecord,
    /// In the place of one that has ended, where there is one.
    Creating {
        old: Option<Record>,
        new: Record,
    },
    Standby(Record),
    Acquiring {
        old: Record,
        new: Record,
        exact: bool,
    },
    Holding {
        record: Record,
        floors: Floors,
        wanted: Option<Record>,
    },
    Releasing {
        new: Record,
    },
    Released(Record),
    /// It has asked for the end of a record that it does not hold.
    Closing {
        old: Record,
        new: Record,
    },
    Closed(Record),
    Implausible {
        found: u64,
    },
    Superseded,
    RolledBack {
        found: u64,
    },
}

impl FenceMachine {
    /// Of the enclave with this boot nonce. `seen` is the version of the record that its sealed state has seen; 0 for none.
    pub fn new(me: Holder, seen: u64) -> Self {
        Self { me, state: State::Unknown, asked: None, numbers: 0, seen }
    }

    /// What it is to the record now.
    pub fn status(&self) -> FenceStatus {
        match self.state {
            State::Unknown => FenceStatus::Unknown,
            State::NoRecord => FenceStatus::NoRecord,
            State::Creating { .. } => FenceStatus::Creating,
            State::Standby(record) => FenceStatus::Standby(record),
            State::Acquiring { .. } => FenceStatus::Acquiring,
            State::Holding { record, .. } => FenceStatus::Holding(record),
            State::Releasing { .. } | State::Closing { .. } => FenceStatus::Releasing,
            State::Released(record) => FenceStatus::Released(record),
            State::Closed(record) => FenceStatus::Closed(record),
            State::Implausible { found } => FenceStatus::Implausible { found },
            State::Superseded => FenceStatus::Superseded,
            State::RolledBack { found } => FenceStatus::RolledBack { seen: self.seen, found },
        }
    }

    /// The question that is out.
    pub fn pending(&self) -> Option<StoreRequest> {
        self.asked
    }

    /// Version of the newest record that was seen.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// A sealed state that was loaded since has seen this version.
    pub fn has_seen(&mut self, version: u64) {
        self.seen = self.seen.max(version);
    }

    /// What may be signed; nothing unless it holds the record.
    pub fn limits(&self) -> Option<Limits> {
        match self.state {
            State::Holding { record, floors, .. } => Some(Limits { floors, ceilings: record.ceilings }),
            _ => None,
        }
    }

    /// Has the record read. One that has left or lost may look again: as another term it is another holder.
    pub fn poll(&mut self) -> Option<StoreRequest> {
        match self.state {
            State::Unknown
            | State::NoRecord
            | State::Standby(_)
            | State::Released(_)
            | State::Closed(_)
            | State::Implausible { .. }
            | State::Superseded
            // Operators may make it yet: above all that was seen.
            | State::RolledBack { found: 0 }
            // It learns whether it still does.
            | State::Holding { .. } => self.ask(StoreOp::Read),
            _ => None,
        }
    }

    /// Has the record made, by operators' order: where it was seen that there is none, or that the one that is there has ended. Where
    /// there was one before, and the store does not show it, operators must say that it was lost, or name the record that has ended,
    /// in whatever store: then it must be the newest that was seen here.
    pub fn create(&mut self, beginning: &Beginning) -> Option<StoreRequest> {
        let newest = beginning.above_version >= self.seen;
        let closed = match self.state {
            State::NoRecord => None,
            // Nothing newer was seen than the record that this one comes after, in another store; or it is lost.
            State::RolledBack { found: 0 } if beginning.lost || newest => None,
            // What comes after it lies above it.
            State::Closed(old) if newest && old.term < beginning.term => Some(old),
            _ => return None,
        };
        let Beginning { above_version, term, ceilings, min_state_version, exact, .. } = *beginning;
        if !(1..=MAX_TERM).contains(&term) {
            return None;
        }
        let ceilings = closed.map_or(ceilings, |old| ceilings.max(old.ceilings));
        let version = self.seen.max(above_version).checked_add(1)?;
        let holder = Bytes::ZERO;
        let new = Record { version, holder, term, ceilings, min_state_version, released_state: exact, closed: false };
        let question = closed.map_or(StoreOp::Create(new), |old| StoreOp::Swap { old, new });
        let ask = self.ask(question)?;
        self.state = State::Creating { old: closed, new };
        Some(ask)
    }

    /// Claims the record that was seen. `state` is what the state that this enclave has loaded is known by: where it is the one that
    /// the last holder left behind, its watermarks are exact and no floors are needed. `sealed` is its number: from the claim on,
    /// older states are refused. `leaves` is what is known to have each of this holder's signatures **before** it is out, even where
    /// the enclave dies: a file on a trusted disk. An enclave has no such thing.
    pub fn acquire(&mut self, state: Option<Root>, sealed: u64, leaves: Option<Root>) -> Option<StoreRequest> {
        // A sealed state that was loaded since may have seen a newer one: then the store has gone back, as the next look tells.
        let State::Standby(old) = self.state else { return None };
        if old.version < self.seen {
            return None;
        }
        let exact = state.is_some() && old.released_state == state;
        let new = Record {
            version: old.version.checked_add(1)?,
            holder: self.me,
            term: old.term.checked_add(1).filter(|term| *term <= MAX_TERM)?,
            min_state_version: old.min_state_version.max(sealed),
            released_state: leaves,
            ..old
        };
        let ask = self.ask(StoreOp::Swap { old, new })?;
        self.state = State::Acquiring { old, new, exact };
        Some(ask)
    }

    /// Asks for higher ceilings, and for older sealed states to be refused. What is there already is never lowered.
    pub fn extend(&mut self, ceilings: Ceilings, min_state_version: u64) -> Option<StoreRequest> {
        let State::Holding { record, floors, .. } = self.state else { return None };
        let ceilings = record.ceilings.max(ceilings);
        let min_state_version = record.min_state_version.max(min_state_version);
        if (ceilings, min_state_version) == (record.ceilings, record.min_state_version) {
            return None;
        }
        let new = Record { version: record.version.checked_add(1)?, ceilings, min_state_version, ..record };
        let ask = self.ask(StoreOp::Swap { old: record, new })?;
        self.state = State::Holding { record, floors, wanted: Some(new) };
        Some(ask)
    }

    /// Leaves in order: nothing is signed from here on, and the record names the exact state that was sealed **after** this enclave
    /// has signed its last.
    pub fn release(&mut self, state: Root) -> Option<StoreRequest> {
        let State::Holding { record, .. } = self.state else { return None };
        let new = Record { version: record.version.checked_add(1)?, released_state: Some(state), ..record };
        let ask = self.ask(StoreOp::Swap { old: record, new })?;
        self.state = State::Releasing { new };
        Some(ask)
    }

    /// Ends the record for good. A holder signs nothing from here on, and names the exact state that it leaves behind, as one that
    /// leaves does; for a record that another holds, or held, there is none to name: that one signs up to its ceilings at most.
    pub fn close(&mut self, state: Option<Root>) -> Option<StoreRequest> {
        let (old, clean) = match self.state {
            State::Holding { record, .. } => (record, Some(state?)),
            // What the last holder has left behind stays what it is.
            State::Standby(record) | State::Released(record) => (record, record.released_state),
            _ => return None,
        };
        let holding = matches!(self.state, State::Holding { .. });
        let new = Record { version: old.version.checked_add(1)?, released_state: clean, closed: true, ..old };
        let ask = self.ask(StoreOp::Swap { old, new })?;
        self.state = if holding { State::Releasing { new } } else { State::Closing { old, new } };
        Some(ask)
    }

    /// Takes an answer; the next question, where there is one. Answers to other questions are not looked at.
    pub fn on_response(&mut self, number: u64, heard: StoreResponse) -> Option<StoreRequest> {
        let asked = self.asked.filter(|asked| asked.number == number)?;
        self.asked = None;
        match (asked.op, heard) {
            (StoreOp::Read, StoreResponse::Record(record)) => self.found(record),
            (StoreOp::Swap { .. } | StoreOp::Create(_), StoreResponse::Swapped) => {
                self.swapped();
                None
            }
            // It may have been this enclave's own swap, that was not heard of, which is there instead.
            (
                StoreOp::Swap { .. } | StoreOp::Create(_),
                StoreResponse::Conflict | StoreResponse::Unclear | StoreResponse::Record(_),
            )
            | (StoreOp::Read, StoreResponse::Unclear | StoreResponse::Conflict | StoreResponse::Swapped) => {
                self.ask(StoreOp::Read)
            }
        }
    }

    /// The swap that was asked for has taken place.
    fn swapped(&mut self) {
        self.state = match self.state {
            State::Creating { new, .. } => State::Standby(new),
            State::Acquiring { old, new, exact } => {
                State::Holding { record: new, floors: floors(&old, exact), wanted: None }
            }
            State::Holding { record, floors, wanted } => {
                State::Holding { record: wanted.unwrap_or(record), floors, wanted: None }
            }
            State::Releasing { new } | State::Closing { new, .. } if new.closed => State::Closed(new),
            State::Releasing { new } => State::Released(new),
            other => other,
        };
        if let State::Standby(Record { version, .. })
        | State::Holding { record: Record { version, .. }, .. }
        | State::Released(Record { version, .. })
        | State::Closed(Record { version, .. }) = self.state
        {
            self.seen = self.seen.max(version);
        }
    }

    /// What the store shows: believed where it is not older than what was seen, and not absurdly newer.
    fn found(&mut self, found: Option<Record>) -> Option<StoreRequest> {
        let version = found.map_or(0, |found| found.version);
        // Anyone who has it made anew knows already what is there: nothing, or one that has ended.
        let expected = matches!(self.state, State::Creating { old, .. } if found == old);
        if version < self.seen && !expected {
            let looks =
                matches!(self.state, State::Unknown | State::NoRecord | State::Closed(_) | State::Creating { .. });
            self.state = match found {
                // A record that has ended stays where it was, and the group's went on in another store: nobody signs under it.
                Some(ended) if ended.closed && looks => State::Closed(ended),
                _ => State::RolledBack { found: version },
            };
            return None;
        }
        if version > self.seen.saturating_add(MAX_VERSION_STEP) {
            self.state = State::Implausible { found: version };
            return None;
        }
        self.seen = self.seen.max(version);
        match found {
            Some(found) => self.found_record(found),
            None => self.found_none(),
        }
    }

    fn found_none(&mut self) -> Option<StoreRequest> {
        match self.state {
            // Not there, or not yet: the same again. It can be made once.
            State::Creating { old: None, new } => self.ask(StoreOp::Create(new)),
            State::Unknown | State::NoRecord | State::Standby(_) | State::Implausible { .. } => {
                self.state = State::NoRecord;
                None
            }
            _ => {
                self.state = State::Superseded;
                None
            }
        }
    }

    fn found_record(&mut self, found: Record) -> Option<StoreRequest> {
        match self.state {
            State::Acquiring { new, .. } | State::Releasing { new } | State::Closing { new, .. } if found == new => {
                self.swapped();
                None
            }
            // Not there, or not yet: the same swap again. At most one of them takes place.
            State::Acquiring { old, new, .. }
            | State::Closing { old, new }
            | State::Creating { old: Some(old), new }
                if found == old =>
            {
                self.ask(StoreOp::Swap { old, new })
            }
            // It has ended, no matter who ended it: also one that this enclave holds.
            _ if found.closed => {
                self.state = State::Closed(found);
                None
            }
            // A claim that another one has come before.
            State::Acquiring { .. }
            | State::Unknown
            | State::NoRecord
            | State::Creating { .. }
            | State::Standby(_)
            | State::Released(_)
            | State::Closing { .. }
            | State::Closed(_)
            | State::Implausible { .. }
            | State::Superseded
            | State::RolledBack { .. } => {
                self.state = State::Standby(found);
                None
            }
            // Only this enclave writes under its holder and term: whatever is there is a swap of its own, perhaps one that it had
            // not heard of.
            State::Releasing { new } if self.is_mine(&found, &new) => {
                let version = found.version.checked_add(1)?;
                let new = Record { version, released_state: new.released_state, closed: new.closed, ..found };
                self.state = State::Releasing { new };
                self.ask(StoreOp::Swap { old: found, new })
            }
            State::Holding { record, floors, .. } if self.is_mine(&found, &record) => {
                self.state = State::Holding { record: found, floors, wanted: None };
                None
            }
            State::Holding { .. } | State::Releasing { .. } => {
                self.state = State::Superseded;
                None
            }
        }
    }

    fn is_mine(&self, found: &Record, mine: &Record) -> bool {
        (found.holder, found.term) == (self.me, mine.term)
    }

    /// One question at a time.
    fn ask(&mut self, question: StoreOp) -> Option<StoreRequest> {
        if self.asked.is_some() {
            return None;
        }
        self.numbers = self.numbers.checked_add(1)?;
        let ask = StoreRequest { number: self.numbers, op: question };
        self.asked = Some(ask);
        Some(ask)
    }
}

/// What a successor stays above: every ceiling that was ever acknowledged before it.
fn floors(old: &Record, exact: bool) -> Floors {
    if exact { Floors::default() } else { old.floors() }
}
