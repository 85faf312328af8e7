//! `casemate`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    casemate::main(&std::env::args_os().collect::<Vec<_>>())
}
