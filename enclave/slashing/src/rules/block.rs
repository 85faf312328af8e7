//! A block: one per slot, and never an earlier slot again.
//!
//! Slashable by the consensus specification's `process_proposer_slashing`: two different headers of one proposer at
//! the same slot. Refusing every slot that is not above the last one signed is EIP-3076's minimal condition 2.

use casemate_protocol::{Refusal, Root, Slot};

use crate::{BlockMark, Limits, Watermarks};

/// The watermarks after signing the block with `signing_root` at `slot`, or why it must not be signed.
pub fn check(watermarks: Watermarks, slot: Slot, signing_root: Root, limits: &Limits) -> Result<Watermarks, Refusal> {
    if let Some(last) = watermarks.block {
        // The very same block again: an answer can get lost, and a second copy slashes nobody.
        let repeat = slot == last.slot && last.signing_root == Some(signing_root);
        if slot <= last.slot && !repeat {
            return Err(not_above(slot, last, limits));
        }
    }
    if let Some(floor) = limits.floors.slot.filter(|floor| slot <= *floor) {
        return Err(Refusal::BlockNotAboveFloor { slot, floor });
    }
    if slot > limits.ceilings.slot {
        return Err(Refusal::BlockAboveCeiling { slot, ceiling: limits.ceilings.slot });
    }
    Ok(Watermarks { block: Some(BlockMark { slot, signing_root: Some(signing_root) }), ..watermarks })
}

/// A mark without a root was not made by a signature of this enclave: a floor has raised it, or a history.
fn not_above(slot: Slot, last: BlockMark, limits: &Limits) -> Refusal {
    match limits.floors.slot.filter(|floor| slot <= *floor) {
        _ if last.signing_root.is_some() => Refusal::BlockNotAboveLast { slot, last: last.slot },
        Some(floor) => Refusal::BlockNotAboveFloor { slot, floor },
        None => Refusal::BlockNotAboveHistory { slot, last: last.slot },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ceilings, Floors};

    const A: Root = casemate_protocol::Bytes([1; 32]);
    const B: Root = casemate_protocol::Bytes([2; 32]);

    fn after(slot: u64, root: Option<Root>) -> Watermarks {
        Watermarks { block: Some(BlockMark { slot: Slot(slot), signing_root: root }), attestation: None }
    }

    #[test]
    fn rises_and_repeats_but_never_conflicts() {
        let sign = |w, slot, root| check(w, Slot(slot), root, &Limits::NONE);
        assert_eq!(sign(Watermarks::NONE, 0, A), Ok(after(0, Some(A))));
        assert_eq!(sign(after(5, Some(A)), 6, B), Ok(after(6, Some(B))));
        assert_eq!(sign(after(5, Some(A)), 5, A), Ok(after(5, Some(A))));
        let refused = |slot| Err(Refusal::BlockNotAboveLast { slot: Slot(slot), last: Slot(5) });
        assert_eq!(sign(after(5, Some(A)), 5, B), refused(5));
        assert_eq!(
            sign(after(5, None), 5, A),
            Err(Refusal::BlockNotAboveHistory { slot: Slot(5), last: Slot(5) }),
            "nobody says that it was another one"
        );
        assert_eq!(sign(after(5, Some(A)), 4, A), refused(4));
        assert_eq!(sign(after(u64::MAX - 1, None), u64::MAX, A), Ok(after(u64::MAX, Some(A))));
    }

    #[test]
    fn a_floor_that_has_raised_a_mark_is_named_and_not_a_signature_that_never_was() {
        let limits = Limits { floors: Floors { slot: Some(Slot(10)), ..Floors::default() }, ..Limits::NONE };
        let floor = |slot| Err(Refusal::BlockNotAboveFloor { slot: Slot(slot), floor: Slot(10) });
        for slot in [9, 10] {
            assert_eq!(check(after(10, None), Slot(slot), A, &limits), floor(slot));
        }
        // One that this enclave has signed is another matter.
        let signed = Err(Refusal::BlockNotAboveLast { slot: Slot(10), last: Slot(10) });
        assert_eq!(check(after(10, Some(B)), Slot(10), A, &limits), signed);
        // Above the floor it is the history that says so.
        let told = Err(Refusal::BlockNotAboveHistory { slot: Slot(11), last: Slot(12) });
        assert_eq!(check(after(12, None), Slot(11), A, &limits), told);
    }

    #[test]
    fn stays_between_floor_and_ceiling() {
        let limits = Limits {
            floors: Floors { slot: Some(Slot(10)), ..Floors::default() },
            ceilings: Ceilings { slot: Slot(12), ..Ceilings::NONE },
        };
        let sign = |w, slot| check(w, Slot(slot), A, &limits).map(|_| ());
        assert_eq!(sign(Watermarks::NONE, 10), Err(Refusal::BlockNotAboveFloor { slot: Slot(10), floor: Slot(10) }));
        assert_eq!(sign(Watermarks::NONE, 11), Ok(()));
        assert_eq!(sign(Watermarks::NONE, 12), Ok(()));
        assert_eq!(sign(Watermarks::NONE, 13), Err(Refusal::BlockAboveCeiling { slot: Slot(13), ceiling: Slot(12) }));
        // Not even a repeat goes below a floor: another holder may have gone on from there.
        assert_eq!(sign(after(9, Some(A)), 9), Err(Refusal::BlockNotAboveFloor { slot: Slot(9), floor: Slot(10) }));
    }
}
