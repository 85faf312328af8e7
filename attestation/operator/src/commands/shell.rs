//! `casemate completions` and `casemate man`: what shells and man need to know of this program.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use clap_complete::Shell;

use crate::exit::{Answer, Exit};
use crate::util::plural;

#[derive(Args, Debug)]
pub struct Completions {
    /// Which shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

#[derive(Args, Debug)]
pub struct Manuals {
    /// A folder for the pages, which are written over
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// The script for a shell.
pub fn completions(options: &Completions, mut tree: clap::Command) -> Result<Answer> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut tree, "casemate", &mut script);
    let script = String::from_utf8(script).context("the script is no text")?;
    Ok((script, Exit::Accepted))
}

/// A page for each command.
pub fn manuals(options: &Manuals, tree: clap::Command) -> Result<Answer> {
    let folder = &options.folder;
    if !folder.is_dir() {
        bail!("{} is no folder: make it first", folder.display());
    }
    clap_mangen::generate_to(tree, folder).with_context(|| format!("writing into {}", folder.display()))?;
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let pages =
        entries.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with("casemate"));
    Ok((format!("{} in {}\n", plural(pages.count(), "page"), folder.display()), Exit::Accepted))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    fn run(words: &[&str]) -> (crate::Exit, String) {
        let words: Vec<OsString> = std::iter::once(&"casemate").chain(words).map(OsString::from).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = crate::run(&words, &mut out, &mut err);
        (exit, String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap())
    }

    #[test]
    fn shells_complete_commands_and_their_options() {
        for shell in ["bash", "zsh", "fish"] {
            let (exit, script) = run(&["completions", shell]);
            assert_eq!(exit, crate::Exit::Accepted, "{script}");
            assert!(script.contains("takeover") && script.contains("operator-key"), "{shell}");
        }
        assert_eq!(run(&["completions", "cmd.exe"]).0, crate::Exit::Unusable);
    }

    #[test]
    fn every_command_has_a_page_of_the_manual() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let (exit, told) = run(&["man", path]);
        assert_eq!(exit, crate::Exit::Accepted, "{told}");
        for page in ["casemate.1", "casemate-keys-import.1", "casemate-fence-takeover.1", "casemate-status.1"] {
            let text = std::fs::read_to_string(folder.path().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
            assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
        }
        assert!(!folder.path().join("casemate-take-over.1").exists(), "old names have no page");
        assert!(run(&["man", "/no/such/folder"]).1.contains("make it first"));
    }
}
