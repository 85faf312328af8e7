//! Plots: what somebody who knows the protocol would try, step by step, while everything else goes on at random. Chance alone comes by them
//! too, but not within a minute.

use casemate_protocol::statement::StatedStatus;

use crate::judge::Message;
use crate::say;
use crate::state::{ALL_KEYS, Episode, KEYS, Kind, Plot, Stage, Task, Violation, Whereabouts};

/// So long one step of a plot is waited for.
const PATIENCE_MS: u64 = 120_000;
/// How often conflicting messages are asked for in the end.
const QUESTIONS: u32 = 30;

impl Episode {
    /// Begins one now and then, or does the next step of the one that is under way.
    pub(crate) fn plot(&mut self) -> Result<(), Violation> {
        let now = self.time.ms();
        let Some(mut plot) = self.plot else {
            let (kind, rolls_back, hands_over) = self.random(|random| {
                let kind = random.pick(&[
                    Kind::ImportedTwice,
                    Kind::ImportedTwice,
                    Kind::TakenBack,
                    Kind::TakenBack,
                    Kind::Moved,
                    Kind::Denied,
                ]);
                (kind, random.chance(400), random.chance(700))
            });
            let rolls_back = rolls_back && !self.options.has_honest_disk;
            let kind = if self.options.has_honest_disk && kind == Kind::Denied { Kind::ImportedTwice } else { kind };
            let (stage, until) = (Stage::Begin, now + PATIENCE_MS);
            self.plot = Some(Plot { kind, stage, key: 0, holder: 0, until, rolls_back, hands_over });
            return Ok(());
        };
        let next = if now >= plot.until { None } else { self.advance(&mut plot)? };
        if next.is_none() {
            say!(self.world.lock(), "the plot ends: {:?}, {:?}", plot.kind, plot.stage);
        }
        self.plot = next.map(|stage| {
            let until = if stage == plot.stage { plot.until } else { now + PATIENCE_MS };
            Plot { stage, until, ..plot }
        });
        Ok(())
    }

    /// Whether one is under way.
    pub(crate) fn is_plotting(&self) -> bool {
        self.plot.is_some_and(|plot| plot.stage != Stage::Begin)
    }

    /// Whether what was signed before is what is asked for, mostly: anything new would raise what the key remembers.
    pub(crate) fn plots_with(&self, key: usize) -> bool {
        self.plots_to_ask() && self.plot.is_some_and(|plot| plot.key == key)
    }

    /// Whether it has come to that.
    pub(crate) fn plots_to_ask(&self) -> bool {
        self.plot.is_some_and(|plot| matches!(plot.stage, Stage::Again | Stage::Exported | Stage::Questions(_)))
    }

    /// Whether the record is to end in this store and go on in the other, with its holder still there.
    pub(crate) fn plots_a_move(&self) -> bool {
        self.plot.is_some_and(|plot| plot.kind == Kind::Moved && plot.stage == Stage::Ordered)
    }

    /// One that holds the fence in the store that operators have chosen.
    fn current_holder(&self) -> Option<u32> {
        let holds = |number: &u32| {
            let here = self.enclave(*number).is_some_and(|enclave| enclave.store == self.store);
            here && self.standing(*number) == Some(StatedStatus::Holding)
        };
        self.running().into_iter().find(holds)
    }

    /// The next step of a plot; nothing where it has ended.
    fn advance(&mut self, plot: &mut Plot) -> Result<Option<Stage>, Violation> {
        let stage = plot.stage;
        match (stage, plot.kind) {
            (Stage::Begin, _) => return Ok(self.begin_plot(plot)),
            (Stage::Ordered | Stage::Succession, Kind::Moved) => {
                self.asks_all(plot.key, 1)?;
                if self.job.is_some() {
                    return Ok(Some(stage));
                }
                if self.closed.is_some() {
                    self.follow_the_tool();
                    return Ok(Some(Stage::Succession));
                }
                let moved = self.current_holder().is_some_and(|holder| holder != plot.holder);
                return Ok(Some(if moved { Stage::Questions(QUESTIONS) } else { stage }));
            }
            (Stage::Ordered, Kind::Denied) => {
                if self.job.is_some() {
                    return Ok(Some(stage));
                }
                if self.keys[plot.key].place != Whereabouts::Foreign || self.world.lock().denied == 0 {
                    return Ok(None);
                }
                self.end_all();
                let number = self.start_enclave(true);
                let world = &mut *self.world.lock();
                world.views.insert(number, world.denied);
                say!(*world, "the parent shows enclave {number} what it has denied");
                return Ok(Some(Stage::Succession));
            }
            (Stage::Succession, Kind::Denied) => {
                self.follow_the_tool();
                return Ok(Some(self.current_holder().map_or(stage, |_| Stage::Questions(QUESTIONS))));
            }
            (Stage::Ordered, _) => {
                // It signs with it before anybody can know that it has it.
                self.asks_all(plot.key, 2)?;
                if self.job.is_some() {
                    return Ok(Some(stage));
                }
                if !matches!(self.keys[plot.key].place, Whereabouts::Entering { perhaps: true, .. }) {
                    return Ok(None);
                }
                if plot.rolls_back {
                    self.strike();
                }
                return Ok(Some(Stage::Succession));
            }
            (Stage::Succession | Stage::Exact, _) => {
                if self.job.is_some() || self.closed.is_some() {
                    return Ok(Some(stage));
                }
                let Some(holder) = self.current_holder() else {
                    if self.running().is_empty() && self.enclaves.is_empty() {
                        self.start_enclave(!plot.rolls_back);
                    }
                    self.follow_the_tool();
                    return Ok(Some(stage));
                };
                // The one that the key came in at is not to know that another has gone on.
                if stage == Stage::Succession && holder == plot.holder {
                    return Ok(Some(stage));
                }
                if stage == Stage::Succession && plot.hands_over {
                    // Where that one came back it would remember.
                    if self.random(|random| random.chance(800)) {
                        self.end(plot.holder, "is killed");
                    }
                    self.begin(holder, Task::Handover);
                    return Ok(Some(Stage::Exact));
                }
                let task = match plot.kind {
                    Kind::TakenBack => Task::Delete(plot.key),
                    _ => Task::Import(plot.key),
                };
                self.begin(holder, task);
                return Ok(Some(Stage::Again));
            }
            (Stage::Again, Kind::TakenBack) if self.job.is_none() && !self.is_forged() => {
                let Some(holder) = self.current_holder() else { return Ok(Some(stage)) };
                if !matches!(self.keys[plot.key].place, Whereabouts::Gone { .. }) {
                    self.begin(holder, Task::Delete(plot.key));
                    return Ok(Some(stage));
                }
                self.begin(holder, Task::MoveAway(plot.key));
                return Ok(Some(Stage::Exported));
            }
            (Stage::Again, _) if self.job.is_none() && !self.is_forged() => {
                if matches!(self.keys[plot.key].place, Whereabouts::Here { .. }) {
                    return Ok(Some(Stage::Questions(QUESTIONS)));
                }
                let Some(holder) = self.current_holder() else { return Ok(Some(stage)) };
                self.begin(holder, Task::Import(plot.key));
                return Ok(Some(stage));
            }
            (Stage::Exported, _) if self.job.is_none() => {
                return Ok((self.keys[plot.key].place == Whereabouts::Foreign).then_some(Stage::Questions(QUESTIONS)));
            }
            (Stage::Questions(0), _) => return Ok(None),
            (Stage::Questions(left), kind) => {
                self.asks_all(plot.key, 1)?;
                if kind == Kind::TakenBack || kind == Kind::Denied {
                    self.sign_elsewhere_with(plot.key)?;
                }
                return Ok(Some(Stage::Questions(left - 1)));
            }
            (Stage::Again | Stage::Exported, _) => self.asks_all(plot.key, 1)?,
        }
        Ok(Some(stage))
    }

    fn begin_plot(&mut self, plot: &mut Plot) -> Option<Stage> {
        if self.job.is_some() || self.closed.is_some() || self.is_forged() {
            return Some(Stage::Begin);
        }
        let Some(holder) = self.current_holder() else {
            self.follow_the_tool();
            return Some(Stage::Begin);
        };
        plot.holder = holder;
        let beside = self.running().into_iter().find(|number| {
            *number != holder && self.enclave(*number).is_some_and(|enclave| enclave.store == self.store)
        });
        let Some(beside) = beside else {
            if self.enclaves.len() < 4 {
                self.start_enclave(true);
            }
            return Some(Stage::Begin);
        };
        let is_moved = plot.kind == Kind::Moved;
        let fits = |key: &usize| match self.keys[*key].place {
            Whereabouts::Here { .. } => is_moved,
            Whereabouts::Foreign => !is_moved,
            _ => false,
        };
        let fitting: Vec<usize> = (0..ALL_KEYS).filter(|key| *key != KEYS - 1).filter(fits).collect();
        if fitting.is_empty() {
            // There is nothing to move yet; or every key has been brought in before.
            let foreign = |key: &usize| self.keys[*key].place == Whereabouts::Foreign;
            if is_moved && let Some(key) = (KEYS..ALL_KEYS).chain(0..KEYS - 1).find(foreign) {
                self.begin(holder, Task::Import(key));
                return Some(Stage::Begin);
            }
            return None;
        }
        plot.key = self.random(|random| random.pick(&fitting));
        say!(self.world.lock(), "a plot about key {}, while enclave {holder} holds the fence", plot.key);
        if is_moved {
            self.begin(beside, Task::Close);
        } else if plot.kind == Kind::Denied {
            {
                let world = &mut *self.world.lock();
                (world.deny, world.denied) = (Some(holder), 0);
            }
            self.begin(holder, Task::Import(plot.key));
        } else {
            self.cut_off(holder, 16_000);
            self.begin(holder, Task::Import(plot.key));
        }
        Some(Stage::Ordered)
    }

    /// What statements ask for, at whichever enclave.
    fn follow_the_tool(&mut self) {
        if self.job.is_some() || self.is_forged() {
            return;
        }
        for number in self.running() {
            let Some(statement) = self.statement(number) else { continue };
            self.looked(&statement);
            if let Some(task) = self.needed(&statement) {
                self.begin(number, task);
                return;
            }
        }
    }

    /// Every enclave is asked for messages that conflict, around now or what was signed.
    fn asks_all(&mut self, key: usize, times: u32) -> Result<(), Violation> {
        for _ in 0..times {
            let message: Message = self.some_question(key);
            self.asks(key, message)?;
        }
        Ok(())
    }
}
