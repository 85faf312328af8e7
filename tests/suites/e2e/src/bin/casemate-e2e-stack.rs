//! `casemate-dev`, and `casemate` behind `__casemate`, under a name that these tests can find: cargo hands a test the programs of its own package only.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some("__casemate") => casemate::main(arguments.get(1..).unwrap_or_default()),
        _ => casemate_dev::main(&arguments),
    }
}
