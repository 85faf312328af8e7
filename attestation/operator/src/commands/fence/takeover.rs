//! `casemate fence takeover`: acquires the fence without waiting, and says before what that costs.

use std::fmt::Write as _;

use anyhow::Result;
use casemate_protocol::command::Action;
use casemate_protocol::slot_clock::SlotClock;
use casemate_protocol::statement::{StatedRecord, StatedStatus};
use casemate_protocol::{Bytes, Epoch, Slot, Statement};
use clap::Args;

use super::order::Order;
use crate::exit::{Answer, Exit};
use crate::sending;
use crate::session::Session;
use crate::util::{agreed, plural};

/// Who takes over, and whether it was thought about.
#[derive(Args, Debug)]
pub struct Takeover {
    #[command(flatten)]
    pub order: Order,
    /// Do not ask: the price is stated all the same
    #[arg(long)]
    pub yes: bool,
}

/// States the price, asks, and gives the order.
pub fn run(options: Takeover) -> Result<Answer> {
    let Takeover { order: Order { connection, signing, pins }, yes } = options;
    let mut session = Session::open(connection, pins)?;
    let price = price(&session.statement);
    let sending = signing.command_out.is_none();
    if sending && !yes && !agreed(&price, "Take the fence over?")? {
        return Ok(("the fence was not taken over; nothing was sent\n".to_owned(), Exit::Refused));
    }
    let commands = [session.command(Action::Takeover)?];
    let (text, exit) = sending::give(&mut session, &commands, &signing, None)?;
    Ok((format!("{price}\n{text}"), exit))
}

/// What is not signed after a takeover, and for how long, by the ceilings that the enclave's document has.
fn price(statement: &Statement) -> String {
    let Some(record) = &statement.fence.record else {
        return "The price of a takeover is not known: this enclave has seen no record of its fence.\n".to_owned();
    };
    if statement.fence.standing == StatedStatus::Holding {
        return "This enclave holds the fence already: a takeover costs nothing and changes nothing.\n".to_owned();
    }
    let has_released_state =
        record.released_state.is_some_and(|released| statement.state.is_some_and(|state| state.sha256 == released));
    if has_released_state {
        return "The last holder has released the fence, and this enclave has the state that it left: a takeover costs nothing.\n"
            .to_owned();
    }
    under_ceilings(record, statement)
}

fn under_ceilings(record: &StatedRecord, statement: &Statement) -> String {
    let (chain, now) = (SlotClock::from(&statement.network), statement.fence.time_ms);
    let StatedRecord { version, holder, slot_ceiling, target_ceiling, source_ceiling, .. } = *record;
    let mut out = if holder == Bytes::ZERO {
        "Nobody has held the fence so far.\n".to_owned()
    } else {
        format!(
            "A takeover ends the term of the enclave with the boot nonce {holder}. What that one may have signed binds this one:\n"
        )
    };
    let next_slot = Slot(slot_ceiling.0.saturating_add(1));
    let next_target = Epoch(target_ceiling.0.saturating_add(1));
    let blocks = now.map(|now| next_slot.0.saturating_sub(chain.slot(now).0));
    let votes = now.map(|now| next_target.0.saturating_sub(chain.epoch(chain.slot(now)).0));
    let line = |what: &str, above: String, seconds: Option<u64>, many: Option<String>| match (seconds, many) {
        (Some(0), _) => format!("  {what} {above}: signed at once\n"),
        (Some(seconds), Some(many)) => format!("  {what} {above}: none for {seconds} s ({many})\n"),
        _ => format!(
            "  {what} {above}: for how long none is signed is not known, because the enclave does not trust its clock\n"
        ),
    };
    let seconds = |slot: Slot| now.map(|now| chain.until(slot, now).div_ceil(1000));
    out.push_str(&line(
        "blocks",
        format!("only above slot {slot_ceiling}"),
        seconds(next_slot),
        blocks.map(|n| plural(n, "slot")),
    ));
    out.push_str(&line(
        "attestations",
        format!("only with a target above epoch {target_ceiling} and a source from {source_ceiling} on"),
        seconds(chain.start(next_target)),
        votes.map(|n| plural(n, "epoch")),
    ));
    let _ = writeln!(
        out,
        "These are the ceilings of version {version} of the record, as this enclave's document has them; a holder that lives may have raised \
         them since. Where the holder answers, casemate fence handover costs nothing."
    );
    out
}

#[cfg(test)]
mod tests {
    use casemate_protocol::statement::{
        FenceKind, FenceStatement, StatedFloors, StatedKeys, StatedNetwork, StatedState,
    };
    use casemate_protocol::window::Window;

    use super::*;

    /// Slots of 12 s, and epochs of 32, from 1,000 s on.
    fn standby(slot_ceiling: u64, target_ceiling: u64, now: u64) -> Statement {
        let network = StatedNetwork {
            name: "test".into(),
            genesis_validators_root: Bytes([4; 32]),
            genesis_time: 1000,
            slot_duration_ms: 12_000,
            slots_per_epoch: 32,
        };
        let record = StatedRecord {
            version: 7,
            holder: Bytes([9; 32]),
            term: 3,
            slot_ceiling: Slot(slot_ceiling),
            target_ceiling: Epoch(target_ceiling),
            source_ceiling: Epoch(4),
            min_state_version: 1,
            released_state: None,
            closed: false,
        };
        let fence = FenceStatement {
            standing: StatedStatus::Standby,
            record: Some(record),
            time_ms: Some(now),
            ..FenceStatement::without_store(FenceKind::Etcd, StatedFloors::default())
        };
        let keys = StatedKeys { count: 0, root: Bytes([0; 32]) };
        let (version, group) = ("1.0.0".into(), "main".into());
        let (zero, nonce) = (Bytes([0; 32]), Bytes([1; 32]));
        Statement::new(version, group, network, keys, zero, fence, Window::default(), nonce, zero)
    }

    #[test]
    fn a_takeover_states_what_is_not_signed_and_for_how_long() {
        // At slot 100 of epoch 3, with a second gone.
        let statement = standby(103, 3, 1_000_000 + 100 * 12_000 + 1000);
        let text = price(&statement);
        assert!(text.contains("blocks only above slot 103: none for 47 s (4 slots)"), "{text}");
        assert!(text.contains("target above epoch 3 and a source from 4 on: none for 335 s (1 epoch)"), "{text}");
        assert!(text.contains("version 7 of the record"), "{text}");
    }

    #[test]
    fn what_has_no_price_is_not_given_one() {
        let mut statement = standby(5, 0, 1_000_000 + 100 * 12_000);
        assert!(price(&statement).contains("above slot 5: signed at once"), "{}", price(&statement));
        statement.fence.time_ms = None;
        assert!(price(&statement).contains("does not trust its clock"), "{}", price(&statement));
        if let Some(record) = &mut statement.fence.record {
            record.released_state = Some(Bytes([8; 32]));
        }
        assert!(price(&statement).contains("above slot 5"), "another state's release is of no use");
        statement.state = Some(StatedState { number: 1, sha256: Bytes([8; 32]), fence_version: 1 });
        assert!(price(&statement).contains("costs nothing"));
        statement.fence.record = None;
        assert!(price(&statement).contains("not known"));
    }
}
