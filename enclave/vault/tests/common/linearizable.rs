//! Whether a store behaves as one register with compare-and-swap, by what its askers saw: each question has the time at which it was
//! put and the time at which its answer came, and there must be one order of all questions that every answer fits, in which none stands
//! before one that had been answered when it was put (Wing and Gong). What was not answered clearly may stand anywhere after its
//! question, or nowhere.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use casemate_fence::{Record, StoreOp, StoreResponse};
use casemate_protocol::command::StoreCredentials;
use casemate_protocol::refusal::StoreTrouble;
use casemate_protocol::statement::RecordKind;
use casemate_vault::fence::store::Store;

/// A question and what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub put: Instant,
    pub answered: Instant,
    pub question: StoreOp,
    pub heard: StoreResponse,
}

/// What all askers have seen.
#[derive(Clone, Default)]
pub struct Book(Arc<Mutex<Vec<Event>>>);

impl Book {
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// A store whose questions and answers are written down here.
    pub fn of(&self, store: Box<dyn Store>) -> Box<dyn Store> {
        Box::new(Recorded { store, book: self.clone() })
    }
}

struct Recorded {
    store: Box<dyn Store>,
    book: Book,
}

impl Store for Recorded {
    fn kind(&self) -> RecordKind {
        self.store.kind()
    }

    fn identity(&self) -> Option<String> {
        self.store.identity()
    }

    fn ask(&mut self, question: &StoreOp) -> (StoreResponse, Option<StoreTrouble>) {
        let put = Instant::now();
        let (heard, trouble) = self.store.ask(question);
        let event = Event { put, answered: Instant::now(), question: *question, heard };
        self.book.0.lock().unwrap().push(event);
        (heard, trouble)
    }

    fn open(&mut self, credentials: &StoreCredentials) -> bool {
        self.store.open(credentials)
    }

    fn is_open(&self) -> bool {
        self.store.is_open()
    }
}

type Register = Option<Record>;

/// What an answer does to the register; nothing where it does not fit.
fn fits(register: Register, question: &StoreOp, heard: StoreResponse) -> Option<Register> {
    let (old, new) = match question {
        StoreOp::Read => return (heard == StoreResponse::Record(register)).then_some(register),
        StoreOp::Create(new) => (None, Some(*new)),
        StoreOp::Swap { old, new } => (Some(*old), Some(*new)),
    };
    match heard {
        StoreResponse::Swapped => (register == old).then_some(new),
        StoreResponse::Conflict => (register != old).then_some(register),
        StoreResponse::Record(_) | StoreResponse::Unclear => None,
    }
}

/// Finds an order, or says which questions fit nowhere.
struct Search {
    /// By the time at which they were put; all answered.
    answered: Vec<Event>,
    /// Swaps that were not answered clearly. Reads of that kind say nothing.
    unclear: Vec<Event>,
    /// Places from which there was no way on.
    dead: HashSet<(usize, Vec<usize>, Vec<usize>, Register)>,
    /// How many answers the longest order has, and the first that did not fit behind it.
    furthest: (usize, Option<Event>),
}

/// Where a search is: everything before `first` has its place, and so have these.
#[derive(Clone)]
struct Place {
    first: usize,
    done: Vec<usize>,
    used: Vec<usize>,
    register: Register,
}

impl Place {
    /// This one comes next, and leaves the register so.
    fn take(&mut self, number: usize, register: Register) {
        self.register = register;
        self.done.push(number);
        self.done.sort_unstable();
        while let Some(at) = self.done.iter().position(|done| *done == self.first) {
            self.done.remove(at);
            self.first += 1;
        }
    }
}

impl Search {
    /// The questions that may come next: none that was put after another, still without its place, was answered.
    fn candidates(&self, place: &Place) -> Vec<usize> {
        let mut found = Vec::new();
        let mut until: Option<Instant> = None;
        for (number, event) in self.answered.iter().enumerate().skip(place.first) {
            if until.is_some_and(|until| event.put > until) {
                break;
            }
            if !place.done.contains(&number) {
                found.push(number);
                until = Some(until.map_or(event.answered, |until| until.min(event.answered)));
            }
        }
        found
    }

    /// Depth first, with what leaves the register as it is taken at once: it is never wrong to have that stand as early as it may.
    fn run(&mut self, start: Register) -> bool {
        let mut stack = vec![Place { first: 0, done: Vec::new(), used: Vec::new(), register: start }];
        while let Some(mut place) = stack.pop() {
            loop {
                let still = self.candidates(&place).into_iter().find(|number| {
                    let event = &self.answered[*number];
                    fits(place.register, &event.question, event.heard) == Some(place.register)
                });
                let Some(number) = still else { break };
                let register = place.register;
                place.take(number, register);
            }
            if place.first == self.answered.len() {
                return true;
            }
            let reached = place.first + place.done.len();
            if reached >= self.furthest.0 {
                self.furthest = (reached, self.answered.get(place.first).copied());
            }
            if !self.dead.insert((place.first, place.done.clone(), place.used.clone(), place.register)) {
                continue;
            }
            let candidates = self.candidates(&place);
            let until = candidates.iter().map(|number| self.answered[*number].answered).min();
            for (number, event) in self.unclear.iter().enumerate() {
                let asked = until.is_none_or(|until| event.put <= until);
                let register = fits(place.register, &event.question, StoreResponse::Swapped);
                if let (true, Some(register), false) = (asked, register, place.used.contains(&number)) {
                    let mut next = place.clone();
                    next.used.push(number);
                    next.used.sort_unstable();
                    next.register = register;
                    stack.push(next);
                }
            }
            for number in candidates {
                let event = &self.answered[number];
                if let Some(register) = fits(place.register, &event.question, event.heard) {
                    let mut next = place.clone();
                    next.take(number, register);
                    stack.push(next);
                }
            }
        }
        false
    }
}

/// Whether all of it can have happened to one register that began with `start`; an error names the first answer that has no place.
pub fn check(events: &[Event], start: Register) -> Result<(), String> {
    let mut all = events.to_vec();
    all.sort_by_key(|event| event.put);
    let (unclear, answered): (Vec<Event>, Vec<Event>) =
        all.iter().partition(|event| event.heard == StoreResponse::Unclear);
    let unclear: Vec<Event> = unclear.into_iter().filter(|event| event.question != StoreOp::Read).collect();
    let mut search = Search { answered, unclear, dead: HashSet::new(), furthest: (0, None) };
    if search.run(start) {
        return Ok(());
    }
    let (reached, stuck) = search.furthest;
    Err(format!(
        "{reached} of {} answers fit; none of those that follow does, such as {stuck:?}",
        search.answered.len()
    ))
}
