//! Commands: signed here or written to a file, sent, and told what became of them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use casemate_protocol::command::{Action, Command, SignedCommand, SignedExit};

use crate::args::Signing;
use crate::command_file;
use crate::deposit_data::{self, DepositOutput};
use crate::exit::{Answer, Exit, Refused};
use crate::operator_key::OperatorPair;
use crate::outcomes::Report;
use crate::progress;
use crate::session::Session;
use crate::summary::summary;
use crate::util::{must_be_new, plural};

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
    // Before there are keys: a place for their deposits.
    let mut file = deposit_file(&commands, output, session)?;
    let bar = progress::bar(signed.len().try_into().unwrap_or(u64::MAX), "the enclave carries out commands");
    let mut report = Report::new();
    for (command, one) in commands.iter().zip(signed) {
        let told = session.send(one);
        let refused = matches!(&told, Err(error) if error.is::<Refused>());
        let status = session.status(command, one.command.as_ref(), refused);
        let goes_on = report.tell(command, &told, status);
        // On the disk before anything else can go wrong; its name says that it is not finished.
        if let Some(file) = &mut file {
            file.write(&report.deposits)?;
        }
        bar.inc(1);
        if !goes_on {
            break;
        }
    }
    bar.finish_and_clear();
    let folder = output.map_or(Path::new("."), |output| output.folder);
    write_exits(folder, &mut report)?;
    count(&mut report, commands.len(), session);
    finish(file, &mut report)?;
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

/// A file for each exit, as beacon nodes take it.
fn write_exits(folder: &Path, report: &mut Report) -> Result<()> {
    for exit in std::mem::take(&mut report.exits) {
        let SignedExit { epoch, validator_index, signature, .. } = exit;
        let text = format!(
            "{{\"message\":{{\"epoch\":\"{epoch}\",\"validator_index\":\"{validator_index}\"}},\"signature\":\"{signature}\"}}\n"
        );
        let path = folder.join(format!("exit-{validator_index}.json"));
        // What cannot be written is at least shown.
        fs::write(&path, &text).with_context(|| format!("writing {}; the exit: {text}", path.display()))?;
        report
            .line(&format!("written to {}; publish it with POST /eth/v1/beacon/pool/voluntary_exits", path.display()));
    }
    Ok(())
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
    if report.exit != Exit::Accepted && skipped > 1 {
        report.line(&format!("{} not carried out, or not known to be", plural(skipped, "command")));
    }
}

/// Gives the file of deposits its name, if there are any.
fn finish(file: Option<deposit_data::File>, report: &mut Report) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    if report.deposits.is_empty() {
        file.discard();
        return Ok(());
    }
    let (path, keys) = (file.finish()?, plural(report.deposits.len(), "key"));
    report.line(&format!("deposit data of {keys}, each signature verified: {}", path.display()));
    Ok(())
}
