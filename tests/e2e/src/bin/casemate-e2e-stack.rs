//! `casemate-dev` under a name that these tests can find: cargo hands a test the programs of its own package only.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    casemate_dev::main(&std::env::args_os().collect::<Vec<_>>())
}
