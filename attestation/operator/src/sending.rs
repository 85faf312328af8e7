//! Commands: signed here or written to a file, sent, and told what became of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use casemate_protocol::command::{Action, Command, SignedCommand, SignedExit};

use crate::args::Signing;
use crate::command_file;
use crate::deposit_data::{self, DepositOutput};
use crate::exit::{Answer, Exit, Refused};
use crate::operator_key::OperatorPair;
use crate::outcomes::Report;
use crate::session::Session;
use crate::summary::summary;
use crate::util::{must_be_new, plural};
use crate::{outputs, progress};

/// Signs commands with the keys at hand, and sends them or writes them down.
pub fn give(
    session: &mut Session,
    commands: &[Command],
    signing: &Signing,
    output: Option<&DepositOutput<'_>>,
) -> Result<Answer> {
    let pairs = OperatorPair::read_all(&signing.operator_key)?;
    let mut signed = Vec::with_capacity(commands.len());
    for command in commands {
        let bytes = command.encode()?;
        let signatures = pairs.iter().map(|pair| pair.sign(bytes.as_ref())).collect();
        signed.push(SignedCommand::new(bytes, signatures));
    }
    if let Some(path) = &signing.command_out {
        return write_down(path, commands, &signed, pairs.len());
    }
    if pairs.is_empty() {
        bail!(
            "no operator signs: give --operator-key for each operator who signs here, or --command-out for those who sign elsewhere"
        );
    }
    send(session, &signed, output)
}

fn write_down(path: &Path, commands: &[Command], signed: &[SignedCommand], operators: usize) -> Result<Answer> {
    must_be_new(path)?;
    command_file::write(path, signed)?;
    let (summary, operators, file) = (summary(commands)?, plural(operators, "operator"), path.display());
    let text = format!(
        "{summary}\nwritten to {file}, signed by {operators} so far. Each further operator: casemate command sign {file} --operator-key KEY.pem\n\
         then: casemate command send {file} URL, before the enclave starts anew\n"
    );
    Ok((text, Exit::Accepted))
}

/// Sends signed commands, one after the other. What became of each is what a document says afterwards: the proxy may lie about
/// success and about failure, and keep commands for later.
pub fn send(session: &mut Session, signed: &[SignedCommand], output: Option<&DepositOutput<'_>>) -> Result<Answer> {
    let commands = command_file::commands(signed)?;
    // Before there are keys or exits: a place for them.
    let folder = output.map_or(Path::new("."), |output| output.folder);
    check_exits(folder, &commands)?;
    let mut file = deposit_file(&commands, output, session)?;
    let bar = progress::bar(signed.len().try_into().unwrap_or(u64::MAX), "the enclave carries out commands");
    let mut report = Report::new();
    for (command, one) in commands.iter().zip(signed) {
        let told = session.send(one);
        let refused = matches!(&told, Err(error) if error.is::<Refused>());
        let status = session.status(command, one.command.as_ref(), refused);
        let goes_on = report.tell(command, &told, status);
        // On the disk before anything else can go wrong; its name says that it is not finished.
        let is_kept = file.as_mut().map_or(Ok(true), |file| keep(file, &mut report))?;
        bar.inc(1);
        if !goes_on || !is_kept {
            break;
        }
    }
    bar.finish_and_clear();
    report.sum_up();
    write_exits(folder, &mut report);
    count(&mut report, commands.len(), session);
    finish(file, &mut report);
    Ok((report.out, report.exit))
}

/// The file for deposits, where a command has them signed.
fn deposit_file(
    commands: &[Command],
    output: Option<&DepositOutput<'_>>,
    session: &Session,
) -> Result<Option<deposit_data::File>> {
    let is_deposit = |command: &Command| matches!(command.action, Action::Generate { .. } | Action::Deposit { .. });
    if !commands.iter().any(is_deposit) {
        return Ok(None);
    }
    let output = output.context("there is no folder for the deposit data")?;
    deposit_data::File::create(output, &session.statement).map(Some)
}

/// Writes the deposits down; whether that worked. An error is about the deposits themselves.
fn keep(file: &mut deposit_data::File, report: &mut Report) -> Result<bool> {
    let Some(text) = file.text(&report.deposits)? else { return Ok(true) };
    let written = file.write(&text);
    if let Err(error) = &written {
        report.not_written(&format!("{error:#}"), &text);
    }
    Ok(written.is_ok())
}

/// The files that exits will go to can be written.
fn check_exits(folder: &Path, commands: &[Command]) -> Result<()> {
    let exits = commands.iter().filter_map(|command| match &command.action {
        Action::Exit { exits, .. } => Some(exits),
        _ => None,
    });
    let mut checked = false;
    for exit in exits.flatten() {
        if !checked {
            outputs::check_folder(folder)?;
            checked = true;
        }
        outputs::check_file(&exit_file(folder, exit.validator_index))?;
    }
    Ok(())
}

fn exit_file(folder: &Path, validator_index: u64) -> PathBuf {
    folder.join(format!("exit-{validator_index}.json"))
}

/// A file for each exit, as beacon nodes take it.
fn write_exits(folder: &Path, report: &mut Report) {
    for exit in std::mem::take(&mut report.exits) {
        let SignedExit { epoch, validator_index, signature, .. } = exit;
        let text = format!(
            "{{\"message\":{{\"epoch\":\"{epoch}\",\"validator_index\":\"{validator_index}\"}},\"signature\":\"{signature}\"}}\n"
        );
        let path = exit_file(folder, validator_index);
        match fs::write(&path, &text) {
            Ok(()) => report.line(&format!(
                "written to {}; publish it with POST /eth/v1/beacon/pool/voluntary_exits",
                path.display()
            )),
            Err(error) => report.not_written(&format!("writing {}: {error}", path.display()), &text),
        }
    }
}

/// How many commands were carried out, and how many were not.
fn count(report: &mut Report, commands: usize, session: &Session) {
    if report.carried_out > 0 {
        let (done, keys) = (plural(report.carried_out, "command"), session.statement.public_keys.count);
        report.line(&format!(
            "\nconfirmed by this enclave's own document, for this boot: {done} carried out, {keys} keys sign now"
        ));
    }
    let skipped = commands.saturating_sub(report.carried_out);
    // Of one that failed its own line tells.
    let told = usize::from(report.exit != Exit::NotWritten);
    if report.exit != Exit::Accepted && skipped > told {
        report.line(&format!("{} not carried out, or not known to be", plural(skipped, "command")));
    }
}

/// Gives the file of deposits its name, if there are any.
fn finish(file: Option<deposit_data::File>, report: &mut Report) {
    let Some(file) = file else { return };
    if report.deposits.is_empty() {
        file.discard();
        return;
    }
    let keys = plural(report.deposits.len(), "key");
    match file.finish() {
        Ok(path) => report.line(&format!("deposit data of {keys}, each signature verified: {}", path.display())),
        Err(error) => {
            report.not_written(&format!("{error:#}"), "the deposit data is in the file .unconfirmed beside it");
        }
    }
}

#[cfg(test)]
mod tests {
    use casemate_protocol::command::ExitOrder;
    use casemate_protocol::{Bytes, Epoch};

    use super::*;

    fn exits(validator_index: u64) -> Command {
        let exits = vec![ExitOrder { public_key: Bytes([9; 48]), validator_index }];
        let action = Action::Exit { exits, last_epoch: Epoch(7) };
        Command::new("main".into(), Bytes([1; 32]), Bytes([2; 32]), 1, action)
    }

    #[test]
    fn an_exit_whose_folder_is_missing_is_not_ordered() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let error = format!("{:#}", check_exits(&missing, &[exits(5)]).unwrap_err());
        assert!(error.contains("missing for what the command writes; nothing was sent"), "{error}");
        check_exits(folder.path(), &[exits(5)]).unwrap();
        fs::create_dir(folder.path().join("exit-6.json")).unwrap();
        let error = format!("{:#}", check_exits(folder.path(), &[exits(5), exits(6)]).unwrap_err());
        assert!(error.contains("exit-6.json cannot be written"), "{error}");
        // A command without exits needs no folder.
        let other = Command::new("main".into(), Bytes([1; 32]), Bytes([2; 32]), 1, Action::Handover);
        check_exits(&missing, &[other]).unwrap();
    }

    #[test]
    fn an_exit_that_is_signed_and_not_written_is_shown_and_ends_with_a_code_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::new();
        let (public_key, signature) = (Bytes([9; 48]), Bytes([7; 96]));
        report.exits.push(SignedExit { public_key, epoch: Epoch(3), validator_index: 5, signature });
        write_exits(&folder.path().join("gone"), &mut report);
        assert_eq!(report.exit, Exit::NotWritten);
        assert!(
            report.out.contains("DONE, BUT NOT WRITTEN") && report.out.contains("\"validator_index\":\"5\""),
            "{}",
            report.out
        );
    }
}
