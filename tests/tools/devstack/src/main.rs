//! `casemate-dev`: see the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    casemate_dev::main(&std::env::args_os().collect::<Vec<_>>())
}
