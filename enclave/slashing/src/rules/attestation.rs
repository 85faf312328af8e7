//! An attestation: one per target, and neither around nor inside an earlier vote.
//!
//! Slashable by the consensus specification's `is_slashable_attestation_data`: two different votes for one target
//! (double vote), or one whose source is below and whose target is above those of another (surround). Targets that
//! only rise and sources that never fall exclude both: EIP-3076's minimal conditions 4 and 5.
//!
//! A vote from an epoch to itself is refused too, though it slashes nobody alone: a chain never justifies the epoch that it is in, so
//! no honest vote is one, and a client that asked for one would raise the source below which no vote is signed any more, of its key
//! and, through the fence's ceilings, of the whole group.

use casemate_protocol::{Epoch, Refusal, Root};

use crate::{AttestationMark, Limits, Watermarks};

/// The watermarks after signing the attestation `source` → `target`, or why it must not be signed.
pub fn check(
    watermarks: Watermarks,
    source: Epoch,
    target: Epoch,
    signing_root: Root,
    limits: &Limits,
) -> Result<Watermarks, Refusal> {
    if source > target {
        return Err(Refusal::SourceAboveTarget { source_epoch: source, target });
    }
    // At genesis both checkpoints are epoch 0.
    if source == target && target > Epoch(0) {
        return Err(Refusal::SourceIsTarget { epoch: target });
    }
    if let Some(last) = watermarks.attestation {
        // The very same vote again: an answer can get lost, and a second copy slashes nobody.
        let repeat = target == last.target && last.signing_root == Some(signing_root);
        if target <= last.target && !repeat {
            return Err(not_above(target, last, limits));
        }
        // Also of a repeat: the root may come from an import, and nothing ties it to the source and target that stand beside it.
        if source < last.source {
            return Err(match limits.floors.source.filter(|floor| source < *floor && last.signing_root.is_none()) {
                Some(floor) => Refusal::SourceBelowFloor { source_epoch: source, floor },
                None => Refusal::SourceBelowLast { source_epoch: source, last: last.source },
            });
        }
    }
    let Limits { floors, ceilings } = limits;
    if let Some(floor) = floors.target.filter(|floor| target <= *floor) {
        return Err(Refusal::TargetNotAboveFloor { target, floor });
    }
    if let Some(floor) = floors.source.filter(|floor| source < *floor) {
        return Err(Refusal::SourceBelowFloor { source_epoch: source, floor });
    }
    if target > ceilings.target {
        return Err(Refusal::TargetAboveCeiling { target, ceiling: ceilings.target });
    }
    if source > ceilings.source {
        return Err(Refusal::SourceAboveCeiling { source_epoch: source, ceiling: ceilings.source });
    }
    let mark = AttestationMark { source, target, signing_root: Some(signing_root) };
    Ok(Watermarks { attestation: Some(mark), ..watermarks })
}

/// A mark without a root was not made by a signature of this enclave: a floor has raised it, or a history.
fn not_above(target: Epoch, last: AttestationMark, limits: &Limits) -> Refusal {
    match limits.floors.target.filter(|floor| target <= *floor) {
        _ if last.signing_root.is_some() => Refusal::TargetNotAboveLast { target, last: last.target },
        Some(floor) => Refusal::TargetNotAboveFloor { target, floor },
        None => Refusal::TargetNotAboveHistory { target, last: last.target },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ceilings, Floors};

    const A: Root = casemate_protocol::Bytes([1; 32]);
    const B: Root = casemate_protocol::Bytes([2; 32]);

    fn after(source: u64, target: u64, root: Option<Root>) -> Watermarks {
        let mark = AttestationMark { source: Epoch(source), target: Epoch(target), signing_root: root };
        Watermarks { block: None, attestation: Some(mark) }
    }

    fn sign(w: Watermarks, source: u64, target: u64, root: Root, limits: &Limits) -> Result<Watermarks, Refusal> {
        check(w, Epoch(source), Epoch(target), root, limits)
    }

    #[test]
    fn rises_and_repeats() {
        let none = &Limits::NONE;
        assert_eq!(sign(Watermarks::NONE, 0, 0, A, none), Ok(after(0, 0, Some(A))));
        assert_eq!(sign(after(3, 4, Some(A)), 4, 5, B, none), Ok(after(4, 5, Some(B))));
        assert_eq!(sign(after(3, 4, Some(A)), 3, 5, B, none), Ok(after(3, 5, Some(B))));
        assert_eq!(sign(after(3, 4, Some(A)), 3, 4, A, none), Ok(after(3, 4, Some(A))));
        let top = u64::MAX;
        assert_eq!(sign(after(3, 4, Some(A)), top - 1, top, B, none), Ok(after(top - 1, top, Some(B))));
    }

    #[test]
    fn a_floor_that_has_raised_a_mark_is_named_and_not_a_signature_that_never_was() {
        let floors = Floors { slot: None, target: Some(Epoch(9)), source: Some(Epoch(8)) };
        let limits = Limits { floors, ..Limits::NONE };
        let floor = Err(Refusal::TargetNotAboveFloor { target: Epoch(9), floor: Epoch(9) });
        assert_eq!(sign(after(8, 9, None), 8, 9, A, &limits), floor);
        let below = Err(Refusal::SourceBelowFloor { source_epoch: Epoch(7), floor: Epoch(8) });
        assert_eq!(sign(after(8, 9, None), 7, 10, A, &limits), below);
        let signed = Err(Refusal::TargetNotAboveLast { target: Epoch(9), last: Epoch(9) });
        assert_eq!(sign(after(8, 9, Some(B)), 8, 9, A, &limits), signed);
        let told = Err(Refusal::TargetNotAboveHistory { target: Epoch(10), last: Epoch(11) });
        assert_eq!(sign(after(8, 11, None), 8, 10, A, &limits), told);
    }

    #[test]
    fn no_vote_goes_from_an_epoch_to_itself_but_at_genesis() {
        let none = &Limits::NONE;
        let refused = |epoch| Err(Refusal::SourceIsTarget { epoch: Epoch(epoch) });
        assert_eq!(sign(Watermarks::NONE, 0, 0, A, none), Ok(after(0, 0, Some(A))));
        for epoch in [1, 5, u64::MAX] {
            assert_eq!(sign(Watermarks::NONE, epoch, epoch, A, none), refused(epoch));
            // Also of one that an import says was signed.
            assert_eq!(sign(after(epoch, epoch, Some(A)), epoch, epoch, A, none), refused(epoch));
        }
        assert_eq!(sign(Watermarks::NONE, 4, 5, A, none), Ok(after(4, 5, Some(A))));
    }

    #[test]
    fn a_repeat_never_lowers_the_source() {
        // We have signed 103 → 104; an import says that A is 103 → 105, and it is 102 → 105, which surrounds ours.
        let lied_to = after(103, 104, Some(B)).merge(after(103, 105, Some(A)));
        let refused = Refusal::SourceBelowLast { source_epoch: Epoch(102), last: Epoch(103) };
        assert_eq!(sign(lied_to, 102, 105, A, &Limits::NONE), Err(refused));
        assert_eq!(sign(lied_to, 103, 105, A, &Limits::NONE), Ok(lied_to));
        assert_eq!(sign(lied_to, 104, 105, A, &Limits::NONE), Ok(after(104, 105, Some(A))));
    }

    #[test]
    fn double_vote_and_both_surrounds_are_refused() {
        let none = &Limits::NONE;
        let w = after(10, 20, Some(A));
        let (last_source, last_target) = (Epoch(10), Epoch(20));
        // Double vote.
        assert_eq!(sign(w, 10, 20, B, none), Err(Refusal::TargetNotAboveLast { target: Epoch(20), last: last_target }));
        // Surrounds the last vote: 9 < 10 and 21 > 20.
        assert_eq!(
            sign(w, 9, 21, B, none),
            Err(Refusal::SourceBelowLast { source_epoch: Epoch(9), last: last_source })
        );
        // Is surrounded by the last vote: 11 > 10 and 19 < 20.
        assert_eq!(sign(w, 11, 19, B, none), Err(Refusal::TargetNotAboveLast { target: Epoch(19), last: last_target }));
        // An import without root cannot be repeated.
        assert!(sign(after(10, 20, None), 10, 20, A, none).is_err());
        assert_eq!(
            sign(w, 22, 21, B, none),
            Err(Refusal::SourceAboveTarget { source_epoch: Epoch(22), target: Epoch(21) })
        );
    }

    #[test]
    fn stays_between_floors_and_ceilings() {
        let limits = Limits {
            floors: Floors { slot: None, target: Some(Epoch(100)), source: Some(Epoch(90)) },
            ceilings: Ceilings { target: Epoch(110), source: Epoch(95), ..Ceilings::NONE },
        };
        let sign = |source, target| sign(Watermarks::NONE, source, target, A, &limits).map(|_| ());
        assert_eq!(sign(90, 101), Ok(()));
        assert_eq!(sign(95, 110), Ok(()));
        assert_eq!(sign(90, 100), Err(Refusal::TargetNotAboveFloor { target: Epoch(100), floor: Epoch(100) }));
        assert_eq!(sign(89, 101), Err(Refusal::SourceBelowFloor { source_epoch: Epoch(89), floor: Epoch(90) }));
        assert_eq!(sign(90, 111), Err(Refusal::TargetAboveCeiling { target: Epoch(111), ceiling: Epoch(110) }));
        assert_eq!(sign(96, 110), Err(Refusal::SourceAboveCeiling { source_epoch: Epoch(96), ceiling: Epoch(95) }));
    }
}
