//! Files of commands, which operators sign one after the other on machines of their own.

use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use casemate_protocol::BoundedBytes;
use casemate_protocol::command::{Command, MAX_OPERATORS, OperatorSignature, SignedCommand};
use serde::{Deserialize, Serialize};

use crate::input;
use crate::util::{hex, write_whole};

/// Longest command file, in bytes: a hundred commands of the largest kind.
const MAX_FILE_LEN: u64 = 160 * 1024 * 1024;
/// The one version of command files.
const FILE_VERSION: u32 = 1;

/// A file of commands, for one boot of one enclave.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    casemate_command_file: u32,
    commands: Vec<FileCommand>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCommand {
    /// CBOR in base64.
    command: String,
    signatures: Vec<FileSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSignature {
    operator: String,
    signature: String,
}

/// The commands of a file.
pub fn read(path: &Path) -> Result<Vec<SignedCommand>> {
    let text = input::read_text(path, MAX_FILE_LEN)?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &[u8]) -> Result<Vec<SignedCommand>> {
    let file: File = serde_json::from_slice(text).context("not a file of commands")?;
    if file.casemate_command_file != FILE_VERSION {
        bail!("version {} of command files; {FILE_VERSION} is understood here", file.casemate_command_file);
    }
    if file.commands.is_empty() {
        bail!("there is no command in it");
    }
    file.commands.iter().map(signed_command).collect()
}

fn signed_command(command: &FileCommand) -> Result<SignedCommand> {
    let bytes = BASE64_STANDARD.decode(&command.command).context("a command is not base64")?;
    Command::decode(&bytes)?;
    let bytes = BoundedBytes::new(bytes).context("the command is too long")?;
    if command.signatures.len() > MAX_OPERATORS {
        bail!("{} signatures; {MAX_OPERATORS} are allowed", command.signatures.len());
    }
    let signatures = command.signatures.iter().map(|one| {
        let (operator, signature) = (hex(&one.operator, "an operator")?, hex(&one.signature, "a signature")?);
        Ok(OperatorSignature { operator, signature })
    });
    Ok(SignedCommand::new(bytes, signatures.collect::<Result<_>>()?))
}

/// Whole or not at all: no one could tell what is missing from half of the signatures.
pub fn write(path: &Path, signed: &[SignedCommand]) -> Result<()> {
    let commands = signed.iter().map(|one| FileCommand {
        command: BASE64_STANDARD.encode(&one.command),
        signatures: one
            .signatures
            .iter()
            .map(|s| FileSignature { operator: s.operator.to_string(), signature: s.signature.to_string() })
            .collect(),
    });
    let file = File { casemate_command_file: FILE_VERSION, commands: commands.collect() };
    let text = serde_json::to_string_pretty(&file).context("writing JSON")?;
    write_whole(path, |file| Ok(writeln!(file, "{text}")?))
}

/// The commands themselves.
pub fn commands(signed: &[SignedCommand]) -> Result<Vec<Command>> {
    Ok(signed.iter().map(|one| Command::decode(one.command.as_ref())).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use casemate_protocol::Bytes;
    use casemate_protocol::command::Action;

    use super::*;

    #[test]
    fn files_with_a_fault_are_unusable() {
        let action = Action::Delete { keys: vec![Bytes([9; 48])] };
        let command = Command::new("alpha".into(), Bytes([1; 32]), Bytes([2; 32]), 1_790_000_000_000, action);
        let good = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = serde_json::json!({ "casemate_command_file": 1, "commands": [
                { "command": BASE64_STANDARD.encode(command.encode().unwrap()), "signatures": [
                    { "operator": format!("0x{}", "11".repeat(32)), "signature": format!("0x{}", "22".repeat(64)) } ] } ] });
            change(&mut value);
            parse(value.to_string().as_bytes()).map(|_| ()).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(good(&|_| {}), Ok(()));
        let told = |change: &dyn Fn(&mut serde_json::Value)| good(change).unwrap_err();
        assert!(told(&|v| v["casemate_command_file"] = 2.into()).contains("version 2"));
        assert!(told(&|v| v["commands"] = serde_json::json!([])).contains("no command"));
        assert!(told(&|v| v["more"] = 1.into()).contains("unknown field"));
        assert!(told(&|v| v["commands"][0]["command"] = "?".into()).contains("not base64"));
        assert!(told(&|v| v["commands"][0]["command"] = "oA==".into()).contains("not the one encoding"));
        assert!(told(&|v| v["commands"][0]["signatures"][0]["operator"] = "0x11".into()).contains("64 hex digits"));
    }
}
