//! `casemate`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    casemate::run(&arguments, &mut std::io::stdout().lock(), &mut std::io::stderr().lock()).into()
}
