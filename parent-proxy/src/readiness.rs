//! Whether a request for a signature would get one now: one verdict for `/readyz`, `/healthcheck`, `/upcheck`, the metrics and the log.

use std::time::Duration;

use casemate_protocol::Refusal;
use casemate_protocol::frame::Readiness;
use casemate_protocol::may_sign::MaySign;
use casemate_protocol::refusal::NotHolder;
use casemate_protocol::statement::StatedStatus;
use tracing::{error, info, warn};

/// A store that has owed an answer for so long is worth a warning: ceilings hold for some slots more.
const SILENT: Duration = Duration::from_secs(5);
/// Handing over takes less.
const NOT_READY: Duration = Duration::from_secs(3);

/// What a request for a signature would get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The enclave that would be asked.
    pub enclave: Option<usize>,
    /// What it says.
    pub readiness: Option<Readiness>,
    /// Why a block would not be signed now, or an attestation would not.
    pub reason: Option<String>,
}

impl Verdict {
    /// Of what each enclave says; `starting`: why one that is reached does not serve.
    pub fn of(enclaves: &[Option<Readiness>], starting: Option<Refusal>) -> Self {
        let says = enclaves.iter().enumerate().filter_map(|(number, heard)| Some((number, (*heard)?)));
        let Some((number, readiness)) = says.min_by_key(|(_, readiness)| rank(readiness)) else {
            let reason = starting.map_or_else(
                || "no enclave answers: see whether it runs, and whether --enclave is its address".to_owned(),
                |refusal| refusal.to_string(),
            );
            return Self { enclave: None, readiness: None, reason: Some(reason) };
        };
        let no_keys = (readiness.keys == 0).then(|| {
            "the enclave has no key that signs: import keys, or the slashing protection histories that they lack"
                .to_owned()
        });
        let reason = no_keys.or_else(|| readiness.may_sign.reason.map(|refusal| refusal.to_string()));
        Self { enclave: Some(number), readiness: Some(readiness), reason }
    }

    /// Whether a block could be signed now.
    pub fn is_ready(&self) -> bool {
        self.readiness.is_some_and(|readiness| readiness.keys > 0 && readiness.may_sign.blocks())
    }

    /// Milliseconds until a block may be signed.
    pub fn blocks_in_ms(&self) -> Option<u64> {
        self.may_sign().and_then(|may_sign| may_sign.blocks_in_ms)
    }

    /// Milliseconds until an attestation may be signed.
    pub fn attestations_in_ms(&self) -> Option<u64> {
        self.may_sign().and_then(|may_sign| may_sign.attestations_in_ms)
    }

    fn may_sign(&self) -> Option<MaySign> {
        self.readiness.filter(|readiness| readiness.keys > 0).map(|readiness| readiness.may_sign)
    }
}

/// The enclave that signs soonest first; among those that do not, the one whose reason is the cause: a standby only says that it stands by.
fn rank(readiness: &Readiness) -> (u8, u64) {
    let cause = match readiness.may_sign.reason {
        _ if readiness.may_sign.blocks() => 0,
        Some(Refusal::NotHolder(NotHolder::Standby { .. })) => 3,
        Some(Refusal::NotHolder(_)) => 2,
        _ => 1,
    };
    (cause, readiness.may_sign.blocks_in_ms.unwrap_or(u64::MAX))
}

/// Says each transition once.
#[derive(Debug, Default)]
pub struct Herald {
    enclaves: Vec<Said>,
    /// For how long no block would have been signed; and whether that was said.
    not_ready: Option<(std::time::Instant, bool)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    standing: Option<StatedStatus>,
    term: u64,
    silent: bool,
}

impl Herald {
    /// Tells what has changed.
    pub fn tell(&mut self, enclaves: &[Option<Readiness>], verdict: &Verdict) {
        self.enclaves.resize(enclaves.len(), Said::default());
        for (enclave, (said, heard)) in self.enclaves.iter_mut().zip(enclaves).enumerate() {
            said.tell(enclave, heard.as_ref());
        }
        self.tell_verdict(verdict);
    }

    fn tell_verdict(&mut self, verdict: &Verdict) {
        if verdict.is_ready() {
            if let Some((since, true)) = self.not_ready.take() {
                info!(enclave = verdict.enclave, seconds = since.elapsed().as_secs(), "blocks are signed again");
            }
            return;
        }
        let (since, said) = self.not_ready.get_or_insert_with(|| (std::time::Instant::now(), false));
        if *said || since.elapsed() < NOT_READY {
            return;
        }
        *said = true;
        let reason = verdict.reason.as_deref().unwrap_or_default();
        let seconds = verdict.blocks_in_ms().map(|ms| ms.div_ceil(1000));
        // Without `seconds` nobody can foresee the end.
        error!(enclave = verdict.enclave, seconds, "NO BLOCK IS SIGNED: {reason}");
    }
}

impl Said {
    fn tell(&mut self, enclave: usize, heard: Option<&Readiness>) {
        let standing = heard.map(|readiness| readiness.standing);
        let term = heard.map_or(0, |readiness| readiness.term);
        if (standing, term) != (self.standing, self.term) {
            info!(enclave, term, "the fence: {}", words(heard));
        }
        let long = |ms: u64| Duration::from_millis(ms) >= SILENT;
        let silence = heard.and_then(|readiness| readiness.silence).filter(|silence| long(silence.ms));
        match (self.silent, silence) {
            (false, Some(silence)) => {
                let seconds = silence.ms / 1000;
                let until = heard.and_then(|readiness| readiness.may_sign.slot_ceiling).map(|slot| slot.0);
                warn!(
                    enclave,
                    seconds,
                    blocks_up_to_slot = until,
                    "the fence's store has acknowledged nothing: {}",
                    silence.trouble
                );
            }
            (true, None) if heard.is_some() => info!(enclave, "the fence's store answers again"),
            _ => {}
        }
        // One that is not reached says nothing of its store.
        let silent = if heard.is_some() { silence.is_some() } else { self.silent };
        *self = Self { standing, term, silent };
    }
}

/// What an enclave is to the fence, for people.
fn words(heard: Option<&Readiness>) -> String {
    let Some(readiness) = heard else { return "the enclave does not answer".to_owned() };
    let in_seconds = |ms: Option<u64>| match ms {
        Some(0) => "now".to_owned(),
        Some(ms) => format!("in {} s", ms.div_ceil(1000)),
        None => "not foreseeable".to_owned(),
    };
    let MaySign { blocks_in_ms, attestations_in_ms, reason, .. } = readiness.may_sign;
    match (readiness.standing, reason) {
        (StatedStatus::Holding | StatedStatus::NoStore, _) => format!(
            "this enclave holds it; it signs blocks {}, attestations {}",
            in_seconds(blocks_in_ms),
            in_seconds(attestations_in_ms)
        ),
        (_, Some(reason)) => reason.to_string(),
        (standing, None) => format!("{standing:?}"),
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::Slot;
    use casemate_protocol::may_sign::Silence;
    use casemate_protocol::refusal::StoreTrouble;

    use super::*;

    fn holder(blocks_in_ms: Option<u64>, reason: Option<Refusal>) -> Readiness {
        let may_sign = MaySign { blocks_in_ms, attestations_in_ms: Some(0), reason, slot_ceiling: Some(Slot(9)) };
        Readiness { may_sign, ..Readiness::from_standing(StatedStatus::Holding, 64) }
    }

    fn standby() -> Readiness {
        Readiness::from_standing(StatedStatus::Standby, 64)
    }

    fn silent() -> Refusal {
        Silence { ms: 45_000, trouble: StoreTrouble::Away }.refusal((Slot(9), casemate_protocol::Epoch(1)))
    }

    #[test]
    fn the_holder_whose_store_is_silent_is_the_cause_and_not_the_standby() {
        let cut_off = holder(None, Some(silent()));
        for order in [[Some(cut_off), Some(standby())], [Some(standby()), Some(cut_off)]] {
            let verdict = Verdict::of(&order, None);
            assert!(!verdict.is_ready());
            assert!(verdict.reason.unwrap().contains("acknowledged nothing for 45 s"));
        }
        // A standby that has taken over is the one that signs, whatever the old holder says.
        let verdict = Verdict::of(&[Some(cut_off), Some(holder(Some(0), None))], None);
        assert_eq!((verdict.enclave, verdict.is_ready()), (Some(1), true));
    }

    #[test]
    fn nothing_is_ready_without_keys_or_enclaves() {
        let empty = Readiness { keys: 0, ..holder(Some(0), None) };
        let verdict = Verdict::of(&[Some(empty)], None);
        assert!(!verdict.is_ready() && verdict.blocks_in_ms().is_none());
        assert!(verdict.reason.unwrap().contains("no key that signs"));
        assert!(!Verdict::of(&[None, None], None).is_ready());
        assert!(Verdict::of(&[None], None).reason.unwrap().contains("no enclave answers"));
    }
}
