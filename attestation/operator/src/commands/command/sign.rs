//! `casemate command sign`: an operator signs what a file orders.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::command_file;
use crate::exit::{Answer, Exit};
use crate::operator_key::OperatorPair;
use crate::operators::Operators;
use crate::summary::signed_summary;
use crate::util::agreed;

/// What an operator must know who does not say which configuration it is.
const WITHOUT_CONFIGURATION: &str = "note: a file of commands does not say who the operators are. If this key is none of theirs, the enclave refuses the whole file. \
                                     --config FILE compares it with the enclave's configuration; casemate command unsign takes a signature out\n";

#[derive(Args, Debug)]
pub struct Sign {
    /// The file; the signature is added to it
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Operator's private key (PEM); once for each operator who signs here
    #[arg(long, value_name = "FILE", required = true)]
    pub operator_key: Vec<PathBuf>,
    /// The enclave's measured configuration (TOML): a key that it does not name signs nothing
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Do not ask before signing
    #[arg(long)]
    pub yes: bool,
}

/// Signs a file.
pub fn run(options: &Sign) -> Result<Answer> {
    let mut signed = command_file::read(&options.file)?;
    let operators = options.config.as_deref().map(Operators::read).transpose()?;
    let pairs = OperatorPair::read_all(&options.operator_key)?;
    // One signature of anyone else ruins the file for all who have signed it.
    if let Some(operators) = &operators {
        operators.check_commands(&command_file::commands(&signed)?)?;
        pairs.iter().try_for_each(|pair| operators.check_signer(&pair.public()))?;
    }
    let note = if operators.is_none() { WITHOUT_CONFIGURATION } else { "" };
    let (text, _) = signed_summary(&signed)?;
    if !options.yes && !agreed(&format!("{text}\n{note}"), "Sign this?")? {
        return Ok(("nothing was signed\n".to_owned(), Exit::Refused));
    }
    for pair in pairs {
        for one in &mut signed {
            let signature = pair.sign(one.command.as_ref());
            one.signatures.retain(|other| other.operator != signature.operator);
            one.signatures.push(signature);
        }
    }
    command_file::write(&options.file, &signed)?;
    let (text, exit) = signed_summary(&signed)?;
    Ok((format!("{text}\nsigned and written to {}\n{note}", options.file.display()), exit))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use casemate_protocol::Bytes;
    use casemate_protocol::command::{Action, Command, SignedCommand};

    use super::*;
    use crate::commands::command::merge::{self, Merge};
    use crate::commands::command::show::{self, Show};
    use crate::commands::command::unsign::{self, Unsign};

    /// A file with one command for the group `main` of mainnet, three operators' keys and a stranger's, and a configuration of two of
    /// three.
    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let files = Self { folder: tempfile::tempdir().unwrap() };
            for name in ["a", "b", "c", "stranger"] {
                OperatorPair::generate().unwrap().write(&files.path(name), None).unwrap();
            }
            let keys: Vec<String> = ["a", "b", "c"].iter().map(|name| format!("\"{}\"", files.public(name))).collect();
            let toml = format!(
                "group = \"main\"\nnetwork = \"mainnet\"\nkms_key_arn = \"arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555\"\n\
                 [operators]\nthreshold = 2\nkeys = [{}]\n[policy]\nfee_recipient = \"any\"\n[fence]\nkind = \"solo\"\n",
                keys.join(", ")
            );
            fs::write(files.path("casemate.toml"), toml).unwrap();
            files.write("command.json", "main");
            files
        }

        fn write(&self, name: &str, group: &str) {
            let root = casemate_config::named("mainnet").unwrap().unwrap().genesis_validators_root();
            let action = Action::Delete { keys: vec![Bytes([9; 48])] };
            let command = Command::new(group.into(), root, Bytes([2; 32]), 1_790_000_000_000, action);
            command_file::write(&self.path(name), &[SignedCommand::new(command.encode().unwrap(), vec![])]).unwrap();
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn public(&self, name: &str) -> String {
            OperatorPair::read(&self.path(name)).unwrap().public().to_string()
        }

        fn sign(&self, file: &str, key: &str, config: bool) -> Result<Answer> {
            let config = config.then(|| self.path("casemate.toml"));
            run(&Sign { file: self.path(file), operator_key: vec![self.path(key)], config, yes: true })
        }

        fn show(&self, config: bool) -> Answer {
            let config = config.then(|| self.path("casemate.toml"));
            show::run(&Show { file: self.path("command.json"), config }).unwrap()
        }
    }

    #[test]
    fn a_file_is_signed_by_one_after_the_other() {
        let files = Files::new();
        assert!(files.show(false).0.contains("no one"));
        // Without a terminal there is no one to ask, and nothing is signed.
        let (file, operator_key) = (files.path("command.json"), vec![files.path("a")]);
        assert!(run(&Sign { file: file.clone(), operator_key, config: None, yes: false }).is_err());
        files.sign("command.json", "a", false).unwrap();
        files.sign("command.json", "b", false).unwrap();
        // Twice is once.
        let (text, _) = files.sign("command.json", "b", false).unwrap();
        for key in ["a", "b"] {
            assert!(text.contains(&files.public(key)), "{text}");
        }
        assert!(text.contains("DELETE 1 key:") && text.contains("2026-") && !text.contains("NOT VALID"), "{text}");
        let signed = command_file::read(&file).unwrap();
        assert_eq!(signed[0].signatures.len(), 2);
        // A signature over something else is seen.
        let mut forged = signed;
        forged[0].signatures[0].signature.0[5] ^= 1;
        command_file::write(&file, &forged).unwrap();
        let (text, exit) = files.show(false);
        assert!(text.contains("SIGNATURE NOT VALID"), "{text}");
        assert_eq!(exit, Exit::Refused);
    }

    #[test]
    fn a_signature_by_somebody_who_is_no_operator_does_not_ruin_the_file() {
        let files = Files::new();
        files.sign("command.json", "a", true).unwrap();
        let before = fs::read(files.path("command.json")).unwrap();
        let error = files.sign("command.json", "stranger", true).map(drop).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Refused);
        assert!(error.to_string().contains("is no operator of this configuration"), "{error}");
        assert_eq!(fs::read(files.path("command.json")).unwrap(), before);
        // Whoever does not say which configuration it is gets a warning, and the way back.
        let (text, _) = files.sign("command.json", "stranger", false).unwrap();
        assert!(text.contains("the enclave refuses the whole file") && text.contains("command unsign"), "{text}");
        let (text, _) = files.show(true);
        assert!(text.contains(&format!("{} IS NO OPERATOR", files.public("stranger"))), "{text}");
        let operator = vec![crate::util::hex(&files.public("stranger"), "the operator").unwrap()];
        let (text, _) = unsign::run(&Unsign { file: files.path("command.json"), operator: operator.clone() }).unwrap();
        assert!(text.contains("1 signature taken out"), "{text}");
        assert_eq!(fs::read(files.path("command.json")).unwrap(), before);
        let error = unsign::run(&Unsign { file: files.path("command.json"), operator }).map(drop).unwrap_err();
        assert!(error.to_string().contains("has not signed"), "{error}");
        // A configuration of another group says nothing of this one's operators.
        files.write("other.json", "other");
        let error = files.sign("other.json", "a", true).map(drop).unwrap_err().to_string();
        assert!(error.contains("for the group «other»") && error.contains("of the group «main»"), "{error}");
    }

    #[test]
    fn show_says_whose_signatures_are_missing_and_with_which_boot_the_file_dies() {
        let files = Files::new();
        files.sign("command.json", "a", true).unwrap();
        let (text, _) = files.show(true);
        let missing =
            text.split_once("1 of 3 operators have signed; 2 are needed\n1 signature missing, of:\n").unwrap().1;
        assert!(missing.contains(&files.public("b")) && missing.contains(&files.public("c")), "{text}");
        assert!(!missing.contains(&files.public("a")), "{text}");
        assert!(text.contains(&format!("good for the boot {} of the enclave alone", Bytes([2_u8; 32]))), "{text}");
        assert!(text.contains("a command with a counter from 1790000000000 on"), "{text}");
        files.sign("command.json", "c", true).unwrap();
        let (text, _) = files.show(true);
        assert!(text.contains("2 of 3 operators have signed; 2 are needed\n") && !text.contains("missing"), "{text}");
        assert!(files.show(false).0.contains("--config FILE"));
    }

    #[test]
    fn copies_that_were_signed_at_the_same_time_are_merged() {
        let files = Files::new();
        fs::copy(files.path("command.json"), files.path("copy.json")).unwrap();
        files.sign("command.json", "a", true).unwrap();
        files.sign("copy.json", "b", true).unwrap();
        let merge = |names: &[&str], out: &Path| {
            merge::run(&Merge { files: names.iter().map(|name| files.path(name)).collect(), out: out.to_owned() })
        };
        let out = files.path("merged.json");
        let (text, _) = merge(&["command.json", "copy.json", "command.json"], &out).unwrap();
        assert!(text.contains(&files.public("a")) && text.contains(&files.public("b")), "{text}");
        assert_eq!(command_file::read(&out).unwrap()[0].signatures.len(), 2);
        let again = merge(&["command.json", "copy.json"], &out).map(drop).unwrap_err().to_string();
        assert!(again.contains("exists already"), "{again}");
        // Other commands, and a signature that is not valid.
        files.write("other.json", "other");
        let new = files.path("new.json");
        let told = |name: &str| merge(&["command.json", name], &new).map(drop).unwrap_err().to_string();
        assert!(told("other.json").contains("has other commands than"), "{}", told("other.json"));
        let mut forged = command_file::read(&files.path("copy.json")).unwrap();
        forged[0].signatures[0].signature.0[5] ^= 1;
        command_file::write(&files.path("copy.json"), &forged).unwrap();
        assert!(told("copy.json").contains("is not valid"), "{}", told("copy.json"));
        assert!(!new.exists());
    }
}
