//! `casemate-proxy`: see the library.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    casemate_proxy::start(std::env::args_os())
}
